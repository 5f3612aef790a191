/* Log-probabilities of a prompt's own tokens, put together from what the loops say of its rows.
 *
 * Token i >= 1 of the prompt is predicted by the row at position i - 1, at the loop where that row
 * leaves by the request's exit rule; token 0 is predicted by nothing. Rows arrive in any order, and
 * of one row the loops arrive in any order. */
#ifndef COORDINATOR_PROMPT_ROWS_H
#define COORDINATOR_PROMPT_ROWS_H

#include "proto/control.h"
#include "proto/sequence.h"

#include <stdbool.h>
#include <stdint.h>

struct prompt_row {
    uint32_t exit_loop; /* 0: not known yet */
    float logprob;      /* of the prompt's own token */
    uint32_t n_top;
    int32_t top_ids[SEQUENCE_MAX_LOGPROBS];
    float top_logprobs[SEQUENCE_MAX_LOGPROBS];
};

struct prompt_rows;

/* NULL: no memory. n_prompt >= 1. */
struct prompt_rows *prompt_rows_create(const int32_t *ids, uint32_t n_prompt,
                                       const struct sequence_params *params, uint32_t n_loops);
void prompt_rows_free(struct prompt_rows *rows); /* NULL is fine */
/* Takes what one loop says of one row; rows of generated positions are ignored. */
void prompt_rows_take(struct prompt_rows *rows, const struct control_observation *o);
/* All n_prompt - 1 rows have left. */
bool prompt_rows_are_complete(const struct prompt_rows *rows);
/* What predicts prompt token i, 1 <= i < n_prompt; only when complete. */
const struct prompt_row *prompt_rows_get(const struct prompt_rows *rows, uint32_t i);

#endif
