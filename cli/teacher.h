/* Runs known texts through a session, teacher forced, and hands out what every loop says of them.
 *
 * A text is token ids; the wanted rows are those that predict its tokens from first_target on (the
 * answer of a prompt, or everything). All loops of all rows are run, so one run answers for every
 * exit threshold and every fixed depth: with the tokens given, a row's loops do not depend on where
 * other rows got off. Texts stream: only those under way and rows some of whose loops are missing
 * are in memory. What is handed out does not depend on the number of workers, the order does. */
#ifndef CLI_TEACHER_H
#define CLI_TEACHER_H

#include "cli/session.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stdint.h>

struct teacher_text {
    const int32_t *ids; /* [n_ids] prompt and continuation; borrowed until the callback's next call
                         */
    uint32_t n_ids;
    uint32_t first_target; /* 1 .. n_ids - 1: the first token whose prediction is wanted */
    void *user;            /* comes back with its rows */
};

/* The row at position first_target - 1 + index, which predicts ids[first_target + index]. Borrowed
 * until return. */
struct teacher_row {
    uint64_t text; /* texts are numbered from 0 in the order `next` gave them */
    void *user;    /* the text's */
    uint32_t index;
    int32_t target;
    uint32_t n_loops;
    const float *lambdas;  /* [n_loops] the gate; 0 in a model without one */
    const float *logprobs; /* [n_loops] log-probability of the target */
    const bool *hits; /* [n_loops] whether the target is the best token, ties to the smaller id */
    const float *hidden; /* [n_loops, d] final-normed hidden states; NULL unless asked for */
};

struct teacher_listener {
    /* Gives the next text, or *has_text = false: there are no more, and it is not asked again. */
    enum status (*next)(void *user, struct teacher_text *text, bool *has_text, struct err *err);
    /* A row all of whose loops have run. Rows of different texts come in any order, and so do the
     * rows of one. */
    enum status (*on_row)(void *user, const struct teacher_row *row, struct err *err);
    /* All rows of the text have been handed out; may be NULL. */
    enum status (*on_text)(void *user, uint64_t text, void *text_user, struct err *err);
    void *user;
};

struct teacher_options {
    bool wants_hidden;
    uint32_t max_texts; /* under way at once; 0: 64; one more has been asked for and waits */
    uint64_t max_rows;  /* wanted rows under way at once (one text may have more); 0: 16384, less
                           where hidden states of that many rows would pass 256 MiB */
};

/* Returns when all texts are through. The first error ends the run (texts under way are
 * abandoned; the session can still be closed in order): a callback's, STATUS_INVALID (a text that
 * is too short or longer than the context, an id outside the vocabulary: the message begins with
 * "text N", from 0), or the engine's. options may be NULL. */
enum status teacher_run(struct session *s, const struct teacher_options *options,
                        const struct teacher_listener *listener, struct err *err);

/* Where a row gets off at threshold q: the loop (1-based) by the engine's own rule and arithmetic.
 */
uint32_t teacher_exit_loop(const float *lambdas, uint32_t n_loops, float q);

#endif
