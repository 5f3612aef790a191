/* `carousel bench trace`: what one trace record costs, in a warm and in a cold buffer, and a copy
 * of them. */
#include "cli/bench_trace.h"

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/sorted.h"
#include "cluster/host.h"
#include "proto/trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A cold run is as many records as a batch of a busy worker makes: few enough that they do not warm
 * up their own cache lines, enough that the two clock readings around them hardly count. */
enum { RUNS = 25, HOT_RECORDS = 64, HOT_TIMES = 2000, COLD_RECORDS = 32 };
/* Read between two cold runs; larger than the caches that one core fills alone. */
enum { COLD_BYTES = 16 << 20 };

/* Far past every cache, and still there on a small host: a larger buffer costs no more a record. */
static const uint64_t MOST_BYTES = UINT64_C(64) << 20;

static const char usage[] = "usage: carousel bench trace [--trace-buffer SIZE] [--json]\n"
                            "Writes trace records as the workers do: nanoseconds for each.";

/* As much as stage_trace.c writes for a segment. */
static void add_rows(struct trace *t, uint64_t now_ns, uint32_t i)
{
    struct trace_record *r = trace_add(t, TRACE_ROWS, now_ns);
    r->lasted_ns = 1000;
    r->sequence = i;
    r->position = i;
    r->n_rows = 1;
    r->loop = 1 + i % 4;
    r->flags = TRACE_LIVE;
    r->peer = 1;
    r->rows.hop_ns = 10;
    r->rows.wait_ns = i;
}

static void add_message(struct trace *t, uint32_t i)
{
    uint64_t began_ns = host_now_ns();
    struct trace_record *r = trace_add(t, TRACE_SEND, began_ns);
    r->lasted_ns = host_now_ns() - began_ns;
    r->peer = 1;
    r->message.n_bytes = i;
    r->message.n_frames = 1;
}

/* Fills the caches with something else. */
static uint64_t cool_down(const unsigned char *bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < COLD_BYTES; i += 64)
        sum += bytes[i];
    return sum;
}

static double median(double *values)
{
    sorted_doubles(values, RUNS);
    return values[RUNS / 2];
}

static enum status measure_hot(double *out, struct err *err)
{
    struct trace *t;
    enum status status = trace_create(HOT_RECORDS * sizeof(struct trace_record), &t, err);
    if (status != STATUS_OK)
        return status;
    double ns[RUNS];
    for (int run = 0; run < RUNS; run++) {
        uint64_t began_ns = host_now_ns();
        for (uint32_t i = 0; i < HOT_RECORDS * HOT_TIMES; i++)
            add_rows(t, began_ns, i);
        ns[run] = (double)(host_now_ns() - began_ns) / (HOT_RECORDS * HOT_TIMES);
    }
    trace_destroy(t);
    *out = median(ns);
    return STATUS_OK;
}

static void measure_cold(struct trace *t, const unsigned char *other,
                         struct bench_trace_figures *out)
{
    double rows[RUNS], messages[RUNS];
    volatile uint64_t sink = 0;
    for (int run = 0; run < RUNS; run++) {
        sink += cool_down(other);
        uint64_t began_ns = host_now_ns();
        for (uint32_t i = 0; i < COLD_RECORDS; i++)
            add_rows(t, began_ns, i);
        uint64_t between_ns = host_now_ns();
        sink += cool_down(other);
        uint64_t again_ns = host_now_ns();
        for (uint32_t i = 0; i < COLD_RECORDS; i++)
            add_message(t, i);
        messages[run] = (double)(host_now_ns() - again_ns) / COLD_RECORDS;
        rows[run] = (double)(between_ns - began_ns) / COLD_RECORDS;
    }
    (void)sink;
    out->cold_ns = median(rows);
    out->message_ns = median(messages);
}

