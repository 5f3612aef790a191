/* The compute thread: runs one batch at a time, so that a long one never silences the driver. */
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
/* Waits for a running batch, ends the thread. NULL is fine. */
void compute_destroy(struct compute *c);

/* Hands the batch over; nothing may be running. It is borrowed until compute_take says it is done.
 */
void compute_start(struct compute *c, const struct batch *batch);
/* Runs the batch on the caller's thread instead: cheaper for batches shorter than a thread
 * hand-over. */
void compute_run_here(struct compute *c, const struct batch *batch);
/* *result is the finished batch's, valid until the next start; NULL while one runs or when none was
 * started. An error is the backend's: fatal. Each result is handed out once. */
enum status compute_take(struct compute *c, const struct batch_result **result, struct err *err);

#endif
