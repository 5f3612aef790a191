/* Makes every call into the MPI library; the only file of the tree that includes mpi.h. */
#include "cluster/mpi_link.h"

#include "cluster/host.h"
#include "cluster/transport.h"

#include <mpi.h>
#if defined(OPEN_MPI) && OPEN_MPI
#include <mpi-ext.h>
#endif
#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* The library looks at every send that has not left whenever it is called, so thousands of them
 * cost seconds: it gets so many for one rank, the rest waits here. */
enum { SEND_WINDOW = 16 };
enum { TAG_RAW = 4, N_CANCEL_TESTS = 1000 };
#define RAW_PATIENCE_NS (30ull * 1000 * 1000 * 1000)

struct flight { /* requests under way, and the node each one uses */
    MPI_Request *requests;
    struct message_node **nodes;
    int *peers;
    int *done; /* room for MPI_Testsome */
    int n, cap;
};

struct waiting_send {
    enum mpi_link_kind kind;
    const void *bytes;
    size_t n;
    struct message_node *node;
    struct waiting_send *next;
};

/* The sends to one rank: with the library, and in order behind those. */
struct lane {
    int n_under_way;
    struct waiting_send *first, *last;
};

struct mpi_link {
    int rank, n_ranks;
    struct lane *lanes; /* [n_ranks] */
    struct waiting_send *spare;
    int n_waiting;          /* in all lanes */
    MPI_Comm heads, bodies; /* apart, because the header receive takes any tag */
    MPI_Request head;
    struct flight sends, receives;
};

static enum status failed(const struct mpi_link *link, const char *call, int code, struct err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int len = 0;
    MPI_Error_string(code, text, &len);
    return err_set(err, STATUS_IO, "rank %d: %s: %s", link->rank, call, text);
}

/* ---- requests under way --------------------------------------------------------------------- */

