/* Reads the fields of a request body from one table of names, types and ranges. */
#include "coordinator/body_parts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum field_type { FIELD_INT, FIELD_NUMBER, FIELD_BOOL, FIELD_STRING, FIELD_STRING_IGNORED };

struct field_spec {
    const char *name;
    enum field_type type;
    size_t offset; /* in struct body_fields */
    double min, max;
    enum body_field bit;
};

#define AT(member) offsetof(struct body_fields, member)

static const struct field_spec fields[] = {
    {"max_tokens", FIELD_INT, AT(max_tokens), 0, INT32_MAX, BODY_MAX_TOKENS},
    {"min_tokens", FIELD_INT, AT(min_tokens), 0, INT32_MAX, BODY_MIN_TOKENS},
    {"temperature", FIELD_NUMBER, AT(temperature), 0, 100, BODY_TEMPERATURE},
    /* -1 is how vLLM's clients say off */
    {"top_k", FIELD_INT, AT(top_k), -1, INT32_MAX, BODY_TOP_K},
    {"top_p", FIELD_NUMBER, AT(top_p), 1e-9, 1, BODY_TOP_P},
    {"min_p", FIELD_NUMBER, AT(min_p), 0, 1, BODY_MIN_P},
    {"repetition_penalty", FIELD_NUMBER, AT(repetition_penalty), 1e-3, 100,
     BODY_REPETITION_PENALTY},
    {"presence_penalty", FIELD_NUMBER, AT(presence_penalty), -2, 2, BODY_PRESENCE_PENALTY},
    {"frequency_penalty", FIELD_NUMBER, AT(frequency_penalty), -2, 2, BODY_FREQUENCY_PENALTY},
    {"seed", FIELD_INT, AT(seed), -9.3e18, 9.3e18, BODY_SEED},
    {"n", FIELD_INT, AT(n), 1, BODY_MAX_N, BODY_N},
    {"ignore_eos", FIELD_BOOL, AT(ignore_eos), 0, 0, BODY_IGNORE_EOS},
    {"include_stop_str_in_output", FIELD_BOOL, AT(include_stop), 0, 0, BODY_OTHER},
    {"skip_special_tokens", FIELD_BOOL, AT(skip_special), 0, 0, BODY_OTHER},
    {"return_token_ids", FIELD_BOOL, AT(return_token_ids), 0, 0, BODY_OTHER},
    {"model", FIELD_STRING, AT(model), 0, 0, BODY_OTHER},
    {"user", FIELD_STRING_IGNORED, 0, 0, 0, BODY_OTHER},
    {"stream", FIELD_BOOL, AT(stream), 0, 0, BODY_OTHER},
};

static const struct field_spec loops_fields[] = {
    {"max", FIELD_INT, AT(max_loops), 1, SEQUENCE_MAX_LOOPS, BODY_LOOPS_MAX},
    {"min", FIELD_INT, AT(min_loops), 1, SEQUENCE_MAX_LOOPS, BODY_LOOPS_MIN},
    {"exit_threshold", FIELD_NUMBER, AT(exit_threshold), 1e-9, 1, BODY_EXIT_THRESHOLD},
    {"return_exit_loops", FIELD_BOOL, AT(return_exit_loops), 0, 0, BODY_OTHER},
};

static enum status store_field(const struct field_spec *spec, const char *name, const json_t *value,
                               struct body_fields *out, struct fault *fault)
{
    void *target = (char *)out + spec->offset;
    char expected[96];
    switch (spec->type) {
    case FIELD_STRING:
    case FIELD_STRING_IGNORED:
        if (!json_is_string(value))
            return body_field_error(fault, name, "a string", value);
        if (spec->type == FIELD_STRING)
            *(const char **)target = json_string_value(value);
        break;
    case FIELD_BOOL:
        if (!json_is_boolean(value))
            return body_field_error(fault, name, "true or false", value);
        *(bool *)target = json_is_true(value);
        break;
    case FIELD_INT:
    case FIELD_NUMBER: {
        bool is_whole = spec->type == FIELD_INT;
        double number = json_number_value(value);
        int64_t whole = 0;
        if (!(is_whole ? body_get_whole(value, &whole) : json_is_number(value)) ||
            number < spec->min || number > spec->max) {
            if (spec->max > 1e18)
                snprintf(expected, sizeof expected, "a whole number");
            else
                snprintf(expected, sizeof expected, "a %snumber from %.10g to %.10g",
                         is_whole ? "whole " : "", spec->min, spec->max);
            return body_field_error(fault, name, expected, value);
        }
        if (is_whole)
            *(int64_t *)target = whole;
        else
            *(double *)target = number;
        break;
    }
    }
    out->given |= spec->bit;
    return STATUS_OK;
}

