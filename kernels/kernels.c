/* The front end: checks the arguments of every operation, then calls the backend's table. */
#include "kernels/kernels.h"
#include "kernels/kernels_ops.h"

#include <string.h>

/* ---- backends ---------------------------------------------------------------------------------
 */

enum status kernels_create(const char *name, const struct kernels_options *options,
                           struct kernels **out, struct err *err)
{
    static const struct kernels_options defaults = {0};
    if (options == NULL)
        options = &defaults;
    if (name == NULL || strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0)
        return kernels_cpu_create(options, out, err);
    if (strcmp(name, "cuda") == 0)
        return err_set(err, STATUS_UNSUPPORTED,
                       "this build has no backend 'cuda'; use --backend cpu");
    return err_set(err, STATUS_INVALID, "unknown backend '%s'; use auto or cpu", name);
}

void kernels_destroy(struct kernels *k)
{
    if (k != NULL)
        k->ops->destroy(k);
}

const char *kernels_name(const struct kernels *k)
{
    return k->ops->name;
}

const char *kernels_isa(const struct kernels *k)
{
    return k->isa;
}

int kernels_threads(const struct kernels *k)
{
    return k->n_threads;
}

enum status kernels_stream_create(struct kernels *k, const char *name, struct kernels_stream **out,
                                  struct err *err)
{
    return k->ops->stream_create(k, name, out, err);
}

void kernels_stream_destroy(struct kernels_stream *s)
{
    if (s != NULL)
        s->kernels->ops->stream_destroy(s);
}

enum status kernels_stream_sync(struct kernels_stream *s, struct err *err)
{
    return s->kernels->ops->stream_sync(s, err);
}

/* ---- memory -----------------------------------------------------------------------------------
 */

enum status kernels_alloc(struct kernels *k, size_t len_bytes, bool zero,
                          struct kernels_buffer *out, struct err *err)
{
    if (len_bytes == 0)
        return err_set(err, STATUS_INVALID, "a buffer of 0 bytes was asked for");
    return k->ops->alloc(k, len_bytes, zero, out, err);
}

void kernels_free(struct kernels *k, struct kernels_buffer *buffer)
{
    if (buffer->data != NULL)
        k->ops->free(k, buffer);
    *buffer = (struct kernels_buffer){0};
}

enum status kernels_upload(struct kernels_stream *s, void *device, const void *host,
                           size_t len_bytes, struct err *err)
{
    return len_bytes == 0 ? STATUS_OK : s->kernels->ops->upload(s, device, host, len_bytes, err);
}

enum status kernels_download(struct kernels_stream *s, void *host, const void *device,
                             size_t len_bytes, struct err *err)
{
    return len_bytes == 0 ? STATUS_OK : s->kernels->ops->download(s, host, device, len_bytes, err);
}

enum status kernels_weight_load(struct kernels *k, const struct weight *w,
                                struct kernels_weight *out, struct err *err)
{
    if (w->data == NULL || w->rows <= 0 || w->cols <= 0)
        return err_set(err, STATUS_INVALID, "weight [%d, %d] at %p has no elements", w->rows,
                       w->cols, w->data);
    return k->ops->weight_load(k, w, out, err);
}

void kernels_weight_unload(struct kernels *k, struct kernels_weight *w)
{
    if (w->data != NULL)
        k->ops->weight_unload(k, w);
    *w = (struct kernels_weight){0};
}

