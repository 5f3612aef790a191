/* The engine thread's loop around the coordinator, with mailboxes to the client on both sides. */
#include "coordinator/service_state.h"

#include "cluster/host.h"

#include <stdio.h>
#include <stdlib.h>

#define DEFAULT_STATS_INTERVAL_NS UINT64_C(1000000000)
/* While nobody is there the counters still move on, though seldom: a worker that is lost shows. */
enum { IDLE_INTERVALS = 10 };
/* How soon ends that found no memory are tried again. */
#define UNTOLD_RETRY_NS UINT64_C(10000000)

enum status service_create(struct coordinator *coordinator, const struct service_config *config,
                           struct service **out, struct err *err)
{
    struct service *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the service");
    s->coordinator = coordinator;
    s->config = *config;
    if (s->config.stats_interval_ns == 0)
        s->config.stats_interval_ns = DEFAULT_STATS_INTERVAL_NS;
    s->failed_last = &s->failed_first;
    mailbox_init(&s->jobs);
    mailbox_init(&s->cancels);
    mailbox_init(&s->given_back);
    mailbox_init(&s->deliveries);
    *out = s;
    return STATUS_OK;
}

void service_destroy(struct service *s)
{
    if (s == NULL)
        return;
    service_free_deliveries(s->failed_first);
    service_free_deliveries(s->idle);
    service_free_deliveries(mailbox_take(&s->given_back));
    service_free_deliveries(mailbox_take(&s->deliveries));
    free(s);
}

void service_wake(struct service *s)
{
    coordinator_wake(s->coordinator);
}

bool service_is_idle(const struct service *s)
{
    return s->n_jobs == 0 && atomic_load(&s->jobs.last) == NULL &&
           atomic_load(&s->cancels.last) == NULL && coordinator_is_idle(s->coordinator);
}

/* ---- stats ---------------------------------------------------------------------------------- */

static void on_stats(void *user, const struct control_stats *stats)
{
    struct service *s = user;
    s->is_stats_asked = false;
    const uint32_t n_workers = coordinator_n_workers(s->coordinator);
    struct delivery *d = service_delivery_new(s, DELIVERY_STATS);
    struct service_snapshot *snapshot = malloc(sizeof *snapshot + n_workers * sizeof *stats);
    if (d == NULL || snapshot == NULL) { /* the next one is due soon */
        free(snapshot);
        if (d != NULL)
            service_delivery_drop(s, d);
        return;
    }
    snapshot->at_ns = host_now_ns();
    coordinator_get_load(s->coordinator, &snapshot->load);
    snapshot->n_workers = n_workers;
    snapshot->kv_usage = coordinator_kv_usage(s->coordinator);
    for (uint32_t w = 0; w < n_workers; w++)
        snapshot->workers[w] = stats[w];
    d->at_ns = snapshot->at_ns;
    d->snapshot = snapshot;
    service_post(s, d);
}

/* Asks when it is time; returns how long until it is. The question after the last job has gone
 * comes soon, so that what is shown then is that nothing is left. */
static uint64_t ask_stats(struct service *s)
{
    const uint64_t now_ns = host_now_ns();
    const bool is_active = s->n_jobs > 0 || !coordinator_is_idle(s->coordinator);
    uint64_t interval_ns = s->config.stats_interval_ns;
    if (is_active || s->was_active) {
        if (s->next_stats_ns > now_ns + interval_ns)
            s->next_stats_ns = now_ns + interval_ns;
    } else {
        interval_ns *= IDLE_INTERVALS;
    }
    if (now_ns >= s->next_stats_ns && !s->is_stats_asked) {
        s->is_stats_asked = true;
        s->was_active = is_active;
        s->next_stats_ns = now_ns + interval_ns;
        service_collect_idle(s); /* what a burst has left behind is not kept for ever */
        if (coordinator_request_stats(s->coordinator, on_stats, s, NULL) != STATUS_OK)
            s->is_stats_asked = false; /* a fatal failure is told by the step */
    }
    return s->next_stats_ns > now_ns ? s->next_stats_ns - now_ns : interval_ns;
}

/* ---- the loop ------------------------------------------------------------------------------- */

static void tell_lost(struct service *s)
{
    if (s->is_lost_told)
        return;
    struct delivery *d = service_delivery_new(s, DELIVERY_LOST);
    if (d == NULL)
        return;
    d->at_ns = host_now_ns();
    snprintf(d->message, sizeof d->message, "%s", s->lost.message);
    service_post(s, d);
    s->is_lost_told = true;
}

enum status service_step(struct service *s, uint64_t timeout_ns, struct err *err)
{
    service_take_mail(s);
    service_tell_untold(s);
    if (s->lost.code == STATUS_OK) {
        uint64_t until_stats_ns = ask_stats(s);
        if (timeout_ns > until_stats_ns)
            timeout_ns = until_stats_ns;
        if (s->untold != NULL && timeout_ns > UNTOLD_RETRY_NS)
            timeout_ns = UNTOLD_RETRY_NS;
        if (s->is_mail_due || s->failed_first != NULL)
            timeout_ns = 0;
        if (coordinator_step(s->coordinator, timeout_ns, &s->lost) != STATUS_OK) {
            tell_lost(s);
            service_post_failed(s);
            service_take_mail(s); /* what waited for room ends now */
        }
    }
    if (s->lost.code != STATUS_OK)
        tell_lost(s);
    service_post_failed(s);
    if (s->is_mail_due) {
        s->is_mail_due = false;
        if (s->config.on_mail != NULL)
            s->config.on_mail(s->config.user);
    }
    if (s->lost.code != STATUS_OK)
        return err_set(err, s->lost.code, "%s", s->lost.message);
    return STATUS_OK;
}
