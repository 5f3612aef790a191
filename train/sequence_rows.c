/* Builds a training sequence row by row: prefix, branches, targets. */
#include "train/sequence_rows.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

enum status sequence_rows_create(int cap, struct sequence_rows *out, struct err *err)
{
    if (cap < 1)
        return err_set(err, STATUS_INVALID, "a sequence of at most %d rows can hold nothing", cap);
    size_t n = (size_t)cap;
    struct sequence_rows s = {.cap = cap, .branch = -1};
    s.ids = calloc(n, sizeof *s.ids);
    s.positions = calloc(n, sizeof *s.positions);
    s.branch_start = calloc(n, sizeof *s.branch_start);
    s.targets = calloc(n, sizeof *s.targets);
    s.weights = calloc(n, sizeof *s.weights);
    s.levels = calloc(n, sizeof *s.levels);
    if (!s.ids || !s.positions || !s.branch_start || !s.targets || !s.weights || !s.levels) {
        sequence_rows_free(&s);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a sequence of %d rows", cap);
    }
    *out = s;
    return STATUS_OK;
}

void sequence_rows_free(struct sequence_rows *s)
{
    if (!s)
        return;
    free(s->ids);
    free(s->positions);
    free(s->branch_start);
    free(s->targets);
    free(s->weights);
    free(s->levels);
    *s = (struct sequence_rows){.branch = -1};
}

void sequence_rows_clear(struct sequence_rows *s)
{
    s->n = 0;
    s->n_prefix = 0;
    s->branch = -1;
}

enum status sequence_rows_append(struct sequence_rows *s, int32_t id, struct err *err)
{
    if (s->n == s->cap)
        return err_set(err, STATUS_INVALID,
                       "a training sequence is longer than the %d rows it was given", s->cap);
    int i = s->n++;
    bool is_prefix = s->branch < 0;
    if (is_prefix)
        s->n_prefix = s->n;
    s->ids[i] = id;
    s->positions[i] = is_prefix ? i : s->n_prefix + (i - s->branch);
    s->branch_start[i] = is_prefix ? 0 : s->branch;
    s->targets[i] = -1;
    s->weights[i] = 0;
    s->levels[i] = -1;
    return STATUS_OK;
}

void sequence_rows_branch(struct sequence_rows *s)
{
    s->branch = s->n;
}

void sequence_rows_target(struct sequence_rows *s, int32_t id, float weight, int level)
{
    assert(s->n > 0 && level >= -1 && level <= INT16_MAX);
    s->targets[s->n - 1] = id;
    s->weights[s->n - 1] = weight;
    s->levels[s->n - 1] = (int16_t)level;
}
