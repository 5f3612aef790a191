/* Prints a simulated run, as a table or as JSON. */
#include "cli/simulate_report.h"
#include "cli/sorted.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct quantiles {
    double p50, p90, p99;
};

/* Sums and shares over all workers. */
struct totals {
    uint64_t rows, batches, bytes, messages, parked, revived;
    double seconds, mean_exit, tokens_per_s, rows_per_s;
    double busy, starved, waiting, rank0_busy, link_busy; /* shares of the time */
    double busy_spread, rows_spread;                      /* the most of a worker over the mean */
    struct quantiles ttft_ms, tpot_ms;
};

/* As `bench engine`: of the finite values; zeros when there are none. */
static struct quantiles take_quantiles(const double *values, uint32_t n)
{
    double *sorted = malloc((n + 1) * sizeof *sorted);
    uint32_t kept = 0;
    for (uint32_t i = 0; sorted != NULL && i < n; i++)
        if (isfinite(values[i]))
            sorted[kept++] = values[i];
    struct quantiles q = {0};
    if (kept > 0) {
        sorted_doubles(sorted, kept);
        q.p50 = sorted[(uint32_t)(0.5 * (kept - 1) + 0.5)];
        q.p90 = sorted[(uint32_t)(0.9 * (kept - 1) + 0.5)];
        q.p99 = sorted[(uint32_t)(0.99 * (kept - 1) + 0.5)];
    }
    free(sorted);
    return q;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static struct totals sum_up(const struct simulate_report *report)
{
    const struct simulate_result *r = report->result;
    uint32_t n_workers = report->config->n_workers;
    struct totals t = {.seconds = (double)(r->ended_ns - r->began_ns) / 1e9};
    double busy_s = 0, most_busy_s = 0, most_rows = 0, starved_s = 0, waiting_s = 0;
    for (uint32_t i = 0; i < n_workers; i++) {
        const struct control_stats *st = &r->stats[i];
        t.rows += st->n_rows;
        t.batches += st->n_batches;
        t.bytes += st->n_bytes_sent;
        t.messages += st->n_messages_sent;
        t.parked += st->n_parked_total;
        t.revived += st->n_revived_total;
        double worker_busy_s = (double)st->busy_ns / 1e9;
        busy_s += worker_busy_s;
        starved_s += (double)st->idle_starved_ns / 1e9;
        waiting_s += (double)st->idle_waiting_ns / 1e9;
        most_busy_s = worker_busy_s > most_busy_s ? worker_busy_s : most_busy_s;
        most_rows = (double)st->n_rows > most_rows ? (double)st->n_rows : most_rows;
    }
    for (int e = 1; e <= SEQUENCE_MAX_LOOPS; e++)
        t.mean_exit += (double)e * (double)r->exits[e];
    t.mean_exit = share(t.mean_exit, (double)r->n_tokens);
    t.tokens_per_s = share((double)r->n_tokens, t.seconds);
    t.rows_per_s = share((double)t.rows, t.seconds);
    t.busy = share(busy_s, n_workers * t.seconds);
    t.starved = share(starved_s, n_workers * t.seconds);
    t.waiting = share(waiting_s, n_workers * t.seconds);
    t.rank0_busy = share((double)r->rank0_busy_ns / 1e9, t.seconds);
    t.link_busy = share((double)r->link_busy_ns_most / 1e9, t.seconds);
    t.busy_spread = share(n_workers * most_busy_s, busy_s);
    t.rows_spread = share(n_workers * most_rows, (double)t.rows);
    t.ttft_ms = take_quantiles(r->ttft_ms, r->n_timed);
    t.tpot_ms = take_quantiles(r->tpot_ms, r->n_timed);
    return t;
}

static const char *arrivals_name(const struct simulate_load *load)
{
    static const char *const names[] = {"closed", "poisson", "burst", "replay"};
    return names[load->arrivals];
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *quantiles_json(struct quantiles q)
{
    return json_pack("{s:f, s:f, s:f}", "p50", q.p50, "p90", q.p90, "p99", q.p99);
}

static json_t *worker_json(const struct control_stats *st, uint32_t rank)
{
    json_t *by_loop = json_array();
    for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
        json_array_append_new(by_loop, json_integer((json_int_t)st->rows_by_loop[t]));
    double elapsed = (double)st->elapsed_ns;
    return json_pack("{s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
                     "rank", (int)rank, "batches", (json_int_t)st->n_batches, "rows",
                     (json_int_t)st->n_rows, "rows_per_batch",
                     share((double)st->n_rows, (double)st->n_batches), "busy",
                     share((double)st->busy_ns, elapsed), "idle_starved",
                     share((double)st->idle_starved_ns, elapsed), "idle_waiting",
                     share((double)st->idle_waiting_ns, elapsed), "messages_sent",
                     (json_int_t)st->n_messages_sent, "bytes_sent", (json_int_t)st->n_bytes_sent,
                     "parked_total", (json_int_t)st->n_parked_total, "revived_total",
                     (json_int_t)st->n_revived_total, "batch_ns", (json_int_t)st->batch_ns,
                     "row_ns", (json_int_t)st->row_ns, "rows_by_loop", by_loop);
}

static json_t *why_json(const struct simulate_why *why)
{
    json_t *losses = json_object();
    for (int i = 0; i < SIMULATE_LOSSES; i++)
        json_object_set_new(losses, simulate_why_name((enum simulate_loss)i),
                            json_real(why->losses[i]));
    return json_pack("{s:f, s:f, s:f, s:f, s:o, s:s}", "efficiency", why->efficiency, "steady",
                     why->steady, "base_tokens_per_s", why->base_tokens_per_s,
                     "base_rows_per_batch", why->base_rows_per_batch, "losses", losses, "why",
                     simulate_why_name(why->largest));
}

/* Seconds a token spends at each place, and with it the times of its request. */
static json_t *slots_json(const struct simulate_result *r)
{
    const struct simulate_slots *s = &r->slots;
    double n = (double)r->n_tokens;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "coordinator", share(s->rank0_s, n),
                     "blocked", share(s->blocked_s, n), "opening", share(s->opening_s, n), "hop",
                     share(s->hop_s, n), "wait", share(s->wait_s, n), "compute",
                     share(s->compute_s, n));
}

void simulate_report_print_json(const struct simulate_report *report)
{
    const struct simulate_result *r = report->result;
    const struct simulate_config *c = report->config;
    struct totals t = sum_up(report);
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, r->hash);
    json_t *exits = json_array();
    for (int e = 1; e <= c->model.n_loops; e++)
        json_array_append_new(exits, json_integer((json_int_t)r->exits[e]));
    json_t *root = json_pack(
        "{s:i, s:i, s:s, s:s, s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:I, "
        "s:I, s:s}",
        "workers_count", (int)c->n_workers, "ring_size", (int)c->ring_size, "batching",
        batching_name(c->batching), "arrivals", arrivals_name(report->load), "requests",
        (int)r->n_requests, "cancelled", (json_int_t)r->n_cancelled, "tokens",
        (json_int_t)r->n_tokens, "seconds", t.seconds, "tokens_per_s", t.tokens_per_s,
        "loop_rows_per_s", t.rows_per_s, "mean_exit_loop", t.mean_exit, "rows_per_batch",
        share((double)t.rows, (double)t.batches), "ttft_ms", quantiles_json(t.ttft_ms), "tpot_ms",
        quantiles_json(t.tpot_ms), "exits", exits, "loop_rows", (json_int_t)t.rows, "bytes_sent",
        (json_int_t)t.bytes, "tokens_hash", hash);
    if (r->steady_s > 0) {
        json_object_set_new(root, "steady_seconds", json_real(r->steady_s));
        json_object_set_new(root, "steady_tokens_per_s", json_real(r->steady_tokens_per_s));
    }
    if (report->load->arrivals == ARRIVALS_CLOSED)
        json_object_set_new(root, "concurrency", json_integer(report->load->workload->concurrency));
    json_object_update_new(
        root, json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:I, s:f, s:f, s:f, s:I, s:o}",
                        "cost", c->cost.name, "events", (json_int_t)r->n_events, "messages",
                        (json_int_t)r->n_messages, "in_flight", r->in_flight, "busy", t.busy,
                        "idle_starved", t.starved, "idle_waiting", t.waiting, "coordinator_busy",
                        t.rank0_busy, "coordinator_queue_most", (json_int_t)r->rank0_queue_most,
                        "link_busy_most", t.link_busy, "busy_most_over_mean", t.busy_spread,
                        "rows_most_over_mean", t.rows_spread, "kv_blocks_left",
                        (json_int_t)r->kv_blocks_left, "seconds_per_token", slots_json(r)));
    if (report->why != NULL)
        json_object_set_new(root, "scaling", why_json(report->why));
    if (report->with_workers) {
        json_t *workers = json_array();
        for (uint32_t i = 0; i < c->n_workers; i++)
            json_array_append_new(workers, worker_json(&r->stats[i], i + 1));
        json_object_set_new(root, "workers", workers);
    }
    char *text = json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    puts(text != NULL ? text : "{}");
    free(text);
    json_decref(root);
}