static enum status parse_loops(const json_t *loops, struct body_fields *out, struct fault *fault)
{
    if (loops == NULL)
        return STATUS_OK;
    if (!json_is_object(loops))
        return body_field_error(fault, "loops", "an object such as {\"mode\": \"exact\"}", loops);
    const json_t *mode = body_field_of(loops, "mode");
    if (mode != NULL) {
        const char *name = json_is_string(mode) ? json_string_value(mode) : "";
        if (strcmp(name, "exact") != 0 && strcmp(name, "full") != 0)
            return body_field_error(fault, "loops.mode", "\"full\" or \"exact\"", mode);
        out->exit_mode = strcmp(name, "full") == 0 ? EXIT_MODE_FULL : EXIT_MODE_EXACT;
        out->given |= BODY_LOOPS_MODE;
    }
    for (size_t i = 0; i < sizeof loops_fields / sizeof loops_fields[0]; i++) {
        const json_t *value = body_field_of(loops, loops_fields[i].name);
        char name[32];
        snprintf(name, sizeof name, "loops.%s", loops_fields[i].name);
        if (value != NULL) {
            enum status status = store_field(&loops_fields[i], name, value, out, fault);
            if (status != STATUS_OK)
                return status;
        }
    }
    return STATUS_OK;
}

static enum status add_stop(const json_t *stop, struct body_fields *out, struct fault *fault)
{
    static const char expected[] = "a string of 1 to 256 bytes, or a list of at most 16 of them";
    size_t n = json_string_length(stop);
    if (!json_is_string(stop) || n == 0 || n > BODY_MAX_STOP_BYTES ||
        out->n_stops == BODY_MAX_STOPS)
        return body_field_error(fault, "stop", expected, stop);
    out->stops[out->n_stops++] = json_string_value(stop);
    return STATUS_OK;
}

static enum status parse_stop(const json_t *stop, struct body_fields *out, struct fault *fault)
{
    if (stop == NULL)
        return STATUS_OK;
    out->given |= BODY_STOP;
    if (!json_is_array(stop))
        return add_stop(stop, out, fault);
    for (size_t i = 0; i < json_array_size(stop); i++) {
        enum status status = add_stop(json_array_get(stop, i), out, fault);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

static enum status parse_stop_ids(const json_t *ids, struct body_fields *out, struct fault *fault)
{
    if (ids == NULL)
        return STATUS_OK;
    if (!json_is_array(ids) || json_array_size(ids) > SEQUENCE_MAX_STOP_IDS)
        return body_field_error(fault, "stop_token_ids", "a list of at most 32 token ids", ids);
    out->n_stop_ids = (uint32_t)json_array_size(ids);
    return body_read_ids("stop_token_ids", ids, out->stop_ids, fault);
}

static enum status parse_logit_bias(const json_t *bias, struct body_fields *out,
                                    struct fault *fault)
{
    if (bias == NULL)
        return STATUS_OK;
    if (!json_is_object(bias) || json_object_size(bias) > SEQUENCE_MAX_LOGIT_BIAS)
        return body_field_error(fault, "logit_bias",
                                "an object of at most 300 entries \"token id\": number", bias);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)bias, key, value)
    {
        char *end, name[64];
        errno = 0;
        long id = strtol(key, &end, 10);
        /* One way to write an id, so that the object's keys being different is enough. */
        bool is_plain = key[0] >= '0' && key[0] <= '9' && (key[0] != '0' || key[1] == '\0');
        if (!is_plain || *end != '\0' || errno != 0 || id > INT32_MAX) {
            json_t *shown = json_string(key);
            body_field_error(fault, "logit_bias", "token ids as keys", shown);
            json_decref(shown);
            return STATUS_INVALID;
        }
        snprintf(name, sizeof name, "logit_bias.%ld", id);
        double number = json_number_value(value);
        if (!json_is_number(value) || number < -100 || number > 100)
            return body_field_error(fault, name, "a number from -100 to 100", value);
        out->bias_ids[out->n_biases] = (int32_t)id;
        out->biases[out->n_biases++] = (float)number;
    }
    return STATUS_OK;
}

/* Completions: logprobs is how many; chat: logprobs is whether, top_logprobs how many. */
static enum status parse_logprobs(const json_t *body, bool is_chat, struct body_fields *out,
                                  struct fault *fault)
{
    const json_t *logprobs = body_field_of(body, "logprobs");
    const json_t *top = is_chat ? body_field_of(body, "top_logprobs") : NULL;
    const json_t *count = is_chat ? top : logprobs;
    if (is_chat && logprobs != NULL && !json_is_boolean(logprobs))
        return body_field_error(fault, "logprobs", "true or false", logprobs);
    if (count != NULL) {
        int64_t n;
        if (!body_get_whole(count, &n) || n < 0 || n > SEQUENCE_MAX_LOGPROBS)
            return body_field_error(fault, is_chat ? "top_logprobs" : "logprobs",
                                    "a whole number from 0 to 20", count);
        out->top_logprobs = n;
    }
    if (is_chat && top != NULL && !json_is_true(logprobs))
        return body_field_error(fault, "top_logprobs", "\"logprobs\": true beside it", logprobs);
    if (logprobs != NULL) {
        out->given |= BODY_LOGPROBS;
        out->has_logprobs = is_chat ? json_is_true(logprobs) : true;
    }
    return STATUS_OK;
}

