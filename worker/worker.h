/* The worker's driver: one rank's loop around stage and replica. Takes messages, feeds the stage,
 * carries out its output, while the compute thread runs batches.
 *
 * worker_run returns when the coordinator says shutdown. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "cluster/transport.h"
#include "model/checkpoint.h"
#include "worker/knee.h"

#include <stdbool.h>
#include <stdint.h>

/* Whether rows go from one worker's device memory to another's. AUTO: on a GPU, where the MPI
 * library says that it takes such addresses. YES: it does, whatever it says (on the CPU, too). */
enum worker_cuda_aware { WORKER_CUDA_AWARE_AUTO = 0, WORKER_CUDA_AWARE_YES, WORKER_CUDA_AWARE_NO };

struct worker_config {
    const char *model_dir; /* opened by the worker, so that every rank maps its own host's files */
    int n_loops;           /* 0 = the file's T */
    const char *backend;   /* "auto" */
    int device;            /* GPU: its number; -1 = by the worker's place on its host */
    double gpu_memory_fraction; /* of the GPU's, for this worker; 0 = kv_sizing.h's */
    enum worker_cuda_aware cuda_aware;
    const char *isa; /* NULL = what the coordinator's welcome says */
    enum dtype kv_dtype;
    bool kv_dtype_auto; /* F32 for F32 checkpoints on a CPU, else BF16 */
    uint32_t ring_size; /* 0 = default */
    uint32_t block_size;
    uint32_t max_batch_rows; /* 0: 256 on a CPU, 1024 on a GPU */
    uint32_t max_sequences;
    uint32_t prefill_chunk; /* 0: 64, 512 */
    uint32_t n_in_flight;   /* batches at once, 1 or 2; 0: as many as the backend gains from */
    enum batching batching;
    uint64_t wait_deadline_ns; /* 0 = by the rule */
    uint64_t trace_bytes;      /* of the ring buffer of trace records; 0: nothing is recorded */
    const char *cost_file;     /* backend "timed": what work costs (cluster/cost_model.h) */
    uint64_t idle_timeout_ns;  /* how long the start waits for the coordinator; 0 = 120 s */
};

/* Runs until shutdown. STATUS_OK after an orderly end. On a failure the coordinator has been told
 * where possible. */
enum status worker_run(struct transport *transport, const struct worker_config *config,
                       struct err *err);

#endif
