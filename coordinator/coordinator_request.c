/* A request's way from submit to its one on_end. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"
#include "cluster/ring.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct request *find_request(const struct coordinator *c, uint64_t id)
{
    struct request *r = c->slots[id % c->n_slots];
    return r != NULL && r->id == id ? r : NULL;
}

/* ---- endings -------------------------------------------------------------------------------- */

static void push_ended(struct coordinator *c, struct request *r)
{
    r->next = NULL;
    if (c->ended_last == NULL)
        c->ended_first = r;
    else
        c->ended_last->next = r;
    c->ended_last = r;
}

static void note_end(struct coordinator *c, struct request *r, enum finish_reason reason,
                     enum status failure, const char *message)
{
    assert(!r->has_ended);
    r->has_ended = true;
    r->reason = reason;
    r->failure = failure;
    r->ended_ns = host_now_ns();
    snprintf(r->message, sizeof r->message, "%s", message != NULL ? message : "");
    push_ended(c, r);
}

/* The slot is free before the callback, so that on_end can submit the next request into a full
 * house. */
static void finish(struct coordinator *c, struct request *r)
{
    uint32_t slot = (uint32_t)(r->id % c->n_slots);
    c->slots[slot] = NULL;
    c->free_slots[c->n_free++] = slot;
    c->n_active--;
    size_t n = completion_flush(&r->text, c->text);
    c->text[n] = '\0';
    /* The token that completed a stop string may have been the last one allowed, too. */
    bool is_stop = r->text.is_stopped && r->reason == FINISH_LENGTH;
    const struct completion_end end = {
        .reason = is_stop ? FINISH_STOP : r->reason,
        .failure = r->failure,
        .message = r->message,
        .text = c->text,
        .text_bytes = n,
        .n_tokens = r->n_tokens,
        .submitted_ns = r->submitted_ns,
        .started_ns = r->started_ns,
        .first_token_ns = r->first_token_ns,
        .ended_ns = r->ended_ns,
    };
    if (r->on_end != NULL)
        r->on_end(r->user, &end);
    free(r);
}

uint32_t coordinator_run_endings(struct coordinator *c)
{
    uint32_t n_finished = 0;
    struct request *list = c->ended_first;
    c->ended_first = c->ended_last = NULL; /* callbacks may add to it; those come next time */
    while (list != NULL) {
        struct request *r = list;
        list = r->next;
        /* Workers' messages overtake each other: a row's observation may arrive after the last
         * token of its sequence, but never after its own worker's CLOSED. */
        if (r->is_observed && c->fatal.code == STATUS_OK && r->sequence != 0 &&
            scheduler_find_sequence(c->scheduler, r->sequence, NULL)) {
            push_ended(c, r);
            continue;
        }
        finish(c, r);
        n_finished++;
    }
    return n_finished;
}

void coordinator_end_all(struct coordinator *c, enum finish_reason reason, enum status failure,
                         const char *message)
{
    for (uint32_t slot = 0; slot < c->n_slots; slot++)
        if (c->slots[slot] != NULL && !c->slots[slot]->has_ended)
            note_end(c, c->slots[slot], reason, failure, message);
    while (c->ended_first != NULL) {
        struct request *r = c->ended_first;
        c->ended_first = r->next;
        if (c->ended_first == NULL)
            c->ended_last = NULL;
        finish(c, r);
    }
}

/* ---- tokens and rows ------------------------------------------------------------------------ */

/* A stop id ends the text and is no part of it, unless it was asked for. */
static bool is_shown(const struct coordinator *c, const struct request *r,
                     const struct control_token *token)
{
    if (!token->is_last || r->text.include_stop ||
        !sequence_is_stop_id(r->stop_ids, r->n_stop_ids, token->id))
        return true;
    return c->tokenizer != NULL && !r->text.detokenizer.skip_special &&
           tokenizer_is_special(c->tokenizer, token->id);
}

/* Who ran the loops of a token: loop 1 the first worker, every further one its successor in the
 * ring. */
