/* Brings the records of all ranks together, one question at a time, and tells who does not answer.
 *
 * Before the question goes out, clocks are compared a few times more: once workers send megabytes
 * of records, an exchange's round trip says little. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void coordinator_note_draining(struct coordinator *c)
{
    if (c->draining_since_ns == 0)
        c->draining_since_ns = host_now_ns();
}

/* ---- the set -------------------------------------------------------------------------------- */

static enum status create_set(const struct coordinator *c, struct trace_set **out, struct err *err)
{
    struct trace_set *set = NULL;
    enum status st = trace_set_create(c->n_workers + 1, &set, err);
    if (st != STATUS_OK)
        return st;
    const char *dir = c->checkpoint->dir, *slash = strrchr(dir, '/');
    set->n_loops = (uint32_t)c->checkpoint->config.n_loops;
    set->ring_size = c->ring_size;
    snprintf(set->model, sizeof set->model, "%.255s",
             slash != NULL && slash[1] != '\0' ? slash + 1 : dir);
    snprintf(set->version, sizeof set->version, "%s", CAROUSEL_VERSION);
    host_name(set->ranks[0].host, sizeof set->ranks[0].host);
    set->ranks[0].is_clock_shared = true;
    for (uint32_t w = 0; w < c->n_workers; w++)
        snprintf(set->ranks[w + 1].host, sizeof set->ranks[w + 1].host, "%s",
                 coordinator_host_of(c, w));
    *out = set;
    return STATUS_OK;
}

/* A trace with a hole is better than a cluster that ends for want of memory for its trace. */
static void append(struct trace_set *set, uint32_t rank, const struct trace_record *records,
                   size_t n)
{
    if (trace_set_append(set, rank, records, n, NULL) != STATUS_OK)
        set->ranks[rank].n_lost += n;
}

static void append_own(struct coordinator *c, struct trace_set *set, uint64_t window_ns)
{
    const struct trace *t = c->config.trace;
    const uint64_t now_ns = host_now_ns();
    const uint64_t since_ns = window_ns != 0 && window_ns < now_ns ? now_ns - window_ns : 0;
    const size_t n_ring = t->n_added < t->mask + 1 ? (size_t)t->n_added : (size_t)t->mask + 1;
    const size_t n_pending = scheduler_n_pending_records(c->scheduler);
    const size_t cap = n_ring + n_pending + 1;
    struct trace_record *records = malloc(cap * sizeof *records);
    if (records == NULL) {
        set->ranks[0].n_lost = t->n_added;
        return;
    }
    size_t n = trace_copy(t, since_ns, records, n_ring, &set->ranks[0].n_lost);
    scheduler_pending_records(c->scheduler, now_ns, records + n);
    n += n_pending;
    if (c->draining_since_ns != 0)
        records[n++] = (struct trace_record){.kind = TRACE_DRAINING,
                                             .at_ns = c->draining_since_ns,
                                             .lasted_ns = now_ns - c->draining_since_ns};
    append(set, 0, records, n);
    free(records);
}

static enum status check_recording(const struct coordinator *c, struct err *err)
{
    return c->config.trace != NULL && c->scheduler != NULL
               ? STATUS_OK
               : err_set(err, STATUS_INVALID, "nothing is recorded: give --trace-buffer a size");
}

enum status coordinator_own_trace(struct coordinator *c, struct trace_set **out, struct err *err)
{
    struct trace_set *set;
    enum status st = check_recording(c, err);
    if (st == STATUS_OK)
        st = create_set(c, &set, err);
    if (st != STATUS_OK)
        return st;
    append_own(c, set, 0);
    for (uint32_t w = 0; w < c->n_workers; w++)
        set->ranks[w + 1].is_missing = true;
    *out = set;
    return STATUS_OK;
}

/* ---- the question --------------------------------------------------------------------------- */

enum status coordinator_request_trace(struct coordinator *c, uint64_t window_ns,
                                      void (*on_trace)(void *user, struct trace_set *set),
                                      void *user, struct err *err)
{
    struct trace_question *q = &c->trace_question;
    if (c->phase != PHASE_RUNNING)
        return err_set(err, STATUS_INTERNAL, "a trace outside of start and shutdown");
    if (c->fatal.code != STATUS_OK)
        return err_set(err, c->fatal.code, "%s", c->fatal.message);
    enum status st = check_recording(c, err);
    if (st != STATUS_OK)
        return st;
    if (q->n_missing > 0)
        return err_set(err, STATUS_FULL,
                       "%u of %u workers still owe the records of an earlier "
                       "question",
                       q->n_missing, c->n_workers);
    st = create_set(c, &q->set, err);
    if (st != STATUS_OK)
        return st;
    q->tag++;
    q->window_ns = window_ns;
    q->heard_ns = host_now_ns();
    q->n_missing = c->n_workers;
    q->is_sent = false;
    q->on_trace = on_trace;
    q->user = user;
    for (uint32_t w = 0; w < c->n_workers; w++)
        c->peers[w].has_trace = false;
    coordinator_clock_burst(c);
    coordinator_wake(c);
    return STATUS_OK;
}

