/* Operations that treat each row by itself: moving rows, norms, SwiGLU, the gate. */
#include "kernels/cpu_backend.h"

#include <math.h>
#include <string.h>

enum {
    /* Below this many elements waking the other threads costs more than they save. */
    ROWS_MIN_PARALLEL = 32 * 1024,
};

/* One operation over rows [0, n); `row` does one of them. */
struct rows_run {
    void (*row)(const struct rows_run *run, int i);
    const struct cpu_level *level;
    int n, d, n_threads;
    float eps;
    float *y, *h;
    const float *x;
    const float *gain, *gain2;
    const int32_t *index, *index2;
    const struct kernels_weight *weight;
};

static void rows_work(void *context, int thread)
{
    const struct rows_run *run = context;
    int end = (int)((long)run->n * (thread + 1) / run->n_threads);
    for (int i = (int)((long)run->n * thread / run->n_threads); i < end; i++)
        run->row(run, i);
}

static void rows_run(struct cpu_backend *cpu, struct rows_run *run)
{
    run->level = cpu->level;
    bool is_small = run->n < 2 || (size_t)run->n * (size_t)run->d < ROWS_MIN_PARALLEL;
    run->n_threads = is_small ? 1 : cpu->base.n_threads;
    if (run->n_threads == 1)
        rows_work(run, 0);
    else
        cpu_pool_run(cpu->pool, rows_work, run);
}

static size_t row_at(const struct rows_run *run, int i)
{
    return (size_t)i * (size_t)run->d;
}

static void load_row(const struct rows_run *run, int i)
{
    const size_t d = (size_t)run->d;
    float *x = run->y + row_at(run, i);
    if (run->index[i] < 0) {
        memcpy(x, run->x + (size_t)run->index2[i] * d, d * sizeof *x);
        return;
    }
    const struct kernels_weight *w = run->weight;
    const unsigned char *from = w->data;
    run->level->widen(x, from + (size_t)run->index[i] * d * dtype_bytes(w->dtype), w->dtype, d);
}

enum status cpu_load_rows(struct kernels_stream *s, float *x, const float *store,
                          const struct kernels_weight *embed, int n, struct err *err)
{
    (void)n;
    (void)err;
    struct rows_run run = {.row = load_row,
                           .n = s->batch->n_rows,
                           .d = embed->cols,
                           .y = x,
                           .x = store,
                           .index = s->batch->ids,
                           .index2 = s->batch->slots,
                           .weight = embed};
    rows_run(cpu_backend_of(s), &run);
    return STATUS_OK;
}

enum status cpu_store_rows(struct kernels_stream *s, float *store, const float *x, int n, int d,
                           struct err *err)
{
    (void)n;
    (void)err;
    /* On one thread: a slot named twice then holds the later row, as the order says. */
    const size_t row = (size_t)d;
    for (int i = 0; i < s->batch->n_rows; i++)
        memcpy(store + (size_t)s->batch->slots[i] * row, x + (size_t)i * row, row * sizeof *x);
    return STATUS_OK;
}

enum status cpu_rows_to_host(struct kernels_stream *s, void *const *host, const float *store,
                             const int32_t *slots, int n, int d, struct err *err)
{
    (void)s;
    (void)err;
    const size_t row = (size_t)d;
    for (int i = 0; i < n; i++)
        memcpy(host[i], store + (size_t)slots[i] * row, row * sizeof *store);
    return STATUS_OK;
}

enum status cpu_rows_from_host(struct kernels_stream *s, float *store, const int32_t *slots,
                               const void *const *host, int n, int d, struct err *err)
{
    (void)s;
    (void)err;
    const size_t row = (size_t)d;
    for (int i = 0; i < n; i++)
        memcpy(store + (size_t)slots[i] * row, host[i], row * sizeof *store);
    return STATUS_OK;
}

static void gather_row(const struct rows_run *run, int i)
{
    memcpy(run->y + row_at(run, i), run->x + (size_t)run->index[i] * (size_t)run->d,
           (size_t)run->d * sizeof *run->y);
}

