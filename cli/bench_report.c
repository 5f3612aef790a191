/* Gathers the figures of `bench engine` and prints them, as a table or as JSON. */
#include "cli/bench_report.h"
#include "cli/sorted.h"

#include "proto/fnv.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct bench_measure {
    uint32_t n, cap;
    double *ttft_ms, *tpot_ms; /* tpot NAN with fewer than two tokens */
    uint64_t n_tokens, n_cancelled, exits[SEQUENCE_MAX_LOOPS + 1];
    uint64_t steady_from_ns, steady_to_ns, n_steady_tokens;
    uint64_t hash; /* sum over requests of a hash of (request, tokens, exits): independent of the
                      order they end in */
};

enum status bench_measure_create(uint32_t n_requests, struct bench_measure **out, struct err *err)
{
    struct bench_measure *m = calloc(1, sizeof *m);
    if (m != NULL) {
        m->cap = n_requests;
        m->ttft_ms = calloc(n_requests, sizeof *m->ttft_ms);
        m->tpot_ms = calloc(n_requests, sizeof *m->tpot_ms);
    }
    if (m == NULL || m->ttft_ms == NULL || m->tpot_ms == NULL) {
        bench_measure_destroy(m);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u requests", n_requests);
    }
    *out = m;
    return STATUS_OK;
}

void bench_measure_destroy(struct bench_measure *m)
{
    if (m == NULL)
        return;
    free(m->ttft_ms);
    free(m->tpot_ms);
    free(m);
}

void bench_measure_begin(struct bench_measure *m)
{
    m->n = 0;
    m->n_tokens = m->n_cancelled = m->hash = 0;
    m->steady_from_ns = m->steady_to_ns = m->n_steady_tokens = 0;
    memset(m->exits, 0, sizeof m->exits);
}

void bench_measure_token(struct bench_measure *m)
{
    m->n_steady_tokens += m->steady_from_ns != 0 && m->steady_to_ns == 0;
}

void bench_measure_begin_steady(struct bench_measure *m, uint64_t now_ns)
{
    if (m->steady_from_ns == 0)
        m->steady_from_ns = now_ns;
}

void bench_measure_end_steady(struct bench_measure *m, uint64_t now_ns)
{
    if (m->steady_from_ns != 0 && m->steady_to_ns == 0)
        m->steady_to_ns = now_ns;
}

/* 0 when all requests were in flight at once. */
static double steady_seconds(const struct bench_measure *m)
{
    return m->steady_to_ns != 0 ? (double)(m->steady_to_ns - m->steady_from_ns) / 1e9 : 0;
}

static double steady_tokens_per_s(const struct bench_measure *m)
{
    return steady_seconds(m) > 0 ? (double)m->n_steady_tokens / steady_seconds(m) : 0;
}

static uint64_t hash_word(uint64_t hash, uint64_t word)
{
    return fnv_bytes(hash, &word, sizeof word);
}

void bench_measure_request(struct bench_measure *m, uint32_t index,
                           const struct completion_end *end, const int32_t *tokens,
                           const uint8_t *exits, uint32_t n_tokens)
{
    uint64_t hash = hash_word(FNV_START, index);
    for (uint32_t i = 0; i < n_tokens; i++) {
        hash = hash_word(hash, (uint64_t)(uint32_t)tokens[i] << 8 | exits[i]);
        if (exits[i] <= SEQUENCE_MAX_LOOPS)
            m->exits[exits[i]]++;
    }
    m->n_tokens += n_tokens;
    if (end->reason == FINISH_CANCELLED) {
        m->n_cancelled++;
        return;
    }
    /* A cancelled request's length depends on when the cancel arrived, so it is not hashed. */
    m->hash += hash;
    if (end->first_token_ns == 0 || m->n == m->cap)
        return;
    m->ttft_ms[m->n] = (double)(end->first_token_ns - end->submitted_ns) / 1e6;
    m->tpot_ms[m->n] =
        n_tokens > 1 ? (double)(end->ended_ns - end->first_token_ns) / 1e6 / (n_tokens - 1) : NAN;
    m->n++;
}

