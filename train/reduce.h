/* Sums arrays over shards, threads and ranks in one fixed tree: the bits do not depend on who holds
 * what.
 *
 * Leaf s of the tree is shard s (a power of two of them); node (l, i) = node (l-1, 2i) + node (l-1,
 * 2i+1). Rank r holds shards [reduce_first_shard(r), reduce_first_shard(r + 1)). Point to point
 * over a transport, with a deadline. */
#ifndef TRAIN_REDUCE_H
#define TRAIN_REDUCE_H

#include "cluster/transport.h"
#include "kernels/grad.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

struct reduce;

int reduce_first_shard(int n_shards, int n_ranks, int rank);
/* transport NULL: one rank. Borrowed. n_ranks <= n_shards, else STATUS_INVALID says what to do. */
enum status reduce_create(struct transport *transport, const struct grad_ops *ops, int n_shards,
                          size_t n_floats, struct reduce **out, struct err *err);
void reduce_destroy(struct reduce *r); /* NULL is fine */
/* How long the others may be silent while this rank waits for them; a rank is silent while it
 * computes its part of a step. 600 s until it is set. */
void reduce_set_deadline(struct reduce *r, uint64_t deadline_ns);
/* The array of one of this rank's shards, to be filled before reduce_sum: [n_floats]. */
float *reduce_shard(struct reduce *r, int shard);
/* Sums all shards of all ranks; *sum is [n_floats], the same on every rank, valid until the next
 * call that fills shards. STATUS_TIMEOUT names the rank that is silent, STATUS_MISMATCH when ranks
 * are not at the same step or another rank has failed (its message is passed on). */
enum status reduce_sum(struct reduce *r, uint64_t step, const float **sum, struct err *err);
/* Tells the other ranks that this one cannot go on; they return from reduce_sum with `why`. Does
 * nothing when they know: a failed reduce_sum or reduce_broadcast has told them. */
void reduce_fail(struct reduce *r, const struct err *why);
/* Rank 0's bytes on every rank (start-up: recipe hash, resume point). */
enum status reduce_broadcast(struct reduce *r, void *bytes, size_t n_bytes, struct err *err);

#endif
