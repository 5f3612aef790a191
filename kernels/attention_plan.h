/* Cuts the attention of a batch into pieces of work for the CUDA kernels. Pure.
 *
 * A piece is ATTENTION_PIECE positions of KV that begin at a multiple of it: where a row's sum is
 * cut depends on its position alone. Two kinds of work:
 *
 * split item: up to 16 / (H / G) rows of one segment, which with the heads of their group share one
 *     reading of K and V, against one piece; its result is partial (a pair for each row), and the
 *     last piece of a row group to be ready adds all of them, in ascending order. When there is no
 *     room for pairs, or one piece is all there is, one item goes through all pieces in that order.
 * tile item: up to tile_rows rows of a segment with many rows, against all they see.
 *
 * Each item is worked on once for every kv head (split) or query head (tile). */
#ifndef KERNELS_ATTENTION_PLAN_H
#define KERNELS_ATTENTION_PLAN_H

#include "kernels/kernels.h"

enum {
    ATTENTION_PIECE = 256, /* positions whose sum is made on its own */
    ATTENTION_STEP = 64,   /* positions of one step of the running maximum, from a multiple of it */
    ATTENTION_QUERIES = 16,    /* rows times heads of a split item: a matrix product's least rows */
    ATTENTION_TILE_LEAST = 16, /* rows of a segment from which on it is cut into tiles */
    /* Batches of so few rows have no tiles, so that the smallest recorded batches need one kernel
     * and not two. */
    ATTENTION_TILE_BATCH = 32,
};

struct cuda_attention_item {
    int32_t first_row, n_rows; /* of the batch */
    int32_t first_position;    /* of first_row; the last row sees first_position + n_rows */
    int32_t first_block;       /* of the segment in the block table */
    /* Split items only. */
    int32_t first_piece, n_pieces; /* one of several, or all */
    /* Pair of row r and piece i: first_pair + r * pieces of the group + i; -1: the item has all. */
    int32_t first_pair;
    int32_t unused; /* 32 bytes: two loads */
};

struct attention_shape {
    int n_heads, n_kv_heads;
    int tile_rows;     /* 0: no tiles */
    int32_t max_pairs; /* partial results there is room for */
};

#ifdef __CUDACC__ /* used by kernels, too */
#define ATTENTION_INLINE static __host__ __device__ __forceinline__
#else
#define ATTENTION_INLINE static inline
#endif

/* Query heads of one kv head that share a reading, and how many such parts a kv head has: the units
 * of a split item are n_kv_heads * parts. */
ATTENTION_INLINE int attention_heads_shared(int n_heads, int n_kv_heads)
{
    int group = n_heads / n_kv_heads;
    return group < ATTENTION_QUERIES ? group : ATTENTION_QUERIES;
}
ATTENTION_INLINE int attention_head_parts(int n_heads, int n_kv_heads)
{
    return (n_heads / n_kv_heads + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
}
/* Pieces of n_positions. */
ATTENTION_INLINE int32_t attention_pieces(int32_t n_positions)
{
    return (n_positions - 1) / ATTENTION_PIECE + 1;
}

/* Pairs that batches within the limits want, of at most max_bytes of results of pair_bytes. */
int32_t attention_plan_pairs(const struct kernels_limits *limits, size_t pair_bytes,
                             size_t max_bytes);
/* The most items of any batch of n_rows. */
int32_t attention_plan_max_split_items(const struct attention_shape *shape, int32_t n_rows);
int32_t attention_plan_max_tile_items(int32_t n_rows);

/* Write the items and return how many. Split items come in the order all pieces, whole pieces, last
 * pieces, and tile items longest first, so that what is left at the end is small. */
int32_t attention_plan_split(const struct attention_shape *shape, const struct kernels_batch *batch,
                             struct cuda_attention_item *items);
int32_t attention_plan_tiles(const struct attention_shape *shape, const struct kernels_batch *batch,
                             struct cuda_attention_item *items);

#endif
