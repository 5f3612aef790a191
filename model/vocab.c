/* Tokens by id and by content: every id has one content and every content one id. */
#include "model/vocab.h"

#include "model/tokenizer.h"
#include "proto/fnv.h"

#include <stdlib.h>
#include <string.h>

/* GPT-2's bytes_to_unicode: printable Latin-1 stays, the rest is numbered from U+0100 in order. */
static int symbol_of_byte(int byte)
{
    if (byte <= 32)
        return 256 + byte;
    if (byte >= 127 && byte <= 160)
        return 289 + byte - 127;
    return byte == 173 ? 323 : byte;
}

static int byte_of_symbol(int point)
{
    if (point >= 256 && point <= 288)
        return point - 256;
    if (point >= 289 && point <= 322)
        return point - 289 + 127;
    if (point == 323)
        return 173;
    return point < 256 && symbol_of_byte(point) == point ? point : -1;
}

size_t vocab_byte_symbol(unsigned char byte, char out[2])
{
    int point = symbol_of_byte(byte);
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    out[0] = (char)(0xC0 | point >> 6);
    out[1] = (char)(0x80 | (point & 0x3F));
    return 2;
}

/* Writes the bytes that content's symbols stand for; false when a character is no symbol. */
static bool decode_symbols(const char *content, size_t n_content, char *out, size_t *n_out)
{
    size_t n = 0;
    for (size_t i = 0; i < n_content; n++) {
        unsigned char c = (unsigned char)content[i];
        int point = c, step = 1;
        if (c >= 0x80) {
            if ((c & 0xE0) != 0xC0 || i + 1 >= n_content)
                return false;
            point = (c & 0x1F) << 6 | (content[i + 1] & 0x3F);
            step = 2;
        }
        int byte = byte_of_symbol(point);
        if (byte < 0)
            return false;
        out[n] = (char)byte;
        i += (size_t)step;
    }
    *n_out = n;
    return true;
}

static uint32_t hash_content(const char *content, size_t n)
{
    uint64_t h = fnv_bytes(FNV_START, content, n);
    return (uint32_t)(h ^ h >> 32);
}

/* The slot that holds content, or the free one where it belongs. */
static uint32_t *find_slot(const struct vocab *vocab, const char *content, size_t n)
{
    uint32_t i = hash_content(content, n) & vocab->slot_mask;
    for (;; i = (i + 1) & vocab->slot_mask) {
        uint32_t *slot = &vocab->slots[i];
        if (*slot == 0)
            return slot;
        const struct vocab_token *t = &vocab->tokens[*slot - 1];
        if (t->n_content == n && memcmp(vocab->text + t->content_at, content, n) == 0)
            return slot;
    }
}

enum status vocab_init(struct vocab *vocab, int n_ids, size_t n_tokens, struct err *err)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n_tokens)
        n_slots *= 2;
    *vocab = (struct vocab){.n_ids = n_ids, .slot_mask = (uint32_t)(n_slots - 1)};
    vocab->tokens = calloc(n_ids > 0 ? (size_t)n_ids : 1, sizeof *vocab->tokens);
    vocab->slots = calloc(n_slots, sizeof *vocab->slots);
    vocab->text_cap = 16 * n_tokens + 64;
    vocab->text = malloc(vocab->text_cap);
    if (!vocab->tokens || !vocab->slots || !vocab->text) {
        vocab_clear(vocab);
        return err_set(err, STATUS_NO_MEMORY, "no memory for a vocabulary of %d ids", n_ids);
    }
    return STATUS_OK;
}

void vocab_clear(struct vocab *vocab)
{
    free(vocab->tokens);
    free(vocab->slots);
    free(vocab->text);
    *vocab = (struct vocab){0};
}

static bool reserve_text(struct vocab *vocab, size_t more)
{
    if (vocab->text_bytes + more <= vocab->text_cap)
        return true;
    size_t cap = 2 * vocab->text_cap + more;
    if (cap > UINT32_MAX)
        return false;
    char *grown = realloc(vocab->text, cap);
    if (!grown)
        return false;
    vocab->text = grown;
    vocab->text_cap = cap;
    return true;
}

enum status vocab_add(struct vocab *vocab, const char *content, size_t n_content, int32_t id,
                      struct err *err)
{
    int shown = n_content < 60 ? (int)n_content : 60;
    struct vocab_token *token = &vocab->tokens[id];
    uint32_t *slot = find_slot(vocab, content, n_content);
    if (*slot == (uint32_t)id + 1)
        return STATUS_OK;
    if (*slot != 0)
        return err_set(err, STATUS_CORRUPT, "token \"%.*s\" has two ids, %d and %d", shown, content,
                       (int)*slot - 1, (int)id);
    if (token->exists)
        return err_set(err, STATUS_CORRUPT, "id %d is given to two tokens, \"%.*s\" and \"%.*s\"",
                       (int)id, token->n_content < 60 ? token->n_content : 60,
                       vocab->text + token->content_at, shown, content);

    char bytes[VOCAB_MAX_CONTENT_BYTES];
    size_t n_bytes = 0;
    if (n_content <= sizeof bytes && !decode_symbols(content, n_content, bytes, &n_bytes)) {
        /* As the reference: one character that is no symbol, and the token is taken literally. */
        memcpy(bytes, content, n_content);
        n_bytes = n_content;
    }
    if (n_content > sizeof bytes || n_bytes > TOKENIZER_MAX_TOKEN_BYTES)
        return err_set(err, STATUS_UNSUPPORTED, "token \"%.*s\"... (id %d) is longer than %d bytes",
                       shown, content, (int)id, (int)TOKENIZER_MAX_TOKEN_BYTES);
    if (!reserve_text(vocab, n_content + n_bytes))
        return err_set(err, STATUS_NO_MEMORY, "no memory for the text of the vocabulary");

    token->content_at = (uint32_t)vocab->text_bytes;
    token->n_content = (uint16_t)n_content;
    memcpy(vocab->text + vocab->text_bytes, content, n_content);
    vocab->text_bytes += n_content;
    token->bytes_at = (uint32_t)vocab->text_bytes;
    token->n_bytes = (uint16_t)n_bytes;
    memcpy(vocab->text + vocab->text_bytes, bytes, n_bytes);
    vocab->text_bytes += n_bytes;
    token->exists = true;
    *slot = (uint32_t)id + 1;
    return STATUS_OK;
}

int32_t vocab_find(const struct vocab *vocab, const char *content, size_t n_content)
{
    return (int32_t)*find_slot(vocab, content, n_content) - 1;
}

int32_t vocab_find_bytes(const struct vocab *vocab, const char *bytes, size_t n_bytes)
{
    char content[VOCAB_MAX_CONTENT_BYTES];
    size_t n = 0;
    if (n_bytes > TOKENIZER_MAX_TOKEN_BYTES)
        return -1;
    for (size_t i = 0; i < n_bytes; i++)
        n += vocab_byte_symbol((unsigned char)bytes[i], content + n);
    return vocab_find(vocab, content, n);
}
