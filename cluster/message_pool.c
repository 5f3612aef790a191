/* Lends aligned message buffers in powers of two and keeps a bounded number of idle ones. */
#include "cluster/message_pool.h"

#include <pthread.h>
#include <stdlib.h>

enum { ALIGN_BYTES = 64, MIN_CLASS = 8, MAX_CLASS = 30 }; /* 256 B .. 1 GiB */

struct message_pool {
    pthread_mutex_t lock;
    struct message_node *idle[MAX_CLASS + 1];
    size_t idle_bytes, max_idle_bytes;
    size_t n_lent;
    struct transport_memory special; /* alloc NULL: none */
};

_Static_assert(TRANSPORT_MAX_MESSAGE_BYTES == 1 << MAX_CLASS, "the largest class is the limit");

static int class_of(size_t cap_bytes)
{
    int size_class = MIN_CLASS;
    while (((size_t)1 << size_class) < cap_bytes)
        size_class++;
    return size_class;
}

static void node_free(struct message_pool *pool, struct message_node *node)
{
    if (node->is_special)
        pool->special.free(pool->special.context, node->message.bytes, node->message.cap_bytes);
    else
        free(node->message.bytes);
    free(node);
}

/* Unlinks all idle nodes; the caller holds the lock. */
static struct message_node *take_idle(struct message_pool *pool)
{
    struct message_node *all = NULL;
    for (int i = MIN_CLASS; i <= MAX_CLASS; i++) {
        while (pool->idle[i] != NULL) {
            struct message_node *node = pool->idle[i];
            pool->idle[i] = node->next;
            node->next = all;
            all = node;
        }
    }
    pool->idle_bytes = 0;
    return all;
}

static void free_all(struct message_pool *pool, struct message_node *first)
{
    while (first != NULL) {
        struct message_node *next = first->next;
        node_free(pool, first);
        first = next;
    }
}

enum status message_pool_create(size_t max_idle_bytes, struct message_pool **out, struct err *err)
{
    struct message_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return err_set(err, STATUS_NO_MEMORY, "message pool: out of memory");
    pool->max_idle_bytes = max_idle_bytes;
    pthread_mutex_init(&pool->lock, NULL);
    *out = pool;
    return STATUS_OK;
}

void message_pool_destroy(struct message_pool *pool)
{
    if (pool == NULL)
        return;
    free_all(pool, take_idle(pool));
    if (pool->special.alloc != NULL)
        pool->special.release(pool->special.context);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void message_pool_use_memory(struct message_pool *pool, const struct transport_memory *memory)
{
    pthread_mutex_lock(&pool->lock);
    bool is_first = pool->special.alloc == NULL;
    struct message_node *dropped = NULL;
    if (is_first) {
        pool->special = *memory;
        dropped = take_idle(pool);
    }
    pthread_mutex_unlock(&pool->lock);
    free_all(pool, dropped);
    if (!is_first)
        memory->release(memory->context);
}

/* special: alloc NULL for ordinary memory */
static enum status node_new(int size_class, const struct transport_memory *special,
                            struct message_node **out, struct err *err)
{
    size_t cap_bytes = (size_t)1 << size_class;
    struct message_node *node = calloc(1, sizeof *node);
    void *bytes = NULL;
    enum status status = STATUS_OK;
    if (node == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message of %zu bytes", cap_bytes);
    if (special->alloc != NULL)
        status = special->alloc(special->context, cap_bytes, &bytes, err);
    else if ((bytes = aligned_alloc(ALIGN_BYTES, cap_bytes)) == NULL)
        status = err_set(err, STATUS_NO_MEMORY, "no memory for a message of %zu bytes", cap_bytes);
    if (status != STATUS_OK) {
        free(node);
        return status;
    }
    node->size_class = size_class;
    node->is_special = special->alloc != NULL;
    node->message.cap_bytes = cap_bytes;
    node->message.bytes = bytes;
    *out = node;
    return STATUS_OK;
}

enum status message_pool_acquire(struct message_pool *pool, size_t cap_bytes,
                                 struct message_node **out, struct err *err)
{
    if (cap_bytes > TRANSPORT_MAX_MESSAGE_BYTES)
        return err_set(err, STATUS_INVALID, "a message of %zu bytes is over the limit of %d",
                       cap_bytes, TRANSPORT_MAX_MESSAGE_BYTES);
    int size_class = class_of(cap_bytes);
    pthread_mutex_lock(&pool->lock);
    struct message_node *node = pool->idle[size_class];
    if (node != NULL) {
        pool->idle[size_class] = node->next;
        pool->idle_bytes -= node->message.cap_bytes;
    }
    pool->n_lent++;
    const struct transport_memory special = pool->special;
    pthread_mutex_unlock(&pool->lock);
    enum status status = node == NULL ? node_new(size_class, &special, &node, err) : STATUS_OK;
    if (status != STATUS_OK) {
        pthread_mutex_lock(&pool->lock);
        pool->n_lent--;
        pthread_mutex_unlock(&pool->lock);
        return status;
    }
    node->next = NULL;
    node->n_pending = 0;
    node->is_complete = false;
    node->message.len_bytes = 0;
    node->message.source = -1;
    node->message.rows = NULL;
    node->message.rows_bytes = 0;
    node->rows = NULL;
    *out = node;
    return STATUS_OK;
}

void message_pool_release(struct message_pool *pool, struct message_node *node)
{
    if (node == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->n_lent--;
    bool keep = node->message.cap_bytes <= pool->max_idle_bytes - pool->idle_bytes &&
                node->is_special == (pool->special.alloc != NULL);
    if (keep) {
        node->next = pool->idle[node->size_class];
        pool->idle[node->size_class] = node;
        pool->idle_bytes += node->message.cap_bytes;
    }
    pthread_mutex_unlock(&pool->lock);
    if (!keep)
        node_free(pool, node);
}

void message_pool_release_all(struct message_pool *pool, struct message_node *first)
{
    while (first != NULL) {
        struct message_node *next = first->next;
        message_pool_release(pool, first);
        first = next;
    }
}

size_t message_pool_n_lent(struct message_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    size_t n = pool->n_lent;
    pthread_mutex_unlock(&pool->lock);
    return n;
}

void message_queue_push(struct message_queue *queue, struct message_node *node)
{
    node->next = NULL;
    if (queue->last == NULL)
        queue->first = node;
    else
        queue->last->next = node;
    queue->last = node;
}

struct message_node *message_queue_pop(struct message_queue *queue)
{
    struct message_node *node = queue->first;
    if (node == NULL)
        return NULL;
    queue->first = node->next;
    if (queue->first == NULL)
        queue->last = NULL;
    node->next = NULL;
    return node;
}
