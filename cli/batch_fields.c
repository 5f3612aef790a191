/* Reads the fields of a request body from one table of names, types and ranges. */
#include "cli/batch_line.h"
#include "model/json_input.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum field_type { FIELD_INT, FIELD_NUMBER, FIELD_BOOL, FIELD_STRING_IGNORED, FIELD_BOOL_IGNORED };

struct field_spec {
    const char *name;
    enum field_type type;
    size_t offset; /* in struct batch_fields */
    double min, max;
    enum batch_field bit;
};

#define AT(member) offsetof(struct batch_fields, member)

static const struct field_spec fields[] = {
    {"max_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX, BATCH_MAX_TOKENS},
    {"min_tokens", FIELD_INT, AT(min_tokens), 0, INT32_MAX, BATCH_MIN_TOKENS},
    {"temperature", FIELD_NUMBER, AT(temperature), 0, 100, BATCH_TEMPERATURE},
    /* -1 is how vLLM's clients say off */
    {"top_k", FIELD_INT, AT(top_k), -1, INT32_MAX, BATCH_TOP_K},
    {"top_p", FIELD_NUMBER, AT(top_p), 1e-9, 1, BATCH_TOP_P},
    {"min_p", FIELD_NUMBER, AT(min_p), 0, 1, BATCH_MIN_P},
    {"repetition_penalty", FIELD_NUMBER, AT(repetition_penalty), 1e-3, 100,
     BATCH_REPETITION_PENALTY},
    {"presence_penalty", FIELD_NUMBER, AT(presence_penalty), -2, 2, BATCH_PRESENCE_PENALTY},
    {"frequency_penalty", FIELD_NUMBER, AT(frequency_penalty), -2, 2, BATCH_FREQUENCY_PENALTY},
    {"seed", FIELD_INT, AT(seed), -9.3e18, 9.3e18, BATCH_SEED},
    {"n", FIELD_INT, AT(n), 1, 128, BATCH_N},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos), 0, 0, BATCH_IGNORE_EOS},
    {"include_stop_str_in_output", FIELD_BOOL, AT(include_stop), 0, 0, BATCH_OTHER},
    {"skip_special_tokens", FIELD_BOOL, AT(skip_special), 0, 0, BATCH_OTHER},
    {"return_token_ids", FIELD_BOOL, AT(return_token_ids), 0, 0, BATCH_OTHER},
    {"model", FIELD_STRING_IGNORED, 0, 0, 0, BATCH_OTHER},
    {"user", FIELD_STRING_IGNORED, 0, 0, 0, BATCH_OTHER},
    {"stream", FIELD_BOOL_IGNORED, 0, 0, 0, BATCH_OTHER},
};

static const struct field_spec loops_fields[] = {
    {"max", FIELD_INT, AT(max_loops), 1, SEQUENCE_MAX_LOOPS, BATCH_LOOPS_MAX},
    {"min", FIELD_INT, AT(min_loops), 1, SEQUENCE_MAX_LOOPS, BATCH_LOOPS_MIN},
    {"exit_threshold", FIELD_NUMBER, AT(exit_threshold), 1e-9, 1, BATCH_EXIT_THRESHOLD},
};

enum status batch_field_error(const char *name, const char *expected, const json_t *found,
                              struct err *err)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    return err_set(err, STATUS_INVALID, "%s: expected %s, found %s", name, expected,
                   json_input_show(found, shown));
}

