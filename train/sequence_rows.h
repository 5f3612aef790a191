/* One training sequence: a prefix, and branches that see the prefix and themselves.
 *
 * Each branch is exactly what a prompt of its own would be (prefix + branch): its RoPE positions
 * restart at the prefix' length. A plain causal text is all prefix. */
#ifndef TRAIN_SEQUENCE_ROWS_H
#define TRAIN_SEQUENCE_ROWS_H

#include "proto/status.h"

#include <stdint.h>

struct sequence_rows {
    int n, cap;
    int n_prefix;
    int branch;            /* first row of the branch that is growing; -1: still in the prefix */
    int32_t *ids;          /* [n] */
    int32_t *positions;    /* [n] for RoPE */
    int32_t *branch_start; /* [n] first row of the row's branch; 0 in the prefix */
    int32_t *targets;      /* [n] id to predict, -1: none */
    float *weights;  /* [n] of the target in the loss; any scale: the pass divides by the sum */
    int16_t *levels; /* [n] index into the metrics' levels, -1: not counted */
};

/* Room for `cap` rows. STATUS_INVALID (cap < 1), STATUS_NO_MEMORY. */
enum status sequence_rows_create(int cap, struct sequence_rows *out, struct err *err);
void sequence_rows_free(struct sequence_rows *s);
void sequence_rows_clear(struct sequence_rows *s);
/* Appends a row to the prefix, or to the current branch once sequence_rows_branch was called.
 * STATUS_INVALID when it is full. */
enum status sequence_rows_append(struct sequence_rows *s, int32_t id, struct err *err);
/* The next rows are a new branch. */
void sequence_rows_branch(struct sequence_rows *s);
/* The last row (there must be one) predicts `id`. */
void sequence_rows_target(struct sequence_rows *s, int32_t id, float weight, int level);

#endif
