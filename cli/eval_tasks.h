/* The problems `carousel eval` asks: fresh ones of the named tasks, every difficulty equally often.
 */
#ifndef CLI_EVAL_TASKS_H
#define CLI_EVAL_TASKS_H

#include "train/task.h"

#include <stddef.h>
#include <stdint.h>

enum { EVAL_MAX_TASKS = 8 };

struct eval_task {
    const struct task *task;
    int knobs[TASK_MAX_KNOBS];
    int first_level, n_levels;
};

struct eval_tasks {
    int n_tasks, n_levels; /* levels of all tasks, one after another */
    struct eval_task tasks[EVAL_MAX_TASKS];
    enum task_split split;
    uint64_t seed;
};

/* names "hop,chain"; knobs "letters=14,hop.max_hops=3" or NULL: a knob without a task's name is
 * set in every task that has it. STATUS_INVALID names the word that is no task, no knob or out of
 * its range, and what there is. */
enum status eval_tasks_parse(const char *names, const char *knobs, enum task_split split,
                             uint64_t seed, struct eval_tasks *out, struct err *err);
/* Problem i: a function of the seed, the split and i. *level counts over all tasks. */
enum status eval_tasks_problem(const struct eval_tasks *t, uint64_t i, struct task_problem *problem,
                               int *level, struct err *err);
/* "hop 3" */
void eval_tasks_level_name(const struct eval_tasks *t, int level, char *name, size_t cap_bytes);
const struct eval_task *eval_tasks_of_level(const struct eval_tasks *t, int level);

#endif
