/* Reads "curriculum": tracks of steps whose every wait can come to an end. */
#include "train/recipe_parse.h"

#include "train/metrics.h"

#include <stdio.h>
#include <string.h>

static const char *const FIELDS[] = {"rate",     "threshold", "hold",   "staircase",
                                     "restarts", "open_by",   "tracks", "rungs"};
static const char *const TRACK_FIELDS[] = {"data", "holds", "steps"};
static const char *const STEP_FIELDS[] = {"name",  "loops",     "needs_loops", "holds", "watch",
                                          "after", "threshold", "min_steps",   "by",    "within"};

/* The level called "watch" under these knobs, "all", or the hardest when nothing is said. */
static enum status read_watch(const struct recipe_reader *r, const struct task *task,
                              const int *knobs, int *level)
{
    char texts[TASK_MAX_LEVELS][RECIPE_NAME_BYTES];
    const char *names[TASK_MAX_LEVELS + 1] = {"all"};
    int n = task->n_levels(knobs);
    if (n < 1 || n > TASK_MAX_LEVELS)
        return recipe_reader_fail(
            r, "watch", NULL, "knobs that give 1 to %d levels (these give %d)", TASK_MAX_LEVELS, n);
    for (int i = 0; i < n; i++) {
        task->level_name(i, texts[i], sizeof texts[i]);
        names[i + 1] = texts[i];
    }
    int chosen = n;
    enum status status =
        recipe_reader_choice(r, "watch", (struct recipe_names){names, (size_t)n + 1}, &chosen);
    *level = chosen == 0 ? RECIPE_WATCH_ALL : chosen - 1;
    return status;
}

/* knobs are those open after the steps before; they move on. */
static enum status read_step(const struct recipe_reader *r, const struct task *task, bool is_first,
                             int *knobs, char *name, struct recipe_step *step)
{
    static const char *const waits[] = {"needs_loops", "holds", "after"};
    enum status status = recipe_parse_known(r, RECIPE_NAMES(STEP_FIELDS), task);
    if (status == STATUS_OK)
        status = recipe_parse_knobs(r, task, knobs, step->sets);
    if (status != STATUS_OK)
        return status;
    memcpy(step->values, knobs, sizeof step->values);
    for (size_t i = 0; i < sizeof waits / sizeof waits[0] && is_first; i++)
        if (recipe_reader_has(r, waits[i]))
            return recipe_reader_fail(r, waits[i], NULL,
                                      "none in the first step of a track: it begins with the run");
    status = recipe_parse_step(r, is_first, name, step);
    if (status == STATUS_OK)
        status = recipe_reader_int(r, "needs_loops", 1, MODEL_MAX_LOOPS, &step->needs_loops);
    if (status == STATUS_OK)
        status = recipe_reader_bool(r, "holds", &step->holds);
    return status == STATUS_OK ? read_watch(r, task, knobs, &step->watch_level) : status;
}

static enum status read_track(const struct recipe_reader *r, const struct recipe *recipe,
                              float threshold, struct recipe_track *track,
                              char names[RECIPE_MAX_STEPS][RECIPE_NAME_BYTES])
{
    const struct recipe_names known = RECIPE_NAMES(TRACK_FIELDS);
    int knobs[TASK_MAX_KNOBS];
    bool holds = false;
    size_t n = 0;
    enum status status = recipe_reader_known(r, &known, 1);
    if (status == STATUS_OK)
        status = recipe_parse_source(r, "data", recipe, true, &track->data);
    if (status == STATUS_OK)
        status = recipe_reader_bool(r, "holds", &holds);
    if (status == STATUS_OK)
        status = recipe_reader_list(r, "steps", RECIPE_MAX_STEPS, &n);
    if (status != STATUS_OK)
        return status;
    const struct recipe_data *data = &recipe->data[track->data];
    memcpy(knobs, data->knobs, sizeof knobs);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        struct recipe_reader step;
        track->steps[i].holds = holds && i > 0;
        track->steps[i].threshold = threshold;
        status = recipe_reader_item(r, "steps", i, &step);
        if (status == STATUS_OK)
            status = read_step(&step, data->task, i == 0, knobs, names[i], &track->steps[i]);
    }
    track->n_steps = (int)n;
    return status;
}

