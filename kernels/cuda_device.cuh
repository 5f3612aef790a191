/* What kernels are written with: launches, shared memory, warps, bf16, tensor cores, async copies.
 *
 * For nvcc, and for the stand-in that runs kernels on the CPU in tests (CAROUSEL_CUDA_EMULATED,
 * tests/emulator/). Kernels use these names and no inline PTX, no <<<>>> and no __shared__ of their
 * own, so that every one of them runs in both.
 *
 * Everything about a warp is for full warps: all 32 lanes call it, together. */
#ifndef KERNELS_CUDA_DEVICE_CUH
#define KERNELS_CUDA_DEVICE_CUH

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef CAROUSEL_CUDA_EMULATED
#include <cuda_emulated.h>
#else

#include <cuda_runtime.h>
#include <math.h>

/* ---- launches ------------------------------------------------------------------------------- */

template <typename T> struct cuda_same {
    typedef T type;
};

/* Arguments are converted to the kernel's parameter types, as in a call. */
template <typename... P>
static inline cudaError_t cuda_launch(void (*kernel)(P...), dim3 grid, dim3 block,
                                      size_t shared_bytes, cudaStream_t stream,
                                      typename cuda_same<P>::type... args)
{
    void *pointers[] = {(void *)&args..., nullptr};
    cudaError_t code =
        cudaLaunchKernel((const void *)kernel, grid, block, pointers, shared_bytes, stream);
    cudaError_t last = cudaGetLastError(); /* and clears it: it has been told */
    return code != cudaSuccess ? code : last;
}

/* -> cudaError_t. A kernel whose name has a comma goes in parentheses: (attend<64, 4>). */
#define CUDA_LAUNCH(kernel, ...) cuda_launch(kernel, __VA_ARGS__)

/* Dynamic shared memory above 48 KB needs this once per kernel and device, before its launch. */
template <typename... P>
static inline cudaError_t cuda_allow_shared(void (*kernel)(P...), size_t shared_bytes)
{
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)shared_bytes);
}

/* ---- shared memory -------------------------------------------------------------------------- */

extern __shared__ __align__(16) unsigned char cuda_shared_memory[];
/* Declares `unsigned char *name`: the block's dynamic shared memory, 16-byte aligned. */
#define CUDA_SHARED(name)        unsigned char *name = cuda_shared_memory

/* ---- warps ---------------------------------------------------------------------------------- */

template <typename T> static __device__ __forceinline__ T cuda_shfl_xor(T v, int mask)
{
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <typename T> static __device__ __forceinline__ T cuda_shfl(T v, int lane)
{
    return __shfl_sync(0xffffffffu, v, lane);
}
/* v of the lane n below; its own where there is none. */
template <typename T> static __device__ __forceinline__ T cuda_shfl_up(T v, int n)
{
    return __shfl_up_sync(0xffffffffu, v, n);
}
template <typename T> static __device__ __forceinline__ T cuda_shfl_down(T v, int n)
{
    return __shfl_down_sync(0xffffffffu, v, n);
}
static __device__ __forceinline__ uint32_t cuda_ballot(bool is_set)
{
    return __ballot_sync(0xffffffffu, is_set);
}
/* Every lane gets the same sum, added as a butterfly: lane ^ 16, then 8, 4, 2, 1. */
template <typename T> static __device__ __forceinline__ T cuda_warp_sum(T v)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1)
        v += cuda_shfl_xor(v, mask);
    return v;
}
template <typename T> static __device__ __forceinline__ T cuda_warp_max(T v)
{
#pragma unroll
    for (int mask = 16; mask > 0; mask >>= 1)
        v = max(v, cuda_shfl_xor(v, mask));
    return v;
}

/* ---- bf16 as uint16_t ----------------------------------------------------------------------- */

static __device__ __forceinline__ float cuda_bf16_to_float(uint16_t b)
{
    return __uint_as_float((uint32_t)b << 16);
}
/* Round to nearest even; a NaN becomes 0x7fff. */
static __device__ __forceinline__ uint16_t cuda_float_to_bf16(float f)
{
    uint16_t b;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(b) : "f"(f));
    return b;
}
/* lo is the half at the lower address. */
static __device__ __forceinline__ void cuda_bf16x2_unpack(uint32_t pair, float *lo, float *hi)
{
    *lo = __uint_as_float(pair << 16);
    *hi = __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ uint32_t cuda_bf16x2_pack(float lo, float hi)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(hi), "f"(lo));
    return pair;
}

/* ---- 16 bytes at a time --------------------------------------------------------------------- */

/* For what is read once, by nobody else, and written by no one while the kernel runs. */
static __device__ __forceinline__ uint4 cuda_load_stream(const uint4 *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

static __device__ __forceinline__ uint32_t cuda_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}
/* 16 bytes from global to shared memory, both 16-byte aligned, behind the thread's back: they are
 * there after commit, wait and (for other threads) a barrier. Zeros when !is_there; the source is
 * not read then. */
