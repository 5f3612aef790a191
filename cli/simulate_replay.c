/* Turns a recorded trace back into the requests it recorded. */
#include "cli/simulate_load.h"

#include "coordinator/trace_set.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A sequence of the trace, while its records are gathered. */
struct gathered {
    uint64_t sequence, arrived_ns;
    uint32_t n_prompt, n_tokens; /* tokens: those the trace has */
    size_t first_exit;
    bool is_ended;
};

static int by_sequence(const void *a, const void *b)
{
    const struct gathered *x = a, *y = b;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

/* Equal arrivals in the order of admission, so that the order is the trace's alone. */
static int by_arrival(const void *a, const void *b)
{
    const struct gathered *x = a, *y = b;
    if (x->arrived_ns != y->arrived_ns)
        return x->arrived_ns < y->arrived_ns ? -1 : 1;
    return by_sequence(a, b);
}

static struct gathered *find(struct gathered *all, size_t n, uint64_t sequence)
{
    const struct gathered key = {.sequence = sequence};
    return n > 0 ? bsearch(&key, all, n, sizeof key, by_sequence) : NULL;
}

/* Sequences whose queue, end and every token are in the trace; others began before it or were
 * overwritten. */
static size_t gather(const struct trace_rank *rank0, struct gathered *all)
{
    size_t n = 0;
    for (size_t i = 0; i < rank0->n_records; i++) {
        const struct trace_record *r = &rank0->records[i];
        if (r->kind == TRACE_QUEUE && r->sequence != 0)
            all[n++] = (struct gathered){
                .sequence = r->sequence, .arrived_ns = r->at_ns, .n_prompt = r->n_rows};
    }
    qsort(all, n, sizeof *all, by_sequence);
    for (size_t i = 0; i < rank0->n_records; i++) {
        const struct trace_record *r = &rank0->records[i];
        struct gathered *g = find(all, n, r->sequence);
        if (g == NULL)
            continue;
        if (r->kind == TRACE_TOKEN)
            g->n_tokens++;
        else if (r->kind == TRACE_SEQUENCE)
            g->is_ended = r->n_rows > 0;
    }
    for (size_t i = 0; i < rank0->n_records; i++) {
        const struct trace_record *r = &rank0->records[i];
        struct gathered *g = r->kind == TRACE_SEQUENCE ? find(all, n, r->sequence) : NULL;
        if (g != NULL && g->n_tokens != r->n_rows)
            g->is_ended = false;
    }
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++)
        if (all[i].is_ended && all[i].n_prompt > 0)
            all[n_kept++] = all[i];
    return n_kept;
}

/* The exit loop of every token, each sequence's in a row. STATUS_INVALID for a loop the model does
 * not have. */
static enum status gather_exits(const struct trace_rank *rank0, struct gathered *all, size_t n,
                                uint32_t n_loops, uint8_t *exits, struct err *err)
{
    for (size_t i = 0; i < rank0->n_records; i++) {
        const struct trace_record *r = &rank0->records[i];
        struct gathered *g = r->kind == TRACE_TOKEN ? find(all, n, r->sequence) : NULL;
        if (g == NULL)
            continue;
        if (r->loop > n_loops)
            return err_set(err, STATUS_INVALID,
                           "the trace has a token that got off at loop %u; the model has %" PRIu32
                           " loops: give --loops",
                           r->loop, n_loops);
        uint32_t at = r->position - g->n_prompt; /* wraps for what lies before */
        if (at < g->n_tokens)
            exits[g->first_exit + at] = r->loop;
    }
    return STATUS_OK;
}

static enum status fill(struct simulate_load *load, const struct trace_rank *rank0,
                        struct gathered *all, size_t n, struct err *err)
{
    uint32_t n_loops = (uint32_t)load->model->n_loops;
    int64_t context = load->model->max_positions;
    size_t n_exits = 0;
    for (size_t i = 0; i < n; i++) {
        if ((int64_t)all[i].n_prompt + all[i].n_tokens > context)
            return err_set(err, STATUS_INVALID,
                           "the trace has a sequence of %" PRIu32 " + %" PRIu32
                           " tokens; the model's context is %" PRId64,
                           all[i].n_prompt, all[i].n_tokens, context);
        all[i].first_exit = n_exits;
        n_exits += all[i].n_tokens;
    }
    load->exits = calloc(n_exits, sizeof *load->exits);
    load->recorded = calloc(n, sizeof *load->recorded);
    if (load->exits == NULL || load->recorded == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu requests", n);
    enum status status = gather_exits(rank0, all, n, n_loops, load->exits, err);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < n_exits; i++)
        if (load->exits[i] == 0)
            load->exits[i] = (uint8_t)n_loops; /* a token recorded twice hides another */
    qsort(all, n, sizeof *all, by_arrival);
    for (size_t i = 0; i < n; i++)
        load->recorded[i] =
            (struct simulate_recorded){.arrived_ns = all[i].arrived_ns - all[0].arrived_ns,
                                       .n_prompt = all[i].n_prompt,
                                       .n_tokens = all[i].n_tokens,
                                       .first_exit = all[i].first_exit};
    load->n_recorded = (uint32_t)n;
    return STATUS_OK;
}

enum status simulate_load_replay(struct simulate_load *load, const char *path, struct err *err)
{
    struct trace_set *set;
    enum status status = trace_set_read(path, &set, err);
    if (status != STATUS_OK)
        return status;
    const struct trace_rank *rank0 = &set->ranks[0];
    struct gathered *all = calloc(rank0->n_records + 1, sizeof *all);
    size_t n = all != NULL ? gather(rank0, all) : 0;
    if (all == NULL)
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the requests of %s", path);
    else if (n == 0)
        status = err_set(err, STATUS_INVALID,
                         "%s has no request from its arrival to its end: record a longer run, or "
                         "with a larger --trace-buffer",
                         path);
    else
        status = fill(load, rank0, all, n, err);
    if (status == STATUS_OK) {
        load->arrivals = ARRIVALS_REPLAY;
        /* Any row may get off at any loop, as far as its worker can tell before. */
        load->base.exit_mode = EXIT_MODE_EXACT;
        load->base.exit_threshold = 0.5f;
    }
    free(all);
    trace_set_destroy(set);
    return status;
}
