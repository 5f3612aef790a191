/* Decides from the counts of a step what is open in the next one. */
#include "train/curriculum.h"

#include <assert.h>
#include <string.h>

static const struct recipe_stage *stage_of(const struct recipe *r, const struct curriculum_state *s)
{
    return &r->stages[s->stage];
}

/* Steps open loops up to their highest `loops`, the stage says how many of them at most. */
static int find_loops(const struct recipe *r, const struct curriculum_state *s)
{
    const int most = stage_of(r, s)->loops;
    int open = 0;
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        for (int i = 0; i <= s->track_steps[t]; i++)
            if (r->curriculum.tracks[t].steps[i].loops > open)
                open = r->curriculum.tracks[t].steps[i].loops;
    return open == 0 || open > most ? most : open;
}

static int level_of(const struct recipe *r, const struct recipe_track *track,
                    const struct recipe_step *step)
{
    return recipe_first_level(r, track->data) + step->watch_level;
}

/* Knobs as the step sets them; what it watches must be earned under them. */
static void begin_step(const struct recipe *r, struct curriculum_state *s, int t, int i)
{
    const struct recipe_track *track = &r->curriculum.tracks[t];
    const struct recipe_step *step = &track->steps[i];
    s->track_steps[t] = i;
    for (int k = 0; k < TASK_MAX_KNOBS; k++)
        if (step->sets[k])
            s->knobs[track->data][k] = step->values[k];
    memset(s->accuracy[level_of(r, track, step)], 0, sizeof s->accuracy[0]);
}

static void begin_attempt(const struct recipe *r, struct curriculum_state *s)
{
    s->attempt_step = 0;
    s->stage_step = 0;
    s->stage = 0;
    memset(s->knobs, 0, sizeof s->knobs);
    memset(s->track_steps, 0, sizeof s->track_steps);
    memset(s->accuracy, 0, sizeof s->accuracy);
    for (int i = 0; i < r->n_data; i++)
        memcpy(s->knobs[i], r->data[i].knobs, sizeof s->knobs[i]);
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        begin_step(r, s, t, 0);
    s->loops = find_loops(r, s);
}

void curriculum_init(const struct recipe *r, struct curriculum_state *s)
{
    memset(s, 0, sizeof *s);
    begin_attempt(r, s);
}

/* x^n by squaring: the same bits on every machine, which powf does not promise. */
static double power(double x, uint64_t n)
{
    double y = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1)
            y *= x;
    return y;
}

static void update_accuracy(const struct recipe *r, struct curriculum_state *s,
                            const struct metrics *counts)
{
    const int n_levels = recipe_n_levels(r);
    for (int level = 0; level < n_levels; level++) {
        const float n = counts->n[level];
        if (!(n >= 1))
            continue;
        double share = 1 - power(1 - (double)r->curriculum.rate, (uint64_t)n);
        /* Loops that are not open have no answers yet: they begin at 0 when they open. */
        for (int t = 0; t < s->loops && t < METRICS_MAX_LOOPS; t++) {
            double e = s->accuracy[level][t];
            s->accuracy[level][t] =
                (float)(e + share * ((double)counts->correct[level][t] / n - e));
        }
    }
}

bool curriculum_staircase_holds(const struct recipe *r, const struct curriculum_state *s)
{
    const int data = r->curriculum.staircase_data;
    if (data < 0)
        return true;
    const int first = recipe_first_level(r, data);
    const int n = r->data[data].task->n_levels(s->knobs[data]);
    for (int p = 0; p < n; p++) {
        int loop = recipe_first_loop(r, data, p);
        loop = loop < s->loops ? loop : s->loops;
        if (!(s->accuracy[first + p][loop - 1] > r->curriculum.hold))
            return false;
    }
    return true;
}

static bool has_passed(const struct recipe *r, const struct curriculum_state *s, int t)
{
    const struct recipe_track *track = &r->curriculum.tracks[t];
    int level = level_of(r, track, &track->steps[s->track_steps[t]]);
    return s->accuracy[level][s->loops - 1] >= r->curriculum.threshold;
}

