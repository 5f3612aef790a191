/* A tile of query rows against all positions they see: out[i] = sum_p softmax_p(q[i] . k[p]) v[p].
 *
 * Bound by the tensor cores. A block is four warps and one query head; a warp has 16 or 32 rows of
 * the tile with their sums in registers, and goes through steps of 64 positions. Two rows of tensor
 * core tiles (M = 2) share each matrix load from shared memory, which is what would bound one. The
 * next K is copied while V is multiplied, V while K is; two blocks of a multiprocessor fill each
 * other's waits. Steps past a warp's last row are left out. Order of additions:
 * kernels/cuda_attention.h. */
#include "kernels/cuda_attention.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, STEP = ATTENTION_STEP };

/* What the block is about. It lies in shared memory and is read where it is needed: no register
 * holds it through the loop. */
struct tile_work {
    struct cuda_attention_item item;
    const int32_t *block_table; /* of the segment */
    int32_t head, kv_head, n_positions, n_steps;
};

template <int D, int M, bool IS_DETERMINISTIC> struct tile_shape {
    static constexpr int ROWS = 16 * M * WARPS;
    static constexpr int ROW_BYTES = attention_row<D>::BYTES;
    static constexpr size_t SHARED = (size_t)(ROWS + 2 * STEP) * ROW_BYTES +
                                     2 * STEP * sizeof(uint32_t) + sizeof(struct tile_work);
    static constexpr int BLOCKS = D <= 128 ? 2 : 1; /* of a multiprocessor: registers for */
};

/* Two fragments of 16 rows more than D = 128 has registers for. Deterministic pieces need two sums
 * for a row: half the rows, and no room at all beyond D = 128. */
template <int D, enum attention_tile KIND> constexpr int tile_fragments()
{
    return KIND == ATTENTION_TILE_DETERMINISTIC ? (D <= 128 ? 1 : 0)
           : KIND == ATTENTION_TILE_WIDE        ? (D <= 128 ? 2 : 1)
                                                : 1;
}

/* D columns of 64 positions: [STEP][ROW_BYTES] in shared memory from the pool rows given. */
template <int D>
static __device__ __forceinline__ void tile_copy(const struct cuda_attention_args &a,
                                                 const uint32_t *rows, uint32_t offset,
                                                 unsigned char *to)
{
    typedef attention_row<D> row_shape;
    constexpr int down = THREADS / row_shape::ACROSS;
    const uint32_t first = threadIdx.x / row_shape::ACROSS;
    const uint32_t column = threadIdx.x % row_shape::ACROSS;
#pragma unroll
    for (int r = 0; r < STEP; r += down) {
        if (down > STEP && first >= STEP)
            break;
        const uint32_t from = rows[first + r];
        const bool is_there = from != (uint32_t)ATTENTION_NO_ROW;
        const unsigned char *source =
            a.pool + (size_t)(is_there ? from + offset : 0u) * (2 * D) + column * 16;
#pragma unroll
        for (int c = 0; c < row_shape::COLUMNS; c++)
            cuda_copy_async16(to + (first + r) * row_shape::BYTES +
                                  (column + c * row_shape::ACROSS) * 16,
                              source + c * row_shape::ACROSS * 16, is_there);
    }
}

/* The tile's queries: [ROWS][ROW_BYTES], zeros behind the last. */
template <int D, int ROWS>
static __device__ __forceinline__ void tile_copy_queries(const struct cuda_attention_args &a,
                                                         const struct tile_work &work,
                                                         unsigned char *to)
{
    const size_t stride = (size_t)(a.n_heads + 2 * a.n_kv_heads) * D;
    for (int at = (int)threadIdx.x; at < ROWS * (D / 8); at += THREADS) {
        const int row = at / (D / 8), column = at % (D / 8);
        const bool is_there = row < work.item.n_rows;
        const size_t from = (size_t)(work.item.first_row + (is_there ? row : 0)) * stride;
        cuda_copy_async16(to + row * attention_row<D>::BYTES + column * 16,
                          a.qkv + from + (size_t)work.head * D + column * 8, is_there);
    }
}

/* The block of the thread's position of a step; -1 behind the last. The first 64 threads have one.
 */
static __device__ __forceinline__ int32_t tile_block(const struct cuda_attention_args &a,
                                                     const struct tile_work &work, int step)
{
    const int32_t position = step * STEP + (int32_t)threadIdx.x;
    if (threadIdx.x >= STEP || position >= work.n_positions)
        return -1;
    return work.block_table[attention_block_of(a, position)];
}
/* Leaves for all threads where K of the position lies. */
static __device__ __forceinline__ void tile_leave_row(const struct cuda_attention_args &a,
                                                      const struct tile_work &work, int step,
                                                      int32_t block, uint32_t *rows)
{
    const int32_t position = step * STEP + (int32_t)threadIdx.x;
    if (threadIdx.x < STEP)
        rows[step % 2 * STEP + (int)threadIdx.x] =
            block < 0 ? (uint32_t)ATTENTION_NO_ROW
                      : attention_pool_row(a, (uint32_t)block, work.kv_head, position);
}

