/* Log-probabilities of an answer's tokens, in the shape of a chat and in the classic one. */
#include "coordinator/answer_parts.h"

#include <stdio.h>
#include <string.h>

enum { SPELLED_BYTES = 16 + 4 * TOKENIZER_MAX_TOKEN_BYTES };

/* What OpenAI's API says of a token that is next to impossible, minus infinity among them. */
static const float least_logprob = -9999.0f;

static void write_logprob(float logprob, struct json_writer *w)
{
    /* Written so that NaN is caught, too. */
    json_write_float(w, logprob >= least_logprob ? logprob : least_logprob);
}

/* ---- tokens as strings ----------------------------------------------------------------------- */

static const char *token_bytes(const struct answer *a, int32_t id, size_t *n)
{
    *n = 0;
    return a->tokenizer != NULL ? tokenizer_token_bytes(a->tokenizer, id, n) : NULL;
}

/* The token's text, in `room` where it has to be made: a token that is no UTF-8 by itself is
 * written as \x.., as OpenAI's API does. So is one with a NUL, which many readers refuse in a key.
 */
static const char *spell(const struct answer *a, int32_t id, char room[SPELLED_BYTES], size_t *n)
{
    const char *bytes = token_bytes(a, id, n);
    if (bytes == NULL) {
        *n = (size_t)snprintf(room, SPELLED_BYTES, "token_id:%d", (int)id);
        return room;
    }
    if (json_is_utf8(bytes, *n) && memchr(bytes, '\0', *n) == NULL)
        return bytes;
    static const char head[] = "bytes:", digits[] = "0123456789abcdef";
    size_t at = sizeof head - 1;
    memcpy(room, head, at);
    for (size_t i = 0; i < *n; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        const char shown[4] = {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        memcpy(room + at, shown, sizeof shown);
        at += sizeof shown;
    }
    *n = at;
    return room;
}

static void write_token(const struct answer *a, int32_t id, struct json_writer *w)
{
    char room[SPELLED_BYTES];
    size_t n;
    const char *string = spell(a, id, room, &n);
    json_write_bytes(w, string, n);
}

static bool is_spelled_alike(const struct answer *a, int32_t id, int32_t other)
{
    size_t n, n_other;
    if (id == other)
        return true;
    const char *bytes = token_bytes(a, id, &n), *other_bytes = token_bytes(a, other, &n_other);
    return bytes != NULL && other_bytes != NULL && n == n_other &&
           memcmp(bytes, other_bytes, n) == 0;
}

/* ---- chat ------------------------------------------------------------------------------------ */

/* "token", "logprob", "bytes" */
static void write_chat_token(const struct answer *a, int32_t id, float logprob,
                             struct json_writer *w)
{
    size_t n;
    const char *bytes = token_bytes(a, id, &n);
    json_write_key(w, "token");
    write_token(a, id, w);
    json_write_key(w, "logprob");
    write_logprob(logprob, w);
    json_write_key(w, "bytes");
    if (bytes == NULL) {
        json_write_null(w);
        return;
    }
    json_write_begin_array(w);
    for (size_t i = 0; i < n; i++)
        json_write_integer(w, (unsigned char)bytes[i]);
    json_write_end_array(w);
}

void answer_write_chat_logprobs(const struct answer *a, const struct answer_choice *c,
                                size_t n_tokens, struct json_writer *w)
{
    json_write_begin_object(w);
    json_write_key(w, "content");
    json_write_begin_array(w);
    for (size_t i = 0; i < n_tokens; i++) {
        const struct control_token *d = &c->details[i];
        json_write_begin_object(w);
        write_chat_token(a, d->id, d->logprob, w);
        json_write_key(w, "top_logprobs");
        json_write_begin_array(w);
        for (uint32_t k = 0; k < d->n_top && (int64_t)k < a->body->fields.top_logprobs; k++) {
            json_write_begin_object(w);
            write_chat_token(a, d->top_ids[k], d->top_logprobs[k], w);
            json_write_end_object(w);
        }
        json_write_end_array(w);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    json_write_end_object(w);
}

/* ---- the classic shape ----------------------------------------------------------------------- */

/* A token of the prompt or of the completion. */
struct item {
    int32_t id;
    bool is_predicted; /* the rest is known */
    float logprob;
    uint32_t n_top;
    const int32_t *top_ids;
    const float *top_logprobs;
};

/* The tokens of one object: n_prompt of the prompt, then those of the choice. */
struct items {
    const struct answer *a;
    const struct answer_choice *c;
    size_t n_prompt, n;
};

static struct item item_of(const struct items *items, size_t i)
{
    if (i >= items->n_prompt) {
        const struct control_token *d = &items->c->details[i - items->n_prompt];
        return (struct item){d->id, true, d->logprob, d->n_top, d->top_ids, d->top_logprobs};
    }
    struct item item = {.id = answer_prompt(items->a, items->c)->ids[i]};
    const struct prompt_rows *rows = items->c->prompt_rows;
    /* Nothing predicts the first one. */
    if (i > 0 && rows != NULL && prompt_rows_are_complete(rows)) {
        const struct prompt_row *row = prompt_rows_get(rows, (uint32_t)i);
        item =
            (struct item){item.id, true, row->logprob, row->n_top, row->top_ids, row->top_logprobs};
    }
    return item;
}

/* {token: logprob, ...}: the best ones, and the token itself where it is none of them. */
static void write_top(const struct answer *a, const struct item *item, struct json_writer *w)
{
    char room[SPELLED_BYTES];
    size_t n;
    bool is_among = false;
    json_write_begin_object(w);
    for (uint32_t k = 0; k < item->n_top && (int64_t)k < a->body->fields.top_logprobs; k++) {
        bool is_new = true;
        for (uint32_t j = 0; j < k && is_new; j++)
            is_new = !is_spelled_alike(a, item->top_ids[j], item->top_ids[k]);
        if (!is_new) /* a key stands once in an object; the better token has come first */
            continue;
        is_among = is_among || is_spelled_alike(a, item->top_ids[k], item->id);
        const char *key = spell(a, item->top_ids[k], room, &n);
        json_write_key_bytes(w, key, n);
        write_logprob(item->top_logprobs[k], w);
    }
    if (!is_among) {
        const char *key = spell(a, item->id, room, &n);
        json_write_key_bytes(w, key, n);
        write_logprob(item->logprob, w);
    }
    json_write_end_object(w);
}

static void write_tokens(const struct items *items, struct json_writer *w)
{
    json_write_begin_array(w);
    for (size_t i = 0; i < items->n; i++)
        write_token(items->a, item_of(items, i).id, w);
    json_write_end_array(w);
}

static void write_token_logprobs(const struct items *items, struct json_writer *w)
{
    json_write_begin_array(w);
    for (size_t i = 0; i < items->n; i++) {
        struct item item = item_of(items, i);
        if (item.is_predicted)
            write_logprob(item.logprob, w);
        else
            json_write_null(w);
    }
    json_write_end_array(w);
}

static void write_tops(const struct items *items, struct json_writer *w)
{
    if (items->a->body->fields.top_logprobs == 0) {
        json_write_null(w);
        return;
    }
    json_write_begin_array(w);
    for (size_t i = 0; i < items->n; i++) {
        struct item item = item_of(items, i);
        if (item.is_predicted)
            write_top(items->a, &item, w);
        else
            json_write_null(w);
    }
    json_write_end_array(w);
}

static void write_offsets(const struct items *items, struct answer_place *place,
                          struct json_writer *w)
{
    struct answer_place in_prompt;
    if (items->n_prompt > 0)
        answer_place_start_prompt(&in_prompt, items->a, answer_prompt(items->a, items->c));
    json_write_begin_array(w);
    for (size_t i = 0; i < items->n; i++) {
        struct answer_place *p = i < items->n_prompt ? &in_prompt : place;
        json_write_integer(w, (int64_t)p->n_characters);
        answer_place_pass(p, item_of(items, i).id);
    }
    json_write_end_array(w);
}

void answer_write_text_logprobs(const struct answer *a, const struct answer_choice *c,
                                bool with_prompt, size_t n_tokens, struct answer_place *place,
                                struct json_writer *w)
{
    struct items items = {.a = a, .c = c};
    items.n_prompt = with_prompt ? answer_prompt(a, c)->n_ids : 0;
    items.n = items.n_prompt + n_tokens;
    json_write_begin_object(w);
    json_write_key(w, "tokens");
    write_tokens(&items, w);
    json_write_key(w, "token_logprobs");
    write_token_logprobs(&items, w);
    json_write_key(w, "top_logprobs");
    write_tops(&items, w);
    json_write_key(w, "text_offset");
    write_offsets(&items, place, w);
    json_write_end_object(w);
}
