/* The parts of a recipe, each read from its own object; for recipe*.c only.
 *
 * They are called in this order and fill `out` as they go: what a later part needs of an earlier
 * one (tokenizer, data, model, stages) is there. */
#ifndef TRAIN_RECIPE_PARSE_H
#define TRAIN_RECIPE_PARSE_H

#include "train/recipe.h"
#include "train/recipe_reader.h"

enum { RECIPE_MAX_SHARDS = 1024 };

enum status recipe_parse_data(const struct recipe_reader *top, struct recipe *out);
enum status recipe_parse_model(const struct recipe_reader *top, struct recipe *out);
enum status recipe_parse_init(const struct recipe_reader *top, struct recipe *out);
enum status recipe_parse_optimizer(const struct recipe_reader *top, struct recipe *out);
enum status recipe_parse_stages(const struct recipe_reader *top, struct recipe *out);
enum status recipe_parse_curriculum(const struct recipe_reader *top, struct recipe *out);

/* Names of the curriculum's steps, until what refers to them is resolved. */
struct recipe_step_names {
    char texts[RECIPE_MAX_TRACKS][RECIPE_MAX_STEPS][RECIPE_NAME_BYTES];
    const char *items[RECIPE_MAX_TRACKS * RECIPE_MAX_STEPS];
    int tracks[RECIPE_MAX_TRACKS * RECIPE_MAX_STEPS], steps[RECIPE_MAX_TRACKS * RECIPE_MAX_STEPS];
    size_t n;
};
/* "rungs" of the curriculum object r: a track for every task. threshold is what a rung that names
 * none has to reach. */
enum status recipe_parse_ladder(const struct recipe_reader *r, float threshold, struct recipe *out,
                                struct recipe_step_names *names);
/* name, loops, threshold, min_steps, by, within: what steps and rungs have in common. */
enum status recipe_parse_step(const struct recipe_reader *r, bool is_first, char *name,
                              struct recipe_step *step);

/* Index of the source that key names, which must be a task where needs_task is set. */
enum status recipe_parse_source(const struct recipe_reader *r, const char *key,
                                const struct recipe *recipe, bool needs_task, int *out);
/* The task's knobs that r has fields for; sets [TASK_MAX_KNOBS] may be NULL. */
enum status recipe_parse_knobs(const struct recipe_reader *r, const struct task *task, int *knobs,
                               bool *sets);
/* Refuses fields that are neither in names nor knobs of the task. */
enum status recipe_parse_known(const struct recipe_reader *r, struct recipe_names names,
                               const struct task *task);

#endif
