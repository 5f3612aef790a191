/* Batches for measuring one replica: decoding steps and a prompt, at every loop, without an engine.
 *
 * The replica is driven as a worker drives it (submit, collect), so what is timed is what a worker
 * gets; rows go through all loops, each with KV of its own, and the last one goes through head and
 * sampler. */
#ifndef CLI_REPLICA_BATCHES_H
#define CLI_REPLICA_BATCHES_H

#include "model/checkpoint.h"
#include "proto/status.h"
#include "worker/replica.h"

#include <stdbool.h>
#include <stdint.h>

struct replica_batches;

/* The replica is borrowed. max_rows as in its config. STATUS_NO_MEMORY. */
enum status replica_batches_create(struct replica *replica, const struct model_config *model,
                                   uint32_t max_rows, struct replica_batches **out,
                                   struct err *err);
void replica_batches_destroy(struct replica_batches *b); /* NULL is fine */

/* The longest context, a multiple of the block size, that n sequences can have at all loops at
 * once; 0 when there is no room for one block each. */
uint32_t replica_batches_context(const struct replica_batches *b, uint32_t n_sequences);

/* One decoding step of n sequences at `context` positions: a batch of n rows a loop. One after the
 * other (is_ahead false: the host knows a loop's outcome before it prepares the next, as a single
 * worker does), or with as many submitted ahead as the replica takes. *ns is the time of all of
 * them. */
enum status replica_batches_decode(struct replica_batches *b, uint32_t n_sequences,
                                   uint32_t context, bool is_ahead, double *ns, struct err *err);

/* A prompt of n_tokens in chunks of at most `chunk` rows, each through all loops before the next.
 * Its first token is drawn at the end. */
enum status replica_batches_prefill(struct replica_batches *b, uint32_t n_tokens, uint32_t chunk,
                                    bool is_ahead, double *ns, struct err *err);

#endif
