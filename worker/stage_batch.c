/* Forms one batch out of the rows that wait: live rows first, then prompt rows, each oldest first,
 * within the row budget. */
#include "cluster/ring.h"
#include "worker/stage_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>

/* Appends up to `budget` rows of the lane as a segment. False when the KV pool has no block for
 * them: then the sequence has failed. */
static bool take_segment(struct stage *s, struct stage_flight *flight, uint32_t index,
                         uint32_t budget, uint32_t *n_table)
{
    struct stage_sequence *q = stage_lane_sequence(s, index);
    struct stage_lane *lane = stage_lane_at(s, index);
    struct batch *b = &flight->batch;
    uint32_t loop = stage_lane_loop(index);
    uint32_t n = lane->n_ready < budget ? lane->n_ready : budget;
    uint32_t first = lane->frontier + lane->n_running;
    uint32_t end = first + n;
    if (!kv_blocks_cover(&s->kv, &lane->blocks, end)) {
        char message[sizeof s->output.notices->message];
        snprintf(message, sizeof message,
                 "sequence %" PRIu64 " loop %" PRIu32 " position %" PRIu32 ": all %" PRIu32
                 " KV blocks are in use",
                 q->params.sequence, loop, first, s->kv.pool.n_items);
        stage_sequence_fail(s, q, STATUS_NO_MEMORY, message);
        return false;
    }
    bool has_live = lane->is_live_pending && n == lane->pending.n;
    uint32_t n_blocks = kv_blocks_needed(end, s->kv.block_size);
    int32_t *table = b->block_table + *n_table;
    kv_blocks_list(&s->kv, &lane->blocks, n_blocks, table);
    b->segments[b->n_segments] =
        (struct batch_segment){.sequence = q->params.sequence,
                               .params = &q->params,
                               .loop = loop,
                               .has_live = has_live,
                               .exit = has_live ? lane->exit : (struct exit_state){1.0f, 0.0f},
                               .targets = q->targets};
    b->geometry[b->n_segments] = (struct kernels_segment){.first_row = (int32_t)b->n_rows,
                                                          .n_rows = (int32_t)n,
                                                          .first_position = (int32_t)first,
                                                          .first_block = (int32_t)*n_table,
                                                          .n_blocks = (int32_t)n_blocks};
    flight->lanes[b->n_segments++] = index;
    lane->batch = s->n_formed;
    stage_rows_take(s, index, n, b->slots + b->n_rows);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t row = b->n_rows + i;
        int32_t id = s->slot_ids[b->slots[row]];
        b->ids[row] = loop == 1 ? id : -1;
        kv_blocks_set_id(&s->kv, table, first + i, id);
    }
    b->n_rows += n;
    *n_table += n_blocks;
    q->n_running_segments++;
    s->counters.rows_by_loop[loop - 1] += n;
    return true;
}

/* How many of the waiting live rows' lanes a batch takes. Rows that once are in one batch would
 * stay together where all take the same way: large batches, for which the other workers wait, up to
 * one with all rows that goes round alone. So a worker that has gathered clearly more than its
 * share of the ring's sequences takes its share, and the rest joins the batch behind. */
static uint32_t live_share(const struct stage *s)
{
    uint32_t n_waiting = s->queues[QUEUE_LIVE].n, ring_size = s->config.ring_size;
    if (s->config.batching != BATCHING_ROUND || ring_size == 1)
        return n_waiting;
    uint32_t share = (s->n_sequences + ring_size - 1) / ring_size;
    return n_waiting > share + share / 4 + 1 ? share : n_waiting;
}

static void form_batch(struct stage *s, struct stage_flight *flight)
{
    struct batch *b = &flight->batch;
    s->n_formed++;
    b->n_rows = b->n_segments = 0;
    uint32_t n_table = 0;
    for (int queue = QUEUE_LIVE; queue <= QUEUE_PROMPT; queue++) {
        uint32_t index = s->queues[queue].head;
        uint32_t most = queue == QUEUE_LIVE ? live_share(s) : UINT32_MAX;
        while (index != CHAIN_NONE && b->n_rows < s->config.max_batch_rows &&
               b->n_segments < most) {
            /* Taking a segment may move this lane to another queue, but no other lane. */
            uint32_t next = stage_lane_at(s, index)->next;
            /* A lane has one segment a batch: the rest of a split one goes into the next. */
            bool is_taken = stage_lane_at(s, index)->batch == s->n_formed;
            if (!is_taken &&
                !take_segment(s, flight, index, s->config.max_batch_rows - b->n_rows, &n_table))
                next = s->queues[queue].head; /* the failed sequence took other lanes along */
            index = next;
        }
    }
}