static enum status read_staircase(const struct recipe_reader *r, const struct recipe *recipe,
                                  struct recipe_curriculum *c)
{
    c->staircase_data = -1;
    if (recipe_reader_has(r, "staircase")) {
        enum status status = recipe_parse_source(r, "staircase", recipe, true, &c->staircase_data);
        return status == STATUS_OK ? recipe_reader_float(r, "hold", 0, 1, &c->hold) : status;
    }
    if (recipe_reader_has(r, "hold"))
        return recipe_reader_fail(r, "hold", NULL, "none without staircase");
    return STATUS_OK;
}

/* Where step i of track t stands in the file. */
static const char *place_of(const struct recipe_curriculum *c, int t, int i,
                            char text[RECIPE_NAME_BYTES])
{
    if (c->is_ladder)
        snprintf(text, RECIPE_NAME_BYTES, "curriculum.rungs[%d]", i);
    else
        snprintf(text, RECIPE_NAME_BYTES, "curriculum.tracks[%d].steps[%d]", t, i);
    return text;
}

static enum status collect_names(const struct recipe_reader *r, const struct recipe_curriculum *c,
                                 struct recipe_step_names *names)
{
    char place[RECIPE_NAME_BYTES];
    for (int t = 0; t < c->n_tracks; t++)
        for (int i = 0; i < c->tracks[t].n_steps; i++) {
            const char *name = names->texts[t][i];
            if (name[0] == '\0')
                continue;
            for (size_t k = 0; k < names->n; k++)
                if (strcmp(names->items[k], name) == 0)
                    return err_set(r->err, STATUS_INVALID,
                                   "%s: %s.name: expected a name no "
                                   "other step has, found \"%s\" again",
                                   r->origin, place_of(c, t, i, place), name);
            if (strcmp(name, "open") == 0)
                return err_set(r->err, STATUS_INVALID,
                               "%s: %s.name: expected another name "
                               "(\"open\" means the whole curriculum), found \"open\"",
                               r->origin, place_of(c, t, i, place));
            names->items[names->n] = name;
            names->tracks[names->n] = t;
            names->steps[names->n++] = i;
        }
    return STATUS_OK;
}

/* What a stage waits for: the name of a step, or "open" for all of them. */
static enum status resolve_until(const struct recipe_reader *top, struct recipe *out,
                                 const struct recipe_step_names *names)
{
    const char *items[RECIPE_MAX_TRACKS * RECIPE_MAX_STEPS + 1] = {"open"};
    enum status status = STATUS_OK;
    memcpy(items + 1, names->items, names->n * sizeof items[0]);
    for (int i = 0; i < out->n_stages && status == STATUS_OK; i++) {
        struct recipe_stage *s = &out->stages[i];
        struct recipe_reader stage;
        int chosen = 0;
        status = recipe_reader_item(top, "stages", (size_t)i, &stage);
        if (status != STATUS_OK || !recipe_reader_has(&stage, "until"))
            continue;
        if (out->curriculum.n_tracks == 0)
            return recipe_reader_fail(&stage, "until", NULL, "none without curriculum");
        status = recipe_reader_choice(&stage, "until", (struct recipe_names){items, names->n + 1},
                                      &chosen);
        if (status != STATUS_OK)
            continue;
        s->ends_when_open = chosen == 0;
        s->until_track = chosen == 0 ? -1 : names->tracks[chosen - 1];
        s->until_step = chosen == 0 ? -1 : names->steps[chosen - 1];
    }
    return status;
}

