/* One simulated worker: the driver's loop of worker/worker.c around a real stage, with costs in the
 * place of clocks. */
#include "cli/simulate_parts.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static struct simulate_rank *rank_of(struct simulate_world *w, const struct simulate_worker *k)
{
    return &w->ranks[k->number + 1];
}

static void note_activity(struct simulate_worker *k, uint64_t now_ns)
{
    if (now_ns > k->activity_since_ns)
        k->activity_ns[k->activity] += now_ns - k->activity_since_ns;
    k->activity_since_ns = now_ns;
    k->activity = k->n_running > 0     ? SIMULATE_COMPUTING
                  : k->wake_at_ns != 0 ? SIMULATE_WAITING
                                       : SIMULATE_STARVED;
}

/* ---- output --------------------------------------------------------------------------------- */

/* The driver packs a message and posts it: its time, then the link's. */
static enum status send(struct simulate_world *w, struct simulate_worker *k, uint32_t to,
                        struct simulate_message *m, uint64_t *now_ns, struct err *err)
{
    const struct cost_model *cost = &w->config.cost;
    uint64_t lasts_ns =
        simulate_ns(cost->worker_message_ns + cost->worker_row_ns * m->n_hidden_rows);
    struct simulate_rank *rank = rank_of(w, k);
    if (rank->trace != NULL) {
        struct trace_record *r = trace_add(rank->trace, TRACE_SEND, *now_ns);
        r->lasted_ns = lasts_ns;
        r->peer = (uint16_t)to;
        r->message.n_bytes = m->n_bytes;
        r->message.n_frames = m->n_frames;
    }
    *now_ns += lasts_ns;
    return simulate_post(w, k->number + 1, to, m, *now_ns, err);
}

static enum status send_notices(struct simulate_world *w, struct simulate_worker *k,
                                const struct stage_output *out, uint64_t exited_ns,
                                uint64_t *now_ns, struct err *err)
{
    for (uint32_t i = 0; i < out->n_notices; i++) {
        const struct stage_notice *notice = &out->notices[i];
        if (notice->failure != STATUS_OK)
            return err_set(err, notice->failure, "rank %u: %s", k->number + 1, notice->message);
        struct simulate_message *m = calloc(1, sizeof *m);
        if (m == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a message");
        m->kind = notice->kind;
        m->sequence = notice->sequence;
        m->n_bytes = w->sizes.notice;
        enum status status = send(w, k, 0, m, now_ns, err);
        if (status != STATUS_OK)
            return status;
    }
    if (out->n_tokens == 0)
        return STATUS_OK;
    size_t tokens_bytes = out->n_tokens * sizeof *out->tokens;
    struct simulate_message *m = malloc(sizeof *m + tokens_bytes);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message");
    *m = (struct simulate_message){.kind = CONTROL_TOKENS, .n_bytes = w->sizes.tokens_head};
    m->exited_ns = exited_ns;
    m->n_tokens = out->n_tokens;
    m->tokens = (struct control_token *)(m + 1);
    memcpy(m->tokens, out->tokens, tokens_bytes);
    for (uint32_t i = 0; i < m->n_tokens; i++)
        m->n_bytes += w->sizes.token[m->tokens[i].exit_loop];
    return send(w, k, 0, m, now_ns, err);
}

static enum status send_bundle(struct simulate_world *w, struct simulate_worker *k,
                               const struct stage_output *out, const struct stage_send *send_,
                               uint64_t *now_ns, struct err *err)
{
    const struct stage_frame *frames = out->frames + send_->first_frame;
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < send_->n_frames; i++)
        n_rows += frames[i].head.n_rows;
    struct simulate_message *m =
        malloc(sizeof *m + send_->n_frames * sizeof *m->frames + n_rows * sizeof(int32_t));
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a message of %u rows", n_rows);
    *m = (struct simulate_message){
        .flags = send_->flags, .round = send_->round, .n_frames = send_->n_frames};
    m->n_bytes = bundle_header_bytes();
    m->frames = (struct frame *)(m + 1);
    int32_t *ids = (int32_t *)(m->frames + send_->n_frames);
    for (uint32_t i = 0; i < send_->n_frames; i++) {
        const struct frame *head = &frames[i].head;
        m->frames[i] = *head;
        m->frames[i].ids = ids;
        memcpy(ids, out->ids + frames[i].first, head->n_rows * sizeof *ids);
        ids += head->n_rows;
        m->n_hidden_rows += head->loop > 1 ? head->n_rows : 0;
        m->n_bytes +=
            frame_bytes(head->loop, head->n_rows, head->flags, (uint32_t)w->config.model.d_model);
    }
    return send(w, k, k->ring_first_rank + send_->mate, m, now_ns, err);
}

