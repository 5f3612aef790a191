/* Carries messages between MPI ranks, whole and in order, and sleeps cheaply when there are none.
 *
 * A message up to WHOLE_BYTES is one MPI message. A longer one is announced (length, number) and
 * its body follows, into a buffer that the receiver has acquired after checking the length; so is
 * one with a second part, whose rows follow from device memory to device memory. Later messages of
 * that source queue behind all of it. Receiving is in transport_mpi_receive.c, how a sleep ends in
 * mpi_wait.h, every MPI call in mpi_link.c. */
#include "cluster/transport_mpi.h"

#include "cluster/host.h"
#include "cluster/mpi_env.h"
#include "cluster/transport_mpi_state.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_IDLE_BYTES = 256 << 20,
    MAX_IDLE_ROWS_BYTES = 64 << 20, /* of a device, where KV wants all there is */
    N_TESTS = 20                    /* before a sleep: one test can miss what the next one sees */
};
#define SPIN_NS          (50 * 1000u)         /* with a core of its own: cheaper than a wake-up */
#define PUSH_NS          (2 * 1000 * 1000u)   /* a long transfer is kept moving this long */
#define NAP_IN_FLIGHT_NS (10 * 1000 * 1000u)  /* and then looked at this often */
#define NAP_IDLE_NS      (200 * 1000 * 1000u) /* for the wake-up that got lost; events do the rest */
#define NAP_NO_EVENTS_NS (1000 * 1000u)       /* nothing but the clock can end the sleep */
#define NAP_FIRST_NS     (20 * 1000u)         /* likewise, when a reply may be due soon */
#define DRAIN_NS         (1000 * 1000 * 1000u) /* for what was posted just before destroy */

void mpi_ring(void *context, int rank)
{
    struct mpi *m = context;
    mpi_wait_ring(&m->waiting, &m->bells[rank]);
}

static enum status note_failure(struct mpi *m, enum status status)
{
    m->has_failed = m->has_failed || status != STATUS_OK;
    return status;
}

void mpi_node_release(struct mpi *m, struct message_node *node)
{
    if (node != NULL)
        message_pool_release(m->rows_pool, node->rows);
    message_pool_release(m->pool, node);
}

static void release_all(struct mpi *m, struct message_node *first)
{
    while (first != NULL) {
        struct message_node *next = first->next;
        mpi_node_release(m, first);
        first = next;
    }
}

/* ---- sending -------------------------------------------------------------------------------- */

static enum status mpi_acquire(struct transport *t, size_t cap_bytes,
                               struct transport_message **out, struct err *err)
{
    struct message_node *node = NULL;
    enum status status = message_pool_acquire(((struct mpi *)t)->pool, cap_bytes, &node, err);
    if (status != STATUS_OK)
        return status;
    node->message.source = t->rank;
    *out = &node->message;
    return STATUS_OK;
}

static void mpi_release(struct transport *t, struct transport_message *message)
{
    mpi_node_release((struct mpi *)t, (struct message_node *)message);
}

static enum status mpi_add_rows(struct transport *t, struct transport_message *message,
                                size_t rows_bytes, struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    struct message_node *node = (struct message_node *)message;
    if (m->rows_pool == NULL || node->rows != NULL || rows_bytes == 0)
        return err_set(err, STATUS_INVALID, "a second part of %zu bytes: %s", rows_bytes,
                       m->rows_pool == NULL ? "this rank has no memory for it"
                       : rows_bytes == 0    ? "it has nothing in it"
                                            : "the message has one");
    enum status status = message_pool_acquire(m->rows_pool, rows_bytes, &node->rows, err);
    if (status != STATUS_OK)
        return status;
    message->rows = node->rows->message.bytes;
    message->rows_bytes = rows_bytes;
    return STATUS_OK;
}

/* node is released when all of its sends are done. */
static enum status start_send(struct mpi *m, enum mpi_link_kind kind, int dest, const void *bytes,
                              size_t n, struct message_node *node, struct err *err)
{
    enum status status = mpi_link_send(m->link, kind, dest, bytes, n, node, err);
    if (status == STATUS_OK)
        node->n_pending++;
    return status;
}

