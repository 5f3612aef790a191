/* Builds the output line of a job. */
#include "cli/batch_answer.h"

#include "cli/batch_hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Any bytes as a JSON string; those that are no UTF-8 are written as \x.., as OpenAI's API does. */
static json_t *bytes_string(const char *bytes, size_t n)
{
    json_t *string = json_stringn(bytes, n);
    if (string != NULL)
        return string;
    static const char head[] = "bytes:";
    char *shown = malloc(sizeof head + 4 * n);
    if (shown == NULL)
        return NULL;
    memcpy(shown, head, sizeof head);
    for (size_t i = 0; i < n; i++)
        snprintf(shown + sizeof head - 1 + 4 * i, 5, "\\x%02x", (unsigned char)bytes[i]);
    string = json_string(shown);
    free(shown);
    return string;
}

static json_t *token_string(const struct batch *b, int32_t id)
{
    size_t n = 0;
    const char *bytes = NULL;
    if (b->session->tokenizer != NULL)
        bytes = tokenizer_token_bytes(b->session->tokenizer, id, &n);
    return bytes != NULL ? bytes_string(bytes, n) : json_sprintf("token_id:%d", (int)id);
}

static json_t *id_list(const int32_t *ids, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* ---- log-probabilities ---------------------------------------------------------------------- */

/* Characters a token adds: its bytes that do not continue one. */
static size_t count_characters(const struct batch *b, int32_t id, bool skip_special)
{
    size_t n = 0, count = 0;
    if (b->session->tokenizer == NULL ||
        (skip_special && tokenizer_is_special(b->session->tokenizer, id)))
        return 0;
    const char *bytes = tokenizer_token_bytes(b->session->tokenizer, id, &n);
    for (size_t i = 0; i < n; i++)
        count += (bytes[i] & 0xC0) != 0x80;
    return count;
}

/* {"tokens", "token_logprobs", "top_logprobs", "text_offset"} */
static json_t *text_logprobs(const struct batch_choice *c)
{
    const struct batch *b = c->job->batch;
    const struct body_fields *f = &c->job->line.body.fields;
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(),
           *offsets = json_array();
    size_t offset = 0;
    for (size_t i = 0; i < c->n_tokens; i++) {
        const struct control_token *d = &c->details[i];
        json_t *token = token_string(b, d->id), *top = json_object();
        json_array_append_new(values, json_real((double)d->logprob));
        json_array_append_new(offsets, json_integer((json_int_t)offset));
        for (uint32_t k = 0; k < d->n_top && (int64_t)k < f->top_logprobs; k++) {
            json_t *key = token_string(b, d->top_ids[k]);
            json_object_set_new(top, json_string_value(key), json_real((double)d->top_logprobs[k]));
            json_decref(key);
        }
        /* The chosen token is always among them. */
        if (f->top_logprobs > 0)
            json_object_set_new(top, json_string_value(token), json_real((double)d->logprob));
        json_array_append_new(tokens, token);
        json_array_append_new(tops, top);
        offset += count_characters(b, d->id, f->skip_special);
    }
    json_t *out = json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", values,
                            "top_logprobs", tops, "text_offset", offsets);
    if (f->top_logprobs == 0)
        json_object_set_new(out, "top_logprobs", json_null());
    return out;
}

static json_t *chat_token(const struct batch *b, int32_t id, float logprob)
{
    size_t n = 0;
    const char *bytes = tokenizer_token_bytes(b->session->tokenizer, id, &n);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer((unsigned char)bytes[i]));
    return json_pack("{s:o, s:f, s:o}", "token", token_string(b, id), "logprob", (double)logprob,
                     "bytes", list);
}

/* {"content": [{"token", "logprob", "bytes", "top_logprobs": [...]}]} */
static json_t *chat_logprobs(const struct batch_choice *c)
{
    const struct batch *b = c->job->batch;
    json_t *content = json_array();
    for (size_t i = 0; i < c->n_tokens; i++) {
        const struct control_token *d = &c->details[i];
        json_t *entry = chat_token(b, d->id, d->logprob), *top = json_array();
        for (uint32_t k = 0; k < d->n_top && (int64_t)k < c->job->line.body.fields.top_logprobs;
             k++)
            json_array_append_new(top, chat_token(b, d->top_ids[k], d->top_logprobs[k]));
        json_object_set_new(entry, "top_logprobs", top);
        json_array_append_new(content, entry);
    }
    return json_pack("{s:o}", "content", content);
}

/* ---- choices -------------------------------------------------------------------------------- */

static json_t *loop_stats(const struct batch_choice *first, size_t n_choices)
{
    json_t *loops = json_array();
    uint64_t sum = 0, n = 0;
    for (size_t c = 0; c < n_choices; c++)
        for (size_t i = 0; i < first[c].n_tokens; i++) {
            json_array_append_new(loops, json_integer(first[c].exit_loops[i]));
            sum += first[c].exit_loops[i];
            n++;
        }
    return json_pack("{s:f, s:o}", "mean_exit_loop", n > 0 ? (double)sum / (double)n : 0.0,
                     "exit_loops", loops);
}

