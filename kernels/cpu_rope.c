/* Rotary positions and the append to the paged KV pool. */
#include "kernels/cpu_backend.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

struct rope_run {
    float *cos_out, *sin_out;
    const float *cos_table, *sin_table;
    int head_dim;
    double theta;
    float *qkv; /* [n, (H + 2G) * D] */
    int n_heads;
    const struct kernels_batch *batch;
    const struct kernels_kv *kv;
    int layer;
    int n_threads;
};

/* The rows of a segment that a thread does: an even cut of the whole batch. */
static void rope_share(const struct rope_run *run, int thread, int *first, int *end)
{
    *first = (int)((long)run->batch->n_rows * thread / run->n_threads);
    *end = (int)((long)run->batch->n_rows * (thread + 1) / run->n_threads);
}

static void rope_tables_work(void *context, int thread)
{
    const struct rope_run *run = context;
    const int half = run->head_dim / 2;
    int first, end;
    rope_share(run, thread, &first, &end);
    for (int i = 0; i < run->batch->n_segments; i++) {
        const struct kernels_segment *segment = &run->batch->segments[i];
        for (int r = 0; r < segment->n_rows; r++) {
            int row = segment->first_row + r;
            if (row < first || row >= end)
                continue;
            for (int j = 0; j < half; j++) {
                double angle = (double)(segment->first_position + r) *
                               pow(run->theta, -2.0 * j / run->head_dim);
                run->cos_out[(size_t)row * (size_t)half + (size_t)j] = (float)cos(angle);
                run->sin_out[(size_t)row * (size_t)half + (size_t)j] = (float)sin(angle);
            }
        }
    }
}

static void rope_rotate(float *x, int n_heads, int head_dim, const float *cosine, const float *sine)
{
    const int half = head_dim / 2;
    for (int h = 0; h < n_heads; h++, x += head_dim)
        for (int j = 0; j < half; j++) {
            float a = x[j], b = x[j + half];
            x[j] = a * cosine[j] - b * sine[j];
            x[j + half] = b * cosine[j] + a * sine[j];
        }
}

static void kv_write(unsigned char *to, const float *from, int n, enum dtype dtype)
{
    if (dtype == DTYPE_F32) {
        memcpy(to, from, (size_t)n * sizeof *from);
        return;
    }
    uint16_t *half = (uint16_t *)(void *)to; /* the pool is aligned, its rows hold whole elements */
    for (int j = 0; j < n; j++)
        half[j] = dtype_to_bf16(from[j]);
}

static void rope_append_row(const struct rope_run *run, const struct kernels_segment *segment,
                            int r)
{
    const struct kernels_kv *kv = run->kv;
    const int d = kv->head_dim;
    const size_t row = (size_t)(segment->first_row + r);
    const float *cosine = run->cos_table + row * (size_t)(d / 2);
    const float *sine = run->sin_table + row * (size_t)(d / 2);
    float *q = run->qkv + row * (size_t)(run->n_heads + 2 * kv->n_kv_heads) * (size_t)d;
    float *k = q + (size_t)run->n_heads * (size_t)d;
    const float *v = k + (size_t)kv->n_kv_heads * (size_t)d;
    rope_rotate(q, run->n_heads, d, cosine, sine);
    rope_rotate(k, kv->n_kv_heads, d, cosine, sine);
    const int position = segment->first_position + r;
    const size_t block =
        (size_t)run->batch->block_table[segment->first_block + position / kv->block_size];
    const size_t row_bytes = (size_t)d * dtype_bytes(kv->dtype);
    const size_t half = (size_t)kv->block_size * row_bytes;
    unsigned char *at =
        (unsigned char *)kv->memory.data +
        (block * (size_t)kv->n_layers + (size_t)run->layer) * (size_t)kv->n_kv_heads * 2 * half +
        (size_t)(position % kv->block_size) * row_bytes;
    for (int g = 0; g < kv->n_kv_heads; g++, at += 2 * half) {
        kv_write(at, k + (size_t)g * (size_t)d, d, kv->dtype);
        kv_write(at + half, v + (size_t)g * (size_t)d, d, kv->dtype);
    }
}

static void rope_append_work(void *context, int thread)
{
    const struct rope_run *run = context;
    int first, end;
    rope_share(run, thread, &first, &end);
    for (int i = 0; i < run->batch->n_segments; i++) {
        const struct kernels_segment *segment = &run->batch->segments[i];
        int from = first > segment->first_row ? first - segment->first_row : 0;
        for (int r = from; r < segment->n_rows && segment->first_row + r < end; r++)
            rope_append_row(run, segment, r);
    }
}

enum {
    /* Below this many elements waking the other threads costs more than they save. */
    ROPE_MIN_PARALLEL = 32 * 1024,
};

static void rope_run(struct cpu_backend *cpu, struct rope_run *run, size_t n_elements,
                     void (*work)(void *context, int thread))
{
    run->n_threads = n_elements < ROPE_MIN_PARALLEL ? 1 : cpu->base.n_threads;
    if (run->n_threads == 1)
        work(run, 0);
    else
        cpu_pool_run(cpu->pool, work, run);
}

enum status cpu_rope_tables(struct kernels_stream *s, float *cos_table, float *sin_table,
                            int head_dim, double theta, int n, struct err *err)
{
    (void)n;
    (void)err;
    struct rope_run run = {.cos_out = cos_table,
                           .sin_out = sin_table,
                           .head_dim = head_dim,
                           .theta = theta,
                           .batch = s->batch};
    /* An angle costs as much as tens of rotations. */
    rope_run(cpu_backend_of(s), &run, (size_t)s->batch->n_rows * (size_t)head_dim * 32,
             rope_tables_work);
    return STATUS_OK;
}

enum status cpu_rope_append(struct kernels_stream *s, void *qkv, int n_heads,
                            const float *cos_table, const float *sin_table,
                            const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    (void)n;
    (void)err;
    struct rope_run run = {.cos_table = cos_table,
                           .sin_table = sin_table,
                           .head_dim = kv->head_dim,
                           .qkv = qkv,
                           .n_heads = n_heads,
                           .batch = s->batch,
                           .kv = kv,
                           .layer = layer};
    size_t row = (size_t)(n_heads + 2 * kv->n_kv_heads) * (size_t)kv->head_dim;
    rope_run(cpu_backend_of(s), &run, (size_t)s->batch->n_rows * row, rope_append_work);
    return STATUS_OK;
}
