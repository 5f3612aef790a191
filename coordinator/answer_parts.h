/* The pieces of which answer objects are made; for the answer_*.c files alone. */
#ifndef COORDINATOR_ANSWER_PARTS_H
#define COORDINATOR_ANSWER_PARTS_H

#include "coordinator/answer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- answer.c ------------------------------------------------------------------------------- */

const struct body_prompt *answer_prompt(const struct answer *a, const struct answer_choice *c);
/* The prompt stands in front of the text. */
bool answer_has_echo(const struct answer *a);
bool answer_has_exit_loops(const struct answer *a);
/* Without a tokenizer the ids are all there is. */
bool answer_has_ids(const struct answer *a);

/* ---- answer_place.c: where in the text a token begins ---------------------------------------- */

uint64_t answer_count_characters(const char *text, size_t len_bytes);
/* The place of the first token that is made; n_before characters stand in front of it. */
void answer_place_start(struct answer_place *p, const struct answer *a, uint64_t n_before);
/* The place of the prompt's first token, 0. */
void answer_place_start_prompt(struct answer_place *p, const struct answer *a,
                               const struct body_prompt *prompt);
/* Goes past a token. */
void answer_place_pass(struct answer_place *p, int32_t id);
/* Characters of text that must be there before all that is known of the tokens passed is. */
uint64_t answer_place_end(const struct answer_place *p);
/* Adds the prompt's text, as it came or as its ids spell it. */
void answer_add_prompt_text(const struct answer *a, const struct body_prompt *prompt,
                            struct text *out);
/* Characters of that text. */
uint64_t answer_count_prompt(const struct answer *a, const struct body_prompt *prompt);

/* ---- answer_logprobs.c ----------------------------------------------------------------------- */

/* Both write an object for the first n_tokens that the choice holds. The classic shape takes the
 * tokens of the echoed prompt in front, and *place, which is that of the first token written, past
 * the last one. */
void answer_write_chat_logprobs(const struct answer *a, const struct answer_choice *c,
                                size_t n_tokens, struct json_writer *w);
void answer_write_text_logprobs(const struct answer *a, const struct answer_choice *c,
                                bool with_prompt, size_t n_tokens, struct answer_place *place,
                                struct json_writer *w);

/* ---- answer_write.c -------------------------------------------------------------------------- */

/* Opens the object: "id", "object", "created", "model". */
void answer_write_head(const struct answer *a, const char *object, struct json_writer *w);
/* "system_fingerprint", and the object's end. */
void answer_write_tail(const struct answer *a, struct json_writer *w);
void answer_write_usage(const struct answer *a, struct json_writer *w); /* the value */
void answer_write_ids(const int32_t *ids, size_t n, struct json_writer *w);

#endif
