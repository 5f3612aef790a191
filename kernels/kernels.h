/* Arithmetic behind one interface; a backend is chosen by name at run time.
 *
 * Two objects. A `struct kernels` is a backend with its memory and threads; a `struct
 * kernels_stream` is an ordered queue of operations on it. Every operation below is asynchronous:
 * it may return before it has run, and operations of one stream run in order. Host arrays passed in
 * (segments, ids, slots, positions) are borrowed until kernels_stream_sync; device buffers must
 * live until then too. The CPU backend happens to finish before it returns; callers must not rely
 * on it.
 *
 * A batch is told to a stream once (kernels_bind); the operations after it read its rows,
 * positions, segments and blocks from there, so that a device gets them in one copy and a recorded
 * sequence of operations (kernels_record_begin) can be run again for another batch of the same
 * size.
 *
 * The functions here are the front end: they check shapes and pass on to the backend's table
 * (kernels_ops.h). Errors are STATUS_INVALID for shapes that do not fit (our own mistake, with the
 * values), STATUS_NO_MEMORY, and whatever the device reports.
 *
 * Letters: n rows of the batch, d model width, f ffn width, H query heads, G kv heads, D head_dim,
 * V vocabulary, S selected rows. All matrices are row-major. `float *` is fp32; `void *`
 * activations are of the backend's own type, kernels_activation_dtype: fp32 on the CPU, bf16 on a
 * GPU.
 *
 * Batch invariance is the CPU's contract, and a GPU's with is_deterministic: an output element is
 * accumulated over k in one fixed order that depends on nothing but k's length (and the ISA level):
 * not on n, not on the row's place, not on the thread count, not on where KV blocks lie.
 * docs/kernels.md and docs/gpu.md state the orders. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "kernels/exit_rule.h"
#include "model/checkpoint.h"
#include "model/dtype.h"
#include "proto/sequence.h"
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
    int device;      /* GPU: its number as the driver counts (CUDA_VISIBLE_DEVICES applies) */
    bool is_deterministic; /* GPU: one order of additions for any batch; the CPU always has one */
};

/* ---- backends ------------------------------------------------------------------------------- */

/* Creates a backend by name: "cpu", "cuda", "auto" (the best that is built in and has a device). A
 * name that is known but not built in, or has no device, library or driver here, is
 * STATUS_UNSUPPORTED with a message that says so. */
enum status kernels_create(const char *name, const struct kernels_options *options,
                           struct kernels **out, struct err *err);
void kernels_destroy(struct kernels *k);           /* NULL is fine */
const char *kernels_name(const struct kernels *k); /* "cpu" */
/* The type of `void *` activations. */
enum dtype kernels_activation_dtype(const struct kernels *k);
/* "avx512", "sm_90", ...: the level within which results are bit-identical. */
const char *kernels_isa(const struct kernels *k);
int kernels_threads(const struct kernels *k);
/* The best CPU level of this machine. */
const char *kernels_cpu_best_isa(void);
/* The lesser of two CPU levels by name, so that a mixed cluster can agree on one. NULL when a name
 * is unknown. */
const char *kernels_cpu_lesser_isa(const char *a, const char *b);

/* GPUs that the backend "cuda" could use; 0 without the backend, a driver or a device. */
int kernels_cuda_devices(void);

/* A GPU as its driver describes it; nothing of it is taken by asking. */
struct kernels_device {
    char name[64], id[48]; /* id: tells it from every other GPU */
    int major, minor;      /* compute capability */
    int driver, runtime;   /* CUDA versions, 1000 * major + 10 * minor */
    uint64_t total_bytes;
};
/* STATUS_UNSUPPORTED, with why there is none: not built in, no driver, no device; STATUS_INVALID
 * for a number that is not there, with how many are. */
enum status kernels_cuda_device(int device, struct kernels_device *out, struct err *err);

/* Batches of one stream that may have been bound and not yet waited for. */
enum { KERNELS_MAX_IN_FLIGHT = 2 };

enum status kernels_stream_create(struct kernels *k, const char *name, struct kernels_stream **out,
                                  struct err *err);
