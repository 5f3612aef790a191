/* What the tasks share: text under construction, symbols and answers as rows, drawing until a
 * context is of the wanted split. For task*.c only. */
#ifndef TRAIN_TASK_PARTS_H
#define TRAIN_TASK_PARTS_H

#include "train/task.h"

extern const struct task task_hop, task_chain, task_addition, task_phop, task_igsm;

/* A split holds 1/64 of the contexts at least: knobs under which so many draws in a row miss leave
 * it empty, or nearly so. */
enum { TASK_MAX_DRAWS = 1 << 20 };

/* Of the row that predicts the newline after an answer: the answer decides, its end hardly. */
#define TASK_NEWLINE_WEIGHT 0.1f

struct task_text {
    int len;
    char bytes[TASK_PROMPT_BYTES];
};
void task_text_add(struct task_text *t, char c);
void task_text_number(struct task_text *t, int value, int n_digits); /* zeros in front */
bool task_text_is_of(const struct task_text *t, enum task_split split);

static inline char task_letter(int i)
{
    return (char)('a' + i);
}

/* Empties out and makes <s> and the context its prefix. */
enum status task_rows_prefix(struct sequence_rows *out, const struct task_text *context,
                             struct err *err);
enum status task_rows_symbol(struct sequence_rows *out, char c, struct err *err);
/* The last row predicts the first symbol of answer, and so on up to the newline. */
enum status task_rows_answer(struct sequence_rows *out, const char *answer, int level,
                             struct err *err);

/* Puts level, or a uniform one for -1, into *chosen. STATUS_INVALID when there is no such level. */
enum status task_choose_level(const struct task *t, const int *knobs, int level, struct random *r,
                              int *chosen, struct err *err);
/* The error after TASK_MAX_DRAWS; advice says which knob to raise. */
enum status task_no_context(const struct task *t, enum task_split split, const char *advice,
                            struct err *err);
/* prompt = context and query. */
void task_problem_set(struct task_problem *out, const struct task_text *context, const char *query,
                      const char *answer, int level);

/* first_loop of tasks whose level index i stands for i + 1 steps. */
int task_steps_of_level(int level);

#endif
