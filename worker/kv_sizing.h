/* How much of a GPU's memory a worker's KV pool and row store get. Pure. */
#ifndef WORKER_KV_SIZING_H
#define WORKER_KV_SIZING_H

#include "proto/status.h"

#include <stdint.h>

/* Of a GPU's memory, for all workers of the job that share it. */
#define KV_SIZING_SHARE 0.9

struct kv_sizing {
    uint64_t total_bytes, free_bytes; /* of the device; free now, the weights being there */
    uint64_t weight_bytes;            /* this worker's, taken already */
    uint64_t workspace_bytes;         /* this worker's, not taken yet */
    uint64_t asked_bytes;             /* --kv-memory; 0: by the fraction */
    double fraction;                  /* --gpu-memory-fraction; 0: KV_SIZING_SHARE / n_sharing */
    uint32_t n_sharing;               /* workers on this device, this one included; at least 1 */
};

/* What a worker's context, its library workspaces and recorded batches may take beside what is
 * counted: 768 MiB, less on a small device. */
uint64_t kv_sizing_reserve_bytes(uint64_t total_bytes);

/* The pool and the row store together: what was asked for; else what the fraction of the whole
 * leaves beside weights, workspace and reserve, as far as it is free. STATUS_NO_MEMORY, with all
 * numbers and what to do: what was asked for is not free, or nothing is left. */
enum status kv_sizing_choose(const struct kv_sizing *s, uint64_t *kv_bytes, struct err *err);

#endif
