/* FNV-1a, 64 bits: for tables and fingerprints, not against somebody who wants two equal ones. */
#ifndef PROTO_FNV_H
#define PROTO_FNV_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FNV_START UINT64_C(0xcbf29ce484222325)

/* The hash of what came before, gone on with len bytes; the first call gets FNV_START. */
static inline uint64_t fnv_bytes(uint64_t hash, const void *bytes, size_t len)
{
    const unsigned char *at = (const unsigned char *)bytes;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

/* Numbers go in as eight little-endian bytes: machines of either order agree. */
static inline uint64_t fnv_u64(uint64_t hash, uint64_t v)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(v >> 8 * i);
    return fnv_bytes(hash, bytes, sizeof bytes);
}

static inline uint64_t fnv_double(uint64_t hash, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return fnv_u64(hash, bits);
}

/* Length first: "ab" + "c" and "a" + "bc" must differ. NULL is "". */
static inline uint64_t fnv_string(uint64_t hash, const char *s)
{
    size_t len = s != NULL ? strlen(s) : 0;
    return fnv_bytes(fnv_u64(hash, len), s != NULL ? s : "", len);
}

#endif
