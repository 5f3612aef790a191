/* The compute thread: waits for batches in the order they were started, so that a long one never
 * silences the driver.
 *
 * compute_start hands a batch to the replica in the caller's thread (replica_submit): a device
 * queues its work there and then, behind that of the batch before. The thread collects
 * (replica_collect), where a CPU computes. */
#ifndef WORKER_COMPUTE_H
#define WORKER_COMPUTE_H

#include "proto/status.h"
#include "worker/batch.h"
#include "worker/replica.h"

#include <stdbool.h>
#include <stdint.h>

struct compute;

/* Starts the thread. `wake` (with `wake_arg`) is called from it after each batch. max_segments
 * bounds the outcomes. */
enum status compute_create(struct replica *replica, uint32_t max_segments, void (*wake)(void *),
                           void *wake_arg, struct compute **out, struct err *err);
/* Waits for the batches that run, ends the thread. NULL is fine. */
void compute_destroy(struct compute *c);

/* Hands the batch over; up to KERNELS_MAX_IN_FLIGHT may have been started and not taken. It is
 * borrowed until compute_take has given its result. An error is the backend's: fatal. */
enum status compute_start(struct compute *c, const struct batch *batch, struct err *err);
/* Runs the batch on the caller's thread instead: cheaper for batches shorter than a thread
 * hand-over. Nothing may be running. An error comes with compute_take. */
void compute_run_here(struct compute *c, const struct batch *batch);
/* *result is that of the oldest batch not taken yet, valid until the next call of take, start or
 * run_here; NULL while it runs or when none was started. Its compute_ns begins when the one before
 * it had ended, or with its start when that was later. An error is the backend's: fatal. Each
 * result is handed out once. */
enum status compute_take(struct compute *c, const struct batch_result **result, struct err *err);

#endif