/* The quantile of the finite values; 0 when there are none. */
static double quantile(const double *values, uint32_t n, double q)
{
    double *sorted = malloc((n + 1) * sizeof *sorted);
    uint32_t kept = 0;
    for (uint32_t i = 0; sorted != NULL && i < n; i++)
        if (isfinite(values[i]))
            sorted[kept++] = values[i];
    double result = 0;
    if (kept > 0) {
        sorted_doubles(sorted, kept);
        result = sorted[(uint32_t)(q * (kept - 1) + 0.5)];
    }
    free(sorted);
    return result;
}

static json_t *quantiles(const double *values, uint32_t n)
{
    return json_pack("{s:f, s:f, s:f}", "p50", quantile(values, n, 0.5), "p90",
                     quantile(values, n, 0.9), "p99", quantile(values, n, 0.99));
}

static double share(uint64_t part, uint64_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 0;
}

static json_t *worker_json(const struct control_stats *st, int rank)
{
    json_t *by_loop = json_array();
    for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
        json_array_append_new(by_loop, json_integer((json_int_t)st->rows_by_loop[t]));
    return json_pack(
        "{s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
        "rank", rank, "batches", (json_int_t)st->n_batches, "rows", (json_int_t)st->n_rows,
        "rows_per_batch", share(st->n_rows, st->n_batches), "busy",
        share(st->busy_ns, st->elapsed_ns), "idle_starved",
        share(st->idle_starved_ns, st->elapsed_ns), "idle_waiting",
        share(st->idle_waiting_ns, st->elapsed_ns), "messages_sent",
        (json_int_t)st->n_messages_sent, "bytes_sent", (json_int_t)st->n_bytes_sent,
        "kv_blocks_used", (json_int_t)st->kv_blocks_used, "kv_blocks_total",
        (json_int_t)st->kv_blocks_total, "parked_rows", (json_int_t)st->parked_rows, "parked_total",
        (json_int_t)st->n_parked_total, "revived_total", (json_int_t)st->n_revived_total,
        "batch_ns", (json_int_t)st->batch_ns, "row_ns", (json_int_t)st->row_ns, "rows_by_loop",
        by_loop);
}

/* Bytes one token of a single stream reads at least: the block once a loop, the head, and the K/V
 * of half the final length. */
static double token_bytes(const struct session *s, const struct bench_workload *w, double mean_exit)
{
    const struct checkpoint *cp = s->checkpoint;
    const struct model_config *c = &cp->config;
    double element = (double)dtype_bytes(cp->dtype);
    double table = (double)c->vocab_size * c->d_model * element;
    double block = (double)config_count_parameters(c) * element - table * (c->is_tied ? 1 : 2);
    enum dtype kv = session_kv_dtype(s);
    double context = w->prompt_max + w->output_max / 2.0;
    return mean_exit * (block + context * (double)config_kv_bytes_per_position(c, kv)) + table;
}

struct totals {
    uint64_t rows, batches, busy_ns, bytes, messages;
    double seconds, mean_exit, tokens_per_s, tpot_ms;
};

static struct totals sum_up(const struct bench_report *report, const struct bench_measure *m,
                            const struct session *s)
{
    struct totals t = {.seconds = (double)(report->ended_ns - report->began_ns) / 1e9};
    for (int i = 0; i < s->n_workers; i++) {
        t.rows += report->stats[i].n_rows;
        t.batches += report->stats[i].n_batches;
        t.busy_ns += report->stats[i].busy_ns;
        t.bytes += report->stats[i].n_bytes_sent;
        t.messages += report->stats[i].n_messages_sent;
    }
    for (int e = 1; e <= SEQUENCE_MAX_LOOPS; e++)
        t.mean_exit += (double)e * (double)m->exits[e];
    t.mean_exit /= m->n_tokens > 0 ? (double)m->n_tokens : 1;
    t.tokens_per_s = (double)m->n_tokens / t.seconds;
    t.tpot_ms = quantile(m->tpot_ms, m->n, 0.5);
    return t;
}