/* NULL where the field is absent or null. */
static const json_t *field_of(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

static enum status store_field(const struct field_spec *spec, const char *name, const json_t *value,
                               struct batch_fields *out, struct err *err)
{
    void *target = (char *)out + spec->offset;
    char expected[96];
    switch (spec->type) {
    case FIELD_STRING_IGNORED:
        return json_is_string(value) ? STATUS_OK : batch_field_error(name, "a string", value, err);
    case FIELD_BOOL_IGNORED:
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return batch_field_error(name, "true or false", value, err);
        if (spec->type == FIELD_BOOL)
            *(bool *)target = json_is_true(value);
        break;
    case FIELD_INT:
    case FIELD_NUMBER: {
        bool is_whole = spec->type == FIELD_INT;
        double number = json_number_value(value);
        if (!(is_whole ? json_is_integer(value) : json_is_number(value)) || number < spec->min ||
            number > spec->max) {
            if (spec->max > 1e18)
                snprintf(expected, sizeof expected, "a whole number");
            else
                snprintf(expected, sizeof expected, "a %snumber from %.10g to %.10g",
                         is_whole ? "whole " : "", spec->min, spec->max);
            return batch_field_error(name, expected, value, err);
        }
        if (is_whole)
            *(int64_t *)target = json_integer_value(value);
        else
            *(double *)target = number;
        break;
    }
    }
    out->given |= spec->bit;
    return STATUS_OK;
}

static enum status parse_loops(const json_t *loops, struct batch_fields *out, struct err *err)
{
    if (loops == NULL)
        return STATUS_OK;
    if (!json_is_object(loops))
        return batch_field_error("loops", "an object such as {\"mode\": \"exact\"}", loops, err);
    const json_t *mode = field_of(loops, "mode");
    if (mode != NULL) {
        const char *name = json_is_string(mode) ? json_string_value(mode) : "";
        if (strcmp(name, "exact") != 0 && strcmp(name, "full") != 0)
            return batch_field_error("loops.mode", "\"full\" or \"exact\"", mode, err);
        out->exit_mode = strcmp(name, "full") == 0 ? EXIT_MODE_FULL : EXIT_MODE_EXACT;
        out->given |= BATCH_LOOPS_MODE;
    }
    for (size_t i = 0; i < sizeof loops_fields / sizeof loops_fields[0]; i++) {
        const json_t *value = field_of(loops, loops_fields[i].name);
        char name[32];
        snprintf(name, sizeof name, "loops.%s", loops_fields[i].name);
        if (value != NULL) {
            enum status status = store_field(&loops_fields[i], name, value, out, err);
            if (status != STATUS_OK)
                return status;
        }
    }
    return STATUS_OK;
}

static enum status add_stop(const json_t *stop, struct batch_fields *out, struct err *err)
{
    static const char expected[] = "a string of 1 to 256 bytes, or a list of at most 16 of them";
    size_t n = json_string_length(stop);
    if (!json_is_string(stop) || n == 0 || n > BATCH_MAX_STOP_BYTES ||
        out->n_stops == BATCH_MAX_STOPS)
        return batch_field_error("stop", expected, stop, err);
    out->stops[out->n_stops++] = json_string_value(stop);
    return STATUS_OK;
}

static enum status parse_stop(const json_t *stop, struct batch_fields *out, struct err *err)
{
    if (stop == NULL)
        return STATUS_OK;
    out->given |= BATCH_STOP;
    if (!json_is_array(stop))
        return add_stop(stop, out, err);
    for (size_t i = 0; i < json_array_size(stop); i++) {
        enum status status = add_stop(json_array_get(stop, i), out, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status batch_field_ids(const char *name, const json_t *array, int32_t *out, struct err *err)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *value = json_array_get(array, i);
        json_int_t id = json_integer_value(value);
        char place[64];
        snprintf(place, sizeof place, "%s[%zu]", name, i);
        if (!json_is_integer(value) || id < 0 || id > INT32_MAX)
            return batch_field_error(place, "a token id", value, err);
        out[i] = (int32_t)id;
    }
    return STATUS_OK;
}

static enum status parse_stop_ids(const json_t *ids, struct batch_fields *out, struct err *err)
{
    if (ids == NULL)
        return STATUS_OK;
    if (!json_is_array(ids) || json_array_size(ids) > SEQUENCE_MAX_STOP_IDS)
        return batch_field_error("stop_token_ids", "a list of at most 32 token ids", ids, err);
    out->n_stop_ids = (uint32_t)json_array_size(ids);
    return batch_field_ids("stop_token_ids", ids, out->stop_ids, err);
}

static enum status parse_logit_bias(const json_t *bias, struct batch_fields *out, struct err *err)
{
    if (bias == NULL)
        return STATUS_OK;
    if (!json_is_object(bias) || json_object_size(bias) > SEQUENCE_MAX_LOGIT_BIAS)
        return batch_field_error(
            "logit_bias", "an object of at most 300 entries \"token id\": number", bias, err);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)bias, key, value)
    {
        char *end, name[64];
        errno = 0;
        long id = strtol(key, &end, 10);
        if (end == key || *end != '\0' || errno != 0 || id < 0 || id > INT32_MAX) {
            json_t *shown = json_string(key);
            batch_field_error("logit_bias", "token ids as keys", shown, err);
            json_decref(shown);
            return STATUS_INVALID;
        }
        snprintf(name, sizeof name, "logit_bias.%ld", id);
        double number = json_number_value(value);
        if (!json_is_number(value) || number < -100 || number > 100)
            return batch_field_error(name, "a number from -100 to 100", value, err);
        out->bias_ids[out->n_biases] = (int32_t)id;
        out->biases[out->n_biases++] = (float)number;
    }
    return STATUS_OK;
}

