/* Inside the CUDA backend: its objects, and what its files give each other. Host side, C.
 *
 * One struct cuda_kernels a device and process; a struct cuda_stream holds a CUDA stream and all
 * that depends on the largest batch: staging, scratch, recorded graphs. Everything is taken at
 * start (stream_reserve), nothing per batch. Every CUDA call is checked with cuda_check. */
#ifndef KERNELS_CUDA_BACKEND_H
#define KERNELS_CUDA_BACKEND_H

#include "kernels/cuda_batch.h"
#include "kernels/kernels_ops.h"

#include <cuda_runtime_api.h>
#include <stdatomic.h>

struct cuda_linear;         /* cuda_linear.c: cuBLASLt, and the algorithms chosen */
struct cuda_linear_stream;  /* its workspace on one stream */
struct cuda_attention;      /* cuda_attention.c: partial results of split attention */
struct cuda_finish_scratch; /* cuda_finish.c */
struct cuda_weights;        /* cuda_weights.c: copies under way */
struct cuda_graphs;         /* cuda_graph.c: what was recorded */

struct cuda_kernels {
    struct kernels base;
    int device;
    int major, minor; /* compute capability */
    int n_multiprocessors;
    size_t shared_bytes; /* of a block at most, after opting in */
    bool is_deterministic;
    bool may_spin;        /* a thread that waits for the device has a core to itself */
    cudaStream_t service; /* zeroing of new memory, and trying whether a kernel runs here */
    struct cuda_linear *linear;
    struct cuda_weights *weights;
};

/* One memory block for all arrays of a bound batch: filled on the host, copied once. */
struct cuda_pack {
    unsigned char *host;   /* pinned */
    unsigned char *device; /* where it will lie */
    size_t used_bytes, cap_bytes;
};
/* Room for len_bytes, 16-byte aligned: returns the host side, *device the other. The sizes were
 * reserved; running out is a mistake of ours (assert). device_out is the address of a pointer of
 * any type: &out->slots. */
void *cuda_pack_take(struct cuda_pack *p, size_t len_bytes, void *device_out);

/* Pinned memory between pageable host memory and the device, two pieces in turn. */
enum { CUDA_STAGING_PIECES = 2 };
struct cuda_staging {
    unsigned char *pieces[CUDA_STAGING_PIECES];
    cudaEvent_t is_free[CUDA_STAGING_PIECES]; /* recorded behind the last copy of the piece */
    int next;
};

/* What a flight's number may do next: bind, then mark, then wait. */
enum cuda_flight_state { CUDA_FLIGHT_FREE, CUDA_FLIGHT_BOUND, CUDA_FLIGHT_MARKED };

struct cuda_flight {
    _Atomic int state;      /* bind and wait may come from different threads */
    unsigned char *staging; /* pinned, pack_bytes of the stream */
    struct kernels_outcome *outcomes;
    float *wanted_logits;
    int32_t *wanted_place; /* [n_segments] of a live row: its place in wanted_logits, or -1 */
    cudaEvent_t done;
};

struct cuda_stream {
    struct kernels_stream base;
    cudaStream_t stream;
    struct cuda_batch *device_batch; /* fixed device address; its arrays follow it */
    struct cuda_batch host_batch;    /* the same values as of the last bind */
    int flight;                      /* of the last bind */
    size_t pack_bytes;
    struct cuda_flight flights[KERNELS_MAX_IN_FLIGHT];
    struct cuda_staging staging;
    struct cuda_linear_stream *linear;
    struct cuda_attention *attention;
    struct cuda_finish_scratch *finish;
    struct cuda_graphs *graphs;
};

static inline struct cuda_kernels *cuda_kernels_of(struct kernels_stream *s)
{
    return (struct cuda_kernels *)s->kernels;
}
static inline struct cuda_stream *cuda_stream_of(struct kernels_stream *s)
{
    return (struct cuda_stream *)s;
}

