/* Private to the training kernels: the tables of the levels, and the sizes all levels agree on. */
#ifndef KERNELS_GRAD_LEVEL_H
#define KERNELS_GRAD_LEVEL_H

#include "kernels/grad.h"

enum {
    GRAD_LANES_MOST = 16, /* of the widest level: scratch is padded to it */
    GRAD_ROWS_MOST = 12,  /* rows of the highest register tile */
};

extern const struct grad_ops grad_ops_portable;
#if defined(__x86_64__)
extern const struct grad_ops grad_ops_avx2;
extern const struct grad_ops grad_ops_avx512;
#endif

/* ---- scratch of attention: areas of n_rows rows of head_dim ----------------------------------
 */

static inline size_t grad_round_up(size_t n)
{
    return (n + GRAD_LANES_MOST - 1) / GRAD_LANES_MOST * GRAD_LANES_MOST;
}
/* Floats of a transposed row: a vector that begins at the last column may be read whole. */
static inline size_t grad_columns_stride(int n_rows)
{
    return grad_round_up((size_t)n_rows) + GRAD_LANES_MOST;
}
/* Floats of a row of scores: two spans, each rounded up to whole vectors. */
static inline size_t grad_scores_stride(int n_rows)
{
    return grad_round_up((size_t)n_rows) + 2 * GRAD_LANES_MOST;
}

#endif
