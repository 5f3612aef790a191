/* The exit rule's arithmetic on one loop's lambda, as one text for the host and for the device.
 *
 * fp32, every operation rounded by itself: a fused multiply-add would give another cdf on one side,
 * and another loop where the cdf meets the threshold. The host is built with -ffp-contract=off.
 * What the rule decides without lambda (kernels/exit_rule.h: bounds, modes, forced exits) comes in
 * as flags. */
#ifndef KERNELS_EXIT_STEP_H
#define KERNELS_EXIT_STEP_H

#include "kernels/exit_rule.h"

#include <stdbool.h>

#ifdef __cplusplus
#include "kernels/cuda_device.cuh"
#define EXIT_STEP_FUNCTION  __device__ static inline
#define EXIT_STEP_MUL(a, b) cuda_mul_rn(a, b)
#define EXIT_STEP_ADD(a, b) cuda_add_rn(a, b)
#else
#define EXIT_STEP_FUNCTION  static inline
#define EXIT_STEP_MUL(a, b) ((a) * (b))
#define EXIT_STEP_ADD(a, b) ((a) + (b))
#endif

struct exit_step {
    bool is_last;   /* loop == max_loops: what survived gets off, lambda is not used */
    bool may_exit;  /* exit_rule_may_exit */
    bool is_forced; /* the loop was drawn: the threshold is not asked */
    float threshold;
};

/* Advances *state and says whether the row exits here. */
EXIT_STEP_FUNCTION bool exit_step_take(const struct exit_step *step, float lambda,
                                       struct exit_state *state)
{
    if (step->is_last) {
        state->cdf = EXIT_STEP_ADD(state->cdf, state->survival);
        state->survival = 0.0f;
        return true;
    }
    state->cdf = EXIT_STEP_ADD(state->cdf, EXIT_STEP_MUL(lambda, state->survival));
    state->survival = EXIT_STEP_MUL(state->survival, EXIT_STEP_ADD(1.0f, -lambda));
    return step->may_exit && (step->is_forced || state->cdf >= step->threshold);
}

#endif