/* Made by all workers, and the share of their time that took at most. */
struct trace_cost {
    uint64_t n_records;
    double share;
};

static struct trace_cost trace_cost(const struct bench_report *report, int n_workers)
{
    struct trace_cost cost = {0};
    uint64_t elapsed_ns = 0;
    for (int i = 0; i < n_workers; i++) {
        cost.n_records += report->stats[i].n_trace_records;
        elapsed_ns += report->stats[i].elapsed_ns;
    }
    if (elapsed_ns > 0)
        cost.share = (double)cost.n_records * report->trace_record_ns / (double)elapsed_ns;
    return cost;
}

/* Coordinator and workers decide it by this: all or none. */
static bool are_rows_apart(const struct session *s)
{
    for (uint32_t w = 0; w < coordinator_n_workers(s->coordinator); w++)
        if (!coordinator_worker_hello(s->coordinator, w)->is_direct)
            return false;
    return true;
}

static void print_json(const struct bench_report *report, const struct bench_measure *m,
                       const struct session *s, const struct bench_workload *w, struct totals t)
{
    char hash[20];
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)m->hash);
    json_t *workers = json_array(), *exits = json_array();
    for (int i = 0; i < s->n_workers; i++)
        json_array_append_new(workers, worker_json(&report->stats[i], i + 1));
    for (int e = 1; e <= s->checkpoint->config.n_loops; e++)
        json_array_append_new(exits, json_integer((json_int_t)m->exits[e]));
    json_t *root = json_pack(
        "{s:i, s:s, s:i, s:i, s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:I, s:I, "
        "s:s, "
        "s:o}",
        "workers_count", s->n_workers, "batching",
        batching_name((enum batching)s->options.batching), "requests", w->n_requests, "concurrency",
        w->concurrency, "open_max", (int)report->n_open_max, "cancelled",
        (json_int_t)m->n_cancelled, "tokens", (json_int_t)m->n_tokens, "seconds", t.seconds,
        "tokens_per_s", t.tokens_per_s, "loop_rows_per_s", (double)t.rows / t.seconds,
        "mean_exit_loop", t.mean_exit, "rows_per_batch", share(t.rows, t.batches), "ttft_ms",
        quantiles(m->ttft_ms, m->n), "tpot_ms", quantiles(m->tpot_ms, m->n), "exits", exits,
        "loop_rows", (json_int_t)t.rows, "bytes_sent", (json_int_t)t.bytes, "tokens_hash", hash,
        "workers", workers);
    json_object_set_new(root, "rows_apart", json_boolean(are_rows_apart(s)));
    json_object_set_new(root, "coordinator_cpu_s",
                        json_real((double)report->coordinator_cpu_ns / 1e9));
    if (steady_seconds(m) > 0) {
        json_object_set_new(root, "steady_seconds", json_real(steady_seconds(m)));
        json_object_set_new(root, "steady_tokens_per_s", json_real(steady_tokens_per_s(m)));
    }
    if (w->concurrency == 1 && s->n_workers > 1 && t.batches > 0)
        json_object_set_new(
            root, "hop_us",
            json_real((t.seconds * 1e9 - (double)t.busy_ns) / 1e3 / (double)t.batches));
    if (report->machine.read_gbytes_s > 0) {
        double bound = report->machine.read_gbytes_s * 1e9 / token_bytes(s, w, t.mean_exit);
        json_object_set_new(root, "read_gbytes_s", json_real(report->machine.read_gbytes_s));
        json_object_set_new(root, "bound_tokens_per_s", json_real(bound));
        json_object_set_new(root, "bound_ratio",
                            json_real(t.tpot_ms > 0 ? 1e3 / t.tpot_ms / bound : 0));
    }
    struct trace_cost cost = trace_cost(report, s->n_workers);
    json_object_set_new(root, "trace",
                        json_pack("{s:I, s:f, s:f}", "records", (json_int_t)cost.n_records,
                                  "record_ns", report->trace_record_ns, "share", cost.share));
    json_object_set_new(root, "cpu_seconds", json_real((double)report->cpu_ns / 1e9));
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    puts(text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}

