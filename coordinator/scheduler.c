/* Turns one event into the actions that follow from it, and never forgets a request. */
#include "coordinator/scheduler_state.h"

#include "cluster/ring.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* ---- endings -------------------------------------------------------------------------------- */

struct ending {
    enum finish_reason reason;
    enum status failure;
    const char *message;
};

/* The last action about a request. Its handle may be used again from here on. */
static void emit_end(struct scheduler *s, uint32_t at, struct ending how)
{
    scheduler_unlink_request(s, at);
    struct scheduler_action *a = scheduler_emit(s, SCHEDULER_END);
    a->request = s->entries[at].request;
    a->sequence = s->entries[at].params.sequence;
    a->reason = how.reason;
    a->failure = how.failure;
    a->message = how.message != NULL ? how.message : "";
}

/* Closes an open sequence on its whole ring and ends its request. CLOSE goes first: it frees memory
 * that others wait for. A worker that refused the OPEN gets one, too: closing is idempotent, and
 * one rule for all is easier to trust. */
static void close_and_end(struct scheduler *s, uint32_t at, uint64_t now_ns, struct ending how)
{
    struct entry *e = &s->entries[at];
    uint8_t *acks = scheduler_acks(s, at);
    e->reason = how.reason;
    scheduler_set_state(s, at, ENTRY_CLOSING, now_ns);
    for (uint32_t i = 0; i < s->config.ring_size; i++) {
        acks[i] = ACK_CLOSE_SENT;
        struct scheduler_action *a = scheduler_emit(s, SCHEDULER_SEND_CLOSE);
        a->worker = e->ring * s->config.ring_size + i;
        a->request = e->request;
        a->sequence = e->params.sequence;
    }
    emit_end(s, at, how);
}

/* ---- requests ------------------------------------------------------------------------------- */

static enum status on_submit(struct scheduler *s, const struct scheduler_event *event,
                             struct err *err)
{
    const struct sequence_params *p = event->params;
    const struct scheduler_config *c = &s->config;
    if (event->request == 0 || scheduler_find_request(s, event->request) != SCHEDULER_NONE)
        return err_set(err, STATUS_INTERNAL, "request handle %llu is 0 or in use",
                       (unsigned long long)event->request);
    if (p->prompt_tokens == 0 || p->max_tokens == 0)
        return err_set(err, STATUS_INVALID,
                       "prompt_tokens is %u and max_tokens is %u; both must be at least 1",
                       p->prompt_tokens, p->max_tokens);
    if (p->max_loops == 0 || p->max_loops > c->n_loops)
        return err_set(err, STATUS_INVALID, "max_loops is %u; the model allows 1..%u", p->max_loops,
                       c->n_loops);
    if ((uint64_t)p->prompt_tokens + p->max_tokens > c->max_positions)
        return err_set(err, STATUS_INVALID,
                       "context_length_exceeded: the prompt has %u tokens and max_tokens is %u, "
                       "together %llu; the model's context is %u: shorten the prompt or ask for "
                       "fewer tokens",
                       p->prompt_tokens, p->max_tokens,
                       (unsigned long long)p->prompt_tokens + p->max_tokens, c->max_positions);
    enum status st = scheduler_check_fits(s, p, err);
    if (st != STATUS_OK)
        return st;
    if (s->n_in_state[ENTRY_QUEUED] == c->max_queue)
        return err_set(err, STATUS_FULL, "%u requests are waiting, the queue is full: try later",
                       c->max_queue);

    uint32_t at = scheduler_take_entry(s);
    struct entry *e = &s->entries[at];
    e->request = event->request;
    e->params = *p;
    e->params.sequence = 0;
    e->params.ring_offset = 0;
    e->n_tokens = 0;
    e->reason = FINISH_NONE;
    e->n_blocks_per_loop = scheduler_blocks_per_loop(c, p);
    scheduler_set_state(s, at, ENTRY_QUEUED, event->now_ns);
    scheduler_link_request(s, at);
    scheduler_queue_push(s, at);
    scheduler_admit(s, event->now_ns);
    return STATUS_OK;
}

static void on_cancel(struct scheduler *s, const struct scheduler_event *event)
{
    const struct ending how = {FINISH_CANCELLED, STATUS_CANCELLED, "cancelled"};
    uint32_t at = scheduler_find_request(s, event->request);
    if (at == SCHEDULER_NONE)
        return;
    if (s->entries[at].state != ENTRY_QUEUED) {
        close_and_end(s, at, event->now_ns, how);
        return;
    }
    scheduler_queue_remove(s, at);
    emit_end(s, at, how);
    scheduler_set_state(s, at, ENTRY_FREE, event->now_ns);
    scheduler_give_entry(s, at);
    scheduler_admit(s, event->now_ns); /* it may have been the head that did not fit */
}

