/* What a worker computes on: chosen before it greets, so that the coordinator hears of it. */
#ifndef WORKER_WORKER_DEVICE_H
#define WORKER_WORKER_DEVICE_H

#include "cluster/transport.h"
#include "kernels/kernels.h"
#include "proto/control.h"
#include "worker/worker.h"

#include <stdbool.h>

struct worker_device {
    const char *backend; /* "cpu", "cuda" or "timed": never "auto" */
    bool is_gpu;
    int number;                /* of the GPU, as the driver counts */
    struct kernels_device gpu; /* when is_gpu */
};

/* The GPU of the local_worker-th worker (from 0) of a host that sees n_devices > 0: the one that
 * was asked for (-1: none was), else one after the other and from the first again. Pure.
 * STATUS_NOT_FOUND, with how many there are. */
enum status worker_device_pick(int asked, int local_worker, int n_devices, int *out,
                               struct err *err);

/* Backend "auto" becomes "cuda" where an option asks for a GPU, or where one works and no option (a
 * level of CPUs, fp32 KV) asks for the CPU. STATUS_UNSUPPORTED
 * with why the GPU cannot be used, or for an option that only the other backend knows. */
enum status worker_device_choose(const struct worker_config *config,
                                 const struct transport *transport, struct worker_device *out,
                                 struct err *err);
/* Whether this worker's rows can come and go in the memory it computes in: the transport carries
 * second parts, and MPI takes their addresses. */
bool worker_device_is_direct(const struct worker_device *device, enum worker_cuda_aware asked,
                             const struct transport *transport);
/* Fills what a hello says of it: backend, instruction set, GPU. */
void worker_device_tell(const struct worker_device *device, const char *isa,
                        struct control_hello *hello);

#endif
