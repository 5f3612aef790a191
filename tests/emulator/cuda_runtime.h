/* The stand-in's <cuda_runtime.h>: the same as <cuda_runtime_api.h>; kernels are started with
 * CUDA_LAUNCH of kernels/cuda_device.cuh. */
#ifndef EMULATOR_CUDA_RUNTIME_H
#define EMULATOR_CUDA_RUNTIME_H

#include <cuda_runtime_api.h>

#endif
