/* Chooses what a worker computes on, from its options and from what its host has. */
#include "worker/worker_device.h"

#include <stdio.h>
#include <string.h>

enum status worker_device_pick(int asked, int local_worker, int n_devices, int *out,
                               struct err *err)
{
    if (asked >= n_devices)
        return err_set(err, STATUS_NOT_FOUND,
                       "--device %d is not there: this host shows %d GPU%s, numbers 0 to %d (as "
                       "CUDA_VISIBLE_DEVICES lets the driver count)",
                       asked, n_devices, n_devices == 1 ? "" : "s", n_devices - 1);
    *out = asked >= 0 ? asked : local_worker % n_devices;
    return STATUS_OK;
}

/* The place of this worker among those of its host: rank 0 computes nothing. */
static int local_worker(const struct transport *t)
{
    return t->n_local_before - (t->has_local_zero ? 1 : 0);
}

static enum status check_gpu_options(const struct worker_config *config, struct err *err)
{
    if (config->isa != NULL)
        return err_set(err, STATUS_UNSUPPORTED,
                       "--isa %s is a level of CPUs, and this worker computes on a GPU: leave it "
                       "out, or give --backend cpu, too",
                       config->isa);
    if (!config->kv_dtype_auto && config->kv_dtype != DTYPE_BF16)
        return err_set(err, STATUS_UNSUPPORTED,
                       "--kv-dtype %s: KV on a GPU is bf16; leave it out, or give --backend cpu",
                       dtype_name(config->kv_dtype));
    return STATUS_OK;
}

/* "auto" takes a GPU that works and no other: what is missing shows when it is tried. */
static bool is_usable(int device)
{
    const struct kernels_options options = {.device = device};
    struct kernels *k;
    if (kernels_create("cuda", &options, &k, NULL) != STATUS_OK)
        return false;
    kernels_destroy(k);
    return true;
}

static bool should_use_gpu(const struct worker_config *config, const struct transport *transport)
{
    int n_devices = kernels_cuda_devices();
    bool wants_cpu =
        config->isa != NULL || (!config->kv_dtype_auto && config->kv_dtype == DTYPE_F32);
    if (config->device >= 0 || config->gpu_memory_fraction > 0)
        return true;
    return !wants_cpu && n_devices > 0 && is_usable(local_worker(transport) % n_devices);
}

enum status worker_device_choose(const struct worker_config *config,
                                 const struct transport *transport, struct worker_device *out,
                                 struct err *err)
{
    const char *backend = config->backend != NULL ? config->backend : "auto";
    struct worker_device d = {.backend = backend};
    if (strcmp(backend, "auto") == 0)
        d.backend = should_use_gpu(config, transport) ? "cuda" : "cpu";
    d.is_gpu = strcmp(d.backend, "cuda") == 0;
    enum status status = STATUS_OK;
    if (d.is_gpu) {
        int n_devices = kernels_cuda_devices();
        status = check_gpu_options(config, err);
        /* Without one, asking for the first says why. */
        if (status == STATUS_OK && n_devices > 0)
            status = worker_device_pick(config->device, local_worker(transport), n_devices,
                                        &d.number, err);
        if (status == STATUS_OK)
            status = kernels_cuda_device(d.number, &d.gpu, err);
    }
    if (status == STATUS_OK)
        *out = d;
    return status;
}

bool worker_device_is_direct(const struct worker_device *d, enum worker_cuda_aware asked,
                             const struct transport *transport)
{
    bool has_rows = d->backend != NULL && strcmp(d->backend, "timed") != 0;
    if (asked == WORKER_CUDA_AWARE_NO || !has_rows || !transport_carries_rows(transport))
        return false;
    return asked == WORKER_CUDA_AWARE_YES || (d->is_gpu && transport_mpi_is_cuda_aware());
}

void worker_device_tell(const struct worker_device *d, const char *isa, struct control_hello *hello)
{
    snprintf(hello->backend, sizeof hello->backend, "%s", d->backend != NULL ? d->backend : "");
    if (!d->is_gpu) {
        snprintf(hello->isa, sizeof hello->isa, "%s", isa != NULL ? isa : kernels_cpu_best_isa());
        return;
    }
    snprintf(hello->isa, sizeof hello->isa, "sm_%d%d", d->gpu.major, d->gpu.minor);
    snprintf(hello->device_name, sizeof hello->device_name, "%.*s", CONTROL_NAME_BYTES - 1,
             d->gpu.name);
    snprintf(hello->device_id, sizeof hello->device_id, "%.*s", CONTROL_NAME_BYTES - 1, d->gpu.id);
    hello->device = (uint32_t)d->number;
    hello->device_memory_bytes = d->gpu.total_bytes;
}
