/* Keeps every row of a sequence in one place and in the order of its positions: waiting for its
 * loop, or parked after it. */
#include "cluster/ring.h"
#include "worker/stage_state.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

static void queue_remove(struct stage *s, uint32_t index)
{
    struct stage_lane *lane = stage_lane_at(s, index);
    struct stage_lane_list *list = &s->queues[lane->queue];
    list->n--;
    if (lane->previous == CHAIN_NONE)
        list->head = lane->next;
    else
        stage_lane_at(s, lane->previous)->next = lane->next;
    if (lane->next == CHAIN_NONE)
        list->tail = lane->previous;
    else
        stage_lane_at(s, lane->next)->previous = lane->previous;
}

static void queue_append(struct stage *s, uint32_t index, enum stage_queue queue)
{
    struct stage_lane *lane = stage_lane_at(s, index);
    struct stage_lane_list *list = &s->queues[queue];
    list->n++;
    lane->previous = list->tail;
    lane->next = CHAIN_NONE;
    if (list->tail == CHAIN_NONE)
        list->head = index;
    else
        stage_lane_at(s, list->tail)->next = index;
    list->tail = index;
}

/* The one place where a lane changes its queue; to be called after any change of its pending rows.
 * A lane that stays in its queue keeps its place: it is as old as its oldest row. */
static void lane_requeue(struct stage *s, uint32_t index)
{
    struct stage_lane *lane = stage_lane_at(s, index);
    uint32_t chunk = s->config.prefill_chunk;
    enum stage_queue queue = QUEUE_NONE;
    if (lane->pending.n > 0)
        queue = lane->is_live_pending && lane->pending.n <= chunk ? QUEUE_LIVE : QUEUE_PROMPT;
    uint32_t n_ready = lane->pending.n < chunk ? lane->pending.n : chunk;
    s->n_ready += n_ready - lane->n_ready;
    lane->n_ready = n_ready;
    if (queue == lane->queue)
        return;
    if (lane->queue != QUEUE_NONE)
        queue_remove(s, index);
    if (queue != QUEUE_NONE)
        queue_append(s, index, queue);
    lane->queue = queue;
}

/* The position that the next row to arrive at this lane must have. */
static uint32_t lane_end(const struct stage_lane *lane)
{
    return lane->frontier + lane->n_running + lane->pending.n;
}

/* Whether rows [first, first + n) may arrive at `loop` now. */
static enum status arrival_check(struct stage *s, const struct stage_sequence *q, uint32_t loop,
                                 uint32_t first, uint32_t n, bool is_live, struct err *err)
{
    const struct sequence_params *p = &q->params;
    const struct stage_lane *lane = &q->lanes[loop - 1];
    uint32_t end = lane_end(lane);
    if (first != end)
        return err_set(err, STATUS_CORRUPT,
                       "%s frame: sequence %" PRIu64 " loop %" PRIu32 " starts at position %" PRIu32
                       ", expected %" PRIu32 " (frontier %" PRIu32 ")",
                       first < end ? "doubled" : "missing", p->sequence, loop, first, end,
                       lane->frontier);
    if (n == 0 || n > stage_sequence_limit(s, p) - first)
        return err_set(err, STATUS_CORRUPT,
                       "sequence %" PRIu64 " loop %" PRIu32 ": %" PRIu32
                       " rows from position %" PRIu32 ", its last position is %" PRIu32
                       " (frontier %" PRIu32 ")",
                       p->sequence, loop, n, first, stage_sequence_limit(s, p) - 1, lane->frontier);
    if (q->live_loop != 0 && (is_live || q->live_loop == loop))
        return err_set(err, STATUS_CORRUPT,
                       "sequence %" PRIu64 " loop %" PRIu32 " position %" PRIu32
                       ": rows arrive after its live row, which is at loop %" PRIu32
                       " (frontier %" PRIu32 ")",
                       p->sequence, loop, first, q->live_loop, lane->frontier);
    /* A row from the prompt's last on decides a token, and no other does; it may have done so and
     * go on beside rows that are wanted at all loops. */
    bool may_have_left = loop > 1 && stage_forward_is_eager(p, first, n);
    if (is_live != (first + n >= p->prompt_tokens) && (is_live || !may_have_left))
        return err_set(err, STATUS_CORRUPT,
                       "sequence %" PRIu64 " loop %" PRIu32 ": positions %" PRIu32 "..%" PRIu32
                       " %s, but the prompt has %" PRIu32 " tokens (frontier %" PRIu32 ")",
                       p->sequence, loop, first, first + n - 1,
                       is_live ? "are live" : "have no live row", p->prompt_tokens, lane->frontier);
    return STATUS_OK;
}

