/* Which pool blocks hold the K/V of which positions, and the token ids of those positions.
 *
 * A chain of blocks belongs to one (sequence, loop): its i-th block holds positions
 * [i * block_size, (i + 1) * block_size). */
#ifndef WORKER_KV_BLOCKS_H
#define WORKER_KV_BLOCKS_H

#include "worker/chain.h"

#include <stdbool.h>
#include <stdint.h>

struct kv_blocks {
    struct chain_pool pool;
    uint32_t block_size;
    int32_t *ids; /* [n_blocks * block_size], lent at init */
};

/* The arrays are borrowed as long as *kv is used; ids may be uninitialised. */
void kv_blocks_init(struct kv_blocks *kv, uint32_t *next, int32_t *ids, uint32_t n_blocks,
                    uint32_t block_size);
/* Blocks that n_positions need. */
uint32_t kv_blocks_needed(uint32_t n_positions, uint32_t block_size);
/* Takes blocks until the chain covers positions [0, n_positions); false and no change when the pool
 * has too few. */
bool kv_blocks_cover(struct kv_blocks *kv, struct chain *chain, uint32_t n_positions);
/* Writes the first n_blocks of the chain to table[0 .. n_blocks). */
void kv_blocks_list(const struct kv_blocks *kv, const struct chain *chain, uint32_t n_blocks,
                    int32_t *table);
/* Records the token id of a position; table as kv_blocks_list wrote it. */
void kv_blocks_set_id(struct kv_blocks *kv, const int32_t *table, uint32_t position, int32_t id);

#endif
