/* A replica that waits as long as the cost model says instead of computing: no weights are read, no
 * KV and no rows are kept. */
#include "worker/replica_parts.h"

#include "cluster/host.h"
#include "worker/timed.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

/* Many ranks share few cores here and sleep most of the time: a thread that is due must not wait
 * until another one's turn is over, nor be woken late to save power (50 us, Linux' default). */
static void wake_promptly(void)
{
    host_prefer_short_turns();
    prctl(PR_SET_TIMERSLACK, 1);
}

struct replica_timed {
    struct cost_model cost;
    struct timed timed;
    uint64_t late_ns; /* by which the last batch was over too late */
    pthread_t thread; /* that ran the last batch */
    float *row;       /* [d] what every row reads as: frames travel in their real size */
};

enum status replica_timed_create(struct replica *r, const struct replica_config *config,
                                 struct err *err)
{
    if (config->cost_file == NULL)
        return err_set(err, STATUS_INVALID,
                       "backend timed needs to be told what work costs: give --cost FILE");
    struct replica_timed *t = calloc(1, sizeof *t);
    size_t d = (size_t)r->model.d_model;
    float *row = malloc(d * sizeof *row);
    if (t == NULL || row == NULL) {
        free(t);
        free(row);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a timed replica");
    }
    for (size_t i = 0; i < d; i++)
        row[i] = (float)(i + 1) / (float)d;
    t->row = row;
    t->thread = pthread_self();
    t->timed = (struct timed){.cost = &t->cost,
                              .vocab_size = (uint32_t)r->model.vocab_size,
                              .jitter_seed = config->jitter_seed};
    r->timed = t;
    wake_promptly(); /* the driver's thread: it creates the replica */
    r->geometry.workspace_bytes = 0;
    return cost_model_load(config->cost_file, &t->cost, err);
}

void replica_timed_destroy(struct replica *r)
{
    if (r->timed == NULL)
        return;
    free(r->timed->row);
    free(r->timed);
    r->timed = NULL;
}

void replica_timed_read_rows(const struct replica *r, uint32_t n, void *const *hosts)
{
    size_t row_bytes = (size_t)r->model.d_model * sizeof(float);
    for (uint32_t i = 0; i < n; i++)
        memcpy(hosts[i], r->timed->row, row_bytes);
}

/* To an absolute time, so that what this thread has done since the batch's start, and what it is
 * interrupted for, is part of the batch. */
static void sleep_until(uint64_t at_ns)
{
    struct timespec at = {.tv_sec = (time_t)(at_ns / 1000000000u),
                          .tv_nsec = (long)(at_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        continue;
}

void replica_timed_run(struct replica *r, const struct batch *batch, struct batch_result *result)
{
    struct replica_timed *t = r->timed;
    if (!pthread_equal(t->thread, pthread_self())) {
        t->thread = pthread_self();
        wake_promptly();
    }
    uint64_t start_ns = host_now_ns();
    timed_run(&t->timed, batch, result);
    /* A busy machine wakes a thread late. The next batch gives that back, as far as a quarter of
     * its own time goes: so batches take what the model says on average. */
    uint64_t back_ns = t->late_ns < result->compute_ns / 4 ? t->late_ns : result->compute_ns / 4;
    uint64_t until_ns = start_ns + result->compute_ns - back_ns;
    sleep_until(until_ns);
    uint64_t now_ns = host_now_ns();
    t->late_ns -= back_ns;
    t->late_ns += now_ns > until_ns ? now_ns - until_ns : 0;
    if (t->late_ns > result->compute_ns)
        t->late_ns = result->compute_ns; /* a machine that stood still is not run after */
}

void replica_timed_knee(const struct replica *r, uint64_t *batch_ns, uint64_t *row_ns)
{
    cost_model_knee(&r->timed->cost, batch_ns, row_ns);
}