/* A warp's running sums of 16 rows. */
template <int D> struct tile_sums {
    float m[2], l[2];
    float acc[D / 8][4];
};

template <int D> static __device__ __forceinline__ void tile_sums_clear(struct tile_sums<D> *sums)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums->m[r] = -INFINITY;
        sums->l[r] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            sums->acc[n][e] = 0.0f;
}

/* scores = q k^T of the warp's rows and the step's positions. */
template <int D, int M>
static __device__ __forceinline__ void tile_scores(const unsigned char *q, const unsigned char *k,
                                                   int lane, float scores[M][STEP / 8][4])
{
    constexpr int row_bytes = attention_row<D>::BYTES;
#pragma unroll
    for (int f = 0; f < M; f++)
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                scores[f][n][e] = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t left[M][4];
        attention_keep_order(i, D == 128 ? 1 : 2);
#pragma unroll
        for (int f = 0; f < M; f++)
            cuda_ldmatrix_x4(left[f],
                             q + (f * 16 + lane % 16) * row_bytes + i * 32 + lane / 16 * 16);
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            uint32_t right[4];
            attention_keys_load(right, k + n * 16 * row_bytes + i * 32, row_bytes, lane);
#pragma unroll
            for (int f = 0; f < M; f++) {
                cuda_mma_bf16(scores[f][2 * n], left[f], right);
                cuda_mma_bf16(scores[f][2 * n + 1], left[f], right + 2);
            }
        }
    }
}

/* acc = acc * factor + p v. The product is added up from zero when another kernel has to come to
 * the same bits, else from acc * factor, which needs fewer registers. */
template <int D, int M, bool IS_FROM_ZERO>
static __device__ __forceinline__ void
tile_values(const unsigned char *v, int lane, const uint32_t p[M][STEP / 16][4],
            const float factor[M][2], struct tile_sums<D> sums[M])
{
    constexpr int row_bytes = attention_row<D>::BYTES;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        float product[M][2][4];
#pragma unroll
        for (int f = 0; f < M; f++)
#pragma unroll
            for (int e = 0; e < 8; e++)
                product[f][e / 4][e % 4] =
                    IS_FROM_ZERO ? 0.0f : sums[f].acc[2 * i + e / 4][e % 4] * factor[f][e % 4 / 2];
        attention_keep_order(i, D == 128 ? 1 : 2);
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            uint32_t right[4];
            attention_values_load(right, v + n * 16 * row_bytes + i * 32, row_bytes, lane);
#pragma unroll
            for (int f = 0; f < M; f++) {
                cuda_mma_bf16(product[f][0], p[f][n], right);
                cuda_mma_bf16(product[f][1], p[f][n], right + 2);
            }
        }
#pragma unroll
        for (int f = 0; f < M; f++)
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float *acc = &sums[f].acc[2 * i + e / 4][e % 4];
                *acc = IS_FROM_ZERO ? fmaf(*acc, factor[f][e % 4 / 2], product[f][e / 4][e % 4])
                                    : product[f][e / 4][e % 4];
            }
    }
}

/* Maxima, weights and their sums; factor[] is what the sums before count for from here on. */
template <int D, int M>
static __device__ __forceinline__ void tile_softmax(const struct cuda_attention_args &a,
                                                    int32_t first_position, int32_t first_row,
                                                    int lane, float scores[M][STEP / 8][4],
                                                    struct tile_sums<D> sums[M], float factor[M][2])
{
#pragma unroll
    for (int f = 0; f < M; f++) {
        const int32_t row[2] = {first_row + f * 16 + lane / 4, first_row + f * 16 + lane / 4 + 8};
        if (first_position + STEP - 1 > first_row + f * 16)
            attention_mask(scores[f], first_position, row, lane);
        float largest[2], sum[2];
        attention_largest(scores[f], largest);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float m = fmaxf(sums[f].m[r], largest[r]);
            factor[f][r] = attention_factor(sums[f].m[r], m, a.scale);
            sums[f].m[r] = m;
        }
        attention_weights(scores[f], sums[f].m, a.scale, sum);
#pragma unroll
        for (int r = 0; r < 2; r++)
            sums[f].l[r] = fmaf(sums[f].l[r], factor[f][r], sum[r]);
    }
}

