/* Chunks of a stream: what a choice has that no chunk has carried. */
#include "coordinator/answer_parts.h"

#include <string.h>

static const char *chunk_object(const struct answer *a)
{
    return a->body->is_chat ? "chat.completion.chunk" : "text_completion";
}

static bool ends_well(const struct answer_choice *c)
{
    return c->has_ended && (c->reason == FINISH_STOP || c->reason == FINISH_LENGTH);
}

static size_t count_held(const struct answer_choice *c)
{
    return c->n_tokens - c->n_written;
}

/* The prompt's log-probabilities are still on their way. */
static bool waits_for_rows(const struct answer *a, const struct answer_choice *c)
{
    return answer_has_echo(a) && a->body->fields.has_logprobs && !c->has_ended &&
           answer_prompt(a, c)->n_ids > 1 &&
           (c->prompt_rows == NULL || !prompt_rows_are_complete(c->prompt_rows));
}

static bool has_news(const struct answer *a, const struct answer_choice *c)
{
    if (c->is_finished)
        return false;
    if (!c->is_begun && waits_for_rows(a, c))
        return false;
    if (!c->is_begun && (a->body->is_chat || answer_has_echo(a)))
        return true;
    return ends_well(c) || c->text.len_bytes > 0 ||
           ((a->tokenizer == NULL || c->has_ended) && count_held(c) > 0);
}

/* The tokens that go with the text there is; *after is the place behind them. Where they are not
 * shown one by one it does not matter which, and they are all. */
static size_t count_ready(const struct answer *a, const struct answer_choice *c,
                          struct answer_place *after)
{
    size_t n_held = count_held(c);
    const struct body_fields *f = &a->body->fields;
    *after = c->place;
    if (a->tokenizer == NULL || !(f->has_logprobs || f->return_token_ids))
        return n_held;
    for (size_t i = 0; i < n_held; i++) {
        struct answer_place next = *after;
        answer_place_pass(&next, c->ids[i]);
        if (!c->has_ended && answer_place_end(&next) > c->n_sent)
            return i;
        *after = next;
    }
    return n_held;
}

/* ---- pieces ---------------------------------------------------------------------------------- */

static void write_usage_null(const struct answer *a, struct json_writer *w)
{
    if (!a->body->fields.include_usage)
        return;
    json_write_key(w, "usage");
    json_write_null(w);
}

static void write_prompt_ids(const struct answer *a, const struct answer_choice *c,
                             struct json_writer *w)
{
    const struct body_prompt *prompt = answer_prompt(a, c);
    if (!answer_has_ids(a))
        return;
    json_write_key(w, "prompt_token_ids");
    answer_write_ids(prompt->ids, prompt->n_ids, w);
}

static void write_role_chunk(const struct answer *a, const struct answer_choice *c,
                             struct json_writer *w)
{
    answer_write_head(a, chunk_object(a), w);
    json_write_key(w, "choices");
    json_write_begin_array(w);
    json_write_begin_object(w);
    json_write_key(w, "index");
    json_write_integer(w, c->index);
    json_write_key(w, "delta");
    json_write_begin_object(w);
    json_write_key(w, "role");
    json_write_string(w, "assistant");
    json_write_key(w, "content");
    json_write_string(w, "");
    json_write_end_object(w);
    json_write_key(w, "logprobs");
    json_write_null(w);
    json_write_key(w, "finish_reason");
    json_write_null(w);
    write_prompt_ids(a, c, w);
    json_write_end_object(w);
    json_write_end_array(w);
    write_usage_null(a, w);
    answer_write_tail(a, w);
}

/* "delta" or "text"; a chat's last delta is empty where nothing is left to say. */
static void write_text(const struct answer *a, const struct text *text, struct json_writer *w)
{
    json_write_key(w, a->body->is_chat ? "delta" : "text");
    if (!a->body->is_chat) {
        json_write_bytes(w, text->bytes, text->len_bytes);
        return;
    }
    json_write_begin_object(w);
    if (text->len_bytes > 0) {
        json_write_key(w, "content");
        json_write_bytes(w, text->bytes, text->len_bytes);
    }
    json_write_end_object(w);
}

