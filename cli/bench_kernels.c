/* Times the shapes of the Ouro-1.4B block against the multiply-add peak and read bandwidth of the
 * same run. */
#include "cli/bench_kernels.h"

#include "cli/bench_grad.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/sorted.h"
#include "kernels/kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum {
    MAX_ROW_COUNTS = 32,
    MAX_REPEATS = 64,
    MAX_OUT = 49152,
    MAX_IN = 6144, /* of the wider linears, and the q, k and v of an attention's row */
    ATTENTION_CONTEXT = 4096,
};

/* Weights are taken from one after the other of many places of this area, so that they come from
 * memory and not from a last-level cache, as the layers of a real model do. */
static const size_t area_bytes = (size_t)1280 << 20;
static const size_t area_quick_bytes = (size_t)640 << 20;

struct bench_shape {
    const char *name;
    int n_in, n_jobs, n_out; /* n_out of each job */
};

static const struct bench_shape bench_shapes[] = {
    {"qkv", 2048, 3, 2048},  {"o", 2048, 1, 2048},     {"gate_up", 2048, 2, 5632},
    {"down", 5632, 1, 2048}, {"head", 2048, 1, 49152},
};
enum { N_BENCH_SHAPES = sizeof bench_shapes / sizeof bench_shapes[0] };

struct bench {
    const char *isa;
    int n_threads; /* 0: one thread, then all cores */
    int rows[MAX_ROW_COUNTS], n_row_counts;
    bool is_json, is_quick, is_training;
    unsigned char *area;
    size_t area_len;
    float *x, *y;
    bool has_printed; /* a JSON entry, so the next needs a comma */
};

struct bench_result {
    const char *shape;
    int rows;
    double seconds, best_seconds; /* median and least of the repeats */
    double flops, bytes;
};

static double bench_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void print_head(const struct bench *b, struct kernels *k, const struct kernels_machine *m)
{
    if (b->is_json)
        return;
    printf("\n%s, %d thread%s: peak %.1f GFLOP/s, read %.1f GB/s\n", kernels_isa(k),
           kernels_threads(k), kernels_threads(k) == 1 ? "" : "s", m->peak_gflops,
           m->read_gbytes_s);
    printf("  %-18s %5s %10s %9s %7s %8s %7s\n", "shape", "rows", "us", "GFLOP/s", "/peak", "GB/s",
           "/read");
}

static void print_result(struct bench *b, struct kernels *k, const struct kernels_machine *m,
                         const struct bench_result *r)
{
    double gflops = r->flops / r->seconds * 1e-9, gbytes = r->bytes / r->seconds * 1e-9;
    if (!b->is_json) {
        printf("  %-18s %5d %10.1f %9.1f %7.2f %8.2f %7.2f\n", r->shape, r->rows, r->seconds * 1e6,
               gflops, gflops / m->peak_gflops, gbytes, gbytes / m->read_gbytes_s);
        fflush(stdout);
        return;
    }
    printf("%s\n  {\"isa\": \"%s\", \"threads\": %d, \"shape\": \"%s\", \"rows\": %d, "
           "\"seconds\": %.9f, \"best_seconds\": %.9f, \"gflops\": %.2f, \"gbytes_s\": %.3f, "
           "\"peak_gflops\": %.2f, \"read_gbytes_s\": %.3f, "
           "\"of_peak\": %.4f, \"of_read\": %.4f}",
           b->has_printed ? "," : "", kernels_isa(k), kernels_threads(k), r->shape, r->rows,
           r->seconds, r->best_seconds, gflops, gbytes, m->peak_gflops, m->read_gbytes_s,
           gflops / m->peak_gflops, gbytes / m->read_gbytes_s);
    b->has_printed = true;
}

/* How often to repeat something that took `seconds` once. */
static int bench_repeats(const struct bench *b, double seconds)
{
    double budget = b->is_quick ? 0.05 : 0.3;
    int n = (int)(budget / (seconds > 1e-9 ? seconds : 1e-9));
    return n < 3 ? 3 : n > MAX_REPEATS ? MAX_REPEATS : n;
}

