/* An answer that is made by hand: a body of literals, and tokens that go through the same cutting
 * into text as the coordinator's. */
#ifndef TESTS_ANSWER_FEED_H
#define TESTS_ANSWER_FEED_H

#include "coordinator/answer.h"
#include "coordinator/completion.h"
#include "tests/tokenizer_fixture.h"

#include <assert.h>

enum { FEED_MAX_CHOICES = 4, FEED_LOOPS = 2 };

/* What the answer reads of a prompt's log-probabilities; these stand for prompt_rows.c. */
struct prompt_rows {
    bool is_complete;
    uint32_t n_prompt;
    struct prompt_row rows[16];
};

bool prompt_rows_are_complete(const struct prompt_rows *rows)
{
    return rows->is_complete;
}

const struct prompt_row *prompt_rows_get(const struct prompt_rows *rows, uint32_t i)
{
    assert(i >= 1 && i < rows->n_prompt);
    return &rows->rows[i];
}

struct feed {
    struct tokenizer *tokenizer;
    struct body body;
    struct answer answer;
    struct answer_choice choices[FEED_MAX_CHOICES];
    struct completion completions[FEED_MAX_CHOICES];
    struct prompt_rows rows; /* of prompt 0 */
};

/* Ids of the fixture: one for each byte, from 3 on. */
static inline int32_t feed_id(char byte)
{
    return 3 + (unsigned char)byte;
}

/* A log-probability and alternatives that follow from id and place. */
static inline void feed_top(int32_t id, uint32_t place, float *logprob, uint32_t *n_top,
                            int32_t *top_ids, float *top_logprobs)
{
    *logprob = -0.25f * (float)(place % 5 + 1);
    *n_top = 2;
    top_ids[0] = place % 2 == 0 ? id : id + 1; /* the best one is not always taken */
    top_ids[1] = id + 2;
    top_logprobs[0] = place % 2 == 0 ? *logprob : -0.125f;
    top_logprobs[1] = *logprob - 1;
}

/* The body's fields and prompts are set; n_choices = prompts * n. */
static inline void feed_begin(struct feed *f)
{
    const struct body_fields *fields = &f->body.fields;
    f->answer = (struct answer){.body = &f->body,
                                .tokenizer = f->tokenizer,
                                .id = "x",
                                .model = "m",
                                .created = 7,
                                .n_loops = FEED_LOOPS,
                                .n_choices = (uint32_t)(f->body.n_prompts * (size_t)fields->n),
                                .choices = f->choices};
    f->rows = (struct prompt_rows){.is_complete = true};
    f->rows.n_prompt = (uint32_t)f->body.prompts[0].n_ids;
    assert(f->answer.n_choices <= FEED_MAX_CHOICES && f->rows.n_prompt <= 16);
    for (uint32_t i = 1; i < f->rows.n_prompt; i++) {
        struct prompt_row *row = &f->rows.rows[i];
        feed_top(f->body.prompts[0].ids[i], i, &row->logprob, &row->n_top, row->top_ids,
                 row->top_logprobs);
    }
    for (uint32_t i = 0; i < f->answer.n_choices; i++) {
        f->choices[i] =
            (struct answer_choice){.index = i, .prompt = (uint32_t)(i / (size_t)fields->n)};
        if (fields->echo && fields->has_logprobs)
            f->choices[i].prompt_rows = &f->rows;
        enum status status =
            completion_init(&f->completions[i], f->tokenizer, !fields->skip_special,
                            fields->include_stop, fields->stops, fields->n_stops, NULL);
        assert(status == STATUS_OK);
        (void)status;
    }
}

/* False: no memory. */
static inline bool feed_token(struct feed *f, uint32_t choice, int32_t id, uint32_t exit_loop)
{
    char text[COMPLETION_TEXT_BYTES];
    uint32_t index = (uint32_t)f->choices[choice].n_tokens;
    struct control_token token = {.id = id, .exit_loop = exit_loop};
    feed_top(id, index, &token.logprob, &token.n_top, token.top_ids, token.top_logprobs);
    for (uint32_t t = 0; t < exit_loop; t++)
        token.timings[t] = (struct loop_timing){.hop_s = 0.5f, .wait_s = 0.25f, .compute_s = 2};
    struct completion_token t = {.token = &token, .index = index, .text = text};
    t.text_bytes = completion_push(&f->completions[choice], id, text);
    return answer_choice_take(&f->choices[choice], &f->body.fields, &t);
}

static inline bool feed_end(struct feed *f, uint32_t choice, enum finish_reason reason)
{
    char text[COMPLETION_TEXT_BYTES];
    size_t n = completion_flush(&f->completions[choice], text);
    return answer_choice_end(&f->choices[choice], reason, text, n);
}

static inline void feed_finish(struct feed *f)
{
    for (uint32_t i = 0; i < f->answer.n_choices; i++)
        answer_choice_free(&f->choices[i]);
}

#endif