void kernels_stream_destroy(struct kernels_stream *s);
/* Waits until all operations of the stream have run, and reports the first that failed. */
enum status kernels_stream_sync(struct kernels_stream *s, struct err *err);

/* Recording. What is called between begin and end is remembered, run at the end, and kept under
 * `key`; replay runs what is kept and says so in *is_done, which stays false when nothing is. Only
 * operations may be recorded (no bind, upload, download, sync), with arguments that stay what they
 * are. A backend that gains nothing by it runs the operations at once and replays nothing; one that
 * has to warm up first does so the first time after a replay that did nothing. */
enum status kernels_record_begin(struct kernels_stream *s, struct err *err);
enum status kernels_record_end(struct kernels_stream *s, uint64_t key, struct err *err);
enum status kernels_replay(struct kernels_stream *s, uint64_t key, bool *is_done, struct err *err);

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
/* Every byte becomes `value`, in stream order. */
enum status kernels_fill(struct kernels_stream *s, void *device, unsigned char value,
                         size_t len_bytes, struct err *err);
/* Host memory a device reaches without a detour, for what travels often; ordinary memory on the
 * CPU. 64-byte aligned. */
enum status kernels_host_alloc(struct kernels *k, size_t len_bytes, void **out, struct err *err);
void kernels_host_free(struct kernels *k, void *host); /* NULL is fine */

/* The device's own memory now; both 0 for a backend that computes in host memory. */
struct kernels_memory {
    uint64_t total_bytes, free_bytes;
};
enum status kernels_device_memory(struct kernels *k, struct kernels_memory *out, struct err *err);

/* Makes a checkpoint's weight usable; the checkpoint stays open as long as the backend is used. On
 * a GPU matrices become bf16, vectors (rows == 1) fp32, and the copy may still be under way. */
enum status kernels_weight_load(struct kernels *k, const struct weight *w,
                                struct kernels_weight *out, struct err *err);
/* n <= KERNELS_LINEAR_MAX_JOBS weights that are always used together, in this order, in one
 * kernels_linear: a device lays them back to back. All or none are loaded; unload each. */
enum status kernels_weight_load_joined(struct kernels *k, const struct weight *const *w, int n,
                                       struct kernels_weight *out, struct err *err);
/* Waits for all copies of weights: once, after the last load and before the first operation. */
enum status kernels_weights_ready(struct kernels *k, struct err *err);
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

/* The live row of a segment: what its exit and its token depend on besides its hidden state. */
struct kernels_live {
    int32_t row, segment;
    uint32_t position;      /* of the row; the token drawn gets position + 1 */
    uint32_t loop;          /* 1-based */
    struct exit_state exit; /* before this loop */
    const struct sequence_params *params;
    /* The logits come to the host (kernels_outcome_logits) and the device draws nothing: for what
     * it does not do (penalties, biases, stop ids masked below min_tokens). */
    bool wants_logits;
};

struct kernels_batch {
    int32_t n_rows;
    int32_t n_segments;
    const struct kernels_segment *segments; /* [n_segments], rows in order, covering [0, n_rows) */
    const int32_t *block_table;
    const int32_t *slots; /* [n_rows] of load_rows and store_rows; NULL where neither is called */
    const int32_t *ids;   /* [n_rows] likewise; -1: the row comes from its slot */
    int32_t n_live;       /* 0 where kernels_finish is not called */
    const struct kernels_live *live;
};

