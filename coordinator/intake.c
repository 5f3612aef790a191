/* Turns request bodies into encoded jobs on a thread of its own. */
#include "coordinator/intake.h"

#include "coordinator/body_parts.h"
#include "model/checkpoint.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* What a token with log-probabilities costs besides its alternatives, in units of one of them. */
enum { LOGPROB_RECORD_ITEMS = 3 };

struct intake {
    struct intake_config config;
    struct mailbox orders, done;
    sem_t wake; /* posted when `orders` was empty, and to stop */
    _Atomic(bool) is_stopping;
    pthread_t thread;
};

void service_job_free(struct service_job *job)
{
    if (job == NULL)
        return;
    body_clear(&job->body);
    service_job_clear(job);
    free(job);
}

static void forget_bytes(struct intake_order *order)
{
    free(order->json);
    free((char *)(uintptr_t)order->loops_json);
    order->json = NULL;
    order->loops_json = NULL;
}

void intake_order_free(struct intake_order *order)
{
    if (order == NULL)
        return;
    forget_bytes(order);
    service_job_free(order->job);
    text_free(&order->answer);
    free(order);
}

/* ---- one order ------------------------------------------------------------------------------ */

/* Puts what the headers say over the body's own loops. A body whose loops is no object keeps it, to
 * be refused for it. */
static enum status merge_loops(json_t *root, const char *loops_json, struct fault *fault)
{
    json_t *given = NULL;
    enum status status = body_load(loops_json, strlen(loops_json),
                                   "what the X-Carousel- headers say", &given, fault);
    if (status != STATUS_OK)
        return status;
    json_t *own = json_object_get(root, "loops");
    int failed = 0;
    if (json_is_object(own))
        failed = json_object_update(own, given);
    else if (own == NULL || json_is_null(own))
        failed = json_object_set(root, "loops", given);
    json_decref(given);
    return failed == 0 ? STATUS_OK : body_no_memory(fault, strlen(loops_json), "bytes of headers");
}

static enum status read_body(const struct intake_order *order, struct body *out,
                             struct fault *fault)
{
    json_t *root = NULL;
    enum status status = body_load(order->json, order->len_bytes, "the body", &root, fault);
    if (status == STATUS_OK && order->loops_json != NULL)
        status = merge_loops(root, order->loops_json, fault);
    if (status == STATUS_OK)
        status = body_read(order->is_chat, root, out, fault);
    json_decref(root);
    return status;
}

/* The server's limits, which are narrower than the engine's. */
static enum status check_choices(const struct intake_config *config, const struct body *body,
                                 struct fault *fault)
{
    uint32_t n = body_n_choices(body);
    if (config->max_choices == 0 || n <= config->max_choices)
        return STATUS_OK;
    return fault_request(fault, STATUS_INVALID, body->n_prompts > 1 ? "prompt" : "n",
                         BODY_CODE_VALUE,
                         "this server takes at most %u choices in one request, prompts times n; "
                         "found %u",
                         config->max_choices, n);
}

static enum status check_prompts(const struct intake_config *config, const struct body *body,
                                 struct fault *fault)
{
    for (size_t i = 0; config->max_prompt_tokens > 0 && i < body->n_prompts; i++)
        if (body->prompts[i].n_ids > config->max_prompt_tokens)
            return fault_request(fault, STATUS_INVALID, body->is_chat ? "messages" : "prompt",
                                 "prompt_too_long",
                                 "this server takes prompts of at most %u tokens, found %zu",
                                 config->max_prompt_tokens, body->prompts[i].n_ids);
    return STATUS_OK;
}

/* Tokens with log-probabilities are held until the answer is written, each a fixed record and so
 * many alternatives, of which its JSON makes a hundred bytes: a stream holds those of the prompt
 * only. */
static enum status check_logprobs(const struct body *body, const struct sequence_params *params,
                                  struct fault *fault)
{
    const struct body_fields *f = &body->fields;
    const uint64_t n_each = LOGPROB_RECORD_ITEMS + (uint64_t)f->top_logprobs;
    uint64_t n_tokens = 0;
    if (!f->has_logprobs)
        return STATUS_OK;
    for (size_t i = 0; i < body->n_prompts; i++)
        n_tokens += (uint64_t)f->n *
                    ((f->echo ? body->prompts[i].n_ids : 0) + (f->stream ? 0 : params->max_tokens));
    if (n_tokens <= INTAKE_MAX_LOGPROBS / n_each)
        return STATUS_OK;
    return fault_request(fault, STATUS_INVALID, "logprobs", BODY_CODE_VALUE,
                         "logprobs: expected at most %llu tokens with %d alternatives in one "
                         "answer, found up to %llu; ask for fewer max_tokens, choices or prompts",
                         (unsigned long long)(INTAKE_MAX_LOGPROBS / n_each), (int)f->top_logprobs,
                         (unsigned long long)n_tokens);
}

