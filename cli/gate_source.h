/* Texts for fitting a gate, one JSON line after the other; prompts without an answer are continued
 * by the model itself first. Memory is a window of texts. */
#ifndef CLI_GATE_SOURCE_H
#define CLI_GATE_SOURCE_H

#include "cli/batch_input.h"
#include "cli/session.h"

#include <stdbool.h>
#include <stdint.h>

enum { GATE_SOURCE_WINDOW = 64 };

struct gate_source;
struct gate_source_text {
    struct gate_source *source;
    uint64_t line; /* from 1 */
    int32_t *ids;
    size_t n_ids, cap;
    uint32_t first_target;     /* the first token of the answer; 1 where there is no prompt */
    uint64_t request;          /* its continuation */
    bool wants_more, is_ready; /* has to be continued; can be given */
};

struct gate_source {
    struct session *session;
    struct batch_input in;
    bool chat;
    uint32_t max_tokens;      /* of a continuation; 0: the default of generate */
    uint64_t n_given, n_read; /* texts n_given .. n_read - 1 are held, each at its number mod
                                 GATE_SOURCE_WINDOW */
    uint32_t n_generating;
    uint64_t n_generated;
    bool is_over, is_lent; /* the last text given is still held */
    struct err err;
    struct gate_source_text texts[GATE_SOURCE_WINDOW];
};

/* A line is {"prompt", "answer" or "completion"}, {"prompt"} (continued greedily at full depth),
 * {"text"}, {"ids"}, or {"ids", "prompt_tokens"} (continued where these are all ids); other fields
 * are ignored. Errors are the file's: STATUS_NOT_FOUND, STATUS_IO. "-" is standard input. */
enum status gate_source_open(struct gate_source *s, struct session *session, const char *path,
                             bool chat, uint32_t max_tokens, struct err *err);
/* Ends what is under way. A zeroed source is fine. */
void gate_source_close(struct gate_source *s);
/* The next text, valid until the next call; *text NULL at the end. Turns the coordinator while it
 * waits for a continuation. STATUS_INVALID names the file, the line and what is wrong with it. */
enum status gate_source_next(struct gate_source *s, const struct gate_source_text **text,
                             struct err *err);

#endif
