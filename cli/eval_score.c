/* Adds up right answers by level, loop and threshold. */
#include "cli/eval_score.h"

#include "cli/teacher.h"

#include <stdio.h>
#include <stdlib.h>

enum status eval_score_create(struct eval_score *score, uint32_t n_loops, const float *thresholds,
                              size_t n_thresholds, int n_levels, struct err *err)
{
    if (n_thresholds > EVAL_MAX_THRESHOLDS)
        return err_set(err, STATUS_INVALID, "%zu exit thresholds, at most %d", n_thresholds,
                       EVAL_MAX_THRESHOLDS);
    struct eval_level *levels = calloc((size_t)n_levels + 1, sizeof *levels);
    if (levels == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d levels", n_levels);
    *score = (struct eval_score){
        .n_loops = n_loops, .n_thresholds = n_thresholds, .n_levels = n_levels, .levels = levels};
    for (size_t i = 0; i < n_thresholds; i++)
        score->thresholds[i] = thresholds[i];
    snprintf(levels[n_levels].name, sizeof levels[n_levels].name, "all");
    return STATUS_OK;
}

void eval_score_free(struct eval_score *score)
{
    free(score->levels);
    *score = (struct eval_score){0};
}

void eval_answer_begin(struct eval_answer *a, int level)
{
    *a = (struct eval_answer){.level = level};
    for (int t = 0; t < MODEL_MAX_LOOPS; t++)
        a->is_right_at_loop[t] = true;
    for (int i = 0; i < EVAL_MAX_THRESHOLDS; i++)
        a->is_right_at_threshold[i] = true;
}

void eval_answer_add(struct eval_answer *a, const struct eval_score *score, const float *lambdas,
                     const float *logprobs, const bool *hits)
{
    a->n_tokens++;
    for (uint32_t t = 0; t < score->n_loops; t++) {
        a->is_right_at_loop[t] &= hits[t];
        a->ce_at_loop[t] -= logprobs[t];
    }
    for (size_t i = 0; i < score->n_thresholds; i++) {
        uint32_t exit = teacher_exit_loop(lambdas, score->n_loops, score->thresholds[i]);
        a->is_right_at_threshold[i] &= hits[exit - 1];
        a->exit_counts[i][exit - 1]++;
        a->ce_at_threshold[i] -= logprobs[exit - 1];
    }
}

static void add_to(struct eval_level *to, const struct eval_score *score,
                   const struct eval_answer *a)
{
    to->n_answers++;
    to->n_tokens += a->n_tokens;
    for (uint32_t t = 0; t < score->n_loops; t++) {
        to->right_at_loop[t] += a->is_right_at_loop[t];
        to->ce_at_loop[t] += a->ce_at_loop[t];
    }
    for (size_t i = 0; i < score->n_thresholds; i++) {
        to->right_at_threshold[i] += a->is_right_at_threshold[i];
        to->ce_at_threshold[i] += a->ce_at_threshold[i];
        for (uint32_t t = 0; t < score->n_loops; t++)
            to->exit_counts[i][t] += a->exit_counts[i][t];
    }
}

void eval_score_add(struct eval_score *score, const struct eval_answer *a)
{
    add_to(&score->levels[a->level], score, a);
    add_to(&score->levels[score->n_levels], score, a);
}

double eval_level_mean_exit(const struct eval_level *level, size_t i, uint32_t n_loops)
{
    uint64_t sum = 0, n = 0;
    for (uint32_t t = 0; t < n_loops; t++) {
        sum += level->exit_counts[i][t] * (t + 1);
        n += level->exit_counts[i][t];
    }
    return n > 0 ? (double)sum / (double)n : 0;
}
