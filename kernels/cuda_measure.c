/* Measures what a GPU can do: memory, tensor cores, the bus, the way there and back.
 *
 * Every figure is work over wall time of a run that the host waits for. The work grows until a run
 * takes long enough, so that a slow device (or the stand-in of the tests) ends soon as well. */
#include "kernels/cuda_measure.h"
#include "kernels/cuda_backend.h"

#include <time.h>

enum {
    MEASURE_RUNS = 5,       /* of the full size; the fastest counts */
    MEASURE_LAUNCHES = 200, /* round trips; the median would need a list, the mean is enough */
    MEASURE_SQUARE_MAX = 8192,
    MEASURE_SQUARE_MIN = 128,
};
/* A run that takes as long is measured well enough. */
static const double measure_enough_s = 0.004;
/* Far more than any cache holds, and what is free allows. */
static const size_t measure_max_bytes = (size_t)4 << 30;
static const size_t measure_min_bytes = (size_t)1 << 20;
static const size_t measure_host_bytes = (size_t)64 << 20;

struct measure {
    struct cuda_kernels *k;
    struct cuda_stream *s;
    unsigned char *from, *to; /* device, len_bytes each */
    size_t len_bytes;
    void *host; /* pinned, measure_host_bytes */
    float *sink;
};

static double measure_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A run queues work of the given size on the stream. */
static enum status measure_once(const struct measure *m,
                                enum status (*run)(const struct measure *m, size_t size,
                                                   struct err *err),
                                size_t size, double *took_s, struct err *err)
{
    double start_s = measure_now_s();
    enum status st = run(m, size, err);
    if (st == STATUS_OK)
        st = cuda_check(cudaStreamSynchronize(m->s->stream), "measuring", err);
    *took_s = measure_now_s() - start_s;
    return st;
}

/* Doubles the size from `least` until a run takes long enough or the size is `most`; then the
 * fastest of a few runs. */
static enum status
measure_best(const struct measure *m,
             enum status (*run)(const struct measure *m, size_t size, struct err *err),
             size_t least, size_t most, size_t *size, double *best_s, struct err *err)
{
    double took_s = 0.0;
    *size = least;
    enum status st = measure_once(m, run, *size, &took_s, err); /* loads the kernel, too */
    for (;;) {
        if (st == STATUS_OK)
            st = measure_once(m, run, *size, &took_s, err);
        if (st != STATUS_OK || took_s >= measure_enough_s || *size >= most)
            break;
        *size = *size * 2 < most ? *size * 2 : most;
    }
    *best_s = took_s;
    /* A slow device has been patient enough. */
    for (int i = 0; st == STATUS_OK && i < MEASURE_RUNS && took_s < 10 * measure_enough_s; i++) {
        st = measure_once(m, run, *size, &took_s, err);
        *best_s = took_s < *best_s ? took_s : *best_s;
    }
    return st;
}

/* ---- runs -------------------------------------------------------------------------------------
 */

static enum status measure_run_read(const struct measure *m, size_t size, struct err *err)
{
    return cuda_check(
        cuda_measure_read(m->from, size, m->sink, m->k->n_multiprocessors, m->s->stream), "reading",
        err);
}

static enum status measure_run_copy(const struct measure *m, size_t size, struct err *err)
{
    return cuda_check(
        cuda_measure_copy(m->to, m->from, size, m->k->n_multiprocessors, m->s->stream), "copying",
        err);
}

static enum status measure_run_upload(const struct measure *m, size_t size, struct err *err)
{
    return cuda_check(cudaMemcpyAsync(m->to, m->host, size, cudaMemcpyHostToDevice, m->s->stream),
                      "uploading", err);
}

static enum status measure_run_fma(const struct measure *m, size_t size, struct err *err)
{
    double n_flops;
    return cuda_check(
        cuda_measure_fma((int)size, m->sink, m->k->n_multiprocessors, m->s->stream, &n_flops),
        "multiplying", err);
}

static enum status measure_run_square(const struct measure *m, size_t size, struct err *err)
{
    const size_t matrix = size * size * sizeof(uint16_t);
    return cuda_linear_square(m->s, m->to, m->from, m->from + matrix, (int)size, 1, err);
}

static enum status measure_run_nothing(const struct measure *m, size_t size, struct err *err)
{
    (void)size;
    return cuda_check(cuda_measure_nothing(m->s->stream), "launching", err);
}

/* Random bits everywhere, so that chips that save power on zeros do not: a piece of them, then
 * copies of what is there. */
static enum status measure_fill(const struct measure *m, struct err *err)
{
    enum status st = cuda_check(cuda_measure_random((uint16_t *)(void *)m->from,
                                                    measure_min_bytes / sizeof(uint16_t), 1,
                                                    m->k->n_multiprocessors, m->s->stream),
                                "filling memory", err);
    for (size_t len = measure_min_bytes; st == STATUS_OK && len < m->len_bytes; len *= 2)
        st = cuda_check(
            cudaMemcpyAsync(m->from + len, m->from, len, cudaMemcpyDeviceToDevice, m->s->stream),
            "filling memory", err);
    return st;
}

/* ---- figures ----------------------------------------------------------------------------------
 */

