/* Follows every token of a trace from the exit of the one before to its arrival. */
#include "cli/trace_tokens.h"

#include "cli/trace_samples.h"
#include "coordinator/trace_chain.h"

#include <stdlib.h>

/* ---- one token ------------------------------------------------------------------------------ */

struct part {
    uint64_t hop_ns, wait_ns, compute_ns;
};

/* A token with all of its batches; of a loop that ran more than once the last one. */
struct way {
    const struct trace_record *loops[SEQUENCE_MAX_LOOPS], *arrival;
    uint16_t ranks[SEQUENCE_MAX_LOOPS];
    struct part parts[SEQUENCE_MAX_LOOPS], sum;
    uint64_t deliver_ns;
};

static uint64_t hop_of(const struct trace_record *r)
{
    return r->rows.hop_ns > 0 ? (uint64_t)r->rows.hop_ns : 0;
}

static uint64_t total_of(const struct way *w)
{
    return w->sum.hop_ns + w->sum.wait_ns + w->sum.compute_ns + w->deliver_ns;
}

/* What stands between the end of one loop's batch and the begin of the next is hop and wait. The
 * rows' own wait can be longer: it is that of the oldest of them, and of a prompt the first rows
 * come while the last ones still compute. */
static struct part part_of(const struct trace_record *r, const struct trace_record *before)
{
    struct part p = {hop_of(r), r->rows.wait_ns, r->lasted_ns};
    if (before == NULL)
        return p;
    uint64_t end_ns = before->at_ns + before->lasted_ns;
    uint64_t between_ns = r->at_ns > end_ns ? r->at_ns - end_ns : 0;
    if (p.hop_ns > between_ns)
        p.hop_ns = between_ns;
    p.wait_ns = between_ns - p.hop_ns;
    return p;
}

/* Of the n steps of one token; false when it did not arrive or a loop up to its exit is missing. */
static bool find_way(const struct trace_step_record *steps, size_t n, struct way *out)
{
    *out = (struct way){.arrival = steps[n - 1].record};
    if (out->arrival->kind != TRACE_TOKEN)
        return false;
    uint32_t n_loops = out->arrival->loop;
    for (size_t i = 0; i + 1 < n && steps[i].record->kind == TRACE_ROWS; i++) {
        out->loops[steps[i].record->loop - 1] = steps[i].record;
        out->ranks[steps[i].record->loop - 1] = (uint16_t)steps[i].rank;
    }
    for (uint32_t i = 0; i < n_loops; i++) {
        if (out->loops[i] == NULL)
            return false;
        out->parts[i] = part_of(out->loops[i], i > 0 ? out->loops[i - 1] : NULL);
        out->sum.hop_ns += out->parts[i].hop_ns;
        out->sum.wait_ns += out->parts[i].wait_ns;
        out->sum.compute_ns += out->parts[i].compute_ns;
    }
    const struct trace_record *last = out->loops[n_loops - 1];
    uint64_t exit_ns = last->at_ns + last->lasted_ns;
    out->deliver_ns = out->arrival->at_ns > exit_ns ? out->arrival->at_ns - exit_ns : 0;
    return true;
}

/* ---- the slowest ---------------------------------------------------------------------------- */

struct token_time {
    uint64_t total_ns;
    size_t first; /* of its steps */
};

static int compare_slowest_first(const void *left, const void *right)
{
    const struct token_time *a = left, *b = right;
    if (a->total_ns != b->total_ns)
        return a->total_ns > b->total_ns ? -1 : 1;
    return a->first < b->first ? -1 : a->first > b->first;
}

static double seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