/* The round of the batch just formed. What it leaves waiting comes behind it: left at the number it
 * came with, every other worker would wait for it again and again. */
static void find_rounds(struct stage *s, struct stage_flight *flight)
{
    for (uint32_t i = 0; i < flight->batch.n_segments; i++) {
        uint32_t round = stage_lane_at(s, flight->lanes[i])->round + 1;
        if (i == 0 || stage_round_is_before(s->round, round))
            s->round = round;
    }
    flight->round = s->round;
    s->ready_round = s->round;
    for (int queue = QUEUE_LIVE; queue <= QUEUE_PROMPT && s->n_ready > 0; queue++) {
        for (uint32_t index = s->queues[queue].head; index != CHAIN_NONE;
             index = stage_lane_at(s, index)->next)
            stage_lane_at(s, index)->round = s->round;
    }
}

/* Tells a mate that a batch which may feed it is under way, so that it can wait for it. A mate
 * hears of one batch at a time: of a younger one when the older has ended. */
static void announce(struct stage *s, const struct stage_flight *flight, uint32_t mate)
{
    if (!flight->may_feed[mate] || s->is_announced[mate])
        return;
    s->is_announced[mate] = true;
    stage_output_flag(s, mate, BUNDLE_BUSY, flight->round);
}

/* Finds where rows of the batch may go: to which mates, and whether live ones come back. */
static void find_fed(struct stage *s, struct stage_flight *flight)
{
    const int ring_size = (int)s->config.ring_size, own = (int)s->config.ring_index;
    for (int m = 0; m < ring_size; m++)
        flight->may_feed[m] = false;
    flight->is_live_back = false;
    for (uint32_t i = 0; i < flight->batch.n_segments; i++) {
        const struct batch_segment *segment = &flight->batch.segments[i];
        const struct kernels_segment *geometry = &flight->batch.geometry[i];
        const struct sequence_params *p = segment->params;
        uint32_t first = (uint32_t)geometry->first_position, n = (uint32_t)geometry->n_rows;
        uint32_t last = first + n - 1;
        int feeds[2], n_feeds = 0;
        if (segment->loop < p->max_loops &&
            (segment->has_live || stage_forward_is_eager(p, first, n)))
            feeds[n_feeds++] = ring_worker(ring_size, p->ring_offset, segment->loop + 1);
        if (segment->has_live && exit_rule_may_exit(p, segment->loop, last) &&
            !stage_forward_is_end(s, p, last + 1))
            feeds[n_feeds++] = ring_worker(ring_size, p->ring_offset, 1);
        for (int j = 0; j < n_feeds; j++) {
            if (feeds[j] != own)
                flight->may_feed[feeds[j]] = true;
            else if (segment->has_live && ring_size == 1)
                flight->is_live_back = true;
        }
    }
}

void stage_batch_retire(struct stage *s)
{
    const struct stage_flight *flight = stage_oldest_flight(s);
    s->oldest = (s->oldest + 1) % s->config.n_in_flight;
    s->n_running--;
    const bool is_another = s->n_running > 0;
    if (is_another)
        stage_oldest_flight(s)->began_ns = s->now_ns;
    if (s->config.batching == BATCHING_GREEDY)
        return;
    for (uint32_t m = 0; m < s->config.ring_size; m++) {
        if (!flight->may_feed[m])
            continue;
        stage_output_flag(s, m, BUNDLE_DONE, 0);
        s->is_announced[m] = false;
        if (is_another)
            announce(s, stage_oldest_flight(s), m);
    }
}

static void begin_wait(struct stage *s, uint64_t now_ns)
{
    s->is_waiting = true;
    s->is_held = false;
    s->waiting_since_ns = now_ns;
    for (uint32_t m = 0; m < s->config.ring_size; m++) {
        if (s->mates[m] == MATE_BUSY) {
            s->mates[m] = MATE_AWAITED;
            s->n_awaited_mates++;
        }
    }
}

static void end_wait(struct stage *s)
{
    s->is_waiting = s->is_held = false;
    for (uint32_t m = 0; m < s->config.ring_size; m++) {
        if (s->mates[m] == MATE_AWAITED)
            s->mates[m] = MATE_BUSY;
    }
    s->n_awaited_mates = 0;
}

