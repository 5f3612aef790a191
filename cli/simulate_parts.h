/* What the files of the simulated cluster share: its state, and the functions they give each other.
 * Private to cli/simulate_*.c.
 *
 * A rank's turn runs ahead of the event that woke it by what its work costs; it touches nothing but
 * its own state and posts into the future, and yields as soon as another event is due. */
#ifndef CLI_SIMULATE_PARTS_H
#define CLI_SIMULATE_PARTS_H

#include "cli/simulate_world.h"
#include "cluster/event_queue.h"
#include "coordinator/scheduler.h"
#include "coordinator/token_order.h"
#include "proto/frame.h"
#include "proto/trace.h"
#include "worker/cost.h"
#include "worker/stage.h"
#include "worker/timed.h"

#include <stdbool.h>
#include <stdint.h>

enum simulate_event {
    SIMULATE_ARRIVAL = 1, /* target: a rank; attachment: the message, now the rank's */
    SIMULATE_TURN,        /* target: a rank, whose turn was cut short */
    SIMULATE_BATCH,       /* target: a rank, whose batch is done */
    SIMULATE_WAKE,        /* target: a rank, whose stage wants to be asked again */
    SIMULATE_REQUEST      /* the next request arrives */
};

/* What travels between ranks, in one allocation with its frames and ids, or its tokens. */
struct simulate_message {
    struct simulate_message *next; /* of the receiver's queue */
    uint32_t source;
    enum control_kind kind; /* 0: a bundle of frames */
    uint64_t n_bytes;       /* on the wire */
    uint32_t flags, round, n_frames, n_hidden_rows;
    struct frame *frames;
    uint32_t n_tokens;
    struct control_token *tokens;
    uint64_t exited_ns;                   /* of tokens: when their batch was over */
    uint64_t sequence;                    /* of other control messages */
    const struct sequence_params *params; /* of CONTROL_OPEN: the request's */
};

struct simulate_rank {
    struct simulate_message *first, *last; /* arrived, not taken */
    uint32_t n_waiting, n_waiting_most;
    bool is_awake; /* a turn of it runs, or is among the events */
    uint64_t link_free_ns, link_busy_ns;
    uint64_t n_messages_sent, n_bytes_sent;
    struct trace *trace; /* NULL: nothing is recorded */
};

enum simulate_activity { SIMULATE_STARVED = 0, SIMULATE_WAITING, SIMULATE_COMPUTING };
enum { SIMULATE_ACTIVITIES = 3 };

/* A batch that has been started and not given back to the stage. */
struct simulate_flight {
    const struct batch *batch;
    struct batch_result result;
};

struct simulate_worker {
    uint32_t number, ring_first_rank, ring_index; /* number: rank - 1 */
    struct stage *stage;
    struct cost cost;
    struct timed timed;
    struct simulate_flight flights[STAGE_MAX_IN_FLIGHT]; /* a queue of n_running from the oldest */
    uint32_t oldest, n_running, n_done;
    uint64_t ended_ns; /* of the youngest batch, where it computes */
    bool did_work;     /* messages were taken since the stage heard the time */
    uint64_t wake_at_ns, timer_ns;
    uint64_t n_heads;
    enum simulate_activity activity;
    uint64_t activity_since_ns, activity_ns[SIMULATE_ACTIVITIES];
};

struct simulate_request {
    uint32_t index;
    struct bench_request drawn;
    int32_t *ids;
    const uint8_t *exits; /* recorded ones; NULL: drawn */
    uint64_t sequence;    /* 0: not opened */
    uint64_t arrived_ns, submitted_ns, opened_ns, started_ns, first_token_ns;
    uint32_t n_tokens, first_worker;
    uint64_t hash;
    bool is_cancelling, has_ended;
    struct simulate_request *next; /* waits for rank 0 */
};

struct simulate_rank0 {
    struct scheduler *scheduler;
    struct token_order early;
    uint32_t n_total;                     /* requests of the run */
    struct simulate_request **requests;   /* [n_total] those not forgotten */
    uint32_t *by_sequence;                /* [n_total + 1] the request's index */
    uint32_t n_next, n_limit;             /* of this phase: the next to arrive, and the end */
    uint32_t n_unended, n_open_sequences; /* arrived or to come; opened and not gone */
    uint64_t phase_began_ns, last_arrival_ns;
    uint32_t phase_first;
    struct simulate_request *waiting_first, *waiting_last; /* arrived, not submitted */
    bool is_full;        /* the scheduler's queue: no submit until something changes */
    uint64_t idle_at_ns; /* when the last sequence was gone */
};

