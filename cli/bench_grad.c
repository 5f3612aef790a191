/* Times the training kernels on one thread against the multiply-add peak of the same run. */
#include "cli/bench_grad.h"

#include "cli/cli.h"
#include "cli/sorted.h"
#include "kernels/grad.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum {
    MAX_SAMPLES = 200,
    ROWS = 800, /* eight sequences of the demo recipe */
    MAX_WIDTH = 1024,
    MAX_FLOATS = ROWS * MAX_WIDTH,
    N_AREAS = 6,
};

/* What an operation works on: a, b, c, d of its shape, whatever they mean to it. */
struct grad_bench {
    const struct grad_ops *ops;
    double peak_gflops;
    bool is_json, is_quick, has_printed;
    float *area[N_AREAS]; /* [MAX_FLOATS] each */
    float *scratch;
    int32_t *ids;
};

struct grad_shape {
    const char *name;
    void (*run)(struct grad_bench *b, const struct grad_shape *shape);
    int n, k, n_out; /* attention: rows, head_dim, heads; row-wise: rows, width, 0 */
    double flops;    /* 0: not counted */
};

static double bench_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_linear(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->linear(b->area[0], b->area[1], b->area[2], s->n, s->k, s->n_out);
}
static void run_back_input(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->linear_back_input(b->area[0], b->area[1], b->area[2], s->n, s->k, s->n_out, false);
}
static void run_back_weight(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->linear_back_weight(b->area[3], b->area[1], b->area[2], s->n, s->k, s->n_out);
}

/* A prefix of 60 rows and branches of 4, as a sequence of the demo recipe has. */
static struct grad_attention branches_of(struct grad_bench *b, const struct grad_shape *s)
{
    enum { PREFIX = 60, BRANCH = 4 };
    for (int i = 0; i < s->n; i++)
        b->ids[i] = i < PREFIX ? 0 : PREFIX + (i - PREFIX) / BRANCH * BRANCH;
    const size_t stride = (size_t)s->k * (size_t)s->n_out;
    return (struct grad_attention){.n = s->n,
                                   .n_heads = s->n_out,
                                   .n_kv_heads = s->n_out,
                                   .head_dim = s->k,
                                   .n_prefix = PREFIX,
                                   .branch_start = b->ids,
                                   .stride = 3 * stride,
                                   .out_stride = stride};
}
static double visible_pairs(int n, int prefix, int branch)
{
    double pairs = 0.0;
    for (int i = 0; i < n; i++)
        pairs += i < prefix ? i + 1 : prefix + (i - prefix) % branch + 1;
    return pairs;
}

static void attention_forward(struct grad_bench *b, const struct grad_attention *shape)
{
    const size_t width = (size_t)shape->n_heads * (size_t)shape->head_dim;
    b->ops->attention(b->area[0], b->area[3], b->area[1], b->area[1] + width,
                      b->area[1] + 2 * width, shape, b->scratch);
}
static void attention_backward(struct grad_bench *b, const struct grad_attention *shape)
{
    const size_t width = (size_t)shape->n_heads * (size_t)shape->head_dim;
    b->ops->attention_back(b->area[4], b->area[4] + width, b->area[4] + 2 * width, b->area[2],
                           b->area[0], b->area[3], b->area[1], b->area[1] + width,
                           b->area[1] + 2 * width, shape, b->scratch);
}
static void run_attention(struct grad_bench *b, const struct grad_shape *s)
{
    const struct grad_attention shape = branches_of(b, s);
    attention_forward(b, &shape);
}
static void run_attention_back(struct grad_bench *b, const struct grad_shape *s)
{
    const struct grad_attention shape = branches_of(b, s);
    attention_backward(b, &shape);
}
static void run_causal(struct grad_bench *b, const struct grad_shape *s)
{
    struct grad_attention shape = branches_of(b, s);
    shape.branch_start = NULL;
    attention_forward(b, &shape);
}
static void run_causal_back(struct grad_bench *b, const struct grad_shape *s)
{
    struct grad_attention shape = branches_of(b, s);
    shape.branch_start = NULL;
    attention_backward(b, &shape);
}

