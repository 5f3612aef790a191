/* A job's way through the engine thread: choice by choice to the coordinator, one end for each. */
#include "coordinator/service_state.h"

#include "cluster/host.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- ends ----------------------------------------------------------------------------------- */

static void waiting_add(struct service *s, struct service_job *job)
{
    job->is_waiting = true;
    job->next = NULL;
    job->previous = s->waiting_last;
    if (s->waiting_last != NULL)
        s->waiting_last->next = job;
    else
        s->waiting_first = job;
    s->waiting_last = job;
}

static void waiting_remove(struct service *s, struct service_job *job)
{
    job->is_waiting = false;
    if (job->previous != NULL)
        job->previous->next = job->next;
    else
        s->waiting_first = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
    else
        s->waiting_last = job->previous;
}

/* The last end gives the job away: nothing of it is touched afterwards. */
static void post_end(struct service *s, struct service_job *job, struct delivery *d)
{
    job->n_ended++;
    if (job->n_ended < job->n_choices) {
        service_post(s, d);
        return;
    }
    assert(!job->is_waiting);
    if (atomic_exchange(&job->is_cancel_sent, true) && !job->is_cancelled) {
        job->last_end = d; /* its cancel mail is under way: service_state.h */
        return;
    }
    s->n_jobs--;
    service_post(s, d);
}

/* False: no memory, nothing was told. */
static bool tell_end(struct service *s, struct service_job *job, uint32_t choice,
                     const struct completion_end *end)
{
    struct delivery *d = service_delivery_new(s, DELIVERY_ENDED);
    if (d == NULL)
        return false;
    d->job = job;
    d->choice = choice;
    d->at_ns = end->ended_ns;
    d->end = *end;
    if (!service_delivery_set_text(d, end->text, end->text_bytes)) {
        service_delivery_drop(s, d);
        return false;
    }
    d->end.text = d->text;
    snprintf(d->message, sizeof d->message, "%s", end->message);
    d->end.message = d->message;
    if (job->choices != NULL)
        d->prompt_rows = job->choices[choice].rows;
    post_end(s, job, d);
    return true;
}

/* The end of a choice that the coordinator never had. */
static void tell_refused(struct service *s, struct service_job *job, uint32_t choice,
                         struct delivery *d, const struct err *why)
{
    d->job = job;
    d->choice = choice;
    d->at_ns = host_now_ns();
    snprintf(d->message, sizeof d->message, "%s", why->message);
    d->end = (struct completion_end){
        .reason = why->code == STATUS_CANCELLED ? FINISH_CANCELLED : FINISH_ERROR,
        .failure = why->code,
        .message = d->message,
        .text = d->text,
        .submitted_ns = d->at_ns,
        .ended_ns = d->at_ns,
    };
    post_end(s, job, d);
}

void service_tell_untold(struct service *s)
{
    while (s->untold != NULL) {
        struct service_choice *choice = s->untold;
        struct service_choice *next = choice->next_untold;
        if (!tell_end(s, choice->job, choice->index, &choice->end))
            return;
        s->untold = next; /* the choice may be gone */
    }
}

/* ---- what the coordinator says -------------------------------------------------------------- */

/* A delivery is lost for want of memory: the client must not take the rest for all. */
static void give_up(struct service_choice *choice)
{
    choice->is_lossy = true;
    coordinator_cancel(choice->job->service->coordinator, choice->id);
}

static void on_start(void *user)
{
    struct service_choice *choice = user;
    struct service *s = choice->job->service;
    s->is_full = false;
    struct delivery *d = service_delivery_new(s, DELIVERY_STARTED);
    if (d == NULL) {
        give_up(choice);
        return;
    }
    d->job = choice->job;
    d->choice = choice->index;
    d->at_ns = host_now_ns();
    service_post(s, d);
}

static void on_token(void *user, const struct completion_token *token)
{
    struct service_choice *choice = user;
    struct service *s = choice->job->service;
    if (choice->is_lossy)
        return;
    struct delivery *d = service_delivery_new(s, DELIVERY_TOKEN);
    if (d == NULL || !service_delivery_set_text(d, token->text, token->text_bytes)) {
        if (d != NULL)
            service_delivery_drop(s, d);
        give_up(choice);
        return;
    }
    d->job = choice->job;
    d->choice = choice->index;
    d->index = token->index;
    d->at_ns = token->at_ns;
    d->token = *token->token;
    assert(token->token->exit_loop <= SEQUENCE_MAX_LOOPS);
    memcpy(d->workers, token->workers, token->token->exit_loop * sizeof *d->workers);
    service_post(s, d);
}

