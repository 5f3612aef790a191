/* Gathers what the ranks of a simulated cluster have recorded into one set. */
#include "cli/simulate_parts.h"

#include <stdio.h>
#include <stdlib.h>

static enum status copy_rank(struct trace_set *set, uint32_t rank, const struct trace *t,
                             struct err *err)
{
    struct trace_rank *to = &set->ranks[rank];
    snprintf(to->host, sizeof to->host, "simulated");
    to->is_clock_shared = true;
    size_t cap = t->n_added < t->mask + 1 ? (size_t)t->n_added : (size_t)t->mask + 1;
    struct trace_record *records = malloc((cap > 0 ? cap : 1) * sizeof *records);
    if (records == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu trace records", cap);
    size_t n = trace_copy(t, 0, records, cap, &to->n_lost);
    enum status status = trace_set_append(set, rank, records, n, err);
    free(records);
    return status;
}

enum status simulate_world_trace(const struct simulate_world *w, struct trace_set **out,
                                 struct err *err)
{
    struct trace_set *set;
    uint32_t n_ranks = w->config.n_workers + 1;
    if (w->ranks[0].trace == NULL)
        return err_set(err, STATUS_INVALID, "nothing was recorded: --trace-buffer is 0");
    enum status status = trace_set_create(n_ranks, &set, err);
    if (status != STATUS_OK)
        return status;
    set->n_loops = (uint32_t)w->config.model.n_loops;
    set->ring_size = w->ring_size;
    set->is_simulated = true;
    snprintf(set->model, sizeof set->model, "%s, %d layers, d %d; costs: %s",
             w->config.model.architecture, w->config.model.n_layers, w->config.model.d_model,
             w->config.cost.name);
    snprintf(set->version, sizeof set->version, "%s", CAROUSEL_VERSION);
    for (uint32_t i = 0; status == STATUS_OK && i < n_ranks; i++)
        status = copy_rank(set, i, w->ranks[i].trace, err);
    if (status == STATUS_OK)
        status = trace_set_align(set, err);
    if (status != STATUS_OK) {
        trace_set_destroy(set);
        return status;
    }
    *out = set;
    return STATUS_OK;
}
