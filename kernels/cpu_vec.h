/* One vector of floats per instruction-set level, so that one algorithm text serves all of them.
 *
 * A file that includes this defines CPU_LEVEL_AVX512 or CPU_LEVEL_AVX2 first, or neither for
 * portable C. Loads take any alignment. The trees of vec_sum and vec_reduce_tile are the same for
 * every lane and every position, which is what batch invariance needs. */
#ifndef KERNELS_CPU_VEC_H
#define KERNELS_CPU_VEC_H

#include <stdint.h>
#include <string.h>

#if defined(CPU_LEVEL_AVX512)

#include <immintrin.h>

enum { VEC_LANES = 16 };
#define CPU_LEVEL(name) name##_avx512

struct vec {
    __m512 v;
};

static inline struct vec vec_zero(void)
{
    return (struct vec){_mm512_setzero_ps()};
}
static inline struct vec vec_set1(float f)
{
    return (struct vec){_mm512_set1_ps(f)};
}
static inline struct vec vec_load(const void *p)
{
    return (struct vec){_mm512_loadu_ps(p)};
}
/* Keeps a loaded vector in a register: folded into each use it would be loaded once per use. */
static inline struct vec vec_pin(struct vec a)
{
    __asm__("" : "+v"(a.v));
    return a;
}
static inline void vec_store(float *p, struct vec a)
{
    _mm512_storeu_ps(p, a.v);
}
static inline struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){_mm512_add_ps(a.v, b.v)};
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){_mm512_sub_ps(a.v, b.v)};
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){_mm512_mul_ps(a.v, b.v)};
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){_mm512_div_ps(a.v, b.v)};
}
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm512_fmadd_ps(a.v, b.v, c.v)};
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){_mm512_max_ps(a.v, b.v)};
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){_mm512_min_ps(a.v, b.v)};
}
/* 2^n where n is the integer that adding 1.5 * 2^23 left in the low bits of `magic`. */
static inline struct vec vec_exp2_magic(struct vec magic)
{
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(magic.v), 23);
    return (struct vec){_mm512_castsi512_ps(_mm512_add_epi32(n, _mm512_set1_epi32(127 << 23)))};
}
/* Of 2 * VEC_LANES bf16 loaded as dwords: the elements of even and of odd index, widened. */
static inline struct vec vec_bf16_even(struct vec raw)
{
    return (struct vec){_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(raw.v), 16))};
}
static inline struct vec vec_bf16_odd(struct vec raw)
{
    __m512i mask = _mm512_set1_epi32((int)0xffff0000u);
    return (struct vec){_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(raw.v), mask))};
}
/* VEC_LANES consecutive elements, widened. */
static inline struct vec vec_load_bf16(const void *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p));
    return (struct vec){_mm512_castsi512_ps(_mm512_slli_epi32(w, 16))};
}
static inline struct vec vec_load_f16(const void *p)
{
    return (struct vec){_mm512_cvtph_ps(_mm256_loadu_si256(p))};
}
static inline float vec_largest(struct vec a)
{
    return _mm512_reduce_max_ps(a.v);
}

/* out[i] = sum of the lanes of the vector at tile + stride * i, for VEC_LANES vectors: levels of
 * pairwise sums, in which each level halves both the vectors and the lanes of a sum. */
static inline struct vec vec_reduce_tile(const float *tile, size_t stride)
{
    __m512 a[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_ps(tile + stride * (size_t)i);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                             _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        a[i] = _mm512_add_ps(_mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
        /* Each 128-bit quarter of a[i] now holds partial sums of vectors 4i .. 4i + 3. */
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x44),
                             _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xee));
    return (struct vec){_mm512_add_ps(_mm512_shuffle_f32x4(a[0], a[1], 0x88),
                                      _mm512_shuffle_f32x4(a[0], a[1], 0xdd))};
}

#elif defined(CPU_LEVEL_AVX2)

#include <immintrin.h>

