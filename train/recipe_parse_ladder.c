/* Reads "rungs": one list of steps that sets knobs of all tasks, as tracks that move together. */
#include "train/recipe_parse.h"

#include <string.h>

static const char *const RUNG_FIELDS[] = {"name",      "loops", "threshold",
                                          "min_steps", "by",    "within"};

enum status recipe_parse_step(const struct recipe_reader *r, bool is_first, char *name,
                              struct recipe_step *step)
{
    if (is_first && recipe_reader_has(r, "by"))
        return recipe_reader_fail(r, "by", NULL, "none in the first step: it begins with the run");
    enum status status = recipe_reader_text(r, "name", RECIPE_NAME_BYTES, name);
    if (status == STATUS_OK)
        status = recipe_reader_int(r, "loops", 1, MODEL_MAX_LOOPS, &step->loops);
    if (status == STATUS_OK)
        status = recipe_reader_float(r, "threshold", 0, 1, &step->threshold);
    if (status == STATUS_OK)
        status = recipe_reader_count(r, "min_steps", INT64_MAX, &step->min_steps);
    if (status == STATUS_OK)
        status = recipe_reader_count(r, "by", INT64_MAX, &step->by);
    return status == STATUS_OK ? recipe_reader_count(r, "within", INT64_MAX, &step->within)
                               : status;
}

/* Knobs go on from rung to rung; values of every track's last one are where this one begins. */
static enum status read_knobs(const struct recipe_reader *rung, struct recipe *out, int i)
{
    for (int t = 0; t < out->curriculum.n_tracks; t++) {
        struct recipe_track *track = &out->curriculum.tracks[t];
        const struct recipe_data *data = &out->data[track->data];
        struct recipe_step *step = &track->steps[i];
        memcpy(step->values, i == 0 ? data->knobs : track->steps[i - 1].values,
               sizeof step->values);
        if (!recipe_reader_has(rung, data->name))
            continue;
        struct recipe_reader knobs;
        enum status status = recipe_reader_child(rung, data->name, &knobs);
        if (status == STATUS_OK)
            status = recipe_parse_known(&knobs, (struct recipe_names){NULL, 0}, data->task);
        if (status == STATUS_OK)
            status = recipe_parse_knobs(&knobs, data->task, step->values, step->sets);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status read_rung(const struct recipe_reader *rung, float threshold, struct recipe *out,
                             int i, char *name)
{
    const char *sources[RECIPE_MAX_TRACKS];
    struct recipe_curriculum *c = &out->curriculum;
    struct recipe_step shared = {.threshold = threshold, .watch_level = RECIPE_WATCH_ALL};
    for (int t = 0; t < RECIPE_MAX_TRACKS; t++)
        shared.after[t] = -1;
    for (int t = 0; t < c->n_tracks; t++)
        sources[t] = out->data[c->tracks[t].data].name;
    const struct recipe_names known[] = {RECIPE_NAMES(RUNG_FIELDS), {sources, (size_t)c->n_tracks}};
    enum status status = recipe_reader_known(rung, known, 2);
    if (status == STATUS_OK)
        status = recipe_parse_step(rung, i == 0, name, &shared);
    for (int t = 0; t < c->n_tracks; t++)
        c->tracks[t].steps[i] = shared;
    return status == STATUS_OK ? read_knobs(rung, out, i) : status;
}

enum status recipe_parse_ladder(const struct recipe_reader *r, float threshold, struct recipe *out,
                                struct recipe_step_names *names)
{
    struct recipe_curriculum *c = &out->curriculum;
    size_t n = 0;
    enum status status = recipe_reader_list(r, "rungs", RECIPE_MAX_STEPS, &n);
    if (status != STATUS_OK)
        return status;
    c->is_ladder = true;
    for (int i = 0; i < out->n_data; i++) {
        if (out->data[i].task == NULL)
            continue;
        if (c->n_tracks == RECIPE_MAX_TRACKS)
            return recipe_reader_fail(r, "rungs", NULL, "at most %d tasks in data",
                                      RECIPE_MAX_TRACKS);
        c->tracks[c->n_tracks].data = i;
        c->tracks[c->n_tracks++].n_steps = (int)n;
    }
    if (c->n_tracks == 0)
        return recipe_reader_fail(r, "rungs", NULL, "a task in data: texts have no levels");
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        struct recipe_reader rung;
        status = recipe_reader_item(r, "rungs", i, &rung);
        if (status == STATUS_OK)
            status = read_rung(&rung, threshold, out, (int)i, names->texts[0][i]);
    }
    return status;
}
