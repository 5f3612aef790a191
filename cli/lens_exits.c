/* Says at which loop each position would get off, in the engine's own arithmetic. */
#include "cli/lens.h"

#include "kernels/exit_rule.h"

const struct lens_cell *lens_cell_at(const struct lens *l, uint32_t position, uint32_t loop)
{
    return &l->cells[(size_t)position * l->n_loops + loop - 1];
}

void lens_decide_exits(struct lens *l)
{
    struct sequence_params params;
    sequence_params_init(&params);
    params.exit_mode = EXIT_MODE_EXACT;
    params.exit_threshold = l->exit_threshold;
    params.max_loops = l->n_loops;
    for (uint32_t p = 0; p < l->n_positions; p++) {
        struct exit_state state = {.survival = 1.0f};
        uint32_t exit_loop = 0;
        for (uint32_t t = 1; t <= l->n_loops; t++) {
            struct lens_cell *cell = &l->cells[(size_t)p * l->n_loops + t - 1];
            if (exit_rule_step(&params, t, p, cell->lambda, &state) && exit_loop == 0)
                exit_loop = t;
            cell->cdf = state.cdf;
        }
        l->exit_loops[p] = exit_loop;
    }
}
