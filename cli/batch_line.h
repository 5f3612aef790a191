/* One line of a batch input file: what it asks for, checked, with nothing of the engine in it.
 *
 * Two shapes are read: the OpenAI batch line {"custom_id", "method", "url", "body"} and the plain
 * line {"prompt": ...} with the body's fields beside it. Pure: bytes in, struct out; docs/cli.md
 * lists the fields. A field that is null counts as not given, unknown fields are ignored, a wrong
 * type is an error that names the field. */
#ifndef CLI_BATCH_LINE_H
#define CLI_BATCH_LINE_H

#include "model/chat.h"
#include "proto/sequence.h"
#include "proto/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BATCH_MAX_CUSTOM_ID_BYTES = 512,
    BATCH_MAX_CHOICES = 4096, /* prompts * n of one line: all are held until the line is written */
    BATCH_MAX_STOPS = 16,
    BATCH_MAX_STOP_BYTES = 256
};

/* Bits of batch_fields.given. */
enum batch_field {
    BATCH_MAX_TOKENS = 1 << 0,
    BATCH_MIN_TOKENS = 1 << 1,
    BATCH_TEMPERATURE = 1 << 2,
    BATCH_TOP_K = 1 << 3,
    BATCH_TOP_P = 1 << 4,
    BATCH_MIN_P = 1 << 5,
    BATCH_REPETITION_PENALTY = 1 << 6,
    BATCH_PRESENCE_PENALTY = 1 << 7,
    BATCH_FREQUENCY_PENALTY = 1 << 8,
    BATCH_SEED = 1 << 9,
    BATCH_IGNORE_EOS = 1 << 10,
    BATCH_N = 1 << 11,
    BATCH_LOOPS_MODE = 1 << 12,
    BATCH_LOOPS_MAX = 1 << 13,
    BATCH_LOOPS_MIN = 1 << 14,
    BATCH_EXIT_THRESHOLD = 1 << 15,
    BATCH_STOP = 1 << 16,
    BATCH_LOGPROBS = 1 << 17,
    BATCH_OTHER = 1 << 18 /* flags whose default is all one needs to know */
};

struct batch_fields {
    uint32_t given;
    int64_t max_tokens, min_tokens, top_k, n, seed;
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    bool ignore_eos, echo, include_stop, skip_special, return_token_ids, enable_thinking;
    bool has_logprobs;    /* log-probabilities are asked for ... */
    int64_t top_logprobs; /* ... and so many alternatives, maybe 0 */
    enum exit_mode exit_mode;
    int64_t max_loops, min_loops;
    double exit_threshold;
    uint32_t n_stops;
    const char *stops[BATCH_MAX_STOPS];
    uint32_t n_stop_ids;
    int32_t stop_ids[SEQUENCE_MAX_STOP_IDS];
    uint32_t n_biases;
    int32_t bias_ids[SEQUENCE_MAX_LOGIT_BIAS];
    float biases[SEQUENCE_MAX_LOGIT_BIAS];
};

struct batch_prompt {
    const char *text; /* NULL: the prompt came as ids */
    size_t text_bytes;
    int32_t *ids;
    size_t n_ids;
};

struct batch_line {
    char custom_id[BATCH_MAX_CUSTOM_ID_BYTES + 1];
    bool is_chat;
    size_t n_prompts; /* 1 for chat, where prompts[0] is empty */
    struct batch_prompt *prompts;
    size_t n_messages;
    struct chat_message *messages;
    struct batch_fields fields;
    json_t *root;  /* owns the strings above */
    json_t *owned; /* array of strings joined from parts */
};

/* Reads one line (without its newline); line_number is 1-based. On failure only out->custom_id is
 * set: the line's own where it has a usable one, else "line-N". STATUS_CORRUPT: not JSON;
 * STATUS_INVALID: "field: expected ..., found ..."; STATUS_NO_MEMORY. */
enum status batch_line_parse(const char *text, size_t len_bytes, uint64_t line_number,
                             struct batch_line *out, struct err *err);
void batch_line_clear(struct batch_line *line); /* a zeroed line is fine */

/* Choices the line asks for: prompts * n. */
uint32_t batch_line_n_choices(const struct batch_line *line);

/* Writes what the line gives over *params, which holds the defaults; stop ids are added to those
 * there. Choice i of n draws with seed + i. STATUS_INVALID when the stop ids do not fit. */
enum status batch_line_apply(const struct batch_line *line, uint32_t choice,
                             struct sequence_params *params, struct err *err);

/* The body's fields except prompt and messages; `body` outlives *out. For batch_line_parse. */
enum status batch_fields_parse(const json_t *body, bool is_chat, struct batch_fields *out,
                               struct err *err);
/* "name: expected WHAT, found VALUE" as STATUS_INVALID. */
enum status batch_field_error(const char *name, const char *expected, const json_t *found,
                              struct err *err);
/* A token id at `name`[place]. STATUS_INVALID. */
enum status batch_field_ids(const char *name, const json_t *array, int32_t *out, struct err *err);

#endif