/* What the largest batch of a stream needs. Once per stream, before its first bind. */
struct kernels_limits {
    int32_t n_rows, n_segments, n_table; /* n_table: entries of the block table */
    int32_t block_size;
    int32_t n_slots, vocab_size;
    int32_t n_heads, n_kv_heads, head_dim;
    int32_t n_wanted_logits; /* live rows of a batch with wants_logits; more are STATUS_INVALID */
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

/* ---- the batch of a stream ------------------------------------------------------------------ */

enum status kernels_stream_reserve(struct kernels_stream *s, const struct kernels_limits *limits,
                                   struct err *err);
/* From here on the stream's operations are about this batch. Its arrays are borrowed until the
 * batch has been waited for (kernels_wait) or the stream synced. `flight` in 0 ..
 * KERNELS_MAX_IN_FLIGHT - 1 names the place of its outcomes: bind, operations, mark, and later wait
 * with the same number. Checks segments, blocks (where kv is given), slots and ids once for all
 * operations: STATUS_INVALID with what does not fit. */
enum status kernels_bind(struct kernels_stream *s, const struct kernels_batch *batch,
                         const struct kernels_kv *kv, int flight, struct err *err);
/* All operations since bind belong to this flight; wait returns when they have run, from any one
 * thread. */
enum status kernels_mark(struct kernels_stream *s, int flight, struct err *err);
enum status kernels_wait(struct kernels_stream *s, int flight, struct err *err);

/* ---- operations -------------------------------------------------------------------------------
 *
 * n may be more than the bound batch's n_rows (a recorded size): rows behind it are computed from
 * whatever is there and reach nothing: store_rows, rope_append, attention and finish leave them
 * out. On the CPU n is n_rows. */

/* x[i] = ids[i] >= 0 ? embed[ids[i]] : store[slots[i]], ids and slots of the bound batch.
 *                                                                 x [n, d], store [n_slots, d] */
enum status kernels_load_rows(struct kernels_stream *s, float *x, const float *store,
                              const struct kernels_weight *embed, int n, struct err *err);
/* store[slots[i]] = x[i] */
enum status kernels_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                               struct err *err);
/* y[i] = x[rows[i]], rows a host array                            y [S, d], x [n, d] */
enum status kernels_gather_rows(struct kernels_stream *s, void *y, const float *x,
                                const int32_t *rows, int n_selected, int d, struct err *err);

/* Rows of a store to and from host memory, a list at a time: host[i] is the address of d floats for
 * slots[i] (4-byte aligned; from kernels_host_alloc where a device shall reach it without a
 * detour; of kernels_alloc, too: memory of the device itself). Stream order; slots and host are
 * borrowed until sync. */
enum status kernels_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                                 const int32_t *slots, int n, int d, struct err *err);
enum status kernels_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                                   const void *const *host, int n, int d, struct err *err);

/* y[i][first_j + o] = sum_k x[i][k] * w[j][o][k] for up to four weights that share the input
 * x [n, cols]: the outputs stand side by side in one row, y [n, sum of w[j].rows], first_j the rows
 * of the weights before j. y_dtype is F32 or the activation type. QKV and gate+up are one call
 * each; so is the head, with n_jobs = 1. */
enum { KERNELS_LINEAR_MAX_JOBS = 4 };
enum status kernels_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                           const struct kernels_weight *const *w, int n_jobs, int n,
                           struct err *err);

/* y[i] = x[i] * gain / sqrt(mean(x[i]^2) + eps); y_dtype is F32 or the activation type.
 *                                                 x, y [n, d]; y may be x where both are F32 */
enum status kernels_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                             const struct kernels_weight *gain, int n, float eps, struct err *err);

/* The fused residual: h += norm(branch; gain_branch), or h += branch when gain_branch is NULL; then
 * y = norm(h; gain_next), skipped when y is NULL.                 h, branch, y [n, d] */
enum status kernels_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                                  const struct kernels_weight *gain_branch, void *y,
                                  enum dtype y_dtype, const struct kernels_weight *gain_next, int n,
                                  int d, float eps, struct err *err);

/* cos/sin[i][j] = cos/sin(position_of_row_i * theta^(-2j / D)), computed in double, once per batch
 * and used by all layers.                                         cos, sin [n, D / 2] */
enum status kernels_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                                int head_dim, double theta, int n, struct err *err);

/* qkv [n, (H + 2G) * D] is what linear with the joined q, k and v leaves. Rotates q and k in place
 * (half-split: [x1 c - x2 s, x2 c + x1 s]) and writes k and v of every row into its position of the
 * pool at `layer`. */
