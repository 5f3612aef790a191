/* RMSNorm and the residual sum that goes before it, a row a block, the row in registers.
 *
 * Order of a row's sum of squares, which depends on d alone: thread t of T adds elements
 * 4 (c T + t) .. + 3 for c = 0, 1, ...; lanes by the butterfly; warps ascending. */
#include "kernels/cuda_rows.h"

#include "kernels/cuda_rows.cuh"

enum { NORM_MAX_THREADS = 512 };

/* The c-th four elements of this thread; those past the end of the row are zero. */
static __device__ int norm_first(int c)
{
    return 4 * (c * (int)blockDim.x + (int)threadIdx.x);
}

static __device__ void norm_read(float v[4], const float *row, int j, int d, bool is_wide)
{
    if (is_wide && j < d) {
        rows_read<4>(v, row + j);
        return;
    }
#pragma unroll
    for (int w = 0; w < 4; w++)
        v[w] = j + w < d ? row[j + w] : 0.0f;
}

static __device__ void norm_write(float *row, const float v[4], int j, int d, bool is_wide)
{
    if (is_wide && j < d) {
        rows_write<4>(row + j, v);
        return;
    }
#pragma unroll
    for (int w = 0; w < 4; w++)
        if (j + w < d)
            row[j + w] = v[w];
}

static __device__ void norm_write_half(uint16_t *row, const float v[4], int j, int d, bool is_wide)
{
    if (is_wide && j < d) {
        rows_write_half<4>(row + j, v);
        return;
    }
#pragma unroll
    for (int w = 0; w < 4; w++)
        if (j + w < d)
            row[j + w] = cuda_float_to_bf16(v[w]);
}

/* 1 / sqrt(mean_j(x[j]^2) + eps) of the block's row */
template <int COUNT>
static __device__ float norm_scale(const float x[COUNT][4], int d, float eps, float *partial)
{
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < COUNT; c++)
#pragma unroll
        for (int w = 0; w < 4; w++)
            sum += x[c][w] * x[c][w];
    const float mean = rows_block_sum(sum, partial) / (float)d;
    return 1.0f / sqrtf(mean + eps);
}

/* y[i][j] = x[i][j] * scale * gain[j], in fp32 or bf16 */
template <int COUNT>
static __device__ void norm_out(void *y, bool is_f32, const float x[COUNT][4],
                                const float gain[COUNT][4], float scale, int d, bool is_wide)
{
    const size_t row = (size_t)blockIdx.x * (size_t)d;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        const int j = norm_first(c);
        float v[4];
#pragma unroll
        for (int w = 0; w < 4; w++)
            v[w] = x[c][w] * scale * gain[c][w];
        if (is_f32)
            norm_write((float *)y + row, v, j, d, is_wide);
        else
            norm_write_half((uint16_t *)y + row, v, j, d, is_wide);
    }
}

/* y may be x: a thread reads and writes the same elements. */
template <int COUNT>
static __global__ void __launch_bounds__(NORM_MAX_THREADS)
    norm_kernel(void *y, bool is_f32, const float *x, const float *gain, int d, float eps,
                bool is_wide)
{
    CUDA_SHARED(shared);
    const float *row = x + (size_t)blockIdx.x * (size_t)d;
    float v[COUNT][4], g[COUNT][4];
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        norm_read(v[c], row, norm_first(c), d, is_wide);
        norm_read(g[c], gain, norm_first(c), d, is_wide);
    }
    const float scale = norm_scale<COUNT>(v, d, eps, (float *)shared);
    norm_out<COUNT>(y, is_f32, v, g, scale, d, is_wide);
}

/* h[i][j] += gain_branch ? branch[i][j] * scale(branch[i]) * gain_branch[j] : branch[i][j];
 * y[i][j] = h[i][j] * scale(h[i]) * gain_next[j]. All of a row's loads are issued before the first
 * sum, where registers allow it: a batch of one row waits for memory once. */
template <int COUNT>
static __global__ void __launch_bounds__(NORM_MAX_THREADS)
    residual_kernel(float *h, const float *branch, const float *gain_branch, void *y, bool is_f32,
                    const float *gain_next, int d, float eps, bool is_wide)
{
    CUDA_SHARED(shared);
    float *partial = (float *)shared;
    float *h_row = h + (size_t)blockIdx.x * (size_t)d;
    const float *b_row = branch + (size_t)blockIdx.x * (size_t)d;
    const bool is_early = COUNT <= 2;
    float a[COUNT][4], b[COUNT][4], gain[COUNT][4], next[COUNT][4];
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        const int j = norm_first(c);
        norm_read(b[c], b_row, j, d, is_wide);
        norm_read(a[c], h_row, j, d, is_wide);
        if (is_early && gain_branch != NULL)
            norm_read(gain[c], gain_branch, j, d, is_wide);
        if (is_early && y != NULL)
            norm_read(next[c], gain_next, j, d, is_wide);
    }
    const float scale = gain_branch != NULL ? norm_scale<COUNT>(b, d, eps, partial) : 1.0f;
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
        const int j = norm_first(c);
        if (!is_early && gain_branch != NULL)
            norm_read(gain[c], gain_branch, j, d, is_wide);
