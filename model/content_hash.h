/* A fast hash of many bytes, to see that a file is as it was written.
 *
 * FNV-1a widened: eight bytes a step in four lanes, with the high half folded back after each
 * multiplication. Every step is a bijection of the lane, so a change within one word is always
 * seen; others go unseen once in 2^64. Not against somebody who wants two equal ones. */
#ifndef MODEL_CONTENT_HASH_H
#define MODEL_CONTENT_HASH_H

#include <stddef.h>
#include <stdint.h>

#define CONTENT_HASH_START UINT64_C(0xcbf29ce484222325)

/* The hash of what came before, gone on with these bytes; their length counts too. */
uint64_t content_hash(uint64_t hash, const void *bytes, size_t len_bytes);
/* The string with its end. */
uint64_t content_hash_text(uint64_t hash, const char *text);

#endif
