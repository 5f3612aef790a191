/* The vocabulary, merges and added tokens of tokenizer.json, or an error that names what is wrong.
 */
#include "model/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

/* Prints at most 60 bytes of a string from the file. */
#define SHOWN(n) ((int)((n) < 60 ? (n) : 60))

static enum status read_id(const json_t *value, const char *what, size_t n_what, int32_t *id,
                           struct err *err)
{
    if (!json_is_integer(value))
        return err_set(err, STATUS_CORRUPT, "the id of \"%.*s\" is not an integer", SHOWN(n_what),
                       what);
    json_int_t v = json_integer_value(value);
    if (v < 0 || v >= VOCAB_MAX_IDS)
        return err_set(err, STATUS_CORRUPT,
                       "the id of \"%.*s\" is %" JSON_INTEGER_FORMAT ", outside 0..%d",
                       SHOWN(n_what), what, v, VOCAB_MAX_IDS - 1);
    *id = (int32_t)v;
    return STATUS_OK;
}

/* An added token as the file has it. */
static enum status read_added(const json_t *value, struct added_token *token, bool *normalized,
                              struct err *err)
{
    static const char *const fields[] = {"id",     "content",    "single_word", "lstrip",
                                         "rstrip", "normalized", "special",     NULL};
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    enum status status = tokenizer_check_fields(value, "added_tokens[]", fields, err);
    if (status != STATUS_OK)
        return status;
    const json_t *content = json_object_get(value, "content");
    if (!json_is_string(content) || json_string_length(content) == 0)
        return err_set(err, STATUS_CORRUPT, "an added token has no content");
    token->content = json_string_value(content);
    token->n_content = json_string_length(content);
    status =
        read_id(json_object_get(value, "id"), token->content, token->n_content, &token->id, err);
    for (size_t i = 0; status == STATUS_OK && i < 3; i++) {
        bool is_set = false;
        status = tokenizer_get_bool(value, "added_tokens[]", unsupported[i], false, &is_set, err);
        if (status == STATUS_OK && is_set)
            return err_set(err, STATUS_UNSUPPORTED,
                           "added token \"%.*s\" has %s = true, which is not supported",
                           SHOWN(token->n_content), token->content, unsupported[i]);
    }
    if (status == STATUS_OK)
        status =
            tokenizer_get_bool(value, "added_tokens[]", "special", false, &token->is_special, err);
    if (status == STATUS_OK)
        status = tokenizer_get_bool(value, "added_tokens[]", "normalized", !token->is_special,
                                    normalized, err);
    return status;
}

/* Highest id of both lists, so that the vocabulary is sized once. */
static enum status find_max_id(const json_t *vocab, const json_t *added, int32_t *max_id,
                               struct err *err)
{
    const char *content;
    size_t i;
    json_t *value;
    struct added_token token = {0};
    bool normalized = false;
    int32_t id = -1, max = -1;
    enum status status;
    json_object_foreach((json_t *)vocab, content, value)
    {
        status = read_id(value, content, strlen(content), &id, err);
        if (status != STATUS_OK)
            return status;
        max = id > max ? id : max;
    }
    json_array_foreach((json_t *)added, i, value)
    {
        status = read_added(value, &token, &normalized, err);
        if (status != STATUS_OK)
            return status;
        max = token.id > max ? token.id : max;
    }
    *max_id = max;
    return STATUS_OK;
}

static enum status fill_vocab(struct tokenizer *t, const json_t *vocab, const json_t *added,
                              struct err *err)
{
    const char *content;
    size_t i;
    json_t *value;
    struct added_token token = {0};
    bool normalized = false;
    json_object_foreach((json_t *)vocab, content, value)
    {
        enum status status =
            vocab_add(&t->vocab, content, strlen(content), (int32_t)json_integer_value(value), err);
        if (status != STATUS_OK)
            return status;
    }
    json_array_foreach((json_t *)added, i, value)
    {
        enum status status = read_added(value, &token, &normalized, err);
        if (status == STATUS_OK)
            status = vocab_add(&t->vocab, token.content, token.n_content, token.id, err);
        if (status != STATUS_OK)
            return status;
        t->vocab.tokens[token.id].is_special = token.is_special;
    }
    return STATUS_OK;
}

