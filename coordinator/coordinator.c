/* Rank 0's event loop: messages in, scheduler events out, and no wait without a deadline. */
#include "coordinator/coordinator_state.h"

#include "cluster/host.h"
#include "cluster/ring.h"
#include "proto/frame.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_TIMEOUT_NS UINT64_C(60000000000)
#define DEFAULT_MAX_QUEUE  4096u
/* Bounds one step, so that callbacks and the caller's own work get their turn under a flood of
 * tokens. */
enum { MAX_MESSAGES_PER_STEP = 256 };
/* A wait is cut to this, so that deadlines are looked at even when nothing arrives. */
#define MAX_WAIT_NS UINT64_C(1000000000)

/* ---- life ----------------------------------------------------------------------------------- */

static enum status check_config(const struct coordinator *c, struct err *err)
{
    if (!ring_size_is_valid((int)c->n_workers, (int)c->ring_size))
        return err_set(err, STATUS_INVALID,
                       "a ring of %u workers does not divide the %u there are: choose a divisor",
                       c->ring_size, c->n_workers);
    if (c->config.max_running == 0 || c->config.block_size == 0)
        return err_set(err, STATUS_INVALID, "max_running is %u and block_size %u; both start at 1",
                       c->config.max_running, c->config.block_size);
    return STATUS_OK;
}

enum status coordinator_create(struct transport *transport, const struct checkpoint *checkpoint,
                               const struct tokenizer *tokenizer,
                               const struct coordinator_config *config, struct coordinator **out,
                               struct err *err)
{
    if (transport->n_ranks < 2 || transport->rank != 0)
        return err_set(err, STATUS_INVALID,
                       "rank %d of %d: the coordinator is rank 0 and needs at least one worker",
                       transport->rank, transport->n_ranks);
    struct coordinator *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the coordinator");
    c->transport = transport;
    c->checkpoint = checkpoint;
    c->tokenizer = tokenizer;
    c->config = *config;
    c->n_workers = (uint32_t)transport->n_ranks - 1;
    c->ring_size = config->ring_size != 0
                       ? config->ring_size
                       : (uint32_t)ring_default_size((int)c->n_workers, checkpoint->config.n_loops);
    if (c->config.max_queue == 0)
        c->config.max_queue = DEFAULT_MAX_QUEUE;
    if (c->config.start_timeout_ns == 0)
        c->config.start_timeout_ns = DEFAULT_TIMEOUT_NS;
    if (c->config.answer_timeout_ns == 0)
        c->config.answer_timeout_ns = DEFAULT_TIMEOUT_NS;
    enum status st = check_config(c, err);
    if (st != STATUS_OK)
        goto out;

    /* Twice what the scheduler can hold: requests that have ended keep their slot until on_end has
     * been called. */
    uint64_t n_slots =
        2 * ((uint64_t)(c->n_workers / c->ring_size) * c->config.max_running + c->config.max_queue);
    if (n_slots > INT32_MAX) {
        st = err_set(err, STATUS_INVALID, "max_queue %u and max_running %u are too large",
                     c->config.max_queue, c->config.max_running);
        goto out;
    }
    c->n_slots = (uint32_t)n_slots;
    c->peers = calloc(c->n_workers, sizeof *c->peers);
    c->slots = calloc(c->n_slots, sizeof *c->slots);
    c->free_slots = calloc(c->n_slots, sizeof *c->free_slots);
    c->question.answers = calloc(c->n_workers, sizeof *c->question.answers);
    if (c->peers == NULL || c->slots == NULL || c->free_slots == NULL ||
        c->question.answers == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory for %u requests", c->n_slots);
        goto out;
    }
    for (uint32_t slot = c->n_slots; slot-- > 0;)
        c->free_slots[c->n_free++] = slot;
    *out = c;
    c = NULL;
out:
    coordinator_destroy(c);
    return st;
}

void coordinator_destroy(struct coordinator *c)
{
    if (c == NULL)
        return;
    for (uint32_t slot = 0; c->slots != NULL && slot < c->n_slots; slot++)
        free(c->slots[slot]);
    scheduler_destroy(c->scheduler);
    free(c->slots);
    free(c->free_slots);
    free(c->peers);
    free(c->question.answers);
    trace_set_destroy(c->trace_question.set);
    token_order_free(&c->early);
    free(c);
}

