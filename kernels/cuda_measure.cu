/* The kernels that measure a device: reading, copying, fused multiply-adds, random numbers. */
#include "kernels/cuda_measure.h"

#include "kernels/cuda_device.cuh"

enum {
    MEASURE_THREADS = 512,
    MEASURE_BLOCKS_EACH = 4, /* of a multiprocessor: all its threads */
    MEASURE_AT_ONCE = 8,     /* loads in flight of a thread */
    MEASURE_CHAINS = 8,      /* enough that no multiply-add waits for the one before it */
};

static dim3 measure_grid(int n_multiprocessors)
{
    return dim3((unsigned)(n_multiprocessors * MEASURE_BLOCKS_EACH), 1, 1);
}

static __device__ size_t measure_thread(void)
{
    return (size_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ size_t measure_threads(void)
{
    return (size_t)gridDim.x * blockDim.x;
}

static __global__ void measure_nothing(void)
{
}

/* sum = xor of all words of data[n] */
static __global__ void measure_read(const uint4 *data, size_t n, float *sink)
{
    const size_t stride = measure_threads();
    uint32_t sum = 0;
    size_t i = measure_thread();
    for (; n > (MEASURE_AT_ONCE - 1) * stride && i < n - (MEASURE_AT_ONCE - 1) * stride;
         i += MEASURE_AT_ONCE * stride) {
        uint4 v[MEASURE_AT_ONCE];
#pragma unroll
        for (int j = 0; j < MEASURE_AT_ONCE; j++)
            v[j] = cuda_load_stream(data + i + (size_t)j * stride);
#pragma unroll
        for (int j = 0; j < MEASURE_AT_ONCE; j++)
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += stride) {
        uint4 v = cuda_load_stream(data + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u)
        sink[0] = 1.0f;
}

/* to[i] = from[i] */
static __global__ void measure_copy(uint4 *to, const uint4 *from, size_t n)
{
    const size_t stride = measure_threads();
    size_t i = measure_thread();
    for (; n > (MEASURE_AT_ONCE - 1) * stride && i < n - (MEASURE_AT_ONCE - 1) * stride;
         i += MEASURE_AT_ONCE * stride) {
        uint4 v[MEASURE_AT_ONCE];
#pragma unroll
        for (int j = 0; j < MEASURE_AT_ONCE; j++)
            v[j] = cuda_load_stream(from + i + (size_t)j * stride);
#pragma unroll
        for (int j = 0; j < MEASURE_AT_ONCE; j++)
            to[i + (size_t)j * stride] = v[j];
    }
    for (; i < n; i += stride)
        to[i] = cuda_load_stream(from + i);
}

/* out[i] = a 32-bit mix of (seed, i), scaled to (-1, 1) */
static __global__ void measure_random(uint16_t *out, size_t n, uint32_t seed)
{
    for (size_t i = measure_thread(); i < n; i += measure_threads()) {
        uint32_t v = (uint32_t)i * 2654435761u ^ (uint32_t)(i >> 32) ^ seed;
        v = (v ^ (v >> 16)) * 0x85ebca6bu;
        v = (v ^ (v >> 13)) * 0xc2b2ae35u;
        v ^= v >> 16;
        out[i] = cuda_float_to_bf16((float)(int32_t)v * (1.0f / 2147483648.0f));
    }
}

/* c[j] = c[j] * a + b, n_steps times */
static __global__ void measure_fma(int n_steps, float a, float b, float *sink)
{
    float c[MEASURE_CHAINS];
#pragma unroll
    for (int j = 0; j < MEASURE_CHAINS; j++)
        c[j] = (float)(threadIdx.x + (unsigned)j);
    for (int i = 0; i < n_steps; i++) {
#pragma unroll
        for (int j = 0; j < MEASURE_CHAINS; j++)
            c[j] = fmaf(c[j], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < MEASURE_CHAINS; j++)
        sum += c[j];
    if (sum == -1.0f)
        sink[0] = sum;
}

extern "C" cudaError_t cuda_measure_nothing(cudaStream_t stream)
{
    return CUDA_LAUNCH(measure_nothing, dim3(1, 1, 1), dim3(32, 1, 1), 0, stream);
}

extern "C" cudaError_t cuda_measure_read(const void *data, size_t len_bytes, float *sink,
                                         int n_multiprocessors, cudaStream_t stream)
{
    return CUDA_LAUNCH(measure_read, measure_grid(n_multiprocessors), dim3(MEASURE_THREADS, 1, 1),
                       0, stream, (const uint4 *)data, len_bytes / sizeof(uint4), sink);
}

extern "C" cudaError_t cuda_measure_copy(void *to, const void *from, size_t len_bytes,
                                         int n_multiprocessors, cudaStream_t stream)
{
    return CUDA_LAUNCH(measure_copy, measure_grid(n_multiprocessors), dim3(MEASURE_THREADS, 1, 1),
                       0, stream, (uint4 *)to, (const uint4 *)from, len_bytes / sizeof(uint4));
}

extern "C" cudaError_t cuda_measure_random(uint16_t *out, size_t n, uint32_t seed,
                                           int n_multiprocessors, cudaStream_t stream)
{
    return CUDA_LAUNCH(measure_random, measure_grid(n_multiprocessors), dim3(MEASURE_THREADS, 1, 1),
                       0, stream, out, n, seed);
}

extern "C" cudaError_t cuda_measure_fma(int n_steps, float *sink, int n_multiprocessors,
                                        cudaStream_t stream, double *n_flops)
{
    const dim3 grid = measure_grid(n_multiprocessors);
    *n_flops = 2.0 * MEASURE_CHAINS * n_steps * MEASURE_THREADS * (double)grid.x;
    return CUDA_LAUNCH(measure_fma, grid, dim3(MEASURE_THREADS, 1, 1), 0, stream, n_steps, 0.5f,
                       0.25f, sink);
}