static enum status begin_batch(struct simulate_world *w, struct simulate_worker *k,
                               const struct batch *batch, uint64_t *now_ns, struct err *err)
{
    const uint32_t most = w->config.n_in_flight > 1 ? w->config.n_in_flight : 1;
    assert(k->n_running < most);
    struct simulate_flight *f = &k->flights[(k->oldest + k->n_running++) % STAGE_MAX_IN_FLIGHT];
    f->batch = batch;
    note_activity(k, *now_ns);
    timed_run(&k->timed, batch, &f->result);
    /* It computes when the one before has; the hand-over is between the batches only where the
     * second is not there yet when the first ends. */
    if (k->ended_ns < *now_ns)
        k->ended_ns = *now_ns;
    k->ended_ns += f->result.compute_ns;
    uint64_t done_ns = k->ended_ns + simulate_ns(w->config.cost.batch_overhead_ns);
    if (most > 1 || k->cost.batch_ns + k->cost.row_ns * batch->n_rows >= COST_INLINE_BATCH_NS)
        return event_queue_push(&w->queue, done_ns, SIMULATE_BATCH, k->number + 1, NULL, err);
    k->n_done++;
    *now_ns = done_ns; /* the driver did nothing else meanwhile */
    return STATUS_OK;
}

/* One event to the stage, and all that follows from it, in the order of worker_step. */
static enum status step(struct simulate_world *w, struct simulate_worker *k,
                        const struct stage_event *event, uint64_t *now_ns, struct err *err)
{
    const struct stage_output *out;
    enum status status = stage_step(k->stage, event, &out, err);
    if (status != STATUS_OK)
        return err_wrap(err, "rank %u", k->number + 1);
    const uint64_t exited_ns = *now_ns;
    const bool is_start_first = out->start != NULL && w->config.n_in_flight > 1;
    if (!is_start_first)
        status = send_notices(w, k, out, exited_ns, now_ns, err);
    for (uint32_t i = 0; status == STATUS_OK && i < out->n_sends; i++)
        status = send_bundle(w, k, out, &out->sends[i], now_ns, err);
    k->wake_at_ns = out->wake_at_ns;
    if (status == STATUS_OK && out->start != NULL)
        status = begin_batch(w, k, out->start, now_ns, err);
    if (status == STATUS_OK && is_start_first)
        status = send_notices(w, k, out, exited_ns, now_ns, err);
    return status;
}

/* ---- input ---------------------------------------------------------------------------------- */

static enum status take_bundle(struct simulate_world *w, struct simulate_worker *k,
                               const struct simulate_message *m, uint64_t *now_ns, struct err *err)
{
    struct stage_event mate = {.kind = STAGE_MATE, .now_ns = *now_ns};
    mate.mate = m->source - k->ring_first_rank;
    enum status status = STATUS_OK;
    if (m->flags & BUNDLE_DONE) {
        mate.mate_flags = BUNDLE_DONE;
        status = step(w, k, &mate, now_ns, err);
    }
    for (uint32_t i = 0; status == STATUS_OK && i < m->n_frames; i++) {
        struct stage_event event = {.kind = STAGE_FRAME, .now_ns = *now_ns, .frame = &m->frames[i]};
        event.source_rank = (uint16_t)m->source;
        status = step(w, k, &event, now_ns, err);
    }
    if (status == STATUS_OK && (m->flags & BUNDLE_BUSY)) {
        mate.mate_flags = BUNDLE_BUSY;
        mate.mate_round = m->round;
        status = step(w, k, &mate, now_ns, err);
    }
    return status;
}

