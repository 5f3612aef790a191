/* Decides where the rows of a finished batch go: on to the next loop, parked, or off with a token.
 */
#include "cluster/ring.h"
#include "worker/stage_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

bool stage_forward_is_eager(const struct sequence_params *params, uint32_t first_position,
                            uint32_t n_rows)
{
    /* Targets are asked of all rows of the prompt: then those beside its last one, which may get
     * off, go on without it. */
    uint32_t end = first_position + (params->n_observe_targets > 0 ? 1 : n_rows + 1);
    return params->prefill == PREFILL_EAGER && end <= params->prompt_tokens;
}

bool stage_forward_is_end(const struct stage *s, const struct sequence_params *params,
                          uint32_t token_position)
{
    uint32_t n_generated = token_position - params->prompt_tokens + 1;
    return n_generated >= params->max_tokens || token_position >= s->config.max_positions;
}

static bool is_stop_id(const struct sequence_params *p, uint32_t token_position, int32_t id)
{
    if (token_position - p->prompt_tokens < p->min_tokens)
        return false; /* the sampler masks it there */
    return sequence_is_stop_id(p->stop_ids, p->n_stop_ids, id);
}

/* The one place where a frontier moves: F(t) never passes F(t-1), as far as this worker knows both.
 */
static void lane_advance(struct stage *s, struct stage_sequence *q, uint32_t loop, uint32_t n)
{
    struct stage_lane *lane = &q->lanes[loop - 1];
    assert(n > 0 && n <= lane->n_running);
    lane->frontier += n;
    lane->n_running -= n;
    assert(loop == 1 || !stage_serves(s, &q->params, loop - 1) ||
           lane->frontier <= q->lanes[loop - 2].frontier);
    (void)s;
}

/* Sends all rows parked at `loop` on to the next one; live is the live row's state when the last of
 * them is live. */
static void go_deeper(struct stage *s, struct stage_sequence *q, uint32_t loop,
                      const struct exit_state *live)
{
    struct stage_lane *lane = &q->lanes[loop - 1];
    const struct sequence_params *p = &q->params;
    uint32_t n = lane->parked.n;
    uint32_t first = lane->frontier - n;
    uint32_t mate = (uint32_t)ring_worker((int)s->config.ring_size, p->ring_offset, loop + 1);
    if (live != NULL)
        q->live_loop = 0;
    if (mate == s->config.ring_index) {
        s->n_parked -= n;
        stage_rows_requeue(s, q, loop + 1, first, &lane->parked, -1, live);
        return;
    }
    struct frame head = {.sequence = p->sequence,
                         .loop = loop + 1,
                         .first_position = first,
                         .n_rows = n,
                         .flags = live != NULL ? FRAME_LIVE : 0,
                         .survival = live != NULL ? live->survival : 1.0f,
                         .cdf = live != NULL ? live->cdf : 0.0f,
                         .sent_ns = s->now_ns};
    if (live != NULL)
        memcpy(head.timings, q->timings, loop * sizeof *q->timings);
    stage_output_frame(s, mate, &head);
    uint32_t slot = lane->parked.head;
    for (uint32_t i = 0; i < n; i++) {
        stage_output_row(s, (int32_t)slot, s->slot_ids[slot]);
        slot = s->slots.next[slot];
    }
    stage_rows_free_parked(s, lane);
}

/* Feeds a token back into loop 1. */
static void start_next(struct stage *s, struct stage_sequence *q, uint32_t position, int32_t id)
{
    const struct sequence_params *p = &q->params;
    uint32_t mate = (uint32_t)ring_worker((int)s->config.ring_size, p->ring_offset, 1);
    const struct exit_state fresh = {.survival = 1.0f, .cdf = 0.0f};
    if (mate == s->config.ring_index) {
        stage_rows_requeue(s, q, 1, position, NULL, id, &fresh);
        return;
    }
    struct frame head = {.sequence = p->sequence,
                         .loop = 1,
                         .first_position = position,
                         .n_rows = 1,
                         .flags = FRAME_LIVE,
                         .survival = fresh.survival,
                         .cdf = fresh.cdf,
                         .sent_ns = s->now_ns};
    stage_output_frame(s, mate, &head);
    stage_output_row(s, -1, id); /* loop 1 embeds the id: no hidden state travels */
}

