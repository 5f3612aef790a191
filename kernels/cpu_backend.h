/* Private to the CPU backend: its object, the pool, and the table of one instruction-set level.
 *
 * A level (portable, avx2, avx512, amx) is a table of inner loops that work on one piece of an
 * operation. The drivers (cpu_linear.c, cpu_attention.c, cpu_rows.c) cut an operation into pieces
 * and hand them to the pool. How an operation is cut never changes a result: a level's loop gives
 * every element the same order of additions in whatever piece it lies. */
#ifndef KERNELS_CPU_BACKEND_H
#define KERNELS_CPU_BACKEND_H

#include "kernels/cpu_pool.h"
#include "kernels/kernels_ops.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- memory (cpu_memory.c) --------------------------------------------------------------------
 */

/* Zeroed pages, 64-byte aligned; large areas are not touched, so reserving them costs no memory. */
void *cpu_memory_map(size_t len_bytes);
/* The same from huge pages where there are any. */
enum { CPU_HUGE_PAGE_BYTES = 2 * 1024 * 1024 };
void *cpu_memory_map_huge(size_t len_bytes);
void cpu_memory_unmap(void *data, size_t len_bytes);

/* A scratch area that only grows. */
struct cpu_scratch {
    void *data;
    size_t len_bytes;
};
enum status cpu_scratch_grow(struct cpu_scratch *scratch, size_t len_bytes, const char *what,
                             struct err *err);
void cpu_scratch_free(struct cpu_scratch *scratch);

/* ---- one level's inner loops ------------------------------------------------------------------
 */

enum {
    CPU_OUT_BLOCK =
        48, /* outputs of a piece of linear: a multiple of every tile's width and of the lanes */
    CPU_TILE_ROWS = 12, /* most rows of a register tile */
    CPU_TILE_AHEAD =
        32, /* entries past the columns of a tile: what it may prefetch and round up to */
    CPU_GROUP_MAX = 32, /* elements of k that one step takes: twice the lanes of the widest level */
};

/* Outputs [0, n_out) of n rows: y[i * y_stride + o] = sum_k x[i][k] w[o][k]. */
struct cpu_linear_piece {
    const unsigned char *w; /* first output's row; rows are k elements apart */
    enum dtype dtype;
    int k;
    int n_out;      /* 1 .. out_block */
    int n;          /* rows */
    const float *x; /* packed for these n rows by the same method */
    float *y;
    size_t y_stride;
    float *sums;               /* scratch_floats(n) */
    const unsigned char *next; /* the next piece's weights, to be prefetched; NULL: none */
};

/* Queries that share K/V of one sequence and kv head. Query q sees positions [0, n_visible[q]),
 * which never decreases with q. */
struct cpu_attention_piece {
    enum dtype dtype;
    int head_dim;
    int n_queries;               /* 1 .. CPU_TILE_ROWS */
    const float *const *q;       /* [n_queries] rows of head_dim */
    float *const *out;           /* [n_queries] */
    const int32_t *n_visible;    /* [n_queries] */
    const int32_t *block_table;  /* of the segment */
    const unsigned char *k_base; /* of (block 0, this layer and kv head) */
    size_t block_stride_bytes;
    size_t v_offset_bytes; /* from a block's K to its V */
    int block_size;
    float *scratch; /* attention_scratch_floats */
};

/* How a level computes linear layers whose weights are of one dtype. */
struct cpu_linear {
    int out_block; /* outputs of a piece */
    int row_step;  /* rows that pack tightest together */
    /* Of the packed rows that share one reading of the weights: they must stay in L2. */
    size_t x_bytes;
    /* Of n rows of k, and of the sums of a piece of n rows. */
    size_t (*packed_floats)(int n, int k);
    size_t (*scratch_floats)(int n);
    /* x [n, k] into the order in which piece reads it for this weight dtype. */
    void (*pack)(float *packed, const float *x, int n, int k, enum dtype dtype);
    void (*piece)(const struct cpu_linear_piece *piece);
};

