/* What the training kernels need of a vector beyond cpu_vec.h: parts of vectors, square roots,
 * transposition. Include cpu_vec.h's way: the level's macro is defined first. */
#ifndef KERNELS_GRAD_VEC_H
#define KERNELS_GRAD_VEC_H

#include "kernels/cpu_vec.h"

#include <math.h>
#include <stddef.h>

#if defined(CPU_LEVEL_AVX512)

static inline __mmask16 vec_mask(int n)
{
    return (__mmask16)((1u << n) - 1u);
}
/* The first n (0 .. VEC_LANES) floats at p, `rest` in the other lanes; reads nothing past them. */
static inline struct vec vec_load_part(const float *p, int n, struct vec rest)
{
    if (__builtin_constant_p(n) && n == VEC_LANES)
        return vec_load(p);
    return (struct vec){_mm512_mask_loadu_ps(rest.v, vec_mask(n), p)};
}
static inline void vec_store_part(float *p, struct vec a, int n)
{
    if (__builtin_constant_p(n) && n == VEC_LANES)
        vec_store(p, a);
    else
        _mm512_mask_storeu_ps(p, vec_mask(n), a.v);
}
/* The first n lanes of a, zeros in the others. */
static inline struct vec vec_first(struct vec a, int n)
{
    return (struct vec){_mm512_maskz_mov_ps(vec_mask(n), a.v)};
}
static inline struct vec vec_sqrt(struct vec a)
{
    return (struct vec){_mm512_sqrt_ps(a.v)};
}
/* 1 / a within 2 units in the last place, 0 for magnitudes above 2^126; NaN stays NaN. */
static inline struct vec vec_reciprocal(struct vec a)
{
    __m512 r = _mm512_rcp14_ps(a.v);
    return (struct vec){_mm512_mul_ps(r, _mm512_fnmadd_ps(a.v, r, _mm512_set1_ps(2.0f)))};
}
/* Where a position is below `end`, or in [from, to), the lane of a; elsewhere `rest`. */
static inline struct vec vec_select_spans(struct vec a, struct vec position, struct vec end,
                                          struct vec from, struct vec to, struct vec rest)
{
    __mmask16 first = _mm512_cmp_ps_mask(position.v, end.v, _CMP_LT_OQ);
    __mmask16 second = _mm512_cmp_ps_mask(position.v, from.v, _CMP_GE_OQ);
    second = _mm512_mask_cmp_ps_mask(second, position.v, to.v, _CMP_LT_OQ);
    return (struct vec){_mm512_mask_mov_ps(rest.v, first | second, a.v)};
}
/* a where x is not below `least` (NaN is not), 0 elsewhere. */
static inline struct vec vec_zero_below(struct vec a, struct vec x, struct vec least)
{
    return (struct vec){_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), a.v)};
}
/* dst[j][i] = src[i][j] for VEC_LANES by VEC_LANES. */
static inline void vec_transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride)
{
    __m512 a[16], b[16];
    /* Rows i, i + 4, i + 8, i + 12 by quarters: b[4 q' + i] holds quarter q' of these four rows. */
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_ps(src + src_stride * (size_t)i);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 low = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x44);
        __m512 high = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xee);
        __m512 low2 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x44);
        __m512 high2 = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xee);
        b[i] = _mm512_shuffle_f32x4(low, low2, 0x88);
        b[4 + i] = _mm512_shuffle_f32x4(low, low2, 0xdd);
        b[8 + i] = _mm512_shuffle_f32x4(high, high2, 0x88);
        b[12 + i] = _mm512_shuffle_f32x4(high, high2, 0xdd);
    }
    /* Then four by four within each quarter. */
#pragma GCC unroll 4
    for (int q = 0; q < 4; q++) {
        __m512 low = _mm512_unpacklo_ps(b[4 * q], b[4 * q + 1]);
        __m512 high = _mm512_unpackhi_ps(b[4 * q], b[4 * q + 1]);
        __m512 low2 = _mm512_unpacklo_ps(b[4 * q + 2], b[4 * q + 3]);
        __m512 high2 = _mm512_unpackhi_ps(b[4 * q + 2], b[4 * q + 3]);
        float *to = dst + dst_stride * (size_t)(4 * q);
        _mm512_storeu_ps(to, _mm512_shuffle_ps(low, low2, 0x44));
        _mm512_storeu_ps(to + dst_stride, _mm512_shuffle_ps(low, low2, 0xee));
        _mm512_storeu_ps(to + 2 * dst_stride, _mm512_shuffle_ps(high, high2, 0x44));
        _mm512_storeu_ps(to + 3 * dst_stride, _mm512_shuffle_ps(high, high2, 0xee));
    }
}

#elif defined(CPU_LEVEL_AVX2)

