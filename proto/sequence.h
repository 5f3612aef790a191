/* What every part must know of a sequence: its place in the ring, its depth, how it samples.
 *
 * Fixed size, no pointers: it is copied into tables and lives as long as the sequence is open. */
#ifndef PROTO_SEQUENCE_H
#define PROTO_SEQUENCE_H

#include "proto/status.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SEQUENCE_MAX_LOOPS = 8,
    SEQUENCE_MAX_STOP_IDS = 32,
    SEQUENCE_MAX_LOGIT_BIAS = 300,
    SEQUENCE_MAX_LOGPROBS = 20
};

enum exit_mode { EXIT_MODE_FULL = 0, EXIT_MODE_EXACT = 1 };
enum prefill_policy { PREFILL_EAGER = 0, PREFILL_LAZY = 1 };

/* Where the time of one loop of a live row went. The three follow each other without a gap, and the
 * next loop's hop follows them: over the loops of a token they add up to the time from the exit of
 * the token before to its own. wait_s and compute_s are by one process's clock. hop_s is a
 * difference of two clocks, which may be years apart until their offset is taken out: hence a
 * double, and negative ones are legal. */
struct loop_timing {
    double hop_s;    /* from the end of the last loop's batch to the receiver's hands; loop 1: from
                        the last token's exit, or from the prompt's sending */
    float wait_s;    /* from there to the start of its batch */
    float compute_s; /* to the end of the batch */
};

struct sampling_params {
    float temperature;        /* 0 = greedy */
    int32_t top_k;            /* 0 = off */
    float top_p;              /* (0, 1], 1 = off */
    float min_p;              /* [0, 1], 0 = off */
    float repetition_penalty; /* > 0, 1 = off; over prompt and generated tokens */
    float presence_penalty;   /* [-2, 2], over generated tokens */
    float frequency_penalty;  /* [-2, 2], over generated tokens */
    uint64_t seed;
    int32_t n_logprobs; /* top log-probabilities to report; 0 = none, -1 is not used */
    int32_t n_logit_bias;
    int32_t bias_ids[SEQUENCE_MAX_LOGIT_BIAS];
    float biases[SEQUENCE_MAX_LOGIT_BIAS];
};

struct sequence_params {
    uint64_t sequence;    /* id, never 0, never reused, ascending in the order of opening */
    uint32_t ring_offset; /* loop t runs on ring worker (ring_offset + t - 1) mod G */
    uint32_t prompt_tokens;
    uint32_t max_tokens; /* generated tokens at most, >= 1 */
    uint32_t min_tokens; /* stop ids are masked before that many */
    enum exit_mode exit_mode;
    float exit_threshold; /* q in (0, 1]; >= 1 means all loops */
    uint32_t max_loops;   /* T of this sequence, 1..T of the model */
    uint32_t min_loops;   /* 1..max_loops */
    enum prefill_policy prefill;
    uint32_t n_stop_ids; /* the worker stops by itself at one of these */
    int32_t stop_ids[SEQUENCE_MAX_STOP_IDS];
    /* A sequence with observe_top or n_observe_targets is observed: every row from position
     * observe_first on is reported at every loop it runs, with its lambda, that many top logits,
     * and the log-probability of the target of its position. Targets are known next tokens, those
     * of positions observe_first, observe_first + 1, ...; they travel beside the parameters
     * (proto/control.h). */
    uint32_t observe_top;
    uint32_t observe_first;     /* 0 .. prompt_tokens - 1 */
    uint32_t n_observe_targets; /* 0 .. prompt_tokens - observe_first */
    bool observe_hidden;        /* the reports carry the hidden state; observed sequences only */
    uint32_t n_force_exits;     /* > 0: exit loop drawn from this distribution instead of the gate
                                   (benchmarks) */
    float force_exits[SEQUENCE_MAX_LOOPS];
    struct sampling_params sampling;
};

/* Greedy, no penalties, eager, q = 1, min_loops 1; ids, lengths and max_loops stay 0: the caller
 * sets them, and the check refuses a sequence that has none. */
void sequence_params_init(struct sequence_params *p);

/* Checks every range above against the model's T and vocabulary, and prompt_tokens + max_tokens <=
 * max_positions; biases lie in [-100, 100], force_exits sum to 1 within 0.02. STATUS_INVALID names
 * the field, the value and the allowed range. */
enum status sequence_params_check(const struct sequence_params *p, uint32_t n_loops,
                                  uint32_t vocab_size, uint32_t max_positions, struct err *err);

/* Whether rows of the sequence are reported. */
bool sequence_is_observed(const struct sequence_params *p);

/* Is id one of the n stop ids? */
bool sequence_is_stop_id(const int32_t *stop_ids, uint32_t n, int32_t id);

#endif
