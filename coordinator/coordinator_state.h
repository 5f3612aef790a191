/* What the coordinator's files share; nobody else includes it.
 *
 * Order inside one event: the scheduler's actions are carried out first (all sends), then callbacks
 * run. So no callback ever sees the scheduler in the middle of a step, and it may submit and
 * cancel. */
#ifndef COORDINATOR_COORDINATOR_STATE_H
#define COORDINATOR_COORDINATOR_STATE_H

#include "coordinator/completion.h"
#include "coordinator/coordinator.h"
#include "coordinator/token_order.h"
#include "coordinator/trace_clock.h"

/* A request from submit until its on_end has been called. */
struct request {
    uint64_t id; /* serial * n_slots + slot: finds its slot and tells it from an earlier tenant */
    uint64_t sequence;     /* 0 until its prompt has been sent */
    uint32_t first_worker; /* of its loop 1 */
    uint32_t last_worker;  /* whose batch decided its last token; CLOCK_OURS: it has none */
    bool is_observed;      /* wants observations: ends only when every worker has closed it */
    bool has_ended;        /* the scheduler has let go of it; on_end is due */
    /* Reports of its prompt's targets still to come, for which its end waits; and the end. */
    uint64_t n_reports_due;
    bool is_stop_held, is_token_held;
    struct control_token held;
    uint32_t n_tokens;
    enum finish_reason reason;
    enum status failure;
    char message[ERR_MESSAGE_BYTES];
    uint64_t submitted_ns, started_ns, first_token_ns, ended_ns;
    uint32_t n_stop_ids;
    int32_t stop_ids[SEQUENCE_MAX_STOP_IDS];
    struct completion text;
    void *user;
    void (*on_start)(void *user);
    void (*on_token)(void *user, const struct completion_token *token);
    void (*on_observation)(void *user, const struct control_observation *row);
    void (*on_end)(void *user, const struct completion_end *end);
    struct request *next; /* in the list of ended ones */
    uint32_t n_prompt;
    int32_t *targets; /* behind the prompt */
    int32_t prompt_ids[];
};

enum coordinator_phase { PHASE_HELLO = 0, PHASE_READY, PHASE_CLOCK, PHASE_RUNNING, PHASE_STOPPING };

enum { CLOCK_POINTS = 128, CLOCK_EXCHANGES_AT_START = 4 };
/* Before a trace: so many in a row, and up to so many while none was quick. */
enum { CLOCK_BURST = 8, CLOCK_LONG_BURST = 64 };
enum { CLOCK_TAG = 0 };           /* of a STATS_REQUEST that only wants the clock */
enum { CLOCK_OURS = UINT32_MAX }; /* in the place of a worker: this process */

/* How far a worker's clock is ahead of ours: coordinator_clock.c. */
struct peer_clock {
    bool is_shared;    /* the worker reads the same clock as we do */
    uint64_t asked_ns; /* 0: no CLOCK_TAG is under way */
    uint32_t n_exchanges;
    uint32_t n_burst; /* exchanges that may still follow one another at once */
    size_t n_points;
    struct trace_clock points[CLOCK_POINTS];
};

/* One worker as rank 0 sees it. */
struct peer {
    struct control_hello hello;
    struct control_ready ready;
    struct peer_clock clock;
    bool has_hello, has_ready, has_stats, has_trace, has_left;
};

/* The one question for counters that may be open. */
struct stats_question {
    uint64_t tag, asked_ns;        /* of the last one */
    uint32_t n_missing;            /* workers that owe the answer; 0: none is open */
    struct control_stats *answers; /* [n_workers] */
    void (*on_stats)(void *user, const struct control_stats *stats);
    void *user;
};

/* The one question for traces that may be open. */
struct trace_question {
    uint64_t tag, window_ns;
    uint64_t heard_ns;     /* asked, or since then the last of its records came */
    uint32_t n_missing;    /* workers that owe their last records; 0: none is open */
    bool is_sent;          /* else: clocks are compared first */
    struct trace_set *set; /* while one is open */
    void (*on_trace)(void *user, struct trace_set *set);
    void *user;
};

struct coordinator {
    struct transport *transport;
    const struct checkpoint *checkpoint;
    const struct tokenizer *tokenizer;
    struct coordinator_config config; /* defaults filled in */
    enum coordinator_phase phase;
    uint32_t n_workers, ring_size;
    struct peer *peers;          /* [n_workers] */
    struct scheduler *scheduler; /* from PHASE_RUNNING on */

    uint32_t n_slots, n_free, n_active;
    uint64_t n_submitted;
    struct request **slots; /* [n_slots] */
    uint32_t *free_slots;   /* [n_slots] */
    struct request *ended_first, *ended_last;
    struct token_order early; /* tokens that overtook their predecessor */

    struct err fatal; /* code other than STATUS_OK: the cluster is lost */
    uint64_t next_check_ns, next_clock_ns;
    struct stats_question question;
    struct trace_question trace_question;
    uint64_t draining_since_ns; /* 0: not yet */
    char text[COMPLETION_TEXT_BYTES + 1];
};