static void list_slow(const struct way *w, uint64_t begin_ns, struct trace_slow_token *out)
{
    uint32_t n_loops = w->arrival->loop;
    uint64_t since_ns = w->arrival->at_ns - begin_ns;
    *out = (struct trace_slow_token){.sequence = w->arrival->sequence,
                                     .position = w->arrival->position,
                                     .n_steps = n_loops + 1,
                                     .at_s = seconds(since_ns) - seconds(total_of(w)),
                                     .total_s = seconds(total_of(w))};
    for (uint32_t i = 0; i < n_loops; i++)
        out->steps[i] = (struct trace_step){.loop = i + 1,
                                            .rank = w->ranks[i],
                                            .hop_s = seconds(w->parts[i].hop_ns),
                                            .wait_s = seconds(w->parts[i].wait_ns),
                                            .compute_s = seconds(w->parts[i].compute_ns)};
    out->steps[n_loops] = (struct trace_step){.hop_s = seconds(w->deliver_ns)};
}

static void report_slow(const struct trace_step_record *steps, size_t n_steps,
                        struct token_time *times, size_t n, uint64_t begin_ns,
                        struct trace_report *out)
{
    qsort(times, n, sizeof *times, compare_slowest_first);
    size_t n_slow = (n + 99) / 100;
    for (size_t i = 0; i < n_slow; i++) {
        const struct trace_step_record *own = steps + times[i].first;
        struct way w;
        find_way(own, trace_chain_length(own, n_steps - times[i].first), &w);
        double share = 1 / (double)n_slow;
        out->slow_total_s += seconds(total_of(&w)) * share;
        out->slow_hop_s += seconds(w.sum.hop_ns) * share;
        out->slow_wait_s += seconds(w.sum.wait_ns) * share;
        out->slow_compute_s += seconds(w.sum.compute_ns) * share;
        out->slow_deliver_s += seconds(w.deliver_ns) * share;
        for (uint32_t l = 0; l < w.arrival->loop; l++)
            out->slow_by_loop_s[l] +=
                seconds(w.parts[l].hop_ns + w.parts[l].wait_ns + w.parts[l].compute_ns) * share;
        if (i < TRACE_REPORT_SLOW_TOKENS)
            list_slow(&w, begin_ns, &out->slow[out->n_slow_listed++]);
    }
    out->n_slow = n_slow;
}

/* ---- requests ------------------------------------------------------------------------------- */

/* What the coordinator says of a sequence before its tokens. */
struct opening {
    uint64_t sequence, queued_ns;
    uint32_t n_prompt;
    bool is_queue_known;
};

static int compare_openings(const void *left, const void *right)
{
    const struct opening *a = left, *b = right;
    if (a->sequence != b->sequence)
        return a->sequence < b->sequence ? -1 : 1;
    return (int)b->is_queue_known - (int)a->is_queue_known;
}

static bool is_of_request(const struct trace_record *r)
{
    return r->kind == TRACE_QUEUE || r->kind == TRACE_ADMISSION || r->kind == TRACE_SEQUENCE;
}

/* One a sequence, ascending; requests that have got none, because they still wait or ended in the
 * queue, each for itself. */