struct cpu_level {
    const char *name;
    /* By whether weights are bf16; f32 and f16 share one. */
    const struct cpu_linear *linear[2];
    /* Widens n elements; src may be unaligned. */
    void (*widen)(float *dst, const void *src, enum dtype dtype, size_t n);
    void (*attention_piece)(const struct cpu_attention_piece *piece);
    /* y = x * gain / sqrt(mean(x^2) + eps); y may be x. */
    void (*norm_row)(float *y, const float *x, const float *gain, int d, float eps);
    /* h += branch * scale, where scale is per element when gain is given: the norm of branch. */
    void (*residual_row)(float *h, const float *branch, const float *gain, int d, float eps);
    void (*swiglu)(float *y, const float *gate, const float *up, size_t n);
    float (*dot)(const float *a, const float *b, int n);
    /* Fused multiply-adds that touch no memory; returns the floating-point operations done. */
    double (*spin_fma)(long n_steps, float *sink);
    /* Adds up len_bytes (a multiple of 512) so that every byte is read. */
    float (*read_stream)(const void *data, size_t len_bytes);
};

extern const struct cpu_level cpu_level_portable;
#if defined(__x86_64__)
extern const struct cpu_level cpu_level_avx2;
extern const struct cpu_level cpu_level_avx512;
extern const struct cpu_level cpu_level_amx; /* cpu_level_avx512 but for bf16 weights */
extern const struct cpu_linear cpu_linear_amx;
#endif

static inline size_t cpu_packed_len(int k)
{
    return ((size_t)k + CPU_GROUP_MAX - 1) / CPU_GROUP_MAX * CPU_GROUP_MAX;
}
/* n rows are cut into tiles of at most `most`, as even as possible: the rows of the tile that
 * begins at `row`. */
static inline int cpu_tile_rows(int n, int row, int most)
{
    int n_tiles = (n + most - 1) / most;
    int size = n / n_tiles, n_larger = n % n_tiles; /* the first n_larger have one more */
    return row < n_larger * (size + 1) ? size + 1 : size;
}

size_t cpu_attention_scratch_floats(int head_dim, int n_positions);

/* The level of that name ("auto" or NULL: the best this CPU runs). */
enum status cpu_level_find(const char *isa, const struct cpu_level **out, struct err *err);

/* ---- the backend's object ---------------------------------------------------------------------
 */

struct cpu_backend {
    struct kernels base;
    const struct cpu_level *level;
    struct cpu_pool *pool;
    struct cpu_scratch packed;   /* linear's input */
    struct cpu_scratch gains[2]; /* widened norm gains, gate weights */
    struct cpu_scratch *threads; /* [n_threads], each thread's own */
};

struct cpu_backend *cpu_backend_of(struct kernels_stream *s);

/* Widens a [1, d] weight into gains[slot]. */
enum status cpu_backend_gain(struct cpu_backend *cpu, int slot, const struct kernels_weight *w,
                             const float **out, struct err *err);

/* ---- operations of the table, by file ---------------------------------------------------------
 */

/* cpu_linear.c */
enum status cpu_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                       const struct kernels_weight *const *w, int n_jobs, int n, struct err *err);
/* cpu_rope.c, cpu_attention.c */
size_t cpu_kv_bytes(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                    int head_dim);
enum status cpu_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                            int head_dim, double theta, int n, struct err *err);
enum status cpu_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                            const float *cos_table, const float *sin_table,
                            const struct kernels_kv *kv, int layer, int n, struct err *err);
enum status cpu_attention(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                          const struct kernels_kv *kv, int layer, int n, struct err *err);
/* cpu_rows.c */
enum status cpu_load_rows(struct kernels_stream *s, float *x, const float *store,
                          const struct kernels_weight *embed, int n, struct err *err);
enum status cpu_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                           struct err *err);
enum status cpu_gather_rows(struct kernels_stream *s, void *y, const float *x, const int32_t *rows,
                            int n_selected, int d, struct err *err);
enum status cpu_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                             const int32_t *slots, int n, int d, struct err *err);
enum status cpu_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                               const void *const *host, int n, int d, struct err *err);
enum status cpu_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                         const struct kernels_weight *gain, int n, float eps, struct err *err);
enum status cpu_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                              const struct kernels_weight *gain_branch, void *y, enum dtype y_dtype,
                              const struct kernels_weight *gain_next, int n, int d, float eps,
                              struct err *err);
enum status cpu_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                       struct err *err);
enum status cpu_gate(struct kernels_stream *s, float *lambda, const float *x, const int32_t *rows,
                     int n_selected, const struct kernels_weight *w,
                     const struct kernels_weight *bias, struct err *err);
/* cpu_top_k.c */
enum status cpu_top_k(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                      int n, int vocab_size, int top, struct err *err);
/* cpu_measure.c */
enum status cpu_measure(struct kernels *k, struct kernels_machine *out, struct err *err);

#endif
