/* Takes the envelope off one line of a batch input file. */
#include "cli/batch_line.h"

#include "model/json_input.h"

#include <stdio.h>
#include <string.h>

static enum status refuse(struct fault *fault, const char *name, const char *expected,
                          const json_t *found)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    return fault_request(fault, STATUS_INVALID, name, NULL, "%s: expected %s, found %s", name,
                         expected, json_input_show(found, shown));
}

static enum status parse_custom_id(const json_t *root, bool is_required, struct batch_line *out,
                                   struct fault *fault)
{
    const json_t *id = json_object_get(root, "custom_id");
    if (!is_required && (id == NULL || json_is_null(id)))
        return STATUS_OK;
    size_t n = json_string_length(id);
    if (!json_is_string(id) || n == 0 || n > BATCH_MAX_CUSTOM_ID_BYTES)
        return refuse(fault, "custom_id", "a string of 1 to 512 bytes", id);
    memcpy(out->custom_id, json_string_value(id), n + 1);
    return STATUS_OK;
}

/* method, url and body of an OpenAI line. */
static enum status parse_envelope(const json_t *root, bool *is_chat, json_t **body,
                                  struct fault *fault)
{
    const json_t *method = json_object_get(root, "method");
    if (!json_is_string(method) || strcmp(json_string_value(method), "POST") != 0)
        return refuse(fault, "method", "\"POST\"", method);
    const json_t *url = json_object_get(root, "url");
    const char *path = json_is_string(url) ? json_string_value(url) : "";
    *is_chat = strcmp(path, "/v1/chat/completions") == 0;
    if (!*is_chat && strcmp(path, "/v1/completions") != 0)
        return refuse(fault, "url", "\"/v1/completions\" or \"/v1/chat/completions\"", url);
    *body = json_object_get(root, "body");
    if (!json_is_object(*body))
        return refuse(fault, "body", "an object", *body);
    return STATUS_OK;
}

static enum status parse_root(json_t *root, struct batch_line *out, struct fault *fault)
{
    json_t *body = root;
    bool is_chat = json_object_get(root, "messages") != NULL;
    bool is_enveloped = json_object_get(root, "body") != NULL ||
                        json_object_get(root, "url") != NULL ||
                        json_object_get(root, "method") != NULL;
    enum status status = parse_custom_id(root, is_enveloped, out, fault);
    if (status == STATUS_OK && is_enveloped)
        status = parse_envelope(root, &is_chat, &body, fault);
    if (status == STATUS_OK)
        status = body_read(is_chat, body, &out->body, fault);
    return status;
}

enum status batch_line_parse(const char *text, size_t len_bytes, uint64_t line_number,
                             struct batch_line *out, struct fault *fault)
{
    struct err err;
    json_t *root = NULL;
    memset(out, 0, sizeof *out);
    snprintf(out->custom_id, sizeof out->custom_id, "line-%llu", (unsigned long long)line_number);
    enum status status = json_input_parse(text, len_bytes, "the line", &root, &err);
    if (status == STATUS_OK)
        status = parse_root(root, out, fault);
    else if (fault != NULL)
        fault_from_err(fault, &err);
    json_decref(root);
    return status;
}

void batch_line_clear(struct batch_line *line)
{
    body_clear(&line->body);
    memset(line, 0, sizeof *line);
}
