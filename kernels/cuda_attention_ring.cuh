/* The split attention kernel's units of work, and each warp's copies of K and V ahead of it. */
#ifndef KERNELS_CUDA_ATTENTION_RING_CUH
#define KERNELS_CUDA_ATTENTION_RING_CUH

#include "kernels/cuda_attention.cuh"

enum {
    WARPS = ATTENTION_PIECE / ATTENTION_STEP,
    THREADS = 32 * WARPS,
    PART = 16,                     /* positions of one copy */
    PARTS = ATTENTION_STEP / PART, /* of K, and as many of V */
};

template <int D> struct split_shape {
    static constexpr int ROW_BYTES = attention_row<D>::BYTES;
    static constexpr int PART_BYTES = PART * ROW_BYTES;
    static constexpr int STAGES = D <= 64 ? 6 : D <= 128 ? 4 : 3;
    static constexpr int BLOCKS = D <= 32 ? 4 : D <= 64 ? 3 : D <= 128 ? 2 : 1; /* registers for */
    static constexpr int SUM_STRIDE = D + 8; /* floats; 8 rows' columns in different banks */
    static constexpr int SUMS = ATTENTION_QUERIES * SUM_STRIDE;
    static constexpr size_t SHARED = (size_t)WARPS * STAGES * PART_BYTES +
                                     sizeof(float) * (2 * SUMS + (WARPS + 3) * ATTENTION_QUERIES) +
                                     16;
};

/* What a unit is about. */
struct split_unit {
    struct cuda_attention_item item;
    int32_t kv_head, first_head, n_heads; /* query heads [first_head, first_head + n_heads) */
    int32_t number;                       /* of the unit within its item */
    int32_t n_queries;                    /* rows times heads */
    int32_t n_positions;
};

static __device__ __forceinline__ int32_t split_units(const struct cuda_attention_args &a)
{
    return a.n_kv_heads * attention_head_parts(a.n_heads, a.n_kv_heads);
}

static __device__ __forceinline__ struct split_unit
split_unit_at(const struct cuda_attention_args &a, const struct cuda_attention_item *items,
              int32_t at)
{
    const int32_t parts = attention_head_parts(a.n_heads, a.n_kv_heads);
    const int32_t group = a.n_heads / a.n_kv_heads, units = a.n_kv_heads * parts;
    struct split_unit u;
    u.item = items[at / units];
    u.number = at % units;
    u.kv_head = u.number / parts;
    const int32_t first = u.number % parts * ATTENTION_QUERIES, left = group - first;
    u.first_head = u.kv_head * group + first;
    u.n_heads = left < ATTENTION_QUERIES ? left : ATTENTION_QUERIES;
    u.n_queries = u.item.n_rows * u.n_heads;
    u.n_positions = u.item.first_position + u.item.n_rows;
    return u;
}

/* Where a warp's copies stand: its step of piece `piece` of unit `unit`. Which part of it comes
 * next is known where copies are started: always STAGES - 1 after the part that is being used. */
struct split_cursor {
    int32_t unit, piece, stage;
    uint32_t rows[2]; /* pool rows of positions lane and lane + 32 of the step */
};

/* Goes to the next piece in which this warp's step has positions, and looks up where they lie. */
template <int D>
static __device__ __forceinline__ void
split_cursor_next(const struct cuda_attention_args &a, const struct cuda_batch &b, int32_t n_units,
                  int warp, int lane, bool is_first, struct split_cursor *c)
{
    int32_t piece = is_first ? -1 : c->piece + 1;
    int32_t unit = c->unit;
    for (; unit < n_units; unit += (int32_t)gridDim.x, piece = -1) {
        const struct split_unit u = split_unit_at(a, b.split_items, unit);
        piece = piece < 0 ? u.item.first_piece : piece;
        const int32_t first = piece * ATTENTION_PIECE + warp * ATTENTION_STEP;
        if (piece >= u.item.first_piece + u.item.n_pieces || first >= u.n_positions)
            continue; /* later pieces of the unit begin later still */
        for (int i = 0; i < 2; i++) {
            const int32_t position = first + i * 32 + lane;
            c->rows[i] = (uint32_t)ATTENTION_NO_ROW;
            if (position >= u.n_positions)
                continue;
            const int32_t at = u.item.first_block + attention_block_of(a, position);
            c->rows[i] = attention_pool_row(a, (uint32_t)b.block_table[at], u.kv_head, position);
        }
        break;
    }
    c->unit = unit;
    c->piece = piece;
}

/* Sends for part `at` of the step (K, then V), or for nothing behind the last unit: a group either
 * way, so that counting groups is counting parts. */
template <int D>
static __device__ __forceinline__ void
split_copy(const struct cuda_attention_args &a, const struct cuda_batch &b, int32_t n_units,
           unsigned char *ring, int warp, int lane, int at, struct split_cursor *c)
{
    typedef split_shape<D> shape;
    typedef attention_row<D> row_shape;
    if (c->unit < n_units) {
        unsigned char *to = ring + c->stage * shape::PART_BYTES;
        const uint32_t offset = at < PARTS ? 0u : (uint32_t)a.blocks.size;
        const int part = at % PARTS;
        const uint32_t mine = part < PARTS / 2 ? c->rows[0] : c->rows[1];
        const int down = lane / row_shape::ACROSS, across = lane % row_shape::ACROSS;
#pragma unroll
        for (int r = 0; r < PART; r += 32 / row_shape::ACROSS) {
            const uint32_t from = cuda_shfl(mine, part % 2 * PART + r + down);
            const bool is_there = from != (uint32_t)ATTENTION_NO_ROW;
            const unsigned char *source =
                a.pool + (size_t)(is_there ? from + offset : 0u) * (2 * D) + across * 16;
#pragma unroll
            for (int i = 0; i < row_shape::COLUMNS; i++)
                cuda_copy_async16(to + (r + down) * row_shape::BYTES +
                                      (across + i * row_shape::ACROSS) * 16,
                                  source + i * row_shape::ACROSS * 16, is_there);
        }
        if (at == 2 * PARTS - 1)
            split_cursor_next<D>(a, b, n_units, warp, lane, false, c);
    }
    cuda_copy_commit();
    c->stage = c->stage + 1 == shape::STAGES ? 0 : c->stage + 1;
}

#endif