enum status kernels_kv_create(struct kernels *k, enum dtype dtype, int n_blocks, int block_size,
                              int n_layers, int n_kv_heads, int head_dim, struct kernels_kv *out,
                              struct err *err)
{
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        return err_set(err, STATUS_INVALID, "KV dtype %s: use f32 or bf16", dtype_name(dtype));
    if (n_blocks <= 0 || block_size <= 0 || n_layers <= 0 || n_kv_heads <= 0 || head_dim <= 0 ||
        head_dim % 2 != 0)
        return err_set(
            err, STATUS_INVALID,
            "KV pool of %d blocks of %d positions, %d layers, %d kv heads, head_dim %d: all "
            "must be positive and head_dim even",
            n_blocks, block_size, n_layers, n_kv_heads, head_dim);
    size_t len = 2 * dtype_bytes(dtype);
    const int factors[] = {n_blocks, block_size, n_layers, n_kv_heads, head_dim};
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++)
        if (__builtin_mul_overflow(len, (size_t)factors[i], &len))
            return err_set(err, STATUS_NO_MEMORY,
                           "a KV pool of %d blocks exceeds the address space", n_blocks);
    len = k->ops->kv_bytes(dtype, n_blocks, block_size, n_layers, n_kv_heads, head_dim);
    struct kernels_kv kv = {.dtype = dtype,
                            .n_blocks = n_blocks,
                            .block_size = block_size,
                            .n_layers = n_layers,
                            .n_kv_heads = n_kv_heads,
                            .head_dim = head_dim};
    enum status st = k->ops->alloc(k, len, true, &kv.memory, err);
    if (st == STATUS_OK)
        *out = kv;
    return st;
}

void kernels_kv_destroy(struct kernels *k, struct kernels_kv *kv)
{
    kernels_free(k, &kv->memory);
    *kv = (struct kernels_kv){0};
}

/* ---- checks -----------------------------------------------------------------------------------
 */

static enum status check_count(const char *what, int n, struct err *err)
{
    return n >= 0 ? STATUS_OK : err_set(err, STATUS_INVALID, "%s: %d rows", what, n);
}

static enum status check_vector(const char *what, const struct kernels_weight *w, int d,
                                struct err *err)
{
    if (w->data != NULL && w->rows == 1 && w->cols == d)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s: weight is [%d, %d]%s, expected [1, %d]", what, w->rows,
                   w->cols, w->data == NULL ? " without data" : "", d);
}

static enum status check_indices(const char *what, const int32_t *index, int n, struct err *err)
{
    for (int i = 0; i < n; i++)
        if (index[i] < 0)
            return err_set(err, STATUS_INVALID, "%s: index %d of row %d is negative", what,
                           (int)index[i], i);
    return STATUS_OK;
}

/* Segments cover the rows in order; with kv given, their blocks hold their positions and exist. */
static enum status check_batch(const char *what, const struct kernels_batch *batch,
                               const struct kernels_kv *kv, struct err *err)
{
    int row = 0;
    for (int i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *g = &batch->segments[i];
        if (g->first_row != row || g->n_rows <= 0 || g->n_rows > batch->n_rows - row ||
            g->first_position < 0 || g->first_position > INT32_MAX - g->n_rows)
            return err_set(
                err, STATUS_INVALID,
                "%s: segment %d has rows [%d, +%d) and first position %d; row %d of %d comes "
                "next",
                what, i, (int)g->first_row, (int)g->n_rows, (int)g->first_position, row,
                (int)batch->n_rows);
        row += g->n_rows;
        if (kv == NULL)
            continue;
        int64_t end = (int64_t)g->first_position + g->n_rows;
        if (g->first_block < 0 || g->n_blocks < 0 || (int64_t)g->n_blocks * kv->block_size < end)
            return err_set(err, STATUS_INVALID,
                           "%s: segment %d has %d blocks of %d positions from entry %d, but %lld "
                           "positions",
                           what, i, (int)g->n_blocks, kv->block_size, (int)g->first_block,
                           (long long)end);
        for (int b = 0; b < g->n_blocks; b++) {
            int32_t block = batch->block_table[g->first_block + b];
            if (block < 0 || block >= kv->n_blocks)
                return err_set(err, STATUS_INVALID, "%s: segment %d names KV block %d of %d", what,
                               i, (int)block, kv->n_blocks);
        }
    }
    if (row != batch->n_rows)
        return err_set(err, STATUS_INVALID, "%s: segments cover %d of %d rows", what, row,
                       (int)batch->n_rows);
    return STATUS_OK;
}

