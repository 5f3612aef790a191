/* What chain and igsm share: variables with values and depths, asked as `x?`. For task*.c only. */
#ifndef TRAIN_TASK_VARIABLES_H
#define TRAIN_TASK_VARIABLES_H

#include "train/task_parts.h"

enum { TASK_MAX_VARIABLES = 26 };

struct task_variables {
    int n;
    int name[TASK_MAX_VARIABLES], value[TASK_MAX_VARIABLES], depth[TASK_MAX_VARIABLES];
    struct task_text text; /* their definitions */
};

/* How a task draws a context. */
struct task_variables_source {
    const struct task *task;
    const char *advice; /* the knob to raise when a split has no context */
    void (*draw)(const int *knobs, struct random *r, struct task_variables *out);
};

/* Draws until the context may be trained on, and makes it the prefix of rows. */
enum status task_variables_context(const struct task_variables_source *source, const int *knobs,
                                   struct random *r, struct task_variables *v,
                                   struct sequence_rows *rows, struct err *err);
/* A branch that asks variable i. */
enum status task_variables_branch(const struct task_variables *v, int i, int first_level,
                                  struct sequence_rows *rows, struct err *err);
/* A problem of the split: any variable of that depth, all alike. */
enum status task_variables_problem(const struct task_variables_source *source, const int *knobs,
                                   enum task_split split, int level, struct random *r,
                                   struct task_problem *out, struct err *err);

#endif
