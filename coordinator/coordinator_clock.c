/* Knows how far each worker's clock is ahead of ours.
 *
 * A worker says its clock in every STATS. The question was sent at `asked` and the answer seen at
 * `answered`, both by our clock; if both ways took the same time, the worker answered in the middle
 * (Cristian 1989). The truth lies within half the round trip of that, so of the last exchanges the
 * quickest counts. Clocks drift apart by some 10 us a second: exchanges are repeated. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"

#include <string.h>

#define CLOCK_INTERVAL_NS UINT64_C(1000000000)

void coordinator_clock_note(struct peer_clock *k, uint64_t asked_ns, uint64_t answered_ns,
                            uint64_t clock_ns)
{
    uint64_t trip_ns = answered_ns - asked_ns;
    struct clock_exchange *e = &k->exchanges[k->n_exchanges++ % CLOCK_EXCHANGES];
    e->trip_ns = trip_ns;
    e->offset_ns = (int64_t)(clock_ns - (asked_ns + trip_ns / 2));
}

int64_t coordinator_clock_offset_ns(const struct peer_clock *k)
{
    if (k->is_shared || k->n_exchanges == 0)
        return 0;
    const struct clock_exchange *best = &k->exchanges[0];
    for (uint32_t i = 1; i < k->n_exchanges && i < CLOCK_EXCHANGES; i++)
        if (k->exchanges[i].trip_ns < best->trip_ns)
            best = &k->exchanges[i];
    return best->offset_ns;
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
    if (!coordinator_clock_is_known(&c->peers[worker]))
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