/* The worker's host for messages; "?" before its hello. */
const char *coordinator_host_of(const struct coordinator *c, uint32_t worker);

/* ---- coordinator.c -------------------------------------------------------------------------- */

/* Takes at most a bounded number of messages and acts on them; *n_handled how many. */
enum status coordinator_receive(struct coordinator *c, uint32_t *n_handled, struct err *err);

/* STATUS_CORRUPT: a worker has said `what` at the wrong time. */
enum status coordinator_unexpected(const struct coordinator *c, uint32_t worker, const char *what,
                                   struct err *err);

/* ---- coordinator_start.c -------------------------------------------------------------------- */

/* Note and check a worker's words of the handshake, at once: a worker that cannot go on says so
 * first and leaves then, and the reason must not be hidden by the leaving. */
enum status coordinator_take_hello(struct coordinator *c, uint32_t worker,
                                   const struct control_hello *hello, struct err *err);
enum status coordinator_take_ready(struct coordinator *c, uint32_t worker,
                                   const struct control_ready *ready, struct err *err);

/* ---- coordinator_clock.c -------------------------------------------------------------------- */

/* After its hello: does the worker share our clock? */
void coordinator_clock_meet(struct peer *p);
/* Shared, or exchanged often enough. */
bool coordinator_clock_is_known(const struct peer *p);
/* Has those whose clock is another one asked several times in a row. */
void coordinator_clock_burst(struct coordinator *c);
bool coordinator_clock_is_bursting(const struct coordinator *c);
/* Asks those whose clock is another one, now and then; nothing waits for the answers. */
enum status coordinator_clock_ask(struct coordinator *c, struct err *err);
/* The answer to that. */
void coordinator_clock_take(struct coordinator *c, uint32_t worker,
                            const struct control_stats *stats);
/* Adds one exchange: our clock when we asked and when we saw the answer, the worker's in it. */
void coordinator_clock_note(struct peer_clock *k, uint64_t asked_ns, uint64_t answered_ns,
                            uint64_t clock_ns);
/* The worker's clock less ours. */
int64_t coordinator_clock_offset_ns(const struct peer_clock *k);
/* Takes the offsets out of a token's hops; workers[t - 1] ran loop t. */
void coordinator_clock_correct(const struct coordinator *c, const struct request *r,
                               const uint32_t *workers, struct control_token *token);

/* ---- coordinator_stats.c -------------------------------------------------------------------- */

void coordinator_stats_take(struct coordinator *c, uint32_t worker,
                            const struct control_stats *stats);
/* STATUS_TIMEOUT: who has not answered within answer_timeout_ns. */
enum status coordinator_stats_check(const struct coordinator *c, uint64_t now_ns, struct err *err);

/* ---- coordinator_trace.c -------------------------------------------------------------------- */

/* Sends the question once its time has come. */
enum status coordinator_trace_ask(struct coordinator *c, struct err *err);
void coordinator_trace_take(struct coordinator *c, uint32_t worker, const struct control_trace *t);
/* STATUS_TIMEOUT: whose records are missing when none have come for answer_timeout_ns. */
enum status coordinator_trace_check(const struct coordinator *c, uint64_t now_ns, struct err *err);

/* ---- coordinator_send.c --------------------------------------------------------------------- */

enum status coordinator_send(struct coordinator *c, uint32_t worker,
                             const struct control_message *message, struct err *err);
/* The whole prompt as one loop-1 frame. */
enum status coordinator_send_prompt(struct coordinator *c, uint32_t worker, const struct request *r,
                                    struct err *err);
/* Says shutdown to all (failure: why, STATUS_OK: orderly) and waits up to 5 s for goodbyes and
 * pending sends. */
void coordinator_stop_workers(struct coordinator *c, enum status failure, const char *message);

/* ---- coordinator_plan.c --------------------------------------------------------------------- */

/* Fills one welcome per worker from all hellos. STATUS_MISMATCH, STATUS_NO_MEMORY. */
enum status coordinator_plan(const struct coordinator *c, struct control_welcome *welcomes,
                             struct err *err);

/* ---- coordinator_request.c ------------------------------------------------------------------ */

/* Gives the scheduler one event, carries out what follows, then tells the request's owner. A send
 * that fails makes c->fatal; the return value is the scheduler's word on the event. */
enum status coordinator_apply(struct coordinator *c, struct scheduler_event *event,
                              struct err *err);
/* A token whose turn it is; the last one may have to wait for reports. */
enum status coordinator_take_token(struct coordinator *c, const struct control_token *token,
                                   struct err *err);
enum status coordinator_observe(struct coordinator *c, const struct control_observation *row,
                                struct err *err);
/* Calls on_end of the requests that are through; returns how many. */
uint32_t coordinator_run_endings(struct coordinator *c);
/* Ends whatever is still active without asking the scheduler: the cluster is lost or stopped. */
void coordinator_end_all(struct coordinator *c, enum finish_reason reason, enum status failure,
                         const char *message);

#endif
