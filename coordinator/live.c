/* Keeps the last seconds of tokens and the workers' last two counts, and writes them as JSON. */
#include "coordinator/live.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Latencies from 10 us to 1000 s; a bucket is 7.5 % wide, so a quantile is right within 4 %. */
enum { BUCKETS_PER_DECADE = 32, N_BUCKETS = 8 * BUCKETS_PER_DECADE };
#define LEAST_S 1e-5

/* The second that has just begun is kept, too, but shown only where parts of a second are fine. */
enum { N_SECONDS = LIVE_HISTORY_S + 1, N_WINDOW_SECONDS = LIVE_WINDOW_S + 1 };

enum latency_kind { LATENCY_FIRST = 0, LATENCY_NEXT, LATENCY_KINDS };

struct live_host {
    char name[CONTROL_NAME_BYTES];
};

struct live {
    uint64_t began_ns, second; /* since then: the one that has begun */
    uint64_t n_tokens, exits[SEQUENCE_MAX_LOOPS];
    uint32_t history[N_SECONDS][SEQUENCE_MAX_LOOPS]; /* [second % N_SECONDS]: tokens by exit loop */
    uint32_t latencies[N_WINDOW_SECONDS][LATENCY_KINDS][N_BUCKETS];
    uint32_t n_workers, n_loops, ring_size;
    struct live_host *hosts;             /* [n_workers] */
    struct control_stats *before, *last; /* [n_workers]; last - before is what they did */
    struct scheduler_load load;
    double kv_usage;
    uint64_t snapshot_ns; /* 0: none yet */
};

enum status live_create(uint64_t now_ns, struct live **out, struct err *err)
{
    struct live *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the live page's %zu bytes", sizeof *l);
    l->began_ns = now_ns;
    *out = l;
    return STATUS_OK;
}

void live_destroy(struct live *l)
{
    if (l == NULL)
        return;
    free(l->hosts);
    free(l->before);
    free(l->last);
    free(l);
}

enum status live_set_cluster(struct live *l, const struct live_cluster *c, struct err *err)
{
    assert(l->n_workers == 0 && c->n_loops >= 1 && c->n_loops <= SEQUENCE_MAX_LOOPS);
    l->hosts = calloc(c->n_workers, sizeof *l->hosts);
    l->before = calloc(c->n_workers, sizeof *l->before);
    l->last = calloc(c->n_workers, sizeof *l->last);
    if (l->hosts == NULL || l->before == NULL || l->last == NULL) {
        free(l->hosts);
        free(l->before);
        free(l->last);
        l->hosts = NULL;
        l->before = l->last = NULL;
        return err_set(err, STATUS_NO_MEMORY, "no memory for the live page of %u workers",
                       c->n_workers);
    }
    for (uint32_t i = 0; i < c->n_workers; i++) {
        size_t n = strnlen(c->hosts[i], sizeof l->hosts[i].name - 1);
        memcpy(l->hosts[i].name, c->hosts[i], n);
    }
    l->n_workers = c->n_workers;
    l->n_loops = c->n_loops;
    l->ring_size = c->ring_size > 0 ? c->ring_size : c->n_workers;
    return STATUS_OK;
}

/* ---- counting ------------------------------------------------------------------------------- */

/* Empties the seconds that have begun since the last call. */
static void turn(struct live *l, uint64_t now_ns)
{
    uint64_t second = now_ns > l->began_ns ? (now_ns - l->began_ns) / 1000000000 : 0;
    if (second <= l->second)
        return; /* threads hand over a little late: what comes counts for the present second */
    uint64_t n_new = second - l->second;
    for (uint64_t i = 1; i <= n_new && i <= N_SECONDS; i++)
        memset(l->history[(l->second + i) % N_SECONDS], 0, sizeof l->history[0]);
    for (uint64_t i = 1; i <= n_new && i <= N_WINDOW_SECONDS; i++)
        memset(l->latencies[(l->second + i) % N_WINDOW_SECONDS], 0, sizeof l->latencies[0]);
    l->second = second;
}