/* ---- tables --------------------------------------------------------------------------------- */

static void print_workers(const struct simulate_report *report)
{
    printf("  %-7s %8s %10s %6s %8s %8s %9s %9s\n", "worker", "batches", "rows/batch", "busy",
           "starved", "waiting", "parked", "revived");
    for (uint32_t i = 0; i < report->config->n_workers; i++) {
        const struct control_stats *st = &report->result->stats[i];
        double elapsed = (double)st->elapsed_ns / 100;
        printf("  %-7" PRIu32 " %8" PRIu64 " %10.2f %5.1f%% %7.1f%% %7.1f%% %9" PRIu64 " %9" PRIu64
               "\n",
               i + 1, st->n_batches, share((double)st->n_rows, (double)st->n_batches),
               share((double)st->busy_ns, elapsed), share((double)st->idle_starved_ns, elapsed),
               share((double)st->idle_waiting_ns, elapsed), st->n_parked_total,
               st->n_revived_total);
    }
}

static void print_why(const struct simulate_report *report)
{
    const struct simulate_why *why = report->why;
    printf("  efficiency %.3f of %" PRIu32 " x %.1f tokens/s with one worker", why->efficiency,
           report->config->n_workers, why->base_tokens_per_s);
    if (why->steady > 0)
        printf("; %.3f between the first end and the last start", why->steady);
    putchar('\n');
    printf("  lost:");
    for (int i = 0; i < SIMULATE_LOSSES; i++)
        printf(" %s %.1f%%", simulate_why_name((enum simulate_loss)i), 100 * why->losses[i]);
    printf("\n  why: %s\n", simulate_why_text(why->largest));
}

