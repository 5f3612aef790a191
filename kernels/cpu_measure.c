/* Measures what this machine's cores can do: the fused multiply-add rate, the read bandwidth. */
#include "kernels/cpu_backend.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    MEASURE_FMA_STEPS = 100 * 1000,
    MEASURE_FMA_PASSES = 50,
    MEASURE_READ_PASSES = 2, /* over the whole area */
    MEASURE_MAX_SAMPLES = 256,
};
/* Larger than the largest last-level cache we know of. */
static const size_t measure_bytes = (size_t)640 << 20;
/* One sample: a few milliseconds, short enough that some escape whatever else the host is doing. */
static const size_t measure_slice_bytes = (size_t)16 << 20;

struct measure_run {
    const struct cpu_backend *cpu;
    unsigned char *data;
    size_t share_bytes; /* of each thread */
    size_t offset;      /* of this sample's slice within the share */
    size_t slice_bytes;
    double flops;
    float sinks[256][16]; /* a cache line a thread */
};

static double measure_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void measure_fma(void *context, int thread)
{
    struct measure_run *run = context;
    double flops = run->cpu->level->spin_fma(MEASURE_FMA_STEPS, run->sinks[thread % 256]);
    if (thread == 0)
        run->flops = flops;
}

static void measure_touch(void *context, int thread)
{
    struct measure_run *run = context;
    memset(run->data + run->share_bytes * (size_t)thread, thread + 1, run->share_bytes);
}

static void measure_read(void *context, int thread)
{
    struct measure_run *run = context;
    const unsigned char *slice = run->data + run->share_bytes * (size_t)thread + run->offset;
    run->sinks[thread % 256][4] = run->cpu->level->read_stream(slice, run->slice_bytes);
}

static int compare_seconds(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The time that a tenth of the samples beat: what the hardware can do, neither what it does while
 * the host is busy elsewhere nor one lucky sample. */
static double measure_samples(const struct cpu_backend *cpu,
                              void (*work)(void *context, int thread), struct measure_run *run,
                              int n_samples)
{
    double took[MEASURE_MAX_SAMPLES];
    for (int i = 0; i < n_samples; i++) {
        run->offset = (size_t)i % (run->share_bytes / run->slice_bytes) * run->slice_bytes;
        double start = measure_now_s();
        cpu_pool_run(cpu->pool, work, run);
        took[i] = measure_now_s() - start;
    }
    qsort(took, (size_t)n_samples, sizeof took[0], compare_seconds);
    return took[n_samples / 10];
}

enum status cpu_measure(struct kernels *k, struct kernels_machine *out, struct err *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)k;
    const int n_threads = k->n_threads;
    struct measure_run run = {.cpu = cpu};
    for (int t = 0; t < 256; t++)
        run.sinks[t][0] = run.sinks[t][1] = 0.5f;
    run.share_bytes = measure_bytes / (size_t)n_threads / 4096 * 4096;
    run.slice_bytes = run.share_bytes < measure_slice_bytes ? run.share_bytes : measure_slice_bytes;
    int n_samples = MEASURE_READ_PASSES * (int)(run.share_bytes / run.slice_bytes);
    n_samples = n_samples > MEASURE_MAX_SAMPLES ? MEASURE_MAX_SAMPLES : n_samples;
    unsigned char *data = cpu_memory_map(measure_bytes);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes to measure bandwidth with",
                       measure_bytes);
    run.data = data;
    cpu_pool_run(cpu->pool, measure_touch, &run);
    double read_s = measure_samples(cpu, measure_read, &run, n_samples);
    cpu_memory_unmap(data, measure_bytes);
    double fma_s = measure_samples(cpu, measure_fma, &run, MEASURE_FMA_PASSES);
    *out = (struct kernels_machine){0};
    out->peak_gflops = run.flops * n_threads / fma_s * 1e-9;
    out->read_gbytes_s = (double)run.slice_bytes * n_threads / read_s * 1e-9;
    return STATUS_OK;
}
