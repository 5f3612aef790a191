/* Reads request bodies on a thread of its own, so that a long prompt being tokenized stalls no
 * stream: bytes in, an encoded job or a fault out.
 *
 * One client thread puts in and takes out; orders finish in the order they were put in. */
#ifndef COORDINATOR_INTAKE_H
#define COORDINATOR_INTAKE_H

#include "coordinator/body.h"
#include "coordinator/fault.h"
#include "coordinator/mailbox.h"
#include "coordinator/service.h"
#include "coordinator/text.h"

#include <stdbool.h>
#include <stddef.h>

/* Log-probabilities of one answer, 3 + alternatives for each token: some hundred MB of JSON. */
enum { INTAKE_MAX_LOGPROBS = 1 << 21 };

struct intake_config;

struct intake_order {
    struct mail mail;
    bool is_chat;
    char *json; /* malloc'd; the intake frees it */
    size_t len_bytes;
    const char *loops_json; /* "loops" object made of headers, over the body's; NULL: none;
                               malloc'd, the intake frees it */
    void *user;
    /* What the thread does with it; NULL: intake_read. Any other fills fault or answer. */
    void (*read)(const struct intake_config *config, struct intake_order *order);
    /* Out. */
    struct fault fault;      /* err.code STATUS_OK: job, or answer, is there */
    struct service_job *job; /* malloc'd; body encoded, params complete; the taker's */
    struct text answer;      /* the intake frees it */
};

struct intake_config {
    const struct checkpoint *checkpoint;
    const struct tokenizer *tokenizer; /* may be NULL */
    const char *model_dir;             /* for messages */
    struct sequence_params defaults;   /* of a request that says nothing; stop ids included */
    uint32_t default_max_tokens;       /* of /v1/completions: 16 */
    uint32_t max_prompt_tokens;        /* limits of this server; 0 = the model's context */
    uint32_t max_choices;              /* prompts * n */
    bool has_seed;                     /* defaults.sampling.seed holds; else each request that gives
                                          none gets a random one */
    void (*on_mail)(void *user); /* from the intake's thread: orders are done; must not block */
    void *user;
};

struct intake;

/* Starts the thread. All pointers are borrowed while it lives. */
enum status intake_create(const struct intake_config *config, struct intake **out, struct err *err);
/* Waits for the thread; orders still inside are freed. NULL is fine. */
void intake_destroy(struct intake *intake);
void intake_put(struct intake *intake, struct intake_order *order);
/* Finished orders, oldest first, linked by mail.next; NULL: none. */
struct intake_order *intake_take(struct intake *intake);
/* What the thread does with one order; also for tests and fuzzing. Fills fault or job. */
void intake_read(const struct intake_config *config, struct intake_order *order);
void intake_order_free(struct intake_order *order); /* with its job, if it has one; NULL is fine */
void service_job_free(struct service_job *job);     /* body, choices and itself; NULL is fine */

#endif
