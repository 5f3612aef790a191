/* Kernels that try the emulator: each does one thing, some of them wrong on purpose. */
#include "kernels/cuda_device.cuh"
#include "tests/emulator/emulator_kernels.h"

static __global__ void indices(uint32_t *out)
{
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    uint32_t *mine = out + 6 * (block * (blockDim.x * blockDim.y * blockDim.z) + thread);
    mine[0] = threadIdx.x;
    mine[1] = threadIdx.y;
    mine[2] = threadIdx.z;
    mine[3] = blockIdx.x;
    mine[4] = blockIdx.y;
    mine[5] = blockIdx.z;
}
extern "C" cudaError_t emulator_try_indices(uint32_t *out, dim3 grid, dim3 block,
                                            cudaStream_t stream)
{
    return CUDA_LAUNCH(indices, grid, block, 0, stream, out);
}

static __global__ void reverse(int32_t *out, int n, bool has_barrier)
{
    CUDA_SHARED(shared);
    int32_t *values = (int32_t *)shared;
    int t = (int)threadIdx.x;
    values[t] = t;
    if (has_barrier)
        __syncthreads();
    out[(int)blockIdx.x * n + t] = values[n - 1 - t];
}
extern "C" cudaError_t emulator_try_reverse(int32_t *out, int n_blocks, int n, bool has_barrier,
                                            cudaStream_t stream)
{
    return CUDA_LAUNCH(reverse, dim3((unsigned)n_blocks), dim3((unsigned)n),
                       sizeof(int32_t) * (size_t)n, stream, out, n, has_barrier);
}

static __global__ void divergence(int how)
{
    if (threadIdx.x == 0 && how == EMULATOR_ENDS)
        return;
    if (threadIdx.x == 0 && how == EMULATOR_ELSEWHERE) {
        __syncthreads();
        return;
    }
    if (how == EMULATOR_LANE_MISSING && threadIdx.x != 0)
        cuda_ballot(true);
    __syncthreads();
}
extern "C" cudaError_t emulator_try_divergence(enum emulator_divergence how, cudaStream_t stream)
{
    return CUDA_LAUNCH(divergence, dim3(2), dim3(64), 0, stream, how);
}

static __global__ void warp(float *out, uint32_t *ballot, const float *in)
{
    int lane = (int)threadIdx.x;
    float v = in[lane];
    out[lane] = cuda_shfl_xor(v, 5);
    out[32 + lane] = cuda_shfl(v, 7);
    out[64 + lane] = cuda_warp_sum(v);
    out[96 + lane] = cuda_warp_max(v);
    out[128 + lane] = cuda_shfl_up(v, 3);
    out[160 + lane] = cuda_shfl_down(v, 3);
    uint32_t bits = cuda_ballot(v > 0.0f);
    if (lane == 31)
        *ballot = bits;
}
extern "C" cudaError_t emulator_try_warp(float *out, uint32_t *ballot, const float *in,
                                         cudaStream_t stream)
{
    return CUDA_LAUNCH(warp, dim3(1), dim3(32), 0, stream, out, ballot, in);
}

/* Rows of 24 halves: 48 bytes, a multiple of 16 that is no multiple of 32. */
enum { PITCH = 24 };

/* a: matrices 0 .. 3 are rows 0 and 8, then the same at column 8, as registers 0 .. 3 of A want.
 * b by column: rows of shared memory are columns of B; the registers of B are k 0 .. 7, 8 .. 15. */
static __global__ void mma(float *d, const uint16_t *a, const uint16_t *b, bool is_b_by_column)
{
    CUDA_SHARED(shared);
    uint16_t *a_rows = (uint16_t *)shared, *b_rows = a_rows + 16 * PITCH;
    int lane = (int)threadIdx.x, n_b = is_b_by_column ? 8 : 16, b_columns = is_b_by_column ? 16 : 8;
    for (int i = lane; i < 16 * 16; i += 32)
        a_rows[i / 16 * PITCH + i % 16] = a[i];
    for (int i = lane; i < n_b * b_columns; i += 32)
        b_rows[i / b_columns * PITCH + i % b_columns] = b[i];
    __syncthreads();

    uint32_t fa[4], fb[4];
    cuda_ldmatrix_x4(fa, a_rows + (lane % 16) * PITCH + lane / 16 * 8);
    if (is_b_by_column)
        cuda_ldmatrix_x4(fb, b_rows + (lane % 8) * PITCH + lane / 8 % 2 * 8);
    else
        cuda_ldmatrix_x4_trans(fb, b_rows + (lane % 16) * PITCH);
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    cuda_mma_bf16(sums, fa, fb);
    int g = lane / 4, t = lane % 4;
    d[g * 8 + 2 * t] = sums[0];
    d[g * 8 + 2 * t + 1] = sums[1];
    d[(g + 8) * 8 + 2 * t] = sums[2];
    d[(g + 8) * 8 + 2 * t + 1] = sums[3];
}
extern "C" cudaError_t emulator_try_mma(float *d, const uint16_t *a, const uint16_t *b,
                                        bool is_b_by_column, cudaStream_t stream)
{
    return CUDA_LAUNCH(mma, dim3(1), dim3(32), 32 * PITCH * sizeof(uint16_t), stream, d, a, b,
                       is_b_by_column);
}

