/* The worker's decisions: frames in, batches, frames out. Pure: no clock, no MPI, no threads;
 * nothing is allocated after create.
 *
 * Think of it as a state machine: give it one event, carry out the output it returns, in the order
 * of struct stage_output's fields, before the next event. Per sequence and loop it keeps a frontier
 * F(t), the rows that wait to run loop t (positions [F(t), ...)), and the rows parked after loop t
 * (positions [F(t+1), F(t))). F(1) >= F(2) >= ... always.
 *
 * A batch starts in the step of STAGE_BATCH_DONE or STAGE_TIME only. After any other event that may
 * allow one, wake_at_ns is that event's own now_ns: the driver gives every message that has already
 * arrived, then STAGE_TIME (or STAGE_BATCH_DONE), so that what arrived together goes into one
 * batch. Up to n_in_flight batches have been started and not ended: the replica runs them in the
 * order of their starts, and STAGE_BATCH_DONE is always about the oldest. Of one bundle it gives
 * STAGE_MATE with BUNDLE_DONE, the frames, then STAGE_MATE with BUNDLE_BUSY. A BUNDLE_DONE that is
 * not passed on makes every later wait last until its deadline.
 *
 * A row's hidden state lives in a slot of the replica's row store; a slot is in use from the
 * frame's arrival (or loop 1's id) until the row leaves for another worker or finishes its last
 * loop. KV blocks are taken when a batch first writes into them. */
#ifndef WORKER_STAGE_H
#define WORKER_STAGE_H

#include "proto/control.h"
#include "proto/frame.h"
#include "proto/sequence.h"
#include "proto/status.h"
#include "proto/trace.h"
#include "worker/batch.h"
#include "worker/knee.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Batches that may have been started and not ended. */
enum { STAGE_MAX_IN_FLIGHT = KERNELS_MAX_IN_FLIGHT };

struct stage_config {
    uint32_t ring_size, ring_index; /* this worker in its ring */
    uint32_t n_loops;               /* T of the model */
    uint32_t max_positions;
    uint32_t n_blocks,
        block_size;          /* KV pool; a block is block_size positions of one (sequence, loop) */
    uint32_t n_slots;        /* row store */
    uint32_t max_sequences;  /* open at once */
    uint32_t max_batch_rows; /* row budget of a batch */
    uint32_t prefill_chunk;  /* rows of one sequence and loop in one batch at most */
    uint32_t n_in_flight;    /* batches started and not ended, 1 or 2; 0 is 1 */
    enum batching batching;
    uint64_t wait_deadline_ns; /* knee_input.deadline_ns */
    uint64_t batch_ns, row_ns; /* a and b at start */
    uint16_t rank;             /* for the trace */
    /* Borrowed; NULL: nothing is recorded. The stage writes BATCH, ROWS, POOL and IDLE, by the
     * events' now_ns. */
    struct trace *trace;
};

enum stage_event_kind {
    STAGE_OPEN = 1, /* params, targets */
    STAGE_CLOSE,    /* sequence; unknown ids are answered with closed, too (close is idempotent) */
    STAGE_FRAME,    /* frame, source_rank: a frame for this worker, already decoded */
    STAGE_MATE,     /* mate, mate_flags (bundle_flags), mate_round (with BUNDLE_BUSY): a ring mate
                       starts or     ends a batch that may feed us */
    STAGE_BATCH_DONE, /* result of the oldest batch that was started and has not ended */
    STAGE_COST,       /* batch_ns, row_ns: new estimates */
    STAGE_TIME        /* nothing but now_ns */
};

struct stage_event {
    enum stage_event_kind kind;
    uint64_t now_ns;
    const struct sequence_params *params; /* borrowed until return, like all pointers here */
    /* [params->n_observe_targets]; except this one: until the sequence's CONTROL_CLOSED */
    const int32_t *targets;
    uint64_t sequence;
    const struct frame *frame;
    uint16_t source_rank; /* who sent it, for the trace */
    uint32_t mate, mate_flags, mate_round;
    const struct batch_result *result;
    uint64_t batch_ns, row_ns;
};

/* A frame to encode: rows `slots[first .. first + n_rows)` with ids `ids[first ..)` of the output.
 */
struct stage_frame {
    struct frame head; /* ids and rows unused */
    uint32_t first;
};
/* One message to a ring mate; never to oneself (rows that stay are re-queued inside). */
struct stage_send {
    uint32_t mate;  /* ring index */
    uint32_t flags; /* bundle_flags */
    uint32_t round; /* of the batch that is announced by BUNDLE_BUSY, else 0 */
    uint32_t first_frame, n_frames;
};
struct stage_notice {
    enum control_kind kind; /* CONTROL_OPENED, CONTROL_CLOSED, CONTROL_FAILED */
    uint64_t sequence;
    enum status failure;
    char message[256];
};

struct stage_output {
    /* 1. the event's frame: copy row i into slot copy_slots[i] (n_copy is 0 for loop 1 and for
     * dropped frames) */
    uint32_t n_copy;
    const int32_t *copy_slots;
    /* 2. messages to ring mates; slots named here may be reused by the next step */
    uint32_t n_sends;
    struct stage_send *sends;
    uint32_t n_frames;
    struct stage_frame *frames;
    int32_t *slots, *ids; /* a frame of loop 1 has ids only: its slots are -1 */
    /* 3. messages to the coordinator; may also come last */
    uint32_t n_notices;
    struct stage_notice *notices;
    uint32_t n_tokens;
    struct control_token *tokens;
    /* 4. a batch to run behind those that run, or NULL; constant until its own STAGE_BATCH_DONE */
    const struct batch *start;
    /* 5. call again with STAGE_TIME at this time at the latest; 0 = not needed */
    uint64_t wake_at_ns;
};

struct stage;

/* All memory is taken here. STATUS_INVALID (a size is 0, chunk > budget is lowered and no error),
 * STATUS_NO_MEMORY. */
enum status stage_create(const struct stage_config *config, struct stage **out, struct err *err);
void stage_destroy(struct stage *s); /* NULL is fine */

/* Handles one event. *out is the stage's own and valid until the next step, also after an error.
 * Returns STATUS_OK, or STATUS_CORRUPT for a frame that breaks the protocol (doubled, missing,
 * misrouted, or of a sequence never opened: the message has sequence, loop and position, and the
 * frontier where there is one; the sequence is failed by a notice, the stage stays usable). A frame
 * for a sequence that has been closed is stale: dropped and counted, no error. */
enum status stage_step(struct stage *s, const struct stage_event *event,
                       const struct stage_output **out, struct err *err);

/* Fills the fields of stats that the stage knows: blocks, parked rows, slots, sequences, batches,
 * rows by loop, stale frames, parked and revived totals, current costs. */
void stage_fill_stats(const struct stage *s, struct control_stats *stats);
void stage_reset_counters(struct stage *s);
/* With a trace: records the idle span that is open, up to now_ns, so that a copy of the trace has
 * it; it goes on from there. */
void stage_flush_idle(struct stage *s, uint64_t now_ns);
/* Writes F(1..n_loops) of a sequence as far as this worker knows them (0 for loops it does not
 * serve). False when unknown. */
bool stage_frontiers(const struct stage *s, uint64_t sequence, uint32_t *frontiers);

#endif