static size_t bucket_of(double seconds)
{
    if (!(seconds > LEAST_S))
        return 0;
    double at = floor(log10(seconds / LEAST_S) * BUCKETS_PER_DECADE);
    return at < N_BUCKETS - 1 ? (size_t)at : N_BUCKETS - 1;
}

void live_token(struct live *l, uint64_t now_ns, uint32_t exit_loop, bool is_first, double gap_s)
{
    turn(l, now_ns);
    l->n_tokens++;
    l->latencies[l->second % N_WINDOW_SECONDS][is_first ? LATENCY_FIRST : LATENCY_NEXT]
                [bucket_of(gap_s)]++;
    if (exit_loop < 1 || exit_loop > SEQUENCE_MAX_LOOPS)
        return;
    l->exits[exit_loop - 1]++;
    l->history[l->second % N_SECONDS][exit_loop - 1]++;
}

void live_snapshot(struct live *l, const struct service_snapshot *snapshot)
{
    uint32_t n = snapshot->n_workers < l->n_workers ? snapshot->n_workers : l->n_workers;
    l->load = snapshot->load;
    l->kv_usage = snapshot->kv_usage;
    l->snapshot_ns = snapshot->at_ns;
    for (uint32_t i = 0; i < n; i++) {
        l->before[i] = l->last[i];
        l->last[i] = snapshot->workers[i];
    }
}

/* ---- writing -------------------------------------------------------------------------------- */

static void write_counts(struct json_writer *w, const uint64_t *counts, uint32_t n)
{
    json_write_begin_array(w);
    for (uint32_t i = 0; i < n; i++)
        json_write_integer(w, (int64_t)counts[i]);
    json_write_end_array(w);
}

/* Nearest rank; the bucket's middle, by ratio. */
static double quantile(const uint64_t counts[N_BUCKETS], uint64_t n, double q)
{
    uint64_t rank = (uint64_t)ceil(q * (double)n), seen = 0;
    for (size_t b = 0; b < N_BUCKETS; b++) {
        seen += counts[b];
        if (seen >= rank && seen > 0)
            return LEAST_S * pow(10, ((double)b + 0.5) / BUCKETS_PER_DECADE);
    }
    return 0;
}

static void write_latency(const struct live *l, enum latency_kind kind, struct json_writer *w)
{
    uint64_t counts[N_BUCKETS] = {0}, n = 0;
    for (size_t s = 0; s < N_WINDOW_SECONDS; s++)
        for (size_t b = 0; b < N_BUCKETS; b++) {
            counts[b] += l->latencies[s][kind][b];
            n += l->latencies[s][kind][b];
        }
    json_write_begin_object(w);
    json_write_integer_at(w, "n", n);
    if (n > 0) {
        json_write_number_at(w, "p50_s", quantile(counts, n, 0.5));
        json_write_number_at(w, "p99_s", quantile(counts, n, 0.99));
    }
    json_write_end_object(w);
}

static void write_tokens(const struct live *l, struct json_writer *w)
{
    uint64_t window[SEQUENCE_MAX_LOOPS] = {0}, counts[SEQUENCE_MAX_LOOPS];
    uint64_t n_past = l->second < LIVE_HISTORY_S ? l->second : LIVE_HISTORY_S;
    json_write_integer_at(w, "tokens_total", l->n_tokens);
    json_write_key(w, "exits_total");
    write_counts(w, l->exits, l->n_loops);
    /* Whole seconds, the oldest first: tokens by exit loop. */
    json_write_key(w, "history");
    json_write_begin_array(w);
    for (uint64_t i = n_past; i >= 1; i--) {
        for (uint32_t t = 0; t < l->n_loops; t++)
            counts[t] = l->history[(l->second - i) % N_SECONDS][t];
        write_counts(w, counts, l->n_loops);
    }
    json_write_end_array(w);
    json_write_integer_at(w, "window_s", LIVE_WINDOW_S);
    for (uint64_t i = 0; i <= LIVE_WINDOW_S && i <= l->second; i++)
        for (uint32_t t = 0; t < l->n_loops; t++)
            window[t] += l->history[(l->second - i) % N_SECONDS][t];
    json_write_key(w, "exits_window");
    write_counts(w, window, l->n_loops);
    json_write_key(w, "ttft");
    write_latency(l, LATENCY_FIRST, w);
    json_write_key(w, "tpot");
    write_latency(l, LATENCY_NEXT, w);
}