/* "after" is a name or a list of names, of steps of other tracks. */
static enum status read_after(const struct recipe_reader *r, int track,
                              const struct recipe_step_names *names, struct recipe_step *step)
{
    const struct recipe_names known = {names->items, names->n};
    const json_t *value = json_object_get(r->object, "after");
    for (int t = 0; t < RECIPE_MAX_TRACKS; t++)
        step->after[t] = -1;
    if (value == NULL)
        return STATUS_OK;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(value) ? json_array_get(value, i) : value;
        const char *name = json_string_value(item);
        if (name == NULL)
            return recipe_reader_fail(r, "after", NULL, "a step's name, or a list of them");
        size_t k = 0;
        while (k < names->n && strcmp(names->items[k], name) != 0)
            k++;
        if (k == names->n)
            return recipe_reader_unknown(r, "after", name, "step named", &known, 1);
        if (names->tracks[k] == track)
            return recipe_reader_fail(r, "after", NULL,
                                      "steps of other tracks: those of its own come in order");
        if (names->steps[k] > step->after[names->tracks[k]])
            step->after[names->tracks[k]] = names->steps[k];
    }
    return STATUS_OK;
}

static enum status resolve_after(const struct recipe_reader *r, struct recipe_curriculum *c,
                                 const struct recipe_step_names *names)
{
    enum status status = STATUS_OK;
    for (int t = 0; t < c->n_tracks && status == STATUS_OK; t++) {
        struct recipe_reader track, step;
        status = recipe_reader_item(r, "tracks", (size_t)t, &track);
        for (int i = 0; i < c->tracks[t].n_steps && status == STATUS_OK; i++) {
            status = recipe_reader_item(&track, "steps", (size_t)i, &step);
            if (status == STATUS_OK)
                status = read_after(&step, t, names, &c->tracks[t].steps[i]);
        }
    }
    return status;
}

/* Whether a step could begin if every level passed and every staircase held. */
static bool could_begin(const struct recipe_curriculum *c, const struct recipe_step *step,
                        const int at[RECIPE_MAX_TRACKS], int loops)
{
    for (int t = 0; t < c->n_tracks; t++)
        if (step->after[t] > at[t])
            return false;
    return step->needs_loops <= loops;
}

/* A step that waits for what only comes after it would hold the run there for ever: lets all
 * tracks run as far as they could and looks for one that stops. */
static enum status check_order(const struct recipe_reader *r, const struct recipe *recipe)
{
    const struct recipe_curriculum *c = &recipe->curriculum;
    int at[RECIPE_MAX_TRACKS] = {0}, most = 0, opened = 0;
    char place[RECIPE_NAME_BYTES];
    for (int i = 0; i < recipe->n_stages; i++)
        most = recipe->stages[i].loops > most ? recipe->stages[i].loops : most;
    for (bool is_moving = true; is_moving;) {
        is_moving = false;
        for (int t = 0; t < c->n_tracks; t++) {
            const struct recipe_step *steps = c->tracks[t].steps;
            opened = steps[at[t]].loops > opened ? steps[at[t]].loops : opened;
            int loops = opened == 0 || opened > most ? most : opened;
            if (at[t] + 1 < c->tracks[t].n_steps && could_begin(c, &steps[at[t] + 1], at, loops)) {
                at[t]++;
                is_moving = true;
            }
        }
    }
    for (int t = 0; t < c->n_tracks; t++)
        if (at[t] + 1 < c->tracks[t].n_steps)
            return err_set(r->err, STATUS_INVALID,
                           "%s: %s can never begin: it, or a step it "
                           "waits for, needs more loops than stages and steps open, or they wait "
                           "for each other",
                           r->origin, place_of(c, t, at[t] + 1, place));
    return STATUS_OK;
}