static void write_logprobs(const struct answer *a, const struct answer_choice *c, bool with_prompt,
                           size_t n_ready, struct json_writer *w)
{
    struct answer_place place = c->place;
    json_write_key(w, "logprobs");
    if (!a->body->fields.has_logprobs || (n_ready == 0 && !with_prompt))
        json_write_null(w);
    else if (a->body->is_chat)
        answer_write_chat_logprobs(a, c, n_ready, w);
    else
        answer_write_text_logprobs(a, c, with_prompt, n_ready, &place, w);
}

static void write_choice(const struct answer *a, const struct answer_choice *c, bool with_prompt,
                         const struct text *text, size_t n_ready, struct json_writer *w)
{
    json_write_begin_object(w);
    json_write_key(w, "index");
    json_write_integer(w, c->index);
    write_text(a, text, w);
    write_logprobs(a, c, with_prompt, n_ready, w);
    json_write_key(w, "finish_reason");
    json_write_string(w, ends_well(c) ? finish_reason_name(c->reason) : NULL);
    if (answer_has_ids(a)) {
        json_write_key(w, "token_ids");
        answer_write_ids(c->ids, n_ready, w);
    }
    if (!c->is_begun)
        write_prompt_ids(a, c, w);
    json_write_end_object(w);
}

/* Drops what has been written; a choice that ended has no further use for its list of exits. */
static void forget(const struct answer *a, struct answer_choice *c, size_t n_ready,
                   const struct answer_place *after)
{
    size_t n_left = count_held(c) - n_ready;
    if (n_left > 0)
        memmove(c->ids, c->ids + n_ready, n_left * sizeof *c->ids);
    if (n_left > 0 && c->details != NULL)
        memmove(c->details, c->details + n_ready, n_left * sizeof *c->details);
    c->n_written += n_ready;
    c->place = *after;
    c->is_begun = true;
    text_reset(&c->text);
    if (!answer_has_exit_loops(a))
        c->n_exit_loops = 0;
}

/* ---- chunks ---------------------------------------------------------------------------------- */

static void write_content_chunk(const struct answer *a, struct answer_choice *c, struct text *out)
{
    bool has_prompt = answer_has_echo(a) && !c->is_begun;
    struct text both = {0};
    const struct text *text = &c->text;
    struct answer_place after;
    struct json_writer w;
    if (has_prompt) {
        answer_add_prompt_text(a, answer_prompt(a, c), &both);
        c->n_sent = answer_count_characters(both.bytes, both.len_bytes);
        text_add(&both, c->text.bytes, c->text.len_bytes);
        text = &both;
    }
    if (!c->is_begun || c->place.detokenizer.tokenizer == NULL)
        answer_place_start(&c->place, a, c->n_sent);
    c->n_sent += answer_count_characters(c->text.bytes, c->text.len_bytes);
    size_t n_ready = count_ready(a, c, &after);
    json_writer_init(&w, out);
    answer_write_head(a, chunk_object(a), &w);
    json_write_key(&w, "choices");
    json_write_begin_array(&w);
    write_choice(a, c, has_prompt, text, n_ready, &w);
    json_write_end_array(&w);
    write_usage_null(a, &w);
    if (ends_well(c)) {
        json_write_key(&w, "loop_stats");
        answer_write_loop_stats(a, c, 1, &w);
    }
    answer_write_tail(a, &w);
    out->is_broken = out->is_broken || both.is_broken || c->text.is_broken;
    text_free(&both);
    forget(a, c, n_ready, &after);
    c->is_finished = c->has_ended;
}

bool answer_write_chunk(struct answer *a, uint32_t choice, struct text *out)
{
    struct answer_choice *c = &a->choices[choice];
    if (!has_news(a, c))
        return false;
    if (a->body->is_chat && !c->is_begun) {
        struct json_writer w;
        json_writer_init(&w, out);
        write_role_chunk(a, c, &w);
        c->is_begun = true;
        return true;
    }
    write_content_chunk(a, c, out);
    return true;
}

void answer_write_usage_chunk(const struct answer *a, struct text *out)
{
    struct json_writer w;
    json_writer_init(&w, out);
    answer_write_head(a, chunk_object(a), &w);
    json_write_key(&w, "choices");
    json_write_begin_array(&w);
    json_write_end_array(&w);
    json_write_key(&w, "usage");
    answer_write_usage(a, &w);
    answer_write_tail(a, &w);
}
