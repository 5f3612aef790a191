/* The text of one request: tokens in, text that is certain out.
 *
 * A stop string ends the text at the first place of the detokenized stream where any of them is
 * complete (of several that are complete at the same place the longest counts), wherever the token
 * boundaries lie: the outcome depends on the text alone. Text is held back while it may still
 * become a stop string. No heap: sizes are bounded by COMPLETION_MAX_*. */
#ifndef COORDINATOR_COMPLETION_H
#define COORDINATOR_COMPLETION_H

#include "coordinator/coordinator.h"
#include "model/tokenizer.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COMPLETION_TEXT_BYTES = COMPLETION_MAX_STOP_BYTES + DETOKENIZER_MAX_BYTES };

struct completion {
    struct detokenizer detokenizer; /* its tokenizer is NULL: no text at all */
    bool include_stop;
    bool is_stopped; /* a stop string was seen */
    uint32_t n_stops;
    uint32_t stop_bytes[COMPLETION_MAX_STOPS];
    char stops[COMPLETION_MAX_STOPS][COMPLETION_MAX_STOP_BYTES];
    uint32_t n_held;
    char held[COMPLETION_MAX_STOP_BYTES]; /* may still become a stop string */
};

/* tokenizer (borrowed while c is used) may be NULL; then there is no text and stop strings are
 * STATUS_UNSUPPORTED. Stops are copied. STATUS_INVALID: too many, empty, too long, or not UTF-8 (it
 * could never match). */
enum status completion_init(struct completion *c, const struct tokenizer *tokenizer,
                            bool keep_special, bool include_stop, const char *const *stops,
                            uint32_t n_stops, struct err *err);

/* Writes the text that became certain with this token to out (COMPLETION_TEXT_BYTES) and returns
 * its length. After a stop string (is_stopped) nothing comes any more. */
size_t completion_push(struct completion *c, int32_t id, char *out);

/* The end: what was held back, half a character as U+FFFD. Same room. */
size_t completion_flush(struct completion *c, char *out);

#endif
