/* The front end's objects: backends by name, streams, memory and weights. */
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
    if (name == NULL)
        name = "auto";
    if (strcmp(name, "cpu") == 0)
        return kernels_cpu_create(options, out, err);
    if (strcmp(name, "cuda") == 0)
        return kernels_cuda_create(options, out, err);
    if (strcmp(name, "auto") != 0)
        return err_set(err, STATUS_INVALID, "unknown backend '%s'; use auto, cpu or cuda", name);
    /* A device that cannot be used (another process has it, too old) does not stop "auto". */
    if (kernels_cuda_devices() > 0 && kernels_cuda_create(options, out, NULL) == STATUS_OK)
        return STATUS_OK;
    return kernels_cpu_create(options, out, err);
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

enum dtype kernels_activation_dtype(const struct kernels *k)
{
    return k->activation;
}

bool kernels_has_finish(const struct kernels *k)
{
    return k->ops->finish != NULL;
}

enum status kernels_device_memory(struct kernels *k, struct kernels_memory *out, struct err *err)
{
    return k->ops->device_memory(k, out, err);
}

enum status kernels_measure_machine(struct kernels *k, struct kernels_machine *out, struct err *err)
{
    return k->ops->measure(k, out, err);
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

enum status kernels_fill(struct kernels_stream *s, void *device, unsigned char value,
                         size_t len_bytes, struct err *err)
{
    return len_bytes == 0 ? STATUS_OK : s->kernels->ops->fill(s, device, value, len_bytes, err);
}

enum status kernels_host_alloc(struct kernels *k, size_t len_bytes, void **out, struct err *err)
{
    if (len_bytes == 0)
        return err_set(err, STATUS_INVALID, "host memory of 0 bytes was asked for");
    return k->ops->host_alloc(k, len_bytes, out, err);
}

void kernels_host_free(struct kernels *k, void *host)
{
    if (host != NULL)
        k->ops->host_free(k, host);
}

static enum status check_weight(const struct weight *w, struct err *err)
{
    if (w->data != NULL && w->rows > 0 && w->cols > 0)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "weight [%d, %d] at %p has no elements", w->rows, w->cols,
                   w->data);
}

enum status kernels_weight_load(struct kernels *k, const struct weight *w,
                                struct kernels_weight *out, struct err *err)
{
    enum status st = check_weight(w, err);
    return st == STATUS_OK ? k->ops->weight_load(k, w, out, err) : st;
}

enum status kernels_weight_load_joined(struct kernels *k, const struct weight *const *w, int n,
                                       struct kernels_weight *out, struct err *err)
{
    if (n < 1 || n > KERNELS_LINEAR_MAX_JOBS)
        return err_set(err, STATUS_INVALID, "%d joined weights: use 1 to %d", n,
                       KERNELS_LINEAR_MAX_JOBS);
    enum status st = STATUS_OK;
    for (int j = 0; j < n && st == STATUS_OK; j++) {
        st = check_weight(w[j], err);
        if (st == STATUS_OK && w[j]->cols != w[0]->cols)
            st = err_set(err, STATUS_INVALID, "joined weight %d has %d columns, the first %d", j,
                         w[j]->cols, w[0]->cols);
    }
    return st == STATUS_OK ? k->ops->weight_load_joined(k, w, n, out, err) : st;
}

enum status kernels_weights_ready(struct kernels *k, struct err *err)
{
    return k->ops->weights_ready(k, err);
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
    if (dtype == DTYPE_F32 && k->activation == DTYPE_BF16)
        return err_set(err, STATUS_UNSUPPORTED, "KV dtype f32 on backend %s: use --kv-dtype bf16",
                       k->ops->name);
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
