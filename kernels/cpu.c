/* The CPU backend's object: level, pool, memory, and the table that kernels.c calls through. */
#include "kernels/cpu_backend.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct cpu_backend *cpu_backend_of(struct kernels_stream *s)
{
    return (struct cpu_backend *)s->kernels;
}

enum status cpu_backend_gain(struct cpu_backend *cpu, int slot, const struct kernels_weight *w,
                             const float **out, struct err *err)
{
    struct cpu_scratch *scratch = &cpu->gains[slot];
    enum status st = cpu_scratch_grow(scratch, (size_t)w->cols * sizeof(float), "gain", err);
    if (st != STATUS_OK)
        return st;
    cpu->level->widen(scratch->data, w->data, w->dtype, (size_t)w->cols);
    *out = scratch->data;
    return STATUS_OK;
}

static void cpu_destroy(struct kernels *k)
{
    struct cpu_backend *cpu = (struct cpu_backend *)k;
    cpu_pool_destroy(cpu->pool);
    cpu_scratch_free(&cpu->packed);
    cpu_scratch_free(&cpu->gains[0]);
    cpu_scratch_free(&cpu->gains[1]);
    for (int t = 0; cpu->threads != NULL && t < k->n_threads; t++)
        cpu_scratch_free(&cpu->threads[t]);
    free(cpu->threads);
    free(cpu);
}

static enum status cpu_stream_create(struct kernels *k, const char *name,
                                     struct kernels_stream **out, struct err *err)
{
    struct kernels_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for stream '%s'", name);
    s->kernels = k;
    snprintf(s->name, sizeof s->name, "%s", name);
    *out = s;
    return STATUS_OK;
}

static void cpu_stream_destroy(struct kernels_stream *s)
{
    free(s);
}

/* Every operation has finished before it returned. */
static enum status cpu_stream_sync(struct kernels_stream *s, struct err *err)
{
    (void)s;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_alloc(struct kernels *k, size_t len_bytes, bool zero,
                             struct kernels_buffer *out, struct err *err)
{
    (void)k;
    (void)zero; /* fresh pages are zero anyway */
    void *data = cpu_memory_map_huge(len_bytes);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "the system has no room for a buffer of %zu bytes",
                       len_bytes);
    *out = (struct kernels_buffer){.data = data, .len_bytes = len_bytes};
    return STATUS_OK;
}

static void cpu_free(struct kernels *k, struct kernels_buffer *buffer)
{
    (void)k;
    cpu_memory_unmap(buffer->data, buffer->len_bytes);
}

static enum status cpu_upload(struct kernels_stream *s, void *device, const void *host,
                              size_t len_bytes, struct err *err)
{
    (void)s;
    (void)err;
    memcpy(device, host, len_bytes);
    return STATUS_OK;
}

static enum status cpu_download(struct kernels_stream *s, void *host, const void *device,
                                size_t len_bytes, struct err *err)
{
    (void)s;
    (void)err;
    memcpy(host, device, len_bytes);
    return STATUS_OK;
}

static enum status cpu_fill(struct kernels_stream *s, void *device, unsigned char value,
                            size_t len_bytes, struct err *err)
{
    (void)s;
    (void)err;
    memset(device, value, len_bytes);
    return STATUS_OK;
}

/* The checkpoint's own bytes, in place. */
static enum status cpu_weight_load(struct kernels *k, const struct weight *w,
                                   struct kernels_weight *out, struct err *err)
{
    (void)k;
    (void)err;
    *out = (struct kernels_weight){
        .data = w->data, .dtype = w->dtype, .rows = w->rows, .cols = w->cols};
    return STATUS_OK;
}

static void cpu_weight_unload(struct kernels *k, struct kernels_weight *w)
{
    (void)k;
    (void)w;
}

static enum status cpu_weight_load_joined(struct kernels *k, const struct weight *const *w, int n,
                                          struct kernels_weight *out, struct err *err)
{
    for (int j = 0; j < n; j++)
        (void)cpu_weight_load(k, w[j], &out[j], err);
    return STATUS_OK;
}