/* The piece in `sums` is complete: it goes to `all`, and the next begins. */
template <int D>
static __device__ __forceinline__ void tile_add_piece(const struct cuda_attention_args &a,
                                                      struct tile_sums<D> *sums,
                                                      struct tile_sums<D> *all)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const struct attention_merge merge = attention_merge_of(all->m[r], sums->m[r], a.scale);
        all->m[r] = merge.m;
        all->l[r] = attention_merged(merge, all->l[r], sums->l[r]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int e = 2 * r; e < 2 * r + 2; e++)
                all->acc[n][e] = attention_merged(merge, all->acc[n][e], sums->acc[n][e]);
    }
    tile_sums_clear<D>(sums);
}

/* acc / l of the rows that are there, for the first of them at `first`. */
template <int D>
static __device__ __forceinline__ void tile_write(const struct cuda_attention_args &a,
                                                  const struct tile_work &work, int first, int lane,
                                                  const struct tile_sums<D> &sums)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = first + lane / 4 + 8 * r;
        if (row >= work.item.n_rows)
            continue;
        const float inverse = 1.0f / sums.l[r];
        uint16_t *to =
            a.out +
            ((size_t)(work.item.first_row + row) * (size_t)a.n_heads + (size_t)work.head) * D +
            lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(uint32_t *)(to + n * 8) =
                cuda_bf16x2_pack(sums.acc[n][2 * r] * inverse, sums.acc[n][2 * r + 1] * inverse);
    }
}

/* What the block is about; false: nothing. */
static __device__ __forceinline__ bool tile_begin(const struct cuda_attention_args &a,
                                                  struct tile_work *work)
{
    const struct cuda_batch &b = *a.batch;
    const int at = (int)blockIdx.x / a.n_heads, head = (int)blockIdx.x % a.n_heads;
    if (at >= b.n_tile_items)
        return false;
    if (threadIdx.x == 0) {
        work->item = b.tile_items[at];
        work->block_table = b.block_table + work->item.first_block;
        work->head = head;
        work->kv_head = head / (a.n_heads / a.n_kv_heads);
        work->n_positions = work->item.first_position + work->item.n_rows;
        work->n_steps = (work->n_positions + STEP - 1) / STEP;
    }
    __syncthreads();
    return true;
}

template <int D, int M, bool IS_DETERMINISTIC>
__global__ void __launch_bounds__(THREADS, (tile_shape<D, M, IS_DETERMINISTIC>::BLOCKS))
    attention_tile_kernel(struct cuda_attention_args a)
{
    typedef tile_shape<D, M, IS_DETERMINISTIC> shape;
    CUDA_SHARED(shared);
    const int lane = (int)threadIdx.x % 32;
    const int first = (int)threadIdx.x / 32 * 16 * M; /* the warp's rows of the tile */
    unsigned char *q = shared, *k = q + shape::ROWS * shape::ROW_BYTES,
                  *v = k + STEP * shape::ROW_BYTES;
    uint32_t *rows = (uint32_t *)(v + STEP * shape::ROW_BYTES); /* [2][STEP] of even, odd steps */
    struct tile_work *work = (struct tile_work *)(rows + 2 * STEP);
    if (!tile_begin(a, work))
        return;
    struct tile_sums<D> sums[M], all;
#pragma unroll
    for (int f = 0; f < M; f++)
        tile_sums_clear<D>(&sums[f]);
    if (IS_DETERMINISTIC)
        tile_sums_clear<D>(&all);
    tile_leave_row(a, *work, 0, tile_block(a, *work, 0), rows);
    __syncthreads();
    tile_copy_queries<D, shape::ROWS>(a, *work, q);
    tile_copy<D>(a, rows, 0, k);
    cuda_copy_commit();
    for (int step = 0; step < work->n_steps; step++) {
        /* Not past the warp's last row, and nothing without a row. */
        const bool is_seen =
            first < work->item.n_rows && step * STEP < work->item.first_position + first + 16 * M;
        uint32_t p[M][STEP / 16][4];
        float factor[M][2];
        float scores[M][STEP / 8][4];
        cuda_copy_wait<0>();
        __syncthreads(); /* K is there; V of the step before has been read */
        tile_copy<D>(a, rows + step % 2 * STEP, (uint32_t)a.blocks.size, v);
        cuda_copy_commit();
        const int32_t next = tile_block(a, *work, step + 1); /* on its way during the product */
        if (is_seen)
            tile_scores<D, M>(q + first * shape::ROW_BYTES, k, lane, scores);
        tile_leave_row(a, *work, step + 1, next, rows);
        cuda_copy_wait<0>();
        __syncthreads(); /* V is there; K has been read */
        if (step + 1 < work->n_steps) {
            tile_copy<D>(a, rows + (step + 1) % 2 * STEP, 0, k);
            cuda_copy_commit();
        }
        if (!is_seen)
            continue;
        tile_softmax<D, M>(a, step * STEP, work->item.first_position + first, lane, scores, sums,
                           factor);
#pragma unroll
        for (int f = 0; f < M; f++)
#pragma unroll
            for (int n = 0; n < STEP / 16; n++)
                attention_weights_pack(p[f][n], scores[f] + 2 * n);
        tile_values<D, M, IS_DETERMINISTIC>(v, lane, p, factor, sums);
        if (IS_DETERMINISTIC && (step + 1) * STEP % ATTENTION_PIECE == 0)
            tile_add_piece<D>(a, &sums[0], &all);
    }
    if constexpr (IS_DETERMINISTIC) {
        tile_add_piece<D>(a, &sums[0], &all);
        tile_write<D>(a, *work, first, lane, all);
    } else {
#pragma unroll
        for (int f = 0; f < M; f++)
            tile_write<D>(a, *work, first + f * 16, lane, sums[f]);
    }
}