static enum status take_message(struct simulate_world *w, struct simulate_worker *k,
                                uint64_t *now_ns, struct err *err)
{
    const struct cost_model *cost = &w->config.cost;
    struct simulate_rank *rank = rank_of(w, k);
    struct simulate_message *m = simulate_take(rank);
    uint64_t lasts_ns =
        simulate_ns(cost->worker_message_ns + cost->worker_row_ns * m->n_hidden_rows);
    if (rank->trace != NULL) {
        struct trace_record *r = trace_add(rank->trace, TRACE_RECEIVE, *now_ns);
        r->lasted_ns = lasts_ns;
        r->peer = (uint16_t)m->source;
        r->message.n_bytes = m->n_bytes;
        r->message.n_frames = m->n_frames;
    }
    *now_ns += lasts_ns;
    struct stage_event event = {.now_ns = *now_ns};
    enum status status;
    if (m->kind == CONTROL_OPEN) {
        event.kind = STAGE_OPEN;
        event.params = m->params;
        status = step(w, k, &event, now_ns, err);
    } else if (m->kind == CONTROL_CLOSE) {
        event.kind = STAGE_CLOSE;
        event.sequence = m->sequence;
        status = step(w, k, &event, now_ns, err);
    } else {
        status = take_bundle(w, k, m, now_ns, err);
    }
    free(m);
    return status;
}

static enum status take_result(struct simulate_world *w, struct simulate_worker *k,
                               uint64_t *now_ns, struct err *err)
{
    struct simulate_flight *f = &k->flights[k->oldest];
    cost_update(&k->cost, f->batch->n_rows, f->result.compute_ns);
    k->n_heads += f->result.n_heads;
    k->oldest = (k->oldest + 1) % STAGE_MAX_IN_FLIGHT;
    k->n_running--;
    k->n_done--;
    note_activity(k, *now_ns);
    struct stage_event cost = {.kind = STAGE_COST,
                               .now_ns = *now_ns,
                               .batch_ns = (uint64_t)k->cost.batch_ns,
                               .row_ns = (uint64_t)k->cost.row_ns};
    enum status status = step(w, k, &cost, now_ns, err);
    if (status != STATUS_OK)
        return status;
    struct stage_event done = {.kind = STAGE_BATCH_DONE, .now_ns = *now_ns, .result = &f->result};
    return step(w, k, &done, now_ns, err);
}

/* Nothing is left to do: the next event wakes it, or its own timer. */
static enum status sleep_now(struct simulate_world *w, struct simulate_worker *k, struct err *err)
{
    rank_of(w, k)->is_awake = false;
    if (k->wake_at_ns == 0 || k->wake_at_ns == UINT64_MAX || k->wake_at_ns == k->timer_ns)
        return STATUS_OK;
    k->timer_ns = k->wake_at_ns;
    return event_queue_push(&w->queue, k->wake_at_ns, SIMULATE_WAKE, k->number + 1, NULL, err);
}

enum status simulate_worker_turn(struct simulate_world *w, struct simulate_worker *k,
                                 uint64_t now_ns, struct err *err)
{
    for (;;) {
        enum status status;
        if (rank_of(w, k)->first != NULL) {
            k->did_work = true;
            status = take_message(w, k, &now_ns, err);
        } else if (k->n_done > 0) {
            k->did_work = false; /* the stage hears the time with the result */
            status = take_result(w, k, &now_ns, err);
        } else if (k->did_work || (k->wake_at_ns != 0 && now_ns >= k->wake_at_ns)) {
            k->did_work = false;
            struct stage_event time = {.kind = STAGE_TIME, .now_ns = now_ns};
            status = step(w, k, &time, &now_ns, err);
        } else {
            return sleep_now(w, k, err);
        }
        bool must_return = false;
        if (status == STATUS_OK) {
            note_activity(k, now_ns);
            status = simulate_yield(w, k->number + 1, now_ns, &must_return, err);
        }
        if (status != STATUS_OK || must_return)
            return status;
    }
}

