/* Hashes bytes at about the speed memory delivers them, the same on every machine. */
#include "model/content_hash.h"

#include <string.h>

enum { N_LANES = 4, WORD_BYTES = 8, BLOCK_BYTES = N_LANES * WORD_BYTES };
#define PRIME UINT64_C(0x100000001b3)

static uint64_t mix(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * PRIME;
    return hash ^ hash >> 32;
}

static uint64_t read_word(const unsigned char *p, size_t n)
{
    uint64_t word = 0;
    for (size_t i = 0; i < n; i++)
        word |= (uint64_t)p[i] << 8 * i;
    return word;
}

uint64_t content_hash(uint64_t hash, const void *bytes, size_t len_bytes)
{
    const unsigned char *at = bytes;
    uint64_t lanes[N_LANES];
    for (int i = 0; i < N_LANES; i++)
        lanes[i] = mix(hash, (uint64_t)i);
    size_t left = len_bytes;
    for (; left >= BLOCK_BYTES; left -= BLOCK_BYTES, at += BLOCK_BYTES)
        for (int i = 0; i < N_LANES; i++)
            lanes[i] = mix(lanes[i], read_word(at + i * WORD_BYTES, WORD_BYTES));
    for (int i = 0; left > 0; i++) {
        size_t n = left < WORD_BYTES ? left : WORD_BYTES;
        lanes[i] = mix(lanes[i], read_word(at, n));
        at += n;
        left -= n;
    }
    hash = mix(hash, (uint64_t)len_bytes);
    for (int i = 0; i < N_LANES; i++)
        hash = mix(hash, lanes[i]);
    return hash;
}

uint64_t content_hash_text(uint64_t hash, const char *text)
{
    return content_hash(hash, text, strlen(text) + 1);
}