static void list_workers(const struct coordinator *c, const struct request *r, uint32_t n_loops,
                         uint32_t *workers)
{
    uint32_t in_ring = r->first_worker % c->ring_size, ring = r->first_worker - in_ring;
    for (uint32_t i = 0; i < n_loops; i++)
        workers[i] = ring + (uint32_t)ring_worker((int)c->ring_size, in_ring, i + 1);
}

static enum status deliver(struct coordinator *c, struct request *r,
                           const struct control_token *arrived, uint64_t now_ns, struct err *err)
{
    enum status st = STATUS_OK;
    if (r->is_stop_held)
        return STATUS_OK; /* it has all its text */
    struct control_token copy = *arrived;
    const struct control_token *token = &copy;
    uint32_t workers[SEQUENCE_MAX_LOOPS];
    list_workers(c, r, token->exit_loop, workers);
    coordinator_clock_correct(c, r, workers, &copy);
    r->last_worker = workers[token->exit_loop - 1];
    size_t n = is_shown(c, r, token) ? completion_push(&r->text, token->id, c->text) : 0;
    c->text[n] = '\0';
    if (r->text.is_stopped && !r->has_ended && r->n_reports_due > 0) {
        r->is_stop_held = true;
    } else if (r->text.is_stopped && !r->has_ended) {
        struct scheduler_event stop = {.kind = SCHEDULER_STOP, .request = r->id};
        st = coordinator_apply(c, &stop, err);
    }
    if (r->n_tokens == 0)
        r->first_token_ns = now_ns;
    const struct completion_token out = {
        .token = token,
        .workers = workers,
        .index = r->n_tokens++,
        .text = c->text,
        .text_bytes = n,
        .at_ns = now_ns,
    };
    if (r->on_token != NULL)
        r->on_token(r->user, &out);
    return st;
}

/* ---- ends that wait for the prompt's rows ---------------------------------------------------- */

/* A last row that gets off early leaves the prompt's other rows on their way through the deeper
 * loops; closing the sequence would drop them. How many reports come: every target, every loop. */
static uint64_t count_reports(const struct sequence_params *p)
{
    bool leaves_early = p->exit_mode != EXIT_MODE_FULL && p->prefill == PREFILL_EAGER;
    return leaves_early ? (uint64_t)p->n_observe_targets * p->max_loops : 0;
}

enum status coordinator_take_token(struct coordinator *c, const struct control_token *token,
                                   struct err *err)
{
    uint64_t id;
    struct request *r = NULL;
    if (token->is_last && scheduler_find_sequence(c->scheduler, token->sequence, &id))
        r = find_request(c, id);
    if (r != NULL && r->n_reports_due > 0) {
        r->held = *token;
        r->is_token_held = true;
        return STATUS_OK;
    }
    struct scheduler_event event = {.kind = SCHEDULER_TOKEN, .token = token};
    return coordinator_apply(c, &event, err);
}

static enum status release_end(struct coordinator *c, struct request *r, struct err *err)
{
    struct scheduler_event event = {.kind = SCHEDULER_TOKEN, .token = &r->held};
    if (r->is_stop_held)
        event = (struct scheduler_event){.kind = SCHEDULER_STOP, .request = r->id};
    else if (!r->is_token_held)
        return STATUS_OK;
    r->is_stop_held = r->is_token_held = false;
    return coordinator_apply(c, &event, err);
}

enum status coordinator_observe(struct coordinator *c, const struct control_observation *row,
                                struct err *err)
{
    uint64_t id;
    if (!scheduler_find_sequence(c->scheduler, row->sequence, &id))
        return STATUS_OK; /* cancelled meanwhile */
    struct request *r = find_request(c, id);
    if (r == NULL)
        return STATUS_OK;
    if (r->on_observation != NULL)
        r->on_observation(r->user, row);
    if (!row->has_target || r->n_reports_due == 0 || --r->n_reports_due > 0 || r->has_ended)
        return STATUS_OK;
    return release_end(c, r, err);
}

/* ---- the scheduler's actions ---------------------------------------------------------------- */

/* A sequence is opened while its request waits for it. */
static struct request *find_opening(const struct coordinator *c, uint64_t sequence)
{
    uint64_t id = 0;
    bool is_known = scheduler_find_sequence(c->scheduler, sequence, &id);
    struct request *r = is_known ? find_request(c, id) : NULL;
    assert(r != NULL);
    return r;
}

