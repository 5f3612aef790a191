/* Measures what this machine's cores can do: the fused multiply-add rate, the read bandwidth. */
#include "kernels/cpu_backend.h"

#include <string.h>
#include <time.h>

enum {
    MEASURE_FMA_STEPS = 1000 * 1000,
    MEASURE_PASSES = 5,
};
/* Larger than the largest last-level cache we know of. */
static const size_t measure_bytes = (size_t)640 << 20;

struct measure_run {
    const struct cpu_backend *cpu;
    const unsigned char *data;
    size_t share_bytes;
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
    memset((unsigned char *)run->data + run->share_bytes * (size_t)thread, thread + 1,
           run->share_bytes);
}

static void measure_read(void *context, int thread)
{
    struct measure_run *run = context;
    run->sinks[thread % 256][4] = run->cpu->level->read_stream(
        run->data + run->share_bytes * (size_t)thread, run->share_bytes);
}

/* The best of a few passes: what the hardware can do, without what else the host was doing. */
static double measure_best_s(const struct cpu_backend *cpu, void (*work)(void *context, int thread),
                             struct measure_run *run)
{
    double best = 0.0;
    for (int i = 0; i < MEASURE_PASSES; i++) {
        double start = measure_now_s();
        cpu_pool_run(cpu->pool, work, run);
        double took = measure_now_s() - start;
        if (i == 0 || took < best)
            best = took;
    }
    return best;
}

enum status cpu_measure(struct kernels *k, struct kernels_machine *out, struct err *err)
{
    struct cpu_backend *cpu = (struct cpu_backend *)k;
    const int n_threads = k->n_threads;
    struct measure_run run = {.cpu = cpu};
    for (int t = 0; t < 256; t++)
        run.sinks[t][0] = run.sinks[t][1] = 0.5f;
    run.share_bytes = measure_bytes / (size_t)n_threads / 4096 * 4096;
    unsigned char *data = cpu_memory_map(measure_bytes);
    if (data == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes to measure bandwidth with",
                       measure_bytes);
    run.data = data;
    cpu_pool_run(cpu->pool, measure_touch, &run);
    double read_s = measure_best_s(cpu, measure_read, &run);
    cpu_memory_unmap(data, measure_bytes);
    double fma_s = measure_best_s(cpu, measure_fma, &run);
    out->peak_gflops = run.flops * n_threads / fma_s * 1e-9;
    out->read_gbytes_s = (double)run.share_bytes * n_threads / read_s * 1e-9;
    return STATUS_OK;
}
