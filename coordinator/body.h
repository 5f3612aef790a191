/* A request body: what a client asks for, checked, with nothing of the engine or of HTTP in it.
 *
 * The same fields whether they come over HTTP or as a line of a batch file. Pure: bytes in, struct
 * out. A field that is null counts as not given, unknown fields are ignored, a wrong type or range
 * is an error that names the field. docs/http.md and docs/cli.md list the fields. */
#ifndef COORDINATOR_BODY_H
#define COORDINATOR_BODY_H

#include "coordinator/fault.h"
#include "model/chat.h"
#include "model/tokenizer.h"
#include "proto/sequence.h"
#include "proto/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BODY_MAX_CHOICES = 4096, /* prompts * n of one request: all are held until it is answered */
    BODY_MAX_N = 128,
    BODY_MAX_STOPS = 16,
    BODY_MAX_STOP_BYTES = 256
};

/* Bits of body_fields.given. */
enum body_field {
    BODY_MAX_TOKENS = 1 << 0,
    BODY_MIN_TOKENS = 1 << 1,
    BODY_TEMPERATURE = 1 << 2,
    BODY_TOP_K = 1 << 3,
    BODY_TOP_P = 1 << 4,
    BODY_MIN_P = 1 << 5,
    BODY_REPETITION_PENALTY = 1 << 6,
    BODY_PRESENCE_PENALTY = 1 << 7,
    BODY_FREQUENCY_PENALTY = 1 << 8,
    BODY_SEED = 1 << 9,
    BODY_IGNORE_EOS = 1 << 10,
    BODY_N = 1 << 11,
    BODY_LOOPS_MODE = 1 << 12,
    BODY_LOOPS_MAX = 1 << 13,
    BODY_LOOPS_MIN = 1 << 14,
    BODY_EXIT_THRESHOLD = 1 << 15,
    BODY_STOP = 1 << 16,
    BODY_LOGPROBS = 1 << 17,
    BODY_OTHER = 1 << 18 /* flags whose default is all one needs to know */
};

struct body_fields {
    uint32_t given;
    int64_t max_tokens; /* 0 with echo only: the prompt alone is wanted */
    int64_t min_tokens, top_k, n, seed;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    bool ignore_eos, echo, include_stop, skip_special, return_token_ids, enable_thinking;
    bool stream, include_usage;
    bool return_exit_loops; /* loops.return_exit_loops: one number per token in loop_stats */
    bool has_logprobs;      /* log-probabilities are asked for ... */
    int64_t top_logprobs;   /* ... and so many alternatives, maybe 0 */
    enum exit_mode exit_mode;
    int64_t max_loops, min_loops;
    double exit_threshold;
    uint32_t n_stops;
    const char *stops[BODY_MAX_STOPS];
    uint32_t n_stop_ids;
    int32_t stop_ids[SEQUENCE_MAX_STOP_IDS];
    uint32_t n_biases;
    int32_t bias_ids[SEQUENCE_MAX_LOGIT_BIAS];
    float biases[SEQUENCE_MAX_LOGIT_BIAS];
    const char *model; /* as asked for; NULL: none */
};

struct body_prompt {
    const char *text; /* NULL: the prompt came as ids, or the request is a chat */
    size_t text_bytes;
    int32_t *ids; /* [n_ids]; for text and chat from body_encode on */
    size_t n_ids;
};

struct body {
    bool is_chat;
    size_t n_prompts; /* 1 for chat */
    struct body_prompt *prompts;
    size_t n_messages;
    struct chat_message *messages;
    struct body_fields fields;
    json_t *root;  /* owns the strings above */
    json_t *owned; /* array of strings joined from parts */
};

/* Reads a body. STATUS_CORRUPT: not strict JSON, or no object; STATUS_INVALID: a field;
 * STATUS_NO_MEMORY. On failure *out is empty. */
enum status body_parse(bool is_chat, const char *json, size_t len_bytes, struct body *out,
                       struct fault *fault);
/* The same from a parsed object, of which *out keeps a reference. */
enum status body_read(bool is_chat, json_t *object, struct body *out, struct fault *fault);
void body_clear(struct body *body); /* a zeroed one is fine */

/* Choices it asks for: prompts * n. Choice i belongs to prompt i / n. */
uint32_t body_n_choices(const struct body *body);

/* Fills in the ids of all prompts. tokenizer may be NULL: then text, chat and stop strings are
 * STATUS_INVALID. `origin` is the model directory for messages. STATUS_INVALID: an empty prompt, a
 * role, an id outside the vocabulary (0 .. vocab_size - 1). */
enum status body_encode(struct body *body, const struct tokenizer *tokenizer, int32_t vocab_size,
                        const char *origin, struct fault *fault);

/* Writes what the body gives over *params, which holds the defaults (model's stop ids included:
 * ignore_eos takes them out, stop_token_ids adds), and checks the result against the model and the
 * longest prompt, whose length is prompt_tokens afterwards: prompt + max_tokens > max_positions is
 * code context_length_exceeded. A body that gives no max_tokens gets the default, but no more than
 * what the context has left, and that where the default is 0 (chat). The seed is that of choice 0
 * of n; choice i draws with seed + i. Log-probabilities of the prompt (echo with logprobs) are
 * asked for by the observe_* fields, which fit the longest prompt: with several, n_observe_targets
 * is n_ids - 1 of each, and one of a single token is not observed; the targets are prompt ids 1..
 * On failure *params stays as it was. */
struct model_config;
enum status body_apply(const struct body *body, const struct model_config *model,
                       struct sequence_params *params, struct fault *fault);
/* Whether the log-probabilities of the prompt's own tokens are wanted. */
bool body_wants_prompt_logprobs(const struct body *body);

#endif
