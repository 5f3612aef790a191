/* Runs batches on a thread of its own and hands each result out once. */
#include "worker/compute.h"

#include "cluster/host.h"

#include <pthread.h>
#include <stdlib.h>

enum compute_state { COMPUTE_IDLE = 0, COMPUTE_RUNNING, COMPUTE_DONE };

struct compute {
    struct replica *replica;
    void (*wake)(void *);
    void *wake_arg;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t has_work;
    bool is_ending;
    enum compute_state state; /* guarded by mutex, as are the fields below while RUNNING */
    const struct batch *batch;
    struct batch_result result;
    enum status status;
    struct err err;
};

static void compute_run(struct compute *c, const struct batch *batch)
{
    uint64_t from_ns = host_now_ns();
    c->err = (struct err){0};
    c->status = replica_run(c->replica, batch, &c->result, &c->err);
    c->result.compute_ns = host_now_ns() - from_ns;
}

static void *compute_main(void *arg)
{
    struct compute *c = arg;
    pthread_mutex_lock(&c->mutex);
    for (;;) {
        while (c->state != COMPUTE_RUNNING && !c->is_ending)
            pthread_cond_wait(&c->has_work, &c->mutex);
        if (c->state != COMPUTE_RUNNING)
            break;
        const struct batch *batch = c->batch;
        pthread_mutex_unlock(&c->mutex);
        compute_run(c, batch);
        pthread_mutex_lock(&c->mutex);
        c->state = COMPUTE_DONE;
        c->wake(c->wake_arg);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

enum status compute_create(struct replica *replica, uint32_t max_segments, void (*wake)(void *),
                           void *wake_arg, struct compute **out, struct err *err)
{
    struct compute *c = calloc(1, sizeof *c);
    struct batch_outcome *outcomes = calloc(max_segments, sizeof *outcomes);
    if (c == NULL || outcomes == NULL) {
        free(c);
        free(outcomes);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u batch outcomes", max_segments);
    }
    c->replica = replica;
    c->wake = wake;
    c->wake_arg = wake_arg;
    c->result.outcomes = outcomes;
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->has_work, NULL);
    if (pthread_create(&c->thread, NULL, compute_main, c) != 0) {
        pthread_cond_destroy(&c->has_work);
        pthread_mutex_destroy(&c->mutex);
        free(outcomes);
        free(c);
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
    pthread_cond_signal(&c->has_work);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->has_work);
    pthread_mutex_destroy(&c->mutex);
    free(c->result.outcomes);
    free(c);
}

void compute_start(struct compute *c, const struct batch *batch)
{
    pthread_mutex_lock(&c->mutex);
    c->batch = batch;
    c->state = COMPUTE_RUNNING;
    pthread_cond_signal(&c->has_work);
    pthread_mutex_unlock(&c->mutex);
}

void compute_run_here(struct compute *c, const struct batch *batch)
{
    compute_run(c, batch);
    pthread_mutex_lock(&c->mutex);
    c->state = COMPUTE_DONE;
    pthread_mutex_unlock(&c->mutex);
}

enum status compute_take(struct compute *c, const struct batch_result **result, struct err *err)
{
    *result = NULL;
    enum status status = STATUS_OK;
    pthread_mutex_lock(&c->mutex);
    if (c->state == COMPUTE_DONE) {
        c->state = COMPUTE_IDLE;
        status = c->status;
        if (status != STATUS_OK && err != NULL)
            *err = c->err;
        if (status == STATUS_OK)
            *result = &c->result;
    }
    pthread_mutex_unlock(&c->mutex);
    return status;
}
