/* Whole answers, and the pieces that chunks are made of, too. */
#include "coordinator/answer_parts.h"

#include <math.h>

void answer_write_ids(const int32_t *ids, size_t n, struct json_writer *w)
{
    json_write_begin_array(w);
    for (size_t i = 0; i < n; i++)
        json_write_integer(w, ids[i]);
    json_write_end_array(w);
}

void answer_write_head(const struct answer *a, const char *object, struct json_writer *w)
{
    json_write_begin_object(w);
    json_write_key(w, "id");
    json_write_string(w, a->id);
    json_write_key(w, "object");
    json_write_string(w, object);
    json_write_key(w, "created");
    json_write_integer(w, a->created);
    json_write_key(w, "model");
    json_write_string(w, a->model);
}

void answer_write_tail(const struct answer *a, struct json_writer *w)
{
    if (a->fingerprint != NULL) {
        json_write_key(w, "system_fingerprint");
        json_write_string(w, a->fingerprint);
    }
    json_write_end_object(w);
}

void answer_write_usage(const struct answer *a, struct json_writer *w)
{
    uint64_t n_prompt = 0, n_completion = 0;
    for (size_t i = 0; i < a->body->n_prompts; i++)
        n_prompt += a->body->prompts[i].n_ids;
    for (uint32_t i = 0; i < a->n_choices; i++)
        n_completion += a->choices[i].n_tokens;
    json_write_begin_object(w);
    json_write_key(w, "prompt_tokens");
    json_write_integer(w, (int64_t)n_prompt);
    json_write_key(w, "completion_tokens");
    json_write_integer(w, (int64_t)n_completion);
    json_write_key(w, "total_tokens");
    json_write_integer(w, (int64_t)(n_prompt + n_completion));
    json_write_end_object(w);
}

/* ---- loop statistics ------------------------------------------------------------------------- */

/* Clocks say nothing below a microsecond. */
static void write_ms(const char *key, double seconds, struct json_writer *w)
{
    json_write_key(w, key);
    json_write_number(w, round(seconds * 1e6) / 1e3);
}

void answer_write_loop_stats(const struct answer *a, const struct answer_choice *first,
                             uint32_t n_choices, struct json_writer *w)
{
    uint64_t n_tokens = 0, sum_exit_loops = 0;
    struct answer_loops sum = {0};
    for (const struct answer_choice *c = first; c < first + n_choices; c++) {
        n_tokens += c->n_tokens;
        sum_exit_loops += c->loops.sum_exit_loops;
        for (uint32_t t = 0; t < a->n_loops && t < SEQUENCE_MAX_LOOPS; t++) {
            sum.n_tokens[t] += c->loops.n_tokens[t];
            sum.wait_s[t] += c->loops.wait_s[t];
            sum.compute_s[t] += c->loops.compute_s[t];
            sum.hop_s[t] += c->loops.hop_s[t];
        }
    }
    json_write_begin_object(w);
    json_write_key(w, "mean_exit_loop");
    json_write_number(w, n_tokens > 0 ? (double)sum_exit_loops / (double)n_tokens : 0.0);
    json_write_key(w, "per_loop");
    json_write_begin_array(w);
    for (uint32_t t = 0; t < a->n_loops && t < SEQUENCE_MAX_LOOPS; t++) {
        json_write_begin_object(w);
        json_write_key(w, "tokens");
        json_write_integer(w, (int64_t)sum.n_tokens[t]);
        write_ms("wait_ms", sum.wait_s[t], w);
        write_ms("compute_ms", sum.compute_s[t], w);
        write_ms("hop_ms", sum.hop_s[t], w);
        json_write_end_object(w);
    }
    json_write_end_array(w);
    if (answer_has_exit_loops(a)) {
        json_write_key(w, "exit_loops");
        json_write_begin_array(w);
        for (const struct answer_choice *c = first; c < first + n_choices; c++)
            for (size_t i = 0; i < c->n_exit_loops; i++)
                json_write_integer(w, c->exit_loops[i]);
        json_write_end_array(w);
    }
    json_write_end_object(w);
}