static enum status check_kv(const char *what, const struct kernels_kv *kv, int n_heads, int layer,
                            struct err *err)
{
    if (n_heads <= 0 || n_heads % kv->n_kv_heads != 0)
        return err_set(err, STATUS_INVALID, "%s: %d query heads over %d kv heads", what, n_heads,
                       kv->n_kv_heads);
    if (layer < 0 || layer >= kv->n_layers)
        return err_set(err, STATUS_INVALID, "%s: layer %d of %d", what, layer, kv->n_layers);
    return STATUS_OK;
}

/* ---- operations -------------------------------------------------------------------------------
 */

enum status kernels_load_rows(struct kernels_stream *s, float *x, const float *store,
                              const int32_t *slots, const struct kernels_weight *embed,
                              const int32_t *ids, int n, struct err *err)
{
    enum status st = check_count("load_rows", n, err);
    for (int i = 0; st == STATUS_OK && i < n; i++) {
        if (ids[i] >= embed->rows)
            st = err_set(err, STATUS_INVALID,
                         "load_rows: id %d of row %d, but the table has %d rows", (int)ids[i], i,
                         embed->rows);
        else if (ids[i] < 0 && (store == NULL || slots == NULL || slots[i] < 0))
            st = err_set(err, STATUS_INVALID, "load_rows: row %d has neither an id nor a slot", i);
    }
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->load_rows(s, x, store, slots, embed, ids, n, err);
}

enum status kernels_store_rows(struct kernels_stream *s, float *store, const int32_t *slots,
                               const float *x, int n, int d, struct err *err)
{
    enum status st = check_count("store_rows", n, err);
    if (st == STATUS_OK)
        st = check_indices("store_rows", slots, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->store_rows(s, store, slots, x, n, d, err);
}

enum status kernels_gather_rows(struct kernels_stream *s, float *y, const float *x,
                                const int32_t *rows, int n_selected, int d, struct err *err)
{
    enum status st = check_count("gather_rows", n_selected, err);
    if (st == STATUS_OK)
        st = check_indices("gather_rows", rows, n_selected, err);
    if (st != STATUS_OK || n_selected == 0)
        return st;
    return s->kernels->ops->gather_rows(s, y, x, rows, n_selected, d, err);
}

enum status kernels_linear(struct kernels_stream *s, float *const *y, const float *x,
                           const struct kernels_weight *const *w, int n_jobs, int n,
                           struct err *err)
{
    enum status st = check_count("linear", n, err);
    if (st != STATUS_OK)
        return st;
    if (n_jobs < 1 || n_jobs > KERNELS_LINEAR_MAX_JOBS)
        return err_set(err, STATUS_INVALID, "linear: %d weights in one call, at most %d", n_jobs,
                       KERNELS_LINEAR_MAX_JOBS);
    for (int j = 0; j < n_jobs; j++)
        if (w[j]->data == NULL || w[j]->rows <= 0 || w[j]->cols <= 0 || w[j]->cols != w[0]->cols)
            return err_set(err, STATUS_INVALID,
                           "linear: weight %d is [%d, %d]%s, but the input has %d columns", j,
                           w[j]->rows, w[j]->cols, w[j]->data == NULL ? " without data" : "",
                           w[0]->cols);
    return n == 0 ? STATUS_OK : s->kernels->ops->linear(s, y, x, w, n_jobs, n, err);
}

enum status kernels_rms_norm(struct kernels_stream *s, float *y, const float *x,
                             const struct kernels_weight *gain, int n, float eps, struct err *err)
{
    enum status st = check_count("rms_norm", n, err);
    if (st == STATUS_OK)
        st = check_vector("rms_norm", gain, gain->cols, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->rms_norm(s, y, x, gain, n, eps, err);
}

enum status kernels_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                                  const struct kernels_weight *gain_branch, float *y,
                                  const struct kernels_weight *gain_next, int n, int d, float eps,
                                  struct err *err)
{
    enum status st = check_count("residual_norm", n, err);
    if (st == STATUS_OK && gain_branch != NULL)
        st = check_vector("residual_norm: branch gain", gain_branch, d, err);
    if (st == STATUS_OK && y != NULL) {
        if (gain_next == NULL)
            st = err_set(err, STATUS_INVALID, "residual_norm: a normed output needs a gain");
        else
            st = check_vector("residual_norm: next gain", gain_next, d, err);
    }
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->residual_norm(s, h, branch, gain_branch, y, gain_next, n, d, eps, err);
}

enum status kernels_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                                const struct kernels_batch *batch, int head_dim, double theta,
                                struct err *err)
{
    enum status st = check_batch("rope_tables", batch, NULL, err);
    if (st != STATUS_OK)
        return st;
    if (head_dim <= 0 || head_dim % 2 != 0 || !(theta > 0.0))
        return err_set(err, STATUS_INVALID, "rope_tables: head_dim %d, theta %g", head_dim, theta);
    if (batch->n_rows == 0)
        return STATUS_OK;
    return s->kernels->ops->rope_tables(s, cos_table, sin_table, batch, head_dim, theta, err);
}

