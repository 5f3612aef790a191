/* The front end's operations: checks the arguments of each, then calls the backend's table. */
#include "kernels/kernels.h"
#include "kernels/kernels_ops.h"

/* ---- checks -----------------------------------------------------------------------------------
 */

static enum status check_count(const char *what, int n, struct err *err)
{
    return n >= 0 ? STATUS_OK : err_set(err, STATUS_INVALID, "%s: %d rows", what, n);
}

/* n rows for the bound batch: all of its own, and no more than there is room for. */
static enum status check_bound(const char *what, const struct kernels_stream *s, int n,
                               struct err *err)
{
    if (s->batch == NULL)
        return err_set(err, STATUS_INVALID, "%s: no batch is bound to stream '%s'", what, s->name);
    if (n < s->batch->n_rows || n > s->limits.n_rows)
        return err_set(err, STATUS_INVALID, "%s: %d rows for a batch of %d; %d are reserved", what,
                       n, (int)s->batch->n_rows, (int)s->limits.n_rows);
    return STATUS_OK;
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

static enum status check_dtype(const char *what, const struct kernels_stream *s, enum dtype dtype,
                               struct err *err)
{
    if (dtype == DTYPE_F32 || dtype == s->kernels->activation)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s: an output of %s; use f32 or the backend's %s", what,
                   dtype_name(dtype), dtype_name(s->kernels->activation));
}

/* The batch was bound to this pool, so its blocks have been checked against it. */
static enum status check_kv(const char *what, const struct kernels_stream *s,
                            const struct kernels_kv *kv, int n_heads, int layer, int n,
                            struct err *err)
{
    enum status st = check_bound(what, s, n, err);
    if (st != STATUS_OK)
        return st;
    if (s->kv != kv)
        return err_set(err, STATUS_INVALID, "%s: the batch was bound to another KV pool", what);
    if (n_heads <= 0 || n_heads % kv->n_kv_heads != 0 || n_heads != s->limits.n_heads)
        return err_set(err, STATUS_INVALID, "%s: %d query heads over %d kv heads, reserved for %d",
                       what, n_heads, kv->n_kv_heads, (int)s->limits.n_heads);
    if (layer < 0 || layer >= kv->n_layers)
        return err_set(err, STATUS_INVALID, "%s: layer %d of %d", what, layer, kv->n_layers);
    return STATUS_OK;
}

/* ---- rows -------------------------------------------------------------------------------------
 */

enum status kernels_load_rows(struct kernels_stream *s, float *x, const float *store,
                              const struct kernels_weight *embed, int n, struct err *err)
{
    enum status st = check_bound("load_rows", s, n, err);
    if (st != STATUS_OK)
        return st;
    if (s->batch->ids == NULL || (s->batch->slots != NULL && store == NULL))
        return err_set(err, STATUS_INVALID, "load_rows: the batch was bound without %s",
                       s->batch->ids == NULL ? "ids" : "a store");
    if (embed->data == NULL || embed->rows < s->limits.vocab_size || embed->cols <= 0)
        return err_set(err, STATUS_INVALID,
                       "load_rows: the table is [%d, %d]%s, but there are %d ids", embed->rows,
                       embed->cols, embed->data == NULL ? " without data" : "",
                       (int)s->limits.vocab_size);
    return n == 0 ? STATUS_OK : s->kernels->ops->load_rows(s, x, store, embed, n, err);
}

enum status kernels_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                               struct err *err)
{
    enum status st = check_bound("store_rows", s, n, err);
    if (st != STATUS_OK)
        return st;
    if (s->batch->slots == NULL || d <= 0)
        return err_set(err, STATUS_INVALID, "store_rows: [%d, %d]%s", n, d,
                       s->batch->slots == NULL ? ", and the batch was bound without slots" : "");
    return n == 0 ? STATUS_OK : s->kernels->ops->store_rows(s, store, x, n, d, err);
}

enum status kernels_gather_rows(struct kernels_stream *s, void *y, const float *x,
                                const int32_t *rows, int n_selected, int d, struct err *err)
{
    enum status st = check_count("gather_rows", n_selected, err);
    if (st == STATUS_OK)
        st = check_indices("gather_rows", rows, n_selected, err);
    if (st != STATUS_OK || n_selected == 0)
        return st;
    return s->kernels->ops->gather_rows(s, y, x, rows, n_selected, d, err);
}