/* Mates that compute now and are waited for. */
static uint32_t count_busy(const struct stage *s)
{
    if (s->n_sequences <= 1)
        return 0; /* a single stream has nobody to wait for */
    if (s->config.batching != BATCHING_ROUND)
        return s->n_awaited_mates;
    uint32_t n = 0;
    for (uint32_t m = 0; m < s->config.ring_size; m++)
        n += s->mates[m] != MATE_IDLE &&
             stage_round_is_before(s->mate_rounds[m], s->ready_round + 1);
    return n;
}

/* Rows that a batch formed now would take, the budget aside. */
static uint32_t count_takeable(struct stage *s)
{
    uint32_t n = s->n_ready, share = live_share(s), i = 0;
    if (share == s->queues[QUEUE_LIVE].n)
        return n;
    for (uint32_t index = s->queues[QUEUE_LIVE].head; index != CHAIN_NONE; i++) {
        const struct stage_lane *lane = stage_lane_at(s, index);
        n -= i >= share ? lane->n_ready : 0;
        index = lane->next;
    }
    return n;
}

/* Whether live rows of a running batch come back. */
static bool is_live_back(const struct stage *s)
{
    bool is_back = false;
    for (uint32_t i = 0; i < s->n_running; i++)
        is_back = is_back || s->flights[(s->oldest + i) % s->config.n_in_flight].is_live_back;
    return is_back;
}

/* Whether the batching rule lets a batch start now; if not, *again_ns says how long until it is to
 * be asked again at the latest, 0: at the next event. */
static bool may_start(struct stage *s, uint64_t now_ns, uint64_t *again_ns)
{
    /* While a batch of our own runs it is one more that is waited for, and the wait proper has not
     * begun: what starts now would run no sooner than when that one has ended, and by then its rows
     * and others may have come. */
    const bool is_behind = s->n_running > 0;
    *again_ns = 0;
    if (is_behind && s->config.batching != BATCHING_GREEDY && is_live_back(s))
        return false;
    struct knee_input in = {.batching = s->config.batching,
                            .n_ready = is_behind ? count_takeable(s) : s->n_ready,
                            .max_rows = s->config.max_batch_rows,
                            .batch_ns = s->config.batch_ns,
                            .row_ns = s->config.row_ns,
                            .n_busy_mates = is_behind ? 1 : count_busy(s),
                            .waited_ns = is_behind ? 0 : now_ns - s->waiting_since_ns,
                            .deadline_ns = s->config.wait_deadline_ns};
    if (knee_should_start(&in, again_ns))
        return true;
    if (is_behind)
        *again_ns = 0;
    return false;
}

void stage_batch_consider(struct stage *s, const struct stage_event *event)
{
    if (s->is_waiting && s->n_ready == 0)
        end_wait(s);
    if (s->n_running == s->config.n_in_flight || s->n_ready == 0)
        return;
    if (s->n_running == 0 && !s->is_waiting)
        begin_wait(s, event->now_ns);
    /* What has arrived together shall go into one batch: the driver gives all of it, then the
     * time. */
    const uint64_t at_once_ns = event->now_ns > 0 ? event->now_ns : 1;
    if (event->kind != STAGE_TIME && event->kind != STAGE_BATCH_DONE) {
        s->output.wake_at_ns = at_once_ns;
        return;
    }
    uint64_t again_ns;
    if (!may_start(s, event->now_ns, &again_ns)) {
        s->is_held = s->is_waiting;
        if (again_ns > 0 && __builtin_add_overflow(event->now_ns, again_ns, &s->output.wake_at_ns))
            s->output.wake_at_ns = UINT64_MAX;
        return;
    }
    end_wait(s);
    struct stage_flight *flight = stage_next_flight(s);
    form_batch(s, flight);
    if (flight->batch.n_segments == 0)
        return; /* every sequence that waited has failed for lack of blocks */
    find_rounds(s, flight);
    flight->began_ns = s->now_ns;
    s->n_running++;
    s->output.start = &flight->batch;
    s->counters.n_batches++;
    s->counters.n_rows += flight->batch.n_rows;
    find_fed(s, flight);
    for (uint32_t m = 0; m < s->config.ring_size && s->config.batching != BATCHING_GREEDY; m++)
        announce(s, flight, m);
    if (s->n_running < s->config.n_in_flight && s->n_ready > 0)
        s->output.wake_at_ns = at_once_ns; /* one step starts one batch: ask for the next */
}