enum status cpu_gather_rows(struct kernels_stream *s, void *y, const float *x, const int32_t *rows,
                            int n_selected, int d, struct err *err)
{
    (void)err;
    struct rows_run run = {
        .row = gather_row, .n = n_selected, .d = d, .y = y, .x = x, .index = rows};
    rows_run(cpu_backend_of(s), &run);
    return STATUS_OK;
}

static void norm_row(const struct rows_run *run, int i)
{
    run->level->norm_row(run->y + row_at(run, i), run->x + row_at(run, i), run->gain, run->d,
                         run->eps);
}

enum status cpu_rms_norm(struct kernels_stream *s, void *y, enum dtype y_dtype, const float *x,
                         const struct kernels_weight *gain, int n, float eps, struct err *err)
{
    (void)y_dtype; /* F32 is the activation type, too */
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct rows_run run = {.row = norm_row, .n = n, .d = gain->cols, .y = y, .x = x, .eps = eps};
    enum status st = cpu_backend_gain(cpu, 0, gain, &run.gain, err);
    if (st != STATUS_OK)
        return st;
    rows_run(cpu, &run);
    return STATUS_OK;
}

static void residual_row(const struct rows_run *run, int i)
{
    float *h = run->h + row_at(run, i);
    run->level->residual_row(h, run->x + row_at(run, i), run->gain, run->d, run->eps);
    if (run->y != NULL)
        run->level->norm_row(run->y + row_at(run, i), h, run->gain2, run->d, run->eps);
}

enum status cpu_residual_norm(struct kernels_stream *s, float *h, const float *branch,
                              const struct kernels_weight *gain_branch, void *y, enum dtype y_dtype,
                              const struct kernels_weight *gain_next, int n, int d, float eps,
                              struct err *err)
{
    (void)y_dtype; /* F32 is the activation type, too */
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct rows_run run = {
        .row = residual_row, .n = n, .d = d, .y = y, .h = h, .x = branch, .eps = eps};
    enum status st = STATUS_OK;
    if (gain_branch != NULL)
        st = cpu_backend_gain(cpu, 0, gain_branch, &run.gain, err);
    if (st == STATUS_OK && y != NULL)
        st = cpu_backend_gain(cpu, 1, gain_next, &run.gain2, err);
    if (st != STATUS_OK)
        return st;
    rows_run(cpu, &run);
    return STATUS_OK;
}

static void swiglu_row(const struct rows_run *run, int i)
{
    const float *gate = run->x + 2 * row_at(run, i);
    run->level->swiglu(run->y + row_at(run, i), gate, gate + run->d, (size_t)run->d);
}

enum status cpu_swiglu(struct kernels_stream *s, void *y, const void *x, int n, int f,
                       struct err *err)
{
    (void)err;
    struct rows_run run = {.row = swiglu_row, .n = n, .d = f, .y = y, .x = x};
    rows_run(cpu_backend_of(s), &run);
    return STATUS_OK;
}

static void gate_row(const struct rows_run *run, int i)
{
    const float *x = run->x + (size_t)run->index[i] * (size_t)run->d;
    double z = (double)run->level->dot(x, run->gain, run->d) + (double)run->gain2[0];
    run->y[i] = (float)(1.0 / (1.0 + exp(-z)));
}

enum status cpu_gate(struct kernels_stream *s, float *lambda, const float *x, const int32_t *rows,
                     int n_selected, const struct kernels_weight *w,
                     const struct kernels_weight *bias, struct err *err)
{
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct rows_run run = {
        .row = gate_row, .n = n_selected, .d = w->cols, .y = lambda, .x = x, .index = rows};
    enum status st = cpu_backend_gain(cpu, 0, w, &run.gain, err);
    if (st == STATUS_OK)
        st = cpu_backend_gain(cpu, 1, bias, &run.gain2, err);
    if (st != STATUS_OK)
        return st;
    rows_run(cpu, &run);
    return STATUS_OK;
}
