/* What the row-wise kernels share: reading and writing WIDTH neighbours at once, sums over a block.
 */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include "kernels/cuda_device.cuh"

#include <stdint.h>

/* WIDTH is 1, 4 or 8; above 1 addresses are multiples of 4 * WIDTH bytes (half: 2 * WIDTH), at most
 * 16. */
template <int WIDTH> static inline __device__ void rows_zero(float *v)
{
    for (int w = 0; w < WIDTH; w++)
        v[w] = 0.0f;
}

template <int WIDTH> static inline __device__ void rows_read(float *v, const float *from)
{
    if constexpr (WIDTH == 1) {
        v[0] = from[0];
    } else {
#pragma unroll
        for (int w = 0; w < WIDTH; w += 4) {
            const float4 four = *(const float4 *)(from + w);
            v[w] = four.x;
            v[w + 1] = four.y;
            v[w + 2] = four.z;
            v[w + 3] = four.w;
        }
    }
}

template <int WIDTH> static inline __device__ void rows_write(float *to, const float *v)
{
    if constexpr (WIDTH == 1) {
        to[0] = v[0];
    } else {
#pragma unroll
        for (int w = 0; w < WIDTH; w += 4)
            *(float4 *)(to + w) = make_float4(v[w], v[w + 1], v[w + 2], v[w + 3]);
    }
}

template <int WIDTH> static inline __device__ void rows_read_half(float *v, const uint16_t *from)
{
    if constexpr (WIDTH == 1) {
        v[0] = cuda_bf16_to_float(from[0]);
    } else if constexpr (WIDTH == 4) {
        const uint2 two = *(const uint2 *)from;
        cuda_bf16x2_unpack(two.x, &v[0], &v[1]);
        cuda_bf16x2_unpack(two.y, &v[2], &v[3]);
    } else {
        const uint4 four = *(const uint4 *)from;
        cuda_bf16x2_unpack(four.x, &v[0], &v[1]);
        cuda_bf16x2_unpack(four.y, &v[2], &v[3]);
        cuda_bf16x2_unpack(four.z, &v[4], &v[5]);
        cuda_bf16x2_unpack(four.w, &v[6], &v[7]);
    }
}

template <int WIDTH> static inline __device__ void rows_write_half(uint16_t *to, const float *v)
{
    if constexpr (WIDTH == 1)
        to[0] = cuda_float_to_bf16(v[0]);
    else if constexpr (WIDTH == 4)
        *(uint2 *)to = make_uint2(cuda_bf16x2_pack(v[0], v[1]), cuda_bf16x2_pack(v[2], v[3]));
    else
        *(uint4 *)to = make_uint4(cuda_bf16x2_pack(v[0], v[1]), cuda_bf16x2_pack(v[2], v[3]),
                                  cuda_bf16x2_pack(v[4], v[5]), cuda_bf16x2_pack(v[6], v[7]));
}

/* Whether rows of d elements at a and b (either may be NULL) can move 8 elements at a time. */
static inline __host__ __device__ bool rows_are_wide(const void *a, const void *b, int d)
{
    return d % 8 == 0 && ((uintptr_t)a | (uintptr_t)b) % 16 == 0;
}

/* Threads for a row of d elements, `width` at a time: whole warps, 256 at most. */
static inline unsigned rows_threads(int d, int width)
{
    const int n = (d / width + 31) / 32 * 32;
    return (unsigned)(n < 32 ? 32 : n > 256 ? 256 : n);
}

/* Sum over the block's threads, the same in all of them: lanes by the butterfly, then warps in
 * order. `partial` has room for a float a warp and is used once. */
static inline __device__ float rows_block_sum(float sum, float *partial)
{
    const int n_warps = (int)blockDim.x / 32;
    sum = cuda_warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    for (int w = 0; w < n_warps; w++)
        total += partial[w];
    return total;
}

#endif