/* Notes that rows are about to join the lane which come from a batch of this round. */
static void lane_note_round(struct stage *s, struct stage_lane *lane, uint32_t round)
{
    if (lane->pending.n == 0 || stage_round_is_before(lane->round, round))
        lane->round = round;
    if (s->n_ready == 0 || stage_round_is_before(s->ready_round, lane->round))
        s->ready_round = lane->round;
}

/* The round a frame's rows come from. What is new in the ring, from the coordinator, joins the rows
 * of the round we are in: a prompt that arrives just before them would take a batch for itself. */
static uint32_t source_round(const struct stage *s, uint16_t source_rank)
{
    int mate = (int)source_rank - (int)s->config.rank + (int)s->config.ring_index;
    bool is_mate = source_rank > 0 && mate >= 0 && mate < (int)s->config.ring_size;
    return is_mate ? s->mate_rounds[mate] : s->round;
}

/* Marks the lane's last pending row as the live one, which has just arrived. */
static void lane_set_live(struct stage *s, struct stage_sequence *q, uint32_t loop,
                          const struct exit_state *exit, double hop_s)
{
    assert(q->live_loop == 0);
    q->live_loop = loop;
    q->live_since_ns = s->now_ns;
    q->timings[loop - 1] = (struct loop_timing){.hop_s = hop_s};
    q->lanes[loop - 1].is_live_pending = true;
    q->lanes[loop - 1].exit = *exit;
}

static enum status frame_corrupt(struct stage *s, struct stage_sequence *q, uint64_t sequence,
                                 const struct err *why, struct err *err)
{
    if (q != NULL)
        stage_sequence_fail(s, q, why->code, why->message);
    else
        stage_output_notice(s, CONTROL_FAILED, sequence, why->code, why->message);
    return err_set(err, why->code, "%s", why->message);
}

enum status stage_rows_receive(struct stage *s, const struct stage_event *event, struct err *err)
{
    const struct frame *f = event->frame;
    struct err why = {0};
    struct stage_sequence *q = stage_sequence_find(s, f->sequence);
    if (q == NULL && f->sequence > s->highest_opened) {
        err_set(&why, STATUS_CORRUPT,
                "sequence %" PRIu64 " loop %" PRIu32 " position %" PRIu32
                " was never opened here; the last one opened is %" PRIu64,
                f->sequence, f->loop, f->first_position, s->highest_opened);
        return frame_corrupt(s, NULL, f->sequence, &why, err);
    }
    if (q == NULL || q->state != SEQUENCE_OPEN) {
        s->counters.n_stale_frames++;
        return STATUS_OK;
    }
    bool is_live = (f->flags & FRAME_LIVE) != 0;
    /* In a ring of one, deeper rows never travel. */
    if (f->loop < 1 || f->loop > q->params.max_loops || !stage_serves(s, &q->params, f->loop) ||
        (f->loop > 1 && s->config.ring_size == 1)) {
        err_set(&why, STATUS_CORRUPT,
                "misrouted frame: sequence %" PRIu64 " (ring offset %" PRIu32 ", %" PRIu32
                " loops) loop %" PRIu32 " position %" PRIu32 " reached ring worker %" PRIu32
                " of %" PRIu32,
                f->sequence, q->params.ring_offset, q->params.max_loops, f->loop, f->first_position,
                s->config.ring_index, s->config.ring_size);
        return frame_corrupt(s, q, f->sequence, &why, err);
    }
    if (arrival_check(s, q, f->loop, f->first_position, f->n_rows, is_live, &why) != STATUS_OK)
        return frame_corrupt(s, q, f->sequence, &why, err);