/* ---- life ----------------------------------------------------------------------------------- */

enum status simulate_worker_create(struct simulate_world *w, struct simulate_worker *k,
                                   struct err *err)
{
    const struct simulate_config *c = &w->config;
    k->number = (uint32_t)(k - w->workers);
    k->ring_index = k->number % w->ring_size;
    k->ring_first_rank = 1 + k->number - k->ring_index;
    uint64_t batch_ns, row_ns;
    cost_model_knee(&c->cost, &batch_ns, &row_ns);
    cost_init(&k->cost, batch_ns, row_ns);
    k->timed = (struct timed){
        .cost = &c->cost,
        .vocab_size = (uint32_t)c->model.vocab_size,
        .exit_loop = w->load->exits != NULL ? simulate_rank0_exit_loop : NULL,
        .user = w,
        .jitter_seed = c->jitter_seed + k->number + 1,
    };
    for (uint32_t i = 0; i < STAGE_MAX_IN_FLIGHT; i++) {
        struct batch_outcome *outcomes = calloc(c->max_batch_rows, sizeof *outcomes);
        if (outcomes == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %u batch outcomes",
                           c->max_batch_rows);
        k->flights[i].result.outcomes = outcomes;
    }
    const struct stage_config stage = {
        .ring_size = w->ring_size,
        .ring_index = k->ring_index,
        .n_loops = (uint32_t)c->model.n_loops,
        .max_positions = (uint32_t)c->model.max_positions,
        .n_blocks = c->n_blocks,
        .block_size = c->block_size,
        .n_slots = c->n_slots,
        .max_sequences = c->max_sequences,
        .max_batch_rows = c->max_batch_rows,
        .prefill_chunk = c->prefill_chunk,
        .n_in_flight = c->n_in_flight,
        .batching = c->batching,
        .wait_deadline_ns = c->wait_deadline_ns,
        .batch_ns = batch_ns,
        .row_ns = row_ns,
        .rank = (uint16_t)(k->number + 1),
        .trace = rank_of(w, k)->trace,
    };
    return stage_create(&stage, &k->stage, err);
}

void simulate_worker_destroy(struct simulate_worker *k)
{
    stage_destroy(k->stage);
    for (uint32_t i = 0; i < STAGE_MAX_IN_FLIGHT; i++)
        free(k->flights[i].result.outcomes);
}

void simulate_worker_reset(struct simulate_worker *k, uint64_t now_ns)
{
    stage_reset_counters(k->stage);
    memset(k->activity_ns, 0, sizeof k->activity_ns);
    k->activity_since_ns = now_ns;
    k->n_heads = 0;
}

void simulate_worker_stats(struct simulate_world *w, struct simulate_worker *k, uint64_t began_ns,
                           uint64_t ended_ns, struct control_stats *out)
{
    const struct simulate_rank *rank = rank_of(w, k);
    *out = (struct control_stats){0};
    if (k->activity_since_ns < ended_ns)
        note_activity(k, ended_ns);
    stage_fill_stats(k->stage, out);
    out->n_heads = k->n_heads;
    out->n_messages_sent = rank->n_messages_sent;
    out->n_bytes_sent = rank->n_bytes_sent;
    out->busy_ns = k->activity_ns[SIMULATE_COMPUTING];
    out->idle_starved_ns = k->activity_ns[SIMULATE_STARVED];
    out->idle_waiting_ns = k->activity_ns[SIMULATE_WAITING];
    out->elapsed_ns = ended_ns - began_ns;
    out->clock_ns = ended_ns;
}