static enum status cpu_weights_ready(struct kernels *k, struct err *err)
{
    (void)k;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_host_alloc(struct kernels *k, size_t len_bytes, void **out, struct err *err)
{
    enum { ALIGNMENT = 64 };
    (void)k;
    size_t rounded = (len_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    void *data = rounded < len_bytes ? NULL : aligned_alloc(ALIGNMENT, rounded);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes on the host", len_bytes);
    *out = data;
    return STATUS_OK;
}

static void cpu_host_free(struct kernels *k, void *host)
{
    (void)k;
    free(host);
}

static enum status cpu_device_memory(struct kernels *k, struct kernels_memory *out, struct err *err)
{
    (void)k;
    (void)err;
    *out = (struct kernels_memory){0};
    return STATUS_OK;
}

/* ---- batches and recording: operations run at once and read the bound batch where it lies ------
 */

static enum status cpu_stream_reserve(struct kernels_stream *s, const struct kernels_limits *limits,
                                      struct err *err)
{
    (void)s;
    (void)limits;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_bind(struct kernels_stream *s, const struct kernels_batch *batch,
                            const struct kernels_kv *kv, int flight, struct err *err)
{
    (void)s;
    (void)batch;
    (void)kv;
    (void)flight;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_mark(struct kernels_stream *s, int flight, struct err *err)
{
    (void)s;
    (void)flight;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_record_begin(struct kernels_stream *s, struct err *err)
{
    (void)s;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_record_end(struct kernels_stream *s, uint64_t key, struct err *err)
{
    (void)s;
    (void)key;
    (void)err;
    return STATUS_OK;
}

static enum status cpu_replay(struct kernels_stream *s, uint64_t key, bool *is_done,
                              struct err *err)
{
    (void)s;
    (void)key;
    (void)is_done;
    (void)err;
    return STATUS_OK;
}

static const struct kernels_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .stream_sync = cpu_stream_sync,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .fill = cpu_fill,
    .weight_load = cpu_weight_load,
    .weight_unload = cpu_weight_unload,
    .weight_load_joined = cpu_weight_load_joined,
    .weights_ready = cpu_weights_ready,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .device_memory = cpu_device_memory,
    .record_begin = cpu_record_begin,
    .record_end = cpu_record_end,
    .replay = cpu_replay,
    .kv_bytes = cpu_kv_bytes,
    .stream_reserve = cpu_stream_reserve,
    .bind = cpu_bind,
    .mark = cpu_mark,
    .wait = cpu_mark,
    .load_rows = cpu_load_rows,
    .store_rows = cpu_store_rows,
    .gather_rows = cpu_gather_rows,
    .rows_to_host = cpu_rows_to_host,
    .rows_from_host = cpu_rows_from_host,
    .linear = cpu_linear,
    .rms_norm = cpu_rms_norm,
    .residual_norm = cpu_residual_norm,
    .rope_tables = cpu_rope_tables,
    .rope_append = cpu_rope_append,
    .attention = cpu_attention,
    .swiglu = cpu_swiglu,
    .gate = cpu_gate,
    .top_k = cpu_top_k,
    .measure = cpu_measure,
};

enum status kernels_cpu_create(const struct kernels_options *options, struct kernels **out,
                               struct err *err)
{
    enum { MAX_THREADS = 1024 };
    int n_threads = options->n_threads;
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return err_set(err, STATUS_INVALID, "%d compute threads: use 0 (all cores) to %d",
                       n_threads, MAX_THREADS);
    if (n_threads == 0) {
        /* The cores this process may use: mpirun and batch systems bind ranks. */
        cpu_set_t cores;
        n_threads = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    }
    const struct cpu_level *level;
    enum status st = cpu_level_find(options->isa, &level, err);
    if (st != STATUS_OK)
        return st;
    struct cpu_backend *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the CPU backend");
    cpu->base.ops = &cpu_ops;
    cpu->base.activation = DTYPE_F32;
    cpu->base.n_threads = n_threads;
    snprintf(cpu->base.isa, sizeof cpu->base.isa, "%s", level->name);
    cpu->level = level;
    cpu->threads = calloc((size_t)n_threads, sizeof *cpu->threads);
    if (cpu->threads == NULL)
        st = err_set(err, STATUS_NO_MEMORY, "no memory for the scratch of %d threads", n_threads);
    if (st == STATUS_OK)
        st = cpu_pool_create(n_threads, options->may_spin, &cpu->pool, err);
    if (st != STATUS_OK) {
        cpu_destroy(&cpu->base);
        return st;
    }
    *out = &cpu->base;
    return STATUS_OK;
}
