/* Text to token ids and back, as the model's tokenizer does it: /tokenize and /detokenize. */
#include "coordinator/http_state.h"
#include "model/chat.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* The body as an object, and a tokenizer to use; else the refusal is under way. */
static json_t *begin(struct http_exchange *x)
{
    struct http_server *server = x->server;
    struct evbuffer *in = evhttp_request_get_input_buffer(x->request);
    size_t len_bytes = evbuffer_get_length(in);
    struct fault fault = {0};
    uint32_t retry_after_s = 0;
    json_error_t error;
    json_t *root = NULL;
    if (!server->is_open && http_request_check_phase(server, &fault, &retry_after_s)) {
        http_reply_fault(x, &fault, retry_after_s);
        return NULL;
    }
    const char *bytes = len_bytes ? (const char *)evbuffer_pullup(in, -1) : "";
    if (!server->engine.tokenizer)
        fault_request(&fault, STATUS_UNSUPPORTED, NULL, NULL,
                      "this model has no tokenizer.json; send token ids");
    else if (!bytes)
        fault_set(&fault, 500, "server_error", NULL, "no memory for a body of %zu bytes",
                  len_bytes);
    else if (!(root = json_loadb(bytes, len_bytes, JSON_REJECT_DUPLICATES, &error)))
        fault_request(&fault, STATUS_CORRUPT, NULL, "invalid_json",
                      "the body is no JSON: %s, line %d, column %d", error.text, error.line,
                      error.column);
    else if (!json_is_object(root))
        fault_request(&fault, STATUS_CORRUPT, NULL, "invalid_json", "the body is no JSON object");
    else
        return root;
    json_decref(root);
    http_reply_fault(x, &fault, 0);
    return NULL;
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

static enum status encode_prompt(const struct http_server *server, json_t *root, int32_t **ids,
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
    status = tokenizer_encode(
        server->engine.tokenizer, json_string_value(prompt), json_string_length(prompt),
        TOKENIZER_PARSE_SPECIAL | (adds_special ? TOKENIZER_ADD_BOS : 0), ids, n_ids, NULL, &err);
    if (status)
        fault_from_err(fault, &err);
    return status;
}

static enum status encode_messages(const struct http_server *server, json_t *root, int32_t **ids,
                                   size_t *n_ids, struct fault *fault)
{
    struct body body;
    enum status status = body_read(true, root, &body, fault);
    if (status)
        return status;
    struct err err = {0};
    status = chat_encode(server->engine.tokenizer, body.messages, body.n_messages,
                         body.fields.enable_thinking, ids, n_ids, &err);
    if (status)
        fault_from_err(fault, &err);
    body_clear(&body);
    return status;
}

void http_page_tokenize(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct http_server *server = x->server;
    json_t *root = begin(x);
    if (!root)
        return;
    struct fault fault = {0};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    enum status status = json_object_get(root, "messages")
                             ? encode_messages(server, root, &ids, &n_ids, &fault)
                             : encode_prompt(server, root, &ids, &n_ids, &fault);
    json_decref(root);
    if (status) {
        http_reply_fault(x, &fault, 0);
        return;
    }
    struct json_writer w;
    struct text *json = &server->json;
    text_reset(json);
    json_writer_init(&w, json);
    json_write_begin_object(&w);
    json_write_key(&w, "count");
    json_write_integer(&w, (int64_t)n_ids);
    json_write_key(&w, "max_model_len");
    json_write_integer(&w, server->engine.checkpoint->config.max_positions);
    json_write_key(&w, "tokens");
    json_write_begin_array(&w);
    for (size_t i = 0; i < n_ids; i++)
        json_write_integer(&w, ids[i]);
    json_write_end_array(&w);
    json_write_end_object(&w);
    free(ids);
    http_reply_json(x, 200, json);
}

/* All the text of the ids; what is no UTF-8 as U+FFFD. */
static enum status decode_tokens(const struct http_server *server, json_t *root, struct text *out,
                                 struct fault *fault)
{
    json_t *tokens = json_object_get(root, "tokens"), *value;
    int n_vocab = server->engine.checkpoint->config.vocab_size;
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
    detokenizer_init(&detokenizer, server->engine.tokenizer, skips_special);
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

void http_page_detokenize(struct http_exchange *x, const char *rest)
{
    (void)rest;
    struct http_server *server = x->server;
    json_t *root = begin(x);
    if (!root)
        return;
    struct fault fault = {0};
    struct text prompt = {0};
    enum status status = decode_tokens(server, root, &prompt, &fault);
    json_decref(root);
    if (!status && prompt.is_broken)
        fault_set(&fault, 500, "server_error", NULL, "no memory for the text");
    if (fault.err.code) {
        http_reply_fault(x, &fault, 0);
    } else {
        struct json_writer w;
        text_reset(&server->json);
        json_writer_init(&w, &server->json);
        json_write_begin_object(&w);
        json_write_key(&w, "prompt");
        json_write_bytes(&w, prompt.bytes, prompt.len_bytes);
        json_write_end_object(&w);
        http_reply_json(x, 200, &server->json);
    }
    text_free(&prompt);
}
