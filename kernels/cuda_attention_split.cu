/* Few query rows against pieces of the KV: out[i][h] = sum_p softmax_p(q[i][h] . k[p]) v[p].
 *
 * Bound by reading K and V once. Blocks of four warps stay on the device and stride over units
 * (item, kv head, part of its heads). Of a piece of 256 positions each warp takes a step of 64 and
 * copies its own K and V, 16 positions at a time, through its own ring in shared memory, always
 * STAGES - 1 parts ahead, over the borders of units, too: copies never wait for other warps or for
 * arithmetic. The rows (times heads) fill one tensor core tile of 16; most of it is idle, and still
 * far from being the bound. Warps then tell each other their maxima, and add their sums one after
 * the other in shared memory, in the order of kernels/cuda_attention.h. */
#include "kernels/cuda_attention_ring.cuh"

enum { COMBINE_AHEAD = 8 }; /* partial results read before the first is used */

/* One after another in shared memory, behind the rings. */
struct split_shared {
    float *step_sums;    /* [16][SUM_STRIDE] of the piece, the steps so far */
    float *step_weights; /* [16] l of it */
    float *all_sums;     /* [16][SUM_STRIDE] of the pieces so far, when one item has several */
    float *all_weights;  /* [16] L */
    float *all_largest;  /* [16] M */
    float *largest;      /* [WARPS][16] of each step alone */
    int32_t *is_last;    /* this block was the last of its row group */
};

/* The query rows as left factors, zeros where there is none: 16 columns each. */
template <int D>
static __device__ __forceinline__ void split_queries(const struct cuda_attention_args &a,
                                                     const struct split_unit &u, int lane,
                                                     uint32_t q[D / 16][4])
{
    const size_t stride = (size_t)(a.n_heads + 2 * a.n_kv_heads) * D;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int i = lane / 4 + 8 * r;
        const bool is_there = i < u.n_queries;
        const uint16_t *from =
            a.qkv + (size_t)(u.item.first_row + (is_there ? i / u.n_heads : 0)) * stride +
            (size_t)(u.first_head + (is_there ? i % u.n_heads : 0)) * D + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            q[k][r] = is_there ? *(const uint32_t *)(from + k * 16) : 0u;
            q[k][r + 2] = is_there ? *(const uint32_t *)(from + k * 16 + 8) : 0u;
        }
    }
}

/* Sums of a step, then of a piece, in the registers of one warp: rows g and g + 8 of the thread. */
template <int D> struct split_sums {
    float m[2], l[2];
    float acc[D / 8][4];
};

/* The warp's step: what it adds to the piece, from zero, and in factor[] what the steps before it
 * count for. All warps of the block call it; `is_active` is false where the step has no position.
 */
template <int D>
static __device__ __forceinline__ void
split_step(const struct cuda_attention_args &a, const struct cuda_batch &b,
           const struct split_unit &u, int32_t piece, int32_t n_units, const struct split_shared &s,
           unsigned char *ring, bool is_active, struct split_cursor *cursor, int *stage,
           struct split_sums<D> *out, float factor[2])
{
    typedef split_shape<D> shape;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float scores[2 * PARTS][4] = {};
    float largest[2];
    if (is_active) {
        uint32_t q[D / 16][4];
        split_queries<D>(a, u, lane, q);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            cuda_copy_wait<shape::STAGES - 2>();
            __syncwarp(); /* everyone's copies are there, and the part before has been read */
            split_copy<D>(a, b, n_units, ring, warp, lane, (part + shape::STAGES - 1) % (2 * PARTS),
                          cursor);
            const unsigned char *k = ring + *stage * shape::PART_BYTES;
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                uint32_t keys[4];
                if (D > 128)
                    attention_keep_order(i, 4);
                attention_keys_load(keys, k + i * 32, shape::ROW_BYTES, lane);
                cuda_mma_bf16(scores[2 * part], q[i], keys);
                cuda_mma_bf16(scores[2 * part + 1], q[i], keys + 2);
            }
            *stage = *stage + 1 == shape::STAGES ? 0 : *stage + 1;
        }
        const int32_t row[2] = {u.item.first_position + lane / 4 / u.n_heads,
                                u.item.first_position + (lane / 4 + 8) / u.n_heads};
        const int32_t first = piece * ATTENTION_PIECE + warp * ATTENTION_STEP;
        if (first + ATTENTION_STEP - 1 > u.item.first_position)
            attention_mask(scores, first, row, lane);
        attention_largest(scores, largest);
        if (lane % 4 == 0)
            for (int r = 0; r < 2; r++)
                s.largest[warp * ATTENTION_QUERIES + lane / 4 + 8 * r] = largest[r];
    }
    __syncthreads(); /* the maxima are known; the piece before is done */
    if (!is_active)
        return;
    for (int r = 0; r < 2; r++) {
        float before = -INFINITY;
        for (int w = 0; w < warp; w++)
            before = fmaxf(before, s.largest[w * ATTENTION_QUERIES + lane / 4 + 8 * r]);
        out->m[r] = fmaxf(before, largest[r]);
        factor[r] = attention_factor(before, out->m[r], a.scale);
    }
    attention_weights(scores, out->m, a.scale, out->l);
    uint32_t p[PARTS][4]; /* half the registers of the scores */