static enum status bench_linear(struct bench *b, struct kernels_stream *s,
                                const struct bench_shape *shape, struct bench_result *r,
                                struct err *err)
{
    const size_t one = (size_t)shape->n_in * (size_t)shape->n_out * 2;
    const size_t all = one * (size_t)shape->n_jobs;
    const size_t n_places = b->area_len / all;
    struct kernels_weight weights[KERNELS_LINEAR_MAX_JOBS];
    const struct kernels_weight *w[KERNELS_LINEAR_MAX_JOBS];
    double took[MAX_REPEATS];
    int n_repeats = 1;
    /* The first run warms the scratch and says how long one takes. */
    for (int i = -1; i < n_repeats; i++) {
        for (int j = 0; j < shape->n_jobs; j++) {
            weights[j] = (struct kernels_weight){
                .data = b->area + (size_t)(i + 1) % n_places * all + (size_t)j * one,
                .dtype = DTYPE_BF16,
                .rows = shape->n_out,
                .cols = shape->n_in};
            w[j] = &weights[j];
        }
        double start = bench_now_s();
        enum status st = kernels_linear(s, b->y, DTYPE_F32, b->x, w, shape->n_jobs, r->rows, err);
        if (st == STATUS_OK)
            st = kernels_stream_sync(s, err);
        if (st != STATUS_OK)
            return st;
        double seconds = bench_now_s() - start;
        if (i < 0)
            n_repeats = bench_repeats(b, seconds);
        else
            took[i] = seconds;
    }
    sorted_doubles(took, (size_t)n_repeats);
    r->seconds = took[n_repeats / 2];
    r->best_seconds = took[0];
    r->flops = 2.0 * (double)r->rows * shape->n_in * shape->n_out * shape->n_jobs;
    r->bytes = (double)all;
    return STATUS_OK;
}

/* One row of each of `sequences` at 4096 positions, cycling through layers. */
static enum status bench_attention(struct bench *b, struct kernels *k, int n_layers, int sequences,
                                   struct bench_result *r, struct err *err)
{
    enum { HEADS = 16, D = 128, BLOCK = 16, BLOCKS = ATTENTION_CONTEXT / BLOCK, MOST = 4 };
    struct kernels_kv kv;
    struct kernels_stream *s = NULL;
    enum status st =
        kernels_kv_create(k, DTYPE_BF16, BLOCKS * sequences, BLOCK, n_layers, HEADS, D, &kv, err);
    if (st != STATUS_OK)
        return st;
    st = kernels_stream_create(k, "attention", &s, err);
    if (st != STATUS_OK)
        goto out;
    for (size_t at = 0; at < kv.memory.len_bytes; at += b->area_len) {
        size_t rest = kv.memory.len_bytes - at;
        st = kernels_upload(s, (unsigned char *)kv.memory.data + at, b->area,
                            rest < b->area_len ? rest : b->area_len, err);
        if (st != STATUS_OK)
            goto out;
    }
    struct kernels_segment segments[MOST];
    int32_t table[BLOCKS * MOST];
    for (int i = 0; i < sequences; i++)
        segments[i] = (struct kernels_segment){.first_row = i,
                                               .n_rows = 1,
                                               .first_position = ATTENTION_CONTEXT - 1,
                                               .first_block = i * BLOCKS,
                                               .n_blocks = BLOCKS};
    /* Blocks in the scattered order of a pool that has been used for a while. */
    for (int i = 0; i < BLOCKS * sequences; i++)
        table[i] = (int)((long)i * 37 % (BLOCKS * sequences));
    const struct kernels_batch batch = {
        .n_rows = sequences, .n_segments = sequences, .segments = segments, .block_table = table};
    const struct kernels_limits limits = {.n_rows = sequences,
                                          .n_segments = sequences,
                                          .n_table = BLOCKS * sequences,
                                          .block_size = BLOCK,
                                          .n_heads = HEADS,
                                          .n_kv_heads = HEADS,
                                          .head_dim = D};
    double took[MAX_REPEATS];
    int n_repeats = 1;
    st = kernels_stream_reserve(s, &limits, err);
    if (st == STATUS_OK)
        st = kernels_bind(s, &batch, &kv, 0, err);
    if (st != STATUS_OK)
        goto out;
    for (int i = -1; i < n_repeats; i++) {
        double start = bench_now_s();
        st = kernels_attention(s, b->y, b->x, HEADS, &kv, (i + 1) % n_layers, sequences, err);
        if (st == STATUS_OK)
            st = kernels_stream_sync(s, err);
        if (st != STATUS_OK)
            goto out;
        if (i < 0)
            n_repeats = bench_repeats(b, bench_now_s() - start);
        else
            took[i] = bench_now_s() - start;
    }
    sorted_doubles(took, (size_t)n_repeats);
    r->seconds = took[n_repeats / 2];
    r->best_seconds = took[0];
    r->flops = 4.0 * sequences * ATTENTION_CONTEXT * HEADS * D;
    r->bytes = 4.0 * sequences * ATTENTION_CONTEXT * HEADS * D; /* K and V, two bytes each */
out:
    kernels_stream_destroy(s);
    kernels_kv_destroy(k, &kv);
    return st;
}

