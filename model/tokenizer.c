/* A loaded tokenizer turns text into ids exactly as the reference library does. */
#include "model/tokenizer.h"

#include "model/tokenizer_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MAX_BYTES = 1 << 28 }; /* published files reach 35 MB */

static enum status read_file(const char *path, char **out, size_t *len_bytes, struct err *err)
{
    enum status status = STATUS_OK;
    char *text = NULL;
    size_t n = 0, cap = 0;
    FILE *file = fopen(path, "rb");
    if (!file)
        return err_set(err, errno == ENOENT || errno == ENOTDIR ? STATUS_NOT_FOUND : STATUS_IO,
                       "%s: %s", path, strerror(errno));
    for (;;) {
        if (n == cap) {
            cap = 2 * cap + 65536;
            if (cap > FILE_MAX_BYTES) {
                status = err_set(err, STATUS_UNSUPPORTED, "%s: larger than %d bytes", path,
                                 (int)FILE_MAX_BYTES);
                goto out;
            }
            char *grown = realloc(text, cap);
            if (!grown) {
                status = err_set(err, STATUS_NO_MEMORY, "%s: no memory to read it", path);
                goto out;
            }
            text = grown;
        }
        size_t got = fread(text + n, 1, cap - n, file);
        n += got;
        if (got == 0)
            break;
    }
    if (ferror(file)) {
        status = err_set(err, STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
        goto out;
    }
    *out = text;
    *len_bytes = n;
    text = NULL;
out:
    free(text);
    fclose(file);
    return status;
}

enum status tokenizer_load(const char *path, struct tokenizer **out, struct err *err)
{
    char *text = NULL;
    size_t len_bytes = 0;
    enum status status = read_file(path, &text, &len_bytes, err);
    if (status != STATUS_OK)
        return status;
    status = tokenizer_parse(text, len_bytes, path, out, err);
    free(text);
    return status;
}

void tokenizer_free(struct tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    added_tokens_clear(&tokenizer->raw);
    added_tokens_clear(&tokenizer->normalized);
    bpe_clear(&tokenizer->bpe);
    vocab_clear(&tokenizer->vocab);
    free(tokenizer->prefix);
    free(tokenizer->suffix);
    free(tokenizer);
}

int tokenizer_vocab_size(const struct tokenizer *tokenizer)
{
    return tokenizer->vocab.n_ids;
}

static const struct vocab_token *token_of(const struct tokenizer *tokenizer, int32_t id)
{
    if (id < 0 || id >= tokenizer->vocab.n_ids || !tokenizer->vocab.tokens[id].exists)
        return NULL;
    return &tokenizer->vocab.tokens[id];
}

const char *tokenizer_token_bytes(const struct tokenizer *tokenizer, int32_t id, size_t *len_bytes)
{
    const struct vocab_token *token = token_of(tokenizer, id);
    *len_bytes = token ? token->n_bytes : 0;
    return token ? tokenizer->vocab.text + token->bytes_at : NULL;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    const struct vocab_token *token = token_of(tokenizer, id);
    return token && token->is_special;
}

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content)
{
    return vocab_find(&tokenizer->vocab, content, strlen(content));
}

static enum status fail_on_dropped(const struct bpe_work *work, const char *piece, struct err *err)
{
    while (work->bpe->byte_ids[(unsigned char)*piece] >= 0)
        piece++;
    return err_set(
        err, STATUS_INVALID,
        "byte 0x%02X at offset %zu of the text has no token in this vocabulary; leave it "
        "out, or turn strict mode off to have such bytes dropped",
        (unsigned)(unsigned char)*piece, (size_t)(piece - work->text));
}

/* Text in which no added token is left to find. */
static enum status encode_plain(const struct tokenizer *t, struct bpe_work *work, const char *at,
                                const char *end, int flags, struct err *err)
{
    struct pretokenize_scan scan;
    const char *piece;
    size_t n;
    pretokenize_start(&scan, &t->pretokenizer, at, (size_t)(end - at));
    while (pretokenize_next(&scan, &piece, &n)) {
        size_t n_dropped = work->n_dropped;
        enum status status = bpe_encode_piece(work, piece, n, err);
        if (status != STATUS_OK)
            return status;
        if ((flags & TOKENIZER_STRICT) && work->n_dropped > n_dropped)
            return fail_on_dropped(work, piece, err);
    }
    return STATUS_OK;
}

/* Cuts text at the set's tokens; what lies between goes to the second set, then to BPE. A special
 * token that must not be parsed is stepped over, and its characters stay in the text around it. */
static enum status encode_with(const struct tokenizer *t, const struct added_tokens *set,
                               struct bpe_work *work, const char *at, const char *end, int flags,
                               struct err *err)
{
    enum status status = STATUS_OK;
    for (const char *from = at; status == STATUS_OK && at < end;) {
        const char *where = end;
        const struct added_token *token = added_tokens_find(set, from, end, &where);
        if (token) {
            from = where + token->n_content;
            if (token->is_special && !(flags & TOKENIZER_PARSE_SPECIAL))
                continue;
        }
        if (set == &t->raw)
            status = encode_with(t, &t->normalized, work, at, where, flags, err);
        else
            status = encode_plain(t, work, at, where, flags, err);
        if (status == STATUS_OK && token)
            status = bpe_append(work, token->id, err);
        at = token ? from : end;
    }
    return status;
}

static enum status append_all(struct bpe_work *work, const int32_t *ids, size_t n, struct err *err)
{
    enum status status = STATUS_OK;
    for (size_t i = 0; status == STATUS_OK && i < n; i++)
        status = bpe_append(work, ids[i], err);
    return status;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len_bytes,
                             int flags, int32_t **ids, size_t *n_ids, size_t *n_dropped,
                             struct err *err)
{
    const struct tokenizer *t = tokenizer;
    struct bpe_work work;
    bool adds = flags & TOKENIZER_ADD_BOS;
    if (len_bytes > INT32_MAX)
        return err_set(err, STATUS_INVALID,
                       "text of %zu bytes is too long, at most %d can be encoded", len_bytes,
                       INT32_MAX);
    enum status status = bpe_work_init(&work, &t->bpe, &t->vocab, text, len_bytes, err);
    if (status != STATUS_OK)
        return status;
    if (adds)
        status = append_all(&work, t->prefix, t->n_prefix, err);
    if (status == STATUS_OK && len_bytes > 0)
        status = encode_with(t, &t->raw, &work, text, text + len_bytes, flags, err);
    if (status == STATUS_OK && adds)
        status = append_all(&work, t->suffix, t->n_suffix, err);
    if (status == STATUS_OK) {
        *ids = NULL;
        if (work.n_ids > 0) {
            int32_t *fitted = realloc(work.ids, work.n_ids * sizeof *fitted);
            *ids = fitted ? fitted : work.ids;
            work.ids = NULL;
        }
        *n_ids = work.n_ids;
        if (n_dropped)
            *n_dropped = work.n_dropped;
    }
    bpe_work_clear(&work);
    return status;
}
