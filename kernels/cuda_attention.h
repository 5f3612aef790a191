/* What host and device of the CUDA attention both know. C and CUDA C++.
 *
 * Order of additions, of both kernels. Steps of 64 positions and pieces of 256 begin at multiples
 * of their length. In a piece, step after step, with m, l, acc from -inf, 0, 0 and every s a sum of
 * tensor core products over head_dim, ascending by 16:
 *     m' = max(m, s_i),  f = 2^((m - m') c),  p_i = 2^(s_i c - m' c)  with c = D^-0.5 log2(e)
 *     l = l f + sum p_i,  acc = acc f + (sum bf16(p_i) v_i from zero, ascending by 16 positions)
 * Pieces are added in ascending order:
 *     M' = max(M, m),  a = 2^((M - M') c),  b = 2^((m - M') c),  L = L a + l b,  A = A a + acc b
 * and out = A (1 / L). A step or piece that a row does not see changes no bit of it. The split
 * kernel always computes so; the tile kernel does when it is deterministic, else it takes all
 * positions for one piece. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/attention_plan.h"
#include "kernels/cuda_batch.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Division of positions by the block size: p / size = p * factor >> shift, exact below 2^31. The
 * kernels look up every position, and have no registers to spare for a real division. */
struct cuda_attention_blocks {
    int32_t size;
    uint32_t factor;
    int32_t shift;
};
static inline struct cuda_attention_blocks cuda_attention_blocks_of(int32_t size)
{
    int32_t bits = 0;
    while (((int64_t)1 << bits) < size)
        bits++;
    struct cuda_attention_blocks blocks = {size, 0, 31 + bits};
    blocks.factor = (uint32_t)(((uint64_t)1 << blocks.shift) / (uint64_t)size + 1);
    return blocks;
}

struct cuda_attention_args {
    uint16_t *out;                  /* [n, H * D] bf16 */
    const uint16_t *qkv;            /* [n, (H + 2G) * D] bf16 */
    const unsigned char *pool;      /* [block][layer][kv head]{K, V [block_size][D]} bf16 */
    const struct cuda_batch *batch; /* on the device */
    float *partials;                /* [pair][H][D] */
    float *partial_sums;            /* [pair][H]{m, l} */
    int32_t *counters; /* [pair][units] pieces ready of a row group, by its first pair; 0 */
    int32_t n_heads, n_kv_heads;
    int32_t n_layers, layer;
    struct cuda_attention_blocks blocks;
    float scale; /* D^-0.5 log2(e) */
};

/* How a batch's prompts are cut: wide tiles read K and V half as often; narrow ones are twice as
 * many, so that a batch of one chunk of a prompt has work for all multiprocessors. */
enum attention_tile { ATTENTION_TILE_NARROW, ATTENTION_TILE_WIDE, ATTENTION_TILE_DETERMINISTIC };

/* Whether head_dim is one of those compiled: their list for a message. */
bool cuda_attention_has_head_dim(int head_dim);
extern const char *const cuda_attention_head_dims;

/* Shared memory of a block; head_dim is one of those compiled. */
size_t cuda_attention_split_shared(int head_dim);
size_t cuda_attention_tile_shared(int head_dim, enum attention_tile kind);
/* Rows of a tile; 0: this kernel does not do it, and all items shall be split items. */
int cuda_attention_tile_rows(int head_dim, enum attention_tile kind);

/* Once per device, before the first launch. */
cudaError_t cuda_attention_split_prepare(int head_dim);
cudaError_t cuda_attention_tile_prepare(int head_dim, enum attention_tile kind);

/* All items of the batch, whatever their number; n_blocks of the device at a time. */
cudaError_t cuda_attention_split(const struct cuda_attention_args *a, int head_dim, int n_blocks,
                                 cudaStream_t stream);
/* Up to max_items tile items. */
cudaError_t cuda_attention_tile(const struct cuda_attention_args *a, int head_dim,
                                enum attention_tile kind, int max_items, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
