/* The row-wise operations of the CUDA backend: arguments to launches (cuda_rows.h). */
#include "kernels/cuda_rows.h"

#include "kernels/cuda_backend.h"

static enum status rows_check(cudaError_t code, const char *op, int n, int d, struct err *err)
{
    if (code == cudaSuccess)
        return STATUS_OK;
    enum status st = cuda_check(code, op, err);
    err_wrap(err, "[%d, %d]", n, d);
    return st;
}

/* fp32 or the activation type, as *is_f32. */
static enum status rows_output(const char *op, enum dtype dtype, bool *is_f32, struct err *err)
{
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16)
        return err_set(err, STATUS_INVALID, "%s: output of %s; use f32 or bf16", op,
                       dtype_name(dtype));
    *is_f32 = dtype == DTYPE_F32;
    return STATUS_OK;
}

static enum status rows_gain(const char *op, const struct kernels_weight *w, const float **out,
                             struct err *err)
{
    if (w->dtype != DTYPE_F32)
        return err_set(err, STATUS_INVALID, "%s: a gain of %s; vectors are f32 on the device", op,
                       dtype_name(w->dtype));
    *out = w->data;
    return STATUS_OK;
}

/* ---- the store ----------------------------------------------------------------------------------
 */

enum status cuda_load_rows(struct kernels_stream *s, float *x, const float *store,
                           const struct kernels_weight *embed, int n, struct err *err)
{
    if (embed->dtype != DTYPE_F32 && embed->dtype != DTYPE_BF16)
        return err_set(err, STATUS_INVALID, "load_rows: embedding of %s; use f32 or bf16",
                       dtype_name(embed->dtype));
    struct cuda_stream *cuda = cuda_stream_of(s);
    return rows_check(cuda_rows_load(cuda->stream, cuda->device_batch, x, store, embed->data,
                                     embed->dtype == DTYPE_F32, n, embed->cols),
                      "load_rows", n, embed->cols, err);
}

enum status cuda_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                            struct err *err)
{
    struct cuda_stream *cuda = cuda_stream_of(s);
    return rows_check(cuda_rows_store(cuda->stream, cuda->device_batch, store, x, n, d),
                      "store_rows", n, d, err);
}

enum status cuda_gather_rows(struct kernels_stream *s, void *y, const float *x, const int32_t *rows,
                             int n_selected, int d, struct err *err)
{
    struct cuda_stream *cuda = cuda_stream_of(s);
    for (int first = 0; first < n_selected; first += CUDA_ROWS_MAX_GATHERED) {
        const int left = n_selected - first;
        const int n = left < CUDA_ROWS_MAX_GATHERED ? left : CUDA_ROWS_MAX_GATHERED;
        struct cuda_rows_chosen chosen = {0};
        for (int i = 0; i < n; i++)
            chosen.rows[i] = rows[first + i];
        cudaError_t code = cuda_rows_gather(cuda->stream, (uint16_t *)y + (size_t)first * (size_t)d,
                                            x, &chosen, n, d);
        if (code != cudaSuccess)
            return rows_check(code, "gather_rows", n, d, err);
    }
    return STATUS_OK;
}

/* ---- rows to and from the host ------------------------------------------------------------------
 *
 * Pinned memory is reached by a kernel, a list of rows a launch. A row elsewhere goes by a copy of
 * its own, which the driver takes through its pinned staging: slower, and right all the same. */

/* The device's address of len_bytes at host, or NULL where it has none. Memory of the device itself
 * (rows that MPI takes from there) is its own address. */
static void *rows_device_address(const void *host, size_t len_bytes)
{
    struct cudaPointerAttributes first = {0}, last = {0};
    const char *end = (const char *)host + len_bytes - 1;
    if (cudaPointerGetAttributes(&first, host) != cudaSuccess ||
        cudaPointerGetAttributes(&last, end) != cudaSuccess) {
        (void)cudaGetLastError(); /* older drivers call ordinary memory an error */
        return NULL;
    }
    const bool is_reached = first.type == cudaMemoryTypeHost || first.type == cudaMemoryTypeDevice;
    if (!is_reached || last.type != first.type || first.devicePointer == NULL ||
        (char *)last.devicePointer - (char *)first.devicePointer != (ptrdiff_t)(len_bytes - 1))
        return NULL;
    return first.devicePointer;
}

struct rows_transfer {
    struct cuda_stream *cuda;
    const char *op;
    bool is_out;
    float *store;
    int d;
    struct cuda_rows_list list;
    int n_listed;
};

static enum status rows_flush(struct rows_transfer *t, struct err *err)
{
    if (t->n_listed == 0)
        return STATUS_OK;
    cudaError_t code =
        t->is_out ? cuda_rows_copy_out(t->cuda->stream, &t->list, t->store, t->n_listed, t->d)
                  : cuda_rows_copy_in(t->cuda->stream, &t->list, t->store, t->n_listed, t->d);
    const int n = t->n_listed;
    t->n_listed = 0;
    return rows_check(code, t->op, n, t->d, err);
}

static enum status rows_copy_one(struct rows_transfer *t, void *host, int32_t slot, struct err *err)
{
    float *row = t->store + (size_t)slot * (size_t)t->d;
    const size_t len = (size_t)t->d * sizeof *row;
    return rows_check(
        t->is_out ? cudaMemcpyAsync(host, row, len, cudaMemcpyDeviceToHost, t->cuda->stream)
                  : cudaMemcpyAsync(row, host, len, cudaMemcpyHostToDevice, t->cuda->stream),
        t->op, 1, t->d, err);
}