/* After the vocabulary is complete, because the matchers borrow its text. */
static enum status fill_added(struct tokenizer *t, const json_t *added, struct err *err)
{
    size_t i;
    json_t *value;
    json_array_foreach((json_t *)added, i, value)
    {
        struct added_token token = {0};
        bool normalized = false;
        enum status status = read_added(value, &token, &normalized, err);
        if (status == STATUS_OK) {
            token.content = t->vocab.text + t->vocab.tokens[token.id].content_at;
            status = added_tokens_add(normalized ? &t->normalized : &t->raw, token, err);
        }
        if (status != STATUS_OK)
            return status;
    }
    added_tokens_sort(&t->raw);
    added_tokens_sort(&t->normalized);
    return STATUS_OK;
}

/* "left right" or ["left", "right"]. */
static enum status split_merge(const json_t *value, size_t index, const char *part[2], size_t n[2],
                               struct err *err)
{
    if (json_is_string(value)) {
        part[0] = json_string_value(value);
        size_t len = json_string_length(value);
        const char *space = memchr(part[0], ' ', len);
        if (space && !memchr(space + 1, ' ', len - (size_t)(space + 1 - part[0]))) {
            n[0] = (size_t)(space - part[0]);
            part[1] = space + 1;
            n[1] = len - n[0] - 1;
            return STATUS_OK;
        }
    } else if (json_is_array(value) && json_array_size(value) == 2 &&
               json_is_string(json_array_get(value, 0)) &&
               json_is_string(json_array_get(value, 1))) {
        for (size_t k = 0; k < 2; k++) {
            part[k] = json_string_value(json_array_get(value, k));
            n[k] = json_string_length(json_array_get(value, k));
        }
        return STATUS_OK;
    }
    return err_set(err, STATUS_CORRUPT,
                   "model.merges[%zu] is neither \"left right\" nor [\"left\", \"right\"]", index);
}

static enum status add_merge(struct tokenizer *t, const json_t *value, size_t index,
                             struct err *err)
{
    const char *part[2];
    size_t n[2];
    int32_t id[3];
    char whole[VOCAB_MAX_CONTENT_BYTES];
    enum status status = split_merge(value, index, part, n, err);
    if (status != STATUS_OK)
        return status;
    for (int k = 0; k < 2; k++) {
        id[k] = vocab_find(&t->vocab, part[k], n[k]);
        if (id[k] < 0)
            return err_set(err, STATUS_CORRUPT,
                           "model.merges[%zu]: \"%.*s\" is not in the vocabulary", index,
                           SHOWN(n[k]), part[k]);
    }
    id[2] = -1;
    if (n[0] + n[1] <= sizeof whole) {
        memcpy(whole, part[0], n[0]);
        memcpy(whole + n[0], part[1], n[1]);
        id[2] = vocab_find(&t->vocab, whole, n[0] + n[1]);
    }
    if (id[2] < 0)
        return err_set(
            err, STATUS_CORRUPT,
            "model.merges[%zu]: \"%.*s\" and \"%.*s\" merge into a token that is not in the "
            "vocabulary",
            index, SHOWN(n[0]), part[0], SHOWN(n[1]), part[1]);
    if (t->vocab.tokens[id[2]].is_special)
        return err_set(
            err, STATUS_UNSUPPORTED,
            "model.merges[%zu] makes the special token \"%.*s\": plain text could write it", index,
            SHOWN(n[0] + n[1]), whole);
    bpe_add_merge(&t->bpe, id[0], id[1], (uint32_t)index, id[2]);
    return STATUS_OK;
}

static enum status fill_merges(struct tokenizer *t, const json_t *merges, struct err *err)
{
    enum status status = STATUS_OK;
    size_t i;
    json_t *value;
    json_array_foreach((json_t *)merges, i, value)
    {
        /* Old files open the list with the first line of merges.txt. */
        if (json_is_string(value) && strncmp(json_string_value(value), "#version", 8) == 0)
            continue;
        status = add_merge(t, value, i, err);
        if (status != STATUS_OK)
            break;
    }
    return status;
}