#pragma unroll
    for (int part = 0; part < PARTS; part++)
        attention_weights_pack(p[part], scores + 2 * part);
#pragma unroll
    for (int n = 0; n < D / 8; n++)
        for (int e = 0; e < 4; e++)
            out->acc[n][e] = 0.0f;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        cuda_copy_wait<shape::STAGES - 2>();
        __syncwarp();
        split_copy<D>(a, b, n_units, ring, warp, lane,
                      (PARTS + part + shape::STAGES - 1) % (2 * PARTS), cursor);
        const unsigned char *v = ring + *stage * shape::PART_BYTES;
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            uint32_t values[4];
            if (D > 128)
                attention_keep_order(i, 4);
            attention_values_load(values, v + i * 32, shape::ROW_BYTES, lane);
            cuda_mma_bf16(out->acc[2 * i], p[part], values);
            cuda_mma_bf16(out->acc[2 * i + 1], p[part], values + 2);
        }
        *stage = *stage + 1 == shape::STAGES ? 0 : *stage + 1;
    }
}

/* Adds the steps before this warp's to its own: acc = before * factor + acc. */
template <int D>
static __device__ __forceinline__ void split_step_add(const struct split_shared &s, int n_queries,
                                                      const float factor[2],
                                                      struct split_sums<D> *sums)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int query = lane / 4 + 8 * r;
        if (query >= n_queries)
            continue;
        sums->l[r] = fmaf(s.step_weights[query], factor[r], sums->l[r]);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float2 before =
                *(const float2 *)(s.step_sums + query * split_shape<D>::SUM_STRIDE + n * 8 +
                                  lane % 4 * 2);
            sums->acc[n][2 * r] = fmaf(before.x, factor[r], sums->acc[n][2 * r]);
            sums->acc[n][2 * r + 1] = fmaf(before.y, factor[r], sums->acc[n][2 * r + 1]);
        }
    }
    __syncwarp(); /* the weights have been read by all four lanes of a row */
}

/* Leaves the warp's sums in shared memory. */
template <int D>
static __device__ __forceinline__ void split_leave(float *sums, float *weights, int n_queries,
                                                   const struct split_sums<D> &from)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int query = lane / 4 + 8 * r;
        if (query >= n_queries)
            continue;
        if (lane % 4 == 0)
            weights[query] = from.l[r];
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(float2 *)(sums + query * split_shape<D>::SUM_STRIDE + n * 8 + lane % 4 * 2) =
                make_float2(from.acc[n][2 * r], from.acc[n][2 * r + 1]);
    }
}

/* Where the result of a query against a piece lies, in (pair, head)s. */
static __device__ __forceinline__ size_t split_pair(const struct cuda_attention_args &a,
                                                    const struct split_unit &u, int query,
                                                    int32_t piece)
{
    const int32_t pieces = attention_pieces(u.n_positions);
    const int32_t pair = u.item.first_pair + query / u.n_heads * pieces + piece;
    return (size_t)pair * (size_t)a.n_heads + (size_t)(u.first_head + query % u.n_heads);
}

static __device__ __forceinline__ uint16_t *split_output(const struct cuda_attention_args &a,
                                                         const struct split_unit &u, int query,
                                                         int head_dim)
{
    const size_t row = (size_t)(u.item.first_row + query / u.n_heads);
    const size_t head = (size_t)(u.first_head + query % u.n_heads);
    return a.out + (row * (size_t)a.n_heads + head) * (size_t)head_dim;
}

/* A piece is complete in one warp: one of several of the row group. */
template <int D>
static __device__ __forceinline__ void
split_write_partial(const struct cuda_attention_args &a, const struct split_unit &u, int32_t piece,
                    const struct split_sums<D> &sums)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int query = lane / 4 + 8 * r;
        if (query >= u.n_queries)
            continue;
        const size_t pair = split_pair(a, u, query, piece);
        if (lane % 4 == 0)
            *(float2 *)(a.partial_sums + 2 * pair) = make_float2(sums.m[r], sums.l[r]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(float2 *)(a.partials + pair * D + n * 8 + lane % 4 * 2) =
                make_float2(sums.acc[n][2 * r], sums.acc[n][2 * r + 1]);
    }
}

