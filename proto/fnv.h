/* FNV-1a, 64 bits: for tables and fingerprints, not against somebody who wants two equal ones. */
#ifndef PROTO_FNV_H
#define PROTO_FNV_H

#include <stddef.h>
#include <stdint.h>

#define FNV_START UINT64_C(0xcbf29ce484222325)

/* The hash of what came before, gone on with len bytes; the first call gets FNV_START. */
static inline uint64_t fnv_bytes(uint64_t hash, const void *bytes, size_t len)
{
    const unsigned char *at = (const unsigned char *)bytes;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ at[i]) * UINT64_C(0x100000001b3);
    return hash;
}

#endif