static void run_norm(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->norm(b->area[0], b->area[3], b->area[1], b->area[2], s->n, s->k, 1e-6f);
}
static void run_norm_back(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->norm_back(b->area[0], b->area[4], b->area[1], b->area[5], b->area[3], b->area[2], s->n,
                      s->k, false);
}
static void run_swiglu(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->swiglu(b->area[0], b->area[1], s->n, s->k);
}
static void run_swiglu_back(struct grad_bench *b, const struct grad_shape *s)
{
    b->ops->swiglu_back(b->area[0], b->area[2], b->area[1], s->n, s->k);
}
static void run_cross_entropy(struct grad_bench *b, const struct grad_shape *s)
{
    for (int i = 0; i < s->n; i++)
        b->ids[ROWS + i] = i % s->k;
    b->ops->cross_entropy(b->area[0], b->area[3], b->ids, b->area[1], b->ids + ROWS, s->n, s->k);
}
static void run_adamw(struct grad_bench *b, const struct grad_shape *s)
{
    const struct grad_adamw how = {.lr = 1e-6f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.98f,
                                   .eps = 1e-8f,
                                   .weight_decay = 0.05f,
                                   .grad_scale = 1.0f,
                                   .correction1 = 1.0f,
                                   .correction2 = 1.0f};
    b->ops->adamw(b->area[0], b->area[4], b->area[3], b->area[1], (size_t)s->n * (size_t)s->k,
                  &how);
}

/* The time that a tenth of the samples beat, as the peak is measured. */
static double bench_time(struct grad_bench *b, const struct grad_shape *shape)
{
    double took[MAX_SAMPLES];
    shape->run(b, shape);
    double start = bench_now_s();
    shape->run(b, shape);
    const double once = bench_now_s() - start;
    const int n_calls = once > 1e-4 ? 1 : (int)(1e-4 / (once > 1e-8 ? once : 1e-8)) + 1;
    const double budget = b->is_quick ? 0.01 : 0.1;
    int n_samples = (int)(budget / (once * n_calls));
    n_samples = n_samples < 3 ? 3 : n_samples > MAX_SAMPLES ? MAX_SAMPLES : n_samples;
    for (int i = 0; i < n_samples; i++) {
        start = bench_now_s();
        for (int call = 0; call < n_calls; call++)
            shape->run(b, shape);
        took[i] = (bench_now_s() - start) / n_calls;
    }
    sorted_doubles(took, (size_t)n_samples);
    return took[n_samples / 10];
}

static void bench_print(struct grad_bench *b, const struct grad_shape *s, double seconds)
{
    const double gflops = s->flops / seconds * 1e-9;
    if (b->is_json) {
        printf("%s\n  {\"isa\": \"%s\", \"operation\": \"%s\", \"rows\": %d, \"k\": %d, "
               "\"n_out\": %d, \"seconds\": %.9f, \"gflops\": %.2f, \"peak_gflops\": %.2f}",
               b->has_printed ? "," : "", b->ops->name, s->name, s->n, s->k, s->n_out, seconds,
               gflops, b->peak_gflops);
        b->has_printed = true;
    } else if (s->flops > 0.0) {
        printf("  %-20s %5d %5d %5d %10.1f %9.1f %7.2f\n", s->name, s->n, s->k, s->n_out,
               seconds * 1e6, gflops, gflops / b->peak_gflops);
    } else {
        printf("  %-20s %5d %5d %5s %10.1f\n", s->name, s->n, s->k, "", seconds * 1e6);
    }
    fflush(stdout);
}

