/* The engine as another thread sees it: jobs go in, deliveries come out, nobody waits for anybody.
 *
 * The engine thread (the one that owns the coordinator) turns service_step. One client thread
 * submits and cancels jobs and takes deliveries; between the two are mailboxes, no lock is held
 * while anything is done. The client is told of deliveries by on_mail, once after it has taken
 * everything. Every choice of a submitted job gets exactly one DELIVERY_ENDED; with the last of
 * them the job is the client's again. */
#ifndef COORDINATOR_SERVICE_H
#define COORDINATOR_SERVICE_H

#include "coordinator/body.h"
#include "coordinator/coordinator.h"
#include "coordinator/mailbox.h"
#include "coordinator/prompt_rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A request on its way. The client fills body (encoded), params (of every choice; choice i of n
 * draws with seed + i) and user; the rest is the service's from submit to the last end. */
struct service_job {
    struct mail mail;
    struct body body;
    struct sequence_params params;
    uint32_t n_choices;
    void *user;
    /* The service's own; zero before submit, service_job_clear afterwards. */
    struct mail cancel_mail;
    _Atomic(bool) is_cancel_sent; /* whoever sets it first: the client's cancel, or the last end */
    struct service *service;
    struct service_choice *choices; /* [n_choices] */
    uint32_t n_ended, n_submitted;
    bool is_cancelled, is_waiting;
    struct service_job *previous, *next; /* of those that wait for the coordinator to have room */
    struct delivery *last_end;           /* held back until cancel_mail has been taken */
};

enum delivery_kind {
    DELIVERY_STARTED = 1, /* the choice has left the queue: its sequence runs */
    DELIVERY_PROMPT,      /* prompt_rows is complete; comes before ENDED where it is wanted */
    DELIVERY_TOKEN,       /* token, text */
    DELIVERY_ENDED,       /* end, text */
    DELIVERY_STATS,       /* no job: a fresh service_snapshot */
    DELIVERY_LOST         /* no job: the cluster is lost, message says why; the ends of all jobs
                             follow */
};

enum { DELIVERY_INLINE_BYTES = 64 };

struct service_snapshot {
    uint64_t at_ns;
    struct scheduler_load load;
    uint32_t n_workers;
    double kv_usage;                /* reserved blocks / blocks, of the fullest worker */
    struct control_stats workers[]; /* counted since start */
};

struct delivery {
    struct mail mail;
    enum delivery_kind kind;
    struct service_job *job;
    uint32_t choice;
    uint32_t index; /* of the token in its choice */
    uint64_t at_ns; /* host clock: when it reached the coordinator */
    struct control_token token;
    uint32_t workers[SEQUENCE_MAX_LOOPS]; /* 0-based: who ran loop t of it, [t - 1] */
    struct completion_end end;            /* its message and text point into this delivery */
    char message[ERR_MESSAGE_BYTES];
    const struct prompt_rows *prompt_rows; /* the job's */
    struct service_snapshot *snapshot;     /* the receiver frees */
    const char *text;                      /* into short_text or long_text */
    size_t text_bytes;
    char short_text[DELIVERY_INLINE_BYTES];
    char *long_text;
};

struct service_config {
    uint64_t stats_interval_ns;  /* 0 = 1 s */
    void (*on_mail)(void *user); /* from the engine thread: deliveries wait; must not block */
    void *user;
};

/* The coordinator is started and borrowed. */
enum status service_create(struct coordinator *coordinator, const struct service_config *config,
                           struct service **out, struct err *err);
void service_destroy(struct service *s); /* after both threads have let go of it; NULL is fine */

/* ---- the engine thread ---------------------------------------------------------------------- */

/* Takes jobs and cancels, turns the coordinator, posts deliveries. Waits at most timeout_ns. An
 * error is the end of the cluster: DELIVERY_LOST has been sent and every job ended; keep calling
 * while the client may still submit. */
enum status service_step(struct service *s, uint64_t timeout_ns, struct err *err);
/* Nothing is running and no mail waits. */
bool service_is_idle(const struct service *s);

/* ---- the client thread ---------------------------------------------------------------------- */

/* Hands the job over. A choice that the coordinator refuses ends with FINISH_ERROR and its status.
 */
void service_submit(struct service *s, struct service_job *job);
/* Ends all of the job's choices that have not ended, with FINISH_CANCELLED; their DELIVERY_ENDED
 * follow. Any number of calls. */
void service_cancel(struct service *s, struct service_job *job);
/* Frees what the service has put into a job, prompt rows included; the client may call it once it
 * has taken the last end, or when the job was never submitted. */
void service_job_clear(struct service_job *job);
/* Everything that has been delivered, oldest first, linked by mail.next; NULL: nothing. */
struct delivery *service_take(struct service *s);
/* Gives a delivery back for reuse. */
void service_give_back(struct service *s, struct delivery *d);
/* Makes service_step return soon; any thread. */
void service_wake(struct service *s);

#endif