/* ---- whole answers --------------------------------------------------------------------------- */

static void write_text(const struct answer *a, const struct answer_choice *c, struct json_writer *w)
{
    if (!answer_has_echo(a)) {
        json_write_bytes(w, c->text.bytes, c->text.len_bytes);
        return;
    }
    struct text both = {0};
    answer_add_prompt_text(a, answer_prompt(a, c), &both);
    text_add(&both, c->text.bytes, c->text.len_bytes);
    json_write_bytes(w, both.bytes, both.len_bytes);
    w->out->is_broken = w->out->is_broken || both.is_broken;
    text_free(&both);
}

static void write_logprobs(const struct answer *a, const struct answer_choice *c,
                           struct json_writer *w)
{
    if (!a->body->fields.has_logprobs) {
        json_write_null(w);
    } else if (a->body->is_chat) {
        answer_write_chat_logprobs(a, c, c->n_tokens, w);
    } else {
        bool has_echo = answer_has_echo(a);
        struct answer_place place;
        answer_place_start(&place, a, has_echo ? answer_count_prompt(a, answer_prompt(a, c)) : 0);
        answer_write_text_logprobs(a, c, has_echo, c->n_tokens, &place, w);
    }
}

static void write_choice(const struct answer *a, const struct answer_choice *c,
                         struct json_writer *w)
{
    const struct body_prompt *prompt = answer_prompt(a, c);
    json_write_begin_object(w);
    json_write_key(w, "index");
    json_write_integer(w, c->index);
    if (a->body->is_chat) {
        json_write_key(w, "message");
        json_write_begin_object(w);
        json_write_key(w, "role");
        json_write_string(w, "assistant");
        json_write_key(w, "content");
        write_text(a, c, w);
        json_write_end_object(w);
    } else {
        json_write_key(w, "text");
        write_text(a, c, w);
    }
    json_write_key(w, "logprobs");
    write_logprobs(a, c, w);
    json_write_key(w, "finish_reason");
    json_write_string(w, finish_reason_name(c->reason));
    if (answer_has_ids(a)) {
        json_write_key(w, "token_ids");
        answer_write_ids(c->ids, c->n_tokens, w);
        json_write_key(w, "prompt_token_ids");
        answer_write_ids(prompt->ids, prompt->n_ids, w);
    }
    if (a->n_choices > 1) {
        json_write_key(w, "loop_stats");
        answer_write_loop_stats(a, c, 1, w);
    }
    json_write_end_object(w);
    w->out->is_broken = w->out->is_broken || c->text.is_broken;
}

void answer_write(const struct answer *a, struct text *out)
{
    struct json_writer w;
    json_writer_init(&w, out);
    answer_write_head(a, a->body->is_chat ? "chat.completion" : "text_completion", &w);
    json_write_key(&w, "choices");
    json_write_begin_array(&w);
    for (uint32_t i = 0; i < a->n_choices; i++)
        write_choice(a, &a->choices[i], &w);
    json_write_end_array(&w);
    json_write_key(&w, "usage");
    answer_write_usage(a, &w);
    json_write_key(&w, "loop_stats");
    answer_write_loop_stats(a, a->choices, a->n_choices, &w);
    answer_write_tail(a, &w);
}

void answer_write_fault(const struct fault *fault, struct text *out)
{
    struct json_writer w;
    json_writer_init(&w, out);
    json_write_begin_object(&w);
    json_write_key(&w, "error");
    json_write_begin_object(&w);
    json_write_key(&w, "message");
    json_write_string(&w, fault->err.message);
    json_write_key(&w, "type");
    json_write_string(&w, fault->type);
    json_write_key(&w, "param");
    json_write_string(&w, fault->param[0] != '\0' ? fault->param : NULL);
    json_write_key(&w, "code");
    json_write_string(&w, fault->code);
    json_write_end_object(&w);
    json_write_end_object(&w);
}
