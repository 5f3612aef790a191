/* Arithmetic behind one interface; a backend is chosen by name at run time.
 *
 * Two objects. A `struct kernels` is a backend with its memory and threads; a `struct
 * kernels_stream` is an ordered queue of operations on it. Every operation below is asynchronous:
 * it may return before it has run, and operations of one stream run in order. Host arrays passed in
 * (segments, ids, slots, positions) are borrowed until kernels_stream_sync; device buffers must
 * live until then too. The CPU backend happens to finish before it returns; callers must not rely
 * on it.
 *
 * The functions here are the front end: they check shapes and pass on to the backend's table
 * (kernels_ops.h). Errors are STATUS_INVALID for shapes that do not fit (our own mistake, with the
 * values), STATUS_NO_MEMORY, and whatever the device reports.
 *
 * Letters: n rows of the batch, d model width, f ffn width, H query heads, G kv heads, D head_dim,
 * V vocabulary, S selected rows. All matrices are row-major; activations are fp32.
 *
 * Batch invariance is the contract: an output element is accumulated over k in one fixed order that
 * depends on nothing but k's length (and the ISA level): not on n, not on the row's place, not on
 * the thread count, not on where KV blocks lie. docs/kernels.md states the orders. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "model/checkpoint.h"
#include "model/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kernels;
struct kernels_stream;

/* Memory owned by the backend. `data` is what operations take; on the CPU it is host memory. */
struct kernels_buffer {
    void *data;
    size_t len_bytes;
};

/* A weight as the backend holds it: on the CPU the checkpoint's own bytes, elsewhere a copy. */
struct kernels_weight {
    const void *data;
    enum dtype dtype;
    int rows; /* outputs */
    int cols; /* inputs */
};

struct kernels_options {
    const char *isa; /* CPU: "auto", "portable", "avx2", "avx512", "amx"; NULL is "auto" */
    int n_threads;   /* CPU: threads that compute, the caller's included; 0 = all cores */
    bool may_spin;   /* CPU: pool threads may spin briefly for the next operation; set it only when
                      * every computing thread of this host has a core to itself */
};

/* ---- backends ------------------------------------------------------------------------------- */

/* Creates a backend by name: "cpu", "auto" (the best that is built in and has a device). A name
 * that is known but not built in is STATUS_UNSUPPORTED with a message that says so. */
enum status kernels_create(const char *name, const struct kernels_options *options,
                           struct kernels **out, struct err *err);
void kernels_destroy(struct kernels *k);           /* NULL is fine */
const char *kernels_name(const struct kernels *k); /* "cpu" */
/* "avx512", ...: the level within which results are bit-identical. */
const char *kernels_isa(const struct kernels *k);
int kernels_threads(const struct kernels *k);
/* The best CPU level of this machine. */
const char *kernels_cpu_best_isa(void);
/* The lesser of two CPU levels by name, so that a mixed cluster can agree on one. NULL when a name
 * is unknown. */
const char *kernels_cpu_lesser_isa(const char *a, const char *b);

enum status kernels_stream_create(struct kernels *k, const char *name, struct kernels_stream **out,
                                  struct err *err);
void kernels_stream_destroy(struct kernels_stream *s);
/* Waits until all operations of the stream have run, and reports the first that failed. */
enum status kernels_stream_sync(struct kernels_stream *s, struct err *err);

/* ---- memory --------------------------------------------------------------------------------- */

/* Zeroed when zero is set; 64-byte aligned. */
enum status kernels_alloc(struct kernels *k, size_t len_bytes, bool zero,
                          struct kernels_buffer *out, struct err *err);
void kernels_free(struct kernels *k, struct kernels_buffer *buffer); /* clears it; empty is fine */
/* Host to device and back, in stream order. The host side is borrowed until sync. */
enum status kernels_upload(struct kernels_stream *s, void *device, const void *host,
                           size_t len_bytes, struct err *err);
enum status kernels_download(struct kernels_stream *s, void *host, const void *device,
                             size_t len_bytes, struct err *err);
/* Makes a checkpoint's weight usable; the checkpoint stays open as long as the backend is used. */
enum status kernels_weight_load(struct kernels *k, const struct weight *w,
                                struct kernels_weight *out, struct err *err);
void kernels_weight_unload(struct kernels *k, struct kernels_weight *w);

/* ---- the batch ------------------------------------------------------------------------------ */

/* A contiguous range of positions of one sequence at one loop. Its rows are rows
 * [first_row, first_row + n_rows) of the batch, its positions [first_position, first_position +
 * n_rows). Its K/V of positions [0, first_position + n_rows) lie in the pool blocks
 * block_table[first_block .. first_block + n_blocks). */
struct kernels_segment {
    int32_t first_row, n_rows;
    int32_t first_position;
    int32_t first_block, n_blocks;
};

struct kernels_batch {
    int32_t n_rows;
    int32_t n_segments;
    const struct kernels_segment *segments; /* [n_segments], rows in order, covering [0, n_rows) */
    const int32_t *block_table;
};

