/* Element types of tensors on disk, and the widening of one element to fp32. */
#ifndef MODEL_DTYPE_H
#define MODEL_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32 = 0, DTYPE_BF16 = 1, DTYPE_F16 = 2 };

static inline size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

static inline const char *dtype_name(enum dtype t)
{
    return t == DTYPE_F32 ? "f32" : t == DTYPE_BF16 ? "bf16" : "f16";
}

static inline float dtype_from_bf16(uint16_t v)
{
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Round to nearest, ties to even; NaN stays NaN. */
static inline uint16_t dtype_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* IEEE binary16, subnormals, infinities and NaN included. */
float dtype_from_f16(uint16_t v);

#endif
