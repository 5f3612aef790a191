/* Turns one event into what is to be done, on memory taken once. */
#include "worker/stage.h"

#include "worker/stage_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static enum status config_check(const struct stage_config *c, struct err *err)
{
    const struct {
        const char *name;
        uint32_t value, low, high;
    } ranges[] = {
        {"ring_size", c->ring_size, 1, INT32_MAX},
        {"ring_index", c->ring_index, 0, c->ring_size - 1},
        {"n_loops", c->n_loops, 1, SEQUENCE_MAX_LOOPS},
        {"max_positions", c->max_positions, 1, INT32_MAX},
        {"n_blocks", c->n_blocks, 1, INT32_MAX},
        {"block_size", c->block_size, 1, INT32_MAX},
        {"n_slots", c->n_slots, 1, INT32_MAX},
        {"max_sequences", c->max_sequences, 1, INT32_MAX / SEQUENCE_MAX_LOOPS},
        {"max_batch_rows", c->max_batch_rows, 1, INT32_MAX},
        {"prefill_chunk", c->prefill_chunk, 1, UINT32_MAX},
        {"n_in_flight", c->n_in_flight, 0, STAGE_MAX_IN_FLIGHT},
        {"batching", (uint32_t)c->batching, BATCHING_GREEDY, BATCHING_ROUND},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        if (ranges[i].value < ranges[i].low || ranges[i].value > ranges[i].high)
            return err_set(err, STATUS_INVALID,
                           "stage: %s is %" PRIu32 "; allowed is %" PRIu32 "..%" PRIu32,
                           ranges[i].name, ranges[i].value, ranges[i].low, ranges[i].high);
    }
    return STATUS_OK;
}

/* A power of two with at least twice as many buckets as sequences keeps the lists short. */
static uint32_t bucket_count(uint32_t max_sequences)
{
    uint32_t n = 2;
    while (n < 2 * max_sequences)
        n *= 2;
    return n;
}

enum status stage_create(const struct stage_config *config, struct stage **out, struct err *err)
{
    enum status st = config_check(config, err);
    if (st != STATUS_OK)
        return st;
    struct stage plan = {.config = *config, .n_buckets = bucket_count(config->max_sequences)};
    struct stage_config *c = &plan.config;
    if (c->prefill_chunk > c->max_batch_rows)
        c->prefill_chunk = c->max_batch_rows;
    if (c->n_in_flight == 0)
        c->n_in_flight = 1;

    size_t n_bytes = stage_memory_place(&plan, NULL);
    unsigned char *memory = n_bytes == SIZE_MAX ? NULL : calloc(1, n_bytes);
    if (memory == NULL)
        return err_set(err, STATUS_NO_MEMORY,
                       "stage: no memory for the tables of %" PRIu32 " KV blocks of %" PRIu32
                       " positions, %" PRIu32 " row slots and %" PRIu32
                       " sequences: lower --kv-memory or the number of sequences",
                       c->n_blocks, c->block_size, c->n_slots, c->max_sequences);
    struct stage *s = (struct stage *)memory;
    *s = plan;
    stage_memory_place(s, memory);
    chain_pool_init(&s->slots, s->slots.next, c->n_slots);
    kv_blocks_init(&s->kv, s->kv.pool.next, s->kv.ids, c->n_blocks, c->block_size);
    for (uint32_t i = 0; i < c->n_in_flight; i++) {
        s->flights[i].batch.pool_ids = s->kv.ids;
        s->flights[i].batch.block_size = (int32_t)c->block_size;
    }
    for (int i = 0; i < QUEUE_COUNT; i++)
        s->queues[i] = (struct stage_lane_list){.head = CHAIN_NONE, .tail = CHAIN_NONE};
    stage_sequences_init(s);
    *out = s;
    return STATUS_OK;
}

void stage_destroy(struct stage *s)
{
    free(s); /* everything lies behind it */
}

static void note_mate(struct stage *s, uint32_t mate, uint32_t flags, uint32_t round)
{
    assert(mate < s->config.ring_size && mate != s->config.ring_index);
    enum stage_mate *state = &s->mates[mate];
    /* DONE before BUSY: that is the sender's order. */
    if (flags & BUNDLE_DONE) {
        s->n_awaited_mates -= *state == MATE_AWAITED;
        *state = MATE_IDLE;
    }
    if (flags & BUNDLE_BUSY)
        s->mate_rounds[mate] = round;
    if ((flags & BUNDLE_BUSY) && *state == MATE_IDLE)
        *state = MATE_BUSY;
}

enum status stage_step(struct stage *s, const struct stage_event *event,
                       const struct stage_output **out, struct err *err)
{
    enum status st = STATUS_OK;
    s->now_ns = event->now_ns;
    stage_output_reset(s);
    switch (event->kind) {
    case STAGE_OPEN:
        stage_sequence_open(s, event->params, event->targets);
        break;
    case STAGE_CLOSE:
        stage_sequence_close(s, event->sequence);
        break;
    case STAGE_FRAME:
        st = stage_rows_receive(s, event, err);
        break;
    case STAGE_MATE:
        note_mate(s, event->mate, event->mate_flags, event->mate_round);
        break;
    case STAGE_BATCH_DONE:
        stage_forward_results(s, event->result);
        break;
    case STAGE_COST:
        s->config.batch_ns = event->batch_ns;
        s->config.row_ns = event->row_ns;
        break;
    case STAGE_TIME:
        break;
    }
    stage_batch_consider(s, event);
    stage_trace_idle(s);
    stage_output_finish(s);
    *out = &s->output;
    return st;
}

void stage_fill_stats(const struct stage *s, struct control_stats *stats)
{
    const struct stage_counters *c = &s->counters;
    stats->kv_blocks_used = s->kv.pool.n_used;
    stats->kv_blocks_total = s->kv.pool.n_items;
    stats->parked_rows = s->n_parked;
    stats->row_slots_used = s->slots.n_used;
    stats->row_slots_total = s->slots.n_items;
    stats->n_sequences = s->n_sequences;
    stats->n_batches = c->n_batches;
    stats->n_rows = c->n_rows;
    stats->n_heads = c->n_heads;
    stats->n_stale_frames = c->n_stale_frames;
    stats->batch_ns = s->config.batch_ns;
    stats->row_ns = s->config.row_ns;
    stats->n_parked_total = c->n_parked;
    stats->n_revived_total = c->n_revived;
    memcpy(stats->rows_by_loop, c->rows_by_loop, sizeof stats->rows_by_loop);
}

void stage_reset_counters(struct stage *s)
{
    s->counters = (struct stage_counters){0};
}

bool stage_frontiers(const struct stage *s, uint64_t sequence, uint32_t *frontiers)
{
    const struct stage_sequence *q = stage_sequence_find(s, sequence);
    if (q == NULL)
        return false;
    for (uint32_t t = 1; t <= s->config.n_loops; t++)
        frontiers[t - 1] = q->lanes[t - 1].frontier;
    return true;
}