static enum status bench_threads(struct bench *b, int n_threads, struct err *err)
{
    /* A benchmark has the machine to itself. */
    const struct kernels_options options = {
        .isa = b->isa, .n_threads = n_threads, .may_spin = true};
    struct kernels *k = NULL;
    struct kernels_stream *s = NULL;
    struct kernels_machine machine;
    enum status st = kernels_create("cpu", &options, &k, err);
    if (st == STATUS_OK)
        st = kernels_stream_create(k, "bench", &s, err);
    if (st == STATUS_OK)
        st = kernels_measure_machine(k, &machine, err);
    if (st == STATUS_OK)
        print_head(b, k, &machine);
    for (int i = 0; st == STATUS_OK && i < N_BENCH_SHAPES; i++) {
        for (int j = 0; st == STATUS_OK && j < b->n_row_counts; j++) {
            struct bench_result r = {.shape = bench_shapes[i].name, .rows = b->rows[j]};
            st = bench_linear(b, s, &bench_shapes[i], &r, err);
            if (st == STATUS_OK)
                print_result(b, k, &machine, &r);
        }
    }
    /* Measured again: a shared machine changes under our feet. */
    if (st == STATUS_OK)
        st = kernels_measure_machine(k, &machine, err);
    if (st == STATUS_OK)
        print_head(b, k, &machine);
    for (int sequences = 1; st == STATUS_OK && sequences <= 4; sequences *= 4) {
        struct bench_result r = {.shape = "attention_decode_4k", .rows = sequences};
        /* About the footprint of the weights: 32 MiB a layer and sequence. */
        int n_layers = (int)(b->area_len >> 25) / sequences;
        st = bench_attention(b, k, n_layers, sequences, &r, err);
        if (st == STATUS_OK)
            print_result(b, k, &machine, &r);
    }
    kernels_stream_destroy(s);
    kernels_destroy(k);
    return st;
}

static enum status bench_memory(struct bench *b, struct err *err)
{
    int most = 1;
    for (int i = 0; i < b->n_row_counts; i++)
        most = b->rows[i] > most ? b->rows[i] : most;
    most = most < 4 ? 4 : most;
    b->area_len = b->is_quick ? area_quick_bytes : area_bytes;
    void *area =
        mmap(NULL, b->area_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->area = area == MAP_FAILED ? NULL : area;
    b->x = malloc((size_t)most * MAX_IN * sizeof(float));
    b->y = malloc((size_t)most * MAX_OUT * sizeof(float));
    if (b->area == NULL || b->x == NULL || b->y == NULL)
        return err_set(err, STATUS_NO_MEMORY,
                       "no memory for %zu MiB of weights and %d rows; try --quick",
                       b->area_len >> 20, most);
    /* bf16 of random sign and mantissa between 1/64 and 1/32: no zeros, no subnormals. */
    enum { PATTERN = 1 << 20 };
    uint16_t *pattern = (uint16_t *)area;
    uint64_t state = 1;
    for (int i = 0; i < PATTERN / 2; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        pattern[i] = (uint16_t)(0x3c80u | (state >> 40 & 0x807fu));
    }
    for (size_t at = PATTERN; at < b->area_len; at += PATTERN)
        memcpy(b->area + at, b->area, PATTERN);
    for (size_t i = 0; i < (size_t)most * MAX_IN; i++)
        b->x[i] = (float)(i % 7) * 0.125f - 0.375f;
    return STATUS_OK;
}

static bool parse_rows(struct bench *b, const char *text)
{
    b->n_row_counts = 0;
    for (const char *p = text; *p != '\0';) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 1 || v > 4096 || b->n_row_counts == MAX_ROW_COUNTS)
            return false;
        b->rows[b->n_row_counts++] = (int)v;
        p = *end == ',' ? end + 1 : end;
        if (*end != ',' && *end != '\0')
            return false;
    }
    return b->n_row_counts > 0;
}

