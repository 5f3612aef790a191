/* Reads a request body: strict JSON, then its parts in turn. */
#include "coordinator/body.h"

#include "coordinator/body_parts.h"
#include "model/json_input.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum status body_field_error(struct fault *fault, const char *name, const char *expected,
                             const json_t *found)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    return fault_request(
        fault, STATUS_INVALID, name, found != NULL ? BODY_CODE_VALUE : BODY_CODE_MISSING,
        "%s: expected %s, found %s", name, expected, json_input_show(found, shown));
}

enum status body_no_memory(struct fault *fault, size_t n, const char *what)
{
    struct err err;
    err_set(&err, STATUS_NO_MEMORY, "no memory for %zu %s", n, what);
    if (fault != NULL)
        fault_from_err(fault, &err);
    return err.code;
}

const json_t *body_field_of(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_null(value) ? NULL : value;
}

bool body_get_whole(const json_t *value, int64_t *out)
{
    /* Beyond 2^53 a double no longer says which whole number was meant. */
    const double largest = 9007199254740992.0;
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    double number = json_real_value(value);
    if (!json_is_real(value) || number != floor(number) || fabs(number) > largest)
        return false;
    *out = (int64_t)number;
    return true;
}

enum status body_read_ids(const char *name, const json_t *array, int32_t *out, struct fault *fault)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *value = json_array_get(array, i);
        int64_t id;
        char place[64];
        if (!body_get_whole(value, &id) || id < 0 || id > INT32_MAX) {
            snprintf(place, sizeof place, "%s[%zu]", name, i);
            return body_field_error(fault, place, "a token id", value);
        }
        out[i] = (int32_t)id;
    }
    return STATUS_OK;
}

static enum status read_parts(const json_t *object, struct body *out, struct fault *fault)
{
    if (out->is_chat && json_object_get(object, "prompt") != NULL)
        return fault_request(fault, STATUS_INVALID, "prompt", BODY_CODE_VALUE,
                             "prompt: a chat request takes messages instead");
    if (!out->is_chat && json_object_get(object, "messages") != NULL)
        return fault_request(fault, STATUS_INVALID, "messages", BODY_CODE_VALUE,
                             "messages: /v1/completions takes prompt; messages go to "
                             "/v1/chat/completions");
    enum status status = body_read_fields(object, out->is_chat, &out->fields, fault);
    if (status == STATUS_OK)
        status = body_check_unsupported(object, out->is_chat, fault);
    if (status == STATUS_OK && out->is_chat)
        status = body_read_messages(json_object_get(object, "messages"), out, fault);
    else if (status == STATUS_OK)
        status = body_read_prompts(json_object_get(object, "prompt"), out, fault);
    return status;
}

enum status body_read(bool is_chat, json_t *object, struct body *out, struct fault *fault)
{
    struct body body = {.is_chat = is_chat, .root = json_incref(object)};
    enum status status = read_parts(object, &body, fault);
    if (status != STATUS_OK)
        body_clear(&body);
    *out = body;
    return status;
}

enum status body_load(const char *json, size_t len_bytes, const char *origin, json_t **out,
                      struct fault *fault)
{
    struct err err;
    enum status status = json_input_parse(json, len_bytes, origin, out, &err);
    if (status == STATUS_CORRUPT)
        return fault_request(fault, status, NULL, BODY_CODE_JSON, "%s", err.message);
    if (status != STATUS_OK && fault != NULL)
        fault_from_err(fault, &err);
    return status;
}

enum status body_parse(bool is_chat, const char *json, size_t len_bytes, struct body *out,
                       struct fault *fault)
{
    json_t *root = NULL;
    *out = (struct body){0};
    enum status status = body_load(json, len_bytes, "the body", &root, fault);
    if (status == STATUS_OK)
        status = body_read(is_chat, root, out, fault);
    json_decref(root);
    return status;
}

void body_clear(struct body *body)
{
    for (size_t i = 0; body->prompts != NULL && i < body->n_prompts; i++)
        free(body->prompts[i].ids);
    free(body->prompts);
    free(body->messages);
    json_decref(body->owned);
    json_decref(body->root);
    *body = (struct body){0};
}

uint32_t body_n_choices(const struct body *body)
{
    return (uint32_t)body->n_prompts * (uint32_t)body->fields.n;
}