static enum status mpi_post(struct transport *t, int dest, struct transport_message *message,
                            struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    struct message_node *node = (struct message_node *)message;
    size_t n = message->len_bytes;
    if (dest < 0 || dest >= t->n_ranks || n > message->cap_bytes) {
        enum status status =
            err_set(err, STATUS_INVALID, "post of %zu bytes (room for %zu) to rank %d of %d", n,
                    message->cap_bytes, dest, t->n_ranks);
        mpi_release(t, message);
        return status;
    }
    message->source = t->rank;
    t->counters.n_messages_sent++;
    t->counters.n_bytes_sent += n + message->rows_bytes;
    if (dest == t->rank) {
        message_queue_push(&m->ready, node);
        return STATUS_OK;
    }
    enum status status;
    if (n <= WHOLE_BYTES && message->rows_bytes == 0) {
        status = start_send(m, MPI_LINK_WHOLE, dest, message->bytes, n, node, err);
    } else {
        node->announcement[0] = n;
        node->announcement[1] = m->peers[dest].n_bodies_sent++;
        node->announcement[2] = message->rows_bytes;
        status = start_send(m, MPI_LINK_ANNOUNCEMENT, dest, node->announcement, ANNOUNCE_BYTES,
                            node, err);
        if (status == STATUS_OK)
            status = start_send(m, MPI_LINK_BODY, dest, message->bytes, n, node, err);
        if (status == STATUS_OK && message->rows_bytes > 0)
            status =
                start_send(m, MPI_LINK_ROWS, dest, message->rows, message->rows_bytes, node, err);
    }
    m->last_step_ns = host_now_ns();
    mpi_ring(m, dest);
    if (status != STATUS_OK && node->n_pending == 0)
        mpi_release(t, message);
    return note_failure(m, status);
}

static void send_completed(void *context, struct message_node *node, int peer)
{
    struct mpi *m = context;
    /* What did not leave at once may have left after the ring that followed its post. */
    mpi_ring(m, peer);
    m->last_step_ns = host_now_ns();
    if (--node->n_pending == 0)
        mpi_node_release(m, node);
}

/* ---- polling -------------------------------------------------------------------------------- */

/* Moves everything on by one step. Takes nothing in while the caller has something to read: a slow
 * reader is felt by its senders instead of by its memory. */
static enum status progress(struct mpi *m, struct err *err)
{
    if (m->has_failed)
        return err_set(err, STATUS_IO, "rank %d: the transport has failed before", m->base.rank);
    const struct mpi_link_listener on_send = {send_completed, m}, on_body = {mpi_part_received, m};
    enum status status = mpi_link_test_sends(m->link, &on_send, err);
    if (status == STATUS_OK)
        status = mpi_link_test_bodies(m->link, &on_body, err);
    if (status == STATUS_OK && m->ready.first == NULL)
        status = mpi_take_heads(m, err);
    return note_failure(m, status);
}

static enum status mpi_poll(struct transport *t, struct transport_message **out, struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    enum status status = progress(m, err);
    if (status != STATUS_OK && m->ready.first == NULL)
        return status;
    struct message_node *node = message_queue_pop(&m->ready);
    if (node != NULL) {
        t->counters.n_messages_received++;
        t->counters.n_bytes_received += node->message.len_bytes + node->message.rows_bytes;
    }
    *out = node != NULL ? &node->message : NULL;
    return STATUS_OK;
}

/* ---- waiting -------------------------------------------------------------------------------- */

static int n_in_flight(const struct mpi *m)
{
    return mpi_link_n_sends(m->link) + mpi_link_n_bodies(m->link);
}

/* The tests before a sleep. *is_over: there is something to read, or all sends have left, or
 * somebody called wake. */
static enum status test_before_sleep(struct mpi *m, uint64_t until_ns, bool *is_over,
                                     struct err *err)
{
    bool had_sends = mpi_link_n_sends(m->link) > 0;
    for (int i = 0; i < N_TESTS || host_now_ns() < until_ns; i++) {
        enum status status = progress(m, err);
        if (status != STATUS_OK)
            return status;
        *is_over = m->ready.first != NULL || (had_sends && mpi_link_n_sends(m->link) == 0) ||
                   mpi_wait_take_wake(&m->waiting);
        if (*is_over)
            return STATUS_OK;
    }
    return STATUS_OK;
}

