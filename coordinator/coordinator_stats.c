/* Asks all workers for their counters, one question at a time, and tells who does not answer. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"

#include <string.h>

static enum status ask(struct coordinator *c, bool reset,
                       void (*on_stats)(void *user, const struct control_stats *stats), void *user,
                       struct err *err)
{
    struct stats_question *q = &c->question;
    if (c->phase != PHASE_RUNNING)
        return err_set(err, STATUS_INTERNAL, "counters outside of start and shutdown");
    if (c->fatal.code != STATUS_OK)
        return err_set(err, c->fatal.code, "%s", c->fatal.message);
    if (q->n_missing > 0)
        return err_set(err, STATUS_FULL, "%u of %u workers still owe an earlier answer",
                       q->n_missing, c->n_workers);
    struct control_message m = {.kind = CONTROL_STATS_REQUEST};
    m.stats.tag = ++q->tag;
    m.stats.reset = reset;
    q->on_stats = on_stats;
    q->user = user;
    q->asked_ns = host_now_ns();
    q->n_missing = c->n_workers;
    enum status st = STATUS_OK;
    for (uint32_t w = 0; w < c->n_workers; w++)
        c->peers[w].has_stats = false;
    for (uint32_t w = 0; w < c->n_workers && st == STATUS_OK; w++)
        st =
            coordinator_send(c, w, &m, &c->fatal); /* as any send that fails: the cluster is lost */
    if (st != STATUS_OK)
        return err_set(err, st, "%s", c->fatal.message);
    return STATUS_OK;
}

enum status coordinator_request_stats(struct coordinator *c,
                                      void (*on_stats)(void *user,
                                                       const struct control_stats *stats),
                                      void *user, struct err *err)
{
    return ask(c, false, on_stats, user, err);
}

void coordinator_stats_take(struct coordinator *c, uint32_t worker,
                            const struct control_stats *stats)
{
    struct stats_question *q = &c->question;
    struct peer *p = &c->peers[worker];
    if (stats->tag == CLOCK_TAG) {
        coordinator_clock_take(c, worker, stats);
        return;
    }
    if (q->n_missing == 0 || stats->tag != q->tag || p->has_stats)
        return; /* the answer to a question that has been given up */
    coordinator_clock_note(&p->clock, q->asked_ns, host_now_ns(), stats->clock_ns);
    q->answers[worker] = *stats;
    p->has_stats = true;
    /* Before the callback, which may ask again. */
    if (--q->n_missing == 0 && q->on_stats != NULL)
        q->on_stats(q->user, q->answers);
}

enum status coordinator_stats_check(const struct coordinator *c, uint64_t now_ns, struct err *err)
{
    const struct stats_question *q = &c->question;
    if (q->n_missing == 0 || now_ns - q->asked_ns < c->config.answer_timeout_ns)
        return STATUS_OK;
    uint32_t w = 0;
    while (c->peers[w].has_stats)
        w++;
    return err_set(err, STATUS_TIMEOUT,
                   "rank %u on %s did not answer for its counters in %.1f s: it hangs or its host "
                   "is lost",
                   w + 1, coordinator_host_of(c, w), (double)c->config.answer_timeout_ns / 1e9);
}

/* ---- with waiting --------------------------------------------------------------------------- */

struct collection {
    struct control_stats *out;
    size_t n_workers;
    bool is_complete;
};

static void on_collected(void *user, const struct control_stats *stats)
{
    struct collection *k = user;
    memcpy(k->out, stats, k->n_workers * sizeof *stats);
    k->is_complete = true;
}

enum status coordinator_collect_stats(struct coordinator *c, bool reset,
                                      struct control_stats *stats, struct err *err)
{
    struct collection k = {.out = stats, .n_workers = c->n_workers};
    enum status st = STATUS_OK;
    /* Somebody else's question first. A step looks at the deadlines, so none of this lasts. */
    while (st == STATUS_OK && c->phase == PHASE_RUNNING && c->question.n_missing > 0)
        st = coordinator_step(c, UINT64_MAX, err);
    if (st == STATUS_OK)
        st = ask(c, reset, on_collected, &k, err);
    while (st == STATUS_OK && !k.is_complete)
        st = coordinator_step(c, UINT64_MAX, err);
    if (c->question.user == &k)
        c->question.on_stats = NULL; /* what it points to ends here */
    return st;
}
