/* What host and device of the CUDA backend both know: the bound batch as kernels read it.
 *
 * C and CUDA C++. The struct lies at one fixed address of the device per stream, so that a recorded
 * sequence of kernels serves every batch; kernels take a pointer to it and read n_rows there, while
 * their grids may be sized for more rows. */
#ifndef KERNELS_CUDA_BATCH_H
#define KERNELS_CUDA_BATCH_H

#include "kernels/kernels.h"

#include <stdint.h>

struct cuda_attention_item; /* kernels/attention_plan.h: a piece of work of the attention */
struct cuda_live;           /* kernels/cuda_finish.h: a live row, its exit and its sampling */

/* All pointers but the last two are device addresses; the arrays arrive with the struct, in one
 * copy. */
struct cuda_batch {
    int32_t n_rows, n_segments, n_live;
    int32_t n_split_items, n_tile_items;
    const int32_t *slots, *ids;              /* [n_rows] */
    const int32_t *positions, *row_segments; /* [n_rows] */
    const struct kernels_segment *segments;  /* [n_segments] */
    const int32_t *block_table;
    const struct cuda_attention_item *split_items; /* few rows against a piece of the KV */
    const struct cuda_attention_item *tile_items;  /* a tile of rows against all of it */
    const struct cuda_live *live;
    struct kernels_outcome *outcomes; /* [n_live] pinned host memory of the batch's flight */
    float *wanted_logits;             /* [n_wanted_logits, V] likewise */
};

#endif
