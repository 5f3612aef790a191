/* Puts the coordinator's words on the wire. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"
#include "proto/frame.h"

#include <stdio.h>
#include <string.h>

#define GOODBYE_TIMEOUT_NS UINT64_C(5000000000)

enum status coordinator_send(struct coordinator *c, uint32_t worker,
                             const struct control_message *message, struct err *err)
{
    struct transport_message *m = NULL;
    size_t cap_bytes = control_size(message);
    enum status st = transport_acquire(c->transport, cap_bytes, &m, err);
    if (st == STATUS_OK) {
        m->len_bytes = control_encode(message, m->bytes, cap_bytes);
        st = transport_post(c->transport, (int)worker + 1, m, err);
    }
    if (st != STATUS_OK)
        err_wrap(err, "sending to rank %u on %s", worker + 1, coordinator_host_of(c, worker));
    return st;
}

enum status coordinator_send_prompt(struct coordinator *c, uint32_t worker, const struct request *r,
                                    struct err *err)
{
    const uint32_t d_model = (uint32_t)c->checkpoint->config.d_model;
    const struct frame frame = {
        .sequence = r->sequence,
        .loop = 1,
        .n_rows = r->n_prompt,
        .flags = FRAME_LIVE,
        .survival = 1.0f,
        .sent_ns = host_now_ns(),
    };
    struct transport_message *m = NULL;
    size_t cap_bytes = bundle_header_bytes() + frame_bytes(1, r->n_prompt, frame.flags, d_model);
    enum status st = transport_acquire(c->transport, cap_bytes, &m, err);
    if (st == STATUS_OK) {
        struct bundle_writer writer;
        void *ids, *rows;
        bundle_begin(&writer, m->bytes, cap_bytes, d_model, 0, 0);
        st = bundle_add(&writer, &frame, &ids, &rows, err);
        if (st == STATUS_OK) {
            memcpy(ids, r->prompt_ids, r->n_prompt * sizeof *r->prompt_ids);
            m->len_bytes = bundle_end(&writer);
            st = transport_post(c->transport, (int)worker + 1, m, err);
        } else {
            transport_release(c->transport, m);
        }
    }
    if (st != STATUS_OK)
        err_wrap(err, "sending a prompt to rank %u on %s", worker + 1,
                 coordinator_host_of(c, worker));
    return st;
}

/* Who said hello and could work will say goodbye; the others may be gone or never have come. */
static bool is_goodbye_due(const struct peer *p)
{
    return p->has_hello && p->hello.failure == STATUS_OK && !p->has_left &&
           !(p->has_ready && p->ready.failure != STATUS_OK);
}

static bool all_have_left(const struct coordinator *c)
{
    for (uint32_t w = 0; w < c->n_workers; w++)
        if (is_goodbye_due(&c->peers[w]))
            return false;
    return transport_is_drained(c->transport);
}

void coordinator_stop_workers(struct coordinator *c, enum status failure, const char *message)
{
    if (c->phase == PHASE_STOPPING)
        return;
    c->phase = PHASE_STOPPING;
    struct control_message m = {.kind = CONTROL_SHUTDOWN, .shutdown.failure = failure};
    snprintf(m.shutdown.message, sizeof m.shutdown.message, "%s", message);
    for (uint32_t w = 0; w < c->n_workers; w++)
        (void)coordinator_send(c, w, &m,
                               NULL); /* one that cannot be reached must not keep the others */

    uint64_t deadline_ns = host_now_ns() + GOODBYE_TIMEOUT_NS;
    while (!all_have_left(c)) {
        uint32_t n_handled = 0;
        if (coordinator_receive(c, &n_handled, NULL) != STATUS_OK)
            return;
        uint64_t now_ns = host_now_ns();
        if (now_ns >= deadline_ns)
            return;
        /* In short steps: a send that completes does not end a wait. */
        if (n_handled == 0 && !all_have_left(c))
            (void)transport_wait(c->transport, 10 * 1000 * 1000, NULL);
    }
}
