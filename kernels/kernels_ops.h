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
    enum status (*weight_load)(struct kernels *k, const struct weight *w,
                               struct kernels_weight *out, struct err *err);
    void (*weight_unload)(struct kernels *k, struct kernels_weight *w);
    size_t (*kv_bytes)(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                       int head_dim);
    enum status (*load_rows)(struct kernels_stream *s, float *x, const float *store,
                             const int32_t *slots, const struct kernels_weight *embed,
                             const int32_t *ids, int n, struct err *err);
    enum status (*store_rows)(struct kernels_stream *s, float *store, const int32_t *slots,
                              const float *x, int n, int d, struct err *err);
    enum status (*gather_rows)(struct kernels_stream *s, float *y, const float *x,
                               const int32_t *rows, int n_selected, int d, struct err *err);
    enum status (*linear)(struct kernels_stream *s, float *const *y, const float *x,
                          const struct kernels_weight *const *w, int n_jobs, int n,
                          struct err *err);
    enum status (*rms_norm)(struct kernels_stream *s, float *y, const float *x,
                            const struct kernels_weight *gain, int n, float eps, struct err *err);
    enum status (*residual_norm)(struct kernels_stream *s, float *h, const float *branch,
                                 const struct kernels_weight *gain_branch, float *y,
                                 const struct kernels_weight *gain_next, int n, int d, float eps,
                                 struct err *err);
    enum status (*rope_tables)(struct kernels_stream *s, float *cos_table, float *sin_table,
                               const struct kernels_batch *batch, int head_dim, double theta,
                               struct err *err);
    enum status (*rope_append)(struct kernels_stream *s, float *q, float *k_rows,
                               const float *v_rows, int n_heads, const float *cos_table,
                               const float *sin_table, const struct kernels_batch *batch,
                               const struct kernels_kv *kv, int layer, struct err *err);
    enum status (*attention)(struct kernels_stream *s, float *out, const float *q, int n_heads,
                             const struct kernels_batch *batch, const struct kernels_kv *kv,
                             int layer, struct err *err);
    enum status (*swiglu)(struct kernels_stream *s, float *y, const float *gate, const float *up,
                          int n, int f, struct err *err);
    enum status (*gate)(struct kernels_stream *s, float *lambda, const float *x,
                        const int32_t *rows, int n_selected, const struct kernels_weight *w,
                        const struct kernels_weight *bias, struct err *err);
    enum status (*top_k)(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                         int n, int vocab_size, int top, struct err *err);
    enum status (*measure)(struct kernels *k, struct kernels_machine *out, struct err *err);
};

/* What every backend's object begins with. */
struct kernels {
    const struct kernels_ops *ops;
    char isa[16];
    int n_threads;
};
struct kernels_stream {
    struct kernels *kernels;
    char name[32];
};

/* The CPU backend's way in. */
enum status kernels_cpu_create(const struct kernels_options *options, struct kernels **out,
                               struct err *err);

#endif
