/* What the files of the worker's driver share. Private to worker/. */
#ifndef WORKER_WORKER_STATE_H
#define WORKER_WORKER_STATE_H

#include "cluster/transport.h"
#include "model/checkpoint.h"
#include "proto/control.h"
#include "proto/frame.h"
#include "worker/compute.h"
#include "worker/cost.h"
#include "worker/replica.h"
#include "worker/stage.h"
#include "worker/worker.h"
#include "worker/worker_device.h"
#include "worker/worker_rows.h"

/* What the worker is doing when it is not handling a message; the clock of each runs in
 * worker_clock. */
enum worker_activity { WORKER_STARVED = 0, WORKER_WAITING, WORKER_COMPUTING, WORKER_ACTIVITIES };

/* What the coordinator has asked for and not been sent yet: records [next, end) ever added. */
struct worker_trace_answer {
    bool is_open;
    uint64_t tag, since_ns, next, end;
    struct trace_record *piece; /* of one message */
    bool is_window_whole; /* nothing of the window had been overwritten when it was asked for */
};

struct worker {
    struct transport *transport;
    const struct worker_config *config;
    struct worker_device device;
    struct checkpoint *checkpoint;
    struct replica *replica;
    struct stage *stage;
    struct compute *compute;
    struct worker_rows rows;            /* on their way between messages and store */
    struct transport_message **leaving; /* [ring_size] the messages of one step */
    bool is_direct;                     /* rows leave as messages' second parts, in device memory */
    struct cost cost;
    struct frame_limits limits;
    uint32_t ring_size, ring_index;
    int ring_first_rank; /* rank of ring index 0 */

    uint32_t n_in_flight; /* batches that may be started and not taken */
    const struct batch *running[STAGE_MAX_IN_FLIGHT]; /* the oldest first */
    uint32_t n_running;
    struct worker_targets *targets; /* of open observed sequences */
    uint64_t wake_at_ns;            /* the stage wants to be asked again; 0 = no */
    bool is_over;                   /* shutdown has come */

    enum worker_activity activity;
    uint64_t activity_since_ns, counters_since_ns;
    uint64_t activity_ns[WORKER_ACTIVITIES];
    uint64_t n_heads;
    struct transport_counters counters_base; /* the transport's counters at the last reset */

    struct trace *trace; /* NULL: nothing is recorded */
    uint64_t n_records_base;
    struct worker_trace_answer trace_answer;
};

/* worker_start.c: opens the model, greets the coordinator, takes its welcome, builds replica and
 * stage, says ready. On failure the coordinator has been told; *is_stopped when it was the
 * coordinator that told us to stop. */
enum status worker_start(struct worker *w, struct err *err);

/* worker_targets.c: the targets of observed sequences, which the stage borrows. Takes over the
 * message's targets; STATUS_CORRUPT for one outside the vocabulary. */
enum status worker_targets_take(struct worker *w, struct control_message *open, struct err *err);
/* Frees those of a sequence that is closed; of all sequences when it is 0. */
void worker_targets_drop(struct worker *w, uint64_t sequence);

/* worker_output.c: one event to the stage, and all that follows from it. A frame's rows are copied
 * into their slots. */
enum status worker_step(struct worker *w, const struct stage_event *event, struct err *err);
/* Encodes and posts a control message. */
enum status worker_send_control(struct worker *w, const struct control_message *m, struct err *err);
/* Sends a batch's observations, in messages of a bounded size. */
enum status worker_send_observations(struct worker *w, const struct batch_result *result,
                                     struct err *err);
/* Moves the activity clock on. */
void worker_clock(struct worker *w, uint64_t now_ns);

/* worker_trace.c. What is taken is given back by worker_trace_destroy, after a failure, too. */
enum status worker_trace_create(struct worker *w, struct err *err);
void worker_trace_destroy(struct worker *w);
/* A message is taken in or sent, from now on ... */
uint64_t worker_trace_begin(const struct worker *w);
/* ... until now. Both do nothing without a trace. */
void worker_trace_message(struct worker *w, enum trace_kind kind, uint64_t began_ns, int peer,
                          size_t n_bytes, uint32_t n_frames);
/* Opens the answer to a request. While trace_answer.is_open the driver calls worker_trace_answer
 * once a turn: it sends the next piece. */
void worker_trace_request(struct worker *w, const struct control_trace_request *request);
enum status worker_trace_answer(struct worker *w, struct err *err);

#endif
