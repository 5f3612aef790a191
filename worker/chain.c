/* Keeps every item of a pool in exactly one place: the free list, one chain, or a caller's hand. */
#include "worker/chain.h"

#include <assert.h>

void chain_pool_init(struct chain_pool *pool, uint32_t *next, uint32_t n_items)
{
    assert(n_items > 0 && n_items < CHAIN_NONE);
    /* next[] is written when an item is first handed out: a large pool that is hardly used costs
     * neither time nor pages, thousands of which share a machine in a simulation. */
    *pool = (struct chain_pool){.n_items = n_items, .free_head = CHAIN_NONE, .next = next};
}

void chain_init(struct chain *chain)
{
    *chain = (struct chain){.head = CHAIN_NONE, .tail = CHAIN_NONE};
}

void chain_push(struct chain_pool *pool, struct chain *chain, uint32_t item)
{
    assert(item < pool->n_items);
    pool->next[item] = CHAIN_NONE;
    if (chain->n == 0)
        chain->head = item;
    else
        pool->next[chain->tail] = item;
    chain->tail = item;
    chain->n++;
}

uint32_t chain_pop(struct chain_pool *pool, struct chain *chain)
{
    assert(chain->n > 0);
    uint32_t item = chain->head;
    chain->head = pool->next[item];
    chain->n--;
    if (chain->n == 0)
        chain_init(chain);
    return item;
}

bool chain_take(struct chain_pool *pool, struct chain *chain, uint32_t n)
{
    if (n > pool->n_items - pool->n_used)
        return false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t item = pool->free_head;
        if (item != CHAIN_NONE)
            pool->free_head = pool->next[item];
        else /* ascending, so that a fresh pool hands out neighbours one after the other */
            item = pool->n_touched++;
        chain_push(pool, chain, item);
    }
    pool->n_used += n;
    return true;
}

void chain_free(struct chain_pool *pool, struct chain *chain)
{
    assert(chain->n <= pool->n_used);
    if (chain->n > 0) {
        pool->next[chain->tail] = pool->free_head;
        pool->free_head = chain->head;
        pool->n_used -= chain->n;
    }
    chain_init(chain);
}

void chain_append(struct chain_pool *pool, struct chain *to, struct chain *from)
{
    if (from->n == 0)
        return;
    if (to->n == 0) {
        *to = *from;
    } else {
        pool->next[to->tail] = from->head;
        to->tail = from->tail;
        to->n += from->n;
    }
    chain_init(from);
}