static enum status on_stop(struct scheduler *s, const struct scheduler_event *event,
                           struct err *err)
{
    uint32_t at = scheduler_find_request(s, event->request);
    if (at == SCHEDULER_NONE)
        return STATUS_OK;
    if (s->entries[at].state != ENTRY_RUNNING)
        return err_set(err, STATUS_INTERNAL, "stop for request %llu before its first token",
                       (unsigned long long)event->request);
    close_and_end(s, at, event->now_ns, (struct ending){FINISH_STOP, STATUS_OK, NULL});
    return STATUS_OK;
}

/* ---- messages from workers ------------------------------------------------------------------ */

/* *at = the open sequence a worker speaks about, SCHEDULER_NONE when it is gone and the message is
 * late. */
static enum status find_open(const struct scheduler *s, const struct scheduler_event *event,
                             const char *what, uint32_t *at, uint32_t *index, struct err *err)
{
    if (event->worker >= s->config.n_workers)
        return err_set(err, STATUS_INTERNAL, "%s from worker %u of %u", what, event->worker,
                       s->config.n_workers);
    if (event->sequence == 0 || event->sequence > s->last_sequence)
        return err_set(err, STATUS_CORRUPT,
                       "rank %u sent %s for sequence %llu, which was never opened",
                       event->worker + 1, what, (unsigned long long)event->sequence);
    *at = scheduler_find_entry(s, event->sequence);
    if (*at == SCHEDULER_NONE)
        return STATUS_OK;
    if (event->worker / s->config.ring_size != s->entries[*at].ring)
        return err_set(err, STATUS_CORRUPT,
                       "rank %u sent %s for sequence %llu, which lives on another ring",
                       event->worker + 1, what, (unsigned long long)event->sequence);
    *index = event->worker % s->config.ring_size;
    return STATUS_OK;
}

static enum status on_opened(struct scheduler *s, const struct scheduler_event *event,
                             struct err *err)
{
    uint32_t at, index;
    enum status st = find_open(s, event, "opened", &at, &index, err);
    if (st != STATUS_OK || at == SCHEDULER_NONE)
        return st;
    struct entry *e = &s->entries[at];
    if (e->state == ENTRY_CLOSING)
        return STATUS_OK; /* cancelled meanwhile; its CLOSED follows */
    uint8_t *acks = scheduler_acks(s, at);
    if (acks[index] != ACK_OPEN_SENT)
        return err_set(err, STATUS_CORRUPT,
                       "rank %u acknowledged the opening of sequence %llu twice", event->worker + 1,
                       (unsigned long long)event->sequence);
    if (event->failure != STATUS_OK) {
        close_and_end(s, at, event->now_ns,
                      (struct ending){FINISH_ERROR, event->failure, event->message});
        return STATUS_OK;
    }
    acks[index] = ACK_OPENED;
    if (++e->n_acks < s->config.ring_size)
        return STATUS_OK;
    scheduler_set_state(s, at, ENTRY_RUNNING, event->now_ns);
    struct scheduler_action *a = scheduler_emit(s, SCHEDULER_SEND_START);
    a->worker = e->ring * s->config.ring_size +
                (uint32_t)ring_worker((int)s->config.ring_size, e->params.ring_offset, 1);
    a->request = e->request;
    a->sequence = e->params.sequence;
    a->params = &e->params;
    return STATUS_OK;
}

