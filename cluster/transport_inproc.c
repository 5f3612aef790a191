/* Carries messages between the roles of one process: a mailbox per rank, no copy. */
#include "cluster/host.h"
#include "cluster/message_pool.h"
#include "cluster/transport.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_IDLE_BYTES = 256 << 20 };

struct mailbox {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct message_queue arrived;
    bool is_woken;  /* transport_wake since the last wait */
    bool is_closed; /* its owner is gone: messages to it are dropped, as those to a dead rank are */
};

struct shared {
    struct message_pool *pool;
    struct mailbox *boxes;
    int n_ranks;
    pthread_mutex_t lock;
    int n_users; /* transports not yet destroyed */
};

struct inproc {
    struct transport base;
    struct shared *shared;
};

static struct mailbox *own_box(struct transport *t)
{
    return &((struct inproc *)t)->shared->boxes[t->rank];
}

static struct message_pool *pool_of(struct transport *t)
{
    return ((struct inproc *)t)->shared->pool;
}

static enum status inproc_acquire(struct transport *t, size_t cap_bytes,
                                  struct transport_message **out, struct err *err)
{
    struct message_node *node = NULL;
    enum status status = message_pool_acquire(pool_of(t), cap_bytes, &node, err);
    if (status != STATUS_OK)
        return status;
    node->message.source = t->rank;
    *out = &node->message;
    return STATUS_OK;
}

static void inproc_release(struct transport *t, struct transport_message *message)
{
    message_pool_release(pool_of(t), (struct message_node *)message);
}

static enum status inproc_post(struct transport *t, int dest, struct transport_message *message,
                               struct err *err)
{
    struct message_node *node = (struct message_node *)message;
    if (dest < 0 || dest >= t->n_ranks || message->len_bytes > message->cap_bytes) {
        enum status status =
            err_set(err, STATUS_INVALID, "post of %zu bytes (room for %zu) to rank %d of %d",
                    message->len_bytes, message->cap_bytes, dest, t->n_ranks);
        inproc_release(t, message);
        return status;
    }
    t->counters.n_messages_sent++;
    t->counters.n_bytes_sent += message->len_bytes;
    message->source = t->rank;
    struct mailbox *box = &((struct inproc *)t)->shared->boxes[dest];
    pthread_mutex_lock(&box->lock);
    bool is_closed = box->is_closed;
    if (!is_closed) {
        message_queue_push(&box->arrived, node);
        pthread_cond_signal(&box->changed);
    }
    pthread_mutex_unlock(&box->lock);
    if (is_closed)
        message_pool_release(pool_of(t), node);
    return STATUS_OK;
}

static enum status inproc_poll(struct transport *t, struct transport_message **out, struct err *err)
{
    (void)err;
    struct mailbox *box = own_box(t);
    pthread_mutex_lock(&box->lock);
    struct message_node *node = message_queue_pop(&box->arrived);
    pthread_mutex_unlock(&box->lock);
    if (node != NULL) {
        t->counters.n_messages_received++;
        t->counters.n_bytes_received += node->message.len_bytes;
    }
    *out = node != NULL ? &node->message : NULL;
    return STATUS_OK;
}

static enum status inproc_wait(struct transport *t, uint64_t timeout_ns, struct err *err)
{
    (void)err;
    uint64_t now_ns = host_now_ns();
    uint64_t until_ns = timeout_ns > INT64_MAX - now_ns ? INT64_MAX : now_ns + timeout_ns;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    struct mailbox *box = own_box(t);
    pthread_mutex_lock(&box->lock);
    while (box->arrived.first == NULL && !box->is_woken)
        if (pthread_cond_timedwait(&box->changed, &box->lock, &until) != 0)
            break;
    box->is_woken = false;
    pthread_mutex_unlock(&box->lock);
    return STATUS_OK;
}

static void inproc_wake(struct transport *t)
{
    struct mailbox *box = own_box(t);
    pthread_mutex_lock(&box->lock);
    box->is_woken = true;
    pthread_cond_signal(&box->changed);
    pthread_mutex_unlock(&box->lock);
}