static const char usage[] =

    "usage: carousel bench kernels [options]\n"
    "Linear layers of the Ouro-1.4B block (bf16 weights, fp32 activations) and decode\n"
    "attention at 4096 positions, beside the multiply-add peak and read bandwidth of\n"
    "the same run.";

/* -1: go on; otherwise the exit code. */
static int bench_parse(struct bench *b, int argc, char **argv)
{
    const char *rows = "1,2,4,8,16,32,64,256";
    int isa = 0;
    const struct option_spec own[] = {
        {"json", 0, OPTION_FLAG, &b->is_json, NULL, NULL, 0, 0, "print one JSON array", NULL},
        {"threads", 0, OPTION_INT, &b->n_threads, "N", NULL, 1, 1024,
         "compute threads (default: 1, then all cores)", NULL},
        {"isa", 0, OPTION_CHOICE, &isa, NULL, "auto|portable|avx2|avx512|amx", 0, 0,
         "instruction set", NULL},
        {"rows", 0, OPTION_STRING, &rows, "LIST", NULL, 0, 0,
         "row counts (default 1,2,4,8,16,32,64,256)", NULL},
        {"quick", 0, OPTION_FLAG, &b->is_quick, NULL, NULL, 0, 0, "half the memory, fewer repeats",
         NULL},
        {"training", 0, OPTION_FLAG, &b->is_training, NULL, NULL, 0, 0,
         "the kernels of training, on one thread", NULL},
    };
    static const char *const levels[] = {"auto", "portable", "avx2", "avx512", "amx"};
    const struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    struct err err = {0};
    enum status status = options_parse(&group, 1, argc, argv, &args, &err);
    if (status == STATUS_OK && args.wants_help) {
        options_print_help(usage, &group, 1, &args);
        return CLI_OK;
    }
    if (status == STATUS_OK && args.n_positionals > 0)
        status = err_set(&err, STATUS_INVALID, "unexpected argument '%s'", args.positionals[0]);
    if (status == STATUS_OK && !parse_rows(b, rows))
        status = err_set(&err, STATUS_INVALID,
                         "--rows: '%s' is not a list of numbers from 1 to 4096, as 1,8,64", rows);
    b->isa = levels[isa];
    return status == STATUS_OK ? -1 : cli_fail_usage("bench kernels", &err);
}

int cli_bench_kernels(int argc, char **argv)
{
    struct bench b = {0};
    int code = bench_parse(&b, argc, argv);
    if (code >= 0)
        return code;
    if (b.is_training)
        return cli_bench_grad(b.isa, b.is_json, b.is_quick);
    struct err err = {0};
    enum status st = bench_memory(&b, &err);
    if (st != STATUS_OK)
        goto out;
    if (b.is_json)
        printf("[");
    st = bench_threads(&b, b.n_threads == 0 ? 1 : b.n_threads, &err);
    if (st == STATUS_OK && b.n_threads == 0)
        st = bench_threads(&b, 0, &err);
    if (b.is_json)
        printf("\n]\n");
out:
    if (b.area != NULL)
        munmap(b.area, b.area_len);
    free(b.x);
    free(b.y);
    if (st == STATUS_OK)
        return CLI_OK;
    return st == STATUS_INVALID ? cli_fail_usage("bench kernels", &err)
                                : cli_fail("bench kernels", &err);
}
