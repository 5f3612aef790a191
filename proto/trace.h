/* What happened on a rank, and when: records of one fixed size in a ring buffer of one fixed size.
 *
 * Whoever records takes a slot with trace_add and fills it; the oldest record is overwritten when
 * the buffer is full. Nothing is allocated after create, and nothing here reads a clock: times are
 * what the caller knows, by its own rank's clock. One thread (the rank's driver) uses a trace.
 * Stage and scheduler drivers record the same things in a real run and in a simulated one. */
#ifndef PROTO_TRACE_H
#define PROTO_TRACE_H

#include "proto/sequence.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum trace_kind {
    /* Workers. */
    TRACE_BATCH = 1, /* span: a batch was computed: n_rows, batch */
    TRACE_ROWS,    /* span of the same batch for one of its segments: sequence, loop, position (the
                      first one), n_rows, flags, peer (who sent them; itself: they stayed), rows */
    TRACE_POOL,    /* instant, after each batch: pool */
    TRACE_IDLE,    /* span without a batch: flags is enum trace_idle */
    TRACE_RECEIVE, /* span: the driver took in a message of rank `peer`: message */
    TRACE_SEND,    /* span: the driver packed and posted a message to rank `peer`: message */
    /* The coordinator. */
    TRACE_QUEUE,     /* span: from submit to admission (OPEN is sent): request, sequence, n_rows (of
                        the prompt) */
    TRACE_ADMISSION, /* span: from there until the prompt was sent to rank `peer`: sequence, request
                      */
    TRACE_SEQUENCE,  /* span: from there to the end: sequence, n_rows (tokens made), request; flags
                        is enum finish_reason */
    TRACE_TOKEN,     /* instant: a token has arrived: sequence, position, loop (exit), peer (who
                        made it), token */
    TRACE_LOAD,      /* instant, when it changed: load */
    TRACE_BLOCKED,   /* span: the head of the queue could not be admitted: flags is enum
                        trace_blocked */
    TRACE_DRAINING,  /* span: no new requests are taken any more */
    TRACE_KINDS
};

enum trace_flags {
    TRACE_LIVE = 1, /* rows: the last one is live: it decides a token unless it goes deeper */
    TRACE_EXIT = 2  /* rows: the live row got off at this loop */
};
/* A worker knows the first two; the rest follows from what the coordinator says of the same time
 * (coordinator/trace_set.h). */
enum trace_idle {
    TRACE_IDLE_STARVED = 0, /* no rows were here */
    TRACE_IDLE_PEER,        /* rows were here and waited for a ring mate's batch */
    TRACE_IDLE_KV,          /* starved, while requests waited for KV blocks or sequence slots */
    TRACE_IDLE_DRAINING,    /* starved, while the server drained */
    TRACE_IDLE_REASONS
};
enum trace_blocked { TRACE_BLOCKED_KV = 0, TRACE_BLOCKED_SEQUENCES };

struct trace_record {
    uint64_t at_ns;     /* begin */
    uint64_t lasted_ns; /* 0: an instant */
    uint64_t sequence;
    uint32_t position, n_rows;
    uint8_t kind, loop; /* enum trace_kind; 1-based, 0: none */
    uint16_t flags;
    uint16_t peer; /* a rank */
    uint16_t reserved;
    union {
        struct {
            uint16_t rows_by_loop[SEQUENCE_MAX_LOOPS]; /* saturating */
            uint32_t head_ns;                          /* of lasted_ns: head and sampler */
            uint16_t n_heads, n_segments;              /* saturating */
        } batch;
        struct {
            int64_t hop_ns;   /* from the sender's clock to ours: maybe years off; 0: they stayed */
            uint64_t wait_ns; /* from arrival (of the oldest of them) to the batch's start */
            /* Of these, parked after this loop; parked there before and gone on together with
             * these. */
            uint32_t n_parked, n_revived;
        } rows;
        struct {
            uint32_t kv_blocks_used, kv_blocks_total, parked_rows, ready_rows, n_sequences;
        } pool;
        struct {
            uint64_t n_bytes;
            uint32_t n_frames;
        } message;
        struct {
            uint64_t request;
        } request;
        struct {
            int32_t id;
            float cdf;
        } token;
        struct {
            uint32_t n_queued, n_opening, n_running, n_closing, blocks_reserved_max, n_blocks;
        } load;
    };
};
_Static_assert(sizeof(struct trace_record) == 64, "a record is one cache line");

struct trace {
    uint64_t n_added; /* ever; the last min(n_added, cap) are there */
    uint64_t mask;    /* cap - 1 */
    struct trace_record *records;
};

/* Room for at least n_bytes of records, rounded up to a power of two of them. STATUS_NO_MEMORY. */
enum status trace_create(uint64_t n_bytes, struct trace **out, struct err *err);
void trace_destroy(struct trace *t); /* NULL is fine */

/* The next slot, zero but for kind and at_ns. t is not NULL. */
static inline struct trace_record *trace_add(struct trace *t, enum trace_kind kind, uint64_t at_ns)
{
    struct trace_record *r = &t->records[t->n_added++ & t->mask];
    memset(r, 0, sizeof *r);
    r->kind = (uint8_t)kind;
    r->at_ns = at_ns;
    return r;
}

/* How many that a copy since then may lack have been overwritten: all that ever were, or none when
 * what is there begins before since_ns (0: the start). */
uint64_t trace_n_lost(const struct trace *t, uint64_t since_ns);
/* Copies the records that ended at since_ns or later, oldest first, at most cap of them (the newest
 * ones). Returns how many; *n_lost (may be NULL) is trace_n_lost. */
size_t trace_copy(const struct trace *t, uint64_t since_ns, struct trace_record *out, size_t cap,
                  uint64_t *n_lost);

/* STATUS_CORRUPT: what of this record cannot be (a kind, a loop, a reason). For records that came
 * from elsewhere. */
enum status trace_record_check(const struct trace_record *r, struct err *err);

#endif
