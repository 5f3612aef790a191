/* Asks the variables of a context: as branches of a training sequence, or one as a problem. */
#include "train/task_variables.h"

enum status task_variables_context(const struct task_variables_source *source, const int *knobs,
                                   struct random *r, struct task_variables *v,
                                   struct sequence_rows *rows, struct err *err)
{
    int draws = 0;
    do {
        if (draws++ == TASK_MAX_DRAWS)
            return task_no_context(source->task, TASK_TRAIN, source->advice, err);
        source->draw(knobs, r, v);
    } while (!task_text_is_of(&v->text, TASK_TRAIN));
    return task_rows_prefix(rows, &v->text, err);
}

enum status task_variables_branch(const struct task_variables *v, int i, int first_level,
                                  struct sequence_rows *rows, struct err *err)
{
    const char answer[2] = {(char)('0' + v->value[i]), '\0'};
    sequence_rows_branch(rows);
    enum status status = task_rows_symbol(rows, task_letter(v->name[i]), err);
    if (status == STATUS_OK)
        status = task_rows_symbol(rows, '?', err);
    if (status == STATUS_OK)
        status = task_rows_answer(rows, answer, first_level + v->depth[i], err);
    return status;
}

/* A variable of that depth; -1: there is none. */
static int choose(const struct task_variables *v, int depth, struct random *r)
{
    int found[TASK_MAX_VARIABLES], n = 0;
    for (int i = 0; i < v->n; i++)
        if (v->depth[i] == depth)
            found[n++] = i;
    return n == 0 ? -1 : found[random_below(r, n)];
}

enum status task_variables_problem(const struct task_variables_source *source, const int *knobs,
                                   enum task_split split, int level, struct random *r,
                                   struct task_problem *out, struct err *err)
{
    struct task_variables v;
    int draws = 0, asked = -1;
    enum status status = task_choose_level(source->task, knobs, level, r, &level, err);
    if (status != STATUS_OK)
        return status;
    do {
        if (draws++ == TASK_MAX_DRAWS)
            return task_no_context(source->task, split, source->advice, err);
        source->draw(knobs, r, &v);
        asked = task_text_is_of(&v.text, split) ? choose(&v, level, r) : -1;
    } while (asked < 0);
    const char query[3] = {task_letter(v.name[asked]), '?', '\0'};
    const char answer[2] = {(char)('0' + v.value[asked]), '\0'};
    task_problem_set(out, &v.text, query, answer, level);
    return STATUS_OK;
}