/* Counters restart when somebody has reset them. */
static uint64_t since(uint64_t before, uint64_t last)
{
    return last >= before ? last - before : last;
}

static void write_worker(const struct live *l, uint32_t i, struct json_writer *w)
{
    const struct control_stats *a = &l->before[i], *b = &l->last[i];
    uint64_t rows[SEQUENCE_MAX_LOOPS];
    for (uint32_t t = 0; t < l->n_loops; t++)
        rows[t] = since(a->rows_by_loop[t], b->rows_by_loop[t]);
    json_write_begin_object(w);
    json_write_integer_at(w, "rank", i + 1);
    json_write_key(w, "host");
    json_write_string(w, l->hosts[i].name);
    json_write_number_at(w, "elapsed_s", (double)since(a->elapsed_ns, b->elapsed_ns) / 1e9);
    json_write_number_at(w, "busy_s", (double)since(a->busy_ns, b->busy_ns) / 1e9);
    json_write_number_at(w, "starved_s",
                         (double)since(a->idle_starved_ns, b->idle_starved_ns) / 1e9);
    json_write_number_at(w, "waiting_s",
                         (double)since(a->idle_waiting_ns, b->idle_waiting_ns) / 1e9);
    json_write_integer_at(w, "batches", since(a->n_batches, b->n_batches));
    json_write_integer_at(w, "rows", since(a->n_rows, b->n_rows));
    json_write_key(w, "rows_by_loop");
    write_counts(w, rows, l->n_loops);
    json_write_integer_at(w, "kv_blocks_used", b->kv_blocks_used);
    json_write_integer_at(w, "kv_blocks", b->kv_blocks_total);
    json_write_integer_at(w, "parked_rows", b->parked_rows);
    json_write_integer_at(w, "sequences", b->n_sequences);
    json_write_integer_at(w, "sent_bytes", since(a->n_bytes_sent, b->n_bytes_sent));
    json_write_end_object(w);
}

void live_write(struct live *l, uint64_t now_ns, struct json_writer *w)
{
    turn(l, now_ns);
    json_write_number_at(w, "uptime_s",
                         now_ns > l->began_ns ? (double)(now_ns - l->began_ns) / 1e9 : 0);
    json_write_integer_at(w, "n_loops", l->n_loops);
    json_write_integer_at(w, "ring_size", l->ring_size);
    write_tokens(l, w);
    json_write_key(w, "sequences");
    json_write_begin_object(w);
    json_write_integer_at(w, "queued", l->load.n_queued);
    json_write_integer_at(w, "opening", l->load.n_opening);
    json_write_integer_at(w, "running", l->load.n_running);
    json_write_integer_at(w, "closing", l->load.n_closing);
    json_write_end_object(w);
    json_write_key(w, "kv_usage");
    json_write_number(w, l->kv_usage);
    json_write_key(w, "workers_age_s");
    if (l->snapshot_ns == 0)
        json_write_null(w);
    else
        json_write_number(w, now_ns > l->snapshot_ns ? (double)(now_ns - l->snapshot_ns) / 1e9 : 0);
    json_write_key(w, "workers");
    json_write_begin_array(w);
    for (uint32_t i = 0; i < l->n_workers; i++)
        write_worker(l, i, w);
    json_write_end_array(w);
}