/* STATUS_OK, or an error with what was tried and what the driver says of it: NO_MEMORY for
 * cudaErrorMemoryAllocation, else INTERNAL. */
enum status cuda_check(cudaError_t code, const char *what, struct err *err);

/* Makes the backend's device the calling thread's; cheap when it is already. What a thread may call
 * first does it: memory, copies, rows in and out, bind, recording. Operations on a bound batch are
 * launched by the thread that bound it. */
enum status cuda_use(const struct cuda_kernels *k, struct err *err);

/* ---- cuda_linear.c ----------------------------------------------------------------------------
 */
enum status cuda_linear_create(struct cuda_kernels *k, struct err *err);
void cuda_linear_destroy(struct cuda_kernels *k);
enum status cuda_linear_reserve(struct cuda_stream *s, struct err *err);
void cuda_linear_release(struct cuda_stream *s);
enum status cuda_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                        const struct kernels_weight *const *w, int n_jobs, int n, struct err *err);
/* bf16 products of size^3 for a rate: run `repeats` times on the stream. */
enum status cuda_linear_square(struct cuda_stream *s, void *c, const void *a, const void *b,
                               int size, int repeats, struct err *err);

/* ---- cuda_attention.c -------------------------------------------------------------------------
 */
/* Bytes of a pack that the items of any batch within the limits take at most. */
size_t cuda_attention_pack_bytes(const struct kernels_limits *limits);
enum status cuda_attention_reserve(struct cuda_stream *s, struct err *err);
void cuda_attention_release(struct cuda_stream *s);
/* Cuts the batch's attention into items, writes them and their counts (n_split_items, split_items,
 * ...) into *out. */
void cuda_attention_pack(const struct cuda_stream *s, const struct kernels_batch *batch,
                         struct cuda_pack *pack, struct cuda_batch *out);
enum status cuda_attention(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                           const struct kernels_kv *kv, int layer, int n, struct err *err);

/* ---- cuda_finish.c ----------------------------------------------------------------------------
 */
size_t cuda_finish_pack_bytes(const struct kernels_limits *limits);
enum status cuda_finish_reserve(struct cuda_stream *s, struct err *err);
void cuda_finish_release(struct cuda_stream *s);
void cuda_finish_pack(const struct cuda_stream *s, const struct kernels_batch *batch,
                      struct cuda_pack *pack, struct cuda_batch *out);
enum status cuda_gate(struct kernels_stream *s, float *lambda, const float *x, const int32_t *rows,
                      int n_selected, const struct kernels_weight *w,
                      const struct kernels_weight *bias, struct err *err);
enum status cuda_top_k(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                       int n, int vocab_size, int top, struct err *err);
enum status cuda_finish(struct kernels_stream *s, const struct kernels_finish *f, struct err *err);

/* ---- cuda_rows.c ------------------------------------------------------------------------------
 */
enum status cuda_load_rows(struct kernels_stream *s, float *x, const float *store,
                           const struct kernels_weight *embed, int n, struct err *err);
enum status cuda_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                            struct err *err);
enum status cuda_gather_rows(struct kernels_stream *s, void *y, const float *x, const int32_t *rows,
                             int n_selected, int d, struct err *err);
enum status cuda_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                              const int32_t *slots, int n, int d, struct err *err);
enum status cuda_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                                const void *const *host, int n, int d, struct err *err);
enum status cuda_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                          const struct kernels_weight *gain, int n, float eps, struct err *err);
enum status cuda_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                               const struct kernels_weight *gain_branch, void *y,
                               enum dtype y_dtype, const struct kernels_weight *gain_next, int n,
                               int d, float eps, struct err *err);
enum status cuda_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                             int head_dim, double theta, int n, struct err *err);
enum status cuda_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                             const float *cos_table, const float *sin_table,
                             const struct kernels_kv *kv, int layer, int n, struct err *err);
