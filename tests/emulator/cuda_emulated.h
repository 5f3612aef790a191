/* Kernels' view of the emulator: CUDA C++'s words and the primitives of kernels/cuda_device.cuh for
 * g++. A thread of a block is a fiber; what waits in CUDA gives way to the other threads here. */
#ifndef EMULATOR_CUDA_EMULATED_H
#define EMULATOR_CUDA_EMULATED_H

#include <cuda_runtime_api.h>

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulator/emulator_seen.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __align__(n)    __attribute__((aligned(n)))
#define __launch_bounds__(...)

#define threadIdx       (emulator_now->thread)
#define blockIdx        (emulator_now->block)
#define blockDim        (emulator_now->block_dim)
#define gridDim         (emulator_now->grid_dim)
#define warpSize        32
#define __syncthreads() emulator_barrier(__FILE__, __LINE__)
#define __syncwarp()    emulator_exchange("__syncwarp", nullptr, 0, __FILE__, __LINE__)
static inline void __threadfence(void)
{
}
static inline void __threadfence_block(void)
{
}
static inline void __threadfence_system(void)
{
}
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* ---- vectors ----------------------------------------------------------------------------------
 */

struct __align__(8) uint2
{
    unsigned x, y;
};
struct __align__(16) uint4
{
    unsigned x, y, z, w;
};
struct __align__(8) int2
{
    int x, y;
};
struct __align__(16) int4
{
    int x, y, z, w;
};
struct __align__(8) float2
{
    float x, y;
};
struct __align__(16) float4
{
    float x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return uint2{x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return uint4{x, y, z, w};
}
static inline int2 make_int2(int x, int y)
{
    return int2{x, y};
}
static inline int4 make_int4(int x, int y, int z, int w)
{
    return int4{x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return float2{x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return float4{x, y, z, w};
}

/* ---- CUDA's own functions ---------------------------------------------------------------------
 */

#define EMULATOR_MIN_MAX(T)                                                                        \
    static inline T min(T a, T b)                                                                  \
    {                                                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline T max(T a, T b)                                                                  \
    {                                                                                              \
        return a < b ? b : a;                                                                      \
    }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
/* The number where one of the two is NaN. */
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}
static inline double min(double a, double b)
{
    return fmin(a, b);
}
static inline double max(double a, double b)
{
    return fmax(a, b);
}

template <typename To, typename From> static inline To emulator_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline uint32_t __float_as_uint(float f)
{
    return emulator_bits<uint32_t>(f);
}
static inline int __float_as_int(float f)
{
    return emulator_bits<int>(f);
}
static inline float __uint_as_float(uint32_t u)
{
    return emulator_bits<float>(u);
}
static inline float __int_as_float(int i)
{
    return emulator_bits<float>(i);
}
static inline long long __double_as_longlong(double d)
{
    return emulator_bits<long long>(d);
}
static inline double __longlong_as_double(long long l)
{
    return emulator_bits<double>(l);
}
static inline int __popc(uint32_t u)
{
    return __builtin_popcount(u);
}
static inline int __clz(int i)
{
    return i == 0 ? 32 : __builtin_clz((unsigned)i);
}
static inline int __ffs(int i)
{
    return __builtin_ffs(i);
}
static inline uint32_t __umulhi(uint32_t a, uint32_t b)
{
    return (uint32_t)(((uint64_t)a * b) >> 32);
}
template <typename T> static inline T __ldg(const T *p)
{
    return *p;
}

/* ---- launches and shared memory ---------------------------------------------------------------
 */

template <typename T> struct cuda_same {
    typedef T type;
};

/* A kernel's arguments, one after another, and the call that takes them apart again. */
template <typename... P> struct emulator_pack;
template <> struct emulator_pack<> {
    template <typename Kernel, typename... Before> void call(Kernel kernel, Before... before) const
    {
        kernel(before...);
    }
    int pointers(const void **) const
    {
        return 0;
    }
};
template <typename T> static inline int emulator_pointer(T, const void **)
{
    return 0;
}
template <typename T> static inline int emulator_pointer(T *p, const void **out)
{
    *out = (const void *)p;
    return 1;
}
template <typename First, typename... Rest> struct emulator_pack<First, Rest...> {
    First first;
    emulator_pack<Rest...> rest;
    template <typename Kernel, typename... Before> void call(Kernel kernel, Before... before) const
    {
        rest.call(kernel, before..., first);
    }
    int pointers(const void **out) const
    {
        int n = emulator_pointer(first, out);
        return n + rest.pointers(out + n);
    }
};
static inline emulator_pack<> emulator_pack_of(emulator_pack<> *)
{
    return emulator_pack<>{};
}
template <typename First, typename... Rest>
static inline emulator_pack<First, Rest...> emulator_pack_of(emulator_pack<First, Rest...> *,
                                                             First first, Rest... rest)
{
    return emulator_pack<First, Rest...>{
        first, emulator_pack_of((emulator_pack<Rest...> *)nullptr, rest...)};
}
template <typename... P> struct emulator_call {
    void (*kernel)(P...);
    emulator_pack<P...> pack;
    static void invoke(const void *arguments)
    {
        const emulator_call *call = (const emulator_call *)arguments;
        call->pack.call(call->kernel);
    }
};

template <typename... P>
static inline cudaError_t emulator_start(const char *name, void (*kernel)(P...), dim3 grid,
                                         dim3 block, size_t shared_bytes, cudaStream_t stream,
                                         typename cuda_same<P>::type... args)
{
    emulator_call<P...> call = {kernel, emulator_pack_of((emulator_pack<P...> *)nullptr, args...)};
    const void *pointers[sizeof...(P) + 1] = {};
    int n_pointers = call.pack.pointers(pointers);
    return emulator_launch((const void *)kernel, name, emulator_call<P...>::invoke, &call,
                           sizeof call, pointers, n_pointers, grid, block, shared_bytes, stream);
}
#define CUDA_LAUNCH(kernel, ...) emulator_start(#kernel, kernel, __VA_ARGS__)

template <typename... P>
static inline cudaError_t cuda_allow_shared(void (*kernel)(P...), size_t shared_bytes)
{
    return cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)shared_bytes);
}

#define CUDA_SHARED(name) unsigned char *name = emulator_now->shared

/* ---- warps ------------------------------------------------------------------------------------
 */

template <typename T> static inline T emulator_of_lane(const union emulator_slot *slots, int lane)
{
    T v;
    memcpy(&v, slots[lane & 31].bytes, sizeof v);
    return v;
}
template <typename T> static inline T cuda_shfl_xor(T v, int mask, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("shuffle", &v, sizeof v, file, line);
    return emulator_of_lane<T>(slots, emulator_now->lane ^ mask);
}
template <typename T> static inline T cuda_shfl(T v, int lane, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("shuffle", &v, sizeof v, file, line);
    return emulator_of_lane<T>(slots, lane);
}
template <typename T> static inline T cuda_shfl_up(T v, int n, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("shuffle", &v, sizeof v, file, line);
    int from = emulator_now->lane - n;
    return from < 0 ? v : emulator_of_lane<T>(slots, from);
}
template <typename T> static inline T cuda_shfl_down(T v, int n, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("shuffle", &v, sizeof v, file, line);
    int from = emulator_now->lane + n;
    return from > 31 ? v : emulator_of_lane<T>(slots, from);
}
static inline uint32_t cuda_ballot(bool is_set, EMULATOR_SITE)
{
    const union emulator_slot *slots =
        emulator_exchange("ballot", &is_set, sizeof is_set, file, line);
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++)
        bits |= (uint32_t)(emulator_of_lane<bool>(slots, i) ? 1 : 0) << i;
    return bits;
}
/* The butterfly's additions in its order: lane ^ 16, then 8, 4, 2, 1. */
template <typename T> static inline T cuda_warp_sum(T v, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("warp sum", &v, sizeof v, file, line);
    T sums[32];
    for (int i = 0; i < 32; i++)
        sums[i] = emulator_of_lane<T>(slots, i);
    for (int n = 16; n > 0; n >>= 1)
        for (int i = 0; i < n; i++)
            sums[i] = sums[i] + sums[i + n];
    return sums[0];
}
template <typename T> static inline T cuda_warp_max(T v, EMULATOR_SITE)
{
    const union emulator_slot *slots = emulator_exchange("warp max", &v, sizeof v, file, line);
    T most = emulator_of_lane<T>(slots, 0);
    for (int i = 1; i < 32; i++)
        most = max(most, emulator_of_lane<T>(slots, i));
    return most;
}

