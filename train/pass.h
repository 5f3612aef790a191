/* Forward and backward of a LoopLM over a few sequences: loss, gradients, counts.
 *
 * A pass owns the activations; one thread uses it. All rows of the sequences go through the
 * matrices together, attention runs per sequence, only rows with targets reach the head. */
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
    int n_loops; /* open loops, 1 .. T of the model or more */
    float beta;
    float scale; /* of the loss: 1 / sequences of the whole step */
};

/* Memory grows with the largest call. STATUS_NO_MEMORY. */
enum status pass_create(const struct params *params, const struct grad_ops *ops, struct pass **out,
                        struct err *err);
void pass_destroy(struct pass *p);
/* Adds the gradients of scale * sum over sequences of (sum_i w_i L_i / sum_i w_i) to
 * grads [n_values], and the counts to *metrics. The values are params->values at the time of the
 * call. grads NULL: forward only. STATUS_CORRUPT when the loss is not finite, with the loop and the
 * row it began at; STATUS_INVALID for ids outside the vocabulary. */
enum status pass_run(struct pass *p, const struct sequence_rows *const *sequences, int n,
                     const struct pass_options *options, float *grads, struct metrics *metrics,
                     struct err *err);

#endif
