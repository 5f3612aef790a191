/* Reads the prompts and the messages of a body. */
#include "coordinator/body_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One prompt: a string, or a list of token ids. */
static enum status read_prompt(const char *name, const json_t *value, struct body_prompt *out,
                               struct fault *fault)
{
    if (json_is_string(value)) {
        if (json_string_length(value) == 0)
            return body_field_error(fault, name, "text that is not empty", value);
        out->text = json_string_value(value);
        out->text_bytes = json_string_length(value);
        return STATUS_OK;
    }
    if (!json_is_array(value) || json_array_size(value) == 0)
        return body_field_error(fault, name, "a string or a list of token ids", value);
    out->n_ids = json_array_size(value);
    out->ids = calloc(out->n_ids, sizeof *out->ids);
    if (out->ids == NULL)
        return body_no_memory(fault, out->n_ids, "token ids");
    return body_read_ids(name, value, out->ids, fault);
}

/* string | [int] is one prompt, [string] and [[int]] are several. */
enum status body_read_prompts(const json_t *prompt, struct body *out, struct fault *fault)
{
    bool is_list = json_is_array(prompt) && (json_is_string(json_array_get(prompt, 0)) ||
                                             json_is_array(json_array_get(prompt, 0)));
    size_t n = is_list ? json_array_size(prompt) : 1;
    if (json_is_null(prompt))
        prompt = NULL;
    if (prompt == NULL)
        return body_field_error(fault, "prompt", "a string or a list of token ids", prompt);
    if (n * (size_t)out->fields.n > BODY_MAX_CHOICES)
        return fault_request(fault, STATUS_INVALID, "prompt", BODY_CODE_VALUE,
                             "prompt: %zu prompts with n = %d are %zu choices, accepted are %d in "
                             "one request",
                             n, (int)out->fields.n, n * (size_t)out->fields.n, BODY_MAX_CHOICES);
    out->prompts = calloc(n, sizeof *out->prompts);
    if (out->prompts == NULL)
        return body_no_memory(fault, n, "prompts");
    out->n_prompts = n;
    enum status status = STATUS_OK;
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        char name[32] = "prompt";
        if (is_list)
            snprintf(name, sizeof name, "prompt[%zu]", i);
        status = read_prompt(name, is_list ? json_array_get(prompt, i) : prompt, &out->prompts[i],
                             fault);
    }
    return status;
}

/* ---- messages ------------------------------------------------------------------------------- */

/* A list of {"type": "text", "text": ...}: their texts, one after the other. */
static enum status join_parts(const char *name, const json_t *parts, struct body *out,
                              struct chat_message *message, struct fault *fault)
{
    size_t total = 0, n_parts = json_array_size(parts);
    for (size_t i = 0; i < n_parts; i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
        char place[96];
        snprintf(place, sizeof place, "%s[%zu]", name, i);
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(text))
            return body_field_error(fault, place, "{\"type\": \"text\", \"text\": ...}", part);
        total += json_string_length(text);
    }
    char *joined = malloc(total + 1);
    if (joined == NULL)
        return body_no_memory(fault, total, "bytes of message parts");
    size_t at = 0;
    for (size_t i = 0; i < n_parts; i++) {
        const json_t *text = json_object_get(json_array_get(parts, i), "text");
        memcpy(joined + at, json_string_value(text), json_string_length(text));
        at += json_string_length(text);
    }
    json_t *string = json_stringn_nocheck(joined, total);
    free(joined);
    if (out->owned == NULL)
        out->owned = json_array();
    if (json_array_append_new(out->owned, string) != 0)
        return body_no_memory(fault, total, "bytes of message parts");
    message->content = json_string_value(string);
    message->content_bytes = total;
    return STATUS_OK;
}

static enum status read_message(size_t i, const json_t *value, struct body *out,
                                struct fault *fault)
{
    struct chat_message *message = &out->messages[i];
    char name[48];
    snprintf(name, sizeof name, "messages[%zu]", i);
    if (!json_is_object(value))
        return body_field_error(fault, name, "an object with role and content", value);
    const json_t *role = json_object_get(value, "role");
    const char *word = json_is_string(role) ? json_string_value(role) : "";
    /* The newer name of the same role. */
    if (strcmp(word, "developer") == 0)
        word = "system";
    snprintf(name, sizeof name, "messages[%zu].role", i);
    if (strcmp(word, "system") != 0 && strcmp(word, "user") != 0 && strcmp(word, "assistant") != 0)
        return body_field_error(fault, name, "\"system\", \"developer\", \"user\" or \"assistant\"",
                                role);
    message->role = word;
    const json_t *calls = body_field_of(value, "tool_calls");
    if (calls != NULL && !(json_is_array(calls) && json_array_size(calls) == 0)) {
        snprintf(name, sizeof name, "messages[%zu].tool_calls", i);
        return fault_request(fault, STATUS_UNSUPPORTED, name, BODY_CODE_UNSUPPORTED,
                             "%s: this server calls no tools; send the conversation as text", name);
    }
    const json_t *content = body_field_of(value, "content");
    snprintf(name, sizeof name, "messages[%zu].content", i);
    if (json_is_array(content))
        return join_parts(name, content, out, message, fault);
    if (!json_is_string(content))
        return body_field_error(fault, name, "a string or a list of text parts", content);
    message->content = json_string_value(content);
    message->content_bytes = json_string_length(content);
    return STATUS_OK;
}

enum status body_read_messages(const json_t *messages, struct body *out, struct fault *fault)
{
    size_t n = json_array_size(messages);
    if (json_is_null(messages))
        messages = NULL;
    if (n == 0)
        return body_field_error(fault, "messages", "a list of messages that is not empty",
                                messages);
    out->messages = calloc(n, sizeof *out->messages);
    out->prompts = calloc(1, sizeof *out->prompts);
    if (out->messages == NULL || out->prompts == NULL)
        return body_no_memory(fault, n, "messages");
    out->n_messages = n;
    out->n_prompts = 1;
    enum status status = STATUS_OK;
    for (size_t i = 0; i < n && status == STATUS_OK; i++)
        status = read_message(i, json_array_get(messages, i), out, fault);
    return status;
}