enum status cuda_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                        struct err *err);
/* Bytes of the KV pool, laid out [block][layer][kv head]{K [block_size][D], V [block_size][D]} in
 * bf16, as on the CPU. */
size_t cuda_kv_bytes(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                     int head_dim);

/* ---- cuda_memory.c: as kernels_ops.h, and: -----------------------------------------------------
 */
enum status cuda_alloc(struct kernels *k, size_t len_bytes, bool zero, struct kernels_buffer *out,
                       struct err *err);
void cuda_free(struct kernels *k, struct kernels_buffer *buffer);
enum status cuda_host_alloc(struct kernels *k, size_t len_bytes, void **out, struct err *err);
void cuda_host_free(struct kernels *k, void *host);
enum status cuda_upload(struct kernels_stream *s, void *device, const void *host, size_t len_bytes,
                        struct err *err);
enum status cuda_download(struct kernels_stream *s, void *host, const void *device,
                          size_t len_bytes, struct err *err);
enum status cuda_fill(struct kernels_stream *s, void *device, unsigned char value, size_t len_bytes,
                      struct err *err);
enum status cuda_device_memory(struct kernels *k, struct kernels_memory *out, struct err *err);
/* cudaMalloc whose error says how much is free. */
enum status cuda_take_memory(size_t len_bytes, const char *what, void **out, struct err *err);
enum status cuda_staging_create(struct cuda_stream *s, struct err *err);
void cuda_staging_destroy(struct cuda_stream *s);

/* ---- cuda_bind.c: as kernels_ops.h, and: -------------------------------------------------------
 */
enum status cuda_stream_reserve(struct kernels_stream *s, const struct kernels_limits *limits,
                                struct err *err);
void cuda_stream_release(struct cuda_stream *s); /* all that reserve took */
void cuda_flights_land(struct cuda_stream *s);   /* the stream was synced: every flight is free */
enum status cuda_bind(struct kernels_stream *s, const struct kernels_batch *batch,
                      const struct kernels_kv *kv, int flight, struct err *err);
enum status cuda_mark(struct kernels_stream *s, int flight, struct err *err);
enum status cuda_wait(struct kernels_stream *s, int flight, struct err *err);
const struct kernels_outcome *cuda_outcomes(const struct kernels_stream *s, int flight);
const float *cuda_outcome_logits(const struct kernels_stream *s, int flight, int i);

/* ---- cuda_weights.c, cuda_graph.c, cuda_measure.c: as kernels_ops.h, and: ----------------------
 */
enum status cuda_weights_create(struct cuda_kernels *k, struct err *err);
void cuda_weights_destroy(struct cuda_kernels *k);
enum status cuda_weight_load(struct kernels *k, const struct weight *w, struct kernels_weight *out,
                             struct err *err);
enum status cuda_weight_load_joined(struct kernels *k, const struct weight *const *w, int n,
                                    struct kernels_weight *out, struct err *err);
enum status cuda_weights_ready(struct kernels *k, struct err *err);
void cuda_weight_unload(struct kernels *k, struct kernels_weight *w);
/* What the last weights_ready waited for: bytes on the device, seconds since the first load. */
void cuda_weights_pace(const struct cuda_kernels *k, uint64_t *len_bytes, double *seconds);
enum status cuda_graphs_create(struct cuda_stream *s, struct err *err);
bool cuda_is_recording(const struct cuda_stream *s);
void cuda_graphs_abandon(struct cuda_stream *s); /* drops an open recording, if there is one */
enum status cuda_record_begin(struct kernels_stream *s, struct err *err);
enum status cuda_record_end(struct kernels_stream *s, uint64_t key, struct err *err);
enum status cuda_replay(struct kernels_stream *s, uint64_t key, bool *is_done, struct err *err);
void cuda_graphs_destroy(struct cuda_stream *s);
enum status cuda_measure(struct kernels *k, struct kernels_machine *out, struct err *err);

#endif