static __global__ void copy(uint32_t *out, const uint32_t *in, int n, bool has_wait)
{
    CUDA_SHARED(shared);
    uint32_t *words = (uint32_t *)shared;
    int t = (int)threadIdx.x;
    cuda_copy_async16(words + 4 * t, in + 4 * t, 4 * t < n);
    cuda_copy_commit();
    cuda_copy_async16(words + 128 + 4 * t, in + 128 + 4 * t, 128 + 4 * t < n);
    cuda_copy_commit();
    if (has_wait)
        cuda_copy_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; i++)
        out[t + 32 * i] = words[t + 32 * i];
    __syncthreads();
    cuda_copy_wait<0>();
    __syncthreads();
    for (int i = 4; i < 8; i++)
        out[t + 32 * i] = words[t + 32 * i];
}
extern "C" cudaError_t emulator_try_copy(uint32_t *out, const uint32_t *in, int n, bool has_wait,
                                         cudaStream_t stream)
{
    return CUDA_LAUNCH(copy, dim3(1), dim3(32), 1024, stream, out, in, n, has_wait);
}

static __global__ void atomics(int32_t *i, uint32_t *u, uint64_t *l, float *f)
{
    CUDA_SHARED(shared);
    int32_t *sum = (int32_t *)shared;
    uint64_t *wide = (uint64_t *)shared + 1;
    if (threadIdx.x == 0) {
        *sum = 0;
        *wide = 0;
    }
    __syncthreads();
    cuda_atomic_add(sum, (int32_t)threadIdx.x);
    cuda_shared_add(wide, ((uint64_t)threadIdx.x << 32) + 0xc0000001u); /* most of them carry */
    cuda_atomic_add(u, (uint32_t)1);
    cuda_atomic_add(l, (uint64_t)1 << 33);
    cuda_atomic_add(f, 0.5f);
    __syncthreads();
    if (threadIdx.x == 0) {
        cuda_atomic_max(i, *sum);
        cuda_atomic_add(l, *wide);
    }
}
extern "C" cudaError_t emulator_try_atomics(int32_t *i, uint32_t *u, uint64_t *l, float *f,
                                            int n_blocks, cudaStream_t stream)
{
    return CUDA_LAUNCH(atomics, dim3((unsigned)n_blocks), dim3(64), 16, stream, i, u, l, f);
}

template <int STEP> static __global__ void add(int32_t *out, int n, int32_t value)
{
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += STEP)
        out[i] += value;
}
extern "C" cudaError_t emulator_try_add(int32_t *out, int n, int32_t value, cudaStream_t stream)
{
    return CUDA_LAUNCH((add<2 * 32>), dim3(2), dim3(32), 0, stream, out, n, value);
}

static __global__ void shared_words(uint32_t *out, int n)
{
    CUDA_SHARED(shared);
    uint32_t *words = (uint32_t *)shared;
    out[0] = words[0];
    for (int i = 0; i < n; i++)
        words[i] = (uint32_t)i;
    out[1] = words[n - 1];
}
extern "C" cudaError_t emulator_try_shared(uint32_t *out, int n, size_t shared_bytes,
                                           bool is_allowed, cudaStream_t stream)
{
    if (is_allowed) {
        cudaError_t code = cuda_allow_shared(shared_words, shared_bytes);
        if (code != cudaSuccess)
            return code;
    }
    return CUDA_LAUNCH(shared_words, dim3(1), dim3(1), shared_bytes, stream, out, n);
}

static __global__ void load(uint32_t *out, const unsigned char *base, int offset)
{
    uint4 v = cuda_load_stream((const uint4 *)(base + offset));
    out[0] = v.x;
    out[1] = v.w;
}
extern "C" cudaError_t emulator_try_load(uint32_t *out, const unsigned char *base, int offset,
                                         cudaStream_t stream)
{
    return CUDA_LAUNCH(load, dim3(1), dim3(1), 0, stream, out, base, offset);
}

static __global__ void bf16(uint16_t *out, float *back, const float *in, int n)
{
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        out[i] = cuda_float_to_bf16(in[i]);
        float lo, hi;
        cuda_bf16x2_unpack(cuda_bf16x2_pack(in[i], -1.0f), &lo, &hi);
        back[i] = hi == -1.0f && (lo != lo || lo == cuda_bf16_to_float(out[i])) ? lo : 0.0f;
    }
}
extern "C" cudaError_t emulator_try_bf16(uint16_t *out, float *back, const float *in, int n,
                                         cudaStream_t stream)
{
    return CUDA_LAUNCH(bf16, dim3(1), dim3(64), 0, stream, out, back, in, n);
}
