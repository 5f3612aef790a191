/* Decides at which loop a row gets off, in the published code's fp32 arithmetic. */
#include "kernels/exit_rule.h"

#include "kernels/exit_step.h"
#include "kernels/rng.h"

#include <assert.h>

/* The loop that (seed, position) draws from the forced distribution; 1-based. */
static uint32_t forced_loop(const struct sequence_params *params, uint32_t position)
{
    double u = rng_uniform(params->sampling.seed, position, RNG_FORCED_EXIT);
    double sum = 0.0;
    for (uint32_t t = 1; t < params->n_force_exits; t++) {
        sum += (double)params->force_exits[t - 1];
        if (u < sum)
            return t;
    }
    /* What remains belongs to the last entry, so that "0.33,0.33,0.33" is a distribution, too. */
    return params->n_force_exits;
}

bool exit_rule_may_exit(const struct sequence_params *params, uint32_t loop, uint32_t position)
{
    if (loop >= params->max_loops)
        return true;
    if (params->n_force_exits > 0)
        return loop >= forced_loop(params, position);
    return params->exit_mode != EXIT_MODE_FULL && params->exit_threshold < 1.0f &&
           loop >= params->min_loops;
}

bool exit_rule_step(const struct sequence_params *params, uint32_t loop, uint32_t position,
                    float lambda, struct exit_state *state)
{
    assert(loop >= 1 && loop <= params->max_loops);
    const struct exit_step step = {
        .is_last = loop == params->max_loops,
        .may_exit = exit_rule_may_exit(params, loop, position),
        .is_forced = params->n_force_exits > 0,
        .threshold = params->exit_threshold,
    };
    return exit_step_take(&step, lambda, state);
}
