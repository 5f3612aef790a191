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

/* Knobs as the step sets them; the one level it watches must be earned under them. */
static void begin_step(const struct recipe *r, struct curriculum_state *s, int t, int i)
{
    const struct recipe_track *track = &r->curriculum.tracks[t];
    const struct recipe_step *step = &track->steps[i];
    s->track_steps[t] = i;
    s->track_begins[t] = s->attempt_step;
    for (int k = 0; k < TASK_MAX_KNOBS; k++)
        if (step->sets[k])
            s->knobs[track->data][k] = step->values[k];
    if (step->watch_level != RECIPE_WATCH_ALL)
        memset(s->accuracy[recipe_first_level(r, track->data) + step->watch_level], 0,
               sizeof s->accuracy[0]);
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

/* The least accuracy of the source's open levels, each at the first loop that can know it. */
static float find_least(const struct recipe *r, const struct curriculum_state *s, int data)
{
    const int first = recipe_first_level(r, data);
    const int n = r->data[data].task->n_levels(s->knobs[data]);
    float least = 1;
    for (int p = 0; p < n; p++) {
        int loop = recipe_first_loop(r, data, p);
        loop = loop < s->loops ? loop : s->loops;
        if (s->accuracy[first + p][loop - 1] < least)
            least = s->accuracy[first + p][loop - 1];
    }
    return least;
}

bool curriculum_staircase_holds(const struct recipe *r, const struct curriculum_state *s)
{
    const int data = r->curriculum.staircase_data;
    return data < 0 || find_least(r, s, data) > r->curriculum.hold;
}

static bool has_passed(const struct recipe *r, const struct curriculum_state *s, int t)
{
    const struct recipe_track *track = &r->curriculum.tracks[t];
    const struct recipe_step *step = &track->steps[s->track_steps[t]];
    if (s->attempt_step - s->track_begins[t] < step->min_steps)
        return false;
    if (step->watch_level == RECIPE_WATCH_ALL)
        return find_least(r, s, track->data) >= step->threshold;
    int level = recipe_first_level(r, track->data) + step->watch_level;
    return s->accuracy[level][s->loops - 1] >= step->threshold;
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
    if (s->track_steps[t] != step)
        return s->track_steps[t] > step;
    bool all = true;
    for (int i = 0; i < r->curriculum.n_tracks && r->curriculum.is_ladder; i++)
        all = all && has_passed(r, s, i);
    return all && has_passed(r, s, t);
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
    bool moves[RECIPE_MAX_TRACKS] = {false}, moves_all = true;
    unsigned events = CURRICULUM_NONE;
    for (int t = 0; t < r->curriculum.n_tracks; t++) {
        int next = s->track_steps[t] + 1;
        moves[t] = next < r->curriculum.tracks[t].n_steps && has_passed(r, s, t) &&
                   may_begin(r, s, &r->curriculum.tracks[t].steps[next]);
        moves_all = moves_all && moves[t];
    }
    for (int t = 0; t < r->curriculum.n_tracks; t++)
        if (moves[t] && (moves_all || !r->curriculum.is_ladder)) {
            begin_step(r, s, t, s->track_steps[t] + 1);
            events = CURRICULUM_ADVANCED;
        }
    s->loops = find_loops(r, s);
    return events;
}

/* Whether this stage or a later one ends when the curriculum is open. */
static bool is_awaited(const struct recipe *r, const struct curriculum_state *s)
{
    for (int i = s->stage; i < r->n_stages; i++)
        if (r->stages[i].ends_when_open)
            return true;
    return false;
}

static bool misses_limit(const struct recipe *r, const struct curriculum_state *s)
{
    const struct recipe_curriculum *c = &r->curriculum;
    for (int t = 0; t < c->n_tracks; t++) {
        const struct recipe_step *steps = c->tracks[t].steps;
        const int at = s->track_steps[t], n = c->tracks[t].n_steps;
        for (int i = at + 1; i < n; i++)
            if (steps[i].by > 0 && s->attempt_step == steps[i].by)
                return true;
        /* What comes after the last step is the stage's matter, once it has been reached. */
        if (steps[at].within > 0 && s->attempt_step - s->track_begins[t] >= steps[at].within &&
            !has_passed(r, s, t) && (at + 1 < n || is_awaited(r, s)))
            return true;
    }
    return c->open_by > 0 && s->attempt_step == c->open_by && is_awaited(r, s) &&
           !curriculum_is_open(r, s);
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
    if (s->attempt < r->curriculum.max_restarts && misses_limit(r, s)) {
        s->attempt++;
        begin_attempt(r, s);
        return CURRICULUM_RESTART;
    }
    return events | end_stage(r, s);
}