/* {"include_usage": ...}, only beside "stream": true. */
static enum status parse_stream_options(const json_t *options, struct body_fields *out,
                                        struct fault *fault)
{
    static const struct field_spec usage = {"include_usage", FIELD_BOOL, AT(include_usage), 0, 0,
                                            BODY_OTHER};
    if (options == NULL)
        return STATUS_OK;
    if (!json_is_object(options))
        return body_field_error(fault, "stream_options", "an object", options);
    if (!out->stream)
        return body_field_error(fault, "stream_options", "\"stream\": true beside it", options);
    const json_t *value = body_field_of(options, usage.name);
    return value == NULL ? STATUS_OK
                         : store_field(&usage, "stream_options.include_usage", value, out, fault);
}

static enum status parse_chat_only(const json_t *body, struct body_fields *out, struct fault *fault)
{
    static const struct field_spec limit = {
        "max_completion_tokens", FIELD_INT, AT(max_tokens), 1, INT32_MAX, BODY_MAX_TOKENS};
    static const struct field_spec thinking = {
        "enable_thinking", FIELD_BOOL, AT(enable_thinking), 0, 0, BODY_OTHER};
    const json_t *value = body_field_of(body, limit.name);
    enum status status = STATUS_OK;
    if (value != NULL)
        status = store_field(&limit, limit.name, value, out, fault);
    const json_t *kwargs = body_field_of(body, "chat_template_kwargs");
    if (status == STATUS_OK && kwargs != NULL && !json_is_object(kwargs))
        return body_field_error(fault, "chat_template_kwargs", "an object", kwargs);
    value = body_field_of(kwargs, thinking.name);
    if (status == STATUS_OK && value != NULL)
        status = store_field(&thinking, "chat_template_kwargs.enable_thinking", value, out, fault);
    return status;
}

static enum status parse_text_only(const json_t *body, struct body_fields *out, struct fault *fault)
{
    static const struct field_spec echo = {"echo", FIELD_BOOL, AT(echo), 0, 0, BODY_OTHER};
    const json_t *value = body_field_of(body, echo.name);
    enum status status = STATUS_OK;
    if (value != NULL)
        status = store_field(&echo, echo.name, value, out, fault);
    value = body_field_of(body, "best_of");
    int64_t best_of;
    if (status == STATUS_OK && value != NULL &&
        (!body_get_whole(value, &best_of) || best_of != out->n)) {
        char expected[64];
        snprintf(expected, sizeof expected, "the same as n, which is %d", (int)out->n);
        status = body_field_error(fault, "best_of", expected, value);
    }
    return status;
}

/* The prompt alone is wanted: only where it is given back. */
static enum status check_max_tokens(const json_t *body, const struct body_fields *f,
                                    struct fault *fault)
{
    if (!(f->given & BODY_MAX_TOKENS) || f->max_tokens > 0 || f->echo)
        return STATUS_OK;
    return body_field_error(fault, "max_tokens",
                            "a whole number from 1 to 2147483647, or 0 with \"echo\": true",
                            body_field_of(body, "max_tokens"));
}

enum status body_read_fields(const json_t *body, bool is_chat, struct body_fields *out,
                             struct fault *fault)
{
    *out = (struct body_fields){.n = 1, .skip_special = true};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const json_t *value = body_field_of(body, fields[i].name);
        if (value == NULL)
            continue;
        enum status status = store_field(&fields[i], fields[i].name, value, out, fault);
        if (status != STATUS_OK)
            return status;
    }
    enum status status = parse_loops(body_field_of(body, "loops"), out, fault);
    if (status == STATUS_OK)
        status = parse_stop(body_field_of(body, "stop"), out, fault);
    if (status == STATUS_OK)
        status = parse_stop_ids(body_field_of(body, "stop_token_ids"), out, fault);
    if (status == STATUS_OK)
        status = parse_logit_bias(body_field_of(body, "logit_bias"), out, fault);
    if (status == STATUS_OK)
        status = parse_logprobs(body, is_chat, out, fault);
    if (status == STATUS_OK)
        status = parse_stream_options(body_field_of(body, "stream_options"), out, fault);
    if (status == STATUS_OK)
        status = is_chat ? parse_chat_only(body, out, fault) : parse_text_only(body, out, fault);
    if (status == STATUS_OK)
        status = check_max_tokens(body, out, fault);
    return status;
}
