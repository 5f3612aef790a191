/* What the server has counted, in Prometheus' text format. One thread uses it: the HTTP thread.
 *
 * Names, labels and buckets are one table in metrics_table.c, which docs/metrics.md shows.
 * Durations are seconds of this process's monotonic clock, except those the workers measured. */
#ifndef COORDINATOR_METRICS_H
#define COORDINATOR_METRICS_H

#include "coordinator/scheduler.h"
#include "coordinator/service.h"
#include "coordinator/text.h"
#include "proto/control.h"

#include <stddef.h>
#include <stdint.h>

struct metrics;

struct metrics_config {
    uint32_t n_workers, n_loops;
    const char *const *hosts; /* [n_workers]; copied */
    const char *model;        /* label model_name; copied */
    const char *version;
};

/* Before the workers are known (loading) n_workers is 0, and hosts and model may be NULL.
 * STATUS_NO_MEMORY. */
enum status metrics_create(const struct metrics_config *config, struct metrics **out,
                           struct err *err);
/* Adds workers, loops and model to metrics that were created without, so that what was counted
 * while loading goes on. STATUS_NO_MEMORY: what has been added stays, and is not to be added again.
 */
enum status metrics_set_cluster(struct metrics *m, const struct metrics_config *config,
                                struct err *err);
void metrics_destroy(struct metrics *m); /* NULL is fine */

enum metrics_state { METRICS_LOADING = 0, METRICS_READY, METRICS_DRAINING, METRICS_LOST };
void metrics_set_state(struct metrics *m, enum metrics_state state);

/* An HTTP answer is complete: endpoint is the route's pattern ("/v1/completions", "other"). */
void metrics_http_answer(struct metrics *m, const char *endpoint, int status, double seconds);
/* Open connections, bytes waiting for slow readers, bytes of requests that are not complete, now.
 */
void metrics_set_connections(struct metrics *m, uint32_t n_connections, uint64_t unsent_bytes,
                             uint64_t receiving_bytes);

/* Choices, as they come and go. waiting -> running -> gone. */
void metrics_choice_queued(struct metrics *m, uint32_t n_prompt_tokens);
void metrics_choice_started(struct metrics *m, double queue_s);
/* gap_s: since the choice's last token; first token: since the request arrived. Also exits, and
 * loop timings of every loop the token ran. */
void metrics_token(struct metrics *m, const struct delivery *d, double gap_s);
/* From the engine's token to the socket having taken its bytes. */
void metrics_token_sent(struct metrics *m, double seconds);
void metrics_choice_ended(struct metrics *m, enum finish_reason reason, bool was_started,
                          uint32_t n_prompt_tokens, uint32_t n_tokens, double e2e_s);
/* Refused before a choice was made: "queue_full", "draining", "loading", ...; and cancels by
 * "disconnect", "deadline", "slow_reader", "shutdown". */
void metrics_refused(struct metrics *m, const char *reason);
void metrics_cancelled(struct metrics *m, const char *reason);
/* Engine snapshot: KV, parked rows, batches, idle time of every worker. */
void metrics_snapshot(struct metrics *m, const struct service_snapshot *snapshot);

uint32_t metrics_n_waiting(const struct metrics *m);
uint32_t metrics_n_running(const struct metrics *m);

/* Everything, text format 0.0.4. */
void metrics_write(const struct metrics *m, struct text *out);

#endif