/* How long the next sleep may last, 0 for not at all. */
static uint64_t nap_ns(const struct mpi *m, uint64_t now_ns, int n_naps)
{
    if (n_in_flight(m) > 0) {
        if (now_ns - m->last_step_ns < PUSH_NS)
            return 0;
        return m->is_event_driven ? NAP_IN_FLIGHT_NS : NAP_NO_EVENTS_NS;
    }
    if (m->is_event_driven)
        return NAP_IDLE_NS;
    uint64_t nap = (uint64_t)NAP_FIRST_NS << (n_naps < 8 ? n_naps : 8);
    return nap < NAP_NO_EVENTS_NS ? nap : NAP_NO_EVENTS_NS;
}

static enum status mpi_wait_op(struct transport *t, uint64_t timeout_ns, struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    uint64_t now_ns = host_now_ns();
    uint64_t until_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
    uint64_t spin_until_ns = m->has_own_core ? now_ns + SPIN_NS : 0;
    if (spin_until_ns > until_ns)
        spin_until_ns = until_ns;
    for (int n_naps = 0;; n_naps++) {
        bool is_over = false;
        enum status status = test_before_sleep(m, spin_until_ns, &is_over, err);
        if (status != STATUS_OK || is_over)
            return status;
        now_ns = host_now_ns();
        if (now_ns >= until_ns)
            return STATUS_OK;
        uint64_t nap = nap_ns(m, now_ns, n_naps);
        if (nap == 0) {
            sched_yield();
            continue;
        }
        mpi_wait_set_may_sleep(&m->waiting, true);
        status = test_before_sleep(m, 0, &is_over, err);
        if (status == STATUS_OK && !is_over) {
            /* A peer that owes us a step of a long transfer may be asleep. */
            mpi_link_visit_peers(m->link, mpi_ring, m);
            mpi_wait_sleep(&m->waiting, nap < until_ns - now_ns ? nap : until_ns - now_ns);
        }
        mpi_wait_set_may_sleep(&m->waiting, false);
        if (status != STATUS_OK || is_over)
            return status;
    }
}

static void mpi_wake(struct transport *t)
{
    mpi_wait_wake(&((struct mpi *)t)->waiting);
}

static bool mpi_is_drained(struct transport *t)
{
    return mpi_link_n_sends(((struct mpi *)t)->link) == 0;
}

static void mpi_use_memory(struct transport *t, const struct transport_memory *memory)
{
    message_pool_use_memory(((struct mpi *)t)->pool, memory);
}

static void mpi_use_rows_memory(struct transport *t, const struct transport_memory *memory)
{
    struct mpi *m = (struct mpi *)t;
    if (m->rows_pool != NULL ||
        message_pool_create(MAX_IDLE_ROWS_BYTES, &m->rows_pool, NULL) != STATUS_OK)
        memory->release(memory->context); /* without a pool, the first message says so */
    else
        message_pool_use_memory(m->rows_pool, memory);
}

/* ---- start and end -------------------------------------------------------------------------- */

static void mpi_destroy(struct transport *t)
{
    struct mpi *m = (struct mpi *)t;
    bool was_closed = false;
    if (m->link != NULL) {
        uint64_t until_ns = host_now_ns() + DRAIN_NS;
        while (!m->has_failed && !mpi_is_drained(t) && host_now_ns() < until_ns)
            (void)mpi_wait_op(t, NAP_NO_EVENTS_NS, NULL);
        was_closed = mpi_link_close(m->link, !m->has_failed);
    }
    mpi_wait_close(&m->waiting);
    /* Without finalize the library may still read and write buffers: leave them to the end of the
     * process. */
    if (was_closed) {
        for (int i = 0; i < t->n_ranks; i++)
            release_all(m, m->peers[i].queue.first);
        release_all(m, m->ready.first);
        message_pool_release(m->pool, m->head_node);
        message_pool_destroy(m->rows_pool);
        message_pool_destroy(m->pool);
    }
    for (int i = 0; m->bells != NULL && i < t->n_ranks; i++)
        mpi_wait_detach(&m->bells[i]);
    free(m->peers);
    free(m->bells);
    free(m);
}

