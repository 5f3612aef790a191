/* Why W workers together make less than W times what one makes: two simulated runs, compared. */
#ifndef CLI_SIMULATE_WHY_H
#define CLI_SIMULATE_WHY_H

#include "cli/simulate_world.h"

#include <stdint.h>

enum simulate_loss {
    LOSS_RANK0 = 0, /* starved while requests wait for rank 0 */
    LOSS_LINKS,     /* starved while rows, openings and ends are under way */
    LOSS_PEERS,     /* rows are here, and wait for a ring mate's batch */
    LOSS_IMBALANCE, /* starved while rows wait at other workers */
    LOSS_BATCHES,   /* busy longer for the same rows: smaller batches */
    LOSS_BLOCKED,   /* starved while requests wait for KV blocks or a sequence's place */
    LOSS_RAMP,      /* starved while fewer requests are in flight than wanted */
    SIMULATE_LOSSES
};

struct simulate_why {
    double base_tokens_per_s, base_rows_per_batch;
    double efficiency;              /* of the whole run: tokens/s over W x base */
    double steady;                  /* the same of the steady times; 0 when one of them is short */
    double losses[SIMULATE_LOSSES]; /* of all worker time; >= 0; about 1 - efficiency together */
    enum simulate_loss largest;
};

/* Worker time a token takes here and with one worker (concurrency: in flight; 0: not a closed
 * loop), and what became of the difference. */
void simulate_why_make(const struct simulate_result *result, uint32_t n_workers,
                       uint32_t concurrency, const struct simulate_result *base,
                       uint32_t base_concurrency, struct simulate_why *out);
/* "coordinator", "links", "peers", ... */
const char *simulate_why_name(enum simulate_loss loss);
/* The same for people, as the end of a sentence. */
const char *simulate_why_text(enum simulate_loss loss);

#endif