static __device__ __forceinline__ void cuda_copy_async16(void *shared_dst, const void *global_src,
                                                         bool is_there)
{
    asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(cuda_shared_address(shared_dst)),
        "l"(global_src), "r"(is_there ? 16 : 0)
        : "memory");
}
/* The copies since the last commit become a group. */
static __device__ __forceinline__ void cuda_copy_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Waits until all of this thread's groups but the newest N are there. */
template <int N> static __device__ __forceinline__ void cuda_copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- tensor cores --------------------------------------------------------------------------- */

/* Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address of row l % 8
 * of matrix l / 8: 16 bytes, 16-byte aligned. r[m] gets of matrix m the elements
 * [l / 4][2 (l % 4)] (low half) and [l / 4][2 (l % 4) + 1]. */
static __device__ __forceinline__ void cuda_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cuda_shared_address(row))
                 : "memory");
}
/* The same with each matrix transposed: [2 (l % 4)][l / 4] and [2 (l % 4) + 1][l / 4]. */
static __device__ __forceinline__ void cuda_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(cuda_shared_address(row))
                 : "memory");
}
/* d[16 x 8] += a[16 x 16] b[16 x 8], bf16 with fp32 sums. With g = lane / 4, t = lane % 4, and the
 * lower column or row of a pair in the low half (PTX ISA, mma.m16n8k16):
 *   a[0] = A[g][2t, 2t+1]      a[1] = A[g+8][2t, 2t+1]
 *   a[2] = A[g][2t+8, 2t+9]    a[3] = A[g+8][2t+8, 2t+9]
 *   b[0] = B[2t, 2t+1][g]      b[1] = B[2t+8, 2t+9][g]
 *   d[0, 1] = D[g][2t, 2t+1]   d[2, 3] = D[g+8][2t, 2t+1] */
static __device__ __forceinline__ void cuda_mma_bf16(float d[4], const uint32_t a[4],
                                                     const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- atomics: shared or global memory; what was there before -------------------------------- */

static __device__ __forceinline__ int32_t cuda_atomic_add(int32_t *p, int32_t v)
{
    return atomicAdd(p, v);
}
static __device__ __forceinline__ uint32_t cuda_atomic_add(uint32_t *p, uint32_t v)
{
    return atomicAdd(p, v);
}
static __device__ __forceinline__ uint64_t cuda_atomic_add(uint64_t *p, uint64_t v)
{
    return atomicAdd((unsigned long long *)p, (unsigned long long)v);
}
/* In any order of additions: only where the last bits do not matter. */
static __device__ __forceinline__ float cuda_atomic_add(float *p, float v)
{
    return atomicAdd(p, v);
}
static __device__ __forceinline__ int32_t cuda_atomic_max(int32_t *p, int32_t v)
{
    return atomicMax(p, v);
}
static __device__ __forceinline__ uint32_t cuda_atomic_max(uint32_t *p, uint32_t v)
{
    return atomicMax(p, v);
}
static __device__ __forceinline__ uint64_t cuda_atomic_max(uint64_t *p, uint64_t v)
{
    return atomicMax((unsigned long long *)p, (unsigned long long)v);
}

/* ---- arithmetic ----------------------------------------------------------------------------- */

/* e^x within 1 ulp. */
static __device__ __forceinline__ float cuda_exp(float x)
{
    return expf(x);
}
/* 2^x within 2 ulp, one instruction; results below 2^-126 are 0, 2^-inf is 0. */
static __device__ __forceinline__ float cuda_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
/* 1 / sqrt(x) within 2 ulp. */
static __device__ __forceinline__ float cuda_rsqrt(float x)
{
    return rsqrtf(x);
}
/* Products and sums that the compiler must not fuse into one rounding. */
static __device__ __forceinline__ float cuda_mul_rn(float a, float b)
{
    return __fmul_rn(a, b);
}
static __device__ __forceinline__ float cuda_add_rn(float a, float b)
{
    return __fadd_rn(a, b);
}
static __device__ __forceinline__ double cuda_mul_rn(double a, double b)
{
    return __dmul_rn(a, b);
}
static __device__ __forceinline__ double cuda_add_rn(double a, double b)
{
    return __dadd_rn(a, b);
}

#endif

/* *p += v in shared memory, to be read behind a barrier. It adds 32 bits in one instruction, but 64
 * in a loop of compare-and-swap, which lasts as long as other threads are at the same place: so in
 * halves, with the carry that the lower one's addition shows. */
static __device__ __forceinline__ void cuda_shared_add(uint64_t *p, uint64_t v)
{
    uint32_t *halves = (uint32_t *)p;
    const uint32_t low = (uint32_t)v;
    uint32_t high = (uint32_t)(v >> 32);
    if (cuda_atomic_add(&halves[0], low) > UINT32_MAX - low)
        high++;
    if (high > 0)
        cuda_atomic_add(&halves[1], high);
}

#endif
