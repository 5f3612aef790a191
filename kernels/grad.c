/* Chooses the level of the training arithmetic, which are those of the CPU backend. */
#include "kernels/grad.h"

#include "kernels/cpu_backend.h"
#include "kernels/grad_level.h"

#include <string.h>

static const struct grad_ops *const grad_levels[] = {
    &grad_ops_portable,
#if defined(__x86_64__)
    &grad_ops_avx2,
    &grad_ops_avx512,
#endif
};
enum { N_GRAD_LEVELS = sizeof grad_levels / sizeof grad_levels[0] };

enum status grad_find(const char *isa, const struct grad_ops **out, struct err *err)
{
    const struct cpu_level *level;
    enum status st = cpu_level_find(isa, &level, err);
    if (st != STATUS_OK)
        return st;
    /* What lies above the last level here (amx) runs that one. */
    const struct grad_ops *found = grad_levels[N_GRAD_LEVELS - 1];
    for (int i = 0; i < N_GRAD_LEVELS; i++)
        if (strcmp(grad_levels[i]->name, level->name) == 0)
            found = grad_levels[i];
    *out = found;
    return STATUS_OK;
}

/* The layout is attention_back_begin's in grad_attention.inc; the forward pass needs less. */
size_t grad_attention_scratch(int n_rows, int head_dim)
{
    const size_t stride = grad_round_up((size_t)head_dim);
    return 2 * grad_columns_stride(n_rows) * (size_t)head_dim + 3 * stride * (size_t)n_rows +
           2 * GRAD_ROWS_MOST * (grad_scores_stride(n_rows) + stride);
}
