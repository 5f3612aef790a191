/* Carries messages between MPI ranks: one header receive, non-blocking calls only, a cheap sleep.
 *
 * A message up to WHOLE_BYTES is one MPI message on the `heads` communicator. A longer one is
 * announced there (length, number) and its body follows on `bodies`, into a buffer that the
 * receiver has acquired after checking the length. Later messages of that source queue behind the
 * body. This is the only file that includes mpi.h. */
#include "cluster/transport_mpi.h"

#include "cluster/host.h"
#include "cluster/message_pool.h"
#include "cluster/mpi_env.h"
#include "cluster/mpi_wait.h"

#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum {
    WHOLE_BYTES = 64 << 10,
    MAX_IDLE_BYTES = 256 << 20,
    TAG_WHOLE = 1,    /* on heads: the message itself */
    TAG_ANNOUNCE = 2, /* on heads: {length, number of the body} */
    TAG_RAW = 1,      /* on bodies: the benchmark's ping-pong */
    TAG_BODY = 2,
    N_TESTS = 20 /* before a sleep; one test can miss what the next one sees */
};
enum { ANNOUNCE_BYTES = 2 * sizeof(uint64_t) };
#define SPIN_NS          (50 * 1000u) /* when every local rank has a core: cheaper than a wake-up */
#define PUSH_NS          (2 * 1000 * 1000u) /* keep a long transfer moving this long after its last step */
#define NAP_IN_FLIGHT_NS (10 * 1000 * 1000u)
#define NAP_IDLE_NS                                                                                \
    (200 * 1000 * 1000u) /* all wake-ups are events; this is for the one that got lost */
#define NAP_NO_EVENTS_NS (1000 * 1000u)
#define DRAIN_NS         (1000ull * 1000 * 1000) /* for what a caller has posted just before destroy */
#define RAW_PATIENCE_NS  (30ull * 1000 * 1000 * 1000)

struct flight { /* requests under way, and the node each one uses */
    MPI_Request *requests;
    struct message_node **nodes;
    int *peers;
    int *done; /* room for MPI_Testsome */
    int n, cap;
};

struct peer {
    struct message_queue queue; /* behind a body that has not arrived yet */
    uint64_t n_bodies_sent, n_bodies_received;
    struct mpi_bell bell; /* of ranks on this host */
};

struct mpi {
    struct transport base;
    MPI_Comm heads, bodies;
    struct message_pool *pool;
    struct message_node *head_node; /* what the header receive writes into */
    MPI_Request head_request;
    struct flight sends, receives;
    struct peer *peers;
    struct message_queue ready;
    struct mpi_wait waiting;
    uint64_t last_step_ns; /* when a transfer last began or ended */
    bool is_event_driven;  /* every peer can end a sleep */
    bool has_own_core;     /* spinning takes nobody's time */
    bool has_failed;
};

/* ---- small helpers -------------------------------------------------------------------------- */

static enum status mpi_failed(struct mpi *m, const char *call, int code, struct err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int len = 0;
    MPI_Error_string(code, text, &len);
    m->has_failed = true;
    return err_set(err, STATUS_IO, "rank %d: %s: %s", m->base.rank, call, text);
}