#pragma unroll
        for (int w = 0; w < 4; w++)
            a[c][w] += gain_branch != NULL ? b[c][w] * scale * gain[c][w] : b[c][w];
        norm_write(h_row, a[c], j, d, is_wide);
    }
    if (y == NULL)
        return;
    const float scale_next = norm_scale<COUNT>(a, d, eps, partial + NORM_MAX_THREADS / 32);
#pragma unroll
    for (int c = 0; c < COUNT; c++)
        if (!is_early)
            norm_read(next[c], gain_next, norm_first(c), d, is_wide);
    norm_out<COUNT>(y, is_f32, a, next, scale_next, d, is_wide);
}

/* ---- launchers ----------------------------------------------------------------------------------
 */

/* How a row of d elements is cut; from d alone. */
struct norm_shape {
    unsigned n_threads;
    int count; /* fours a thread */
};

static struct norm_shape norm_shape_of(int d)
{
    struct norm_shape shape;
    const int fours = (d + 3) / 4;
    const int threads = (fours + 31) / 32 * 32;
    shape.n_threads = (unsigned)(threads > NORM_MAX_THREADS ? NORM_MAX_THREADS : threads);
    shape.count = 1;
    while (shape.count * (int)shape.n_threads < fours)
        shape.count *= 2;
    return shape;
}

static const size_t norm_shared_bytes = 2 * NORM_MAX_THREADS / 32 * sizeof(float);

template <int COUNT>
static cudaError_t launch_norm(cudaStream_t stream, void *y, bool is_f32, const float *x,
                               const float *gain, int n, int d, float eps, unsigned n_threads)
{
    const bool is_wide = rows_are_wide(x, y, d) && rows_are_wide(gain, NULL, d);
    return CUDA_LAUNCH((norm_kernel<COUNT>), dim3(n), dim3(n_threads), norm_shared_bytes, stream, y,
                       is_f32, x, gain, d, eps, is_wide);
}

extern "C" cudaError_t cuda_rows_norm(cudaStream_t stream, void *y, bool is_f32, const float *x,
                                      const float *gain, int n, int d, float eps)
{
    const struct norm_shape shape = norm_shape_of(d);
    switch (shape.count) {
    case 1:
        return launch_norm<1>(stream, y, is_f32, x, gain, n, d, eps, shape.n_threads);
    case 2:
        return launch_norm<2>(stream, y, is_f32, x, gain, n, d, eps, shape.n_threads);
    case 4:
        return launch_norm<4>(stream, y, is_f32, x, gain, n, d, eps, shape.n_threads);
    case 8:
        return launch_norm<8>(stream, y, is_f32, x, gain, n, d, eps, shape.n_threads);
    default:
        return cudaErrorInvalidValue;
    }
}

template <int COUNT>
static cudaError_t launch_residual(cudaStream_t stream, float *h, const float *branch,
                                   const float *gain_branch, void *y, bool is_f32,
                                   const float *gain_next, int n, int d, float eps,
                                   unsigned n_threads)
{
    const bool is_wide = rows_are_wide(h, branch, d) && rows_are_wide(gain_branch, gain_next, d) &&
                         rows_are_wide(y, NULL, d);
    return CUDA_LAUNCH((residual_kernel<COUNT>), dim3(n), dim3(n_threads), norm_shared_bytes,
                       stream, h, branch, gain_branch, y, is_f32, gain_next, d, eps, is_wide);
}

extern "C" cudaError_t cuda_rows_residual(cudaStream_t stream, float *h, const float *branch,
                                          const float *gain_branch, void *y, bool is_f32,
                                          const float *gain_next, int n, int d, float eps)
{
    const struct norm_shape shape = norm_shape_of(d);
    switch (shape.count) {
    case 1:
        return launch_residual<1>(stream, h, branch, gain_branch, y, is_f32, gain_next, n, d, eps,
                                  shape.n_threads);
    case 2:
        return launch_residual<2>(stream, h, branch, gain_branch, y, is_f32, gain_next, n, d, eps,
                                  shape.n_threads);
    case 4:
        return launch_residual<4>(stream, h, branch, gain_branch, y, is_f32, gain_next, n, d, eps,
                                  shape.n_threads);
    case 8:
        return launch_residual<8>(stream, h, branch, gain_branch, y, is_f32, gain_next, n, d, eps,
                                  shape.n_threads);
    default:
        return cudaErrorInvalidValue;
    }
}