enum status kernels_rope_append(struct kernels_stream *s, float *q, float *k_rows,
                                const float *v_rows, int n_heads, const float *cos_table,
                                const float *sin_table, const struct kernels_batch *batch,
                                const struct kernels_kv *kv, int layer, struct err *err)
{
    enum status st = check_kv("rope_append", kv, n_heads, layer, err);
    if (st == STATUS_OK)
        st = check_batch("rope_append", batch, kv, err);
    if (st != STATUS_OK || batch->n_rows == 0)
        return st;
    return s->kernels->ops->rope_append(s, q, k_rows, v_rows, n_heads, cos_table, sin_table, batch,
                                        kv, layer, err);
}

enum status kernels_attention(struct kernels_stream *s, float *out, const float *q, int n_heads,
                              const struct kernels_batch *batch, const struct kernels_kv *kv,
                              int layer, struct err *err)
{
    enum status st = check_kv("attention", kv, n_heads, layer, err);
    if (st == STATUS_OK)
        st = check_batch("attention", batch, kv, err);
    if (st != STATUS_OK || batch->n_rows == 0)
        return st;
    return s->kernels->ops->attention(s, out, q, n_heads, batch, kv, layer, err);
}

enum status kernels_swiglu(struct kernels_stream *s, float *y, const float *gate, const float *up,
                           int n, int f, struct err *err)
{
    if (n < 0 || f <= 0)
        return err_set(err, STATUS_INVALID, "swiglu: [%d, %d]", n, f);
    return n == 0 ? STATUS_OK : s->kernels->ops->swiglu(s, y, gate, up, n, f, err);
}

enum status kernels_gate(struct kernels_stream *s, float *lambda, const float *x,
                         const int32_t *rows, int n_selected, const struct kernels_weight *w,
                         const struct kernels_weight *bias, struct err *err)
{
    enum status st = check_count("gate", n_selected, err);
    if (st == STATUS_OK)
        st = check_indices("gate", rows, n_selected, err);
    if (st == STATUS_OK)
        st = check_vector("gate", w, w->cols, err);
    if (st == STATUS_OK)
        st = check_vector("gate: bias", bias, 1, err);
    if (st != STATUS_OK || n_selected == 0)
        return st;
    return s->kernels->ops->gate(s, lambda, x, rows, n_selected, w, bias, err);
}

enum status kernels_top_k(struct kernels_stream *s, int32_t *ids, float *values,
                          const float *logits, int n, int vocab_size, int top, struct err *err)
{
    if (n < 0 || top < 1 || top > vocab_size)
        return err_set(err, STATUS_INVALID, "top_k: top %d of %d entries, %d rows", top, vocab_size,
                       n);
    return n == 0 ? STATUS_OK
                  : s->kernels->ops->top_k(s, ids, values, logits, n, vocab_size, top, err);
}

enum status kernels_measure_machine(struct kernels *k, struct kernels_machine *out, struct err *err)
{
    return k->ops->measure(k, out, err);
}