enum status kernels_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                                const float *cos_table, const float *sin_table,
                                const struct kernels_kv *kv, int layer, int n, struct err *err);

/* Causal attention of every row over positions [0, its position] at `layer`, scale D^-0.5, query
 * head h reads kv head h / (H / G); q is the first H*D of each row of qkv.
 *                                                                 out [n, H*D] */
enum status kernels_attention(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                              const struct kernels_kv *kv, int layer, int n, struct err *err);

/* y[i][j] = silu(x[i][j]) * x[i][f + j]                  x [n, 2f] (gate, up), y [n, f], not x */
enum status kernels_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                           struct err *err);

/* lambda[i] = sigmoid(w . x[rows[i]] + bias)                lambda [S], w [1, d], bias [1, 1] */
enum status kernels_gate(struct kernels_stream *s, float *lambda, const float *x,
                         const int32_t *rows, int n_selected, const struct kernels_weight *w,
                         const struct kernels_weight *bias, struct err *err);

/* The `top` largest entries of each row in descending order, ties to the smaller id; NaN counts as
 * smaller than everything. top = 1 is argmax.                     logits [n, V],
 * ids and values [n, top] */
enum status kernels_top_k(struct kernels_stream *s, int32_t *ids, float *values,
                          const float *logits, int n, int vocab_size, int top, struct err *err);

/* ---- exits and tokens on the device --------------------------------------------------------- */

/* What became of a live row. */
struct kernels_outcome {
    enum status failure; /* CORRUPT: lambda, or a logit, is not finite */
    float lambda;
    struct exit_state exit; /* after this loop */
    bool is_exit;
    bool has_logits; /* they came to the host; the fields below are not set */
    int32_t id;      /* when is_exit: the token, by worker/sampler.h's rules */
    float logprob;   /* of id, when params->sampling.n_logprobs > 0; else 0 */
    uint32_t n_top;  /* likewise */
    int32_t top_ids[SEQUENCE_MAX_LOGPROBS];
    float top_logprobs[SEQUENCE_MAX_LOGPROBS];
};

/* Whether kernels_finish is there: a backend whose results would otherwise have to come to the host
 * first. The CPU has none: the replica decides and draws on the host. */
bool kernels_has_finish(const struct kernels *k);

struct kernels_finish {
    const float *y;                           /* [n, d] the final norm's output */
    const struct kernels_weight *gate, *bias; /* NULL: no gate, lambda is 0 */
    const struct kernels_weight *head;        /* [V, d] */
    void *head_rows;                          /* [max_heads, d] scratch */
    float *logits;                            /* [max_heads, V] scratch */
    int max_heads; /* live rows that may exit: none beyond are looked at by the head */
};
/* Gate and exit rule (kernels/exit_rule.h) on every live row of the bound batch, head and sampler
 * on those that exit; no host between them. Outcomes are there after mark and wait. */
enum status kernels_finish(struct kernels_stream *s, const struct kernels_finish *f,
                           struct err *err);
/* [n_live] in the batch's order; valid until the flight's number is bound again. */
const struct kernels_outcome *kernels_outcomes(const struct kernels_stream *s, int flight);
/* [V] logits of live row i, whose outcome has has_logits; as long. */
const float *kernels_outcome_logits(const struct kernels_stream *s, int flight, int i);

/* ---- what the machine can do ---------------------------------------------------------------- */

struct kernels_machine {
    double peak_gflops;   /* fp32 FMA rate of n_threads, registers only */
    double read_gbytes_s; /* streaming read of a buffer far larger than the caches */
    /* GPU only, else 0 */
    double copy_gbytes_s;   /* device to device, bytes read and written */
    double matrix_tflops;   /* bf16 products of 8192 x 8192 x 8192, fp32 sums, random data */
    double upload_gbytes_s; /* host memory of kernels_host_alloc to the device */
    double launch_us;       /* an empty kernel to the host's knowing that it has run */
};
/* Measured now, about 0.2 s; used by bench and doctor. */
enum status kernels_measure_machine(struct kernels *k, struct kernels_machine *out,
                                    struct err *err);

#endif
