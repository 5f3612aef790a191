/* Covers positions of a sequence and loop with blocks of the KV pool. */
#include "worker/kv_blocks.h"

#include <assert.h>
#include <stddef.h>

void kv_blocks_init(struct kv_blocks *kv, uint32_t *next, int32_t *ids, uint32_t n_blocks,
                    uint32_t block_size)
{
    assert(block_size > 0);
    chain_pool_init(&kv->pool, next, n_blocks);
    kv->block_size = block_size;
    kv->ids = ids;
}

uint32_t kv_blocks_needed(uint32_t n_positions, uint32_t block_size)
{
    return n_positions / block_size + (n_positions % block_size != 0);
}

bool kv_blocks_cover(struct kv_blocks *kv, struct chain *chain, uint32_t n_positions)
{
    uint32_t needed = kv_blocks_needed(n_positions, kv->block_size);
    return needed <= chain->n || chain_take(&kv->pool, chain, needed - chain->n);
}

void kv_blocks_list(const struct kv_blocks *kv, const struct chain *chain, uint32_t n_blocks,
                    int32_t *table)
{
    assert(n_blocks <= chain->n);
    uint32_t block = chain->head;
    for (uint32_t i = 0; i < n_blocks; i++) {
        table[i] = (int32_t)block;
        block = kv->pool.next[block];
    }
}

void kv_blocks_set_id(struct kv_blocks *kv, const int32_t *table, uint32_t position, int32_t id)
{
    size_t block = (size_t)table[position / kv->block_size];
    kv->ids[block * kv->block_size + position % kv->block_size] = id;
}