static enum status carry_out(struct coordinator *c, const struct scheduler_action *a,
                             uint64_t now_ns, struct err *err)
{
    struct control_message m = {.kind = CONTROL_CLOSE};
    struct request *r;
    switch (a->kind) {
    case SCHEDULER_SEND_OPEN:
        m.kind = CONTROL_OPEN;
        m.open = *a->params;
        m.open_targets = NULL;
        if (m.open.n_observe_targets > 0)
            m.open_targets = find_opening(c, m.open.sequence)->targets;
        return coordinator_send(c, a->worker, &m, err);
    case SCHEDULER_SEND_START:
        r = find_request(c, a->request);
        r->sequence = a->sequence;
        r->started_ns = now_ns;
        r->first_worker = a->worker;
        return coordinator_send_prompt(c, a->worker, r, err);
    case SCHEDULER_SEND_CLOSE:
        m.sequence.sequence = a->sequence;
        return coordinator_send(c, a->worker, &m, err);
    case SCHEDULER_END:
        note_end(c, find_request(c, a->request), a->reason, a->failure, a->message);
        return STATUS_OK;
    case SCHEDULER_DELIVER: /* waits until all sends are out: coordinator_apply */
        break;
    }
    return err_set(err, STATUS_INTERNAL, "scheduler action %d does not exist", (int)a->kind);
}

enum status coordinator_apply(struct coordinator *c, struct scheduler_event *event, struct err *err)
{
    const struct scheduler_action *actions;
    size_t n_actions;
    event->now_ns = host_now_ns();
    enum status st = scheduler_step(c->scheduler, event, &actions, &n_actions, err);
    if (st != STATUS_OK)
        return st;
    /* One event delivers one token and starts one sequence at most. */
    struct request *receiver = NULL, *starter = NULL;
    for (size_t i = 0; i < n_actions; i++) {
        if (actions[i].kind == SCHEDULER_DELIVER) {
            receiver = find_request(c, actions[i].request);
            continue;
        }
        struct err lost = {0};
        if (carry_out(c, &actions[i], event->now_ns, &lost) != STATUS_OK) {
            if (c->fatal.code == STATUS_OK)
                c->fatal = lost;
        } else if (actions[i].kind == SCHEDULER_SEND_START) {
            starter = find_request(c, actions[i].request);
        }
    }
    if (starter != NULL && starter->on_start != NULL)
        starter->on_start(starter->user);
    return receiver != NULL ? deliver(c, receiver, event->token, event->now_ns, err) : STATUS_OK;
}

/* ---- submit and cancel ---------------------------------------------------------------------- */

static enum status check_prompt(const struct coordinator *c, const struct completion_request *q,
                                struct err *err)
{
    const int32_t vocab_size = c->checkpoint->config.vocab_size;
    if (q->n_prompt == 0)
        return err_set(err, STATUS_INVALID, "the prompt is empty: give at least one token");
    for (uint32_t i = 0; i < q->n_prompt; i++)
        if (q->prompt_ids[i] < 0 || q->prompt_ids[i] >= vocab_size)
            return err_set(err, STATUS_INVALID,
                           "prompt token %u is %" PRId32 "; the vocabulary has ids 0..%" PRId32, i,
                           q->prompt_ids[i], vocab_size - 1);
    return STATUS_OK;
}

static enum status check_targets(const struct coordinator *c, const struct completion_request *q,
                                 const struct sequence_params *params, struct err *err)
{
    const int32_t vocab_size = c->checkpoint->config.vocab_size;
    if (sequence_is_observed(params) && c->n_workers > 0 &&
        strcmp(c->peers[0].hello.backend, "timed") == 0)
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend timed waits instead of computing: there is nothing to observe; use "
                       "--backend cpu");
    for (uint32_t i = 0; i < params->n_observe_targets; i++)
        if (q->observe_targets[i] < 0 || q->observe_targets[i] >= vocab_size)
            return err_set(err, STATUS_INVALID,
                           "observed target %u is %" PRId32 "; the vocabulary has ids 0..%" PRId32,
                           i, q->observe_targets[i], vocab_size - 1);
    return STATUS_OK;
}

