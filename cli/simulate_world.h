/* A cluster in virtual time: the real scheduler and the real stages, driven by events instead of
 * MPI, clocks and threads.
 *
 * Rank 0 serves one thing after the other (requests, messages), ranks 1..W follow the worker's
 * driver (worker/worker.c): whatever has arrived goes to the stage, then the time; a batch computes
 * as long as the cost model says. A run is a function of its config and load alone.
 * docs/simulator.md says what is modelled and what is not. */
#ifndef CLI_SIMULATE_WORLD_H
#define CLI_SIMULATE_WORLD_H

#include "cli/simulate_load.h"
#include "cluster/cost_model.h"
#include "coordinator/trace_set.h"
#include "model/config.h"
#include "proto/control.h"
#include "worker/knee.h"

#include <stdint.h>

struct simulate_config {
    struct model_config model;
    struct cost_model cost;
    uint32_t n_workers;
    uint32_t ring_size;                     /* 0 = default (cluster/ring.h) */
    uint32_t n_blocks, block_size, n_slots; /* of each worker */
    uint32_t max_sequences, max_batch_rows, prefill_chunk;
    uint32_t n_in_flight; /* batches of a worker, 1 or 2; 0 is 1 */
    enum batching batching;
    uint64_t wait_deadline_ns;
    uint64_t jitter_seed;
    uint64_t trace_bytes; /* ring buffer of a rank; 0: nothing is recorded */
};

/* Where the time of sequences went, in seconds, summed over requests (the last three: over tokens).
 */
struct simulate_slots {
    double rank0_s;   /* from arrival until rank 0 has taken it, and at the end of it */
    double blocked_s; /* the queue: no KV blocks or no place for a sequence */
    double opening_s; /* opened on its ring, prompt sent */
    double hop_s, wait_s, compute_s;
};

struct simulate_result {
    uint64_t began_ns, ended_ns; /* of the measured requests, until the last one is closed */
    uint32_t n_requests, n_cancelled;
    uint64_t n_tokens, exits[SEQUENCE_MAX_LOOPS + 1];
    uint64_t hash;             /* of tokens and exits, as `bench engine` */
    double *ttft_ms, *tpot_ms; /* [n_timed]; tpot NAN with fewer than two tokens */
    uint32_t n_timed;
    /* From the first end until the last request was taken, as `bench engine`; 0 without such a
     * time. */
    double steady_s, steady_tokens_per_s;
    struct simulate_slots slots;
    double in_flight;                         /* requests between arrival and end, on average */
    uint64_t rank0_busy_ns, rank0_queue_most; /* longest queue of messages */
    uint64_t link_busy_ns_most;               /* of the rank whose link was busiest */
    struct control_stats *stats;              /* [n_workers] */
    uint32_t kv_blocks_left, sequences_left;  /* held after the end, over all workers: 0 */
    uint64_t n_events, n_messages;
};

struct simulate_world;

/* STATUS_INVALID (what a stage, a scheduler or a ring refuses), STATUS_NO_MEMORY. The load is
 * borrowed while the world lives. */
enum status simulate_world_create(const struct simulate_config *config,
                                  const struct simulate_load *load, struct simulate_world **out,
                                  struct err *err);
void simulate_world_destroy(struct simulate_world *w); /* NULL is fine */

/* Runs requests [0, n_warmup) to their end, then, with all counters fresh, the n_requests after
 * them. Once per world. A request that fails ends the run with its reason. The result's arrays are
 * the world's. */
enum status simulate_world_run(struct simulate_world *w, uint32_t n_warmup, uint32_t n_requests,
                               struct simulate_result *out, struct err *err);

/* What was recorded, aligned. STATUS_NO_MEMORY. */
enum status simulate_world_trace(const struct simulate_world *w, struct trace_set **out,
                                 struct err *err);

#endif
