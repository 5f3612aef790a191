/* What a request produced, as OpenAI response objects: whole, or chunk by chunk for a stream.
 *
 * One place writes them for HTTP and for batch files, so that both say the same. The record of a
 * choice grows by answer_choice_take as tokens come; the writers put JSON into a text. Log-
 * probabilities, token ids and loop statistics follow the body's fields. docs/http.md shows every
 * shape. */
#ifndef COORDINATOR_ANSWER_H
#define COORDINATOR_ANSWER_H

#include "coordinator/body.h"
#include "coordinator/coordinator.h"
#include "coordinator/json_writer.h"
#include "coordinator/prompt_rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sums over the tokens of a choice; loop t is [t - 1]. */
struct answer_loops {
    uint64_t n_tokens[SEQUENCE_MAX_LOOPS]; /* that ran the loop */
    double wait_s[SEQUENCE_MAX_LOOPS], compute_s[SEQUENCE_MAX_LOOPS], hop_s[SEQUENCE_MAX_LOOPS];
    uint64_t sum_exit_loops;
};

/* Where in the text a token begins: characters, not bytes. */
struct answer_place {
    struct detokenizer detokenizer; /* of the tokens before it */
    uint64_t n_characters;
    const char *text; /* a prompt that came as text, from here on; NULL: tokens are all there is */
    size_t text_bytes;
};

struct answer_choice {
    uint32_t index, prompt; /* which of the body's */
    bool has_ended;
    enum finish_reason reason;
    size_t n_tokens; /* all of it, written or not; what is held of them has room for cap_tokens */
    size_t cap_tokens, n_exit_loops, cap_exit_loops;
    int32_t *ids;                  /* [n_tokens - n_written] */
    struct control_token *details; /* the same; only where log-probabilities are asked for */
    uint8_t *exit_loops;           /* [n_exit_loops]: all, in a stream only where asked for */
    struct text text;              /* all of it, or what no chunk has carried yet */
    struct answer_loops loops;
    const struct prompt_rows *prompt_rows; /* log-probabilities of the prompt; NULL: not wanted */
    /* The writer's own, of a stream. */
    size_t n_written;          /* tokens that earlier chunks carried */
    uint64_t n_sent;           /* characters that they carried, an echoed prompt among them */
    struct answer_place place; /* of the first token not written */
    bool is_begun;             /* a chunk of it was written: role, echo */
    bool is_finished;          /* ... the last one, too */
    bool is_hidden;            /* max_tokens 0: its one token is not shown */
};

/* The whole answer's frame. All pointers are borrowed. */
struct answer {
    const struct body *body;
    const struct tokenizer *tokenizer; /* NULL: ids are all there is */
    const char *id;                    /* "chatcmpl-..." */
    const char *model;
    const char *fingerprint; /* system_fingerprint; NULL: none is written */
    int64_t created;         /* unix seconds */
    uint32_t n_loops;        /* T of the model */
    bool always_exit_loops; /* loop_stats.exit_loops also without loops.return_exit_loops (batch) */
    uint32_t n_choices;
    struct answer_choice *choices;
};

/* False: no memory; the token is then not part of the answer. completion_token's text included; at
 * the end the held-back text is added to choice->text by answer_choice_end. Where the body wants
 * the prompt alone (max_tokens 0 with echo), the one token that is run leaves no trace. */
bool answer_choice_take(struct answer_choice *c, const struct body_fields *fields,
                        const struct completion_token *token);
bool answer_choice_end(struct answer_choice *c, enum finish_reason reason, const char *text,
                       size_t text_bytes);
void answer_choice_free(struct answer_choice *c);

/* {"id", "object", "created", "model", "choices": [...], "usage", "system_fingerprint",
 * "loop_stats"}; a failed allocation shows as out->is_broken. */
void answer_write(const struct answer *a, struct text *out);

/* One chunk object (no "data: ", no newlines) with what the choice has and no chunk has carried;
 * the prompt in the first of an echo, and finish_reason and loop_stats when it has ended. Call it
 * until it returns false, which says that there is nothing to say (yet) and nothing was written: a
 * chat's first chunk is the role alone, and what the choice has comes with the next.
 *
 * Tokens whose text is held back come with the chunk that carries their text, or with the last; an
 * echo with log-probabilities waits for its prompt_rows. A choice that ended with FINISH_ERROR or
 * _CANCELLED gives the rest of its text and no finish_reason: the caller says what went wrong.
 * Afterwards the choice has forgotten what was written, but for counts and sums, so that a long
 * stream needs no memory. */
bool answer_write_chunk(struct answer *a, uint32_t choice, struct text *out);
/* The chunk with choices [] and usage, for stream_options.include_usage. */
void answer_write_usage_chunk(const struct answer *a, struct text *out);

/* {"error": {...}} of a fault. */
void answer_write_fault(const struct fault *fault, struct text *out);
/* The loop_stats object of some choices. */
void answer_write_loop_stats(const struct answer *a, const struct answer_choice *first,
                             uint32_t n_choices, struct json_writer *w);

#endif
