/* The exit rule: when a row gets off. Pure; the same function serves the replica, lens and tests.
 *
 *   p_t = lambda_t * survival for t < T, p_T = survival (the last lambda is never used)
 *   cdf_t = p_1 + ... + p_t;  exit at the first t >= min_loops with cdf_t >= q;  none: T
 * in fp32, in this order of operations (arXiv 2510.25741, section 3; facts of the published code).
 */
#ifndef KERNELS_EXIT_RULE_H
#define KERNELS_EXIT_RULE_H

#include "proto/sequence.h"

#include <stdbool.h>
#include <stdint.h>

struct exit_state {
    float survival; /* prod of (1 - lambda) so far; 1 before loop 1 */
    float cdf;      /* 0 before loop 1 */
};

/* Advances *state over `loop` (1-based) with this loop's lambda and says whether the row at
 * `position` exits here. T is params->max_loops. Mode full, and q >= 1, exit at T only. With
 * n_force_exits > 0 the loop is drawn from that distribution, keyed by (seed, position), whatever
 * mode, q and min_loops say; T still bounds it. */
bool exit_rule_step(const struct sequence_params *params, uint32_t loop, uint32_t position,
                    float lambda, struct exit_state *state);

/* False when the row at `position` certainly does not exit at `loop`, whatever its gate says. */
bool exit_rule_may_exit(const struct sequence_params *params, uint32_t loop, uint32_t position);

#endif