static void get_off(struct stage *s, struct stage_sequence *q, uint32_t loop, uint32_t position,
                    const struct batch_outcome *outcome)
{
    const struct sequence_params *p = &q->params;
    struct control_token token = outcome->token;
    token.sequence = p->sequence;
    token.position = position + 1;
    token.exit_loop = loop;
    token.cdf = outcome->exit.cdf;
    memcpy(token.timings, q->timings, loop * sizeof *q->timings);
    token.is_last =
        stage_forward_is_end(s, p, token.position) || is_stop_id(p, token.position, token.id);
    stage_output_token(s, &token);
    q->live_loop = 0;
    if (!token.is_last)
        start_next(s, q, token.position, token.id);
}

/* The live row's batch has ended. */
static void note_batch_time(struct stage *s, struct stage_sequence *q, uint32_t loop,
                            uint64_t began_ns)
{
    struct loop_timing *t = &q->timings[loop - 1];
    assert(q->live_since_ns <= began_ns && began_ns <= s->now_ns);
    t->wait_s = (float)((double)(began_ns - q->live_since_ns) / 1e9);
    t->compute_s = (float)((double)(s->now_ns - began_ns) / 1e9);
}

/* Sends the segment's rows where they belong, and says what became of them. */
static struct stage_departure send_off(struct stage *s, struct stage_sequence *q,
                                       const struct stage_flight *flight, uint32_t i,
                                       const struct batch_outcome *outcome)
{
    const struct kernels_segment *geometry = &flight->batch.geometry[i];
    uint32_t n = (uint32_t)geometry->n_rows, first = (uint32_t)geometry->first_position;
    uint32_t last = first + n - 1;
    uint32_t loop = flight->batch.segments[i].loop;
    struct stage_lane *lane = &q->lanes[loop - 1];
    bool has_live = flight->batch.segments[i].has_live;
    struct stage_departure departure = {.is_exit = false};

    uint32_t n_parked_before = lane->parked.n;
    stage_rows_park(s, lane, flight->batch.slots + geometry->first_row, n);
    if (q->state != SEQUENCE_OPEN) {
        stage_rows_free_all(s, q);
        return departure;
    }
    if (outcome->failure != STATUS_OK) {
        char message[sizeof s->output.notices->message];
        snprintf(message, sizeof message,
                 "sequence %" PRIu64 " loop %" PRIu32 " positions %" PRIu32 "..%" PRIu32
                 ": the model gave non-finite values (%s)",
                 q->params.sequence, loop, first, last, status_name(outcome->failure));
        stage_sequence_fail(s, q, outcome->failure, message);
        return departure;
    }
    departure.is_exit = has_live && outcome->is_exit;
    if (loop == q->params.max_loops) {
        /* Nothing is deeper: the hidden states have done their work. */
        stage_rows_free_parked(s, lane);
        assert(!has_live || outcome->is_exit);
    } else if ((has_live && !outcome->is_exit) || stage_forward_is_eager(&q->params, first, n)) {
        departure.n_revived = n_parked_before;
        go_deeper(s, q, loop, has_live && !outcome->is_exit ? &outcome->exit : NULL);
    } else {
        departure.n_parked = n;
    }
    if (departure.is_exit)
        get_off(s, q, loop, last, outcome);
    return departure;
}

static void finish_segment(struct stage *s, const struct stage_flight *flight, uint32_t i,
                           const struct batch_outcome *outcome)
{
    const struct batch_segment *segment = &flight->batch.segments[i];
    const struct kernels_segment *geometry = &flight->batch.geometry[i];
    struct stage_sequence *q = stage_lane_sequence(s, flight->lanes[i]);
    /* Read now: rows that stay arrive anew at their next loop, in the same slots. */
    struct stage_arrival oldest = {0};
    if (s->arrivals != NULL)
        oldest = s->arrivals[flight->batch.slots[geometry->first_row]];

    lane_advance(s, q, segment->loop, (uint32_t)geometry->n_rows);
    if (segment->has_live)
        note_batch_time(s, q, segment->loop, flight->began_ns);
    struct stage_departure departure = send_off(s, q, flight, i, outcome);
    s->counters.n_parked += departure.n_parked;
    s->counters.n_revived += departure.n_revived;
    if (s->config.trace != NULL)
        stage_trace_segment(s, flight, i, &oldest, &departure);
    stage_sequence_segment_done(s, q);
}

void stage_forward_results(struct stage *s, const struct batch_result *result)
{
    assert(s->n_running > 0);
    const struct stage_flight *flight = stage_oldest_flight(s);
    assert(result->n_segments == flight->batch.n_segments);
    stage_trace_batch(s, flight, result);
    for (uint32_t i = 0; i < flight->batch.n_segments; i++)
        finish_segment(s, flight, i, &result->outcomes[i]);
    s->counters.n_heads += result->n_heads;
    stage_batch_retire(s);
    stage_trace_pool(s);
}
