/* Placement: which worker runs which loop. Pure arithmetic, no state.
 *
 * W workers form W / G rings of G. A worker has a number w = 0..W-1 and the rank w + 1 (rank 0 is
 * the coordinator); it is number w % G of ring w / G. A sequence with ring offset o runs loop t on
 * number (o + t - 1) mod G of its ring, so that rotated offsets give every worker every loop. */
#ifndef CLUSTER_RING_H
#define CLUSTER_RING_H

#include <stdbool.h>
#include <stdint.h>

/* G for n_workers >= 1 and a model of n_loops >= 1: all workers in one ring up to 8; beyond, the
 * smallest divisor of W that is >= T, so that nothing is all-to-all. A W without one but itself (a
 * prime) is one ring. */
int ring_default_size(int n_workers, int n_loops);

/* Whether rings of ring_size use all workers: 1..n_workers and a divisor of it. */
bool ring_size_is_valid(int n_workers, int ring_size);

/* How many rings; ring_size must be valid. */
int ring_count(int n_workers, int ring_size);

/* The number in its ring, 0..G-1, of the worker that runs loop t >= 1; any offset is legal. */
int ring_worker(int ring_size, uint32_t ring_offset, uint32_t loop);

/* How many of the loops 1..n_loops run on number `index` of the ring. Over all indexes: n_loops. */
int ring_loops_on(int ring_size, uint32_t ring_offset, uint32_t n_loops, int index);

/* Rank of number `index` of ring `ring`, and back; rank >= 1. */
int ring_rank(int ring_size, int ring, int index);
int ring_of_rank(int ring_size, int rank);
int ring_index_of_rank(int ring_size, int rank);

#endif