static enum status collect_openings(const struct trace_set *set, struct opening **out, size_t *n,
                                    struct err *err)
{
    const struct trace_rank none = {0}, *r = set->n_ranks > 0 ? &set->ranks[0] : &none;
    size_t n_all = 0, n_kept = 0;
    for (size_t i = 0; i < r->n_records; i++)
        n_all += is_of_request(&r->records[i]);
    struct opening *all = malloc((n_all > 0 ? n_all : 1) * sizeof *all);
    if (all == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu requests", n_all);
    n_all = 0;
    for (size_t i = 0; i < r->n_records; i++) {
        const struct trace_record *a = &r->records[i];
        if (is_of_request(a))
            all[n_all++] =
                (struct opening){a->sequence, a->at_ns, a->n_rows, a->kind == TRACE_QUEUE};
    }
    qsort(all, n_all, sizeof *all, compare_openings);
    for (size_t i = 0; i < n_all; i++)
        if (i == 0 || all[i].sequence == 0 || all[i].sequence != all[i - 1].sequence)
            all[n_kept++] = all[i];
    *out = all;
    *n = n_kept;
    return STATUS_OK;
}

static const struct opening *find_opening(const struct opening *openings, size_t n,
                                          uint64_t sequence)
{
    struct opening key = {.sequence = sequence, .is_queue_known = true};
    size_t from = 0, to = n;
    while (from < to) {
        size_t middle = from + (to - from) / 2;
        if (openings[middle].sequence < key.sequence)
            from = middle + 1;
        else
            to = middle;
    }
    return from < n && openings[from].sequence == sequence ? &openings[from] : NULL;
}

/* ---- all tokens ----------------------------------------------------------------------------- */

struct gatherer {
    struct trace_samples ttft, tpot;
    const struct opening *openings;
    size_t n_openings;
    const struct trace_record *last; /* the token before, of any sequence */
};

static void take_arrival(struct gatherer *g, const struct trace_record *token,
                         struct trace_report *out)
{
    const struct trace_record *last = g->last;
    out->n_tokens++;
    out->loops[token->loop - 1].n_exits++;
    g->last = token;
    if (last != NULL && last->sequence == token->sequence &&
        last->position + 1 == token->position) {
        trace_samples_add(&g->tpot, token->at_ns > last->at_ns ? token->at_ns - last->at_ns : 0);
        return;
    }
    const struct opening *o = find_opening(g->openings, g->n_openings, token->sequence);
    if (o != NULL && o->is_queue_known && o->n_prompt == token->position &&
        o->queued_ns <= token->at_ns)
        trace_samples_add(&g->ttft, token->at_ns - o->queued_ns);
}

static enum status report_tokens(const struct trace_step_record *steps, size_t n_steps,
                                 struct gatherer *g, uint64_t begin_ns, struct trace_report *out,
                                 struct err *err)
{
    struct token_time *times = malloc((n_steps > 0 ? n_steps : 1) * sizeof *times);
    size_t n = 0, length;
    if (times == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the times of %zu steps", n_steps);
    for (size_t i = 0; i < n_steps; i += length) {
        struct way w;
        length = trace_chain_length(steps + i, n_steps - i);
        const struct trace_record *arrival = steps[i + length - 1].record;
        if (arrival->kind != TRACE_TOKEN)
            continue;
        take_arrival(g, arrival, out);
        if (find_way(steps + i, length, &w))
            times[n++] = (struct token_time){total_of(&w), i};
        else
            out->n_incomplete++;
    }
    report_slow(steps, n_steps, times, n, begin_ns, out);
    free(times);
    return STATUS_OK;
}

static enum status report_spans(const struct trace_set *set, enum trace_kind kind,
                                struct trace_quantiles *out, struct err *err)
{
    struct trace_samples samples = {0};
    for (size_t i = 0; set->n_ranks > 0 && i < set->ranks[0].n_records; i++)
        if (set->ranks[0].records[i].kind == kind)
            trace_samples_add(&samples, set->ranks[0].records[i].lasted_ns);
    enum status status = trace_samples_take(&samples, out, err);
    trace_samples_free(&samples);
    return status;
}

enum status trace_tokens_report(const struct trace_set *set, uint64_t begin_ns,
                                struct trace_report *out, struct err *err)
{
    struct trace_step_record *steps = NULL;
    struct opening *openings = NULL;
    struct gatherer g = {.last = NULL};
    size_t n_steps = 0;
    enum status status = trace_chain_collect(set, &steps, &n_steps, err);
    if (status == STATUS_OK)
        status = collect_openings(set, &openings, &g.n_openings, err);
    if (status != STATUS_OK)
        goto out;
    g.openings = openings;
    out->n_requests = g.n_openings;
    status = report_tokens(steps, n_steps, &g, begin_ns, out, err);
    if (status == STATUS_OK)
        status = trace_samples_take(&g.ttft, &out->ttft, err);
    if (status == STATUS_OK)
        status = trace_samples_take(&g.tpot, &out->tpot, err);
    if (status == STATUS_OK)
        status = report_spans(set, TRACE_QUEUE, &out->queue, err);
    if (status == STATUS_OK)
        status = report_spans(set, TRACE_ADMISSION, &out->admission, err);
out:
    trace_samples_free(&g.ttft);
    trace_samples_free(&g.tpot);
    free(openings);
    free(steps);
    return status;
}