enum status coordinator_trace_ask(struct coordinator *c, struct err *err)
{
    struct trace_question *q = &c->trace_question;
    if (q->n_missing == 0 || q->is_sent || coordinator_clock_is_bursting(c))
        return STATUS_OK;
    q->is_sent = true;
    const struct control_message m = {
        .kind = CONTROL_TRACE_REQUEST,
        .trace_request = {.tag = q->tag, .window_ns = q->window_ns},
    };
    enum status st = STATUS_OK;
    for (uint32_t w = 0; w < c->n_workers && st == STATUS_OK; w++)
        st = coordinator_send(c, w, &m, err);
    return st;
}

/* Without memory for its history a clock is what it is now. */
static void copy_clock(struct coordinator *c, uint32_t worker, struct trace_rank *out)
{
    const struct peer_clock *k = &c->peers[worker].clock;
    out->is_clock_shared = k->is_shared;
    coordinator_worker_clock(c, worker, &out->clock_offset_ns, &out->clock_error_ns);
    if (k->is_shared || k->n_points == 0)
        return;
    out->clocks = malloc(k->n_points * sizeof *out->clocks);
    if (out->clocks == NULL)
        return;
    memcpy(out->clocks, k->points, k->n_points * sizeof *out->clocks);
    out->n_clocks = k->n_points;
}

static void finish(struct coordinator *c)
{
    struct trace_question *q = &c->trace_question;
    struct trace_set *set = q->set;
    q->set = NULL;
    append_own(c, set, q->window_ns);
    for (uint32_t w = 0; w < c->n_workers; w++)
        copy_clock(c, w, &set->ranks[w + 1]);
    if (q->on_trace != NULL)
        q->on_trace(q->user, set); /* it may ask again */
    else
        trace_set_destroy(set);
}

void coordinator_trace_take(struct coordinator *c, uint32_t worker, const struct control_trace *t)
{
    struct trace_question *q = &c->trace_question;
    struct peer *p = &c->peers[worker];
    if (q->n_missing == 0 || !q->is_sent || t->tag != q->tag || p->has_trace)
        return; /* the answer to a question that has been given up */
    q->heard_ns = host_now_ns();
    append(q->set, worker + 1, t->records, t->n);
    if (!t->is_last)
        return;
    q->set->ranks[worker + 1].n_lost += t->n_lost;
    p->has_trace = true;
    if (--q->n_missing == 0)
        finish(c);
}

enum status coordinator_trace_check(const struct coordinator *c, uint64_t now_ns, struct err *err)
{
    const struct trace_question *q = &c->trace_question;
    /* From message to message: what many ranks have recorded may take longer than one answer. */
    if (q->n_missing == 0 || now_ns - q->heard_ns < c->config.answer_timeout_ns)
        return STATUS_OK;
    uint32_t w = 0;
    while (c->peers[w].has_trace)
        w++;
    return err_set(err, STATUS_TIMEOUT,
                   "rank %u on %s did not send its trace in %.1f s: it hangs or its host is lost",
                   w + 1, coordinator_host_of(c, w), (double)c->config.answer_timeout_ns / 1e9);
}

/* ---- with waiting --------------------------------------------------------------------------- */

static void on_collected(void *user, struct trace_set *set)
{
    *(struct trace_set **)user = set;
}

enum status coordinator_collect_trace(struct coordinator *c, uint64_t window_ns,
                                      struct trace_set **out, struct err *err)
{
    struct trace_question *q = &c->trace_question;
    struct trace_set *set = NULL;
    enum status st = STATUS_OK;
    /* Somebody else's question first. A step looks at the deadlines, so none of this lasts. */
    while (st == STATUS_OK && c->phase == PHASE_RUNNING && q->n_missing > 0)
        st = coordinator_step(c, UINT64_MAX, err);
    if (st == STATUS_OK)
        st = coordinator_request_trace(c, window_ns, on_collected, &set, err);
    while (st == STATUS_OK && set == NULL)
        st = coordinator_step(c, UINT64_MAX, err);
    if (q->user == &set)
        q->on_trace = NULL; /* what it points to ends here */
    if (set == NULL)
        return st;
    *out = set; /* whole, also where the cluster was lost in the same step: the next one tells */
    return STATUS_OK;
}
