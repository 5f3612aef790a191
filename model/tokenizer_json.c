/* tokenizer.json becomes a tokenizer when every field in it is one that we reproduce exactly. */
#include "model/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

enum status tokenizer_check_fields(const json_t *object, const char *where,
                                   const char *const *allowed, struct err *err)
{
    const char *name;
    json_t *value;
    if (!json_is_object(object))
        return err_set(err, STATUS_CORRUPT, "%s is not an object", where);
    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        while (allowed[i] && strcmp(allowed[i], name) != 0)
            i++;
        if (!allowed[i])
            return err_set(err, STATUS_UNSUPPORTED,
                           "%s has a field \"%.60s\" that is not supported", where, name);
    }
    return STATUS_OK;
}

enum status tokenizer_get_bool(const json_t *object, const char *where, const char *name,
                               bool missing, bool *out, struct err *err)
{
    const json_t *value = json_object_get(object, name);
    if (value && !json_is_boolean(value))
        return err_set(err, STATUS_CORRUPT, "%s.%s is not true or false", where, name);
    *out = value ? json_is_true(value) : missing;
    return STATUS_OK;
}

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "(no type)";
}

static bool is_set(const json_t *value)
{
    return value && !json_is_null(value);
}

/* ByteLevel as pre-tokenizer, decoder or post-processor: the fields are the same. */
static enum status check_byte_level(const json_t *step, const char *where, struct err *err)
{
    static const char *const fields[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                         NULL};
    return tokenizer_check_fields(step, where, fields, err);
}

static enum status parse_pre_step(struct pretokenizer *pre, bool *has_bytes, const json_t *step,
                                  struct err *err)
{
    static const char *const digits_fields[] = {"type", "individual_digits", NULL};
    const char *where = "pre_tokenizer", *type = type_of(step);
    if (strcmp(type, "Digits") == 0 && !*has_bytes && !pre->split_digits) {
        pre->split_digits = true;
        enum status status = tokenizer_check_fields(step, where, digits_fields, err);
        if (status != STATUS_OK)
            return status;
        return tokenizer_get_bool(step, where, "individual_digits", false, &pre->individual_digits,
                                  err);
    }
    if (strcmp(type, "ByteLevel") == 0 && !*has_bytes) {
        bool add_prefix_space = true;
        *has_bytes = true;
        enum status status = check_byte_level(step, where, err);
        if (status == STATUS_OK)
            status = tokenizer_get_bool(step, where, "use_regex", true, &pre->use_regex, err);
        if (status == STATUS_OK)
            status =
                tokenizer_get_bool(step, where, "add_prefix_space", true, &add_prefix_space, err);
        if (status == STATUS_OK && add_prefix_space)
            return err_set(err, STATUS_UNSUPPORTED,
                           "pre_tokenizer ByteLevel with add_prefix_space is not supported");
        return status;
    }
    return err_set(
        err, STATUS_UNSUPPORTED,
        "pre_tokenizer step \"%.60s\" is not supported here: one Digits (optional), then "
        "one ByteLevel",
        type);
}

enum status tokenizer_parse_pre(struct tokenizer *t, const json_t *pre_tokenizer, struct err *err)
{
    static const char *const fields[] = {"type", "pretokenizers", NULL};
    struct pretokenizer pre = {0};
    bool has_bytes = false;
    enum status status = STATUS_OK;
    if (strcmp(type_of(pre_tokenizer), "Sequence") == 0) {
        size_t i;
        json_t *step;
        status = tokenizer_check_fields(pre_tokenizer, "pre_tokenizer", fields, err);
        json_array_foreach(json_object_get(pre_tokenizer, "pretokenizers"), i, step)
        {
            if (status == STATUS_OK)
                status = parse_pre_step(&pre, &has_bytes, step, err);
        }
    } else if (is_set(pre_tokenizer)) {
        status = parse_pre_step(&pre, &has_bytes, pre_tokenizer, err);
    }
    if (status == STATUS_OK && !has_bytes)
        return err_set(err, STATUS_UNSUPPORTED,
                       "pre_tokenizer has no ByteLevel step: only byte-level BPE is supported");
    if (status == STATUS_OK)
        t->pretokenizer = pre;
    return status;
}

static enum status append_id(int32_t **ids, size_t *n, int32_t id, struct err *err)
{
    int32_t *grown = realloc(*ids, (*n + 1) * sizeof *grown);
    if (!grown)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the post_processor");
    grown[(*n)++] = id;
    *ids = grown;
    return STATUS_OK;
}

