/* Tells what a GPU is, by the CUDA runtime, without taking anything of it. */
#include "kernels/cuda_backend.h"

#include <stdio.h>

/* The backend's own words for what is missing: no driver, no device, no such number. */
static enum status cuda_say_why_not(int device, struct err *err)
{
    const struct kernels_options options = {.device = device};
    struct kernels *k;
    enum status st = kernels_cuda_create(&options, &k, err);
    if (st != STATUS_OK)
        return st;
    kernels_destroy(k);
    return err_set(err, STATUS_NOT_FOUND, "GPU %d has come or gone just now", device);
}

enum status kernels_cuda_device(int device, struct kernels_device *out, struct err *err)
{
    struct kernels_device d = {0};
    struct cudaDeviceProp properties;
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess) {
        (void)cudaGetLastError();
        n_devices = 0;
    }
    if (device < 0 || device >= n_devices)
        return cuda_say_why_not(device, err);
    enum status st =
        cuda_check(cudaGetDeviceProperties(&properties, device), "asking what the GPU is", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaDeviceGetPCIBusId(d.id, sizeof d.id, device), "asking where the GPU is",
                        err);
    if (st == STATUS_OK)
        st = cuda_check(cudaDriverGetVersion(&d.driver), "asking for the driver's version", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaRuntimeGetVersion(&d.runtime), "asking for the runtime's version", err);
    if (st != STATUS_OK)
        return st;
    snprintf(d.name, sizeof d.name, "%.*s", (int)sizeof d.name - 1, properties.name);
    d.major = properties.major;
    d.minor = properties.minor;
    d.total_bytes = properties.totalGlobalMem;
    *out = d;
    return STATUS_OK;
}
