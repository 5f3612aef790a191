/* Linear layers with bf16 weights on CPUs with AMX: x in three exact bf16 terms, in tiles. */
#include "kernels/cpu_backend.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

/* y[i][o] = sum_k x[i][k] w[o][k]. A tile of weights is 16 outputs by 32 of k, read where it lies.
 * Each x is cut into hi + mid + lo, its bits eight at a time, which is exact, and each term of a
 * row is a column of its own: a column's sum depends on nothing but that column. A step of 32 of k
 * is one tile operation: it adds up even and odd products apart, then both to the sum. At the end
 * y = (lo + mid) + hi. */
enum {
    AMX_OUT = 32,  /* outputs of a piece: two tiles */
    AMX_COLS = 16, /* columns of a tile */
    AMX_STEP = 32, /* of k */
    AMX_TERMS = 3,
    AMX_TILE_FLOATS = 256,
};

/* Groups of 16 rows take three tiles, the last rows as few as hold their three terms. */
static int amx_group_tiles(int n_rows)
{
    return (AMX_TERMS * n_rows + AMX_COLS - 1) / AMX_COLS;
}

static int amx_tiles(int n)
{
    return n / AMX_COLS * AMX_TERMS + amx_group_tiles(n % AMX_COLS);
}

static int amx_steps(int k)
{
    return (k + AMX_STEP - 1) / AMX_STEP;
}

static size_t amx_packed_floats(int n, int k)
{
    return (size_t)amx_tiles(n) * (size_t)amx_steps(k) * AMX_TILE_FLOATS;
}

static size_t amx_scratch_floats(int n)
{
    return (size_t)amx_tiles(n) * 2 * AMX_TILE_FLOATS;
}

/* ---- packing x --------------------------------------------------------------------------------
 */

static inline void amx_transpose(__m512 *a)
{
    __m512 b[16];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        __m512 low0 = _mm512_unpacklo_ps(a[i], a[i + 1]);
        __m512 high0 = _mm512_unpackhi_ps(a[i], a[i + 1]);
        __m512 low1 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]);
        __m512 high1 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
        b[i] = _mm512_shuffle_ps(low0, low1, 0x44);
        b[i + 1] = _mm512_shuffle_ps(low0, low1, 0xee);
        b[i + 2] = _mm512_shuffle_ps(high0, high1, 0x44);
        b[i + 3] = _mm512_shuffle_ps(high0, high1, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 even0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
        __m512 odd0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
        __m512 even1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
        __m512 odd1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
        a[i] = _mm512_shuffle_f32x4(even0, even1, 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
        a[i + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
        a[i + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
}

/* The upper halves of 32 floats in order, and what they leave of the floats: x - upper is exact. */
static inline __m512 amx_take_term(__m512 *x0, __m512 *x1)
{
    const __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    /* Word 2j + 1 of the pair of vectors for j = 0 .. 31. */
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i odd = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(0x00040004)),
                                         _mm512_set1_epi32(0x00030001));
    __m512i bits0 = _mm512_castps_si512(*x0), bits1 = _mm512_castps_si512(*x1);
    *x0 = _mm512_sub_ps(*x0, _mm512_castsi512_ps(_mm512_and_si512(bits0, mask)));
    *x1 = _mm512_sub_ps(*x1, _mm512_castsi512_ps(_mm512_and_si512(bits1, mask)));
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(bits0, odd, bits1));
}

/* Where a tile of columns begins at a step: two tiles of columns side by side, steps in a row. */
static inline size_t amx_tile_offset(int tile, int n_tiles, int step, int n_steps)
{
    size_t pair = (size_t)(tile / 2), width = tile / 2 * 2 + 1 < n_tiles ? 2 : 1;
    return (pair * 2 * (size_t)n_steps + (size_t)step * width + (size_t)(tile % 2)) *
           AMX_TILE_FLOATS;
}

