/* tokenizer.json (byte-level BPE): text to ids and back, byte-exact with the reference library.
 *
 * Supported: normalizer null; pre_tokenizer ByteLevel, with one Digits in front or without; model
 * BPE with merges as strings or pairs, with or without ignore_merges; added_tokens, the longest of
 * the leftmost first; post_processor ByteLevel or TemplateProcessing; decoder ByteLevel. Anything
 * else in the file is STATUS_UNSUPPORTED with its name, never ignored, unless it cannot change a
 * result (an unk_token when every byte has a symbol). Unicode classes come from libutf8proc,
 * brought up to Unicode 16. The object is immutable after load and may be shared by threads. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

enum tokenizer_flags {
    /* Special tokens written in the text become their ids; without it their characters are plain
     * text (what users send inside chat messages). */
    TOKENIZER_PARSE_SPECIAL = 1,
    /* The tokens that the file's post_processor TemplateProcessing puts around the text; no effect
     * when it asks for none. */
    TOKENIZER_ADD_BOS = 2,
    /* A byte without a token is STATUS_INVALID instead of being dropped. */
    TOKENIZER_STRICT = 4
};

/* STATUS_NOT_FOUND, STATUS_IO, STATUS_CORRUPT (not JSON, a field of the wrong type, a merge or an
 * id that fits nothing), STATUS_UNSUPPORTED, STATUS_NO_MEMORY; the message names the file and the
 * field. */
enum status tokenizer_load(const char *path, struct tokenizer **out, struct err *err);
enum status tokenizer_parse(const char *json, size_t len_bytes, const char *origin,
                            struct tokenizer **out, struct err *err);
void tokenizer_free(struct tokenizer *tokenizer); /* NULL is fine */

int tokenizer_vocab_size(const struct tokenizer *tokenizer); /* highest id + 1 */

/* Encodes text (any bytes) into *ids, a malloc'd array of *n_ids (caller frees; NULL when 0). A
 * byte that is no part of valid UTF-8 counts as one character that is neither letter, number nor
 * space, and keeps its own byte symbol, so that decoding gives the text back; the reference takes
 * valid UTF-8 only. *n_dropped (may be NULL) counts the bytes that have no token. Linear in the
 * text but for a piece of n bytes, which costs n log n. STATUS_INVALID (strict mode, more than
 * INT32_MAX bytes), STATUS_NO_MEMORY. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len_bytes,
                             int flags, int32_t **ids, size_t *n_ids, size_t *n_dropped,
                             struct err *err);

/* The bytes a token stands for, borrowed; not NUL-terminated, *len_bytes of them. NULL and 0 for an
 * id without token. */
const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *len_bytes);
bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id);
/* Id of an added/special or vocabulary token by its exact content, or -1. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content);

/* Streaming detokenizer: tokens in, whole UTF-8 characters out. Bytes that may still become a
 * character are held back; bytes that cannot are replaced by U+FFFD, one for each maximal subpart
 * (Unicode 3.9), so that all pushes and the flush together equal a lossy decoding of all bytes. No
 * heap. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    bool skip_special;
    unsigned char held[4];
    int n_held;
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, bool skip_special);
/* Writes the text that became certain to out (capacity cap_bytes) and returns its length; 0 for an
 * id without token. out needs at most 3 * (token bytes + 4) bytes: DETOKENIZER_MAX_BYTES always
 * suffices, checked at load. */
size_t detokenizer_push(struct detokenizer *d, int32_t id, char *out, size_t cap_bytes);
/* What is still held, as U+FFFD. */
size_t detokenizer_flush(struct detokenizer *d, char *out, size_t cap_bytes);

enum {
    TOKENIZER_MAX_TOKEN_BYTES = 1024,
    DETOKENIZER_MAX_BYTES = 3 * (TOKENIZER_MAX_TOKEN_BYTES + 4)
};

#endif