static enum status make_params(const struct coordinator *c, const struct completion_request *q,
                               struct sequence_params *out, struct err *err)
{
    *out = q->params;
    out->sequence = 1; /* any valid one; the scheduler numbers sequences when it opens them */
    out->ring_offset = 0;
    out->prompt_tokens = q->n_prompt;
    if (out->max_loops == 0)
        out->max_loops = (uint32_t)c->checkpoint->config.n_loops;
    /* The scheduler compares the lengths with the context and says more about it, hence no bound
     * here. */
    return sequence_params_check(out, (uint32_t)c->checkpoint->config.n_loops,
                                 (uint32_t)c->checkpoint->config.vocab_size, UINT32_MAX, err);
}

static struct request *make_request(const struct completion_request *q,
                                    const struct sequence_params *params)
{
    size_t n_ids = (size_t)q->n_prompt + params->n_observe_targets;
    struct request *r = calloc(1, sizeof *r + n_ids * sizeof *r->prompt_ids);
    if (r == NULL)
        return NULL;
    r->is_observed = sequence_is_observed(params);
    r->n_reports_due = count_reports(params);
    r->n_stop_ids = params->n_stop_ids;
    memcpy(r->stop_ids, params->stop_ids, sizeof r->stop_ids);
    r->user = q->user;
    r->last_worker = CLOCK_OURS;
    r->on_start = q->on_start;
    r->on_token = q->on_token;
    r->on_observation = q->on_observation;
    r->on_end = q->on_end;
    r->n_prompt = q->n_prompt;
    memcpy(r->prompt_ids, q->prompt_ids, q->n_prompt * sizeof *r->prompt_ids);
    r->targets = r->prompt_ids + q->n_prompt;
    if (params->n_observe_targets > 0)
        memcpy(r->targets, q->observe_targets, params->n_observe_targets * sizeof *r->targets);
    return r;
}

enum status coordinator_submit(struct coordinator *c, const struct completion_request *request,
                               uint64_t *id, struct err *err)
{
    if (c->fatal.code != STATUS_OK)
        return err_set(err, c->fatal.code, "%s", c->fatal.message);
    if (c->phase != PHASE_RUNNING)
        return err_set(err, STATUS_INTERNAL, "a request outside of start and shutdown");
    struct sequence_params params;
    enum status st = check_prompt(c, request, err);
    if (st != STATUS_OK || (st = make_params(c, request, &params, err)) != STATUS_OK ||
        (st = check_targets(c, request, &params, err)) != STATUS_OK)
        return st;
    if (c->n_free == 0)
        return err_set(err, STATUS_FULL, "%u requests are waiting or ending: try later",
                       c->n_slots);
    struct request *r = make_request(request, &params);
    if (r == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a prompt of %u tokens",
                       request->n_prompt);
    st = completion_init(&r->text, c->tokenizer, request->keep_special, request->include_stop,
                         request->stops, request->n_stops, err);
    if (st != STATUS_OK)
        goto fail;

    uint32_t slot = c->free_slots[--c->n_free];
    r->id = ++c->n_submitted * c->n_slots + slot;
    r->submitted_ns = host_now_ns();
    c->slots[slot] = r;
    struct scheduler_event event = {.kind = SCHEDULER_SUBMIT, .request = r->id, .params = &params};
    st = coordinator_apply(c, &event, err);
    if (st != STATUS_OK) {
        c->slots[slot] = NULL;
        c->free_slots[c->n_free++] = slot;
        goto fail;
    }
    c->n_active++;
    if (id != NULL)
        *id = r->id;
    return STATUS_OK;
fail:
    free(r);
    return st;
}

void coordinator_cancel(struct coordinator *c, uint64_t id)
{
    if (c->phase != PHASE_RUNNING || c->fatal.code != STATUS_OK || find_request(c, id) == NULL)
        return;
    struct scheduler_event event = {.kind = SCHEDULER_CANCEL, .request = id};
    struct err err = {0};
    if (coordinator_apply(c, &event, &err) != STATUS_OK)
        c->fatal = err;
}
