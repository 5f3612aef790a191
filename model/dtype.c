/* Widens IEEE binary16 to fp32 exactly. */
#include "model/dtype.h"

float dtype_from_f16(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t exponent = (v >> 10) & 0x1fu;
    uint32_t fraction = v & 0x3ffu;
    uint32_t bits;
    if (exponent == 0x1f) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 127 - 15) << 23 | fraction << 13;
    } else {
        /* Zero or subnormal: fraction * 2^-24 has at most 10 significant bits, so the product is
         * exact. */
        float magnitude = (float)fraction * 0x1p-24f;
        memcpy(&bits, &magnitude, sizeof bits);
        bits |= sign;
    }
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