/* The prompt's text for echo: as it came, or what its ids stand for. */
static json_t *prompt_text(const struct batch_job *job, size_t i_prompt)
{
    const struct body_prompt *prompt = &job->line.body.prompts[i_prompt];
    if (prompt->text != NULL)
        return json_stringn(prompt->text, prompt->text_bytes);
    const struct tokenizer *tokenizer = job->batch->session->tokenizer;
    size_t n = job->line.body.prompts[i_prompt].n_ids, at = 0;
    char *text = tokenizer != NULL ? malloc(DETOKENIZER_MAX_BYTES) : NULL;
    size_t cap = text != NULL ? DETOKENIZER_MAX_BYTES : 0;
    struct detokenizer d;
    detokenizer_init(&d, tokenizer, job->line.body.fields.skip_special);
    for (size_t i = 0; text != NULL && i <= n; i++) {
        char *grown = at + DETOKENIZER_MAX_BYTES > cap ? realloc(text, cap = 2 * cap) : text;
        if (grown == NULL) {
            free(text);
            return NULL;
        }
        text = grown;
        at += i < n ? detokenizer_push(&d, job->line.body.prompts[i_prompt].ids[i], text + at,
                                       cap - at)
                    : detokenizer_flush(&d, text + at, cap - at);
    }
    json_t *string = json_stringn(text != NULL ? text : "", at);
    free(text);
    return string;
}

static json_t *choice_text(const struct batch_choice *c, size_t i_prompt)
{
    json_t *own = json_stringn(c->text != NULL ? c->text : "", c->text_bytes);
    if (!c->job->line.body.fields.echo || own == NULL)
        return own;
    json_t *prompt = prompt_text(c->job, i_prompt);
    json_t *both = prompt != NULL
                       ? json_sprintf("%s%s", json_string_value(prompt), json_string_value(own))
                       : NULL;
    json_decref(prompt);
    json_decref(own);
    return both;
}

static json_t *choice_object(const struct batch_job *job, uint32_t index)
{
    const struct batch_choice *c = &job->choices[index];
    const struct body_fields *f = &job->line.body.fields;
    size_t i_prompt = index / (uint32_t)f->n;
    json_t *out = json_pack("{s:i}", "index", (int)index);
    json_t *text = choice_text(c, i_prompt);
    if (job->line.body.is_chat)
        json_object_set_new(out, "message",
                            json_pack("{s:s, s:o}", "role", "assistant", "content", text));
    else
        json_object_set_new(out, "text", text);
    json_object_set_new(out, "finish_reason", json_string(finish_reason_name(c->reason)));
    json_object_set_new(out, "logprobs",
                        c->details == NULL       ? json_null()
                        : job->line.body.is_chat ? chat_logprobs(c)
                                                 : text_logprobs(c));
    /* Without a tokenizer the ids are all there is. */
    if (f->return_token_ids || job->batch->session->tokenizer == NULL) {
        json_object_set_new(out, "token_ids", id_list(c->ids, c->n_tokens));
        json_object_set_new(
            out, "prompt_token_ids",
            id_list(job->line.body.prompts[i_prompt].ids, job->line.body.prompts[i_prompt].n_ids));
    }
    if (job->n_choices > 1)
        json_object_set_new(out, "loop_stats", loop_stats(c, 1));
    return out;
}

static json_t *usage_object(const struct batch_job *job)
{
    uint64_t prompt = 0, completion = 0;
    for (size_t i = 0; i < job->line.body.n_prompts; i++)
        prompt += job->line.body.prompts[i].n_ids;
    for (uint32_t i = 0; i < job->n_choices; i++)
        completion += job->choices[i].n_tokens;
    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)prompt, "completion_tokens",
                     (json_int_t)completion, "total_tokens", (json_int_t)(prompt + completion));
}

json_t *batch_answer_success(const struct batch_job *job)
{
    const struct batch *b = job->batch;
    const bool is_chat = job->line.body.is_chat;
    unsigned long long number = job->number;
    json_t *choices = json_array();
    for (uint32_t i = 0; i < job->n_choices; i++)
        json_array_append_new(choices, choice_object(job, i));
    json_t *body = json_pack(
        "{s:o, s:s, s:I, s:o, s:o, s:o, s:o}", "id",
        json_sprintf("%s-%s-%llu", is_chat ? "chatcmpl" : "cmpl", b->run_id, number), "object",
        is_chat ? "chat.completion" : "text_completion", "created", (json_int_t)job->created,
        "model", bytes_string(b->model_name, strlen(b->model_name)), "choices", choices, "usage",
        usage_object(job), "loop_stats", loop_stats(job->choices, job->n_choices));
    json_t *response = json_pack("{s:i, s:o, s:o}", "status_code", 200, "request_id",
                                 json_sprintf("req_%s_%llu", b->run_id, number), "body", body);
    char hash[BATCH_HASH_DIGITS + 1];
    batch_hash_print(job->input_hash, hash);
    return json_pack("{s:o, s:s, s:s, s:o, s:n}", "id",
                     json_sprintf("batch_req_%s_%llu", b->run_id, number), "custom_id",
                     job->line.custom_id, "input_hash", hash, "response", response, "error");
}

json_t *batch_answer_error(const struct batch *b, uint64_t number, const char *custom_id,
                           uint64_t input_hash, const char *code, const char *message)
{
    char hash[BATCH_HASH_DIGITS + 1];
    batch_hash_print(input_hash, hash);
    json_t *error =
        json_pack("{s:s, s:o}", "code", code, "message", bytes_string(message, strlen(message)));
    return json_pack("{s:o, s:s, s:s, s:n, s:o}", "id",
                     json_sprintf("batch_req_%s_%llu", b->run_id, (unsigned long long)number),
                     "custom_id", custom_id, "input_hash", hash, "response", "error", error);
}