static enum status flight_reserve(struct flight *f, int n_more, struct err *err)
{
    if (f->n + n_more <= f->cap)
        return STATUS_OK;
    int cap = f->cap == 0 ? 64 : 2 * f->cap;
    size_t n = (size_t)cap;
    MPI_Request *requests = realloc(f->requests, n * sizeof *requests);
    f->requests = requests != NULL ? requests : f->requests;
    struct message_node **nodes = realloc(f->nodes, n * sizeof(struct message_node *));
    f->nodes = nodes != NULL ? nodes : f->nodes;
    int *peers = realloc(f->peers, n * sizeof *peers);
    f->peers = peers != NULL ? peers : f->peers;
    int *done = realloc(f->done, n * sizeof *done);
    f->done = done != NULL ? done : f->done;
    if (requests == NULL || nodes == NULL || peers == NULL || done == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d messages under way", cap);
    f->cap = cap;
    return STATUS_OK;
}

static void flight_add(struct flight *f, MPI_Request request, struct message_node *node, int peer)
{
    f->requests[f->n] = request;
    f->nodes[f->n] = node;
    f->peers[f->n] = peer;
    f->n++;
}

/* MPI_Testsome has set the finished requests to MPI_REQUEST_NULL: close the gaps, keep the order.
 */
static void flight_compact(struct flight *f)
{
    int n = 0;
    for (int i = 0; i < f->n; i++) {
        if (f->requests[i] == MPI_REQUEST_NULL)
            continue;
        f->requests[n] = f->requests[i];
        f->nodes[n] = f->nodes[i];
        f->peers[n] = f->peers[i];
        n++;
    }
    f->n = n;
}

static void flight_free(struct flight *f)
{
    free(f->requests);
    free(f->nodes);
    free(f->peers);
    free(f->done);
}

static void ring(struct mpi *m, int rank)
{
    mpi_wait_ring(&m->waiting, &m->peers[rank].bell);
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
    message_pool_release(((struct mpi *)t)->pool, (struct message_node *)message);
}

/* Starts one MPI send; node is released when all of its sends are done. */
static int start_send(struct mpi *m, const void *bytes, size_t n, int dest, int tag, MPI_Comm comm,
                      struct message_node *node)
{
    MPI_Request request;
    int code = MPI_Isend(bytes, (int)n, MPI_BYTE, dest, tag, comm, &request);
    if (code != MPI_SUCCESS)
        return code;
    node->n_pending++;
    flight_add(&m->sends, request, node, dest);
    return MPI_SUCCESS;
}

static enum status mpi_post(struct transport *t, int dest, struct transport_message *message,
                            struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    struct message_node *node = (struct message_node *)message;
    size_t n = message->len_bytes;
    enum status status = STATUS_OK;
    if (dest < 0 || dest >= t->n_ranks || n > message->cap_bytes)
        status = err_set(err, STATUS_INVALID, "post of %zu bytes (room for %zu) to rank %d of %d",
                         n, message->cap_bytes, dest, t->n_ranks);
    else
        status = flight_reserve(&m->sends, 2, err);
    if (status != STATUS_OK) {
        mpi_release(t, message);
        return status;
    }
    message->source = t->rank;
    t->counters.n_messages_sent++;
    t->counters.n_bytes_sent += n;
    if (dest == t->rank) {
        message_queue_push(&m->ready, node);
        return STATUS_OK;
    }
    int code;
    if (n <= WHOLE_BYTES) {
        code = start_send(m, message->bytes, n, dest, TAG_WHOLE, m->heads, node);
    } else {
        node->announcement[0] = n;
        node->announcement[1] = m->peers[dest].n_bodies_sent++;
        code =
            start_send(m, node->announcement, ANNOUNCE_BYTES, dest, TAG_ANNOUNCE, m->heads, node);
        if (code == MPI_SUCCESS)
            code = start_send(m, message->bytes, n, dest, TAG_BODY, m->bodies, node);
    }
    m->last_step_ns = host_now_ns();
    ring(m, dest);
    if (code == MPI_SUCCESS)
        return STATUS_OK;
    if (node->n_pending == 0)
        mpi_release(t, message);
    return mpi_failed(m, "MPI_Isend", code, err);
}

static enum status progress_sends(struct mpi *m, struct err *err)
{
    if (m->sends.n == 0)
        return STATUS_OK;
    int n_done = 0;
    int code =
        MPI_Testsome(m->sends.n, m->sends.requests, &n_done, m->sends.done, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS)
        return mpi_failed(m, "MPI_Testsome of sends", code, err);
    if (n_done <= 0) /* also MPI_UNDEFINED */
        return STATUS_OK;
    for (int i = 0; i < n_done; i++) {
        struct message_node *node = m->sends.nodes[m->sends.done[i]];
        /* What did not leave at once may have left after the ring that followed its post. */
        ring(m, m->sends.peers[m->sends.done[i]]);
        if (--node->n_pending == 0)
            message_pool_release(m->pool, node);
    }
    flight_compact(&m->sends);
    m->last_step_ns = host_now_ns();
    return STATUS_OK;
}

/* ---- receiving ------------------------------------------------------------------------------ */

static enum status post_head_receive(struct mpi *m, struct err *err)
{
    if (m->head_node == NULL) {
        enum status status = message_pool_acquire(m->pool, WHOLE_BYTES, &m->head_node, err);
        if (status != STATUS_OK)
            return status;
    }
    int code = MPI_Irecv(m->head_node->message.bytes, WHOLE_BYTES, MPI_BYTE, MPI_ANY_SOURCE,
                         MPI_ANY_TAG, m->heads, &m->head_request);
    return code == MPI_SUCCESS ? STATUS_OK : mpi_failed(m, "MPI_Irecv", code, err);
}

/* Hands on what is complete, in the order its source has sent it. */
static void queue_to_ready(struct mpi *m, struct peer *peer)
{
    while (peer->queue.first != NULL && peer->queue.first->is_complete)
        message_queue_push(&m->ready, message_queue_pop(&peer->queue));
}

static enum status accept_announcement(struct mpi *m, int source, const unsigned char *bytes,
                                       int n_bytes, struct err *err)
{
    uint64_t said[2] = {0, 0};
    struct peer *peer = &m->peers[source];
    if (n_bytes == ANNOUNCE_BYTES)
        memcpy(said, bytes, ANNOUNCE_BYTES);
    if (n_bytes != ANNOUNCE_BYTES || said[0] <= WHOLE_BYTES ||
        said[0] > TRANSPORT_MAX_MESSAGE_BYTES || said[1] != peer->n_bodies_received) {
        m->has_failed = true;
        return err_set(err, STATUS_CORRUPT,
                       "rank %d announces a body of %llu bytes as number %llu in %d bytes (limit "
                       "%d, expected number %llu)",
                       source, (unsigned long long)said[0], (unsigned long long)said[1], n_bytes,
                       TRANSPORT_MAX_MESSAGE_BYTES, (unsigned long long)peer->n_bodies_received);
    }
    struct message_node *node = NULL;
    enum status status = message_pool_acquire(m->pool, (size_t)said[0], &node, err);
    if (status == STATUS_OK)
        status = flight_reserve(&m->receives, 1, err);
    if (status != STATUS_OK) {
        message_pool_release(m->pool, node);
        m->has_failed = true; /* the announcement is gone, the body can't be placed any more */
        return status;
    }
    MPI_Request request;
    int code = MPI_Irecv(node->message.bytes, (int)said[0], MPI_BYTE, source, TAG_BODY, m->bodies,
                         &request);
    if (code != MPI_SUCCESS) {
        message_pool_release(m->pool, node);
        return mpi_failed(m, "MPI_Irecv of a body", code, err);
    }
    peer->n_bodies_received++;
    node->message.len_bytes = (size_t)said[0];
    node->message.source = source;
    flight_add(&m->receives, request, node, source);
    message_queue_push(&peer->queue, node);
    return STATUS_OK;
}

/* Tests the header receive; this must be the last MPI call before a sleep, because MPI_Test looks
 * again after it has made progress and MPI_Testsome does not. */
static enum status progress_head(struct mpi *m, bool *has_arrived, struct err *err)
{
    *has_arrived = false;
    if (m->head_request == MPI_REQUEST_NULL) {
        enum status status = post_head_receive(m, err);
        if (status != STATUS_OK)
            return status;
    }
    int is_done = 0, n_bytes = 0;
    MPI_Status from;
    int code = MPI_Test(&m->head_request, &is_done, &from);
    if (code != MPI_SUCCESS)
        return mpi_failed(m, "MPI_Test of the header receive", code, err);
    if (!is_done)
        return STATUS_OK;
    *has_arrived = true;
    m->last_step_ns = host_now_ns();
    MPI_Get_count(&from, MPI_BYTE, &n_bytes);
    if (from.MPI_TAG == TAG_ANNOUNCE) {
        enum status status =
            accept_announcement(m, from.MPI_SOURCE, m->head_node->message.bytes, n_bytes, err);
        return status == STATUS_OK ? post_head_receive(m, err) : status;
    }
    struct message_node *node = m->head_node;
    m->head_node = NULL;
    node->message.len_bytes = (size_t)n_bytes;
    node->message.source = from.MPI_SOURCE;
    node->is_complete = true;
    message_queue_push(&m->peers[from.MPI_SOURCE].queue, node);
    queue_to_ready(m, &m->peers[from.MPI_SOURCE]);
    return post_head_receive(m, err);
}

static enum status progress_bodies(struct mpi *m, struct err *err)
{
    if (m->receives.n == 0)
        return STATUS_OK;
    int n_done = 0;
    int code = MPI_Testsome(m->receives.n, m->receives.requests, &n_done, m->receives.done,
                            MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS)
        return mpi_failed(m, "MPI_Testsome of bodies", code, err);
    if (n_done <= 0)
        return STATUS_OK;
    for (int i = 0; i < n_done; i++) {
        int at = m->receives.done[i], source = m->receives.peers[at];
        m->receives.nodes[at]->is_complete = true;
        queue_to_ready(m, &m->peers[source]);
        ring(m, source); /* its send can complete now */
    }
    flight_compact(&m->receives);
    m->last_step_ns = host_now_ns();
    return STATUS_OK;
}

/* Moves everything on by one step. Stops taking messages in while the caller has some to read: a
 * slow reader is felt by its senders instead of by its memory. */
static enum status progress(struct mpi *m, struct err *err)
{
    if (m->has_failed)
        return err_set(err, STATUS_IO, "rank %d: the transport has failed before", m->base.rank);
    enum status status = progress_sends(m, err);
    if (status == STATUS_OK)
        status = progress_bodies(m, err);
    if (status != STATUS_OK || m->ready.first != NULL)
        return status;
    bool has_arrived = true;
    while (has_arrived && m->ready.first == NULL) {
        status = progress_head(m, &has_arrived, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
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
        t->counters.n_bytes_received += node->message.len_bytes;
    }
    *out = node != NULL ? &node->message : NULL;
    return STATUS_OK;
}

/* ---- waiting -------------------------------------------------------------------------------- */

/* The tests before a sleep. *is_over: something is there to be read, or all sends have left, or
 * somebody called wake. */
static enum status test_before_sleep(struct mpi *m, uint64_t until_ns, bool *is_over,
                                     struct err *err)
{
    bool had_sends = m->sends.n > 0;
    for (int i = 0; i < N_TESTS || host_now_ns() < until_ns; i++) {
        enum status status = progress(m, err);
        if (status != STATUS_OK)
            return status;
        *is_over = m->ready.first != NULL || (had_sends && m->sends.n == 0) ||
                   mpi_wait_take_wake(&m->waiting);
        if (*is_over)
            return STATUS_OK;
    }
    return STATUS_OK;
}

/* How long the next sleep may last, 0 for not at all. */
static uint64_t nap_ns(struct mpi *m, uint64_t now_ns, uint64_t n_naps)
{
    if (m->sends.n + m->receives.n > 0) {
        if (now_ns - m->last_step_ns < PUSH_NS)
            return 0;
        return m->is_event_driven ? NAP_IN_FLIGHT_NS : NAP_NO_EVENTS_NS;
    }
    if (m->is_event_driven)
        return NAP_IDLE_NS;
    /* Nothing can end the sleep: start short, so that a reply that is due soon is seen soon. */
    uint64_t nap = 20000u << (n_naps < 8 ? n_naps : 8);
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
    for (uint64_t n_naps = 0;; n_naps++) {
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
        /* A peer that owes us a step of a long transfer may be asleep. */
        for (int i = 0; i < m->sends.n; i++)
            ring(m, m->sends.peers[i]);
        for (int i = 0; i < m->receives.n; i++)
            ring(m, m->receives.peers[i]);
        mpi_wait_sleep(&m->waiting, nap < until_ns - now_ns ? nap : until_ns - now_ns);
    }
}

static void mpi_wake(struct transport *t)
{
    mpi_wait_wake(&((struct mpi *)t)->waiting);
}

static bool mpi_is_drained(struct transport *t)
{
    return ((struct mpi *)t)->sends.n == 0;
}

/* ---- start and end -------------------------------------------------------------------------- */

/* Finds the ranks of this host and learns where their bells hang. */
static enum status meet_local_ranks(struct mpi *m, struct err *err)
{
    MPI_Comm local = MPI_COMM_NULL;
    MPI_Group local_group, world_group;
    struct mpi_bell *bells = NULL;
    int *ranks = NULL, *world_ranks = NULL, n = 0;
    enum status status = STATUS_OK;
    int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    if (code != MPI_SUCCESS)
        return mpi_failed(m, "MPI_Comm_split_type", code, err);
    MPI_Comm_size(local, &n);
    bells = calloc((size_t)n, sizeof *bells);
    ranks = calloc((size_t)n, sizeof *ranks);
    world_ranks = calloc((size_t)n, sizeof *world_ranks);
    if (bells == NULL || ranks == NULL || world_ranks == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for %d local ranks", n);
        goto out;
    }
    code = MPI_Allgather(&m->waiting.bell, sizeof *bells, MPI_BYTE, bells, sizeof *bells, MPI_BYTE,
                         local);
    if (code != MPI_SUCCESS) {
        status = mpi_failed(m, "MPI_Allgather", code, err);
        goto out;
    }
    for (int i = 0; i < n; i++)
        ranks[i] = i;
    MPI_Comm_group(local, &local_group);
    MPI_Comm_group(MPI_COMM_WORLD, &world_group);
    MPI_Group_translate_ranks(local_group, n, ranks, world_group, world_ranks);
    MPI_Group_free(&local_group);
    MPI_Group_free(&world_group);
    m->base.n_local_ranks = n;
    m->is_event_driven = n == m->base.n_ranks || m->waiting.epoll_fd >= 0;
    for (int i = 0; i < n; i++) {
        m->peers[world_ranks[i]].bell = bells[i];
        if (bells[i].len_bytes == 0 || bells[i].len_bytes > sizeof bells[i].name) {
            m->peers[world_ranks[i]].bell.len_bytes = 0;
            m->is_event_driven = false;
        }
    }
out:
    MPI_Comm_free(&local);
    free(bells);
    free(ranks);
    free(world_ranks);
    return status;
}

static enum status join_world(struct mpi *m, struct err *err)
{
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->base.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m->base.n_ranks);
    m->peers = calloc((size_t)m->base.n_ranks, sizeof *m->peers);
    if (m->peers == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d ranks", m->base.n_ranks);
    /* Own communicators: their messages can't meet anybody else's. They inherit MPI_ERRORS_RETURN.
     */
    int code = MPI_Comm_dup(MPI_COMM_WORLD, &m->heads);
    if (code == MPI_SUCCESS)
        code = MPI_Comm_dup(MPI_COMM_WORLD, &m->bodies);
    if (code != MPI_SUCCESS)
        return mpi_failed(m, "MPI_Comm_dup", code, err);
    if (mpi_env_uses_sockets())
        mpi_wait_find_epoll(&m->waiting);
    enum status status = meet_local_ranks(m, err);
    if (status != STATUS_OK)
        return status;
    m->has_own_core = m->base.n_local_ranks <= host_n_cores();
    return post_head_receive(m, err);
}

/* Takes back the receives that nobody will answer; bounded, because a peer's failure can leave them
 * stuck. */
static bool cancel_receives(struct mpi *m)
{
    if (m->head_request == MPI_REQUEST_NULL)
        return true;
    MPI_Cancel(&m->head_request);
    int is_done = 0;
    for (int i = 0; i < 1000 && !is_done; i++)
        MPI_Test(&m->head_request, &is_done, MPI_STATUS_IGNORE);
    return is_done != 0;
}

static void mpi_destroy(struct transport *t)
{
    struct mpi *m = (struct mpi *)t;
    uint64_t until_ns = host_now_ns() + DRAIN_NS;
    while (!m->has_failed && m->sends.n > 0 && host_now_ns() < until_ns)
        (void)mpi_wait_op(t, NAP_NO_EVENTS_NS, NULL);
    bool is_clean = !m->has_failed && m->sends.n == 0 && m->receives.n == 0;
    is_clean = cancel_receives(m) && is_clean;
    if (is_clean)
        MPI_Finalize();
    mpi_wait_close(&m->waiting);
    /* Without finalize the library may still read and write buffers: leave them to the end of the
     * process. */
    if (is_clean) {
        message_pool_release_all(m->pool, m->ready.first);
        message_pool_release(m->pool, m->head_node);
        message_pool_destroy(m->pool);
    }
    flight_free(&m->sends);
    flight_free(&m->receives);
    free(m->peers);
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
    .destroy = mpi_destroy,
};

enum status transport_mpi_create(struct transport **out, struct err *err)
{
    int was_started = 0, granted = 0;
    MPI_Initialized(&was_started);
    if (was_started)
        return err_set(err, STATUS_INVALID, "MPI can be started once per process, and it has been");
    struct mpi *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the MPI transport");
    m->base.ops = &mpi_ops;
    m->head_request = MPI_REQUEST_NULL;
    enum status status = mpi_wait_open(&m->waiting, err);
    if (status == STATUS_OK)
        status = message_pool_create(MAX_IDLE_BYTES, &m->pool, err);
    if (status == STATUS_OK) {
        signal(SIGPIPE, SIG_IGN); /* a peer that dies must not take us along */
        mpi_env_set_defaults();
        /* SERIALIZED: one thread at a time calls, but it need not be the one that runs main. */
        int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &granted);
        if (code != MPI_SUCCESS)
            status = mpi_failed(m, "MPI_Init_thread", code, err);
        else if (granted < MPI_THREAD_SERIALIZED)
            status = err_set(err, STATUS_UNSUPPORTED,
                             "this MPI library does not let a second thread call it (level %d)",
                             granted);
        else
            status = join_world(m, err);
    }
    if (status != STATUS_OK) {
        m->has_failed = true;
        mpi_destroy(&m->base);
        return status;
    }
    *out = &m->base;
    return STATUS_OK;
}

const char *transport_mpi_version(void)
{
    static char line[MPI_MAX_LIBRARY_VERSION_STRING];
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len = 0;
    MPI_Get_library_version(text, &len);
    text[strcspn(text, ",\n")] = '\0';
    memcpy(line, text, sizeof line);
    return line;
}

/* ---- the benchmark's floor ------------------------------------------------------------------ */

static enum status raw_exchange(struct mpi *m, int peer, unsigned char *bytes, size_t n,
                                bool is_first, struct err *err)
{
    uint64_t until_ns = host_now_ns() + RAW_PATIENCE_NS;
    for (int step = 0; step < 2; step++) {
        bool is_send = (step == 0) == is_first;
        MPI_Request request;
        int is_done = 0;
        int code = is_send ? MPI_Isend(bytes, (int)n, MPI_BYTE, peer, TAG_RAW, m->bodies, &request)
                           : MPI_Irecv(bytes, (int)n, MPI_BYTE, peer, TAG_RAW, m->bodies, &request);
        for (unsigned i = 1; code == MPI_SUCCESS && !is_done; i++) {
            code = MPI_Test(&request, &is_done, MPI_STATUS_IGNORE);
            if (!is_done && !m->has_own_core)
                sched_yield();
            if (i % 4096 == 0 && host_now_ns() > until_ns) {
                m->has_failed = true;
                return err_set(err, STATUS_TIMEOUT, "rank %d: no answer from rank %d", m->base.rank,
                               peer);
            }
        }
        if (code != MPI_SUCCESS)
            return mpi_failed(m, "raw ping-pong", code, err);
    }
    return STATUS_OK;
}

enum status transport_mpi_raw_ping_pong(struct transport *t, int peer, size_t n_bytes,
                                        int n_round_trips, uint64_t *round_trip_ns, struct err *err)
{
    struct mpi *m = (struct mpi *)t;
    if (t->ops != &mpi_ops || peer < 0 || peer >= t->n_ranks || peer == t->rank)
        return err_set(err, STATUS_INVALID, "raw ping-pong with rank %d of %d over %s", peer,
                       t->n_ranks, t->ops->name);
    struct message_node *node = NULL;
    enum status status = message_pool_acquire(m->pool, n_bytes, &node, err);
    if (status != STATUS_OK)
        return status;
    memset(node->message.bytes, 0, n_bytes);
    for (int i = 0; i < n_round_trips && status == STATUS_OK; i++) {
        uint64_t begin_ns = host_now_ns();
        status = raw_exchange(m, peer, node->message.bytes, n_bytes, t->rank < peer, err);
        if (status == STATUS_OK && round_trip_ns != NULL)
            round_trip_ns[i] = host_now_ns() - begin_ns;
    }
    if (status == STATUS_OK)
        message_pool_release(m->pool, node);
    return status;
}