enum status kernels_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                                 const int32_t *slots, int n, int d, struct err *err)
{
    enum status st = check_count("rows_to_host", n, err);
    if (st == STATUS_OK)
        st = check_indices("rows_to_host", slots, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->rows_to_host(s, host, store, slots, n, d, err);
}

enum status kernels_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                                   const void *const *host, int n, int d, struct err *err)
{
    enum status st = check_count("rows_from_host", n, err);
    if (st == STATUS_OK)
        st = check_indices("rows_from_host", slots, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->rows_from_host(s, store, slots, host, n, d, err);
}

/* ---- layers -----------------------------------------------------------------------------------
 */

enum status kernels_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                           const struct kernels_weight *const *w, int n_jobs, int n,
                           struct err *err)
{
    enum status st = check_count("linear", n, err);
    if (st == STATUS_OK)
        st = check_dtype("linear", s, y_dtype, err);
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
    return n == 0 ? STATUS_OK : s->kernels->ops->linear(s, y, y_dtype, x, w, n_jobs, n, err);
}

enum status kernels_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                             const struct kernels_weight *gain, int n, float eps, struct err *err)
{
    enum status st = check_count("rms_norm", n, err);
    if (st == STATUS_OK)
        st = check_dtype("rms_norm", s, y_dtype, err);
    if (st == STATUS_OK)
        st = check_vector("rms_norm", gain, gain->cols, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->rms_norm(s, y, y_dtype, x, gain, n, eps, err);
}

enum status kernels_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                                  const struct kernels_weight *gain_branch, void *y,
                                  enum dtype y_dtype, const struct kernels_weight *gain_next, int n,
                                  int d, float eps, struct err *err)
{
    enum status st = check_count("residual_norm", n, err);
    if (st == STATUS_OK && gain_branch != NULL)
        st = check_vector("residual_norm: branch gain", gain_branch, d, err);
    if (st == STATUS_OK && y != NULL) {
        st = check_dtype("residual_norm", s, y_dtype, err);
        if (st == STATUS_OK && gain_next == NULL)
            st = err_set(err, STATUS_INVALID, "residual_norm: a normed output needs a gain");
        else if (st == STATUS_OK)
            st = check_vector("residual_norm: next gain", gain_next, d, err);
    }
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->residual_norm(s, h, branch, gain_branch, y, y_dtype, gain_next, n, d,
                                          eps, err);
}

enum status kernels_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                                int head_dim, double theta, int n, struct err *err)
{
    enum status st = check_bound("rope_tables", s, n, err);
    if (st != STATUS_OK)
        return st;
    if (head_dim <= 0 || head_dim % 2 != 0 || !(theta > 0.0))
        return err_set(err, STATUS_INVALID, "rope_tables: head_dim %d, theta %g", head_dim, theta);
    if (n == 0)
        return STATUS_OK;
    return s->kernels->ops->rope_tables(s, cos_table, sin_table, head_dim, theta, n, err);
}

enum status kernels_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                                const float *cos_table, const float *sin_table,
                                const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    enum status st = check_kv("rope_append", s, kv, n_heads, layer, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->rope_append(s, qkv, n_heads, cos_table, sin_table, kv, layer, n, err);
}

enum status kernels_attention(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                              const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    enum status st = check_kv("attention", s, kv, n_heads, layer, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    return s->kernels->ops->attention(s, out, qkv, n_heads, kv, layer, n, err);
}

enum status kernels_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                           struct err *err)
{
    if (n < 0 || f <= 0 || y == x)
        return err_set(err, STATUS_INVALID, "swiglu: [%d, %d]%s", n, f, y == x ? " in place" : "");
    return n == 0 ? STATUS_OK : s->kernels->ops->swiglu(s, y, x, n, f, err);
}

/* ---- exits and tokens -------------------------------------------------------------------------
 */

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

enum status kernels_finish(struct kernels_stream *s, const struct kernels_finish *f,
                           struct err *err)
{
    if (s->kernels->ops->finish == NULL)
        return err_set(err, STATUS_UNSUPPORTED, "finish: backend '%s' has none",
                       s->kernels->ops->name);
    if (s->batch == NULL)
        return err_set(err, STATUS_INVALID, "finish: no batch is bound to stream '%s'", s->name);
    if (f->head->data == NULL || f->head->rows != s->limits.vocab_size || f->max_heads < 0)
        return err_set(err, STATUS_INVALID,
                       "finish: head [%d, %d]%s for a vocabulary of %d, at most %d rows",
                       f->head->rows, f->head->cols, f->head->data == NULL ? " without data" : "",
                       (int)s->limits.vocab_size, f->max_heads);
    enum status st = STATUS_OK;
    if (f->gate != NULL)
        st = check_vector("finish: gate", f->gate, f->head->cols, err);
    if (st == STATUS_OK && f->gate != NULL && f->bias != NULL)
        st = check_vector("finish: bias", f->bias, 1, err);
    if (st == STATUS_OK && f->gate != NULL && f->bias == NULL)
        st = err_set(err, STATUS_INVALID, "finish: a gate without its bias");
    return st == STATUS_OK ? s->kernels->ops->finish(s, f, err) : st;
}
