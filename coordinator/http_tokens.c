/* Text to token ids and back, as the model's tokenizer does it: /tokenize and /detokenize. */
#include "coordinator/body_parts.h"
#include "coordinator/http_state.h"
#include "model/chat.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The body as an object, when there is a tokenizer to use it with; else NULL. */
static json_t *load(const struct intake_config *config, struct intake_order *order)
{
    json_t *root = NULL;
    if (!config->tokenizer)
        fault_request(&order->fault, STATUS_UNSUPPORTED, NULL, NULL,
                      "this model has no tokenizer.json: it takes token ids only");
    else
        body_load(order->json, order->len_bytes, "the body", &root, &order->fault);
    return root;
}

static void put_order(struct http_exchange *x,
                      void (*read)(const struct intake_config *config, struct intake_order *order))
{
    struct fault fault = {0};
    uint32_t retry_after_s = 0;
    if (!x->server->is_open && http_request_check_phase(x->server, &fault, &retry_after_s))
        http_reply_fault(x, &fault, retry_after_s);
    else
        http_request_order(x, NULL, read);
}

/* A flag that may be absent or null. */
static enum status read_flag(json_t *root, const char *name, bool *out, struct fault *fault)
{
    json_t *value = json_object_get(root, name);
    if (!value || json_is_null(value))
        return STATUS_OK;
    if (!json_is_boolean(value))
        return fault_request(fault, STATUS_INVALID, name, NULL, "%s must be true or false", name);
    *out = json_is_true(value);
    return STATUS_OK;
}

static enum status encode_prompt(const struct tokenizer *tokenizer, json_t *root, int32_t **ids,
                                 size_t *n_ids, struct fault *fault)
{
    bool adds_special = true;
    json_t *prompt = json_object_get(root, "prompt");
    enum status status = read_flag(root, "add_special_tokens", &adds_special, fault);
    if (status)
        return status;
    if (!json_is_string(prompt))
        return fault_request(fault, STATUS_INVALID, "prompt", NULL,
                             "prompt must be a string, or send messages");
    struct err err = {0};
    status = tokenizer_encode(tokenizer, json_string_value(prompt), json_string_length(prompt),
                              TOKENIZER_PARSE_SPECIAL | (adds_special ? TOKENIZER_ADD_BOS : 0), ids,
                              n_ids, NULL, &err);
    if (status)
        fault_from_err(fault, &err);
    return status;
}

static enum status encode_messages(const struct tokenizer *tokenizer, json_t *root, int32_t **ids,
                                   size_t *n_ids, struct fault *fault)
{
    struct body body;
    enum status status = body_read(true, root, &body, fault);
    if (status)
        return status;
    struct err err = {0};
    status = chat_encode(tokenizer, body.messages, body.n_messages, body.fields.enable_thinking,
                         ids, n_ids, &err);
    if (status)
        fault_from_err(fault, &err);
    body_clear(&body);
    return status;
}

static void tokenize(const struct intake_config *config, struct intake_order *order)
{
    int32_t *ids = NULL;
    size_t n_ids = 0;
    json_t *root = load(config, order);
    if (!root)
        return;
    enum status status = json_object_get(root, "messages")
                             ? encode_messages(config->tokenizer, root, &ids, &n_ids, &order->fault)
                             : encode_prompt(config->tokenizer, root, &ids, &n_ids, &order->fault);
    json_decref(root);
    if (status)
        return;
    struct json_writer w;
    json_writer_init(&w, &order->answer);
    json_write_begin_object(&w);
    json_write_key(&w, "count");
    json_write_integer(&w, (int64_t)n_ids);
    json_write_key(&w, "max_model_len");
    json_write_integer(&w, config->checkpoint->config.max_positions);
    json_write_key(&w, "tokens");
    json_write_begin_array(&w);
    for (size_t i = 0; i < n_ids; i++)
        json_write_integer(&w, ids[i]);
    json_write_end_array(&w);
    json_write_end_object(&w);
    free(ids);
}

void http_page_tokenize(struct http_exchange *x, const char *rest)
{
    (void)rest;
    put_order(x, tokenize);
}

/* All the text of the ids; what is no UTF-8 as U+FFFD. */
static enum status decode_tokens(const struct intake_config *config, json_t *root, struct text *out,
                                 struct fault *fault)
{
    json_t *tokens = json_object_get(root, "tokens"), *value;
    int n_vocab = config->checkpoint->config.vocab_size;
    bool skips_special = false;
    struct detokenizer detokenizer;
    char piece[DETOKENIZER_MAX_BYTES];
    size_t i;
    enum status status = read_flag(root, "skip_special_tokens", &skips_special, fault);
    if (status)
        return status;
    if (!json_is_array(tokens))
        return fault_request(fault, STATUS_INVALID, "tokens", NULL,
                             "tokens must be a list of token ids");
    detokenizer_init(&detokenizer, config->tokenizer, skips_special);
    json_array_foreach(tokens, i, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= n_vocab)
            return fault_request(fault, STATUS_INVALID, "tokens", NULL,
                                 "tokens[%zu] is no token id, expected 0 to %d", i, n_vocab - 1);
        text_add(out, piece, detokenizer_push(&detokenizer, (int32_t)id, piece, sizeof piece));
    }
    text_add(out, piece, detokenizer_flush(&detokenizer, piece, sizeof piece));
    return STATUS_OK;
}

static void detokenize(const struct intake_config *config, struct intake_order *order)
{
    struct text prompt = {0};
    json_t *root = load(config, order);
    if (!root)
        return;
    enum status status = decode_tokens(config, root, &prompt, &order->fault);
    json_decref(root);
    if (!status && prompt.is_broken)
        fault_set(&order->fault, 500, "server_error", NULL, "no memory for the text");
    if (!order->fault.err.code) {
        struct json_writer w;
        json_writer_init(&w, &order->answer);
        json_write_begin_object(&w);
        json_write_key(&w, "prompt");
        json_write_bytes(&w, prompt.bytes, prompt.len_bytes);
        json_write_end_object(&w);
    }
    text_free(&prompt);
}

void http_page_detokenize(struct http_exchange *x, const char *rest)
{
    (void)rest;
    put_order(x, detokenize);
}
