/* Answers whether a batch should start now, from counts and measured costs alone. */
#include "worker/knee.h"

#include <assert.h>
#include <stddef.h>

const char *batching_name(enum batching batching)
{
    static const char *const names[] = {"greedy", "tick", "knee", "round"};
    return names[batching];
}

/* a * b + c, or the largest value when that does not fit. */
static uint64_t saturating_cost(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t product, sum;
    if (__builtin_mul_overflow(a, b, &product) || __builtin_add_overflow(product, c, &sum))
        return UINT64_MAX;
    return sum;
}

static uint64_t deadline_of(const struct knee_input *in)
{
    if (in->deadline_ns > 0)
        return in->deadline_ns;
    uint64_t once = saturating_cost(in->n_ready, in->row_ns, in->batch_ns);
    return saturating_cost(once, 2, 0);
}

bool knee_should_start(const struct knee_input *in, uint64_t *again_ns)
{
    assert(in->n_ready > 0);
    if (in->batching == BATCHING_GREEDY || in->n_busy_mates == 0 || in->n_ready >= in->max_rows)
        return true;
    /* At a/b rows the arithmetic takes as long as reading the weights: waiting gains nothing more.
     */
    if (in->batching != BATCHING_TICK &&
        saturating_cost(in->n_ready, in->row_ns, 0) >= in->batch_ns)
        return true;
    uint64_t deadline_ns = deadline_of(in);
    if (in->waited_ns >= deadline_ns)
        return true;
    if (again_ns != NULL)
        *again_ns = deadline_ns - in->waited_ns;
    return false;
}
