/* A number by which the bits of two matrices are compared without a second copy of either. */
#include "kernels/cuda_linear_kernels.h"

#include "kernels/cuda_device.cuh"

enum { SEE_THREADS = 256, SEE_MAX_BLOCKS = 1024 };

/* Every bit of the input changes about half of the output's (the finalizer of splitmix64). */
static __device__ uint64_t see_mix(uint64_t v)
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ v >> 27) * 0x94d049bb133111ebull;
    return v ^ v >> 31;
}

/* sum += sum_{i, j} mix(mix(i m + j) + bits(y[i][j])); n_plain += elements that are not 0, infinite
 * or NaN. */
static __global__ void see_kernel(const void *y, bool is_f32, size_t n_elements, int m, int ld,
                                  struct cuda_linear_seen *seen)
{
    uint64_t sum = 0, n_plain = 0;
    for (size_t at = (size_t)blockIdx.x * SEE_THREADS + threadIdx.x; at < n_elements;
         at += (size_t)gridDim.x * SEE_THREADS) {
        const size_t i = at / (size_t)m * (size_t)ld + at % (size_t)m;
        const uint32_t bits =
            is_f32 ? ((const uint32_t *)y)[i] : (uint32_t)((const uint16_t *)y)[i] << 16;
        sum += see_mix(see_mix((uint64_t)at) + bits);
        n_plain += (bits & 0x7fffffffu) != 0 && (bits & 0x7f800000u) != 0x7f800000u;
    }
    sum = cuda_warp_sum(sum);
    n_plain = cuda_warp_sum(n_plain);
    if (threadIdx.x % 32 == 0) {
        cuda_atomic_add(&seen->sum, sum);
        cuda_atomic_add(&seen->n_plain, n_plain);
    }
}

extern "C" cudaError_t cuda_linear_see(cudaStream_t stream, const void *y, bool is_f32, int n,
                                       int m, int ld, struct cuda_linear_seen *seen)
{
    const size_t n_elements = (size_t)n * (size_t)m;
    size_t n_blocks = (n_elements + SEE_THREADS - 1) / SEE_THREADS;
    if (n_blocks > SEE_MAX_BLOCKS)
        n_blocks = SEE_MAX_BLOCKS;
    return CUDA_LAUNCH((see_kernel), dim3((unsigned)n_blocks), dim3(SEE_THREADS), 0, stream, y,
                       is_f32, n_elements, m, ld, seen);
}
