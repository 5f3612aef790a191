/* Counts right answers by difficulty, by fixed number of loops and by exit threshold.
 *
 * An answer is right at loop t when every token of it is the best one at loop t, and right at
 * threshold q when every token is at the loop where it gets off. */
#ifndef CLI_EVAL_SCORE_H
#define CLI_EVAL_SCORE_H

#include "model/config.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EVAL_MAX_THRESHOLDS = 32, EVAL_NAME_BYTES = 32 };

/* One answer while its tokens come in. */
struct eval_answer {
    int level;
    uint32_t n_tokens;
    bool is_right_at_loop[MODEL_MAX_LOOPS];
    bool is_right_at_threshold[EVAL_MAX_THRESHOLDS];
    uint64_t exit_counts[EVAL_MAX_THRESHOLDS][MODEL_MAX_LOOPS]; /* tokens that got off there */
    double ce_at_loop[MODEL_MAX_LOOPS];                         /* summed over tokens, nats */
    double ce_at_threshold[EVAL_MAX_THRESHOLDS];
};

/* A level's sums; the last of a score is the sum over all levels. */
struct eval_level {
    char name[EVAL_NAME_BYTES];
    uint64_t n_answers, n_tokens;
    uint64_t right_at_loop[MODEL_MAX_LOOPS];
    uint64_t right_at_threshold[EVAL_MAX_THRESHOLDS];
    uint64_t exit_counts[EVAL_MAX_THRESHOLDS][MODEL_MAX_LOOPS];
    double ce_at_loop[MODEL_MAX_LOOPS], ce_at_threshold[EVAL_MAX_THRESHOLDS];
};

struct eval_score {
    uint32_t n_loops;
    size_t n_thresholds;
    float thresholds[EVAL_MAX_THRESHOLDS];
    int n_levels;
    struct eval_level *levels; /* [n_levels + 1]: the last is all of them */
};

enum status eval_score_create(struct eval_score *score, uint32_t n_loops, const float *thresholds,
                              size_t n_thresholds, int n_levels, struct err *err);
void eval_score_free(struct eval_score *score);

void eval_answer_begin(struct eval_answer *a, int level);
/* A token of the answer; lambdas, logprobs and hits are [n_loops]. */
void eval_answer_add(struct eval_answer *a, const struct eval_score *score, const float *lambdas,
                     const float *logprobs, const bool *hits);
void eval_score_add(struct eval_score *score, const struct eval_answer *a);

/* Mean exit loop of a level's tokens at thresholds[i]; 0 without tokens. */
double eval_level_mean_exit(const struct eval_level *level, size_t i, uint32_t n_loops);

#endif