/* Sizes of control messages, as the codec says for typical ones. */
struct simulate_sizes {
    uint64_t open, notice, close, tokens_head, token[SEQUENCE_MAX_LOOPS + 1];
};

struct simulate_world {
    struct simulate_config config;
    const struct simulate_load *load;
    uint32_t ring_size;
    struct event_queue queue;
    struct simulate_rank *ranks;     /* [n_workers + 1] */
    struct simulate_worker *workers; /* [n_workers] */
    struct simulate_rank0 rank0;
    struct simulate_sizes sizes;
    bool is_measuring;
    uint64_t steady_from_ns, steady_to_ns, n_steady_tokens;
    struct simulate_result result;
    uint64_t n_events;
};

/* A duration of the cost model in whole nanoseconds. */
static inline uint64_t simulate_ns(double ns)
{
    return (uint64_t)(ns + 0.5);
}

/* Virtual time ends here, long before its 64 bits do: what one step adds is far less. */
#define SIMULATE_LAST_NS (UINT64_C(1) << 62)

/* ---- simulate_world.c ----------------------------------------------------------------------- */

/* Sends the message, which is given away, also on failure: it leaves when the sender's link is
 * free. STATUS_NO_MEMORY. */
enum status simulate_post(struct simulate_world *w, uint32_t from, uint32_t to,
                          struct simulate_message *m, uint64_t now_ns, struct err *err);
/* The oldest message that waits at the rank, or NULL; the caller frees it. */
struct simulate_message *simulate_take(struct simulate_rank *rank);
/* True when another event comes first: then the rank's turn goes on at now_ns, later.
 * STATUS_INVALID: now_ns is after SIMULATE_LAST_NS. */
enum status simulate_yield(struct simulate_world *w, uint32_t rank, uint64_t now_ns,
                           bool *must_return, struct err *err);

/* ---- simulate_worker.c ---------------------------------------------------------------------- */

enum status simulate_worker_create(struct simulate_world *w, struct simulate_worker *k,
                                   struct err *err);
void simulate_worker_destroy(struct simulate_worker *k);
/* Everything the driver can do at now_ns. */
enum status simulate_worker_turn(struct simulate_world *w, struct simulate_worker *k,
                                 uint64_t now_ns, struct err *err);
void simulate_worker_reset(struct simulate_worker *k, uint64_t now_ns);
/* Counters since the reset, as CONTROL_STATS has them. */
void simulate_worker_stats(struct simulate_world *w, struct simulate_worker *k, uint64_t began_ns,
                           uint64_t ended_ns, struct control_stats *out);

/* ---- simulate_rank0.c ----------------------------------------------------------------------- */

enum status simulate_rank0_create(struct simulate_world *w, uint32_t n_total, struct err *err);
void simulate_rank0_destroy(struct simulate_world *w);
/* Requests [first, limit) begin to arrive at now_ns. */
enum status simulate_rank0_begin(struct simulate_world *w, uint32_t first, uint32_t limit,
                                 uint64_t now_ns, struct err *err);
/* The next request arrives from outside (not for the closed loop). */
enum status simulate_rank0_arrival(struct simulate_world *w, uint64_t now_ns, struct err *err);
enum status simulate_rank0_turn(struct simulate_world *w, uint64_t now_ns, struct err *err);
/* The recorded exit loop of a live row; 0: none is recorded. For struct timed. */
uint32_t simulate_rank0_exit_loop(void *world, uint64_t sequence, uint32_t position);

/* ---- simulate_count.c ----------------------------------------------------------------------- */

enum status simulate_count_create(struct simulate_world *w, uint32_t n_requests, struct err *err);
void simulate_count_destroy(struct simulate_world *w);
void simulate_count_submit(struct simulate_world *w, const struct simulate_request *r);
void simulate_count_token(struct simulate_world *w, struct simulate_request *r,
                          const struct control_token *token, uint64_t now_ns);
void simulate_count_end(struct simulate_world *w, const struct simulate_request *r,
                        enum finish_reason reason, uint64_t exited_ns, uint64_t now_ns);
/* Fills what is known only at the end. */
void simulate_count_finish(struct simulate_world *w, struct simulate_result *out);

#endif