/* One step of up to 16 rows: a tile's row holds elements 2p and 2p + 1 of each column. */
static void amx_pack_step(float *const *tiles, const float *x, int n_rows, size_t x_stride, int n_k)
{
    __m512 term[AMX_TERMS][16];
    const __mmask16 mask0 = n_k >= 16 ? 0xffff : (__mmask16)((1u << n_k) - 1);
    const __mmask16 mask1 = n_k >= 32   ? 0xffff
                            : n_k <= 16 ? 0
                                        : (__mmask16)((1u << (n_k - 16)) - 1);
    for (int r = 0; r < 16; r++) {
        __m512 x0 = _mm512_setzero_ps(), x1 = x0;
        if (r < n_rows) {
            x0 = _mm512_maskz_loadu_ps(mask0, x + (size_t)r * x_stride);
            x1 = _mm512_maskz_loadu_ps(mask1, x + (size_t)r * x_stride + (n_k > 16 ? 16 : 0));
        }
        for (int t = 0; t < AMX_TERMS; t++)
            term[t][r] = amx_take_term(&x0, &x1);
    }
    for (int t = 0; t < AMX_TERMS; t++)
        amx_transpose(term[t]);
    const int n_tiles = amx_group_tiles(n_rows);
    /* Terms follow each other; what one writes past its rows is zero or the next one's. */
    float line[(AMX_TERMS + 1) * AMX_COLS] = {0};
    for (int p = 0; p < 16; p++) {
        for (int t = 0; t < AMX_TERMS; t++)
            _mm512_storeu_ps(line + t * n_rows, term[t][p]);
        for (int t = 0; t < n_tiles; t++)
            _mm512_storeu_ps(tiles[t] + p * AMX_COLS, _mm512_loadu_ps(line + t * AMX_COLS));
    }
}

static void amx_pack(float *packed, const float *x, int n, int k, enum dtype dtype)
{
    (void)dtype;
    const int n_tiles = amx_tiles(n), n_steps = amx_steps(k);
    for (int row = 0; row < n; row += AMX_COLS) {
        const int n_rows = n - row < AMX_COLS ? n - row : AMX_COLS;
        for (int step = 0; step < n_steps; step++) {
            const int at = step * AMX_STEP;
            float *tiles[AMX_TERMS];
            for (int t = 0; t < amx_group_tiles(n_rows); t++)
                tiles[t] = packed +
                           amx_tile_offset(row / AMX_COLS * AMX_TERMS + t, n_tiles, step, n_steps);
            amx_pack_step(tiles, x + (size_t)row * (size_t)k + at, n_rows, (size_t)k,
                          k - at < AMX_STEP ? k - at : AMX_STEP);
        }
    }
}

/* ---- tiles ------------------------------------------------------------------------------------
 */

/* Tiles 0..3 are sums (outputs, columns): 0 and 1 of the first 16 outputs, 2 and 3 of the others;
 * 4 and 5 weights; 6 and 7 x. */
static void amx_configure(int n_out)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    const int first = n_out < 16 ? n_out : 16, second = n_out - 16 > 0 ? n_out - 16 : 1;
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = (uint8_t)(i >= 6 ? 16 : i == 2 || i == 3 || i == 5 ? second : first);
    }
    /* gcc believes that only the first bytes of it are read, and that tiles do not read memory. */
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

/* Bytes of the next piece, fetched into the second-level cache a few lines a step. */
struct amx_ahead {
    uintptr_t at, end;
    int lines;
};

/* One or two tiles of outputs against one or two of columns, over all of k. */
struct amx_block {
    const unsigned char *w;
    size_t row_bytes;
    const unsigned char *tail; /* what the last step reads instead when k ends inside it */
    int n_whole, n_steps;      /* steps that lie whole in w; all */
    const float *x;
    float *sums; /* tiles: of the first column tile for both tiles of outputs, of the second */
};