enum { VEC_LANES = 8 };
#define CPU_LEVEL(name) name##_avx2

struct vec {
    __m256 v;
};

static inline struct vec vec_zero(void)
{
    return (struct vec){_mm256_setzero_ps()};
}
static inline struct vec vec_set1(float f)
{
    return (struct vec){_mm256_set1_ps(f)};
}
static inline struct vec vec_load(const void *p)
{
    return (struct vec){_mm256_loadu_ps(p)};
}
static inline struct vec vec_pin(struct vec a)
{
    __asm__("" : "+x"(a.v));
    return a;
}
static inline void vec_store(float *p, struct vec a)
{
    _mm256_storeu_ps(p, a.v);
}
static inline struct vec vec_add(struct vec a, struct vec b)
{
    return (struct vec){_mm256_add_ps(a.v, b.v)};
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    return (struct vec){_mm256_sub_ps(a.v, b.v)};
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    return (struct vec){_mm256_mul_ps(a.v, b.v)};
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    return (struct vec){_mm256_div_ps(a.v, b.v)};
}
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    return (struct vec){_mm256_fmadd_ps(a.v, b.v, c.v)};
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
    return (struct vec){_mm256_max_ps(a.v, b.v)};
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    return (struct vec){_mm256_min_ps(a.v, b.v)};
}
static inline struct vec vec_exp2_magic(struct vec magic)
{
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(magic.v), 23);
    return (struct vec){_mm256_castsi256_ps(_mm256_add_epi32(n, _mm256_set1_epi32(127 << 23)))};
}
static inline struct vec vec_bf16_even(struct vec raw)
{
    return (struct vec){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(raw.v), 16))};
}
static inline struct vec vec_bf16_odd(struct vec raw)
{
    __m256i mask = _mm256_set1_epi32((int)0xffff0000u);
    return (struct vec){_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(raw.v), mask))};
}
static inline struct vec vec_load_bf16(const void *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128(p));
    return (struct vec){_mm256_castsi256_ps(_mm256_slli_epi32(w, 16))};
}
static inline struct vec vec_load_f16(const void *p)
{
    return (struct vec){_mm256_cvtph_ps(_mm_loadu_si128(p))};
}
static inline float vec_largest(struct vec a)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

static inline struct vec vec_reduce_tile(const float *tile, size_t stride)
{
    __m256 a[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = _mm256_loadu_ps(tile + stride * (size_t)i);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_ps(_mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]),
                             _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        a[i] = _mm256_add_ps(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xee));
    return (struct vec){_mm256_add_ps(_mm256_permute2f128_ps(a[0], a[1], 0x20),
                                      _mm256_permute2f128_ps(a[0], a[1], 0x31))};
}

#else

#include "model/dtype.h"

enum { VEC_LANES = 8 };
#define CPU_LEVEL(name) name##_portable

struct vec {
    float v[VEC_LANES];
};

