/* The simulated rank 0: requests and messages one after the other through the real scheduler. */
#include "cli/simulate_parts.h"

#include "cluster/ring.h"
#include "proto/fnv.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* As coordinator/coordinator.c. */
enum { MAX_QUEUE = 4096 };

/* ---- requests ------------------------------------------------------------------------------- */

static struct simulate_request *find(const struct simulate_rank0 *z, uint64_t handle)
{
    return z->requests[handle - 1];
}

static void forget(struct simulate_rank0 *z, struct simulate_request *r)
{
    z->requests[r->index] = NULL;
    free(r->ids);
    free(r);
}

/* The next request of the load is here, and waits for its turn. */
static enum status arrive(struct simulate_world *w, uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    struct simulate_request *r = calloc(1, sizeof *r);
    if (r == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for request %" PRIu32, z->n_next);
    r->index = z->n_next++;
    r->arrived_ns = now_ns;
    r->hash = fnv_bytes(FNV_START, &(uint64_t){r->index}, sizeof(uint64_t));
    enum status status = simulate_load_draw(w->load, r->index, &r->drawn, &r->ids, &r->exits, err);
    if (status != STATUS_OK) {
        free(r);
        return status;
    }
    r->drawn.params.prompt_tokens = r->drawn.n_prompt;
    z->requests[r->index] = r;
    if (z->waiting_first == NULL)
        z->waiting_first = r;
    else
        z->waiting_last->next = r;
    z->waiting_last = r;
    return STATUS_OK;
}

static enum status plan_arrival(struct simulate_world *w, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    if (z->n_next == z->n_limit)
        return STATUS_OK;
    z->last_arrival_ns =
        simulate_load_arrival_ns(w->load, z->n_next, z->phase_first, z->last_arrival_ns);
    return event_queue_push(&w->queue, z->phase_began_ns + z->last_arrival_ns, SIMULATE_REQUEST, 0,
                            NULL, err);
}

static enum status wake(struct simulate_world *w, uint64_t now_ns, struct err *err)
{
    if (w->ranks[0].is_awake)
        return STATUS_OK;
    w->ranks[0].is_awake = true;
    return simulate_rank0_turn(w, now_ns, err);
}

enum status simulate_rank0_begin(struct simulate_world *w, uint32_t first, uint32_t limit,
                                 uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    z->n_next = z->phase_first = first;
    z->n_limit = limit;
    z->n_unended = limit - first;
    z->phase_began_ns = now_ns;
    z->last_arrival_ns = 0;
    z->idle_at_ns = now_ns;
    if (w->load->arrivals != ARRIVALS_CLOSED)
        return plan_arrival(w, err);
    enum status status = STATUS_OK;
    for (int i = 0; status == STATUS_OK && i < w->load->workload->concurrency; i++)
        if (z->n_next < z->n_limit)
            status = arrive(w, now_ns, err);
    return status == STATUS_OK ? wake(w, now_ns, err) : status;
}

enum status simulate_rank0_arrival(struct simulate_world *w, uint64_t now_ns, struct err *err)
{
    enum status status = arrive(w, now_ns, err);
    if (status == STATUS_OK)
        status = plan_arrival(w, err);
    return status == STATUS_OK ? wake(w, now_ns, err) : status;
}

uint32_t simulate_rank0_exit_loop(void *world, uint64_t sequence, uint32_t position)
{
    const struct simulate_world *w = world;
    const struct simulate_rank0 *z = &w->rank0;
    const struct simulate_request *r = z->requests[z->by_sequence[sequence]];
    if (r == NULL || r->exits == NULL)
        return 0;
    uint32_t i =
        position + 1 - r->drawn.n_prompt; /* the live row at p decides the token at p + 1 */
    return i < r->drawn.n_output ? r->exits[i] : 0;
}

/* ---- the scheduler's actions ---------------------------------------------------------------- */

static enum status send_control(struct simulate_world *w, const struct scheduler_action *a,
                                enum control_kind kind, uint64_t n_bytes, uint64_t now_ns,
                                struct err *err)
{
    struct simulate_message *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message");
    m->kind = kind;
    m->sequence = a->sequence;
    m->n_bytes = n_bytes;
    m->params = a->params; /* in the scheduler's table until all have closed the sequence */
    return simulate_post(w, 0, a->worker + 1, m, now_ns, err);
}

static enum status send_prompt(struct simulate_world *w, const struct scheduler_action *a,
                               const struct simulate_request *r, uint64_t now_ns, struct err *err)
{
    uint32_t n = r->drawn.n_prompt;
    struct simulate_message *m = malloc(sizeof *m + sizeof *m->frames + n * sizeof *r->ids);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a prompt of %" PRIu32 " tokens", n);
    *m = (struct simulate_message){.n_frames = 1};
    m->frames = (struct frame *)(m + 1);
    int32_t *ids = (int32_t *)(m->frames + 1);
    memcpy(ids, r->ids, n * sizeof *ids);
    m->frames[0] = (struct frame){.sequence = a->sequence,
                                  .loop = 1,
                                  .n_rows = n,
                                  .flags = FRAME_LIVE,
                                  .survival = 1.0f,
                                  .ids = ids,
                                  .sent_ns = now_ns};
    m->n_bytes =
        bundle_header_bytes() + frame_bytes(1, n, FRAME_LIVE, (uint32_t)w->config.model.d_model);
    return simulate_post(w, 0, a->worker + 1, m, now_ns, err);
}

static enum status carry_out(struct simulate_world *w, const struct scheduler_action *a,
                             uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    struct simulate_request *r = find(z, a->request);
    switch (a->kind) {
    case SCHEDULER_SEND_OPEN:
        if (r->sequence == 0) {
            r->sequence = a->sequence;
            r->opened_ns = now_ns;
            z->by_sequence[a->sequence] = r->index;
            z->n_open_sequences++;
        }
        return send_control(w, a, CONTROL_OPEN, w->sizes.open, now_ns, err);
    case SCHEDULER_SEND_START:
        r->started_ns = now_ns;
        r->first_worker = a->worker;
        return send_prompt(w, a, r, now_ns, err);
    case SCHEDULER_SEND_CLOSE:
        return send_control(w, a, CONTROL_CLOSE, w->sizes.close, now_ns, err);
    case SCHEDULER_DELIVER:
    case SCHEDULER_END: /* once all sends are out */
        break;
    }
    return STATUS_OK;
}

static enum status end_request(struct simulate_world *w, const struct scheduler_action *a,
                               uint64_t exited_ns, uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    struct simulate_request *r = find(z, a->request);
    if (a->reason == FINISH_ERROR)
        return err_set(err, a->failure, "request %" PRIu32 ": %s", r->index, a->message);
    r->has_ended = true;
    z->n_unended--;
    simulate_count_end(w, r, a->reason, exited_ns, now_ns);
    if (!scheduler_find_sequence(z->scheduler, r->sequence, NULL))
        forget(z, r);
    if (w->load->arrivals == ARRIVALS_CLOSED && z->n_next < z->n_limit)
        return arrive(w, now_ns, err);
    return STATUS_OK;
}

/* Gives the scheduler one event and carries out what follows: sends, then the token, then ends.
 * exited_ns: when the token's batch was over. */
static enum status apply(struct simulate_world *w, struct scheduler_event *event,
                         uint64_t exited_ns, uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    const struct scheduler_action *actions;
    size_t n_actions;
    event->now_ns = now_ns;
    enum status status = scheduler_step(z->scheduler, event, &actions, &n_actions, err);
    const struct scheduler_action *deliver = NULL;
    struct scheduler_action end = {0};
    for (size_t i = 0; status == STATUS_OK && i < n_actions; i++) {
        const struct scheduler_action *a = &actions[i];
        if (a->kind == SCHEDULER_DELIVER)
            deliver = a;
        else if (a->kind == SCHEDULER_END)
            end = *a; /* one event ends one request at most */
        status = carry_out(w, a, now_ns, err);
    }
    if (status != STATUS_OK)
        return status;
    if (n_actions > 0)
        z->is_full = false;
    struct simulate_request *r = deliver != NULL ? find(z, deliver->request) : NULL;
    if (r != NULL)
        simulate_count_token(w, r, event->token, now_ns);
    bool wants_cancel = r != NULL && r->n_tokens > r->drawn.cancel_at && !r->is_cancelling;
    if (end.kind == SCHEDULER_END)
        return end_request(w, &end, exited_ns, now_ns, err);
    if (!wants_cancel)
        return STATUS_OK;
    r->is_cancelling = true;
    struct scheduler_event cancel = {.kind = SCHEDULER_CANCEL, .request = r->index + 1};
    return apply(w, &cancel, now_ns, now_ns, err);
}

/* ---- what comes in -------------------------------------------------------------------------- */

/* Takes the request that has waited longest; a full queue leaves it where it is. */
static enum status submit_next(struct simulate_world *w, uint64_t *now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    struct simulate_request *r = z->waiting_first;
    uint64_t done_ns = *now_ns + simulate_ns(w->config.cost.coordinator_request_ns);
    r->submitted_ns = done_ns;
    struct scheduler_event event = {
        .kind = SCHEDULER_SUBMIT, .request = r->index + 1, .params = &r->drawn.params};
    enum status status = apply(w, &event, done_ns, done_ns, err);
    if (status == STATUS_FULL) {
        z->is_full = true;
        return STATUS_OK;
    }
    if (status != STATUS_OK)
        return err_wrap(err, "request %" PRIu32, r->index);
    z->waiting_first = r->next;
    *now_ns = done_ns;
    simulate_count_submit(w, r);
    if (r->drawn.cancel_at > 0)
        return STATUS_OK;
    r->is_cancelling = true;
    struct scheduler_event cancel = {.kind = SCHEDULER_CANCEL, .request = r->index + 1};
    return apply(w, &cancel, done_ns, done_ns, err);
}

/* Gives the scheduler a sequence's tokens in the order of their positions, as the coordinator. */
static enum status take_token(struct simulate_world *w, const struct control_token *token,
                              uint64_t exited_ns, uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    uint64_t sequence = token->sequence;
    uint32_t position, end;
    bool is_running = scheduler_next_token(z->scheduler, sequence, &position, &end);
    if (is_running && token->position > position && token->position < end)
        return token_order_hold(&z->early, token, err);
    struct scheduler_event event = {.kind = SCHEDULER_TOKEN, .token = token};
    enum status status = apply(w, &event, exited_ns, now_ns, err);
    struct control_token next;
    while (status == STATUS_OK && z->early.n > 0 &&
           scheduler_next_token(z->scheduler, sequence, &position, &end) &&
           token_order_take(&z->early, sequence, position, &next)) {
        event.token = &next;
        status = apply(w, &event, exited_ns, now_ns, err);
    }
    if (z->early.n > 0 && !scheduler_next_token(z->scheduler, sequence, &position, &end))
        token_order_drop(&z->early, sequence);
    return status;
}

/* One sequence is gone from one worker; when it was the last one, its request can be forgotten. */
static enum status take_closed(struct simulate_world *w, const struct simulate_message *m,
                               uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    struct simulate_request *r = z->requests[z->by_sequence[m->sequence]];
    token_order_drop(&z->early, m->sequence);
    struct scheduler_event event = {
        .kind = SCHEDULER_CLOSED, .worker = m->source - 1, .sequence = m->sequence};
    enum status status = apply(w, &event, now_ns, now_ns, err);
    if (status != STATUS_OK || scheduler_find_sequence(z->scheduler, m->sequence, NULL))
        return status;
    z->n_open_sequences--;
    z->idle_at_ns = now_ns;
    forget(z, r);
    return STATUS_OK;
}

static enum status take_message(struct simulate_world *w, uint64_t *now_ns, struct err *err)
{
    struct simulate_message *m = simulate_take(&w->ranks[0]);
    uint64_t token_ns = simulate_ns(w->config.cost.coordinator_token_ns);
    enum status status = STATUS_OK;
    if (m->kind == CONTROL_OPENED) {
        struct scheduler_event event = {
            .kind = SCHEDULER_OPENED, .worker = m->source - 1, .sequence = m->sequence};
        status = apply(w, &event, *now_ns, *now_ns, err);
    } else if (m->kind == CONTROL_CLOSED) {
        status = take_closed(w, m, *now_ns, err);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < m->n_tokens; i++) {
        *now_ns += token_ns;
        status = take_token(w, &m->tokens[i], m->exited_ns, *now_ns, err);
    }
    free(m);
    return status;
}

enum status simulate_rank0_turn(struct simulate_world *w, uint64_t now_ns, struct err *err)
{
    struct simulate_rank0 *z = &w->rank0;
    for (;;) {
        enum status status;
        uint64_t began_ns = now_ns;
        if (z->waiting_first != NULL && !z->is_full) {
            status = submit_next(w, &now_ns, err);
        } else if (w->ranks[0].first != NULL) {
            status = take_message(w, &now_ns, err);
        } else {
            w->ranks[0].is_awake = false;
            return STATUS_OK;
        }
        w->result.rank0_busy_ns += now_ns - began_ns;
        bool must_return = false;
        if (status == STATUS_OK)
            status = simulate_yield(w, 0, now_ns, &must_return, err);
        if (status != STATUS_OK || must_return)
            return status;
    }
}

/* ---- life ----------------------------------------------------------------------------------- */

enum status simulate_rank0_create(struct simulate_world *w, uint32_t n_total, struct err *err)
{
    const struct simulate_config *c = &w->config;
    struct simulate_rank0 *z = &w->rank0;
    z->n_total = n_total;
    z->requests = calloc(n_total, sizeof(struct simulate_request *));
    z->by_sequence = calloc((size_t)n_total + 1, sizeof *z->by_sequence);
    uint32_t *n_blocks = calloc(c->n_workers, sizeof *n_blocks);
    if (z->requests == NULL || z->by_sequence == NULL || n_blocks == NULL) {
        free(n_blocks);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu32 " requests", n_total);
    }
    for (uint32_t i = 0; i < c->n_workers; i++)
        n_blocks[i] = c->n_blocks;
    const struct scheduler_config scheduler = {
        .n_workers = c->n_workers,
        .ring_size = w->ring_size,
        .n_loops = (uint32_t)c->model.n_loops,
        .max_positions = (uint32_t)c->model.max_positions,
        .block_size = c->block_size,
        .n_blocks = n_blocks,
        .max_queue = MAX_QUEUE,
        .max_running = c->max_sequences,
        .trace = w->ranks[0].trace,
    };
    enum status status = scheduler_create(&scheduler, &z->scheduler, err);
    free(n_blocks);
    return status;
}

void simulate_rank0_destroy(struct simulate_world *w)
{
    struct simulate_rank0 *z = &w->rank0;
    for (uint32_t i = 0; z->requests != NULL && i < z->n_total; i++)
        if (z->requests[i] != NULL)
            forget(z, z->requests[i]);
    scheduler_destroy(z->scheduler);
    token_order_free(&z->early);
    free(z->requests);
    free(z->by_sequence);
}
