/* One batch of rows, from the stage that forms it to the replica that runs it, and what comes back.
 *
 * Both are plain data in arrays sized at start. The stage owns the batch; it is constant from the
 * moment it is started until its result has been given to the stage. */
#ifndef WORKER_BATCH_H
#define WORKER_BATCH_H

#include "kernels/exit_rule.h"
#include "kernels/kernels.h"
#include "proto/control.h"
#include "proto/sequence.h"

#include <stdbool.h>
#include <stdint.h>

struct batch_segment {
    uint64_t sequence;
    const struct sequence_params *params; /* of the open sequence; constant */
    uint32_t loop;                        /* 1-based */
    bool has_live;                        /* the segment's last row is the live row */
    struct exit_state exit;               /* of the live row, before this loop */
    const int32_t *targets;               /* [params->n_observe_targets] */
};

struct batch {
    uint32_t n_rows, n_segments;
    struct batch_segment *segments;   /* [n_segments] */
    struct kernels_segment *geometry; /* [n_segments], rows, positions and blocks of segments[i] */
    int32_t *block_table;             /* pool blocks, as geometry says */
    int32_t *slots; /* [n_rows] row-store slot: hidden state in (loops > 1), out (all loops) */
    int32_t *ids;   /* [n_rows] token id to embed at loop 1; -1 at deeper loops */
    /* Token ids of every position the pool holds: id of the position at offset j of pool block b is
     * pool_ids[b * block_size + j]. Through a segment's blocks this is the history penalties need,
     * the batch's own rows included. */
    const int32_t *pool_ids;
    int32_t block_size;
};

/* What happened to segment i; only live segments have more than `failure`. */
struct batch_outcome {
    enum status failure; /* STATUS_OK, or why this sequence cannot go on (non-finite values) */
    float lambda;
    struct exit_state exit; /* after this loop */
    bool is_exit;
    struct control_token token; /* when is_exit: id, exit_loop, cdf, logprob, top; sequence and
                                   position too; is_last is the stage's to set */
};

struct batch_result {
    uint32_t n_segments;
    struct batch_outcome
        *outcomes;       /* [n_segments], in the batch's order; owned by the replica's caller */
    uint32_t n_heads;    /* rows that went through the head */
    uint64_t compute_ns; /* wall time, set by the compute thread */
    uint64_t head_ns;    /* of that: head and sampler */
    /* rows of observed segments at this loop; owned by the replica, valid until its next run */
    uint32_t n_observations;
    struct control_observation *observations;
};

#endif
