/* A batch without arithmetic: what it would give and how long it would take, by a cost model.
 *
 * Exits are drawn as the request says (force_exits, keyed by seed and position, exactly as the real
 * replica does; without them every token takes all loops), or asked of exit_loop; token ids are
 * drawn by (seed, position). So the timed backend over MPI and the simulator make the same tokens
 * with the same exits. Pure. */
#ifndef WORKER_TIMED_H
#define WORKER_TIMED_H

#include "cluster/cost_model.h"
#include "worker/batch.h"

#include <stdint.h>

struct timed {
    const struct cost_model *cost; /* borrowed */
    uint32_t vocab_size;
    /* Of the live row at this position, 1-based; 0: draw it. NULL: always draw. */
    uint32_t (*exit_loop)(void *user, uint64_t sequence, uint32_t position);
    void *user;
    uint64_t jitter_seed; /* of the rank */
    uint64_t n_batches;   /* so far; counts up */
};

/* Fills the outcomes (room for batch->n_segments), n_heads, head_ns and compute_ns: how long the
 * batch takes. Observed sequences fail with STATUS_INVALID: nothing is computed that could be
 * observed. */
void timed_run(struct timed *t, const struct batch *batch, struct batch_result *result);

#endif
