/* What the two attention kernels compute alike, so that a row gets the same bits from both.
 *
 * Everything is for a warp and 16 query rows, in the fragments of cuda_mma_bf16: with g = lane / 4
 * and t = lane % 4 a thread has rows g and g + 8, and of each tile of 8 columns the columns 2t and
 * 2t + 1: element e of float[4] is row g + 8 (e / 2), column 2t + e % 2. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda_attention.h"
#include "kernels/cuda_device.cuh"

/* head_dims compiled: X(D). The list for messages stands in cuda_attention_split.cu. */
#define ATTENTION_HEAD_DIMS(X) X(16) X(32) X(64) X(80) X(96) X(128) X(192) X(256)

enum { ATTENTION_NO_ROW = 0xffffffff };

/* Bytes of a row of K or V in shared memory: 16 more than it has, so that the same columns of 8
 * rows, which a matrix load takes at once, lie in different banks. */
template <int D> struct attention_row {
    static constexpr int BYTES = 2 * D + 16;
    /* Threads that copy side by side in a row, 16 bytes each: the power of two that divides it, so
     * that a thread's next row and column are a constant further. */
    static constexpr int ACROSS = (D / 8) & -(D / 8);
    static constexpr int COLUMNS = D / 8 / ACROSS;
};

/* Which block of its segment a position lies in. */
static __device__ __forceinline__ int32_t attention_block_of(const struct cuda_attention_args &a,
                                                             int32_t position)
{
    return (int32_t)((uint64_t)position * a.blocks.factor >> a.blocks.shift);
}

/* The row of the pool, in units of D elements, where K of a position in that block of the pool
 * lies; V is blocks.size further. */
static __device__ __forceinline__ uint32_t attention_pool_row(const struct cuda_attention_args &a,
                                                              uint32_t block, int32_t kv_head,
                                                              int32_t position)
{
    const uint32_t head =
        (block * (uint32_t)a.n_layers + (uint32_t)a.layer) * (uint32_t)a.n_kv_heads +
        (uint32_t)kv_head;
    return head * 2u * (uint32_t)a.blocks.size +
           (uint32_t)(position - attention_block_of(a, position) * a.blocks.size);
}

/* Matrix loads do not move over this, which stands before every n-th of a row of products: the
 * compiler would start so many at once that other values had to leave their registers. */
static __device__ __forceinline__ void attention_keep_order(int i, int n)
{
    if (i % n == 0)
        __syncwarp();
}

/* K of 16 positions and 16 columns at k_rows as right factors: b of positions 0..7, b + 2 of 8..15.
 */
static __device__ __forceinline__ void
attention_keys_load(uint32_t b[4], const unsigned char *k_rows, int row_bytes, int lane)
{
    const int position = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
    cuda_ldmatrix_x4(b, k_rows + position * row_bytes + half * 16);
}

/* V likewise: b of columns 0..7, b + 2 of 8..15. */
static __device__ __forceinline__ void
attention_values_load(uint32_t b[4], const unsigned char *v_rows, int row_bytes, int lane)
{
    const int position = lane / 8 % 2 * 8 + lane % 8, half = lane / 16;
    cuda_ldmatrix_x4_trans(b, v_rows + position * row_bytes + half * 16);
}

/* -inf where a position is past the row's own; rows are at positions row[0] and row[1]. */
static __device__ __forceinline__ void attention_mask(float (*scores)[4], int32_t first_position,
                                                      const int32_t row[2], int lane)
{
    const int32_t seen[2] = {row[0] - first_position - lane % 4 * 2,
                             row[1] - first_position - lane % 4 * 2};
#pragma unroll
    for (int n = 0; n < ATTENTION_STEP / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (n * 8 + e % 2 > seen[e / 2])
                scores[n][e] = -INFINITY;
}

/* The largest score of the step in each of the thread's two rows. */
static __device__ __forceinline__ void attention_largest(const float (*scores)[4], float largest[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float m = scores[0][2 * r];
#pragma unroll
        for (int n = 0; n < ATTENTION_STEP / 8; n++)
            m = fmaxf(m, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        m = fmaxf(m, cuda_shfl_xor(m, 1));
        largest[r] = fmaxf(m, cuda_shfl_xor(m, 2));
    }
}

/* What a sum made with maximum `before` counts for when the maximum is `now`. A row that has seen
 * nothing yet has -inf, and a sum of 0. */
static __device__ __forceinline__ float attention_factor(float before, float now, float scale)
{
    return cuda_exp2((before - (now == -INFINITY ? 0.0f : now)) * scale);
}

/* scores = 2^((scores - m) scale); returns the two rows' sums of them. */
static __device__ __forceinline__ void attention_weights(float (*scores)[4], const float m[2],
                                                         float scale, float sum[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float shift = m[r] == -INFINITY ? 0.0f : -m[r] * scale;
        float s = 0.0f;
#pragma unroll
        for (int n = 0; n < ATTENTION_STEP / 8; n++)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                scores[n][e] = cuda_exp2(fmaf(scores[n][e], scale, shift));
                s = cuda_add_rn(s, scores[n][e]);
            }
        s = cuda_add_rn(s, cuda_shfl_xor(s, 1));
        sum[r] = cuda_add_rn(s, cuda_shfl_xor(s, 2));
    }
}

/* Weights of 16 positions as the left factor of a product: tiles 2 i and 2 i + 1 of the scores. */
static __device__ __forceinline__ void attention_weights_pack(uint32_t p[4],
                                                              const float (*scores)[4])
{
    p[0] = cuda_bf16x2_pack(scores[0][0], scores[0][1]);
    p[1] = cuda_bf16x2_pack(scores[0][2], scores[0][3]);
    p[2] = cuda_bf16x2_pack(scores[1][0], scores[1][1]);
    p[3] = cuda_bf16x2_pack(scores[1][2], scores[1][3]);
}

/* Factors of the sums so far and of the next piece's, and the new maximum. */
struct attention_merge {
    float m, before, piece;
};
static __device__ __forceinline__ struct attention_merge
attention_merge_of(float m_before, float m_piece, float scale)
{
    struct attention_merge merge;
    merge.m = fmaxf(m_before, m_piece);
    merge.before = attention_factor(m_before, merge.m, scale);
    merge.piece = attention_factor(m_piece, merge.m, scale);
    return merge;
}
static __device__ __forceinline__ float attention_merged(const struct attention_merge &merge,
                                                         float before, float piece)
{
    return fmaf(piece, merge.piece, cuda_mul_rn(before, merge.before));
}

#endif
