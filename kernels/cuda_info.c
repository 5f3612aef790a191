/* Tells what a GPU is, by the CUDA runtime, without taking anything of it. */
#include "kernels/cuda_backend.h"

#include <stdio.h>

enum status kernels_cuda_device(int device, struct kernels_device *out, struct err *err)
{
    struct kernels_device d = {0};
    struct cudaDeviceProp properties;
    int n_devices = 0;
    enum status st = cuda_count_devices(&n_devices, err);
    if (st != STATUS_OK)
        return st;
    if (device < 0 || device >= n_devices)
        return err_set(err, STATUS_NOT_FOUND,
                       "GPU %d is not there: the driver shows %d, numbered from 0 "
                       "(CUDA_VISIBLE_DEVICES applies)",
                       device, n_devices);
    st = cuda_check(cudaGetDeviceProperties(&properties, device), "asking what the GPU is", err);
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