void coordinator_shutdown(struct coordinator *c)
{
    coordinator_stop_workers(c, c->fatal.code, c->fatal.message);
    coordinator_end_all(c, FINISH_CANCELLED, STATUS_CANCELLED, "the coordinator was shut down");
}

/* ---- messages ------------------------------------------------------------------------------- */

const char *coordinator_host_of(const struct coordinator *c, uint32_t worker)
{
    return c->peers[worker].has_hello ? c->peers[worker].hello.host : "?";
}

static const char *kind_name(enum control_kind kind)
{
    static const char *const names[] = {
        [CONTROL_HELLO] = "hello",       [CONTROL_WELCOME] = "welcome",
        [CONTROL_READY] = "ready",       [CONTROL_OPEN] = "open",
        [CONTROL_OPENED] = "opened",     [CONTROL_CLOSE] = "close",
        [CONTROL_CLOSED] = "closed",     [CONTROL_FAILED] = "failed",
        [CONTROL_TOKENS] = "tokens",     [CONTROL_OBSERVATIONS] = "observations",
        [CONTROL_STATS] = "stats",       [CONTROL_STATS_REQUEST] = "stats request",
        [CONTROL_SHUTDOWN] = "shutdown", [CONTROL_GOODBYE] = "goodbye",
        [CONTROL_TRACE] = "trace",       [CONTROL_TRACE_REQUEST] = "trace request",
    };
    size_t n = sizeof names / sizeof names[0];
    return (size_t)kind < n && names[kind] != NULL ? names[kind] : "a message of unknown kind";
}

enum status coordinator_unexpected(const struct coordinator *c, uint32_t worker, const char *what,
                                   struct err *err)
{
    return err_set(err, STATUS_CORRUPT, "rank %u on %s sent %s, which is not expected %s",
                   worker + 1, coordinator_host_of(c, worker), what,
                   c->phase == PHASE_RUNNING ? "now" : "during start");
}

static enum status left(const struct coordinator *c, uint32_t worker, enum status failure,
                        const char *message, struct err *err)
{
    return err_set(err, failure != STATUS_OK ? failure : STATUS_IO,
                   "rank %u on %s has left the cluster%s%s", worker + 1,
                   coordinator_host_of(c, worker), message[0] != '\0' ? ": " : "", message);
}

static enum status handle_sequence(struct coordinator *c, uint32_t worker,
                                   const struct control_message *m, struct err *err)
{
    struct scheduler_event event = {
        .kind = m->kind == CONTROL_OPENED   ? SCHEDULER_OPENED
                : m->kind == CONTROL_CLOSED ? SCHEDULER_CLOSED
                                            : SCHEDULER_FAILED,
        .worker = worker,
        .sequence = m->sequence.sequence,
        .failure = m->sequence.failure,
    };
    char message[ERR_MESSAGE_BYTES];
    if (m->sequence.failure != STATUS_OK || m->kind == CONTROL_FAILED) {
        struct err where = {0};
        err_set(&where, m->sequence.failure, "rank %u on %s: %s", worker + 1,
                coordinator_host_of(c, worker), m->sequence.message);
        memcpy(message, where.message, sizeof message);
        event.message = message;
    }
    return coordinator_apply(c, &event, err);
}

/* Gives the scheduler a sequence's tokens in the order of their positions, whatever order they came
 * in. */
static enum status handle_token(struct coordinator *c, const struct control_token *token,
                                struct err *err)
{
    uint32_t position, end;
    bool is_running = scheduler_next_token(c->scheduler, token->sequence, &position, &end);
    if (is_running && token->position > position && token->position < end)
        return token_order_hold(&c->early, token, err);
    enum status st = coordinator_take_token(c, token, err);
    struct control_token next;
    while (st == STATUS_OK && c->early.n > 0 &&
           scheduler_next_token(c->scheduler, token->sequence, &position, &end) &&
           token_order_take(&c->early, token->sequence, position, &next)) {
        st = coordinator_take_token(c, &next, err);
    }
    if (c->early.n > 0 && !scheduler_next_token(c->scheduler, token->sequence, &position, &end))
        token_order_drop(&c->early, token->sequence);
    return st;
}

