/* A fork-join pool of threads: the caller and its helpers run one piece of work and meet at the end.
 */
#ifndef KERNELS_CPU_POOL_H
#define KERNELS_CPU_POOL_H

#include "proto/status.h"

#include <stdbool.h>

struct cpu_pool;

/* n_threads counts the caller. may_spin: helpers look for the next run for a while before they
 * sleep; only where each has a core of its own. STATUS_NO_MEMORY. */
enum status cpu_pool_create(int n_threads, bool may_spin, struct cpu_pool **out, struct err *err);
void cpu_pool_destroy(struct cpu_pool *pool); /* NULL is fine */
/* Runs work(context, t) for t in 0 .. n_threads - 1, each on a thread of its own (0 is the caller),
 * and returns when all are done. */
void cpu_pool_run(struct cpu_pool *pool, void (*work)(void *context, int thread), void *context);
/* Is an operation of so many multiply-adds over so many bytes long enough that waking the helpers
 * pays? Work that takes its pieces from a counter may as well be called for thread 0 alone: the
 * results are the same. */
bool cpu_pool_is_worth(double n_multiply_adds, double n_bytes);

#endif
