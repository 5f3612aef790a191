/* What the page at / shows: what every worker did since the last look, the last seconds of tokens.
 *
 * Counters of /metrics only grow and leave rates and windows to whoever reads them; a page that is
 * opened now wants the last two minutes at once. One thread uses it: the HTTP thread. It reads no
 * clock: now_ns is the caller's, any that does not go back. */
#ifndef COORDINATOR_LIVE_H
#define COORDINATOR_LIVE_H

#include "coordinator/json_writer.h"
#include "coordinator/service.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Seconds of history, and the latest of them that latencies and exits are told of. */
enum { LIVE_HISTORY_S = 120, LIVE_WINDOW_S = 30 };

struct live;

struct live_cluster {
    uint32_t n_workers, n_loops, ring_size; /* ring_size 0: one ring of all */
    const char *const *hosts;               /* [n_workers]; copied */
};

/* STATUS_NO_MEMORY. */
enum status live_create(uint64_t now_ns, struct live **out, struct err *err);
void live_destroy(struct live *l); /* NULL is fine */
/* Once, when the workers are known. STATUS_NO_MEMORY. */
enum status live_set_cluster(struct live *l, const struct live_cluster *cluster, struct err *err);

/* A token; gap_s: since the choice's last token, the first one's since the request arrived. */
void live_token(struct live *l, uint64_t now_ns, uint32_t exit_loop, bool is_first, double gap_s);
/* What the workers have counted; what they did lies between this and the one before. */
void live_snapshot(struct live *l, const struct service_snapshot *snapshot);

/* Adds its members to the open object: docs/http.md has them. */
void live_write(struct live *l, uint64_t now_ns, struct json_writer *w);

#endif
