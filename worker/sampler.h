/* Logits of one row to a token. Deterministic: a function of logits, history and (seed, position).
 *
 * Order of operations (as OpenAI clients and vLLM expect): logit bias, repetition / presence /
 * frequency penalties, stop-id mask below min_tokens, temperature, min-p, top-k, top-p, draw.
 * Greedy when temperature is 0: the largest logit after bias, penalties and mask, ties to the
 * smaller id. Log-probabilities are of the raw logits. */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include "proto/control.h"
#include "proto/sequence.h"
#include "proto/status.h"

#include <stdint.h>

struct sampler; /* scratch for one thread, sized by vocabulary */

enum status sampler_create(int vocab_size, struct sampler **out, struct err *err);
void sampler_destroy(struct sampler *s); /* NULL is fine */

/* History of the sequence, needed for penalties only: id of position p, p < n_history. */
struct sampler_history {
    const int32_t *pool_ids;
    const int32_t *blocks;
    int32_t block_size;
    uint32_t n_history; /* prompt_tokens + generated so far */
};

/* logits [vocab] is not changed. `position` is that of the token to be drawn. Writes id, logprob,
 * n_top, top_ids and top_logprobs of *token; without n_logprobs nothing asks for the normaliser, a
 * pass of exponentials over the vocabulary, and logprob is 0. top_* are fewer than n_logprobs when
 * the vocabulary is smaller. STATUS_CORRUPT when a logit is NaN or +inf, or all are -inf (weights
 * or input are broken: the message says so). STATUS_INVALID when bias and stop-id mask leave
 * nothing to draw. `history` may be NULL when no penalty is set. */
enum status sampler_sample(struct sampler *s, const struct sequence_params *params,
                           const float *logits, const struct sampler_history *history,
                           uint32_t position, struct control_token *token, struct err *err);

#endif