/* ---- bf16, moves, tensor cores -----------------------------------------------------------------
 */

static inline float cuda_bf16_to_float(uint16_t b)
{
    return __uint_as_float((uint32_t)b << 16);
}
static inline uint16_t cuda_float_to_bf16(float f)
{
    uint32_t u = __float_as_uint(f);
    if (f != f)
        return 0x7fff;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline void cuda_bf16x2_unpack(uint32_t pair, float *lo, float *hi)
{
    *lo = __uint_as_float(pair << 16);
    *hi = __uint_as_float(pair & 0xffff0000u);
}
static inline uint32_t cuda_bf16x2_pack(float lo, float hi)
{
    return (uint32_t)cuda_float_to_bf16(lo) | (uint32_t)cuda_float_to_bf16(hi) << 16;
}

static inline uint4 cuda_load_stream(const uint4 *p)
{
    emulator_check_load(p, sizeof *p);
    return *p;
}
static inline void cuda_copy_async16(void *shared_dst, const void *global_src, bool is_there)
{
    emulator_copy_async(shared_dst, global_src, is_there);
}
static inline void cuda_copy_commit(void)
{
    emulator_copy_commit();
}
template <int N> static inline void cuda_copy_wait(void)
{
    emulator_copy_wait(N);
}
static inline void cuda_ldmatrix_x4(uint32_t r[4], const void *row, EMULATOR_SITE)
{
    emulator_ldmatrix(r, row, false, file, line);
}
static inline void cuda_ldmatrix_x4_trans(uint32_t r[4], const void *row, EMULATOR_SITE)
{
    emulator_ldmatrix(r, row, true, file, line);
}
static inline void cuda_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2],
                                 EMULATOR_SITE)
{
    emulator_mma_bf16(d, a, b, file, line);
}

