/* The tasks by name, and the alphabet, splits and rows that all of them share. */
#include "train/task.h"

#include "proto/fnv.h"
#include "train/task_parts.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const char alphabet[TASK_VOCABULARY + 1] =
    "\0\n abcdefghijklmnopqrstuvwxyz0123456789=>;+-*?,.:";

int task_symbol_id(char c)
{
    if (c == '\0')
        return -1;
    const char *at = memchr(alphabet + 1, c, TASK_VOCABULARY - 1);
    return at == NULL ? -1 : (int)(at - alphabet);
}

char task_symbol(int id)
{
    return id > 0 && id < TASK_VOCABULARY ? alphabet[id] : '\0';
}

const struct task *task_at(size_t i)
{
    static const struct task *const tasks[] = {&task_hop, &task_chain, &task_addition, &task_phop,
                                               &task_igsm};
    return i < sizeof tasks / sizeof tasks[0] ? tasks[i] : NULL;
}

const struct task *task_find(const char *name)
{
    for (size_t i = 0; task_at(i) != NULL; i++)
        if (strcmp(task_at(i)->name, name) == 0)
            return task_at(i);
    return NULL;
}

int task_knob_find(const struct task *t, const char *name)
{
    for (int i = 0; i < t->n_knobs; i++)
        if (strcmp(t->knobs[i].name, name) == 0)
            return i;
    return -1;
}

void task_knobs_init(const struct task *t, int *knobs)
{
    for (int i = 0; i < t->n_knobs; i++)
        knobs[i] = t->knobs[i].initial;
}

enum task_split task_split_of(const char *context, size_t len_bytes)
{
    uint64_t h = fnv_bytes(FNV_START, context, len_bytes);
    /* FNV's low bits see the last bytes only weakly: MurmurHash3's finalizer mixes them. */
    h = (h ^ (h >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    h = (h ^ (h >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    h ^= h >> 33;
    return h % 64 == 0 ? TASK_TEST : h % 64 == 1 ? TASK_VALIDATION : TASK_TRAIN;
}

void task_text_add(struct task_text *t, char c)
{
    assert(t->len < TASK_PROMPT_BYTES - 1);
    t->bytes[t->len++] = c;
}

void task_text_number(struct task_text *t, int value, int n_digits)
{
    char digits[16];
    int n = snprintf(digits, sizeof digits, "%0*d", n_digits, value);
    for (int i = 0; i < n; i++)
        task_text_add(t, digits[i]);
}

bool task_text_is_of(const struct task_text *t, enum task_split split)
{
    return task_split_of(t->bytes, (size_t)t->len) == split;
}

enum status task_rows_symbol(struct sequence_rows *out, char c, struct err *err)
{
    return sequence_rows_append(out, task_symbol_id(c), err);
}

enum status task_rows_prefix(struct sequence_rows *out, const struct task_text *context,
                             struct err *err)
{
    sequence_rows_clear(out);
    enum status status = sequence_rows_append(out, TASK_BOS, err);
    for (int i = 0; i < context->len && status == STATUS_OK; i++)
        status = task_rows_symbol(out, context->bytes[i], err);
    return status;
}

enum status task_rows_answer(struct sequence_rows *out, const char *answer, int level,
                             struct err *err)
{
    enum status status = STATUS_OK;
    for (; *answer != '\0' && status == STATUS_OK; answer++) {
        sequence_rows_target(out, task_symbol_id(*answer), 1, level);
        status = task_rows_symbol(out, *answer, err);
    }
    if (status == STATUS_OK)
        sequence_rows_target(out, TASK_EOS, TASK_NEWLINE_WEIGHT, -1);
    return status;
}

enum status task_choose_level(const struct task *t, const int *knobs, int level, struct random *r,
                              int *chosen, struct err *err)
{
    int n = t->n_levels(knobs);
    if (level < -1 || level >= n)
        return err_set(err, STATUS_INVALID,
                       "task %s has levels 0 to %d under these knobs, not %d (-1 mixes them)",
                       t->name, n - 1, level);
    *chosen = level == -1 ? random_below(r, n) : level;
    return STATUS_OK;
}

enum status task_no_context(const struct task *t, enum task_split split, const char *advice,
                            struct err *err)
{
    static const char *const names[] = {"training", "validation", "test"};
    return err_set(err, STATUS_INVALID,
                   "task %s: none of %d contexts is a %s context of the wanted level; these knobs "
                   "leave too few, raise %s",
                   t->name, TASK_MAX_DRAWS, names[split], advice);
}

void task_problem_set(struct task_problem *out, const struct task_text *context, const char *query,
                      const char *answer, int level)
{
    snprintf(out->prompt, sizeof out->prompt, "%.*s%s", context->len, context->bytes, query);
    snprintf(out->answer, sizeof out->answer, "%s", answer);
    out->level = level;
}

int task_steps_of_level(int level)
{
    return level + 1;
}