/* ---- host ----------------------------------------------------------------------------------- */

/* One instance; none (M = 0) is nothing to launch. */
template <int D, int M, bool IS_DETERMINISTIC> struct tile_instance {
    typedef tile_shape<D, M, IS_DETERMINISTIC> shape;
    static size_t shared_bytes()
    {
        return shape::SHARED;
    }
    static cudaError_t prepare()
    {
        return cuda_allow_shared(attention_tile_kernel<D, M, IS_DETERMINISTIC>, shape::SHARED);
    }
    static cudaError_t launch(const struct cuda_attention_args *a, int max_items,
                              cudaStream_t stream)
    {
        return CUDA_LAUNCH((attention_tile_kernel<D, M, IS_DETERMINISTIC>),
                           dim3((unsigned)(max_items * a->n_heads)), dim3(THREADS), shape::SHARED,
                           stream, *a);
    }
};
template <int D, bool IS_DETERMINISTIC> struct tile_instance<D, 0, IS_DETERMINISTIC> {
    static size_t shared_bytes()
    {
        return 0;
    }
    static cudaError_t prepare()
    {
        return cudaErrorInvalidValue;
    }
    static cudaError_t launch(const struct cuda_attention_args *, int, cudaStream_t)
    {
        return cudaErrorInvalidValue;
    }
};
template <int D, enum attention_tile KIND>
struct tile_of {
    static constexpr int M = tile_fragments<D, KIND>(); static constexpr int ROWS = 16 * M * WARPS;
    typedef tile_instance<D, M, KIND == ATTENTION_TILE_DETERMINISTIC>
        instance;
};

/* return tile_of<head_dim, kind>::what */
#define TILE_CASE(D, WHAT)                                                                         \
    if (head_dim == D)                                                                             \
        return kind == ATTENTION_TILE_DETERMINISTIC                                                \
                   ? tile_of<D, ATTENTION_TILE_DETERMINISTIC>::WHAT                                \
               : kind == ATTENTION_TILE_WIDE ? tile_of<D, ATTENTION_TILE_WIDE>::WHAT               \
                                             : tile_of<D, ATTENTION_TILE_NARROW>::WHAT;

extern "C" int cuda_attention_tile_rows(int head_dim, enum attention_tile kind)
{
#define ROWS_CASE(D) TILE_CASE(D, ROWS)
    ATTENTION_HEAD_DIMS(ROWS_CASE)
#undef ROWS_CASE
    return 0;
}

extern "C" size_t cuda_attention_tile_shared(int head_dim, enum attention_tile kind)
{
#define SHARED_CASE(D) TILE_CASE(D, instance::shared_bytes())
    ATTENTION_HEAD_DIMS(SHARED_CASE)
#undef SHARED_CASE
    return 0;
}

extern "C" cudaError_t cuda_attention_tile_prepare(int head_dim, enum attention_tile kind)
{
#define PREPARE_CASE(D) TILE_CASE(D, instance::prepare())
    ATTENTION_HEAD_DIMS(PREPARE_CASE)
#undef PREPARE_CASE
    return cudaErrorInvalidValue;
}

extern "C" cudaError_t cuda_attention_tile(const struct cuda_attention_args *a, int head_dim,
                                           enum attention_tile kind, int max_items,
                                           cudaStream_t stream)
{
#define LAUNCH_CASE(D) TILE_CASE(D, instance::launch(a, max_items, stream))
    ATTENTION_HEAD_DIMS(LAUNCH_CASE)
#undef LAUNCH_CASE
    return cudaErrorInvalidValue;
}