/* The paged KV pool of one worker: block b of layer l holds block_size positions of K and of V.
 * The layout inside is the backend's. */
struct kernels_kv {
    struct kernels_buffer memory;
    enum dtype dtype; /* F32 or BF16 (round to nearest even) */
    int n_blocks, block_size, n_layers, n_kv_heads, head_dim;
};

enum status kernels_kv_create(struct kernels *k, enum dtype dtype, int n_blocks, int block_size,
                              int n_layers, int n_kv_heads, int head_dim, struct kernels_kv *out,
                              struct err *err);
void kernels_kv_destroy(struct kernels *k, struct kernels_kv *kv);

/* ---- operations ----------------------------------------------------------------------------- */

/* x[i] = ids[i] >= 0 ? embed[ids[i]] : store[slots[i]]            x [n, d], store [n_slots, d] */
enum status kernels_load_rows(struct kernels_stream *s, float *x, const float *store,
                              const int32_t *slots, const struct kernels_weight *embed,
                              const int32_t *ids, int n, struct err *err);
/* store[slots[i]] = x[i] */
enum status kernels_store_rows(struct kernels_stream *s, float *store, const int32_t *slots,
                               const float *x, int n, int d, struct err *err);
/* y[i] = x[rows[i]]                                               y [S, d] */
enum status kernels_gather_rows(struct kernels_stream *s, float *y, const float *x,
                                const int32_t *rows, int n_selected, int d, struct err *err);

/* y[j][i][o] = sum_k x[i][k] * w[j][o][k] for up to four weights that share the input
 * x [n, cols], y[j] [n, w[j].rows]. QKV and gate+up are one call each; so is the head, with
 * n_jobs = 1. */
enum { KERNELS_LINEAR_MAX_JOBS = 4 };
enum status kernels_linear(struct kernels_stream *s, float *const *y, const float *x,
                           const struct kernels_weight *const *w, int n_jobs, int n,
                           struct err *err);

/* y[i] = x[i] * gain / sqrt(mean(x[i]^2) + eps)                   x, y [n, d]; y may be x */
enum status kernels_rms_norm(struct kernels_stream *s, float *y, const float *x,
                             const struct kernels_weight *gain, int n, float eps, struct err *err);

/* The fused residual: h += norm(branch; gain_branch), or h += branch when gain_branch is NULL; then
 * y = norm(h; gain_next), skipped when y is NULL.                 h, branch, y [n, d] */
enum status kernels_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                                  const struct kernels_weight *gain_branch, float *y,
                                  const struct kernels_weight *gain_next, int n, int d, float eps,
                                  struct err *err);

/* cos/sin[i][j] = cos/sin(position_of_row_i * theta^(-2j / D)), computed in double, once per batch
 * and used by all layers.                                         cos, sin [n, D / 2] */
enum status kernels_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                                const struct kernels_batch *batch, int head_dim, double theta,
                                struct err *err);

/* Rotates q in place (half-split: [x1 c - x2 s, x2 c + x1 s]), rotates k, and writes k and v of
 * every row into its position of the pool at `layer`.                 q [n, H*D], k, v [n, G*D] */
enum status kernels_rope_append(struct kernels_stream *s, float *q, float *k_rows,
                                const float *v_rows, int n_heads, const float *cos_table,
                                const float *sin_table, const struct kernels_batch *batch,
                                const struct kernels_kv *kv, int layer, struct err *err);

/* Causal attention of every row over positions [0, its position] at `layer`, scale D^-0.5, query
 * head h reads kv head h / (H / G).                                    out, q [n, H*D] */
enum status kernels_attention(struct kernels_stream *s, float *out, const float *q, int n_heads,
                              const struct kernels_batch *batch, const struct kernels_kv *kv,
                              int layer, struct err *err);

/* y[i][j] = silu(gate[i][j]) * up[i][j]                           all [n, f]; y may be gate */
enum status kernels_swiglu(struct kernels_stream *s, float *y, const float *gate, const float *up,
                           int n, int f, struct err *err);

/* lambda[i] = sigmoid(w . x[rows[i]] + bias)                lambda [S], w [1, d], bias [1, 1] */
enum status kernels_gate(struct kernels_stream *s, float *lambda, const float *x,
                         const int32_t *rows, int n_selected, const struct kernels_weight *w,
                         const struct kernels_weight *bias, struct err *err);

/* The `top` largest entries of each row in descending order, ties to the smaller id; NaN counts as
 * smaller than everything. top = 1 is argmax.                     logits [n, V],
 * ids and values [n, top] */
enum status kernels_top_k(struct kernels_stream *s, int32_t *ids, float *values,
                          const float *logits, int n, int vocab_size, int top, struct err *err);

/* ---- what the machine can do ---------------------------------------------------------------- */

struct kernels_machine {
    double peak_gflops;   /* fp32 FMA rate of n_threads, registers only */
    double read_gbytes_s; /* streaming read of a buffer far larger than the caches */
};
/* Measured now, about 0.2 s; used by bench and doctor. */
enum status kernels_measure_machine(struct kernels *k, struct kernels_machine *out,
                                    struct err *err);

#endif
