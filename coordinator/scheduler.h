/* What happens next, and to whom: admission, placement, opening, closing. Pure: no clock, no MPI,
 * no threads; nothing is allocated after create.
 *
 * A request (one choice of what a client asked for) becomes one sequence. States:
 *
 *   QUEUED -> OPENING (OPEN sent to every worker of a ring)
 *          -> RUNNING (all acknowledged, prompt sent) -> CLOSING (CLOSE sent) -> gone
 *
 * docs/scheduler.md has the table; one function makes every transition and asserts it. A sequence
 * is admitted when every worker of the ring has the KV blocks (and the row slots) it can need at
 * most, so a running sequence never waits for memory. */
#ifndef COORDINATOR_SCHEDULER_H
#define COORDINATOR_SCHEDULER_H

#include "proto/control.h"
#include "proto/sequence.h"
#include "proto/status.h"
#include "proto/trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct scheduler_config {
    uint32_t n_workers;
    uint32_t ring_size; /* divides n_workers */
    uint32_t n_loops;
    uint32_t max_positions;
    uint32_t block_size;
    const uint32_t *n_blocks; /* [n_workers]; copied */
    uint32_t max_queue;       /* waiting requests */
    uint32_t max_running;     /* open sequences per ring (stage_config.max_sequences) */
    /* Borrowed; NULL: nothing is recorded. The scheduler writes QUEUE, ADMISSION, SEQUENCE, TOKEN,
     * LOAD and BLOCKED, by the events' now_ns. */
    struct trace *trace;
};

enum finish_reason {
    FINISH_NONE = 0,
    FINISH_STOP,   /* a stop id or stop string */
    FINISH_LENGTH, /* max_tokens or the context's end */
    FINISH_CANCELLED,
    FINISH_ERROR
};

/* "stop", "length", "cancelled", "error"; "none". */
const char *finish_reason_name(enum finish_reason reason);

enum scheduler_event_kind {
    SCHEDULER_SUBMIT = 1, /* request, params (sequence and ring_offset are set by the scheduler) */
    SCHEDULER_OPENED,     /* worker, sequence, failure, message */
    SCHEDULER_TOKEN,      /* token */
    SCHEDULER_STOP,       /* request: the text layer saw a stop string; ends with FINISH_STOP */
    SCHEDULER_CANCEL,     /* request: at any moment; unknown or ended requests are ignored */
    SCHEDULER_FAILED,     /* worker, sequence, failure, message */
    SCHEDULER_CLOSED      /* worker, sequence */
};
struct scheduler_event {
    enum scheduler_event_kind kind;
    uint64_t now_ns;  /* any clock that does not go back; scheduler_find_overdue and the trace look
                         at it */
    uint64_t request; /* the caller's handle, never 0, unique among unfinished requests */
    const struct sequence_params *params;
    uint32_t worker; /* 0-based */
    uint64_t sequence;
    const struct control_token *token;
    enum status failure;
    const char *message;
};

enum scheduler_action_kind {
    SCHEDULER_SEND_OPEN = 1, /* worker, params */
    SCHEDULER_SEND_START,    /* worker (of loop 1), sequence, request: send the prompt as a loop-1
                                frame */
    SCHEDULER_SEND_CLOSE,    /* worker, sequence */
    SCHEDULER_DELIVER,       /* request, token */
    SCHEDULER_END /* request, reason, failure, message: the last action about this request */
};
struct scheduler_action {
    enum scheduler_action_kind kind;
    uint32_t worker;
    uint64_t request, sequence;
    const struct sequence_params *params;
    const struct control_token *token;
    enum finish_reason reason;
    enum status failure;
    const char *message;
};

struct scheduler;

enum status scheduler_create(const struct scheduler_config *config, struct scheduler **out,
                             struct err *err);
void scheduler_destroy(struct scheduler *s);

/* Handles one event; *actions (n of them, in order) are valid until the next step. A SUBMIT can
 * fail: STATUS_FULL (queue is full: try again later), STATUS_INVALID (can never fit: the message
 * has what it needs and what there is); then nothing was taken. Messages about sequences already
 * gone are late, not errors. */
enum status scheduler_step(struct scheduler *s, const struct scheduler_event *event,
                           const struct scheduler_action **actions, size_t *n_actions,
                           struct err *err);

struct scheduler_load {
    uint32_t n_queued, n_opening, n_running, n_closing;
    uint32_t blocks_reserved_max; /* over the workers */
};
void scheduler_get_load(const struct scheduler *s, struct scheduler_load *out);
/* Blocks reserved on a worker now; back to 0 when everything is closed. */
uint32_t scheduler_blocks_reserved(const struct scheduler *s, uint32_t worker);
/* Is the sequence still open on some worker (opening, running or closing)? *request (may be NULL)
 * is whose it is, also after that request's END. */
bool scheduler_find_sequence(const struct scheduler *s, uint64_t sequence, uint64_t *request);
/* The position of the token a running sequence is to deliver next, and the end of its positions.
 * False when it does not run (any more). */
bool scheduler_next_token(const struct scheduler *s, uint64_t sequence, uint32_t *position,
                          uint32_t *end);
/* True when a worker has owed an OPENED or a CLOSED since before_ns or longer: who, and for which
 * sequence. */
bool scheduler_find_overdue(const struct scheduler *s, uint64_t before_ns, uint32_t *worker,
                            uint64_t *sequence);
/* Requests wait and their first one cannot be admitted: *why is TRACE_BLOCKED_SEQUENCES when every
 * ring has as many as may be open, else TRACE_BLOCKED_KV. */
bool scheduler_is_blocked(const struct scheduler *s, enum trace_blocked *why);
/* What is recorded when it ends and has not ended: QUEUE, ADMISSION and SEQUENCE (FINISH_NONE) of
 * every request, and BLOCKED; all of them up to now_ns. out has room for n of them. */
size_t scheduler_n_pending_records(const struct scheduler *s);
void scheduler_pending_records(const struct scheduler *s, uint64_t now_ns,
                               struct trace_record *out);

#endif