static inline __attribute__((always_inline)) void
amx_block_run(const struct amx_block *b, struct amx_ahead *ahead, const int outs, const int cols)
{
    const float *x = b->x;
    uintptr_t far = ahead->at;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < b->n_steps; s++, x += cols * AMX_TILE_FLOATS) {
        const unsigned char *w = s < b->n_whole ? b->w + (size_t)s * 64 : b->tail;
        const size_t stride = s < b->n_whole ? b->row_bytes : 64;
        _tile_loadd(4, w, stride);
        _tile_loadd(6, x, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (cols == 2) {
            _tile_loadd(7, x + AMX_TILE_FLOATS, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (outs == 2) {
            _tile_loadd(5, w + 16 * stride, stride);
            _tile_dpbf16ps(2, 5, 6);
            if (cols == 2)
                _tile_dpbf16ps(3, 5, 7);
        }
        if (far < ahead->end) {
            for (int i = 0; i < ahead->lines; i++, far += 64)
                __builtin_prefetch((const void *)far, 0, 2);
        }
    }
    ahead->at = far;
    _tile_stored(0, b->sums, 64);
    if (outs == 2)
        _tile_stored(2, b->sums + AMX_TILE_FLOATS, 64);
    if (cols == 2)
        _tile_stored(1, b->sums + 2 * AMX_TILE_FLOATS, 64);
    if (outs == 2 && cols == 2)
        _tile_stored(3, b->sums + 3 * AMX_TILE_FLOATS, 64);
}

/* ---- a piece ----------------------------------------------------------------------------------
 */

/* The finished sums of a tile of outputs for up to 16 rows, from tiles of columns one after the
 * other. */
static void amx_finish(const struct cpu_linear_piece *p, const float *sums, int row, int first_out)
{
    const int n_rows = p->n - row < AMX_COLS ? p->n - row : AMX_COLS;
    const int n_out = p->n_out - first_out;
    const __mmask16 mask = n_out >= 16 ? 0xffff : (__mmask16)((1u << n_out) - 1);
    const int n_tiles = amx_group_tiles(n_rows);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    /* Each term begins inside one tile of columns and may end in the one after it. */
    const float *tile[AMX_TERMS], *after[AMX_TERMS];
    __m512i index[AMX_TERMS];
    for (int t = 0; t < AMX_TERMS; t++) {
        const int at = t * n_rows / AMX_COLS;
        tile[t] = sums + at * 2 * AMX_TILE_FLOATS;
        after[t] = at + 1 < n_tiles ? tile[t] + 2 * AMX_TILE_FLOATS : tile[t];
        index[t] = _mm512_add_epi32(lane, _mm512_set1_epi32(t * n_rows % AMX_COLS));
    }
    __m512 y[16];
    for (int o = 0; o < 16 * AMX_COLS; o += AMX_COLS) {
        __m512 term[AMX_TERMS];
        for (int t = 0; t < AMX_TERMS; t++)
            term[t] = _mm512_permutex2var_ps(_mm512_load_ps(tile[t] + o), index[t],
                                             _mm512_load_ps(after[t] + o));
        y[o / AMX_COLS] = _mm512_add_ps(_mm512_add_ps(term[2], term[1]), term[0]);
    }
    amx_transpose(y);
    for (int r = 0; r < n_rows; r++)
        _mm512_mask_storeu_ps(p->y + (size_t)(row + r) * p->y_stride + first_out, mask, y[r]);
}

static void amx_piece(const struct cpu_linear_piece *p)
{
    const int n_tiles = amx_tiles(p->n), n_pairs = (n_tiles + 1) / 2;
    unsigned char tail[AMX_OUT][64];
    struct amx_block b = {.w = p->w,
                          .row_bytes = (size_t)p->k * 2,
                          .tail = tail[0],
                          .n_whole = p->k / AMX_STEP,
                          .n_steps = amx_steps(p->k)};
    if (b.n_steps > b.n_whole) {
        size_t used = (size_t)(p->k % AMX_STEP) * 2;
        memset(tail, 0, sizeof tail);
        for (int o = 0; o < p->n_out; o++)
            memcpy(tail[o], p->w + (size_t)(o + 1) * b.row_bytes - used, used);
    }
    struct amx_ahead ahead = {.lines = (AMX_OUT + n_pairs - 1) / n_pairs};
    /* A few rows only wait for memory, and the hardware's own prefetch of the 32 rows of weights
     * keeps that busier than prefetch instructions, which take the first level's fill buffers. */
    if (p->next != NULL && n_pairs > 1) {
        ahead.at = (uintptr_t)p->next;
        ahead.end = ahead.at + AMX_OUT * b.row_bytes;
    }
    amx_configure(p->n_out);
    for (int tile = 0; tile < n_tiles; tile += 2) {
        const bool is_pair = tile + 1 < n_tiles;
        b.x = p->x + amx_tile_offset(tile, n_tiles, 0, b.n_steps);
        b.sums = p->sums + (size_t)tile * 2 * AMX_TILE_FLOATS;
        if (p->n_out > 16 && is_pair)
            amx_block_run(&b, &ahead, 2, 2);
        else if (p->n_out > 16)
            amx_block_run(&b, &ahead, 2, 1);
        else if (is_pair)
            amx_block_run(&b, &ahead, 1, 2);
        else
            amx_block_run(&b, &ahead, 1, 1);
    }
    /* So that others who run on this core do not pay for the state of the tiles. */
    _tile_release();
    for (int row = 0; row < p->n; row += AMX_COLS) {
        const float *group = p->sums + (size_t)(row / AMX_COLS) * AMX_TERMS * 2 * AMX_TILE_FLOATS;
        for (int o = 0; o < p->n_out; o += 16)
            amx_finish(p, group + o / 16 * AMX_TILE_FLOATS, row, o);
    }
}

const struct cpu_linear cpu_linear_amx = {
    .out_block = AMX_OUT,
    .row_step = AMX_COLS,
    .x_bytes = 1152 * 1024,
    .packed_floats = amx_packed_floats,
    .scratch_floats = amx_scratch_floats,
    .pack = amx_pack,
    .piece = amx_piece,
};
#else
extern const int cpu_linear_amx_is_empty; /* an empty file is no C */
#endif