static enum status fill_bytes(struct tokenizer *t, int *n_missing, struct err *err)
{
    for (int b = 0; b < 256; b++) {
        char symbol[2];
        size_t n = vocab_byte_symbol((unsigned char)b, symbol);
        int32_t id = vocab_find(&t->vocab, symbol, n);
        if (id >= 0 && t->vocab.tokens[id].is_special)
            return err_set(
                err, STATUS_UNSUPPORTED,
                "special token %d is the byte symbol \"%.*s\": plain text could write it", (int)id,
                (int)n, symbol);
        t->bpe.byte_ids[b] = id;
        *n_missing += id < 0;
    }
    return STATUS_OK;
}

/* Options of BPE that change nothing are accepted, all others named. */
static enum status check_options(const json_t *model, int n_missing, struct err *err)
{
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0))
        return err_set(err, STATUS_UNSUPPORTED,
                       "model.dropout is set; encoding must not be random");
    for (int i = 0; i < 2; i++) {
        const json_t *affix = json_object_get(model, affixes[i]);
        if (affix && !json_is_null(affix) &&
            !(json_is_string(affix) && json_string_length(affix) == 0))
            return err_set(err, STATUS_UNSUPPORTED, "model.%s is set, which is not supported",
                           affixes[i]);
    }
    bool byte_fallback = false;
    enum status status =
        tokenizer_get_bool(model, "model", "byte_fallback", false, &byte_fallback, err);
    if (status != STATUS_OK)
        return status;
    /* Both speak only when a byte has no symbol of its own. */
    const json_t *unk = json_object_get(model, "unk_token");
    if (n_missing > 0 && byte_fallback)
        return err_set(err, STATUS_UNSUPPORTED,
                       "model.byte_fallback with %d of 256 byte symbols missing is not supported",
                       n_missing);
    if (n_missing > 0 && unk && !json_is_null(unk))
        return err_set(err, STATUS_UNSUPPORTED,
                       "model.unk_token with %d of 256 byte symbols missing is not supported",
                       n_missing);
    return STATUS_OK;
}

enum status tokenizer_parse_model(struct tokenizer *t, const json_t *model,
                                  const json_t *added_tokens, struct err *err)
{
    static const char *const fields[] = {"type",
                                         "dropout",
                                         "unk_token",
                                         "continuing_subword_prefix",
                                         "end_of_word_suffix",
                                         "fuse_unk",
                                         "byte_fallback",
                                         "ignore_merges",
                                         "vocab",
                                         "merges",
                                         NULL};
    /* The type goes first: another model's fields would only confuse the message. Old files have
     * none. */
    const json_t *type = json_object_get(model, "type");
    const char *type_name = json_string_value(type);
    if (type && (!type_name || strcmp(type_name, "BPE") != 0))
        return err_set(err, STATUS_UNSUPPORTED, "model.type \"%.60s\" is not supported, only BPE",
                       type_name ? type_name : "(not a string)");
    enum status status = tokenizer_check_fields(model, "model", fields, err);
    if (status != STATUS_OK)
        return status;
    const json_t *vocab = json_object_get(model, "vocab"),
                 *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab) || !json_is_array(merges))
        return err_set(err, STATUS_CORRUPT, "model.%s is missing or has the wrong type",
                       json_is_object(vocab) ? "merges" : "vocab");
    if (added_tokens && !json_is_null(added_tokens) && !json_is_array(added_tokens))
        return err_set(err, STATUS_CORRUPT, "added_tokens is not a list");

    int32_t max_id = -1;
    int n_missing = 0;
    status = find_max_id(vocab, added_tokens, &max_id, err);
    if (status == STATUS_OK)
        status = vocab_init(&t->vocab, max_id + 1,
                            json_object_size(vocab) + json_array_size(added_tokens), err);
    if (status == STATUS_OK)
        status = fill_vocab(t, vocab, added_tokens, err);
    if (status == STATUS_OK)
        status = fill_added(t, added_tokens, err);
    if (status == STATUS_OK)
        status = bpe_init(&t->bpe, json_array_size(merges), err);
    if (status == STATUS_OK)
        status = fill_bytes(t, &n_missing, err);
    if (status == STATUS_OK)
        status = check_options(model, n_missing, err);
    if (status == STATUS_OK)
        status =
            tokenizer_get_bool(model, "model", "ignore_merges", false, &t->bpe.ignore_merges, err);
    if (status == STATUS_OK)
        status = fill_merges(t, merges, err);
    return status;
}
