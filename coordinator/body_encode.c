/* Turns the prompts of a body into token ids of the model. */
#include "coordinator/body_parts.h"

#include <stdio.h>

static enum status check_ids(const char *name, const struct body_prompt *prompt, int32_t vocab_size,
                             struct fault *fault)
{
    for (size_t i = 0; i < prompt->n_ids; i++)
        if (prompt->ids[i] < 0 || prompt->ids[i] >= vocab_size)
            return fault_request(fault, STATUS_INVALID, name, BODY_CODE_VALUE,
                                 "%s[%zu]: expected a token id from 0 to %d, found %d", name, i,
                                 (int)vocab_size - 1, (int)prompt->ids[i]);
    return STATUS_OK;
}

/* What the tokenizer says, about a field. */
static enum status refuse_text(const char *name, const struct err *err, struct fault *fault)
{
    if (fault == NULL)
        return err->code;
    fault_from_err(fault, err);
    if (fault->http_status == 400)
        return fault_request(fault, err->code, name,
                             err->code == STATUS_UNSUPPORTED ? BODY_CODE_UNSUPPORTED
                                                             : BODY_CODE_VALUE,
                             "%s: %s", name, err->message);
    return err->code;
}

static enum status encode_text(const char *name, struct body_prompt *prompt,
                               const struct tokenizer *tokenizer, struct fault *fault)
{
    struct err err;
    int32_t *ids = NULL;
    size_t n = 0;
    enum status status =
        tokenizer_encode(tokenizer, prompt->text, prompt->text_bytes,
                         TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_BOS, &ids, &n, NULL, &err);
    if (status != STATUS_OK)
        return refuse_text(name, &err, fault);
    if (n == 0)
        return fault_request(fault, STATUS_INVALID, name, BODY_CODE_VALUE,
                             "%s: no token stands for this text", name);
    prompt->ids = ids;
    prompt->n_ids = n;
    return STATUS_OK;
}

/* The field that cannot do without a tokenizer; NULL: none. */
static const char *find_text(const struct body *body)
{
    if (body->is_chat)
        return "messages";
    for (size_t i = 0; i < body->n_prompts; i++)
        if (body->prompts[i].text != NULL)
            return "prompt";
    return body->fields.n_stops > 0 ? "stop" : NULL;
}

enum status body_encode(struct body *body, const struct tokenizer *tokenizer, int32_t vocab_size,
                        const char *origin, struct fault *fault)
{
    const char *text = find_text(body);
    if (text != NULL && tokenizer == NULL)
        return fault_request(fault, STATUS_INVALID, text, BODY_CODE_VALUE,
                             "%s has no tokenizer.json: give the prompt as token ids, without stop "
                             "strings",
                             origin);
    if (body->is_chat) {
        struct err err;
        struct body_prompt *prompt = &body->prompts[0];
        enum status status =
            chat_encode(tokenizer, body->messages, body->n_messages, body->fields.enable_thinking,
                        &prompt->ids, &prompt->n_ids, &err);
        return status == STATUS_OK ? check_ids("messages", prompt, vocab_size, fault)
                                   : refuse_text("messages", &err, fault);
    }
    enum status status = STATUS_OK;
    for (size_t i = 0; i < body->n_prompts && status == STATUS_OK; i++) {
        struct body_prompt *prompt = &body->prompts[i];
        char name[32] = "prompt";
        if (body->n_prompts > 1)
            snprintf(name, sizeof name, "prompt[%zu]", i);
        if (prompt->text != NULL)
            status = encode_text(name, prompt, tokenizer, fault);
        if (status == STATUS_OK)
            status = check_ids(name, prompt, vocab_size, fault);
    }
    return status;
}
