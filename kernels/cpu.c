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
    .weight_load = cpu_weight_load,
    .weight_unload = cpu_weight_unload,
    .kv_bytes = cpu_kv_bytes,
    .load_rows = cpu_load_rows,
    .store_rows = cpu_store_rows,
    .gather_rows = cpu_gather_rows,
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
