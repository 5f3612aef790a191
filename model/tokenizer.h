/* tokenizer.json (byte-level BPE): text to ids and back, byte-exact with the reference library.
 *
 * Supported: normalizer null; pre_tokenizer ByteLevel, Digits or a Sequence of them; model BPE with
 * merges as strings or pairs; added_tokens. Anything else in the file is STATUS_UNSUPPORTED with its
 * name, never ignored. Unicode classes come from libutf8proc. The object is immutable after load and
 * may be shared by threads. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

enum tokenizer_flags {
    TOKENIZER_PARSE_SPECIAL = 1, /* special tokens written in the text become their ids; without it their characters
                                    are plain text (what users send inside chat messages) */
    TOKENIZER_ADD_BOS = 2,       /* as the file's post_processor TemplateProcessing asks; no effect when it asks for nothing */
    TOKENIZER_STRICT = 4         /* a byte without a token is STATUS_INVALID instead of being dropped */
};

enum status tokenizer_load(const char *path, struct tokenizer **out, struct err *err);
enum status tokenizer_parse(const char *json, size_t len_bytes, const char *origin,
                            struct tokenizer **out, struct err *err);
void tokenizer_free(struct tokenizer *tokenizer); /* NULL is fine */

int tokenizer_vocab_size(const struct tokenizer *tokenizer); /* highest id + 1 */

/* Encodes text (any bytes; invalid UTF-8 is treated byte by byte as the reference treats U+FFFD-free input: see docs) into
 * *ids, a malloc'd array of *n_ids (caller frees; NULL when 0). *n_dropped (may be NULL) counts the
 * bytes that have no token. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len_bytes,
                             int flags, int32_t **ids, size_t *n_ids, size_t *n_dropped,
                             struct err *err);

/* The bytes a token stands for, borrowed; not NUL-terminated, *len_bytes of them. NULL and 0 for an id without token. */
const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *len_bytes);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);
/* Id of an added/special or vocabulary token by its exact content, or -1. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content);

/* Streaming detokenizer: tokens in, whole UTF-8 characters out. Bytes that may still become a character
 * are held back; bytes that cannot are replaced by U+FFFD. No heap. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    unsigned char held[4];
    int n_held;
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, bool skip_special);
/* Appends the text that became certain to out (capacity cap_bytes) and returns its length; out needs at most
 * 3 * (token bytes + 4) bytes: DETOKENIZER_MAX_BYTES always suffices, checked at load. */
size_t detokenizer_push(struct detokenizer *d, int32_t id, char *out, size_t cap_bytes);
/* What is still held, as U+FFFD. */
size_t detokenizer_flush(struct detokenizer *d, char *out, size_t cap_bytes);

enum { TOKENIZER_MAX_TOKEN_BYTES = 1024, DETOKENIZER_MAX_BYTES = 3 * (TOKENIZER_MAX_TOKEN_BYTES + 4) };

#endif