static enum status handle_running(struct coordinator *c, uint32_t worker,
                                  const struct control_message *m, struct err *err)
{
    enum status st = STATUS_OK;
    switch (m->kind) {
    case CONTROL_TOKENS:
        for (uint32_t i = 0; i < m->tokens.n && st == STATUS_OK; i++)
            st = handle_token(c, &m->tokens.items[i], err);
        return st;
    case CONTROL_OBSERVATIONS:
        for (uint32_t i = 0; i < m->observations.n && st == STATUS_OK; i++)
            st = coordinator_observe(c, &m->observations.items[i], err);
        return st;
    case CONTROL_FAILED:
        if (m->sequence.sequence == 0) /* about the worker itself */
            return left(c, worker, m->sequence.failure, m->sequence.message, err);
        return handle_sequence(c, worker, m, err);
    case CONTROL_CLOSED:
        token_order_drop(&c->early, m->sequence.sequence);
        return handle_sequence(c, worker, m, err);
    case CONTROL_OPENED:
        return handle_sequence(c, worker, m, err);
    case CONTROL_STATS:
        coordinator_stats_take(c, worker, &m->stats);
        return STATUS_OK;
    case CONTROL_TRACE:
        coordinator_trace_take(c, worker, &m->trace);
        return STATUS_OK;
    case CONTROL_READY:
        if (m->ready.failure != STATUS_OK)
            return left(c, worker, m->ready.failure, m->ready.message, err);
        break;
    default:
        break;
    }
    return coordinator_unexpected(c, worker, kind_name(m->kind), err);
}

static enum status handle_control(struct coordinator *c, uint32_t worker,
                                  const struct control_message *m, struct err *err)
{
    if (m->kind == CONTROL_GOODBYE || m->kind == CONTROL_SHUTDOWN)
        c->peers[worker].has_left = true; /* its last words, after an orderly end or a failure */
    if (c->phase == PHASE_STOPPING)
        return STATUS_OK; /* whatever was under way no longer matters */
    if (m->kind == CONTROL_GOODBYE)
        return left(c, worker, STATUS_OK, "", err);
    if (m->kind == CONTROL_SHUTDOWN)
        return left(c, worker, m->shutdown.failure, m->shutdown.message, err);
    if (c->phase == PHASE_RUNNING)
        return handle_running(c, worker, m, err);
    if (m->kind == CONTROL_HELLO)
        return coordinator_take_hello(c, worker, &m->hello, err);
    if (m->kind == CONTROL_READY)
        return coordinator_take_ready(c, worker, &m->ready, err);
    if (m->kind == CONTROL_STATS && c->phase == PHASE_CLOCK) {
        coordinator_stats_take(c, worker, &m->stats);
        return STATUS_OK;
    }
    return coordinator_unexpected(c, worker, kind_name(m->kind), err);
}

static enum status handle(struct coordinator *c, const struct transport_message *message,
                          struct err *err)
{
    if (message->source < 1 || (uint32_t)message->source > c->n_workers)
        return err_set(err, STATUS_CORRUPT, "a message from rank %d of %u", message->source,
                       c->n_workers + 1);
    uint32_t worker = (uint32_t)message->source - 1;
    int kind;
    enum status st = message_kind(message->bytes, message->len_bytes, &kind, err);
    struct control_message m;
    if (st == STATUS_OK && kind != MESSAGE_CONTROL)
        return coordinator_unexpected(c, worker, "a bundle of frames", err);
    if (st == STATUS_OK)
        st = control_decode(message->bytes, message->len_bytes, &m, err);
    if (st != STATUS_OK) {
        err_wrap(err, "a message of rank %u on %s", worker + 1, coordinator_host_of(c, worker));
        return st;
    }
    st = handle_control(c, worker, &m, err);
    control_clear(&m);
    return st;
}