/* One {"SpecialToken": {"id": name}}: its ids stand in special_tokens under that name. */
static enum status parse_template_token(struct tokenizer *t, const json_t *processing,
                                        const json_t *token, bool is_suffix, struct err *err)
{
    const char *name = json_string_value(json_object_get(token, "id"));
    const json_t *entry = json_object_get(json_object_get(processing, "special_tokens"), name);
    const json_t *ids = json_object_get(entry, "ids");
    size_t i;
    json_t *value;
    if (!name || !json_is_array(ids))
        return err_set(err, STATUS_CORRUPT, "post_processor: no special_tokens entry for \"%.60s\"",
                       name ? name : "(no id)");
    json_array_foreach((json_t *)ids, i, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= t->vocab.n_ids || !t->vocab.tokens[id].exists)
            return err_set(err, STATUS_CORRUPT,
                           "post_processor: an id of \"%.60s\" is not in the vocabulary", name);
        enum status status = is_suffix ? append_id(&t->suffix, &t->n_suffix, (int32_t)id, err)
                                       : append_id(&t->prefix, &t->n_prefix, (int32_t)id, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status parse_template(struct tokenizer *t, const json_t *processing, struct err *err)
{
    static const char *const fields[] = {"type", "single", "pair", "special_tokens", NULL};
    enum status status = tokenizer_check_fields(processing, "post_processor", fields, err);
    const json_t *single = json_object_get(processing, "single");
    bool seen_text = false;
    size_t i;
    json_t *part;
    if (status != STATUS_OK)
        return status;
    json_array_foreach((json_t *)single, i, part)
    {
        const json_t *token = json_object_get(part, "SpecialToken");
        const char *sequence =
            json_string_value(json_object_get(json_object_get(part, "Sequence"), "id"));
        if (token)
            status = parse_template_token(t, processing, token, seen_text, err);
        else if (sequence && strcmp(sequence, "A") == 0 && !seen_text)
            seen_text = true;
        else
            return err_set(err, STATUS_CORRUPT, "post_processor.single[%zu] is not understood", i);
        if (status != STATUS_OK)
            return status;
    }
    if (!seen_text)
        return err_set(err, STATUS_CORRUPT, "post_processor.single leaves the text out");
    return STATUS_OK;
}

static enum status parse_post_step(struct tokenizer *t, const json_t *step, bool *has_template,
                                   struct err *err)
{
    const char *type = type_of(step);
    /* ByteLevel only trims offsets, and we give none. */
    if (strcmp(type, "ByteLevel") == 0)
        return check_byte_level(step, "post_processor", err);
    if (strcmp(type, "TemplateProcessing") == 0 && !*has_template) {
        *has_template = true;
        return parse_template(t, step, err);
    }
    return err_set(err, STATUS_UNSUPPORTED, "post_processor step \"%.60s\" is not supported here",
                   type);
}

enum status tokenizer_parse_post(struct tokenizer *t, const json_t *post_processor, struct err *err)
{
    static const char *const fields[] = {"type", "processors", NULL};
    bool has_template = false;
    if (!is_set(post_processor))
        return STATUS_OK;
    if (strcmp(type_of(post_processor), "Sequence") != 0)
        return parse_post_step(t, post_processor, &has_template, err);
    enum status status = tokenizer_check_fields(post_processor, "post_processor", fields, err);
    size_t i;
    json_t *step;
    json_array_foreach(json_object_get(post_processor, "processors"), i, step)
    {
        if (status == STATUS_OK)
            status = parse_post_step(t, step, &has_template, err);
    }
    return status;
}

static enum status check_top(const json_t *root, struct err *err)
{
    static const char *const fields[] = {
        "version",       "truncation",     "padding", "added_tokens", "normalizer",
        "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    static const char *const must_be_null[] = {"normalizer", "truncation", "padding"};
    enum status status = tokenizer_check_fields(root, "the file", fields, err);
    if (status != STATUS_OK)
        return status;
    for (int i = 0; i < 3; i++)
        if (is_set(json_object_get(root, must_be_null[i])))
            return err_set(err, STATUS_UNSUPPORTED, "%s \"%.60s\" is not supported, only null",
                           must_be_null[i], type_of(json_object_get(root, must_be_null[i])));
    const json_t *decoder = json_object_get(root, "decoder");
    if (is_set(decoder) && strcmp(type_of(decoder), "ByteLevel") != 0)
        return err_set(err, STATUS_UNSUPPORTED,
                       "decoder \"%.60s\" is not supported, only ByteLevel", type_of(decoder));
    return is_set(decoder) ? check_byte_level(decoder, "decoder", err) : STATUS_OK;
}

enum status tokenizer_parse(const char *json, size_t len_bytes, const char *origin,
                            struct tokenizer **out, struct err *err)
{
    enum status status;
    json_error_t why;
    json_t *root = NULL;
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a tokenizer", origin);
    root = json_loadb(json, len_bytes, JSON_REJECT_DUPLICATES, &why);
    /* The parser leaves the text empty when an allocation failed. */
    if (!root && (why.text[0] == '\0' || json_error_code(&why) == json_error_out_of_memory)) {
        status =
            err_set(err, STATUS_NO_MEMORY, "%s: no memory to parse %zu bytes", origin, len_bytes);
        goto out;
    }
    if (!root) {
        status = err_set(err, STATUS_CORRUPT, "%s: not JSON: %s (line %d, column %d)", origin,
                         why.text, why.line, why.column);
        goto out;
    }
    status = check_top(root, err);
    if (status == STATUS_OK)
        status = tokenizer_parse_model(t, json_object_get(root, "model"),
                                       json_object_get(root, "added_tokens"), err);
    if (status == STATUS_OK)
        status = tokenizer_parse_pre(t, json_object_get(root, "pre_tokenizer"), err);
    if (status == STATUS_OK)
        status = tokenizer_parse_post(t, json_object_get(root, "post_processor"), err);
    if (status != STATUS_OK) {
        err_wrap(err, "%s", origin);
        goto out;
    }
    *out = t;
    t = NULL;
out:
    json_decref(root);
    tokenizer_free(t);
    return status;
}
