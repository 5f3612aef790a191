/* Tokens become text a whole UTF-8 character at a time, as a lossy decoding of all bytes would. */
#include "model/tokenizer.h"

#include <assert.h>
#include <string.h>

static size_t put_replacement(char *out)
{
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

/* Length of the character that a lead byte opens; 0 for a byte that opens none. */
static int length_of(unsigned char lead)
{
    if (lead < 0x80)
        return 1;
    if (lead >= 0xC2 && lead <= 0xDF)
        return 2;
    if (lead >= 0xE0 && lead <= 0xEF)
        return 3;
    return lead >= 0xF0 && lead <= 0xF4 ? 4 : 0;
}

/* Whether byte may follow the n_held bytes of an unfinished character. The second byte's range
 * depends on the lead (no overlong forms, no surrogates, nothing above U+10FFFF), so that a bad
 * sequence is given up at its first bad byte: the maximal subparts of Unicode chapter 3.9. */
static bool may_follow(const unsigned char *held, int n_held, unsigned char byte)
{
    unsigned char low = 0x80, high = 0xBF;
    if (n_held == 1) {
        if (held[0] == 0xE0)
            low = 0xA0;
        else if (held[0] == 0xED)
            high = 0x9F;
        else if (held[0] == 0xF0)
            low = 0x90;
        else if (held[0] == 0xF4)
            high = 0x8F;
    }
    return byte >= low && byte <= high;
}

void detokenizer_init(struct detokenizer *d, const struct tokenizer *tokenizer, bool skip_special)
{
    *d = (struct detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

size_t detokenizer_push(struct detokenizer *d, int32_t id, char *out, size_t cap_bytes)
{
    size_t n_bytes, n = 0;
    const char *bytes = tokenizer_token_bytes(d->tokenizer, id, &n_bytes);
    if (!bytes || (d->skip_special && tokenizer_is_special(d->tokenizer, id)))
        return 0;
    assert(cap_bytes >= 3 * (n_bytes + 4));
    (void)cap_bytes;
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (d->n_held > 0 && !may_follow(d->held, d->n_held, byte)) {
            n += put_replacement(out + n);
            d->n_held = 0;
        }
        if (d->n_held == 0 && length_of(byte) == 0) {
            n += put_replacement(out + n);
            continue;
        }
        assert(d->n_held >= 0 && d->n_held < 4); /* fewer than its lead asks for */
        d->held[d->n_held++] = byte;
        if (d->n_held == length_of(d->held[0])) {
            memcpy(out + n, d->held, (size_t)d->n_held);
            n += (size_t)d->n_held;
            d->n_held = 0;
        }
    }
    return n;
}

size_t detokenizer_flush(struct detokenizer *d, char *out, size_t cap_bytes)
{
    if (d->n_held == 0)
        return 0;
    assert(cap_bytes >= 3);
    (void)cap_bytes;
    d->n_held = 0;
    return put_replacement(out);
}
