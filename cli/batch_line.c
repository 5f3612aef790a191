/* Turns one line of a batch input file into a checked request. */
#include "cli/batch_line.h"

#include "model/json_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static enum status parse_custom_id(const json_t *root, bool is_required, struct batch_line *out,
                                   struct err *err)
{
    const json_t *id = json_object_get(root, "custom_id");
    if (!is_required && (id == NULL || json_is_null(id)))
        return STATUS_OK;
    size_t n = json_string_length(id);
    if (!json_is_string(id) || n == 0 || n > BATCH_MAX_CUSTOM_ID_BYTES)
        return batch_field_error("custom_id", "a string of 1 to 512 bytes", id, err);
    memcpy(out->custom_id, json_string_value(id), n + 1);
    return STATUS_OK;
}

/* method, url and body of an OpenAI line. */
static enum status parse_envelope(const json_t *root, bool *is_chat, const json_t **body,
                                  struct err *err)
{
    const json_t *method = json_object_get(root, "method");
    if (!json_is_string(method) || strcmp(json_string_value(method), "POST") != 0)
        return batch_field_error("method", "\"POST\"", method, err);
    const json_t *url = json_object_get(root, "url");
    const char *path = json_is_string(url) ? json_string_value(url) : "";
    *is_chat = strcmp(path, "/v1/chat/completions") == 0;
    if (!*is_chat && strcmp(path, "/v1/completions") != 0)
        return batch_field_error("url", "\"/v1/completions\" or \"/v1/chat/completions\"", url,
                                 err);
    *body = json_object_get(root, "body");
    if (!json_is_object(*body))
        return batch_field_error("body", "an object", *body, err);
    return STATUS_OK;
}