/* Rows one after the other in host memory (a message) are one piece of memory, asked about once. */
static int rows_run_length(void *const *host, int n, size_t len_bytes)
{
    int run = 1;
    while (run < n && (char *)host[run] == (char *)host[run - 1] + len_bytes)
        run++;
    return run;
}

static enum status rows_transfer(struct rows_transfer *t, void *const *host, const int32_t *slots,
                                 int n, struct err *err)
{
    const size_t len = (size_t)t->d * sizeof(float);
    enum status st = cuda_use(cuda_kernels_of(&t->cuda->base), err);
    for (int i = 0; i < n && st == STATUS_OK;) {
        const int run = rows_run_length(host + i, n - i, len);
        char *address = rows_device_address(host[i], (size_t)run * len);
        for (int r = 0; r < run && st == STATUS_OK; r++, i++) {
            if (address == NULL) {
                st = rows_flush(t, err); /* a slot named twice keeps its order */
                if (st == STATUS_OK)
                    st = rows_copy_one(t, host[i], slots[i], err);
                continue;
            }
            t->list.host[t->n_listed] = (float *)(void *)(address + (size_t)r * len);
            t->list.slots[t->n_listed++] = slots[i];
            if (t->n_listed == CUDA_ROWS_MAX_LISTED)
                st = rows_flush(t, err);
        }
    }
    return st == STATUS_OK ? rows_flush(t, err) : st;
}

enum status cuda_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                              const int32_t *slots, int n, int d, struct err *err)
{
    struct rows_transfer t = {.cuda = cuda_stream_of(s),
                              .op = "rows_to_host",
                              .is_out = true,
                              .store = (float *)store, /* only read */
                              .d = d};
    return rows_transfer(&t, host, slots, n, err);
}

enum status cuda_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                                const void *const *host, int n, int d, struct err *err)
{
    struct rows_transfer t = {
        .cuda = cuda_stream_of(s), .op = "rows_from_host", .store = store, .d = d};
    return rows_transfer(&t, (void *const *)host, slots, n, err);
}

/* ---- norms --------------------------------------------------------------------------------------
 */

static enum status rows_norm_width(const char *op, int d, struct err *err)
{
    return d <= CUDA_ROWS_MAX_NORM
               ? STATUS_OK
               : err_set(err, STATUS_UNSUPPORTED,
                         "%s: rows of %d numbers; the backend 'cuda' norms rows of at most %d", op,
                         d, CUDA_ROWS_MAX_NORM);
}

enum status cuda_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                          const struct kernels_weight *gain, int n, float eps, struct err *err)
{
    bool is_f32 = false;
    const float *g = NULL;
    enum status st = rows_output("rms_norm", y_dtype, &is_f32, err);
    if (st == STATUS_OK)
        st = rows_gain("rms_norm", gain, &g, err);
    if (st == STATUS_OK)
        st = rows_norm_width("rms_norm", gain->cols, err);
    if (st != STATUS_OK)
        return st;
    return rows_check(
        cuda_rows_norm(cuda_stream_of(s)->stream, y, is_f32, x, g, n, gain->cols, eps), "rms_norm",
        n, gain->cols, err);
}

enum status cuda_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                               const struct kernels_weight *gain_branch, void *y,
                               enum dtype y_dtype, const struct kernels_weight *gain_next, int n,
                               int d, float eps, struct err *err)
{
    bool is_f32 = false;
    const float *g_branch = NULL, *g_next = NULL;
    enum status st = rows_norm_width("residual_norm", d, err);
    if (st == STATUS_OK && gain_branch != NULL)
        st = rows_gain("residual_norm", gain_branch, &g_branch, err);
    if (st == STATUS_OK && y != NULL)
        st = rows_gain("residual_norm", gain_next, &g_next, err);
    if (st == STATUS_OK && y != NULL)
        st = rows_output("residual_norm", y_dtype, &is_f32, err);
    if (st != STATUS_OK)
        return st;
    return rows_check(cuda_rows_residual(cuda_stream_of(s)->stream, h, branch, g_branch, y, is_f32,
                                         g_next, n, d, eps),
                      "residual_norm", n, d, err);
}

/* ---- rope, swiglu -------------------------------------------------------------------------------
 */

enum status cuda_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                             int head_dim, double theta, int n, struct err *err)
{
    struct cuda_stream *cuda = cuda_stream_of(s);
    return rows_check(cuda_rows_rope_tables(cuda->stream, cuda->device_batch, cos_table, sin_table,
                                            head_dim, theta, n),
                      "rope_tables", n, head_dim, err);
}

enum status cuda_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                             const float *cos_table, const float *sin_table,
                             const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    if (kv->dtype != DTYPE_BF16)
        return err_set(
            err, STATUS_UNSUPPORTED,
            "rope_append: a KV pool of %s; the backend 'cuda' keeps bf16: use --kv-dtype "
            "bf16",
            dtype_name(kv->dtype));
    struct cuda_stream *cuda = cuda_stream_of(s);
    return rows_check(cuda_rows_rope_append(cuda->stream, cuda->device_batch, qkv, n_heads,
                                            cos_table, sin_table, kv, layer, n),
                      "rope_append", n, kv->head_dim, err);
}

enum status cuda_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                        struct err *err)
{
    return rows_check(cuda_rows_swiglu(cuda_stream_of(s)->stream, y, x, n, f), "swiglu", n, f, err);
}

size_t cuda_kv_bytes(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                     int head_dim)
{
    return 2 * dtype_bytes(dtype) * (size_t)n_blocks * (size_t)block_size * (size_t)n_layers *
           (size_t)n_kv_heads * (size_t)head_dim;
}