static void measure_copy(struct trace *t, struct trace_record *to, struct bench_trace_figures *out)
{
    double all[RUNS], some[RUNS];
    const uint64_t n = out->n_records;
    for (uint64_t i = 0; i < n; i++)
        add_rows(t, i, (uint32_t)i);
    for (int run = 0; run < RUNS; run++) {
        uint64_t began_ns = host_now_ns();
        trace_copy(t, 0, to, n, NULL);
        uint64_t between_ns = host_now_ns();
        trace_copy(t, n - n / 10 + 1000, to, n, NULL); /* each ends 1000 after its number */
        some[run] = (double)(host_now_ns() - between_ns) / (double)n;
        all[run] = (double)(between_ns - began_ns) / (double)n;
    }
    out->copy_ns = median(all);
    out->copy_window_ns = median(some);
}

enum status bench_trace_measure(uint64_t n_bytes, struct bench_trace_figures *out, struct err *err)
{
    struct bench_trace_figures figures = {0};
    struct trace *t = NULL;
    enum status status = measure_hot(&figures.hot_ns, err);
    if (status == STATUS_OK)
        status = trace_create(n_bytes < MOST_BYTES ? n_bytes : MOST_BYTES, &t, err);
    if (status != STATUS_OK)
        return status;
    figures.n_records = t->mask + 1;
    unsigned char *other = calloc(1, COLD_BYTES);
    struct trace_record *to = calloc(figures.n_records, sizeof *to);
    if (other == NULL || to == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for a copy of %llu trace records",
                         (unsigned long long)figures.n_records);
        goto out;
    }
    /* Every page is there: what a page fault costs is the run's start, not a record. */
    memset(t->records, 1, figures.n_records * sizeof *t->records);
    memset(to, 1, figures.n_records * sizeof *to);
    memset(other, 1, COLD_BYTES);
    measure_cold(t, other, &figures);
    measure_copy(t, to, &figures);
    *out = figures;
out:
    free(other);
    free(to);
    trace_destroy(t);
    return status;
}

int cli_bench_trace(int argc, char **argv)
{
    uint64_t n_bytes = UINT64_C(8) << 20;
    bool as_json = false;
    const struct option_spec own[] = {
        {"trace-buffer", 0, OPTION_BYTES, &n_bytes, "SIZE", NULL, 0, 0,
         "of the ring buffer (default 8M; 64M at most)", NULL},
        {"json", 0, OPTION_FLAG, &as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    struct option_group group = {own, sizeof own / sizeof own[0]};
    struct options_result args;
    struct err err = {0};
    enum status status = options_parse(&group, 1, argc, argv, &args, &err);
    if (status == STATUS_OK && args.wants_help) {
        options_print_help(usage, &group, 1, &args);
        return CLI_OK;
    }
    if (status == STATUS_OK && args.n_positionals != 0)
        status = err_set(&err, STATUS_INVALID, "it takes no model: '%s' is too much",
                         args.positionals[0]);
    if (status == STATUS_OK && n_bytes == 0)
        status = err_set(&err, STATUS_INVALID, "a buffer of 0 bytes records nothing");
    if (status != STATUS_OK)
        return cli_fail_usage("bench trace", &err);
    struct bench_trace_figures f;
    if (bench_trace_measure(n_bytes, &f, &err) != STATUS_OK)
        return cli_fail("bench trace", &err);
    if (as_json) {
        printf("{\"records\": %llu, \"hot_ns\": %.2f, \"cold_ns\": %.2f, \"message_ns\": %.2f, "
               "\"copy_ns\": %.3f, \"copy_window_ns\": %.3f}\n",
               (unsigned long long)f.n_records, f.hot_ns, f.cold_ns, f.message_ns, f.copy_ns,
               f.copy_window_ns);
        return CLI_OK;
    }
    printf("a buffer of %llu records of %zu bytes, medians of %d runs\n",
           (unsigned long long)f.n_records, sizeof(struct trace_record), RUNS);
    printf("  a record of rows, warm       %6.1f ns\n", f.hot_ns);
    printf("  a record of rows, cold       %6.1f ns\n", f.cold_ns);
    printf("  a record of a message, cold  %6.1f ns (two looks at the clock in it)\n",
           f.message_ns);
    printf("  copying all of them          %6.2f ns each, %.2f ms together\n", f.copy_ns,
           f.copy_ns * (double)f.n_records / 1e6);
    printf("  copying the last tenth       %6.2f ns each of all, %.2f ms together\n",
           f.copy_window_ns, f.copy_window_ns * (double)f.n_records / 1e6);
    return CLI_OK;
}