static void print_table(const struct bench_report *report, const struct bench_measure *m,
                        const struct session *s, const struct bench_workload *w, struct totals t)
{
    printf("%d requests, %d in flight, %d worker%s: %llu tokens in %.2f s\n", w->n_requests,
           w->concurrency, s->n_workers, s->n_workers == 1 ? "" : "s",
           (unsigned long long)m->n_tokens, t.seconds);
    printf("  tokens/s %10.1f    loop-rows/s %10.1f    rows per batch %6.2f\n", t.tokens_per_s,
           (double)t.rows / t.seconds, share(t.rows, t.batches));
    if (steady_seconds(m) > 0)
        printf("  tokens/s %10.1f    in the %.2f s with all %d in flight\n", steady_tokens_per_s(m),
               steady_seconds(m), w->concurrency);
    printf("  TTFT ms  p50 %8.2f  p90 %8.2f  p99 %8.2f\n", quantile(m->ttft_ms, m->n, 0.5),
           quantile(m->ttft_ms, m->n, 0.9), quantile(m->ttft_ms, m->n, 0.99));
    printf("  TPOT ms  p50 %8.2f  p90 %8.2f  p99 %8.2f\n", t.tpot_ms,
           quantile(m->tpot_ms, m->n, 0.9), quantile(m->tpot_ms, m->n, 0.99));
    printf("  mean exit loop %.3f; exits", t.mean_exit);
    for (int e = 1; e <= s->checkpoint->config.n_loops; e++)
        printf("  %d: %.1f%%", e, 100 * share(m->exits[e], m->n_tokens));
    printf("\n  sent %.2f MB in %llu messages%s", (double)t.bytes / 1e6,
           (unsigned long long)t.messages, m->n_cancelled > 0 ? "" : "\n");
    if (m->n_cancelled > 0)
        printf("; %llu requests cancelled\n", (unsigned long long)m->n_cancelled);
    if (w->concurrency == 1 && s->n_workers > 1 && t.batches > 0)
        printf("  hop (all that is not computing, per batch): %.1f us\n",
               (t.seconds * 1e9 - (double)t.busy_ns) / 1e3 / (double)t.batches);
    if (report->machine.read_gbytes_s > 0) {
        double bound = report->machine.read_gbytes_s * 1e9 / token_bytes(s, w, t.mean_exit);
        printf(
            "  read bandwidth %.1f GB/s bounds one stream at %.2f tokens/s; reached %.2f of it\n",
            report->machine.read_gbytes_s, bound, t.tpot_ms > 0 ? 1e3 / t.tpot_ms / bound : 0);
    }
    struct trace_cost cost = trace_cost(report, s->n_workers);
    if (cost.n_records > 0)
        printf("  trace: %llu records, at most %.0f ns each: %.3f %% of the workers' time\n",
               (unsigned long long)cost.n_records, report->trace_record_ns, 100 * cost.share);
    printf("  %-7s %8s %10s %6s %8s %8s %9s %9s %9s\n", "worker", "batches", "rows/batch", "busy",
           "starved", "waiting", "parked", "revived", "KV used");
    for (int i = 0; i < s->n_workers; i++) {
        const struct control_stats *st = &report->stats[i];
        printf("  %-7d %8llu %10.2f %5.1f%% %7.1f%% %7.1f%% %9llu %9llu %4u/%u\n", i + 1,
               (unsigned long long)st->n_batches, share(st->n_rows, st->n_batches),
               100 * share(st->busy_ns, st->elapsed_ns),
               100 * share(st->idle_starved_ns, st->elapsed_ns),
               100 * share(st->idle_waiting_ns, st->elapsed_ns),
               (unsigned long long)st->n_parked_total, (unsigned long long)st->n_revived_total,
               st->kv_blocks_used, st->kv_blocks_total);
    }
}

void bench_report_print(const struct bench_report *report, const struct bench_measure *m,
                        const struct session *s, const struct bench_workload *w, bool as_json)
{
    struct totals t = sum_up(report, m, s);
    if (as_json)
        print_json(report, m, s, w, t);
    else
        print_table(report, m, s, w, t);
}
