/* The record of what a choice produced, token by token. */
#include "coordinator/answer_parts.h"

#include <stdlib.h>

enum { ANSWER_FIRST_TOKENS = 32 };

const struct body_prompt *answer_prompt(const struct answer *a, const struct answer_choice *c)
{
    return &a->body->prompts[c->prompt];
}

bool answer_has_echo(const struct answer *a)
{
    return a->body->fields.echo && !a->body->is_chat;
}

bool answer_has_exit_loops(const struct answer *a)
{
    return a->body->fields.return_exit_loops || a->always_exit_loops;
}

bool answer_has_ids(const struct answer *a)
{
    return a->body->fields.return_token_ids || a->tokenizer == NULL;
}

static bool grow(void **array, size_t cap, size_t item_bytes)
{
    void *grown = reallocarray(*array, cap, item_bytes);
    if (grown != NULL)
        *array = grown;
    return grown != NULL;
}

static size_t next_cap(size_t cap)
{
    return cap > 0 ? 2 * cap : ANSWER_FIRST_TOKENS;
}

/* Room for one more token; n of them are held. */
static bool reserve_token(struct answer_choice *c, size_t n, bool wants_details)
{
    if (n == c->cap_tokens) {
        size_t cap = next_cap(n);
        if (!grow((void **)&c->ids, cap, sizeof *c->ids) ||
            (wants_details && !grow((void **)&c->details, cap, sizeof *c->details)))
            return false;
        c->cap_tokens = cap;
    }
    if (c->n_exit_loops == c->cap_exit_loops) {
        size_t cap = next_cap(c->n_exit_loops);
        if (!grow((void **)&c->exit_loops, cap, sizeof *c->exit_loops))
            return false;
        c->cap_exit_loops = cap;
    }
    return true;
}

static void count_loops(struct answer_loops *loops, const struct control_token *token)
{
    loops->sum_exit_loops += token->exit_loop;
    for (uint32_t t = 0; t < token->exit_loop && t < SEQUENCE_MAX_LOOPS; t++) {
        loops->n_tokens[t]++;
        loops->wait_s[t] += (double)token->timings[t].wait_s;
        loops->compute_s[t] += (double)token->timings[t].compute_s;
        loops->hop_s[t] += (double)token->timings[t].hop_s;
    }
}

/* A text that ran out of memory says so for good: what it lacks cannot be had any more. */
static bool add_text(struct answer_choice *c, const char *text, size_t text_bytes)
{
    text_add(&c->text, text, text_bytes);
    return !c->text.is_broken;
}

bool answer_choice_take(struct answer_choice *c, const struct body_fields *fields,
                        const struct completion_token *token)
{
    size_t n = c->n_tokens - c->n_written;
    if ((fields->given & BODY_MAX_TOKENS) != 0 && fields->max_tokens == 0) {
        c->is_hidden = true;
        return true;
    }
    if (!reserve_token(c, n, fields->has_logprobs) || !add_text(c, token->text, token->text_bytes))
        return false;
    c->ids[n] = token->token->id;
    if (fields->has_logprobs)
        c->details[n] = *token->token;
    c->exit_loops[c->n_exit_loops++] = (uint8_t)token->token->exit_loop;
    count_loops(&c->loops, token->token);
    c->n_tokens++;
    return true;
}

bool answer_choice_end(struct answer_choice *c, enum finish_reason reason, const char *text,
                       size_t text_bytes)
{
    c->has_ended = true;
    c->reason = reason;
    if (!c->is_hidden)
        return add_text(c, text, text_bytes);
    /* Whatever stopped the token that is not shown, nothing was wanted after the prompt. */
    if (reason == FINISH_STOP)
        c->reason = FINISH_LENGTH;
    return true;
}

void answer_choice_free(struct answer_choice *c)
{
    free(c->ids);
    free(c->details);
    free(c->exit_loops);
    text_free(&c->text);
    *c = (struct answer_choice){0};
}