enum status coordinator_receive(struct coordinator *c, uint32_t *n_handled, struct err *err)
{
    *n_handled = 0;
    while (*n_handled < MAX_MESSAGES_PER_STEP) {
        struct transport_message *message = NULL;
        enum status st = transport_poll(c->transport, &message, err);
        if (st != STATUS_OK || message == NULL)
            return st;
        st = handle(c, message, err);
        transport_release(c->transport, message);
        ++*n_handled;
        if (st != STATUS_OK)
            return st;
    }
    return STATUS_OK;
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* Not at every step: it walks the whole table. */
static enum status check_answers(struct coordinator *c, struct err *err)
{
    const uint64_t now_ns = host_now_ns(), timeout_ns = c->config.answer_timeout_ns;
    if (now_ns < c->next_check_ns || now_ns < timeout_ns)
        return STATUS_OK;
    c->next_check_ns = now_ns + (timeout_ns / 4 < MAX_WAIT_NS ? timeout_ns / 4 : MAX_WAIT_NS);
    enum status st = coordinator_stats_check(c, now_ns, err);
    if (st == STATUS_OK)
        st = coordinator_trace_check(c, now_ns, err);
    if (st != STATUS_OK)
        return st;
    uint32_t worker;
    uint64_t sequence;
    if (!scheduler_find_overdue(c->scheduler, now_ns - timeout_ns, &worker, &sequence))
        return STATUS_OK;
    return err_set(err, STATUS_TIMEOUT,
                   "rank %u on %s has not acknowledged sequence %" PRIu64
                   " for %.1f s: it hangs or its host is lost",
                   worker + 1, coordinator_host_of(c, worker), sequence, (double)timeout_ns / 1e9);
}

static enum status turn(struct coordinator *c, uint64_t timeout_ns, struct err *err)
{
    uint32_t n_handled = 0;
    enum status st = coordinator_receive(c, &n_handled, err);
    if (st == STATUS_OK)
        st = check_answers(c, err);
    if (st == STATUS_OK)
        st = coordinator_clock_ask(c, err);
    if (st == STATUS_OK)
        st = coordinator_trace_ask(c, err);
    if (st != STATUS_OK)
        return st;
    uint32_t n_finished = coordinator_run_endings(c);
    if (c->fatal.code != STATUS_OK) /* a send failed, here or in a callback */
        return err_set(err, c->fatal.code, "%s", c->fatal.message);
    if (n_handled > 0 || n_finished > 0 || timeout_ns == 0)
        return STATUS_OK;
    uint64_t most_ns = c->config.answer_timeout_ns / 4;
    most_ns = most_ns < MAX_WAIT_NS ? most_ns : MAX_WAIT_NS;
    return transport_wait(c->transport, timeout_ns < most_ns ? timeout_ns : most_ns, err);
}

enum status coordinator_step(struct coordinator *c, uint64_t timeout_ns, struct err *err)
{
    if (c->phase != PHASE_RUNNING)
        return err_set(err, STATUS_INTERNAL, "a step outside of start and shutdown");
    struct err why = {0};
    if (c->fatal.code == STATUS_OK && turn(c, timeout_ns, &why) != STATUS_OK)
        c->fatal = why;
    if (c->fatal.code == STATUS_OK)
        return STATUS_OK;
    coordinator_end_all(c, FINISH_ERROR, c->fatal.code, c->fatal.message);
    return err_set(err, c->fatal.code, "%s", c->fatal.message);
}

/* ---- questions ------------------------------------------------------------------------------ */

uint32_t coordinator_n_active(const struct coordinator *c)
{
    return c->n_active;
}

bool coordinator_is_idle(const struct coordinator *c)
{
    struct scheduler_load load;
    coordinator_get_load(c, &load);
    return c->n_active == 0 &&
           load.n_queued + load.n_opening + load.n_running + load.n_closing == 0;
}

void coordinator_get_load(const struct coordinator *c, struct scheduler_load *out)
{
    *out = (struct scheduler_load){0};
    if (c->scheduler != NULL)
        scheduler_get_load(c->scheduler, out);
}

double coordinator_kv_usage(const struct coordinator *c)
{
    double most = 0.0;
    for (uint32_t w = 0; c->scheduler != NULL && w < c->n_workers; w++) {
        double usage = (double)scheduler_blocks_reserved(c->scheduler, w) /
                       (double)c->peers[w].ready.n_kv_blocks;
        most = usage > most ? usage : most;
    }
    return most;
}

void coordinator_wake(struct coordinator *c)
{
    transport_wake(c->transport);
}

uint32_t coordinator_n_workers(const struct coordinator *c)
{
    return c->n_workers;
}

uint32_t coordinator_ring_size(const struct coordinator *c)
{
    return c->ring_size;
}

const struct control_ready *coordinator_worker_ready(const struct coordinator *c, uint32_t worker)
{
    return &c->peers[worker].ready;
}

const struct control_hello *coordinator_worker_hello(const struct coordinator *c, uint32_t worker)
{
    return &c->peers[worker].hello;
}