/* Completions: logprobs is how many; chat: logprobs is whether, top_logprobs how many. */
static enum status parse_logprobs(const json_t *body, bool is_chat, struct batch_fields *out,
                                  struct err *err)
{
    const json_t *logprobs = field_of(body, "logprobs");
    const json_t *top = is_chat ? field_of(body, "top_logprobs") : NULL;
    const json_t *count = is_chat ? top : logprobs;
    if (is_chat && logprobs != NULL && !json_is_boolean(logprobs))
        return batch_field_error("logprobs", "true or false", logprobs, err);
    if (count != NULL) {
        json_int_t n = json_integer_value(count);
        if (!json_is_integer(count) || n < 0 || n > SEQUENCE_MAX_LOGPROBS)
            return batch_field_error(is_chat ? "top_logprobs" : "logprobs",
                                     "a whole number from 0 to 20", count, err);
        out->top_logprobs = n;
    }
    if (is_chat && top != NULL && !json_is_true(logprobs))
        return batch_field_error("top_logprobs", "\"logprobs\": true beside it", logprobs, err);
    if (logprobs != NULL) {
        out->given |= BATCH_LOGPROBS;
        out->has_logprobs = is_chat ? json_is_true(logprobs) : true;
    }
    return STATUS_OK;
}

static enum status parse_chat_only(const json_t *body, struct batch_fields *out, struct err *err)
{
    static const struct field_spec limit = {
        "max_completion_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX, BATCH_MAX_TOKENS};
    static const struct field_spec thinking = {
        "enable_thinking", FIELD_BOOL, AT(enable_thinking), 0, 0, BATCH_OTHER};
    const json_t *value = field_of(body, limit.name);
    enum status status = STATUS_OK;
    if (value != NULL)
        status = store_field(&limit, limit.name, value, out, err);
    const json_t *kwargs = field_of(body, "chat_template_kwargs");
    if (status == STATUS_OK && kwargs != NULL && !json_is_object(kwargs))
        return batch_field_error("chat_template_kwargs", "an object", kwargs, err);
    value = field_of(kwargs, thinking.name);
    if (status == STATUS_OK && value != NULL)
        status = store_field(&thinking, "chat_template_kwargs.enable_thinking", value, out, err);
    return status;
}

static enum status parse_text_only(const json_t *body, struct batch_fields *out, struct err *err)
{
    static const struct field_spec echo = {"echo", FIELD_BOOL, AT(echo), 0, 0, BATCH_OTHER};
    const json_t *value = field_of(body, echo.name);
    if (value == NULL)
        return STATUS_OK;
    enum status status = store_field(&echo, echo.name, value, out, err);
    /* Log-probabilities of the prompt's own tokens are what such a request is after. */
    if (status == STATUS_OK && out->echo && out->has_logprobs)
        return batch_field_error("echo",
                                 "no \"logprobs\" beside it (those of prompt tokens are "
                                 "not computed)",
                                 value, err);
    return status;
}

enum status batch_fields_parse(const json_t *body, bool is_chat, struct batch_fields *out,
                               struct err *err)
{
    *out = (struct batch_fields){.n = 1, .skip_special = true};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const json_t *value = field_of(body, fields[i].name);
        if (value == NULL)
            continue;
        enum status status = store_field(&fields[i], fields[i].name, value, out, err);
        if (status != STATUS_OK)
            return status;
    }
    enum status status = parse_loops(field_of(body, "loops"), out, err);
    if (status == STATUS_OK)
        status = parse_stop(field_of(body, "stop"), out, err);
    if (status == STATUS_OK)
        status = parse_stop_ids(field_of(body, "stop_token_ids"), out, err);
    if (status == STATUS_OK)
        status = parse_logit_bias(field_of(body, "logit_bias"), out, err);
    if (status == STATUS_OK)
        status = parse_logprobs(body, is_chat, out, err);
    if (status == STATUS_OK)
        status = is_chat ? parse_chat_only(body, out, err) : parse_text_only(body, out, err);
    return status;
}