static enum status flight_reserve(struct flight *f, struct err *err)
{
    if (f->n < f->cap)
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

static enum status flight_test(struct mpi_link *link, struct flight *f, const char *what,
                               const struct mpi_link_listener *listener, struct err *err)
{
    if (f->n == 0)
        return STATUS_OK;
    int n_done = 0, n = 0;
    int code = MPI_Testsome(f->n, f->requests, &n_done, f->done, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS)
        return failed(link, what, code, err);
    if (n_done <= 0) /* also MPI_UNDEFINED */
        return STATUS_OK;
    for (int i = 0; i < n_done; i++) {
        if (f == &link->sends)
            link->lanes[f->peers[f->done[i]]].n_under_way--;
        listener->completed(listener->context, f->nodes[f->done[i]], f->peers[f->done[i]]);
    }
    /* The library has set the finished requests to null: close the gaps, keep the order. */
    for (int i = 0; i < f->n; i++) {
        if (f->requests[i] == MPI_REQUEST_NULL)
            continue;
        f->requests[n] = f->requests[i];
        f->nodes[n] = f->nodes[i];
        f->peers[n] = f->peers[i];
        n++;
    }
    f->n = n;
    return STATUS_OK;
}

static void flight_free(struct flight *f)
{
    free(f->requests);
    free(f->nodes);
    free(f->peers);
    free(f->done);
}

/* ---- sends that wait for the library -------------------------------------------------------- */

static void waiting_free(struct waiting_send *s)
{
    while (s != NULL) {
        struct waiting_send *next = s->next;
        free(s);
        s = next;
    }
}

static enum status waiting_add(struct mpi_link *link, int dest, struct waiting_send send,
                               struct err *err)
{
    struct lane *lane = &link->lanes[dest];
    struct waiting_send *s = link->spare;
    if (s != NULL)
        link->spare = s->next;
    else if ((s = malloc(sizeof *s)) == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message that waits");
    *s = send;
    s->next = NULL;
    if (lane->first == NULL)
        lane->first = s;
    else
        lane->last->next = s;
    lane->last = s;
    link->n_waiting++;
    return STATUS_OK;
}

static enum status send_now(struct mpi_link *link, int dest, const struct waiting_send *s,
                            struct err *err)
{
    enum status status = flight_reserve(&link->sends, err);
    if (status != STATUS_OK)
        return status;
    MPI_Request request;
    MPI_Comm comm =
        s->kind == MPI_LINK_BODY || s->kind == MPI_LINK_ROWS ? link->bodies : link->heads;
    int code = MPI_Isend(s->bytes, (int)s->n, MPI_BYTE, dest, (int)s->kind, comm, &request);
    if (code != MPI_SUCCESS)
        return failed(link, "MPI_Isend", code, err);
    flight_add(&link->sends, request, s->node, dest);
    link->lanes[dest].n_under_way++;
    return STATUS_OK;
}

/* Gives the library what there is room for, lane by lane in order. */
static enum status send_waiting(struct mpi_link *link, struct err *err)
{
    for (int dest = 0; dest < link->n_ranks && link->n_waiting > 0; dest++) {
        struct lane *lane = &link->lanes[dest];
        while (lane->first != NULL && lane->n_under_way < SEND_WINDOW) {
            struct waiting_send *s = lane->first;
            enum status status = send_now(link, dest, s, err);
            if (status != STATUS_OK)
                return status;
            lane->first = s->next;
            s->next = link->spare;
            link->spare = s;
            link->n_waiting--;
        }
    }
    return STATUS_OK;
}

/* ---- start and end -------------------------------------------------------------------------- */

enum status mpi_link_open(struct mpi_link **out, struct err *err)
{
    int was_started = 0, granted = 0;
    MPI_Initialized(&was_started);
    if (was_started)
        return err_set(err, STATUS_INVALID, "MPI can be started once per process, and it has been");
    struct mpi_link *link = calloc(1, sizeof *link);
    if (link == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the MPI transport");
    link->head = MPI_REQUEST_NULL;
    link->rank = -1;
    enum status status = STATUS_OK;
    /* SERIALIZED: one thread at a time calls, but it need not be the one that runs main. */
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &granted);
    if (code == MPI_SUCCESS && granted < MPI_THREAD_SERIALIZED)
        status =
            err_set(err, STATUS_UNSUPPORTED,
                    "this MPI library can't be called from a second thread (level %d)", granted);
    if (code == MPI_SUCCESS && status == STATUS_OK) {
        MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN); /* the copies inherit it */
        MPI_Comm_rank(MPI_COMM_WORLD, &link->rank);
        MPI_Comm_size(MPI_COMM_WORLD, &link->n_ranks);
        code = MPI_Comm_dup(MPI_COMM_WORLD, &link->heads);
    }
    if (code == MPI_SUCCESS && status == STATUS_OK)
        code = MPI_Comm_dup(MPI_COMM_WORLD, &link->bodies);
    if (code != MPI_SUCCESS)
        status = failed(link, "start of MPI", code, err);
    if (status == STATUS_OK &&
        (link->lanes = calloc((size_t)link->n_ranks, sizeof *link->lanes)) == NULL)
        status = err_set(err, STATUS_NO_MEMORY, "no memory for %d ranks", link->n_ranks);
    if (status != STATUS_OK) {
        free(link);
        return status;
    }
    *out = link;
    return STATUS_OK;
}

int mpi_link_rank(const struct mpi_link *link)
{
    return link->rank;
}

int mpi_link_n_ranks(const struct mpi_link *link)
{
    return link->n_ranks;
}

enum status mpi_link_meet_host(struct mpi_link *link, const void *card, size_t card_bytes,
                               void *cards, struct mpi_link_host *host, struct err *err)
{
    MPI_Comm local = MPI_COMM_NULL;
    MPI_Group local_group, world_group;
    int n = 0, n_before = 0;
    int code = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    if (code != MPI_SUCCESS)
        return failed(link, "MPI_Comm_split_type", code, err);
    MPI_Comm_size(local, &n);
    MPI_Comm_rank(local,
                  &n_before); /* the key is 0 for all: they stand in the order of the world */
    enum status status = STATUS_OK;
    char *shown = calloc((size_t)n, card_bytes);
    int *ranks = calloc((size_t)n, sizeof *ranks), *world_ranks = calloc((size_t)n, sizeof *ranks);
    if (shown == NULL || ranks == NULL || world_ranks == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for %d local ranks", n);
        goto out;
    }
    code = MPI_Allgather(card, (int)card_bytes, MPI_BYTE, shown, (int)card_bytes, MPI_BYTE, local);
    if (code != MPI_SUCCESS) {
        status = failed(link, "MPI_Allgather", code, err);
        goto out;
    }
    for (int i = 0; i < n; i++)
        ranks[i] = i;
    MPI_Comm_group(local, &local_group);
    MPI_Comm_group(MPI_COMM_WORLD, &world_group);
    MPI_Group_translate_ranks(local_group, n, ranks, world_group, world_ranks);
    MPI_Group_free(&local_group);
    MPI_Group_free(&world_group);
    for (int i = 0; i < n; i++)
        memcpy((char *)cards + (size_t)world_ranks[i] * card_bytes, shown + (size_t)i * card_bytes,
               card_bytes);
    *host = (struct mpi_link_host){.n = n, .n_before = n_before, .has_zero = world_ranks[0] == 0};
out:
    MPI_Comm_free(&local);
    free(shown);
    free(ranks);
    free(world_ranks);
    return status;
}

bool mpi_link_close(struct mpi_link *link, bool is_clean)
{
    if (link == NULL)
        return false;
    if (link->head != MPI_REQUEST_NULL) {
        int is_done = 0;
        MPI_Cancel(&link->head);
        /* Bounded, because a peer's failure can leave a request stuck. */
        for (int i = 0; i < N_CANCEL_TESTS && !is_done; i++)
            MPI_Test(&link->head, &is_done, MPI_STATUS_IGNORE);
        is_clean = is_clean && is_done;
    }
    is_clean = is_clean && mpi_link_n_sends(link) == 0 && link->receives.n == 0;
    if (is_clean)
        is_clean = MPI_Finalize() == MPI_SUCCESS;
    flight_free(&link->sends);
    flight_free(&link->receives);
    for (int i = 0; i < link->n_ranks; i++)
        waiting_free(link->lanes[i].first);
    waiting_free(link->spare);
    free(link->lanes);
    free(link);
    return is_clean;
}

const char *transport_mpi_version(void)
{
    static char
        line[MPI_MAX_LIBRARY_VERSION_STRING]; /* the library's constant, written once over */
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int len = 0;
    MPI_Get_library_version(text, &len);
    text[strcspn(text, ",\n")] = '\0';
    memcpy(line, text, sizeof line);
    return line;
}

bool transport_mpi_is_cuda_aware(void)
{
#if defined(MPIX_CUDA_AWARE_SUPPORT)
    return MPIX_Query_cuda_support() == 1;
#else
    return false;
#endif
}

/* ---- messages ------------------------------------------------------------------------------- */

enum status mpi_link_send(struct mpi_link *link, enum mpi_link_kind kind, int dest,
                          const void *bytes, size_t n, struct message_node *node, struct err *err)
{
    const struct waiting_send send = {.kind = kind, .bytes = bytes, .n = n, .node = node};
    const struct lane *lane = &link->lanes[dest];
    if (lane->first != NULL || lane->n_under_way >= SEND_WINDOW)
        return waiting_add(link, dest, send, err);
    return send_now(link, dest, &send, err);
}

enum status mpi_link_receive(struct mpi_link *link, enum mpi_link_kind kind, int source,
                             void *bytes, size_t n, struct message_node *node, struct err *err)
{
    enum status status = flight_reserve(&link->receives, err);
    if (status != STATUS_OK)
        return status;
    MPI_Request request;
    int code = MPI_Irecv(bytes, (int)n, MPI_BYTE, source, (int)kind, link->bodies, &request);
    if (code != MPI_SUCCESS)
        return failed(link, "MPI_Irecv of a body", code, err);
    flight_add(&link->receives, request, node, source);
    return STATUS_OK;
}

enum status mpi_link_receive_head(struct mpi_link *link, void *bytes, size_t cap, struct err *err)
{
    int code =
        MPI_Irecv(bytes, (int)cap, MPI_BYTE, MPI_ANY_SOURCE, MPI_ANY_TAG, link->heads, &link->head);
    return code == MPI_SUCCESS ? STATUS_OK : failed(link, "MPI_Irecv of a header", code, err);
}

enum status mpi_link_test_sends(struct mpi_link *link, const struct mpi_link_listener *listener,
                                struct err *err)
{
    enum status status = flight_test(link, &link->sends, "MPI_Testsome of sends", listener, err);
    return status == STATUS_OK ? send_waiting(link, err) : status;
}

enum status mpi_link_test_bodies(struct mpi_link *link, const struct mpi_link_listener *listener,
                                 struct err *err)
{
    return flight_test(link, &link->receives, "MPI_Testsome of bodies", listener, err);
}

enum status mpi_link_test_head(struct mpi_link *link, struct mpi_link_head *out, struct err *err)
{
    int is_done = 0, n_bytes = 0;
    MPI_Status from;
    int code = MPI_Test(&link->head, &is_done, &from);
    if (code != MPI_SUCCESS)
        return failed(link, "MPI_Test of the header receive", code, err);
    *out = (struct mpi_link_head){.has_arrived = is_done != 0};
    if (is_done) {
        MPI_Get_count(&from, MPI_BYTE, &n_bytes);
        out->kind = (enum mpi_link_kind)from.MPI_TAG;
        out->source = from.MPI_SOURCE;
        out->len_bytes = (size_t)n_bytes;
    }
    return STATUS_OK;
}

bool mpi_link_is_head_receive_pending(const struct mpi_link *link)
{
    return link->head != MPI_REQUEST_NULL;
}

int mpi_link_n_sends(const struct mpi_link *link)
{
    return link->sends.n + link->n_waiting;
}

int mpi_link_n_bodies(const struct mpi_link *link)
{
    return link->receives.n;
}

void mpi_link_visit_peers(const struct mpi_link *link, void (*visit)(void *context, int peer),
                          void *context)
{
    for (int i = 0; i < link->sends.n; i++)
        visit(context, link->sends.peers[i]);
    for (int i = 0; i < link->receives.n; i++)
        visit(context, link->receives.peers[i]);
}

/* ---- the benchmark's floor ------------------------------------------------------------------ */

enum status mpi_link_raw_round_trip(struct mpi_link *link, int peer, bool is_first, bool yields,
                                    void *bytes, size_t n_bytes, struct err *err)
{
    int n = (int)n_bytes;
    uint64_t until_ns = 0;
    for (int step = 0; step < 2; step++) {
        bool is_send = (step == 0) == is_first;
        MPI_Request request;
        int is_done = 0;
        int code = is_send ? MPI_Isend(bytes, n, MPI_BYTE, peer, TAG_RAW, link->bodies, &request)
                           : MPI_Irecv(bytes, n, MPI_BYTE, peer, TAG_RAW, link->bodies, &request);
        for (unsigned i = 1; code == MPI_SUCCESS && !is_done; i++) {
            code = MPI_Test(&request, &is_done, MPI_STATUS_IGNORE);
            if (!is_done && yields)
                sched_yield();
            if (i % 4096 != 0)
                continue;
            if (until_ns == 0)
                until_ns = host_now_ns() + RAW_PATIENCE_NS;
            else if (host_now_ns() > until_ns)
                return err_set(err, STATUS_TIMEOUT, "rank %d: no answer from rank %d", link->rank,
                               peer);
        }
        if (code != MPI_SUCCESS)
            return failed(link, "raw ping-pong", code, err);
    }
    return STATUS_OK;
}