static const struct transport_ops mpi_ops = {
    .name = "mpi",
    .acquire = mpi_acquire,
    .post = mpi_post,
    .poll = mpi_poll,
    .release = mpi_release,
    .wait = mpi_wait_op,
    .wake = mpi_wake,
    .is_drained = mpi_is_drained,
    .use_memory = mpi_use_memory,
    .use_rows_memory = mpi_use_rows_memory,
    .add_rows = mpi_add_rows,
    .destroy = mpi_destroy,
};

/* Learns where the bells of this host's ranks hang, and with that whether a sleep can rely on
 * events. */
static enum status meet_ranks(struct mpi *m, struct err *err)
{
    struct transport *t = &m->base;
    t->rank = mpi_link_rank(m->link);
    t->n_ranks = mpi_link_n_ranks(m->link);
    m->peers = calloc((size_t)t->n_ranks, sizeof *m->peers);
    m->bells = calloc((size_t)t->n_ranks, sizeof *m->bells);
    if (m->peers == NULL || m->bells == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d ranks", t->n_ranks);
    if (mpi_env_uses_sockets())
        mpi_wait_find_epoll(&m->waiting);
    struct mpi_bell *cards = calloc((size_t)t->n_ranks, sizeof *cards);
    if (cards == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d ranks", t->n_ranks);
    struct mpi_link_host host = {0};
    enum status status =
        mpi_link_meet_host(m->link, &m->waiting.bell, sizeof *cards, cards, &host, err);
    t->n_local_ranks = host.n;
    t->n_local_before = host.n_before;
    t->has_local_zero = host.has_zero;
    int n_bells = 0;
    for (int i = 0; i < t->n_ranks && status == STATUS_OK; i++) {
        mpi_wait_attach(&cards[i], &m->bells[i]);
        n_bells += m->bells[i].bell.len_bytes > 0;
    }
    free(cards);
    if (status != STATUS_OK)
        return status;
    /* A local rank without a bell would be heard by the clock only, as would another host without
     * epoll. */
    m->is_event_driven =
        n_bells == t->n_local_ranks && (t->n_local_ranks == t->n_ranks || m->waiting.epoll_fd >= 0);
    m->has_own_core = t->n_local_ranks <= host_n_cores();
    return mpi_start_head_receive(m, err);
}

enum status transport_mpi_create(struct transport **out, struct err *err)
{
    struct mpi *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the MPI transport");
    m->base.ops = &mpi_ops;
    enum status status = mpi_wait_open(&m->waiting, err);
    if (status == STATUS_OK)
        status = message_pool_create(MAX_IDLE_BYTES, &m->pool, err);
    if (status == STATUS_OK) {
        signal(SIGPIPE, SIG_IGN); /* a peer that dies must not take us along */
        mpi_env_set_defaults();
        status = mpi_link_open(&m->link, err);
    }
    if (status == STATUS_OK)
        status = meet_ranks(m, err);
    if (note_failure(m, status) != STATUS_OK) {
        mpi_destroy(&m->base);
        return status;
    }
    *out = &m->base;
    return STATUS_OK;
}

enum status transport_mpi_raw_ping_pong(struct transport *t, int peer, size_t n_bytes,
                                        int n_round_trips, uint64_t *round_trip_ns, struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    if (t->ops != &mpi_ops || peer < 0 || peer >= t->n_ranks || peer == t->rank)
        return err_set(err, STATUS_INVALID, "raw ping-pong of rank %d with rank %d over %s",
                       t->rank, peer, t->ops->name);
    struct message_node *node = NULL;
    enum status status = message_pool_acquire(m->pool, n_bytes, &node, err);
    if (status != STATUS_OK)
        return status;
    memset(node->message.bytes, 0, n_bytes);
    for (int i = 0; i < n_round_trips && status == STATUS_OK; i++) {
        uint64_t begin_ns = host_now_ns();
        status = mpi_link_raw_round_trip(m->link, peer, t->rank < peer, !m->has_own_core,
                                         node->message.bytes, n_bytes, err);
        if (status == STATUS_OK && round_trip_ns != NULL)
            round_trip_ns[i] = host_now_ns() - begin_ns;
    }
    if (status == STATUS_OK) /* else the library may still use it */
        message_pool_release(m->pool, node);
    return note_failure(m, status);
}