static inline struct vec vec_set1(float f)
{
    struct vec a;
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = f;
    return a;
}
static inline struct vec vec_zero(void)
{
    return vec_set1(0.0f);
}
static inline struct vec vec_load(const void *p)
{
    struct vec a;
    memcpy(a.v, p, sizeof a.v);
    return a;
}
static inline struct vec vec_pin(struct vec a)
{
    return a;
}
static inline void vec_store(float *p, struct vec a)
{
    memcpy(p, a.v, sizeof a.v);
}
static inline struct vec vec_add(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] += b.v[i];
    return a;
}
static inline struct vec vec_sub(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] -= b.v[i];
    return a;
}
static inline struct vec vec_mul(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] *= b.v[i];
    return a;
}
static inline struct vec vec_div(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] /= b.v[i];
    return a;
}
/* Two roundings here, one in the other levels: levels differ in bits, never within one. */
static inline struct vec vec_fma(struct vec a, struct vec b, struct vec c)
{
    for (int i = 0; i < VEC_LANES; i++)
        c.v[i] += a.v[i] * b.v[i];
    return c;
}
static inline struct vec vec_max(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline struct vec vec_min(struct vec a, struct vec b)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
static inline struct vec vec_exp2_magic(struct vec magic)
{
    uint32_t bits[VEC_LANES];
    memcpy(bits, magic.v, sizeof bits);
    for (int i = 0; i < VEC_LANES; i++)
        bits[i] = (bits[i] << 23) + (127u << 23);
    memcpy(magic.v, bits, sizeof bits);
    return magic;
}
static inline struct vec vec_bf16_even(struct vec raw)
{
    uint32_t bits[VEC_LANES];
    memcpy(bits, raw.v, sizeof bits);
    for (int i = 0; i < VEC_LANES; i++)
        bits[i] <<= 16;
    memcpy(raw.v, bits, sizeof bits);
    return raw;
}
static inline struct vec vec_bf16_odd(struct vec raw)
{
    uint32_t bits[VEC_LANES];
    memcpy(bits, raw.v, sizeof bits);
    for (int i = 0; i < VEC_LANES; i++)
        bits[i] &= 0xffff0000u;
    memcpy(raw.v, bits, sizeof bits);
    return raw;
}
static inline struct vec vec_load_bf16(const void *p)
{
    uint16_t h[VEC_LANES];
    memcpy(h, p, sizeof h);
    struct vec a;
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = dtype_from_bf16(h[i]);
    return a;
}
static inline struct vec vec_load_f16(const void *p)
{
    uint16_t h[VEC_LANES];
    memcpy(h, p, sizeof h);
    struct vec a;
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = dtype_from_f16(h[i]);
    return a;
}
static inline float vec_largest(struct vec a)
{
    float m = a.v[0];
    for (int i = 1; i < VEC_LANES; i++)
        m = a.v[i] > m ? a.v[i] : m;
    return m;
}
static inline struct vec vec_reduce_tile(const float *tile, size_t stride)
{
    struct vec out;
    for (int i = 0; i < VEC_LANES; i++) {
        const float *a = tile + stride * (size_t)i;
        float low = (a[0] + a[2]) + (a[1] + a[3]);
        float high = (a[4] + a[6]) + (a[5] + a[7]);
        out.v[i] = low + high;
    }
    return out;
}

#endif

/* The sum of the lanes, by a fixed tree. */
static inline float vec_sum(struct vec a)
{
    float v[VEC_LANES];
    vec_store(v, a);
    for (int half = VEC_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            v[i] += v[i + half];
    return v[0];
}

/* exp(x), x clamped to [-87.3, 88]: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2], within
 * 2 units in the last place. NaN stays NaN. */
static inline struct vec vec_exp(struct vec x)
{
    const struct vec magic = vec_set1(12582912.0f);
    /* x is the second operand, which is the one that min and max return when either is NaN. */
    x = vec_min(vec_set1(88.0f), vec_max(vec_set1(-87.3f), x));
    struct vec z = vec_fma(x, vec_set1(1.44269504f), magic);
    struct vec n = vec_sub(z, magic);
    /* ln 2 in two parts, the first with trailing zeros, so that n * ln 2 loses nothing. */
    struct vec r = vec_fma(n, vec_set1(-0.693359375f), x);
    r = vec_fma(n, vec_set1(2.12194440e-4f), r);
    struct vec p = vec_set1(1.0f / 720.0f);
    p = vec_fma(p, r, vec_set1(1.0f / 120.0f));
    p = vec_fma(p, r, vec_set1(1.0f / 24.0f));
    p = vec_fma(p, r, vec_set1(1.0f / 6.0f));
    p = vec_fma(p, r, vec_set1(0.5f));
    /* 1 + (r + r^2 q): the large terms are added last. */
    p = vec_fma(vec_mul(r, r), p, r);
    return vec_mul(vec_add(p, vec_set1(1.0f)), vec_exp2_magic(z));
}

#endif