void simulate_report_print(const struct simulate_report *report)
{
    const struct simulate_result *r = report->result;
    const struct simulate_config *c = report->config;
    struct totals t = sum_up(report);
    printf("%" PRIu32 " requests (%s), %" PRIu32 " worker%s in rings of %" PRIu32 ": %" PRIu64
           " tokens in %.3f simulated s\n",
           r->n_requests, arrivals_name(report->load), c->n_workers, c->n_workers == 1 ? "" : "s",
           c->ring_size, r->n_tokens, t.seconds);
    printf("  cost: %s\n", c->cost.name);
    printf("  tokens/s %10.1f    loop-rows/s %10.1f    rows per batch %6.2f\n", t.tokens_per_s,
           t.rows_per_s, share((double)t.rows, (double)t.batches));
    if (r->steady_s > 0)
        printf("  tokens/s %10.1f    in the %.3f s between the first end and the last start\n",
               r->steady_tokens_per_s, r->steady_s);
    printf("  TTFT ms  p50 %8.2f  p90 %8.2f  p99 %8.2f\n", t.ttft_ms.p50, t.ttft_ms.p90,
           t.ttft_ms.p99);
    printf("  TPOT ms  p50 %8.2f  p90 %8.2f  p99 %8.2f\n", t.tpot_ms.p50, t.tpot_ms.p90,
           t.tpot_ms.p99);
    printf("  mean exit loop %.3f; exits", t.mean_exit);
    for (int e = 1; e <= c->model.n_loops; e++)
        printf("  %d: %.1f%%", e, 100 * share((double)r->exits[e], (double)r->n_tokens));
    printf("\n  sent %.2f MB in %" PRIu64 " messages", (double)t.bytes / 1e6, t.messages);
    if (r->n_cancelled > 0)
        printf("; %" PRIu32 " requests cancelled", r->n_cancelled);
    printf("\n  workers busy %.1f%%, starved %.1f%%, waiting for peers %.1f%%; the most over the "
           "mean: busy %.3f, rows %.3f\n",
           100 * t.busy, 100 * t.starved, 100 * t.waiting, t.busy_spread, t.rows_spread);
    printf("  coordinator busy %.1f%%, at most %" PRIu64
           " messages waiting; busiest link %.1f%%; %.1f requests in flight\n",
           100 * t.rank0_busy, r->rank0_queue_most, 100 * t.link_busy, r->in_flight);
    printf("  %" PRIu64 " events\n", r->n_events);
    if (report->why != NULL)
        print_why(report);
    if (report->with_workers)
        print_workers(report);
}
