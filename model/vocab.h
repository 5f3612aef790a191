/* The tokens of a byte-level BPE by id and by content, and the symbols its files write bytes with.
 *
 * A file spells a token as a string of symbols, one per byte: GPT-2's table keeps the printable
 * bytes as they are and moves the other 68 to U+0100 and up ("Ġ" is the space). Two views of a
 * token follow: its content (as spelled, the key of a lookup) and its bytes (what it decodes to).
 */
#ifndef MODEL_VOCAB_H
#define MODEL_VOCAB_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    VOCAB_MAX_IDS = 1 << 21, /* eight times the largest published vocabulary; bounds a hostile id */
    VOCAB_MAX_CONTENT_BYTES = 2048 /* TOKENIZER_MAX_TOKEN_BYTES symbols of two bytes each */
};

struct vocab_token {
    uint32_t content_at, bytes_at; /* offsets in vocab.text */
    uint16_t n_content, n_bytes;
    bool exists;
    bool is_special;
};

struct vocab {
    struct vocab_token *tokens; /* [n_ids] */
    int n_ids;                  /* highest id + 1 */
    char *text;                 /* contents and bytes, one after the other */
    size_t text_bytes, text_cap;
    uint32_t *slots; /* open addressing by content: id + 1, 0 = free */
    uint32_t slot_mask;
};

/* Room for ids 0..n_ids-1 and n_tokens contents. STATUS_NO_MEMORY. */
enum status vocab_init(struct vocab *vocab, int n_ids, size_t n_tokens, struct err *err);
void vocab_clear(struct vocab *vocab);

/* Adds content at id (0 <= id < n_ids). The same content at the same id again is no change.
 * STATUS_CORRUPT when the id or the content is already taken by another, STATUS_UNSUPPORTED when
 * the token is longer than TOKENIZER_MAX_TOKEN_BYTES, STATUS_NO_MEMORY. */
enum status vocab_add(struct vocab *vocab, const char *content, size_t n_content, int32_t id,
                      struct err *err);

/* Id of the token spelled content, or -1. */
int32_t vocab_find(const struct vocab *vocab, const char *content, size_t n_content);
/* Id of the token that is spelled with the symbols of these bytes, or -1. */
int32_t vocab_find_bytes(const struct vocab *vocab, const char *bytes, size_t n_bytes);

/* The symbol of a byte as UTF-8 (1 or 2 bytes, returned), and its code point. */
size_t vocab_byte_symbol(unsigned char byte, char out[2]);

#endif
