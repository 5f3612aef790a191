/* The messages of a reduction: a header of 64 bytes, then floats, bytes or a text. Private to
 * reduce*.c. */
#ifndef TRAIN_REDUCE_WIRE_H
#define TRAIN_REDUCE_WIRE_H

#include "train/reduce.h"

#include <stdbool.h>

enum reduce_kind {
    REDUCE_PART = 1, /* one node's values in the piece that the receiver sums */
    REDUCE_SUM,      /* the sums of the piece that the sender owns */
    REDUCE_BYTES,    /* broadcast */
    REDUCE_FAIL      /* text: why the sender cannot go on */
};

#define REDUCE_MAGIC UINT32_C(0x43755244)

struct reduce_header {
    uint32_t magic;
    uint32_t kind;
    uint64_t call; /* how many sums and broadcasts came before: the same on every rank */
    uint64_t step;
    uint64_t total;    /* floats of the whole array, or bytes of the broadcast */
    uint64_t first;    /* of these in `total` */
    uint64_t count;    /* floats or bytes that follow */
    uint32_t node;     /* REDUCE_PART: index in the table of nodes */
    uint32_t n_shards; /* of the sender's recipe; REDUCE_FAIL: the status */
    uint64_t unused;
};
_Static_assert(sizeof(struct reduce_header) == 64, "floats behind it stay aligned");

/* Long arrays go in messages that the transport's buffers of powers of two hold without waste;
 * short ones in messages that MPI delivers at once, without a handshake with a sender that may be
 * busy. */
enum {
    REDUCE_LONG_MESSAGE_BYTES = 4 << 20,
    REDUCE_SHORT_MESSAGE_BYTES = 64 << 10,
    REDUCE_SHORT_MESSAGES = 16, /* up to so many for a piece */
    REDUCE_MAX_BYTES = REDUCE_LONG_MESSAGE_BYTES - (int)sizeof(struct reduce_header)
};

/* Messages of later calls than the current one: a rank that is through may be one ahead. */
struct reduce_early {
    struct transport_message **messages;
    size_t n, cap;
};

/* What all calls need to talk. */
struct reduce_link {
    struct transport *transport; /* NULL: one rank */
    uint64_t deadline_ns;
    uint64_t call;
    bool has_told; /* the other ranks know that the job is over */
    struct reduce_early early;
};

static inline struct reduce_header *reduce_header_of(const struct transport_message *m)
{
    return (struct reduce_header *)m->bytes;
}
static inline void *reduce_payload_of(const struct transport_message *m)
{
    return m->bytes + sizeof(struct reduce_header);
}

/* Posts the header and payload_bytes behind it. */
enum status reduce_link_send(struct reduce_link *l, int dest, const struct reduce_header *header,
                             const void *payload, size_t payload_bytes, struct err *err);
/* The next message of this call, checked: magic, length, call. Waits until the deadline; then
 * *out is NULL and the status OK: the caller knows who is missing. STATUS_MISMATCH when a rank has
 * failed. The caller releases. */
enum status reduce_link_receive(struct reduce_link *l, struct transport_message **out,
                                struct err *err);
/* Polls until what was posted has left: a rank that goes off to compute would hold up the others.
 */
enum status reduce_link_flush(struct reduce_link *l, struct err *err);
/* Rank 0's bytes to every rank: one call. */
enum status reduce_link_broadcast(struct reduce_link *l, void *bytes, size_t n_bytes,
                                  struct err *err);
/* Tells the other ranks, once. */
void reduce_link_fail(struct reduce_link *l, const struct err *why);
void reduce_link_free(struct reduce_link *l);

#endif