    uint32_t index = stage_lane_index(s, q, f->loop);
    struct stage_lane *lane = stage_lane_at(s, index);
    struct chain rows;
    chain_init(&rows);
    if (!chain_take(&s->slots, &rows, f->n_rows)) {
        /* Not the peer's fault, and admission should prevent it: this sequence fails, others go on.
         */
        err_set(&why, STATUS_NO_MEMORY,
                "sequence %" PRIu64 " loop %" PRIu32 " position %" PRIu32 ": %" PRIu32
                " rows arrive, %" PRIu32 " of %" PRIu32 " row slots are free",
                f->sequence, f->loop, f->first_position, f->n_rows,
                s->slots.n_items - s->slots.n_used, s->slots.n_items);
        stage_sequence_fail(s, q, why.code, why.message);
        return STATUS_OK;
    }
    /* Two hosts' clocks: as a signed number, whichever of them is ahead. */
    int64_t hop_ns = (int64_t)(s->now_ns - f->sent_ns);
    uint32_t slot = rows.head;
    for (uint32_t i = 0; i < f->n_rows; i++) {
        s->slot_ids[slot] = frame_id(f, i);
        stage_trace_arrival(s, slot, event->source_rank, hop_ns);
        if (f->loop > 1)
            s->copy_slots[s->output.n_copy++] = (int32_t)slot;
        slot = s->slots.next[slot];
    }
    lane_note_round(s, lane, source_round(s, event->source_rank));
    chain_append(&s->slots, &lane->pending, &rows);
    if (is_live) {
        const struct exit_state exit = {.survival = f->survival, .cdf = f->cdf};
        memcpy(q->timings, f->timings, (f->loop - 1) * sizeof *f->timings);
        lane_set_live(s, q, f->loop, &exit, (double)hop_ns / 1e9);
    }
    lane_requeue(s, index);
    return STATUS_OK;
}

void stage_rows_requeue(struct stage *s, struct stage_sequence *q, uint32_t loop,
                        uint32_t first_position, struct chain *slots, int32_t id,
                        const struct exit_state *live)
{
    uint32_t index = stage_lane_index(s, q, loop);
    struct stage_lane *lane = stage_lane_at(s, index);
    assert(stage_serves(s, &q->params, loop) && (slots != NULL) == (loop > 1));
    struct chain fresh;
    chain_init(&fresh);
    if (slots == NULL) {
        if (!chain_take(&s->slots, &fresh, 1)) {
            stage_sequence_fail(s, q, STATUS_NO_MEMORY, "no row slot is free for its next token");
            return;
        }
        s->slot_ids[fresh.head] = id;
        slots = &fresh;
    }
    enum status st = arrival_check(s, q, loop, first_position, slots->n, live != NULL, NULL);
    assert(st == STATUS_OK); /* nothing gets lost inside */
    (void)st;
    uint32_t slot = slots->head;
    for (uint32_t i = 0; s->arrivals != NULL && i < slots->n; i++) {
        stage_trace_arrival(s, slot, s->config.rank, 0);
        slot = s->slots.next[slot];
    }
    lane_note_round(s, lane, stage_oldest_flight(s)->round); /* which has just ended */
    chain_append(&s->slots, &lane->pending, slots);
    if (live != NULL)
        lane_set_live(s, q, loop, live, 0.0); /* it has not left */
    lane_requeue(s, index);
}

void stage_rows_take(struct stage *s, uint32_t index, uint32_t n, int32_t *slots)
{
    struct stage_lane *lane = stage_lane_at(s, index);
    assert(n > 0 && n <= lane->n_ready);
    for (uint32_t i = 0; i < n; i++)
        slots[i] = (int32_t)chain_pop(&s->slots, &lane->pending);
    lane->n_running += n;
    if (lane->pending.n == 0)
        lane->is_live_pending = false; /* the segment carries it now; live_loop stays */
    lane_requeue(s, index);
}

void stage_rows_park(struct stage *s, struct stage_lane *lane, const int32_t *slots, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        chain_push(&s->slots, &lane->parked, (uint32_t)slots[i]);
    s->n_parked += n;
}

void stage_rows_free_parked(struct stage *s, struct stage_lane *lane)
{
    assert(s->n_parked >= lane->parked.n);
    s->n_parked -= lane->parked.n;
    chain_free(&s->slots, &lane->parked);
}

void stage_rows_free_all(struct stage *s, struct stage_sequence *q)
{
    for (uint32_t t = 1; t <= SEQUENCE_MAX_LOOPS; t++) {
        struct stage_lane *lane = &q->lanes[t - 1];
        stage_rows_free_parked(s, lane);
        chain_free(&s->slots, &lane->pending);
        lane->is_live_pending = false;
        lane_requeue(s, stage_lane_index(s, q, t));
    }
}
