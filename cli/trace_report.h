/* What a trace says: where time went, loop by loop and worker by worker. */
#ifndef CLI_TRACE_REPORT_H
#define CLI_TRACE_REPORT_H

#include "coordinator/trace_set.h"

#include <stdint.h>

/* Of a sorted sample; all 0 when n is 0. Quantiles are nearest-rank. */
struct trace_quantiles {
    uint64_t n;
    double mean_s, p50_s, p90_s, p99_s, max_s;
};

struct trace_loop_report { /* live rows at this loop, decode and last prompt rows alike */
    struct trace_quantiles hop, wait, compute;
    struct trace_quantiles head; /* of tokens that got off here: head and sampler of their batch */
    uint64_t n_exits;
};

struct trace_worker_report {
    double elapsed_s; /* of this worker's records */
    double busy_s, idle_s[TRACE_IDLE_REASONS];
    uint64_t n_batches, n_rows, n_parked, n_revived;
    uint64_t rows_by_loop[SEQUENCE_MAX_LOOPS];
    double receive_s, send_s; /* driver, beside the batches or between them */
    double driver_s;          /* of the two: outside of batches and idle time */
    double rest_s;            /* of elapsed_s: neither busy, nor idle, nor the driver's */
};

/* One token of the slowest, and its way. */
struct trace_step {
    uint32_t loop, rank; /* loop 0: from the exit to the coordinator */
    double hop_s, wait_s, compute_s;
};
struct trace_slow_token {
    uint64_t sequence;
    uint32_t position, n_steps;
    double at_s;    /* since the trace's begin: where its way begins */
    double total_s; /* from the exit of the token before (or the prompt's sending) to its arrival:
                       all of its steps */
    struct trace_step steps[SEQUENCE_MAX_LOOPS + 1];
};

enum { TRACE_REPORT_SLOW_TOKENS = 16 };

struct trace_report {
    uint32_t n_loops, n_workers, n_missing; /* n_missing: workers whose records are not there */
    double elapsed_s;                       /* first to last record */
    uint64_t n_tokens, n_requests, n_lost;
    uint64_t n_incomplete; /* tokens without all of their batches: the slowest are of the others */
    double tokens_per_s;
    struct trace_quantiles queue, admission, ttft,
        tpot; /* of requests; tpot: gaps between tokens */
    struct trace_loop_report loops[SEQUENCE_MAX_LOOPS];
    struct trace_worker_report *workers; /* [n_workers] */
    double clock_error_s;                /* the largest of all ranks */
    /* The slowest 1 % of the tokens (at least one): how the time of one splits on average, and the
     * very slowest, slowest first. */
    uint64_t n_slow;
    double slow_total_s, slow_hop_s, slow_wait_s, slow_compute_s, slow_deliver_s;
    double slow_by_loop_s[SEQUENCE_MAX_LOOPS];
    uint32_t n_slow_listed;
    struct trace_slow_token slow[TRACE_REPORT_SLOW_TOKENS];
};

/* Of an aligned set. STATUS_NO_MEMORY; a set without tokens gives zeros, no error. */
enum status trace_report_make(const struct trace_set *set, struct trace_report *out,
                              struct err *err);
void trace_report_free(struct trace_report *r);
/* Tables for people; one JSON object (docs/traces.md has its fields). */
void trace_report_print(const struct trace_report *r, const struct trace_set *set);
void trace_report_print_json(const struct trace_report *r, const struct trace_set *set);
/* One self-contained HTML file with the pictures: the ring's timeline, exits, latency by loop.
 * STATUS_IO names the path. (cli/trace_page.c) */
enum status trace_page_write(const struct trace_report *r, const struct trace_set *set,
                             const char *path, struct err *err);

#endif
