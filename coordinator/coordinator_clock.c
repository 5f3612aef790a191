/* Knows how far each worker's clock is ahead of ours.
 *
 * A worker says its clock in every STATS. The question was sent at `asked` and the answer seen at
 * `answered`, both by our clock; if both ways took the same time, the worker answered in the middle
 * (Cristian 1989). The truth lies within half the round trip of that, so the quickest exchanges
 * count; trace_clock.h says which are kept. Clocks drift apart, so exchanges are repeated. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"

#include <string.h>

#define CLOCK_INTERVAL_NS UINT64_C(1000000000)
/* Half a round trip that a quiet host makes; on a busy one some of many exchanges do. */
#define QUICK_ERROR_NS 25000

void coordinator_clock_note(struct peer_clock *k, uint64_t asked_ns, uint64_t answered_ns,
                            uint64_t clock_ns)
{
    const uint64_t trip_ns = answered_ns - asked_ns, middle_ns = asked_ns + trip_ns / 2;
    /* One more for the half, and what the clocks drift on the way. */
    const struct trace_clock point = {
        .at_ns = middle_ns,
        .offset_ns = (int64_t)(clock_ns - middle_ns),
        .error_ns = trip_ns / 2 + 1 + (uint64_t)((double)trip_ns * TRACE_CLOCK_DRIFT),
    };
    k->n_exchanges++;
    trace_clock_add(k->points, &k->n_points, CLOCK_POINTS, point);
}

int64_t coordinator_clock_offset_ns(const struct peer_clock *k)
{
    /* The last one bounds best what comes after it. */
    return k->is_shared || k->n_points == 0 ? 0 : k->points[k->n_points - 1].offset_ns;
}

void coordinator_worker_clock(const struct coordinator *c, uint32_t worker, int64_t *offset_ns,
                              uint64_t *error_ns)
{
    const struct peer_clock *k = &c->peers[worker].clock;
    *offset_ns = 0;
    *error_ns = 0;
    if (!k->is_shared && k->n_points > 0)
        *offset_ns = trace_clock_offset(k->points, k->n_points, host_now_ns(), error_ns);
}

void coordinator_clock_meet(struct peer *p)
{
    char boot_id[CONTROL_NAME_BYTES];
    host_boot_id(boot_id, sizeof boot_id);
    p->clock.is_shared = boot_id[0] != '\0' && strcmp(boot_id, p->hello.boot_id) == 0;
}

bool coordinator_clock_is_known(const struct peer *p)
{
    return p->clock.is_shared || p->clock.n_exchanges >= CLOCK_EXCHANGES_AT_START;
}

void coordinator_clock_burst(struct coordinator *c)
{
    for (uint32_t w = 0; w < c->n_workers; w++)
        if (!c->peers[w].clock.is_shared)
            c->peers[w].clock.n_burst = CLOCK_LONG_BURST;
    c->next_clock_ns = 0;
}

bool coordinator_clock_is_bursting(const struct coordinator *c)
{
    for (uint32_t w = 0; w < c->n_workers; w++)
        if (c->peers[w].clock.n_burst > 0)
            return true;
    return false;
}

enum status coordinator_clock_ask(struct coordinator *c, struct err *err)
{
    uint64_t now_ns = host_now_ns();
    if (now_ns < c->next_clock_ns)
        return STATUS_OK;
    c->next_clock_ns = now_ns + CLOCK_INTERVAL_NS;
    const struct control_message m = {.kind = CONTROL_STATS_REQUEST, .stats.tag = CLOCK_TAG};
    enum status st = STATUS_OK;
    for (uint32_t w = 0; w < c->n_workers && st == STATUS_OK; w++) {
        struct peer_clock *k = &c->peers[w].clock;
        if (k->is_shared || k->asked_ns != 0)
            continue;
        k->asked_ns = host_now_ns();
        st = coordinator_send(c, w, &m, err);
    }
    return st;
}

void coordinator_clock_take(struct coordinator *c, uint32_t worker,
                            const struct control_stats *stats)
{
    struct peer_clock *k = &c->peers[worker].clock;
    if (k->asked_ns == 0)
        return;
    coordinator_clock_note(k, k->asked_ns, host_now_ns(), stats->clock_ns);
    k->asked_ns = 0;
    k->n_burst -= k->n_burst > 0;
    uint64_t error_ns;
    trace_clock_offset(k->points, k->n_points, host_now_ns(), &error_ns);
    if (k->n_burst <= CLOCK_LONG_BURST - CLOCK_BURST && error_ns < QUICK_ERROR_NS)
        k->n_burst = 0;
    if (k->n_burst > 0 || !coordinator_clock_is_known(&c->peers[worker]))
        c->next_clock_ns = 0; /* at the start one follows the other */
}

/* A hop is the receiver's clock less the sender's. */
void coordinator_clock_correct(const struct coordinator *c, const struct request *r,
                               const uint32_t *workers, struct control_token *token)
{
    uint32_t sender = r->last_worker;
    for (uint32_t i = 0; i < token->exit_loop; i++) {
        int64_t from_ns =
            sender == CLOCK_OURS ? 0 : coordinator_clock_offset_ns(&c->peers[sender].clock);
        int64_t to_ns = coordinator_clock_offset_ns(&c->peers[workers[i]].clock);
        double *hop_s = &token->timings[i].hop_s;
        /* A row that stays on its worker is 0 already: its two clocks are one. */
        *hop_s -= (double)(to_ns - from_ns) / 1e9;
        if (*hop_s < 0.0)
            *hop_s = 0.0; /* less than the offset's own error */
        sender = workers[i];
    }
}