static enum status on_token(struct scheduler *s, const struct scheduler_event *event,
                            struct err *err)
{
    const struct control_token *token = event->token;
    if (token->sequence == 0 || token->sequence > s->last_sequence)
        return err_set(err, STATUS_CORRUPT, "a token for sequence %llu, which was never opened",
                       (unsigned long long)token->sequence);
    uint32_t at = scheduler_find_entry(s, token->sequence);
    if (at == SCHEDULER_NONE || s->entries[at].state == ENTRY_CLOSING)
        return STATUS_OK; /* late: stopped or cancelled meanwhile */
    struct entry *e = &s->entries[at];
    uint32_t expected = e->params.prompt_tokens + e->n_tokens;
    if (e->state != ENTRY_RUNNING || token->position != expected) {
        snprintf(s->message, sizeof s->message,
                 "sequence %llu sent a token at position %u; expected was %u%s",
                 (unsigned long long)token->sequence, token->position, expected,
                 e->state == ENTRY_RUNNING ? "" : ", after its start");
        close_and_end(s, at, event->now_ns,
                      (struct ending){FINISH_ERROR, STATUS_CORRUPT, s->message});
        return STATUS_OK;
    }
    e->n_tokens++;
    scheduler_trace_token(s, e, token, event->now_ns);
    struct scheduler_action *a = scheduler_emit(s, SCHEDULER_DELIVER);
    a->request = e->request;
    a->sequence = token->sequence;
    a->token = token;
    /* The worker stops by itself; counting along costs nothing and bounds what a broken one can do.
     */
    if (token->is_last || e->n_tokens == e->params.max_tokens) {
        bool is_stop = token->is_last &&
                       sequence_is_stop_id(e->params.stop_ids, e->params.n_stop_ids, token->id);
        close_and_end(s, at, event->now_ns,
                      (struct ending){is_stop ? FINISH_STOP : FINISH_LENGTH, STATUS_OK, NULL});
    }
    return STATUS_OK;
}

static enum status on_failed(struct scheduler *s, const struct scheduler_event *event,
                             struct err *err)
{
    uint32_t at, index;
    enum status st = find_open(s, event, "failed", &at, &index, err);
    if (st != STATUS_OK || at == SCHEDULER_NONE || s->entries[at].state == ENTRY_CLOSING)
        return st;
    enum status failure = event->failure != STATUS_OK ? event->failure : STATUS_INTERNAL;
    close_and_end(s, at, event->now_ns, (struct ending){FINISH_ERROR, failure, event->message});
    return STATUS_OK;
}

static enum status on_closed(struct scheduler *s, const struct scheduler_event *event,
                             struct err *err)
{
    uint32_t at, index;
    enum status st = find_open(s, event, "closed", &at, &index, err);
    if (st != STATUS_OK || at == SCHEDULER_NONE)
        return st;
    uint8_t *acks = scheduler_acks(s, at);
    if (acks[index] != ACK_CLOSE_SENT)
        return err_set(err, STATUS_CORRUPT, "rank %u closed sequence %llu without being asked to",
                       event->worker + 1, (unsigned long long)event->sequence);
    acks[index] = ACK_CLOSED;
    if (++s->entries[at].n_acks < s->config.ring_size)
        return STATUS_OK;
    /* Blocks are free only now: until its last CLOSED a worker may still write into them. */
    scheduler_release(s, at);
    scheduler_unlink_sequence(s, at);
    scheduler_set_state(s, at, ENTRY_FREE, event->now_ns);
    scheduler_give_entry(s, at);
    scheduler_admit(s, event->now_ns);
    return STATUS_OK;
}

enum status scheduler_step(struct scheduler *s, const struct scheduler_event *event,
                           const struct scheduler_action **actions, size_t *n_actions,
                           struct err *err)
{
    enum status st = STATUS_OK;
    s->n_actions = 0;
    switch (event->kind) {
    case SCHEDULER_SUBMIT:
        st = on_submit(s, event, err);
        break;
    case SCHEDULER_OPENED:
        st = on_opened(s, event, err);
        break;
    case SCHEDULER_TOKEN:
        st = on_token(s, event, err);
        break;
    case SCHEDULER_STOP:
        st = on_stop(s, event, err);
        break;
    case SCHEDULER_CANCEL:
        on_cancel(s, event);
        break;
    case SCHEDULER_FAILED:
        st = on_failed(s, event, err);
        break;
    case SCHEDULER_CLOSED:
        st = on_closed(s, event, err);
        break;
    default:
        st = err_set(err, STATUS_INTERNAL, "scheduler event %d does not exist", (int)event->kind);
    }
    if (st != STATUS_OK)
        return st;
    scheduler_trace_step(s, event->now_ns);
    *actions = s->actions;
    *n_actions = s->n_actions;
    return STATUS_OK;
}

bool scheduler_next_token(const struct scheduler *s, uint64_t sequence, uint32_t *position,
                          uint32_t *end)
{
    uint32_t at = scheduler_find_entry(s, sequence);
    if (at == SCHEDULER_NONE || s->entries[at].state != ENTRY_RUNNING)
        return false;
    const struct entry *e = &s->entries[at];
    *position = e->params.prompt_tokens + e->n_tokens;
    *end = e->params.prompt_tokens + e->params.max_tokens;
    return true;
}
