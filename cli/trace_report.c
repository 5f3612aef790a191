/* Adds up a trace: loop by loop and worker by worker. */
#include "cli/trace_report.h"

#include "cli/trace_samples.h"
#include "cli/trace_tokens.h"

#include <stdlib.h>

static double seconds(uint64_t ns)
{
    return (double)ns * 1e-9;
}

static uint64_t end_of(const struct trace_record *r)
{
    return r->at_ns + r->lasted_ns;
}

/* ---- loops ---------------------------------------------------------------------------------- */

struct loop_samples {
    struct trace_samples hop, wait, compute, head;
};

/* records[0 .. n) began together: a batch and its rows. The batch may be missing, at the begin of
 * what was kept. */
static void take_together(const struct trace_record *records, size_t n, struct loop_samples *loops)
{
    const struct trace_record *batch = NULL;
    for (size_t i = 0; i < n && batch == NULL; i++)
        if (records[i].kind == TRACE_BATCH)
            batch = &records[i];
    for (size_t i = 0; i < n; i++) {
        const struct trace_record *r = &records[i];
        if (r->kind != TRACE_ROWS || (r->flags & TRACE_LIVE) == 0)
            continue;
        struct loop_samples *loop = &loops[r->loop - 1];
        trace_samples_add(&loop->hop, r->rows.hop_ns > 0 ? (uint64_t)r->rows.hop_ns : 0);
        trace_samples_add(&loop->wait, r->rows.wait_ns);
        trace_samples_add(&loop->compute, r->lasted_ns);
        if ((r->flags & TRACE_EXIT) != 0 && batch != NULL)
            trace_samples_add(&loop->head, batch->batch.head_ns);
    }
}

static enum status report_loops(const struct trace_set *set, struct trace_report *out,
                                struct err *err)
{
    struct loop_samples loops[SEQUENCE_MAX_LOOPS] = {0};
    enum status status = STATUS_OK;
    for (uint32_t rank = 1; rank < set->n_ranks; rank++) {
        const struct trace_rank *r = &set->ranks[rank];
        for (size_t i = 0, n; i < r->n_records; i += n) {
            for (n = 1; i + n < r->n_records && r->records[i + n].at_ns == r->records[i].at_ns;)
                n++;
            take_together(r->records + i, n, loops);
        }
    }
    for (uint32_t i = 0; i < SEQUENCE_MAX_LOOPS; i++) {
        struct trace_loop_report *to = &out->loops[i];
        if (status == STATUS_OK)
            status = trace_samples_take(&loops[i].hop, &to->hop, err);
        if (status == STATUS_OK)
            status = trace_samples_take(&loops[i].wait, &to->wait, err);
        if (status == STATUS_OK)
            status = trace_samples_take(&loops[i].compute, &to->compute, err);
        if (status == STATUS_OK)
            status = trace_samples_take(&loops[i].head, &to->head, err);
    }
    for (uint32_t i = 0; i < SEQUENCE_MAX_LOOPS; i++) {
        trace_samples_free(&loops[i].hop);
        trace_samples_free(&loops[i].wait);
        trace_samples_free(&loops[i].compute);
        trace_samples_free(&loops[i].head);
    }
    return status;
}

/* ---- workers -------------------------------------------------------------------------------- */

/* How long at least one of the spans given so far was under way; they come by begin. */
struct cover {
    uint64_t until_ns, total_ns;
};

static void cover_span(struct cover *c, const struct trace_record *r)
{
    uint64_t from = r->at_ns > c->until_ns ? r->at_ns : c->until_ns, to = end_of(r);
    if (to > from) {
        c->total_ns += to - from;
        c->until_ns = to;
    }
}

static void take_batch(const struct trace_record *r, struct trace_worker_report *out)
{
    out->n_batches++;
    out->n_rows += r->n_rows;
    out->busy_s += seconds(r->lasted_ns);
    for (uint32_t i = 0; i < SEQUENCE_MAX_LOOPS; i++)
        out->rows_by_loop[i] += r->batch.rows_by_loop[i];
}