static void tell_rows(struct service_choice *choice)
{
    struct service *s = choice->job->service;
    if (choice->are_rows_told || !prompt_rows_are_complete(choice->rows))
        return;
    struct delivery *d = service_delivery_new(s, DELIVERY_PROMPT);
    if (d == NULL)
        return; /* the next row or the end tries again */
    choice->are_rows_told = true;
    d->job = choice->job;
    d->choice = choice->index;
    d->at_ns = host_now_ns();
    d->prompt_rows = choice->rows;
    service_post(s, d);
}

static void on_observation(void *user, const struct control_observation *row)
{
    struct service_choice *choice = user;
    /* Once told they are the client's to read. */
    if (choice->rows == NULL || choice->are_rows_told)
        return;
    prompt_rows_take(choice->rows, row);
    tell_rows(choice);
}

static void on_end(void *user, const struct completion_end *end)
{
    struct service_choice *choice = user;
    struct service *s = choice->job->service;
    choice->is_running = false;
    s->is_full = false;
    choice->end = *end;
    if (choice->rows != NULL && !choice->is_lossy)
        tell_rows(choice);
    bool is_good = end->reason == FINISH_STOP || end->reason == FINISH_LENGTH;
    bool lacks_rows = is_good && choice->rows != NULL && !choice->are_rows_told;
    if (choice->is_lossy || lacks_rows) {
        choice->end.reason = FINISH_ERROR;
        choice->end.failure = choice->is_lossy ? STATUS_NO_MEMORY : STATUS_INTERNAL;
        choice->end.message = choice->is_lossy
                                  ? "the server has no memory to hand on this request's tokens"
                                  : "the log-probabilities of the prompt did not all arrive";
    }
    if (tell_end(s, choice->job, choice->index, &choice->end))
        return;
    /* Told when memory has come back; what the coordinator lends is gone by then. */
    if (end->reason != FINISH_CANCELLED) {
        choice->end.reason = FINISH_ERROR;
        choice->end.failure = STATUS_NO_MEMORY;
    }
    choice->end.message = "the server has no memory to hand on this request's end";
    choice->end.text = "";
    choice->end.text_bytes = 0;
    choice->next_untold = s->untold;
    s->untold = choice;
}

/* ---- to the coordinator --------------------------------------------------------------------- */

static enum status submit_choice(struct service *s, struct service_job *job, uint32_t index,
                                 struct err *err)
{
    const struct body_fields *fields = &job->body.fields;
    const uint32_t n_per_prompt = job->n_choices / (uint32_t)job->body.n_prompts;
    const struct body_prompt *prompt = &job->body.prompts[index / n_per_prompt];
    struct service_choice *choice = &job->choices[index];
    struct completion_request request = {
        .prompt_ids = prompt->ids,
        .n_prompt = (uint32_t)prompt->n_ids,
        .params = job->params,
        .n_stops = fields->n_stops,
        .include_stop = fields->include_stop,
        .keep_special = !fields->skip_special,
        .user = choice,
        .on_start = on_start,
        .on_token = on_token,
        .on_end = on_end,
    };
    static_assert((int)BODY_MAX_STOPS <= (int)COMPLETION_MAX_STOPS,
                  "every stop of a body has room");
    memcpy(request.stops, fields->stops, fields->n_stops * sizeof *request.stops);
    request.params.prompt_tokens = request.n_prompt;
    request.params.sampling.seed += index % n_per_prompt;
    choice->job = job;
    choice->index = index;
    if (body_wants_prompt_logprobs(&job->body)) {
        /* The targets of this prompt: prompts of one request differ in length. */
        request.params.n_observe_targets = request.n_prompt - 1;
        request.observe_targets = prompt->ids + 1;
        request.on_observation = on_observation;
        if (choice->rows == NULL) /* else an earlier try found the coordinator full */
            choice->rows = prompt_rows_create(prompt->ids, request.n_prompt, &request.params,
                                              request.params.max_loops);
        if (choice->rows == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the rows of %u prompt tokens",
                           request.n_prompt);
    }
    enum status st = coordinator_submit(s->coordinator, &request, &choice->id, err);
    choice->is_running = st == STATUS_OK;
    return st;
}