/* One prompt: a string, or a list of token ids. */
static enum status parse_prompt(const char *name, const json_t *value, struct batch_prompt *out,
                                struct err *err)
{
    if (json_is_string(value)) {
        if (json_string_length(value) == 0)
            return batch_field_error(name, "text that is not empty", value, err);
        out->text = json_string_value(value);
        out->text_bytes = json_string_length(value);
        return STATUS_OK;
    }
    if (!json_is_array(value) || json_array_size(value) == 0)
        return batch_field_error(name, "a string or a list of token ids", value, err);
    out->n_ids = json_array_size(value);
    out->ids = calloc(out->n_ids, sizeof *out->ids);
    if (out->ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu token ids", out->n_ids);
    return batch_field_ids(name, value, out->ids, err);
}

/* string | [int] is one prompt, [string] and [[int]] are several. */
static enum status parse_prompts(const json_t *prompt, struct batch_line *out, struct err *err)
{
    bool is_list = json_is_array(prompt) && (json_is_string(json_array_get(prompt, 0)) ||
                                             json_is_array(json_array_get(prompt, 0)));
    size_t n = is_list ? json_array_size(prompt) : 1;
    if (prompt == NULL || json_is_null(prompt))
        return batch_field_error("prompt", "a string or a list of token ids", prompt, err);
    if (n * (size_t)out->fields.n > BATCH_MAX_CHOICES)
        return err_set(err, STATUS_INVALID,
                       "prompt: %zu prompts with n = %d are %zu choices, accepted are %d in one "
                       "line",
                       n, (int)out->fields.n, n * (size_t)out->fields.n, BATCH_MAX_CHOICES);
    out->prompts = calloc(n, sizeof *out->prompts);
    if (out->prompts == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu prompts", n);
    out->n_prompts = n;
    enum status status = STATUS_OK;
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        char name[32] = "prompt";
        if (is_list)
            snprintf(name, sizeof name, "prompt[%zu]", i);
        status =
            parse_prompt(name, is_list ? json_array_get(prompt, i) : prompt, &out->prompts[i], err);
    }
    return status;
}

/* A list of {"type": "text", "text": ...}: their texts, one after the other. */
static enum status join_parts(const char *name, const json_t *parts, struct batch_line *out,
                              struct chat_message *message, struct err *err)
{
    size_t total = 0, n_parts = json_array_size(parts);
    for (size_t i = 0; i < n_parts; i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *type = json_object_get(part, "type"), *text = json_object_get(part, "text");
        char place[96];
        snprintf(place, sizeof place, "%s[%zu]", name, i);
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0 ||
            !json_is_string(text))
            return batch_field_error(place, "{\"type\": \"text\", \"text\": ...}", part, err);
        total += json_string_length(text);
    }
    char *joined = malloc(total + 1);
    if (joined == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes of %s", total, name);
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
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes of %s", total, name);
    message->content = json_string_value(string);
    message->content_bytes = total;
    return STATUS_OK;
}

static enum status parse_message(size_t i, const json_t *value, struct batch_line *out,
                                 struct err *err)
{
    struct chat_message *message = &out->messages[i];
    char name[48];
    snprintf(name, sizeof name, "messages[%zu]", i);
    if (!json_is_object(value))
        return batch_field_error(name, "an object with role and content", value, err);
    const json_t *role = json_object_get(value, "role");
    const char *word = json_is_string(role) ? json_string_value(role) : "";
    /* The newer name of the same role. */
    if (strcmp(word, "developer") == 0)
        word = "system";
    snprintf(name, sizeof name, "messages[%zu].role", i);
    if (strcmp(word, "system") != 0 && strcmp(word, "user") != 0 && strcmp(word, "assistant") != 0)
        return batch_field_error(name, "\"system\", \"developer\", \"user\" or \"assistant\"", role,
                                 err);
    message->role = word;
    const json_t *content = json_object_get(value, "content");
    snprintf(name, sizeof name, "messages[%zu].content", i);
    if (json_is_array(content))
        return join_parts(name, content, out, message, err);
    if (!json_is_string(content))
        return batch_field_error(name, "a string or a list of text parts", content, err);
    message->content = json_string_value(content);
    message->content_bytes = json_string_length(content);
    return STATUS_OK;
}

static enum status parse_messages(const json_t *messages, struct batch_line *out, struct err *err)
{
    size_t n = json_array_size(messages);
    if (!json_is_array(messages) || n == 0)
        return batch_field_error("messages", "a list of messages that is not empty", messages, err);
    out->messages = calloc(n, sizeof *out->messages);
    out->prompts = calloc(1, sizeof *out->prompts);
    if (out->messages == NULL || out->prompts == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu messages", n);
    out->n_messages = n;
    out->n_prompts = 1;
    enum status status = STATUS_OK;
    for (size_t i = 0; i < n && status == STATUS_OK; i++)
        status = parse_message(i, json_array_get(messages, i), out, err);
    return status;
}

static enum status parse_root(struct batch_line *out, struct err *err)
{
    const json_t *root = out->root, *body = root;
    bool is_enveloped = json_object_get(root, "body") != NULL ||
                        json_object_get(root, "url") != NULL ||
                        json_object_get(root, "method") != NULL;
    enum status status = parse_custom_id(root, is_enveloped, out, err);
    if (status == STATUS_OK && is_enveloped)
        status = parse_envelope(root, &out->is_chat, &body, err);
    else
        out->is_chat = json_object_get(root, "messages") != NULL;
    if (status == STATUS_OK && out->is_chat && json_object_get(body, "prompt") != NULL)
        return err_set(err, STATUS_INVALID, "prompt: a chat request takes messages instead");
    if (status == STATUS_OK && !out->is_chat && json_object_get(body, "messages") != NULL)
        return err_set(err, STATUS_INVALID,
                       "messages: /v1/completions takes prompt; messages go to "
                       "/v1/chat/completions");
    if (status == STATUS_OK)
        status = batch_fields_parse(body, out->is_chat, &out->fields, err);
    if (status == STATUS_OK && out->is_chat)
        status = parse_messages(json_object_get(body, "messages"), out, err);
    else if (status == STATUS_OK)
        status = parse_prompts(json_object_get(body, "prompt"), out, err);
    return status;
}

enum status batch_line_parse(const char *text, size_t len_bytes, uint64_t line_number,
                             struct batch_line *out, struct err *err)
{
    *out = (struct batch_line){0};
    snprintf(out->custom_id, sizeof out->custom_id, "line-%llu", (unsigned long long)line_number);
    enum status status = json_input_parse(text, len_bytes, "the line", &out->root, err);
    if (status == STATUS_OK)
        status = parse_root(out, err);
    if (status != STATUS_OK) {
        struct batch_line failed = {0};
        memcpy(failed.custom_id, out->custom_id, sizeof failed.custom_id);
        batch_line_clear(out);
        *out = failed;
    }
    return status;
}

void batch_line_clear(struct batch_line *line)
{
    for (size_t i = 0; line->prompts != NULL && i < line->n_prompts; i++)
        free(line->prompts[i].ids);
    free(line->prompts);
    free(line->messages);
    json_decref(line->owned);
    json_decref(line->root);
    *line = (struct batch_line){0};
}

uint32_t batch_line_n_choices(const struct batch_line *line)
{
    return (uint32_t)line->n_prompts * (uint32_t)line->fields.n;
}

static enum status add_stop_ids(const struct batch_fields *f, struct sequence_params *p,
                                struct err *err)
{
    for (uint32_t i = 0; i < f->n_stop_ids; i++) {
        bool is_there = false;
        for (uint32_t j = 0; j < p->n_stop_ids; j++)
            is_there = is_there || p->stop_ids[j] == f->stop_ids[i];
        if (is_there)
            continue;
        if (p->n_stop_ids == SEQUENCE_MAX_STOP_IDS)
            return err_set(err, STATUS_INVALID,
                           "stop_token_ids: with the model's own there are more than %d",
                           SEQUENCE_MAX_STOP_IDS);
        p->stop_ids[p->n_stop_ids++] = f->stop_ids[i];
    }
    return STATUS_OK;
}

enum status batch_line_apply(const struct batch_line *line, uint32_t choice,
                             struct sequence_params *p, struct err *err)
{
    const struct batch_fields *f = &line->fields;
    struct sampling_params *s = &p->sampling;
    if (f->given & BATCH_MAX_TOKENS)
        p->max_tokens = (uint32_t)f->max_tokens;
    if (f->given & BATCH_MIN_TOKENS)
        p->min_tokens = (uint32_t)f->min_tokens;
    if (f->given & BATCH_LOOPS_MODE)
        p->exit_mode = f->exit_mode;
    if (f->given & BATCH_LOOPS_MAX)
        p->max_loops = (uint32_t)f->max_loops;
    if (f->given & BATCH_LOOPS_MIN)
        p->min_loops = (uint32_t)f->min_loops;
    if (f->given & BATCH_EXIT_THRESHOLD)
        p->exit_threshold = (float)f->exit_threshold;
    if (f->given & BATCH_TEMPERATURE)
        s->temperature = (float)f->temperature;
    if (f->given & BATCH_TOP_K)
        s->top_k = f->top_k < 0 ? 0 : (int32_t)f->top_k;
    if (f->given & BATCH_TOP_P)
        s->top_p = (float)f->top_p;
    if (f->given & BATCH_MIN_P)
        s->min_p = (float)f->min_p;
    if (f->given & BATCH_REPETITION_PENALTY)
        s->repetition_penalty = (float)f->repetition_penalty;
    if (f->given & BATCH_PRESENCE_PENALTY)
        s->presence_penalty = (float)f->presence_penalty;
    if (f->given & BATCH_FREQUENCY_PENALTY)
        s->frequency_penalty = (float)f->frequency_penalty;
    if (f->given & BATCH_SEED)
        s->seed = (uint64_t)f->seed;
    s->seed += choice;
    /* The chosen token's own log-probability comes only with at least one alternative. */
    if (f->given & BATCH_LOGPROBS)
        s->n_logprobs = !f->has_logprobs ? 0 : f->top_logprobs > 0 ? (int32_t)f->top_logprobs : 1;
    s->n_logit_bias = (int32_t)f->n_biases;
    memcpy(s->bias_ids, f->bias_ids, f->n_biases * sizeof f->bias_ids[0]);
    memcpy(s->biases, f->biases, f->n_biases * sizeof f->biases[0]);
    return add_stop_ids(f, p, err);
}