bool curriculum_is_open(const struct recipe *r, const struct curriculum_state *s)
{
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        if (s->track_steps[t] + 1 < r->curriculum.tracks[t].n_steps || !has_passed(r, s, t))
            return false;
    return curriculum_staircase_holds(r, s);
}

static bool is_past(const struct recipe *r, const struct curriculum_state *s, int t, int step)
{
    return s->track_steps[t] > step || (s->track_steps[t] == step && has_passed(r, s, t));
}

static bool may_begin(const struct recipe *r, const struct curriculum_state *s,
                      const struct recipe_step *step)
{
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        if (step->after[t] >= 0 && !is_past(r, s, t, step->after[t]))
            return false;
    return step->needs_loops <= s->loops && (!step->holds || curriculum_staircase_holds(r, s));
}

/* Each track by one step at most, all judged by the state before any of them moved: their order in
 * the recipe does not matter. */
static unsigned advance(const struct recipe *r, struct curriculum_state *s)
{
    bool moves[RECIPE_MAX_TRACKS] = {false};
    unsigned events = CURRICULUM_NONE;
    for (int t = 0; t < r->curriculum.n_tracks; t++) {
        int next = s->track_steps[t] + 1;
        moves[t] = next < r->curriculum.tracks[t].n_steps && has_passed(r, s, t) &&
                   may_begin(r, s, &r->curriculum.tracks[t].steps[next]);
    }
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        if (moves[t]) {
            begin_step(r, s, t, s->track_steps[t] + 1);
            events = CURRICULUM_ADVANCED;
        }
    s->loops = find_loops(r, s);
    return events;
}

static bool misses_deadline(const struct recipe *r, const struct curriculum_state *s)
{
    const struct recipe_curriculum *c = &r->curriculum;
    for (int t = 0; t < c->n_tracks; t++)
        for (int i = s->track_steps[t] + 1; i < c->tracks[t].n_steps; i++)
            if (c->tracks[t].steps[i].by > 0 && s->attempt_step == c->tracks[t].steps[i].by)
                return true;
    if (c->open_by > 0 && s->attempt_step == c->open_by && !curriculum_is_open(r, s))
        for (int i = s->stage; i < r->n_stages; i++)
            if (r->stages[i].ends_when_open)
                return true;
    return false;
}

static unsigned end_stage(const struct recipe *r, struct curriculum_state *s)
{
    const struct recipe_stage *stage = stage_of(r, s);
    bool is_through =
        (stage->ends_when_open && curriculum_is_open(r, s)) ||
        (stage->until_track >= 0 && is_past(r, s, stage->until_track, stage->until_step));
    bool ends_early = is_through && s->stage_step >= stage->min_steps;
    if (s->stage_step < stage->steps && !ends_early)
        return CURRICULUM_NONE;
    if (s->stage + 1 == r->n_stages) {
        s->is_finished = 1;
        return CURRICULUM_FINISHED;
    }
    s->stage++;
    s->stage_step = 0;
    int loops = s->loops;
    s->loops = find_loops(r, s);
    return CURRICULUM_STAGE | (s->loops != loops ? CURRICULUM_ADVANCED : 0);
}

unsigned curriculum_step(const struct recipe *r, struct curriculum_state *s,
                         const struct metrics *counts)
{
    assert(s->stage >= 0 && s->stage < r->n_stages);
    if (s->is_finished)
        return CURRICULUM_FINISHED;
    update_accuracy(r, s, counts);
    s->step++;
    s->attempt_step++;
    s->stage_step++;
    unsigned events = advance(r, s);
    if (s->attempt < r->curriculum.max_restarts && misses_deadline(r, s)) {
        s->attempt++;
        begin_attempt(r, s);
        return CURRICULUM_RESTART;
    }
    return events | end_stage(r, s);
}
