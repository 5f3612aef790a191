/* What the service's files share; nobody else includes it.
 *
 * Who owns what, when. A job is the client's until service_submit and again from the moment it has
 * TAKEN the last DELIVERY_ENDED; in between it is the engine thread's, but for is_cancel_sent.
 * The job's cancel_mail travels in a mailbox of its own and could still lie there when the last end
 * has gone out and the client frees the job. So cancel and last end settle by one atomic exchange
 * of is_cancel_sent who came first:
 *   - the client's cancel did: its mail is in the box or will be in a moment, and the engine keeps
 *     the last end (job->last_end) until it has taken that mail;
 *   - the last end did: every later service_cancel finds the flag set and sends nothing.
 * Either way no mail of a job is under way when its client gets the last end. */
#ifndef COORDINATOR_SERVICE_STATE_H
#define COORDINATOR_SERVICE_STATE_H

#include "coordinator/service.h"

/* One sequence of a job; at rest from its end on. */
struct service_choice {
    struct service_job *job;
    uint32_t index;
    bool is_running; /* the coordinator has it: between submit and on_end */
    bool is_lossy;   /* no memory for one of its deliveries: it ends as failed */
    bool are_rows_told;
    uint64_t id; /* the coordinator's */
    struct prompt_rows *rows;
    struct completion_end end; /* while there is no memory to tell it */
    struct service_choice *next_untold;
};

struct service {
    struct coordinator *coordinator;
    struct service_config config;
    struct mailbox jobs, cancels, given_back; /* to the engine */
    struct mailbox deliveries;                /* to the client */

    /* The engine thread's. */
    struct service_job *waiting_first, *waiting_last;
    struct mail *failed_first, **failed_last; /* failures told in this step, not posted yet */
    struct service_choice *untold;            /* ends that found no memory for their delivery */
    uint32_t n_jobs;                          /* not given back yet */
    bool is_full;     /* the coordinator had no room; cleared when a choice starts or ends */
    bool is_mail_due; /* the client's box was empty: tell it at the end of this step */
    bool is_lost_told;
    struct err lost; /* code other than STATUS_OK: the cluster is gone */
    uint64_t next_stats_ns;
    bool is_stats_asked;
    bool was_active;   /* at the last question for stats */
    struct mail *idle; /* deliveries for reuse */
    size_t n_idle;
};

/* ---- service_delivery.c --------------------------------------------------------------------- */

/* A blank delivery; NULL: no memory. */
struct delivery *service_delivery_new(struct service *s, enum delivery_kind kind);
/* Copies text into the delivery. False: no memory. */
bool service_delivery_set_text(struct delivery *d, const char *text, size_t text_bytes);
/* Puts an unused one back. */
void service_delivery_drop(struct service *s, struct delivery *d);
void service_post(struct service *s, struct delivery *d);
/* Failures wait for the end of the step: should the cluster be lost, the client hears that first,
 * and not as many failures of single requests. */
void service_post_failed(struct service *s);
/* Takes what the client has given back. */
void service_collect_idle(struct service *s);
void service_free_deliveries(struct mail *list);

/* ---- service_job.c -------------------------------------------------------------------------- */

/* Takes in new jobs and cancels, and gives the coordinator what it has room for. */
void service_take_mail(struct service *s);
/* Tells the ends that could not be told when they came. */
void service_tell_untold(struct service *s);

#endif
