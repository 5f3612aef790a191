/* Forward and backward of a LoopLM over a few sequences: loss, gradients, counts.
 *
 * A pass owns the activations; one thread uses it. The rows of several sequences go through the
 * matrices together (up to what stays in the caches), attention runs per sequence, only rows with
 * targets reach the head. */
#ifndef TRAIN_PASS_H
#define TRAIN_PASS_H

#include "kernels/grad.h"
#include "train/metrics.h"
#include "train/params.h"
#include "train/recipe.h"
#include "train/sequence_rows.h"

struct pass;

struct pass_options {
    enum recipe_objective objective;
    int n_loops; /* open loops, 1 .. METRICS_MAX_LOOPS, whatever the model's T */
    float beta;  /* of the entropy objective */
    float scale; /* of the loss: 1 / sequences of the whole step */
    /* Objective uniform: targets of level l count at loops first_loops[l] (from 1; the last open
     * loop where there are fewer) and later; targets without level everywhere. NULL: all
     * everywhere. */
    const uint8_t *first_loops;
};

/* Memory grows with the largest call. STATUS_NO_MEMORY. */
enum status pass_create(const struct params *params, const struct grad_ops *ops, struct pass **out,
                        struct err *err);
void pass_destroy(struct pass *p);
/* Adds the gradients of scale * sum over sequences of (sum_i w_i L_i / sum_i w_i) to
 * grads [n_values], and the counts to *metrics. L_i is the objective at row i; the last open loop
 * takes what is left of the exit probabilities, and a model without a gate always leaves there.
 * Values and rope_theta are those of params at the time of the call. grads NULL: forward only, in a
 * fraction of the memory. A sequence without targets is counted and otherwise skipped.
 *
 * STATUS_CORRUPT when the loss is not finite, with the loop, the sequence and the row it began at;
 * STATUS_INVALID for ids outside the vocabulary, positions or levels out of range, weights below 0
 * or all 0, an objective that needs a gate where there is none. *metrics is written on success
 * only; after an error the sums in grads are good for nothing. */
enum status pass_run(struct pass *p, const struct sequence_rows *const *sequences, int n,
                     const struct pass_options *options, float *grads, struct metrics *metrics,
                     struct err *err);

#endif
