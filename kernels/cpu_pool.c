/* A fork-join pool: the caller and its helpers run one piece of work and all meet at the end. */
#include "kernels/cpu_pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum {
    /* About 200 microseconds where a pause takes 140 cycles: the gap between two operations of a
       block. */
    POOL_SPINS = 1000,
    POOL_PAUSES = 4,
};

struct cpu_pool_helper {
    struct cpu_pool *pool;
    pthread_t thread;
    int index;
};

struct cpu_pool {
    int n_threads;
    int n_started; /* helpers */
    bool may_spin;
    struct cpu_pool_helper *helpers;
    void (*work)(void *context, int thread);
    void *context;
    atomic_uint generation; /* one more for each run; written under the mutex */
    atomic_int n_pending;   /* helpers that have not finished this run */
    bool is_stopping;       /* under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
};

static void pool_pause(void)
{
    for (int i = 0; i < POOL_PAUSES; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

/* Waits for a generation other than `seen`; false when the pool stops. */
static bool pool_wait(struct cpu_pool *pool, unsigned seen)
{
    if (pool->may_spin)
        for (int i = 0; i < POOL_SPINS; i++) {
            if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
                break;
            pool_pause();
        }
    if (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load_explicit(&pool->generation, memory_order_relaxed) == seen)
            pthread_cond_wait(&pool->wake, &pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
    }
    return !pool->is_stopping;
}

static void *pool_main(void *argument)
{
    struct cpu_pool_helper *helper = argument;
    struct cpu_pool *pool = helper->pool;
    unsigned seen = 0;
    while (pool_wait(pool, seen)) {
        seen++;
        pool->work(pool->context, helper->index);
        if (atomic_fetch_sub_explicit(&pool->n_pending, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
    return NULL;
}

static void pool_start(struct cpu_pool *pool, bool is_stopping)
{
    pthread_mutex_lock(&pool->mutex);
    pool->is_stopping = is_stopping;
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

bool cpu_pool_is_worth(double n_multiply_adds, double n_bytes)
{
    /* Some 40 microseconds of one core either way; to wake a helper and to meet again takes 5
     * to 50. */
    return n_multiply_adds > 2e6 || n_bytes > 5e5;
}

void cpu_pool_run(struct cpu_pool *pool, void (*work)(void *context, int thread), void *context)
{
    if (pool->n_started > 0) {
        pool->work = work;
        pool->context = context;
        atomic_store_explicit(&pool->n_pending, pool->n_started, memory_order_relaxed);
        pool_start(pool, false);
    }
    work(context, 0);
    if (pool->n_started == 0)
        return;
    if (pool->may_spin)
        for (int i = 0; i < POOL_SPINS; i++) {
            if (atomic_load_explicit(&pool->n_pending, memory_order_acquire) == 0)
                return;
            pool_pause();
        }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->n_pending, memory_order_acquire) != 0)
        pthread_cond_wait(&pool->done, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

enum status cpu_pool_create(int n_threads, bool may_spin, struct cpu_pool **out, struct err *err)
{
    struct cpu_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a thread pool");
    pool->n_threads = n_threads;
    pool->may_spin = may_spin;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->helpers = calloc((size_t)n_threads, sizeof *pool->helpers);
    if (pool->helpers == NULL) {
        cpu_pool_destroy(pool);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a pool of %d threads", n_threads);
    }
    for (int i = 0; i < n_threads - 1; i++) {
        struct cpu_pool_helper *helper = &pool->helpers[i];
        helper->pool = pool;
        helper->index = i + 1;
        if (pthread_create(&helper->thread, NULL, pool_main, helper) != 0) {
            cpu_pool_destroy(pool);
            return err_set(err, STATUS_NO_MEMORY,
                           "cannot start thread %d of %d; use fewer threads or raise the limit "
                           "(ulimit -u)",
                           i + 2, n_threads);
        }
        pool->n_started++;
    }
    *out = pool;
    return STATUS_OK;
}

void cpu_pool_destroy(struct cpu_pool *pool)
{
    if (pool == NULL)
        return;
    pool_start(pool, true);
    for (int i = 0; i < pool->n_started; i++)
        pthread_join(pool->helpers[i].thread, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->helpers);
    free(pool);
}