/* A piece is complete in one warp: added to the item's others, written when it is the last. */
template <int D>
static __device__ __forceinline__ void
split_add_piece(const struct cuda_attention_args &a, const struct split_unit &u, int32_t piece,
                const struct split_shared &s, struct split_sums<D> *sums)
{
    const int lane = (int)threadIdx.x % 32;
    const bool is_first = piece == 0, is_end = piece == u.item.n_pieces - 1;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int query = lane / 4 + 8 * r;
        const struct attention_merge merge =
            attention_merge_of(is_first ? -INFINITY : s.all_largest[query], sums->m[r], a.scale);
        sums->m[r] = merge.m;
        sums->l[r] = attention_merged(merge, is_first ? 0.0f : s.all_weights[query], sums->l[r]);
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            const float2 before =
                is_first ? make_float2(0.0f, 0.0f)
                         : *(const float2 *)(s.all_sums + query * split_shape<D>::SUM_STRIDE +
                                             n * 8 + lane % 4 * 2);
            sums->acc[n][2 * r] = attention_merged(merge, before.x, sums->acc[n][2 * r]);
            sums->acc[n][2 * r + 1] = attention_merged(merge, before.y, sums->acc[n][2 * r + 1]);
        }
        if (is_end && query < u.n_queries) {
            const float inverse = 1.0f / sums->l[r];
            uint16_t *to = split_output(a, u, query, D) + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
                *(uint32_t *)(to + n * 8) = cuda_bf16x2_pack(sums->acc[n][2 * r] * inverse,
                                                             sums->acc[n][2 * r + 1] * inverse);
        }
    }
    if (is_end)
        return;
    __syncwarp();
    for (int r = 0; r < 2; r++)
        if (lane % 4 == 0)
            s.all_largest[lane / 4 + 8 * r] = sums->m[r];
    split_leave<D>(s.all_sums, s.all_weights, ATTENTION_QUERIES, *sums);
}

/* All pieces of a row group are ready: the whole block adds them, one column a thread. */
template <int D>
static __device__ __forceinline__ void split_combine(const struct cuda_attention_args &a,
                                                     const struct split_unit &u)
{
    const int32_t pieces = attention_pieces(u.n_positions);
    for (int at = (int)threadIdx.x; at < u.n_queries * D; at += THREADS) {
        const int query = at / D, column = at % D;
        float m = -INFINITY, l = 0.0f, sum = 0.0f;
        for (int32_t first = 0; first < pieces; first += COMBINE_AHEAD) {
            float2 sums[COMBINE_AHEAD];
            float partial[COMBINE_AHEAD];
#pragma unroll
            for (int i = 0; i < COMBINE_AHEAD; i++) {
                const bool is_there = first + i < pieces;
                const size_t pair = split_pair(a, u, query, is_there ? first + i : 0);
                sums[i] = is_there ? *(const float2 *)(a.partial_sums + 2 * pair)
                                   : make_float2(-INFINITY, 0.0f);
                partial[i] = is_there ? a.partials[pair * D + column] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < COMBINE_AHEAD; i++) {
                const struct attention_merge merge = attention_merge_of(m, sums[i].x, a.scale);
                m = merge.m;
                l = attention_merged(merge, l, sums[i].y);
                sum = attention_merged(merge, sum, partial[i]);
            }
        }
        split_output(a, u, query, D)[column] = cuda_float_to_bf16(sum * (1.0f / l));
    }
}

/* One of several pieces is written: whoever finds that it was the last adds them all. The block
 * counts, and sets the count back for the next launch. */
template <int D>
static __device__ __forceinline__ void split_count(const struct cuda_attention_args &a,
                                                   const struct split_unit &u, bool is_writer,
                                                   const struct split_shared &s)
{
    if (is_writer) {
        __threadfence();
        __syncwarp();
        if (threadIdx.x % 32 == 0) {
            int32_t *counter =
                a.counters + (size_t)u.item.first_pair * (size_t)split_units(a) + (size_t)u.number;
            const int32_t before = cuda_atomic_add(counter, (int32_t)1);
            *s.is_last = before == attention_pieces(u.n_positions) - 1;
            if (*s.is_last)
                *counter = 0;
        }
    }
    __syncthreads();
    if (*s.is_last == 0)
        return;
    __threadfence();
    split_combine<D>(a, u);
}