/* Why the next choice of a job cannot go to the coordinator; STATUS_FULL: not now. */
static enum status offer_choice(struct service *s, struct service_job *job, uint32_t index,
                                struct err *err)
{
    if (job->is_cancelled)
        return err_set(err, STATUS_CANCELLED, "cancelled");
    if (s->lost.code != STATUS_OK)
        return err_set(err, s->lost.code, "%s", s->lost.message);
    if (job->choices == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %u choices", job->n_choices);
    if (s->is_full)
        return STATUS_FULL;
    enum status st = submit_choice(s, job, index, err);
    s->is_full = st == STATUS_FULL;
    return st;
}

/* Gives away the choices of one waiting job, in order; false: what is left of it has to wait. When
 * all are given away the job waits no more, and may be gone. */
static bool move_job(struct service *s, struct service_job *job)
{
    const uint32_t n_choices = job->n_choices;
    for (uint32_t i = job->n_submitted; i < n_choices; i++) {
        struct err err = {0};
        struct delivery *d = NULL;
        enum status st = offer_choice(s, job, i, &err);
        if (st == STATUS_FULL && s->lost.code == STATUS_OK)
            return false;
        if (st != STATUS_OK && (d = service_delivery_new(s, DELIVERY_ENDED)) == NULL)
            return false;
        job->n_submitted++;
        if (job->n_submitted == n_choices)
            waiting_remove(s, job);
        if (st != STATUS_OK)
            tell_refused(s, job, i, d, &err);
    }
    return true;
}

static void accept_job(struct service *s, struct service_job *job)
{
    assert(job->n_choices > 0 && job->service == s);
    job->choices = calloc(job->n_choices, sizeof *job->choices);
    s->n_jobs++;
    waiting_add(s, job);
}

static void cancel_job(struct service *s, struct service_job *job)
{
    job->is_cancelled = true;
    if (job->last_end != NULL) { /* it was all over already; now nothing of it is under way */
        struct delivery *d = job->last_end;
        s->n_jobs--;
        service_post(s, d);
        return;
    }
    /* Ends come from coordinator_step, so the job stays while one of its choices runs. */
    for (uint32_t i = 0; job->choices != NULL && i < job->n_submitted; i++)
        if (job->choices[i].is_running)
            coordinator_cancel(s->coordinator, job->choices[i].id);
    if (job->is_waiting)
        move_job(s, job);
}

void service_take_mail(struct service *s)
{
    /* Cancels first: whoever is in that box was submitted before, so the jobs taken afterwards
     * contain it. */
    struct mail *cancels = mailbox_take(&s->cancels);
    struct mail *jobs = mailbox_take(&s->jobs);
    while (jobs != NULL) {
        struct service_job *job = (struct service_job *)jobs;
        jobs = jobs->next;
        accept_job(s, job);
    }
    while (cancels != NULL) {
        struct service_job *job =
            (struct service_job *)((char *)cancels - offsetof(struct service_job, cancel_mail));
        cancels = cancels->next;
        cancel_job(s, job);
    }
    /* Oldest first, and none overtakes: small jobs do not starve a large one. */
    while (s->waiting_first != NULL && move_job(s, s->waiting_first))
        continue;
}

/* ---- the client thread ---------------------------------------------------------------------- */

void service_submit(struct service *s, struct service_job *job)
{
    assert(job->n_choices > 0 && job->n_choices % job->body.n_prompts == 0);
    job->service = s;
    if (mailbox_push(&s->jobs, &job->mail))
        coordinator_wake(s->coordinator);
}

void service_cancel(struct service *s, struct service_job *job)
{
    if (atomic_exchange(&job->is_cancel_sent, true))
        return;
    if (mailbox_push(&s->cancels, &job->cancel_mail))
        coordinator_wake(s->coordinator);
}

void service_job_clear(struct service_job *job)
{
    for (uint32_t i = 0; job->choices != NULL && i < job->n_choices; i++)
        prompt_rows_free(job->choices[i].rows);
    free(job->choices);
    job->choices = NULL;
}