static enum status measure_memory(const struct measure *m, struct kernels_machine *out,
                                  struct err *err)
{
    size_t size = 0;
    double took_s = 0.0;
    enum status st =
        measure_best(m, measure_run_read, measure_min_bytes, m->len_bytes, &size, &took_s, err);
    out->read_gbytes_s = (double)size / took_s * 1e-9;
    if (st == STATUS_OK)
        st =
            measure_best(m, measure_run_copy, measure_min_bytes, m->len_bytes, &size, &took_s, err);
    out->copy_gbytes_s = 2.0 * (double)size / took_s * 1e-9;
    size_t most = m->len_bytes < measure_host_bytes ? m->len_bytes : measure_host_bytes;
    if (st == STATUS_OK)
        st = measure_best(m, measure_run_upload, measure_min_bytes, most, &size, &took_s, err);
    out->upload_gbytes_s = (double)size / took_s * 1e-9;
    return st;
}

static enum status measure_arithmetic(const struct measure *m, struct kernels_machine *out,
                                      struct err *err)
{
    size_t size = 0;
    double took_s = 0.0, n_flops = 0.0;
    /* Two matrices side by side. */
    size_t most = MEASURE_SQUARE_MAX;
    while (2 * most * most * sizeof(uint16_t) > m->len_bytes)
        most /= 2;
    size_t least = most < MEASURE_SQUARE_MIN ? most : MEASURE_SQUARE_MIN;
    enum status st = measure_best(m, measure_run_square, least, most, &size, &took_s, err);
    out->matrix_tflops = 2.0 * (double)size * (double)size * (double)size / took_s * 1e-12;
    if (st == STATUS_OK)
        st = measure_best(m, measure_run_fma, 16, (size_t)1 << 18, &size, &took_s, err);
    if (st == STATUS_OK)
        st = cuda_check(
            cuda_measure_fma((int)size, m->sink, m->k->n_multiprocessors, m->s->stream, &n_flops),
            "multiplying", err);
    out->peak_gflops = n_flops / took_s * 1e-9;
    return st;
}

static enum status measure_launches(const struct measure *m, struct kernels_machine *out,
                                    struct err *err)
{
    double took_s = 0.0, sum_s = 0.0;
    enum status st = STATUS_OK;
    for (int i = 0; st == STATUS_OK && i < MEASURE_LAUNCHES; i++) {
        st = measure_once(m, measure_run_nothing, 1, &took_s, err);
        sum_s += took_s;
    }
    out->launch_us = sum_s / MEASURE_LAUNCHES * 1e6;
    return st;
}

/* ---- all of it --------------------------------------------------------------------------------
 */

/* The largest power of two of which two areas take a quarter of what is free. */
static enum status measure_choose_bytes(struct kernels *k, size_t *out, struct err *err)
{
    struct kernels_memory memory;
    enum status st = cuda_device_memory(k, &memory, err);
    if (st != STATUS_OK)
        return st;
    size_t len = measure_max_bytes;
    while (len > measure_min_bytes && len > memory.free_bytes / 8)
        len /= 2;
    *out = len;
    return STATUS_OK;
}

enum status cuda_measure(struct kernels *base, struct kernels_machine *out, struct err *err)
{
    struct measure m = {.k = (struct cuda_kernels *)base};
    struct kernels_machine found = {0};
    struct kernels_stream *stream = NULL;
    struct kernels_buffer from = {0}, to = {0};
    /* The products need a workspace; one row is enough of all else. */
    const struct kernels_limits limits = {.n_rows = 1,
                                          .n_segments = 1,
                                          .n_table = 1,
                                          .block_size = 16,
                                          .n_slots = 1,
                                          .vocab_size = 16,
                                          .n_heads = 1,
                                          .n_kv_heads = 1,
                                          .head_dim = 64};
    enum status st = base->ops->stream_create(base, "measure", &stream, err);
    if (st == STATUS_OK)
        st = cuda_stream_reserve(stream, &limits, err);
    if (st == STATUS_OK)
        st = measure_choose_bytes(base, &m.len_bytes, err);
    if (st == STATUS_OK)
        st = cuda_alloc(base, m.len_bytes, false, &from, err);
    if (st == STATUS_OK)
        st = cuda_alloc(base, m.len_bytes, false, &to, err);
    if (st == STATUS_OK)
        st = cuda_host_alloc(base, measure_host_bytes, &m.host, err);
    if (st == STATUS_OK) {
        m.s = cuda_stream_of(stream);
        m.from = from.data;
        m.to = to.data;
        m.sink = to.data;
        st = measure_fill(&m, err);
    }
    if (st == STATUS_OK)
        st = measure_memory(&m, &found, err);
    if (st == STATUS_OK)
        st = measure_arithmetic(&m, &found, err);
    if (st == STATUS_OK)
        st = measure_launches(&m, &found, err);
    if (stream != NULL)
        (void)cudaStreamSynchronize(cuda_stream_of(stream)->stream);
    cuda_host_free(base, m.host);
    if (to.data != NULL)
        cuda_free(base, &to);
    if (from.data != NULL)
        cuda_free(base, &from);
    if (stream != NULL)
        base->ops->stream_destroy(stream);
    if (st == STATUS_OK)
        *out = found;
    return st;
}