static enum status choose_seed(const struct intake_config *config, const struct body *body,
                               struct sequence_params *params, struct fault *fault)
{
    uint64_t seed;
    if (config->has_seed || (body->fields.given & BODY_SEED))
        return STATUS_OK;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
        fault_set(fault, 500, "server_error", NULL, "no random seed from the system: %s",
                  strerror(errno));
        return fault->err.code;
    }
    params->sampling.seed = seed;
    return STATUS_OK;
}

static enum status read_job(const struct intake_config *config, const struct intake_order *order,
                            struct service_job *job, struct fault *fault)
{
    const struct model_config *model = &config->checkpoint->config;
    enum status status = read_body(order, &job->body, fault);
    if (status == STATUS_OK)
        status = check_choices(config, &job->body, fault);
    if (status == STATUS_OK)
        status =
            body_encode(&job->body, config->tokenizer, model->vocab_size, config->model_dir, fault);
    if (status == STATUS_OK)
        status = check_prompts(config, &job->body, fault);
    if (status != STATUS_OK)
        return status;
    job->params = config->defaults;
    job->params.max_tokens = order->is_chat ? 0 : config->default_max_tokens;
    job->n_choices = body_n_choices(&job->body);
    job->user = order->user;
    status = choose_seed(config, &job->body, &job->params, fault);
    if (status == STATUS_OK)
        status = body_apply(&job->body, model, &job->params, fault);
    if (status == STATUS_OK)
        status = check_logprobs(&job->body, &job->params, fault);
    return status;
}

void intake_read(const struct intake_config *config, struct intake_order *order)
{
    struct service_job *job = calloc(1, sizeof *job);
    order->fault = (struct fault){0};
    order->job = NULL;
    enum status status = job == NULL ? body_no_memory(&order->fault, sizeof *job, "bytes of a job")
                                     : read_job(config, order, job, &order->fault);
    forget_bytes(order);
    if (status == STATUS_OK)
        order->job = job;
    else
        service_job_free(job);
}

/* ---- the thread ----------------------------------------------------------------------------- */

static void *run(void *argument)
{
    struct intake *intake = argument;
    for (;;) {
        while (sem_wait(&intake->wake) != 0 && errno == EINTR)
            continue;
        struct mail *mail = mailbox_take(&intake->orders);
        while (mail != NULL) {
            struct mail *next = mail->next;
            struct intake_order *order = (struct intake_order *)mail;
            if (atomic_load(&intake->is_stopping)) {
                intake_order_free(order);
            } else {
                (order->read ? order->read : intake_read)(&intake->config, order);
                if (mailbox_push(&intake->done, mail))
                    intake->config.on_mail(intake->config.user);
            }
            mail = next;
        }
        if (atomic_load(&intake->is_stopping))
            return NULL;
    }
}

/* Signals are for the threads that know what to do with them. */
static int start_thread(struct intake *intake)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int problem = pthread_create(&intake->thread, NULL, run, intake);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return problem;
}

enum status intake_create(const struct intake_config *config, struct intake **out, struct err *err)
{
    struct intake *intake = calloc(1, sizeof *intake);
    if (intake == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the intake");
    intake->config = *config;
    mailbox_init(&intake->orders);
    mailbox_init(&intake->done);
    atomic_init(&intake->is_stopping, false);
    sem_init(&intake->wake, 0, 0);
    int problem = start_thread(intake);
    if (problem != 0) {
        sem_destroy(&intake->wake);
        free(intake);
        return err_set(err, STATUS_IO, "cannot start the intake's thread: %s", strerror(problem));
    }
    *out = intake;
    return STATUS_OK;
}

static void free_orders(struct mailbox *box)
{
    struct mail *mail = mailbox_take(box);
    while (mail != NULL) {
        struct mail *next = mail->next;
        intake_order_free((struct intake_order *)mail);
        mail = next;
    }
}

void intake_destroy(struct intake *intake)
{
    if (intake == NULL)
        return;
    atomic_store(&intake->is_stopping, true);
    sem_post(&intake->wake);
    pthread_join(intake->thread, NULL);
    free_orders(&intake->orders);
    free_orders(&intake->done);
    sem_destroy(&intake->wake);
    free(intake);
}

void intake_put(struct intake *intake, struct intake_order *order)
{
    if (mailbox_push(&intake->orders, &order->mail))
        sem_post(&intake->wake);
}

struct intake_order *intake_take(struct intake *intake)
{
    return (struct intake_order *)mailbox_take(&intake->done);
}