static void report_worker(const struct trace_rank *rank, struct trace_worker_report *out)
{
    struct cover work = {0}, all = {0}; /* batches and idle times; those and the driver's */
    uint64_t end_ns = 0;
    for (size_t i = 0; i < rank->n_records; i++) {
        const struct trace_record *r = &rank->records[i];
        if (end_of(r) > end_ns)
            end_ns = end_of(r);
        if (r->kind == TRACE_BATCH)
            take_batch(r, out);
        else if (r->kind == TRACE_IDLE)
            out->idle_s[r->flags] += seconds(r->lasted_ns);
        else if (r->kind == TRACE_RECEIVE)
            out->receive_s += seconds(r->lasted_ns);
        else if (r->kind == TRACE_SEND)
            out->send_s += seconds(r->lasted_ns);
        if (r->kind == TRACE_ROWS) {
            out->n_parked += r->rows.n_parked;
            out->n_revived += r->rows.n_revived;
        }
        if (r->kind == TRACE_BATCH || r->kind == TRACE_IDLE)
            cover_span(&work, r);
        if (r->kind == TRACE_BATCH || r->kind == TRACE_IDLE || r->kind == TRACE_RECEIVE ||
            r->kind == TRACE_SEND)
            cover_span(&all, r);
    }
    if (rank->n_records == 0)
        return;
    uint64_t elapsed_ns = end_ns - rank->records[0].at_ns;
    out->elapsed_s = seconds(elapsed_ns);
    out->driver_s = seconds(all.total_ns - work.total_ns);
    out->rest_s = seconds(elapsed_ns - all.total_ns);
}

/* ---- the whole ------------------------------------------------------------------------------ */

static void find_times(const struct trace_set *set, uint64_t *begin_ns, uint64_t *end_ns)
{
    uint64_t begin = UINT64_MAX, end = 0;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++) {
            const struct trace_record *r = &set->ranks[rank].records[i];
            begin = r->at_ns < begin ? r->at_ns : begin;
            end = end_of(r) > end ? end_of(r) : end;
        }
    *begin_ns = begin < end ? begin : end;
    *end_ns = end;
}

enum status trace_report_make(const struct trace_set *set, struct trace_report *out,
                              struct err *err)
{
    struct trace_report r = {.n_loops = set->n_loops,
                             .n_workers = set->n_ranks > 0 ? set->n_ranks - 1 : 0};
    uint64_t begin_ns, end_ns;
    find_times(set, &begin_ns, &end_ns);
    r.elapsed_s = seconds(end_ns - begin_ns);
    r.workers = calloc(r.n_workers > 0 ? r.n_workers : 1, sizeof *r.workers);
    if (r.workers == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the report of %u workers",
                       r.n_workers);
    for (uint32_t i = 0; i < set->n_ranks; i++) {
        r.n_lost += set->ranks[i].n_lost;
        r.n_missing += set->ranks[i].is_missing;
        double error_s = seconds(set->ranks[i].clock_error_ns);
        r.clock_error_s = error_s > r.clock_error_s ? error_s : r.clock_error_s;
    }
    for (uint32_t i = 0; i < r.n_workers; i++)
        report_worker(&set->ranks[i + 1], &r.workers[i]);
    enum status status = report_loops(set, &r, err);
    if (status == STATUS_OK)
        status = trace_tokens_report(set, begin_ns, &r, err);
    /* A trace without the model's number of loops shows those that ran. */
    for (uint32_t i = r.n_loops; i < SEQUENCE_MAX_LOOPS; i++)
        if (r.loops[i].compute.n > 0 || r.loops[i].n_exits > 0)
            r.n_loops = i + 1;
    r.tokens_per_s = r.elapsed_s > 0 ? (double)r.n_tokens / r.elapsed_s : 0;
    if (status == STATUS_OK)
        *out = r;
    else
        free(r.workers);
    return status;
}

void trace_report_free(struct trace_report *r)
{
    free(r->workers);
    r->workers = NULL;
}
