/* Finds the batches and the arrival of every token. */
#include "coordinator/trace_chain.h"

#include <stdlib.h>

static bool is_step(const struct trace_record *r)
{
    return r->kind == TRACE_TOKEN || (r->kind == TRACE_ROWS && (r->flags & TRACE_LIVE) != 0);
}

static int compare_steps(const void *left, const void *right)
{
    const struct trace_step_record *a = left, *b = right;
    if (a->sequence != b->sequence)
        return a->sequence < b->sequence ? -1 : 1;
    if (a->position != b->position)
        return a->position < b->position ? -1 : 1;
    if (a->record->kind != b->record->kind)
        return a->record->kind == TRACE_TOKEN ? 1 : -1;
    if (a->record->loop != b->record->loop)
        return a->record->loop < b->record->loop ? -1 : 1;
    if (a->record->at_ns != b->record->at_ns)
        return a->record->at_ns < b->record->at_ns ? -1 : 1;
    return a->rank < b->rank ? -1 : a->rank > b->rank;
}

enum status trace_chain_collect(const struct trace_set *set, struct trace_step_record **out,
                                size_t *n, struct err *err)
{
    size_t n_steps = 0;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++)
            n_steps += is_step(&set->ranks[rank].records[i]);
    struct trace_step_record *steps = malloc((n_steps > 0 ? n_steps : 1) * sizeof *steps);
    if (steps == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu steps of tokens", n_steps);
    n_steps = 0;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++) {
            const struct trace_record *r = &set->ranks[rank].records[i];
            if (!is_step(r))
                continue;
            uint32_t position = r->kind == TRACE_TOKEN ? r->position : r->position + r->n_rows;
            steps[n_steps++] = (struct trace_step_record){r->sequence, position, rank, r};
        }
    qsort(steps, n_steps, sizeof *steps, compare_steps);
    *out = steps;
    *n = n_steps;
    return STATUS_OK;
}

size_t trace_chain_length(const struct trace_step_record *steps, size_t n)
{
    size_t length = 1;
    while (length < n && steps[length].sequence == steps[0].sequence &&
           steps[length].position == steps[0].position)
        length++;
    return length;
}
