/* Collects batches on a thread of its own and hands each result out once, in their order. */
#include "worker/compute.h"

#include "cluster/host.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

/* A batch from its start until its result has been taken, and the result beyond that. */
struct compute_slot {
    uint64_t started_ns;
    struct batch_result result;
    enum status status;
    struct err err;
};

/* Batches are numbered from 0 as they are started; number n is in slot n % KERNELS_MAX_IN_FLIGHT.
 */
struct compute {
    struct replica *replica;
    void (*wake)(void *);
    void *wake_arg;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards all below; a slot is the thread's own while it collects it */
    pthread_cond_t has_work;
    bool is_ending;
    bool is_lost; /* a batch has failed: nothing more is collected */
    uint64_t n_started, n_collected, n_taken;
    /* The batches before this number have observations in the replica's memory that the driver may
     * still read: the next one is not collected meanwhile. 0: none. */
    uint64_t n_held;
    uint64_t ended_ns; /* of the batch collected last */
    struct compute_slot slots[KERNELS_MAX_IN_FLIGHT];
};

static struct compute_slot *slot_of(struct compute *c, uint64_t number)
{
    return &c->slots[number % KERNELS_MAX_IN_FLIGHT];
}

/* The thread's, with the mutex held. */
static void collect(struct compute *c)
{
    struct compute_slot *slot = slot_of(c, c->n_collected);
    pthread_mutex_unlock(&c->mutex);
    slot->err = (struct err){0};
    slot->status = replica_collect(c->replica, &slot->result, &slot->err);
    uint64_t now_ns = host_now_ns();
    pthread_mutex_lock(&c->mutex);
    uint64_t from_ns = slot->started_ns > c->ended_ns ? slot->started_ns : c->ended_ns;
    slot->result.compute_ns = now_ns - from_ns;
    c->ended_ns = now_ns;
    c->n_collected++;
    if (slot->status != STATUS_OK)
        c->is_lost = true;
    else if (slot->result.n_observations > 0)
        c->n_held = c->n_collected;
}

static bool has_work(const struct compute *c)
{
    return c->n_collected < c->n_started && c->n_held == 0 && !c->is_lost;
}

static void *compute_main(void *arg)
{
    struct compute *c = arg;
    pthread_mutex_lock(&c->mutex);
    for (;;) {
        while (!has_work(c) && !c->is_ending)
            pthread_cond_wait(&c->has_work, &c->mutex);
        if (!has_work(c))
            break;
        collect(c);
        /* Without the mutex: the driver would wake up only to wait for it. */
        pthread_mutex_unlock(&c->mutex);
        c->wake(c->wake_arg);
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

static void free_all(struct compute *c)
{
    for (int i = 0; c != NULL && i < KERNELS_MAX_IN_FLIGHT; i++)
        free(c->slots[i].result.outcomes);
    free(c);
}

enum status compute_create(struct replica *replica, uint32_t max_segments, void (*wake)(void *),
                           void *wake_arg, struct compute **out, struct err *err)
{
    struct compute *c = calloc(1, sizeof *c);
    bool has_room = c != NULL;
    for (int i = 0; has_room && i < KERNELS_MAX_IN_FLIGHT; i++) {
        c->slots[i].result.outcomes = calloc(max_segments, sizeof(struct batch_outcome));
        has_room = c->slots[i].result.outcomes != NULL;
    }
    if (!has_room) {
        free_all(c);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u batch outcomes", max_segments);
    }
    c->replica = replica;
    c->wake = wake;
    c->wake_arg = wake_arg;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->has_work, NULL);
    if (pthread_create(&c->thread, NULL, compute_main, c) != 0) {
        pthread_cond_destroy(&c->has_work);
        pthread_mutex_destroy(&c->mutex);
        free_all(c);
        return err_set(err, STATUS_NO_MEMORY,
                       "cannot start the compute thread; raise the limit on processes (ulimit -u)");
    }
    *out = c;
    return STATUS_OK;
}

void compute_destroy(struct compute *c)
{
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->mutex);
    c->is_ending = true;
    c->n_held = 0;
    pthread_cond_signal(&c->has_work);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->has_work);
    pthread_mutex_destroy(&c->mutex);
    free_all(c);
}

/* With the mutex held: what was taken before is no longer looked at. */
static void let_go(struct compute *c)
{
    if (c->n_held == 0 || c->n_held > c->n_taken)
        return;
    c->n_held = 0;
    pthread_cond_signal(&c->has_work);
}

enum status compute_start(struct compute *c, const struct batch *batch, struct err *err)
{
    uint64_t now_ns = host_now_ns();
    enum status status = replica_submit(c->replica, batch, err);
    if (status != STATUS_OK)
        return status;
    pthread_mutex_lock(&c->mutex);
    assert(c->n_started - c->n_taken < KERNELS_MAX_IN_FLIGHT);
    let_go(c);
    slot_of(c, c->n_started++)->started_ns = now_ns;
    pthread_cond_signal(&c->has_work);
    pthread_mutex_unlock(&c->mutex);
    return STATUS_OK;
}

void compute_run_here(struct compute *c, const struct batch *batch)
{
    pthread_mutex_lock(&c->mutex);
    assert(c->n_started == c->n_taken);
    let_go(c);
    struct compute_slot *slot = slot_of(c, c->n_started);
    slot->started_ns = host_now_ns();
    slot->err = (struct err){0};
    slot->status = replica_run(c->replica, batch, &slot->result, &slot->err);
    c->ended_ns = host_now_ns();
    slot->result.compute_ns = c->ended_ns - slot->started_ns;
    c->n_collected = ++c->n_started; /* the thread has seen nothing of it */
    pthread_mutex_unlock(&c->mutex);
}

enum status compute_take(struct compute *c, const struct batch_result **result, struct err *err)
{
    *result = NULL;
    enum status status = STATUS_OK;
    pthread_mutex_lock(&c->mutex);
    let_go(c);
    if (c->n_taken < c->n_collected) {
        struct compute_slot *slot = slot_of(c, c->n_taken++);
        status = slot->status;
        if (status != STATUS_OK && err != NULL)
            *err = slot->err;
        if (status == STATUS_OK)
            *result = &slot->result;
    }
    pthread_mutex_unlock(&c->mutex);
    return status;
}
