/* Message buffers that are used again: what both transports lend out and take back.
 *
 * Buffers come in powers of two and stay allocated while they are idle, so that a cluster in steady
 * state allocates nothing per message. Any thread may acquire and release. */
#ifndef CLUSTER_MESSAGE_POOL_H
#define CLUSTER_MESSAGE_POOL_H

#include "cluster/transport.h"

#include <stdint.h>

/* A message with what the transport that carries it needs to know; `message` comes first, so that
 * one pointer is both. The fields after it belong to the transport while it holds the message. */
struct message_node {
    struct transport_message message;
    struct message_node *next;
    struct message_node *rows; /* mpi: of the pool for second parts; NULL: has none */
    uint64_t announcement[3];  /* mpi: what is sent ahead of a long body */
    int n_pending;             /* mpi: sends or receives that still use this node */
    bool is_complete;          /* mpi: all parts have arrived */
    int size_class;            /* the pool's */
    bool is_special;           /* the pool's: the bytes are of its special memory */
};

struct message_pool;

/* Keeps at most max_idle_bytes of unused buffers. STATUS_NO_MEMORY. */
enum status message_pool_create(size_t max_idle_bytes, struct message_pool **out, struct err *err);
/* NULL is fine. Every node must have been released. */
void message_pool_destroy(struct message_pool *pool);

/* Buffers made from now on are of this memory, which the pool releases when it is destroyed; idle
 * ones are dropped, so that the pool fills with the new kind. A pool has one such memory: a second
 * is released at once. */
void message_pool_use_memory(struct message_pool *pool, const struct transport_memory *memory);

/* A node whose message has cap_bytes or more, len_bytes 0. STATUS_INVALID above
 * TRANSPORT_MAX_MESSAGE_BYTES, STATUS_NO_MEMORY. */
enum status message_pool_acquire(struct message_pool *pool, size_t cap_bytes,
                                 struct message_node **out, struct err *err);
/* NULL is fine. */
void message_pool_release(struct message_pool *pool, struct message_node *node);
/* Releases a chain linked by next. */
void message_pool_release_all(struct message_pool *pool, struct message_node *first);
/* Nodes that are acquired and not yet released. */
size_t message_pool_n_lent(struct message_pool *pool);

/* A first-in first-out chain of nodes; all zero is empty. */
struct message_queue {
    struct message_node *first, *last;
};
void message_queue_push(struct message_queue *queue, struct message_node *node);
/* NULL when empty. */
struct message_node *message_queue_pop(struct message_queue *queue);

#endif
