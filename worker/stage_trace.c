/* Records what the stage did and when, by its events' times: batches, their segments, the pool,
 * idle time. */
#include "worker/stage_state.h"

#include <string.h>

static uint16_t at_most_u16(uint32_t n)
{
    return n < UINT16_MAX ? (uint16_t)n : UINT16_MAX;
}

void stage_trace_arrival(struct stage *s, uint32_t slot, uint16_t source, int64_t hop_ns)
{
    if (s->arrivals != NULL)
        s->arrivals[slot] = (struct stage_arrival){s->now_ns, hop_ns, source};
}

void stage_trace_batch(struct stage *s, const struct stage_flight *flight,
                       const struct batch_result *result)
{
    if (s->config.trace == NULL)
        return;
    const struct batch *b = &flight->batch;
    uint32_t rows_by_loop[SEQUENCE_MAX_LOOPS] = {0};
    for (uint32_t i = 0; i < b->n_segments; i++)
        rows_by_loop[b->segments[i].loop - 1] += (uint32_t)b->geometry[i].n_rows;
    struct trace_record *r = trace_add(s->config.trace, TRACE_BATCH, flight->began_ns);
    r->lasted_ns = s->now_ns - flight->began_ns;
    r->n_rows = b->n_rows;
    for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
        r->batch.rows_by_loop[t] = at_most_u16(rows_by_loop[t]);
    r->batch.head_ns = result->head_ns < UINT32_MAX ? (uint32_t)result->head_ns : UINT32_MAX;
    r->batch.n_heads = at_most_u16(result->n_heads);
    r->batch.n_segments = at_most_u16(b->n_segments);
}

void stage_trace_segment(struct stage *s, const struct stage_flight *flight, uint32_t i,
                         const struct stage_arrival *oldest,
                         const struct stage_departure *departure)
{
    const struct batch_segment *segment = &flight->batch.segments[i];
    const struct kernels_segment *geometry = &flight->batch.geometry[i];
    struct trace_record *r = trace_add(s->config.trace, TRACE_ROWS, flight->began_ns);
    r->lasted_ns = s->now_ns - flight->began_ns;
    r->sequence = segment->sequence;
    r->position = (uint32_t)geometry->first_position;
    r->n_rows = (uint32_t)geometry->n_rows;
    r->loop = (uint8_t)segment->loop;
    r->flags =
        (uint16_t)((segment->has_live ? TRACE_LIVE : 0) | (departure->is_exit ? TRACE_EXIT : 0));
    r->peer = oldest->source;
    r->rows.hop_ns = oldest->hop_ns;
    r->rows.wait_ns = flight->began_ns - oldest->at_ns;
    r->rows.n_parked = departure->n_parked;
    r->rows.n_revived = departure->n_revived;
}

void stage_trace_pool(struct stage *s)
{
    if (s->config.trace == NULL)
        return;
    struct trace_record *r = trace_add(s->config.trace, TRACE_POOL, s->now_ns);
    r->pool.kv_blocks_used = s->kv.pool.n_used;
    r->pool.kv_blocks_total = s->kv.pool.n_items;
    r->pool.parked_rows = s->n_parked;
    r->pool.ready_rows = s->n_ready;
    r->pool.n_sequences = s->n_sequences;
}

/* The open idle span ends here. */
static void end_idle(struct stage *s, uint64_t now_ns)
{
    const bool is_starved = s->idle == STAGE_STARVED;
    if ((!is_starved && s->idle != STAGE_HELD) || now_ns <= s->idle_since_ns)
        return;
    struct trace_record *r = trace_add(s->config.trace, TRACE_IDLE, s->idle_since_ns);
    r->lasted_ns = now_ns - s->idle_since_ns;
    r->flags = is_starved ? TRACE_IDLE_STARVED : TRACE_IDLE_PEER;
}

void stage_trace_idle(struct stage *s)
{
    if (s->config.trace == NULL)
        return;
    enum stage_idle idle = s->n_running > 0  ? STAGE_BUSY
                           : s->n_ready == 0 ? STAGE_STARVED
                           : s->is_held      ? STAGE_HELD
                                             : STAGE_GATHERING;
    if (idle == s->idle)
        return;
    end_idle(s, s->now_ns);
    /* The first rows that are held back have waited since they came. */
    s->idle_since_ns = idle == STAGE_HELD ? s->waiting_since_ns : s->now_ns;
    s->idle = idle;
}

void stage_flush_idle(struct stage *s, uint64_t now_ns)
{
    if (s->config.trace == NULL)
        return;
    end_idle(s, now_ns);
    if (now_ns > s->idle_since_ns)
        s->idle_since_ns = now_ns;
}