static bool inproc_is_drained(struct transport *t)
{
    (void)t; /* post hands the message over, nothing stays behind */
    return true;
}

static void inproc_use_memory(struct transport *t, const struct transport_memory *memory)
{
    message_pool_use_memory(pool_of(t), memory);
}

static void shared_free(struct shared *shared)
{
    for (int i = 0; i < shared->n_ranks; i++) {
        message_pool_release_all(shared->pool, shared->boxes[i].arrived.first);
        pthread_cond_destroy(&shared->boxes[i].changed);
        pthread_mutex_destroy(&shared->boxes[i].lock);
    }
    message_pool_destroy(shared->pool);
    pthread_mutex_destroy(&shared->lock);
    free(shared->boxes);
    free(shared);
}

static void inproc_destroy(struct transport *t)
{
    struct shared *shared = ((struct inproc *)t)->shared;
    struct mailbox *box = own_box(t);
    pthread_mutex_lock(&box->lock);
    box->is_closed = true;
    pthread_mutex_unlock(&box->lock);
    free(t);
    pthread_mutex_lock(&shared->lock);
    bool is_last = --shared->n_users == 0;
    pthread_mutex_unlock(&shared->lock);
    if (is_last)
        shared_free(shared);
}

static const struct transport_ops inproc_ops = {
    .name = "inproc",
    .acquire = inproc_acquire,
    .post = inproc_post,
    .poll = inproc_poll,
    .release = inproc_release,
    .wait = inproc_wait,
    .wake = inproc_wake,
    .is_drained = inproc_is_drained,
    .use_memory = inproc_use_memory,
    .destroy = inproc_destroy,
};

static struct shared *shared_new(int n_ranks, struct err *err)
{
    struct shared *shared = calloc(1, sizeof *shared);
    struct mailbox *boxes = calloc((size_t)n_ranks, sizeof *boxes);
    if (shared == NULL || boxes == NULL ||
        message_pool_create(MAX_IDLE_BYTES, &shared->pool, NULL) != STATUS_OK) {
        free(shared);
        free(boxes);
        err_set(err, STATUS_NO_MEMORY, "in-process transport: no memory for %d ranks", n_ranks);
        return NULL;
    }
    shared->boxes = boxes;
    shared->n_ranks = n_ranks;
    pthread_mutex_init(&shared->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    for (int i = 0; i < n_ranks; i++) {
        pthread_mutex_init(&boxes[i].lock, NULL);
        pthread_cond_init(&boxes[i].changed, &monotonic);
    }
    pthread_condattr_destroy(&monotonic);
    return shared;
}

enum status transport_inproc_create(int n_ranks, struct transport **out, struct err *err)
{
    if (n_ranks < 1)
        return err_set(err, STATUS_INVALID, "in-process transport: %d ranks, need 1 or more",
                       n_ranks);
    struct shared *shared = shared_new(n_ranks, err);
    struct inproc **made = calloc((size_t)n_ranks, sizeof *made);
    if (shared == NULL || made == NULL)
        goto no_memory;
    for (int i = 0; i < n_ranks; i++) {
        made[i] = calloc(1, sizeof *made[i]);
        if (made[i] == NULL)
            goto no_memory;
        made[i]->base = (struct transport){
            .ops = &inproc_ops,
            .rank = i,
            .n_ranks = n_ranks,
            .n_local_ranks = n_ranks,
            .n_local_before = i,
            .has_local_zero = true,
        };
        made[i]->shared = shared;
    }
    shared->n_users = n_ranks;
    for (int i = 0; i < n_ranks; i++)
        out[i] = &made[i]->base;
    free(made);
    return STATUS_OK;

no_memory:
    for (int i = 0; made != NULL && i < n_ranks; i++)
        free(made[i]);
    free(made);
    if (shared != NULL)
        shared_free(shared);
    return err_set(err, STATUS_NO_MEMORY, "in-process transport: no memory for %d ranks", n_ranks);
}