/* ---- atomics: blocks and threads take turns, so that plain code is atomic -----------------------
 */

template <typename T> static inline T emulator_add_to(T *p, T v)
{
    T before = *p;
    *p = before + v;
    return before;
}
template <typename T> static inline T emulator_max_to(T *p, T v)
{
    T before = *p;
    *p = before < v ? v : before;
    return before;
}
#define EMULATOR_ATOMIC(name, T, work)                                                             \
    static inline T name(T *p, T v)                                                                \
    {                                                                                              \
        return work(p, v);                                                                         \
    }
EMULATOR_ATOMIC(cuda_atomic_add, int32_t, emulator_add_to)
EMULATOR_ATOMIC(cuda_atomic_add, uint32_t, emulator_add_to)
EMULATOR_ATOMIC(cuda_atomic_add, uint64_t, emulator_add_to)
EMULATOR_ATOMIC(cuda_atomic_add, float, emulator_add_to)
EMULATOR_ATOMIC(cuda_atomic_max, int32_t, emulator_max_to)
EMULATOR_ATOMIC(cuda_atomic_max, uint32_t, emulator_max_to)
EMULATOR_ATOMIC(cuda_atomic_max, uint64_t, emulator_max_to)

/* ---- arithmetic --------------------------------------------------------------------------------
 */

static inline float rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}
static inline float cuda_exp(float x)
{
    return expf(x);
}
static inline float cuda_exp2(float x)
{
    float y = exp2f(x);
    return y < FLT_MIN ? 0.0f : y;
}
static inline float cuda_rsqrt(float x)
{
    return rsqrtf(x);
}
static inline float cuda_mul_rn(float a, float b)
{
    return a * b;
}
static inline float cuda_add_rn(float a, float b)
{
    return a + b;
}
static inline double cuda_mul_rn(double a, double b)
{
    return a * b;
}
static inline double cuda_add_rn(double a, double b)
{
    return a + b;
}

#endif