static inline __m256i vec_mask(int n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
static inline struct vec vec_load_part(const float *p, int n, struct vec rest)
{
    if (__builtin_constant_p(n) && n == VEC_LANES)
        return vec_load(p);
    __m256i mask = vec_mask(n);
    __m256 a = _mm256_maskload_ps(p, mask);
    return (struct vec){_mm256_blendv_ps(rest.v, a, _mm256_castsi256_ps(mask))};
}
static inline void vec_store_part(float *p, struct vec a, int n)
{
    if (__builtin_constant_p(n) && n == VEC_LANES)
        vec_store(p, a);
    else
        _mm256_maskstore_ps(p, vec_mask(n), a.v);
}
static inline struct vec vec_first(struct vec a, int n)
{
    return (struct vec){_mm256_and_ps(a.v, _mm256_castsi256_ps(vec_mask(n)))};
}
static inline struct vec vec_sqrt(struct vec a)
{
    return (struct vec){_mm256_sqrt_ps(a.v)};
}
static inline struct vec vec_reciprocal(struct vec a)
{
    return vec_div(vec_set1(1.0f), a);
}
static inline struct vec vec_select_spans(struct vec a, struct vec position, struct vec end,
                                          struct vec from, struct vec to, struct vec rest)
{
    __m256 first = _mm256_cmp_ps(position.v, end.v, _CMP_LT_OQ);
    __m256 second = _mm256_and_ps(_mm256_cmp_ps(position.v, from.v, _CMP_GE_OQ),
                                  _mm256_cmp_ps(position.v, to.v, _CMP_LT_OQ));
    return (struct vec){_mm256_blendv_ps(rest.v, a.v, _mm256_or_ps(first, second))};
}
static inline struct vec vec_zero_below(struct vec a, struct vec x, struct vec least)
{
    return (struct vec){_mm256_and_ps(a.v, _mm256_cmp_ps(x.v, least.v, _CMP_NLT_UQ))};
}
static inline void vec_transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride)
{
    __m256 b[8];
    /* Row i beside row i + 4, by halves: b[4 h + i] holds half h of both. */
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m256 upper = _mm256_loadu_ps(src + src_stride * (size_t)i);
        __m256 lower = _mm256_loadu_ps(src + src_stride * (size_t)(i + 4));
        b[i] = _mm256_permute2f128_ps(upper, lower, 0x20);
        b[4 + i] = _mm256_permute2f128_ps(upper, lower, 0x31);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256 low = _mm256_unpacklo_ps(b[4 * h], b[4 * h + 1]);
        __m256 high = _mm256_unpackhi_ps(b[4 * h], b[4 * h + 1]);
        __m256 low2 = _mm256_unpacklo_ps(b[4 * h + 2], b[4 * h + 3]);
        __m256 high2 = _mm256_unpackhi_ps(b[4 * h + 2], b[4 * h + 3]);
        float *to = dst + dst_stride * (size_t)(4 * h);
        _mm256_storeu_ps(to, _mm256_shuffle_ps(low, low2, 0x44));
        _mm256_storeu_ps(to + dst_stride, _mm256_shuffle_ps(low, low2, 0xee));
        _mm256_storeu_ps(to + 2 * dst_stride, _mm256_shuffle_ps(high, high2, 0x44));
        _mm256_storeu_ps(to + 3 * dst_stride, _mm256_shuffle_ps(high, high2, 0xee));
    }
}

#else

static inline struct vec vec_load_part(const float *p, int n, struct vec rest)
{
    for (int i = 0; i < n; i++)
        rest.v[i] = p[i];
    return rest;
}
static inline void vec_store_part(float *p, struct vec a, int n)
{
    for (int i = 0; i < n; i++)
        p[i] = a.v[i];
}
static inline struct vec vec_first(struct vec a, int n)
{
    for (int i = n; i < VEC_LANES; i++)
        a.v[i] = 0.0f;
    return a;
}
static inline struct vec vec_sqrt(struct vec a)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = sqrtf(a.v[i]);
    return a;
}
static inline struct vec vec_reciprocal(struct vec a)
{
    return vec_div(vec_set1(1.0f), a);
}
static inline struct vec vec_select_spans(struct vec a, struct vec position, struct vec end,
                                          struct vec from, struct vec to, struct vec rest)
{
    for (int i = 0; i < VEC_LANES; i++) {
        const float at = position.v[i];
        rest.v[i] = at < end.v[i] || (at >= from.v[i] && at < to.v[i]) ? a.v[i] : rest.v[i];
    }
    return rest;
}
static inline struct vec vec_zero_below(struct vec a, struct vec x, struct vec least)
{
    for (int i = 0; i < VEC_LANES; i++)
        a.v[i] = x.v[i] < least.v[i] ? 0.0f : a.v[i];
    return a;
}
static inline void vec_transpose(float *dst, size_t dst_stride, const float *src, size_t src_stride)
{
    for (size_t i = 0; i < VEC_LANES; i++)
        for (size_t j = 0; j < VEC_LANES; j++)
            dst[j * dst_stride + i] = src[i * src_stride + j];
}

#endif

/* 0, 1, 2, ... */
static inline struct vec vec_positions(void)
{
    float v[VEC_LANES];
    for (int i = 0; i < VEC_LANES; i++)
        v[i] = (float)i;
    return vec_load(v);
}

/* exp(x) as vec_exp, but 0 below -60: beside a sum of 1 such terms count nothing, nor does what is
 * masked with -inf, and products with them would be subnormal, which CPUs compute slowly. */
static inline struct vec vec_exp_or_zero(struct vec x)
{
    return vec_zero_below(vec_exp(x), x, vec_set1(-60.0f));
}

/* Lanes of the vector at `at` that lie below n. */
static inline int vec_lanes_left(int n, int at)
{
    return n - at < VEC_LANES ? n - at : VEC_LANES;
}

#endif
