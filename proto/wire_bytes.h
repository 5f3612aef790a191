/* Loads and stores of the wire's little-endian numbers at any alignment, and the head of every
 * message.
 *
 * Rows are copied as they lie in memory, so the tree refuses to build where memory is not
 * little-endian; a host of the other kind would have to swap here and nowhere else. */
#ifndef PROTO_WIRE_BYTES_H
#define PROTO_WIRE_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian: swap here");
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "rows travel as 4-byte floats");

enum { MESSAGE_HEAD_BYTES = 8 };
#define MESSAGE_MAGIC 0x4c535243u /* "CRSL" in memory order */

static inline uint16_t wire_load_u16(const void *from)
{
    uint16_t v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline uint32_t wire_load_u32(const void *from)
{
    uint32_t v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline uint64_t wire_load_u64(const void *from)
{
    uint64_t v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline float wire_load_f32(const void *from)
{
    float v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline double wire_load_f64(const void *from)
{
    double v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void wire_store_u16(void *to, uint16_t v)
{
    memcpy(to, &v, sizeof v);
}

static inline void wire_store_u32(void *to, uint32_t v)
{
    memcpy(to, &v, sizeof v);
}

static inline void wire_store_u64(void *to, uint64_t v)
{
    memcpy(to, &v, sizeof v);
}

static inline void wire_store_f32(void *to, float v)
{
    memcpy(to, &v, sizeof v);
}

static inline void wire_store_f64(void *to, double v)
{
    memcpy(to, &v, sizeof v);
}

static inline void wire_store_head(void *to, uint16_t version, uint16_t kind)
{
    wire_store_u32(to, MESSAGE_MAGIC);
    wire_store_u16((unsigned char *)to + 4, version);
    wire_store_u16((unsigned char *)to + 6, kind);
}

#endif