static enum status check_waits(const struct recipe_reader *r, const struct recipe *recipe)
{
    char place[RECIPE_NAME_BYTES];
    const struct recipe_curriculum *c = &recipe->curriculum;
    for (int t = 0; t < c->n_tracks; t++)
        for (int i = 0; i < c->tracks[t].n_steps; i++) {
            const struct recipe_step *step = &c->tracks[t].steps[i];
            if (step->holds && c->staircase_data < 0)
                return err_set(r->err, STATUS_INVALID,
                               "%s: %s.holds: expected none without "
                               "curriculum.staircase, found true",
                               r->origin, place_of(c, t, i, place));
            if ((step->by > 0 || step->within > 0) && c->max_restarts == 0)
                return err_set(r->err, STATUS_INVALID,
                               "%s: %s.%s: expected none without "
                               "curriculum.restarts, found %llu",
                               r->origin, place_of(c, t, i, place), step->by > 0 ? "by" : "within",
                               (unsigned long long)(step->by > 0 ? step->by : step->within));
        }
    if (c->open_by > 0 && c->max_restarts == 0)
        return recipe_reader_fail(r, "open_by", NULL, "none without restarts");
    return check_order(r, recipe);
}

static enum status read_tracks(const struct recipe_reader *r, float threshold, struct recipe *out,
                               struct recipe_step_names *names)
{
    struct recipe_curriculum *c = &out->curriculum;
    size_t n = 0;
    enum status status = recipe_reader_list(r, "tracks", RECIPE_MAX_TRACKS, &n);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        struct recipe_reader track;
        status = recipe_reader_item(r, "tracks", i, &track);
        if (status == STATUS_OK)
            status = read_track(&track, out, threshold, &c->tracks[i], names->texts[i]);
    }
    c->n_tracks = (int)n;
    if (status == STATUS_OK)
        status = collect_names(r, c, names);
    return status == STATUS_OK ? resolve_after(r, c, names) : status;
}

static enum status read_curriculum(const struct recipe_reader *top, struct recipe *out,
                                   struct recipe_step_names *names)
{
    const struct recipe_names known = RECIPE_NAMES(FIELDS);
    struct recipe_curriculum *c = &out->curriculum;
    struct recipe_reader r;
    float threshold = 0.8f;
    enum status status = recipe_reader_child(top, "curriculum", &r);
    if (status == STATUS_OK)
        status = recipe_reader_known(&r, &known, 1);
    if (status == STATUS_OK)
        status = recipe_reader_float(&r, "rate", 1e-9, 1, &c->rate);
    if (status == STATUS_OK)
        status = recipe_reader_float(&r, "threshold", 0, 1, &threshold);
    if (status == STATUS_OK)
        status = read_staircase(&r, out, c);
    if (status == STATUS_OK)
        status = recipe_reader_int(&r, "restarts", 0, 1000, &c->max_restarts);
    if (status == STATUS_OK)
        status = recipe_reader_count(&r, "open_by", INT64_MAX, &c->open_by);
    if (status != STATUS_OK)
        return status;
    if (!recipe_reader_has(&r, "rungs"))
        status = read_tracks(&r, threshold, out, names);
    else if (recipe_reader_has(&r, "tracks"))
        status = recipe_reader_fail(&r, "tracks", NULL, "either tracks or rungs, not both");
    else
        status = recipe_parse_ladder(&r, threshold, out, names);
    if (status == STATUS_OK && c->is_ladder)
        status = collect_names(&r, c, names);
    return status == STATUS_OK ? check_waits(&r, out) : status;
}

enum status recipe_parse_curriculum(const struct recipe_reader *top, struct recipe *out)
{
    out->curriculum =
        (struct recipe_curriculum){.rate = 0.002f, .hold = 0.85f, .staircase_data = -1};
    struct recipe_step_names names = {0};
    enum status status = STATUS_OK;
    if (recipe_reader_has(top, "curriculum"))
        status = read_curriculum(top, out, &names);
    if (status == STATUS_OK)
        status = resolve_until(top, out, &names);
    if (status == STATUS_OK && recipe_n_levels(out) > METRICS_MAX_LEVELS)
        return recipe_reader_fail(top, "data", NULL,
                                  "at most %d levels in all sources together (these have %d)",
                                  METRICS_MAX_LEVELS, recipe_n_levels(out));
    return status;
}
