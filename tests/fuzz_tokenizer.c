/* Fuzz: tokenizer.json from the input, a tokenizer built from the input, and round trips of text.
 */
#include "tests/tokenizer_fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_INPUT_BYTES = 1 << 16, MAX_MERGES = 64 };

/* Encodes with every flag: ids exist, plain text writes no special token, strict mode drops
 * nothing. */
static void exercise(const struct tokenizer *tokenizer, const char *text, size_t len)
{
    static const int flags[] = {0, TOKENIZER_PARSE_SPECIAL, TOKENIZER_ADD_BOS, TOKENIZER_STRICT};
    for (int k = 0; k < 4; k++) {
        int32_t *ids = NULL;
        size_t n = 0, n_dropped = 0, n_bytes;
        char out[DETOKENIZER_MAX_BYTES];
        struct detokenizer d;
        struct err err = {0};
        detokenizer_init(&d, tokenizer, k & 1);
        if (tokenizer_encode(tokenizer, text, len, flags[k], &ids, &n, &n_dropped, &err) !=
            STATUS_OK) {
            if (flags[k] != TOKENIZER_STRICT || err.message[0] == '\0')
                abort();
            continue;
        }
        for (size_t i = 0; i < n; i++) {
            if (!tokenizer_token_bytes(tokenizer, ids[i], &n_bytes))
                abort();
            if (flags[k] == 0 && tokenizer_is_special(tokenizer, ids[i]))
                abort();
            if (detokenizer_push(&d, ids[i], out, sizeof out) > 3 * (n_bytes + 4))
                abort();
        }
        detokenizer_flush(&d, out, sizeof out);
        if (flags[k] == TOKENIZER_STRICT && n_dropped > 0)
            abort();
        free(ids);
    }
}

static void check_round_trip(const struct tokenizer *tokenizer, const char *text, size_t len)
{
    int32_t *ids = NULL;
    size_t n = 0, n_dropped = 1, at = 0, n_bytes;
    if (tokenizer_encode(tokenizer, text, len, 0, &ids, &n, &n_dropped, NULL) != STATUS_OK ||
        n_dropped != 0)
        abort();
    for (size_t i = 0; i < n; i++, at += n_bytes) {
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], &n_bytes);
        if (at + n_bytes > len || memcmp(text + at, bytes, n_bytes) != 0)
            abort();
    }
    if (at != len)
        abort();
    free(ids);
}

static void parse_and_use(const char *json, size_t len)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    if (tokenizer_parse(json, len, "fuzz", &tokenizer, &err) == STATUS_OK) {
        exercise(tokenizer, json, len < 512 ? len : 512);
        exercise(tokenizer, "a 12 b <|im_end|>", 17);
    } else if (tokenizer || err.message[0] == '\0') {
        abort();
    }
    tokenizer_free(tokenizer);
}

/* Merges of letters that the input chooses, each of two pieces that exist already; then the rest of
 * the input is text. */
static void build_and_use(const uint8_t *data, size_t size)
{
    char pieces[8 + MAX_MERGES][40], rules[MAX_MERGES][84];
    const char *merges[MAX_MERGES + 1] = {NULL};
    size_t n_pieces = 8, n_merges = 0, at = 2;
    for (int i = 0; i < 8; i++)
        snprintf(pieces[i], sizeof pieces[i], "%c", "abcdest'"[i]);
    for (size_t k = size > 0 ? data[0] % MAX_MERGES : 0; k > 0 && at + 2 <= size; k--, at += 2) {
        const char *left = pieces[data[at] % n_pieces], *right = pieces[data[at + 1] % n_pieces];
        char whole[80];
        snprintf(whole, sizeof whole, "%s%s", left, right);
        bool known = strlen(whole) >= sizeof pieces[0];
        for (size_t i = 0; i < n_pieces; i++)
            known = known || strcmp(pieces[i], whole) == 0;
        if (known)
            continue;
        snprintf(rules[n_merges], sizeof rules[0], "%s %s", left, right);
        merges[n_merges] = rules[n_merges];
        n_merges++;
        memcpy(pieces[n_pieces++], whole, strlen(whole) + 1);
    }
    int options = size > 1 ? data[1] : 0;
    struct fixture f = {.merges = merges,
                        .merges_as_pairs = options & 1,
                        .pre = options & 2 ? FIXTURE_PRE_WHOLE : FIXTURE_PRE_SMOL,
                        .missing = options & 4 ? "~b\xC3" : NULL,
                        .model_options = options & 8 ? "\"ignore_merges\":true," : NULL,
                        .more_added = options & 16 ? ",{\"id\":900,\"content\":\"ab\"}" : NULL};
    /* A merge may name a missing byte, or the added token a merged one: then the file is refused.
     */
    struct tokenizer *tokenizer = NULL;
    if (fixture_parse(&f, &tokenizer, NULL) == STATUS_OK) {
        const char *text = (const char *)data + (at < size ? at : size);
        exercise(tokenizer, text, size - (at < size ? at : size));
        if (!f.missing && !f.more_added)
            check_round_trip(tokenizer, text, size - (at < size ? at : size));
    }
    tokenizer_free(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0 || size > MAX_INPUT_BYTES)
        return 0;
    if (data[0] == '{')
        parse_and_use((const char *)data, size);
    else
        build_and_use(data, size);
    return 0;
}