template <int D>
static __device__ __forceinline__ struct split_shared split_carve(unsigned char *shared)
{
    typedef split_shape<D> shape;
    struct split_shared s;
    s.step_sums = (float *)(shared + WARPS * shape::STAGES * shape::PART_BYTES);
    s.all_sums = s.step_sums + shape::SUMS;
    s.largest = s.all_sums + shape::SUMS;
    s.step_weights = s.largest + WARPS * ATTENTION_QUERIES;
    s.all_weights = s.step_weights + ATTENTION_QUERIES;
    s.all_largest = s.all_weights + ATTENTION_QUERIES;
    s.is_last = (int32_t *)(s.all_largest + ATTENTION_QUERIES);
    return s;
}

template <int D>
__global__ void __launch_bounds__(THREADS, split_shape<D>::BLOCKS)
    attention_split_kernel(struct cuda_attention_args a)
{
    typedef split_shape<D> shape;
    CUDA_SHARED(shared);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const struct split_shared s = split_carve<D>(shared);
    const struct cuda_batch &b = *a.batch;
    const int32_t n_units = b.n_split_items * split_units(a);
    unsigned char *ring = shared + warp * shape::STAGES * shape::PART_BYTES;
    struct split_cursor cursor = {(int32_t)blockIdx.x, 0, 0, {0, 0}};
    int stage = 0;
    split_cursor_next<D>(a, b, n_units, warp, lane, true, &cursor);
#pragma unroll
    for (int i = 0; i < shape::STAGES - 1; i++)
        split_copy<D>(a, b, n_units, ring, warp, lane, i, &cursor);
    for (int32_t at = (int32_t)blockIdx.x; at < n_units; at += (int32_t)gridDim.x) {
        const struct split_unit u = split_unit_at(a, b.split_items, at);
        const int32_t end = u.item.first_piece + u.item.n_pieces;
        for (int32_t piece = u.item.first_piece; piece < end; piece++) {
            const int32_t left = u.n_positions - piece * ATTENTION_PIECE;
            const int n_steps =
                left < ATTENTION_PIECE ? (left + ATTENTION_STEP - 1) / ATTENTION_STEP : WARPS;
            struct split_sums<D> sums;
            float factor[2];
            split_step<D>(a, b, u, piece, n_units, s, ring, warp < n_steps, &cursor, &stage, &sums,
                          factor);
            for (int w = 0; w < n_steps; w++) {
                if (w > 0)
                    __syncthreads();
                if (warp != w)
                    continue;
                if (w > 0)
                    split_step_add<D>(s, u.n_queries, factor, &sums);
                if (w < n_steps - 1)
                    split_leave<D>(s.step_sums, s.step_weights, u.n_queries, sums);
                else if (u.item.first_pair >= 0)
                    split_write_partial<D>(a, u, piece, sums);
                else
                    split_add_piece<D>(a, u, piece, s, &sums);
            }
            if (u.item.first_pair >= 0)
                split_count<D>(a, u, warp == n_steps - 1, s);
        }
    }
    cuda_copy_wait<0>();
}

/* ---- host ----------------------------------------------------------------------------------- */

#define HEAD_DIM_NAME(D) " " #D
extern "C" const char *const cuda_attention_head_dims;
extern "C" const char *const cuda_attention_head_dims = ATTENTION_HEAD_DIMS(HEAD_DIM_NAME);

extern "C" bool cuda_attention_has_head_dim(int head_dim)
{
#define HEAD_DIM_CASE(D)                                                                           \
    if (head_dim == D)                                                                             \
        return true;
    ATTENTION_HEAD_DIMS(HEAD_DIM_CASE)
#undef HEAD_DIM_CASE
    return false;
}

extern "C" size_t cuda_attention_split_shared(int head_dim)
{
#define SHARED_CASE(D)                                                                             \
    if (head_dim == D)                                                                             \
        return split_shape<D>::SHARED;
    ATTENTION_HEAD_DIMS(SHARED_CASE)
#undef SHARED_CASE
    return 0;
}

extern "C" cudaError_t cuda_attention_split_prepare(int head_dim)
{
#define PREPARE_CASE(D)                                                                            \
    if (head_dim == D)                                                                             \
        return cuda_allow_shared(attention_split_kernel<D>, split_shape<D>::SHARED);
    ATTENTION_HEAD_DIMS(PREPARE_CASE)
#undef PREPARE_CASE
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t cuda_attention_split(const struct cuda_attention_args *a, int head_dim,
                                            int n_blocks, cudaStream_t stream)
{
#define LAUNCH_CASE(D)                                                                             \
    if (head_dim == D)                                                                             \
        return CUDA_LAUNCH(attention_split_kernel<D>, dim3((unsigned)n_blocks), dim3(THREADS),     \
                           split_shape<D>::SHARED, stream, *a);
    ATTENTION_HEAD_DIMS(LAUNCH_CASE)
#undef LAUNCH_CASE
    return cudaErrorInvalidValue;
}
