/* Sends and receives the messages of a reduction, in the order of its calls, with a deadline. */
#include "cluster/host.h"
#include "train/reduce_wire.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNKS_AHEAD = 16 };
#define NAP_NS  (200 * 1000 * 1000u) /* a wait; messages end it sooner */
#define TELL_NS UINT64_C(2000000000) /* for the last words of a rank that gives up */

enum status reduce_link_send(struct reduce_link *l, int dest, const struct reduce_header *header,
                             const void *payload, size_t payload_bytes, struct err *err)
{
    struct transport_message *m = NULL;
    enum status status = transport_acquire(l->transport, sizeof *header + payload_bytes, &m, err);
    if (status != STATUS_OK)
        return status;
    memcpy(m->bytes, header, sizeof *header);
    if (payload_bytes > 0)
        memcpy(reduce_payload_of(m), payload, payload_bytes);
    m->len_bytes = sizeof *header + payload_bytes;
    return transport_post(l->transport, dest, m, err);
}

static enum status keep_early(struct reduce_link *l, struct transport_message *m, struct err *err)
{
    struct reduce_early *e = &l->early;
    if (e->n == e->cap) {
        size_t cap = e->cap == 0 ? 16 : 2 * e->cap;
        struct transport_message **more = realloc(e->messages, cap * sizeof *more);
        if (more == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory to keep %zu early messages", cap);
        e->messages = more;
        e->cap = cap;
    }
    e->messages[e->n++] = m;
    return STATUS_OK;
}

/* The oldest early message of this call; NULL when there is none. Order between a pair stays. */
static struct transport_message *take_early(struct reduce_link *l)
{
    struct reduce_early *e = &l->early;
    for (size_t i = 0; i < e->n; i++) {
        struct transport_message *m = e->messages[i];
        if (reduce_header_of(m)->call != l->call)
            continue;
        memmove(&e->messages[i], &e->messages[i + 1],
                (e->n - i - 1) * sizeof(struct transport_message *));
        e->n--;
        return m;
    }
    return NULL;
}

static enum status take_failure(struct reduce_link *l, const struct transport_message *m,
                                struct err *err)
{
    const struct reduce_header *h = reduce_header_of(m);
    l->has_told = true; /* the rank that failed has told everybody */
    return err_set(err, STATUS_MISMATCH, "rank %d has stopped (%s): %.*s", m->source,
                   status_name((enum status)h->n_shards), (int)h->count,
                   (const char *)reduce_payload_of(m));
}

/* Messages come from our own program, but maybe from another build of it. */
static enum status check(const struct reduce_link *l, const struct transport_message *m,
                         struct err *err)
{
    const struct reduce_header *h = reduce_header_of(m);
    const size_t room = m->len_bytes - sizeof *h;
    if (m->len_bytes < sizeof *h || h->magic != REDUCE_MAGIC || h->kind < REDUCE_PART ||
        h->kind > REDUCE_FAIL)
        return err_set(err, STATUS_CORRUPT,
                       "rank %d sent %zu bytes that are no message of a training; do all ranks run "
                       "the same build?",
                       m->source, m->len_bytes);
    const size_t width = h->kind == REDUCE_PART || h->kind == REDUCE_SUM ? sizeof(float) : 1;
    if (h->count > room || h->count * width != room || h->first > h->total ||
        h->count > h->total - h->first)
        return err_set(err, STATUS_CORRUPT,
                       "rank %d announced %" PRIu64 " values from %" PRIu64 " of %" PRIu64
                       " in a message of %zu bytes; do all ranks run the same build?",
                       m->source, h->count, h->first, h->total, m->len_bytes);
    if (h->kind != REDUCE_FAIL && h->call < l->call)
        return err_set(err, STATUS_MISMATCH,
                       "rank %d is at exchange %" PRIu64 " (step %" PRIu64
                       "), this rank at %" PRIu64 "; are recipe and resume point the same?",
                       m->source, h->call, h->step, l->call);
    return STATUS_OK;
}

enum status reduce_link_receive(struct reduce_link *l, struct transport_message **out,
                                struct err *err)
{
    struct transport_message *m = take_early(l);
    const uint64_t begin_ns = host_now_ns();
    while (m == NULL) {
        enum status status = transport_poll(l->transport, &m, err);
        if (status != STATUS_OK)
            return status;
        if (m == NULL) {
            const uint64_t waited_ns = host_now_ns() - begin_ns;
            if (waited_ns >= l->deadline_ns)
                break;
            const uint64_t left_ns = l->deadline_ns - waited_ns;
            status = transport_wait(l->transport, left_ns < NAP_NS ? left_ns : NAP_NS, err);
            if (status != STATUS_OK)
                return status;
            continue;
        }
        status = check(l, m, err);
        if (status == STATUS_OK && reduce_header_of(m)->kind == REDUCE_FAIL)
            status = take_failure(l, m, err);
        if (status == STATUS_OK && reduce_header_of(m)->call > l->call) {
            status = keep_early(l, m, err);
            if (status == STATUS_OK)
                m = NULL;
        }
        if (status != STATUS_OK) {
            transport_release(l->transport, m);
            return status;
        }
    }
    *out = m;
    return STATUS_OK;
}

/* A message that came while this rank waits for its own to leave: for later, or the end. */
static enum status keep(struct reduce_link *l, struct transport_message *m, struct err *err)
{
    enum status status = check(l, m, err);
    if (status == STATUS_OK && reduce_header_of(m)->kind == REDUCE_FAIL)
        status = take_failure(l, m, err);
    if (status == STATUS_OK)
        status = keep_early(l, m, err);
    if (status != STATUS_OK)
        transport_release(l->transport, m);
    return status;
}

/* Waits for what was posted. A rank that gives up throws away what arrives meanwhile. */
static enum status drain(struct reduce_link *l, uint64_t deadline_ns, bool is_giving_up,
                         struct err *err)
{
    const uint64_t begin_ns = host_now_ns();
    while (!transport_is_drained(l->transport)) {
        struct transport_message *m = NULL;
        enum status status = transport_poll(l->transport, &m, err);
        if (status != STATUS_OK)
            return status;
        if (m != NULL && is_giving_up)
            transport_release(l->transport, m);
        else if (m != NULL && (status = keep(l, m, err)) != STATUS_OK)
            return status;
        if (m != NULL)
            continue;
        if (transport_is_drained(l->transport))
            break;
        const uint64_t waited_ns = host_now_ns() - begin_ns;
        if (waited_ns >= deadline_ns && l->transport->n_ranks == 2)
            return err_set(err, STATUS_TIMEOUT,
                           "rank %d has not taken what was sent to it for %.3g s",
                           1 - l->transport->rank, (double)deadline_ns * 1e-9);
        if (waited_ns >= deadline_ns) /* the transport does not say which */
            return err_set(err, STATUS_TIMEOUT,
                           "other ranks have not taken what was sent to them for %.3g s",
                           (double)deadline_ns * 1e-9);
        const uint64_t left_ns = deadline_ns - waited_ns;
        status = transport_wait(l->transport, left_ns < NAP_NS ? left_ns : NAP_NS, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status reduce_link_flush(struct reduce_link *l, struct err *err)
{
    return drain(l, l->deadline_ns, false, err);
}

static enum status send_bytes(struct reduce_link *l, const unsigned char *bytes, size_t n_bytes,
                              struct err *err)
{
    size_t at = 0;
    for (int n_chunks = 1; at < n_bytes || n_chunks == 1; n_chunks++) {
        const size_t left = n_bytes - at, n = left < REDUCE_MAX_BYTES ? left : REDUCE_MAX_BYTES;
        const struct reduce_header header = {.magic = REDUCE_MAGIC,
                                             .kind = REDUCE_BYTES,
                                             .call = l->call,
                                             .total = n_bytes,
                                             .first = at,
                                             .count = n};
        for (int rank = 1; rank < l->transport->n_ranks; rank++) {
            enum status status = reduce_link_send(l, rank, &header, bytes + at, n, err);
            if (status != STATUS_OK)
                return status;
        }
        at += n;
        /* So that a long array is not all in buffers at once. */
        if (n_chunks % CHUNKS_AHEAD == 0 || at == n_bytes) {
            enum status status = reduce_link_flush(l, err);
            if (status != STATUS_OK)
                return status;
        }
    }
    return STATUS_OK;
}

static enum status receive_bytes(struct reduce_link *l, unsigned char *bytes, size_t n_bytes,
                                 struct err *err)
{
    size_t at = 0;
    do {
        struct transport_message *m = NULL;
        enum status status = reduce_link_receive(l, &m, err);
        if (status != STATUS_OK)
            return status;
        if (m == NULL)
            return err_set(
                err, STATUS_TIMEOUT,
                "rank 0 has sent nothing for %.3g s while this rank waits for its start; "
                "look at its host",
                (double)l->deadline_ns * 1e-9);
        const struct reduce_header *h = reduce_header_of(m);
        if (h->kind != REDUCE_BYTES || m->source != 0 || h->total != n_bytes || h->first != at)
            status = err_set(err, STATUS_MISMATCH,
                             "rank %d sent values from %" PRIu64 " of %" PRIu64
                             ", this rank waits for byte %zu of %zu from rank 0; do all ranks run "
                             "the same command?",
                             m->source, h->first, h->total, at, n_bytes);
        if (status == STATUS_OK) {
            if (h->count > 0)
                memcpy(bytes + at, reduce_payload_of(m), h->count);
            at += h->count;
        }
        transport_release(l->transport, m);
        if (status != STATUS_OK)
            return status;
    } while (at < n_bytes);
    return STATUS_OK;
}

enum status reduce_link_broadcast(struct reduce_link *l, void *bytes, size_t n_bytes,
                                  struct err *err)
{
    enum status status = l->transport->rank == 0 ? send_bytes(l, bytes, n_bytes, err)
                                                 : receive_bytes(l, bytes, n_bytes, err);
    if (status == STATUS_OK)
        l->call++;
    return status;
}

void reduce_link_fail(struct reduce_link *l, const struct err *why)
{
    if (l->transport == NULL || l->has_told)
        return;
    l->has_told = true;
    const char *text = why != NULL ? why->message : "no message";
    const size_t n = strlen(text);
    const struct reduce_header header = {
        .magic = REDUCE_MAGIC,
        .kind = REDUCE_FAIL,
        .call = l->call,
        .total = n,
        .count = n,
        .n_shards = (uint32_t)(why != NULL ? why->code : STATUS_INTERNAL),
    };
    for (int rank = 0; rank < l->transport->n_ranks; rank++)
        if (rank != l->transport->rank)
            reduce_link_send(l, rank, &header, text, n, NULL);
    drain(l, TELL_NS, true, NULL);
}

void reduce_link_free(struct reduce_link *l)
{
    for (size_t i = 0; i < l->early.n; i++)
        transport_release(l->transport, l->early.messages[i]);
    free(l->early.messages);
    l->early = (struct reduce_early){0};
}
