/* Chains of numbered items over one array: a free list and any number of ordered chains, no heap.
 *
 * The worker keeps two such pools: KV blocks (a chain is the blocks of one sequence and loop) and
 * row slots (a chain is a range of positions in order). An item is free, in one chain, or detached
 * (taken out of its chain and held by the caller, as the rows of a running batch are). */
#ifndef WORKER_CHAIN_H
#define WORKER_CHAIN_H

#include <stdbool.h>
#include <stdint.h>

#define CHAIN_NONE UINT32_MAX

struct chain_pool {
    uint32_t n_items, n_used; /* detached items count as used */
    uint32_t n_touched; /* items from here on have never been handed out: they are free, too */
    uint32_t free_head; /* of those that came back; CHAIN_NONE: none */
    uint32_t *next;     /* [n_items], lent at init */
};

struct chain {
    uint32_t head, tail; /* CHAIN_NONE when n is 0 */
    uint32_t n;
};

/* All items free; `next` is borrowed as long as the pool is used. n_items < CHAIN_NONE. */
void chain_pool_init(struct chain_pool *pool, uint32_t *next, uint32_t n_items);
void chain_init(struct chain *chain);

/* Appends n free items to the chain; false and no change when there are fewer. */
bool chain_take(struct chain_pool *pool, struct chain *chain, uint32_t n);
/* Gives all items of the chain back to the pool. */
void chain_free(struct chain_pool *pool, struct chain *chain);

/* Detaches the first item; the chain must not be empty. */
uint32_t chain_pop(struct chain_pool *pool, struct chain *chain);
/* Appends a detached item. */
void chain_push(struct chain_pool *pool, struct chain *chain, uint32_t item);
/* Appends all of `from`, which becomes empty. */
void chain_append(struct chain_pool *pool, struct chain *to, struct chain *from);

#endif