static void bench_all(struct grad_bench *b)
{
    static const int linears[][2] = {{64, 64},   {64, 192},  {64, 384},  {192, 64},
                                     {256, 256}, {256, 768}, {768, 256}, {64, 49}};
    for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++) {
        const int k = linears[i][0], n_out = linears[i][1];
        const double flops = 2.0 * ROWS * k * n_out;
        const struct grad_shape shapes[] = {
            {"linear", run_linear, ROWS, k, n_out, flops},
            {"linear_back_input", run_back_input, ROWS, k, n_out, flops},
            {"linear_back_weight", run_back_weight, ROWS, k, n_out, flops},
        };
        for (int j = 0; j < 3; j++)
            bench_print(b, &shapes[j], bench_time(b, &shapes[j]));
    }
    /* A pair of rows is two products of D going forward, five going back. */
    const double branches = visible_pairs(100, 60, 4) * 2 * 32, causal = visible_pairs(256, 256, 1);
    const struct grad_shape rest[] = {
        {"attention", run_attention, 100, 32, 2, 4.0 * branches},
        {"attention_back", run_attention_back, 100, 32, 2, 10.0 * branches},
        {"attention_causal", run_causal, 256, 32, 4, 4.0 * causal * 4 * 32},
        {"attention_causal_back", run_causal_back, 256, 32, 4, 10.0 * causal * 4 * 32},
        {"norm", run_norm, ROWS, 64, 0, 0},
        {"norm_back", run_norm_back, ROWS, 64, 0, 0},
        {"swiglu", run_swiglu, ROWS, 192, 0, 0},
        {"swiglu_back", run_swiglu_back, ROWS, 192, 0, 0},
        {"cross_entropy", run_cross_entropy, ROWS, 49, 0, 0},
        {"adamw", run_adamw, ROWS, 142, 0, 0},
    };
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        bench_print(b, &rest[i], bench_time(b, &rest[i]));
}

static enum status bench_memory(struct grad_bench *b, struct err *err)
{
    bool has_all = true;
    for (int i = 0; i < N_AREAS; i++) {
        b->area[i] = malloc(MAX_FLOATS * sizeof(float));
        has_all = has_all && b->area[i] != NULL;
    }
    b->scratch = malloc(grad_attention_scratch(256, 32) * sizeof(float));
    b->ids = malloc(2 * ROWS * sizeof *b->ids);
    if (!has_all || b->scratch == NULL || b->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d MiB of rows",
                       (int)(N_AREAS * MAX_FLOATS * sizeof(float) >> 20));
    for (int a = 0; a < N_AREAS; a++)
        for (int i = 0; i < MAX_FLOATS; i++)
            b->area[a][i] = (float)((i + a) % 7) * 0.125f + 0.0625f;
    return STATUS_OK;
}

static enum status bench_peak(struct grad_bench *b, const char *isa, struct err *err)
{
    const struct kernels_options options = {.isa = isa, .n_threads = 1};
    struct kernels *k;
    struct kernels_machine machine;
    enum status st = kernels_create("cpu", &options, &k, err);
    if (st != STATUS_OK)
        return st;
    st = kernels_measure_machine(k, &machine, err);
    if (st == STATUS_OK)
        b->peak_gflops = machine.peak_gflops;
    kernels_destroy(k);
    return st;
}

int cli_bench_grad(const char *isa, bool is_json, bool is_quick)
{
    struct grad_bench b = {.is_json = is_json, .is_quick = is_quick};
    struct err err = {0};
    enum status st = grad_find(isa, &b.ops, &err);
    if (st == STATUS_OK)
        st = bench_memory(&b, &err);
    if (st == STATUS_OK)
        st = bench_peak(&b, b.ops->name, &err);
    if (st == STATUS_OK) {
        if (is_json)
            printf("[");
        else
            printf("\n%s, 1 thread: peak %.1f GFLOP/s\n  %-20s %5s %5s %5s %10s %9s %7s\n",
                   b.ops->name, b.peak_gflops, "operation", "rows", "k", "n_out", "us", "GFLOP/s",
                   "/peak");
        bench_all(&b);
        if (is_json)
            printf("\n]\n");
    }
    for (int i = 0; i < N_AREAS; i++)
        free(b.area[i]);
    free(b.scratch);
    free(b.ids);
    return st == STATUS_OK ? CLI_OK : cli_fail("bench kernels", &err);
}
