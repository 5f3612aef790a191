/* The table a backend fills; kernels.c checks the arguments, then calls through it.
 *
 * One table per backend, one entry per operation of kernels.h, same argument meaning. */
#ifndef KERNELS_KERNELS_OPS_H
#define KERNELS_KERNELS_OPS_H

#include "kernels/kernels.h"

struct kernels_ops {
    const char *name;
    void (*destroy)(struct kernels *k);
    enum status (*stream_create)(struct kernels *k, const char *name, struct kernels_stream **out,
                                 struct err *err);
    void (*stream_destroy)(struct kernels_stream *s);
    enum status (*stream_sync)(struct kernels_stream *s, struct err *err);
    enum status (*alloc)(struct kernels *k, size_t len_bytes, bool zero, struct kernels_buffer *out,
                         struct err *err);
    void (*free)(struct kernels *k, struct kernels_buffer *buffer);
    enum status (*upload)(struct kernels_stream *s, void *device, const void *host,
                          size_t len_bytes, struct err *err);
    enum status (*download)(struct kernels_stream *s, void *host, const void *device,
                            size_t len_bytes, struct err *err);
    enum status (*fill)(struct kernels_stream *s, void *device, unsigned char value,
                        size_t len_bytes, struct err *err);
    enum status (*weight_load)(struct kernels *k, const struct weight *w,
                               struct kernels_weight *out, struct err *err);
    void (*weight_unload)(struct kernels *k, struct kernels_weight *w);
    enum status (*weight_load_joined)(struct kernels *k, const struct weight *const *w, int n,
                                      struct kernels_weight *out, struct err *err);
    enum status (*weights_ready)(struct kernels *k, struct err *err);
    enum status (*host_alloc)(struct kernels *k, size_t len_bytes, void **out, struct err *err);
    void (*host_free)(struct kernels *k, void *host);
    enum status (*device_memory)(struct kernels *k, struct kernels_memory *out, struct err *err);
    enum status (*record_begin)(struct kernels_stream *s, struct err *err);
    enum status (*record_end)(struct kernels_stream *s, uint64_t key, struct err *err);
    enum status (*replay)(struct kernels_stream *s, uint64_t key, bool *is_done, struct err *err);
    size_t (*kv_bytes)(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                       int head_dim);
    enum status (*stream_reserve)(struct kernels_stream *s, const struct kernels_limits *limits,
                                  struct err *err);
    enum status (*bind)(struct kernels_stream *s, const struct kernels_batch *batch,
                        const struct kernels_kv *kv, int flight, struct err *err);
    enum status (*mark)(struct kernels_stream *s, int flight, struct err *err);
    enum status (*wait)(struct kernels_stream *s, int flight, struct err *err);
    enum status (*load_rows)(struct kernels_stream *s, float *x, const float *store,
                             const struct kernels_weight *embed, int n, struct err *err);
    enum status (*store_rows)(struct kernels_stream *s, float *store, const float *x, int n, int d,
                              struct err *err);
    enum status (*gather_rows)(struct kernels_stream *s, void *y, const float *x,
                               const int32_t *rows, int n_selected, int d, struct err *err);
    enum status (*rows_to_host)(struct kernels_stream *s, void *const *host, const float *store,
                                const int32_t *slots, int n, int d, struct err *err);
    enum status (*rows_from_host)(struct kernels_stream *s, float *store, const int32_t *slots,
                                  const void *const *host, int n, int d, struct err *err);
    enum status (*linear)(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                          const struct kernels_weight *const *w, int n_jobs, int n,
                          struct err *err);
    enum status (*rms_norm)(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                            const struct kernels_weight *gain, int n, float eps, struct err *err);
    enum status (*residual_norm)(struct kernels_stream *s, float *h, const float *branch,
                                 const struct kernels_weight *gain_branch, void *y,
                                 enum dtype y_dtype, const struct kernels_weight *gain_next, int n,
                                 int d, float eps, struct err *err);
    enum status (*rope_tables)(struct kernels_stream *s, float *cos_table, float *sin_table,
                               int head_dim, double theta, int n, struct err *err);
    enum status (*rope_append)(struct kernels_stream *s, void *qkv, int n_heads,
                               const float *cos_table, const float *sin_table,
                               const struct kernels_kv *kv, int layer, int n, struct err *err);
    enum status (*attention)(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                             const struct kernels_kv *kv, int layer, int n, struct err *err);
    enum status (*swiglu)(struct kernels_stream *s, void *y, const void *x, int n, int f,
                          struct err *err);
    enum status (*gate)(struct kernels_stream *s, float *lambda, const float *x,
                        const int32_t *rows, int n_selected, const struct kernels_weight *w,
                        const struct kernels_weight *bias, struct err *err);
    enum status (*top_k)(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                         int n, int vocab_size, int top, struct err *err);
    /* NULL: the backend has no finish (kernels_has_finish). */
    enum status (*finish)(struct kernels_stream *s, const struct kernels_finish *f,
                          struct err *err);
    const struct kernels_outcome *(*outcomes)(const struct kernels_stream *s, int flight);
    const float *(*outcome_logits)(const struct kernels_stream *s, int flight, int i);
    enum status (*measure)(struct kernels *k, struct kernels_machine *out, struct err *err);
};

/* What every backend's object begins with. */
struct kernels {
    const struct kernels_ops *ops;
    enum dtype activation;
    char isa[16];
    int n_threads;
};
struct kernels_stream {
    struct kernels *kernels;
    char name[32];
    struct kernels_limits limits;      /* of kernels_stream_reserve */
    const struct kernels_batch *batch; /* bound; NULL: none yet */
    const struct kernels_kv *kv;       /* bound with it; NULL: without */
};

/* The CPU backend's way in. */
enum status kernels_cpu_create(const struct kernels_options *options, struct kernels **out,
                               struct err *err);
/* The GPU backend's way in: cuda.c, or cuda_none.c in a build without CUDA. */
enum status kernels_cuda_create(const struct kernels_options *options, struct kernels **out,
                                struct err *err);

#endif
