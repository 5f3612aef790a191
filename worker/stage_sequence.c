/* Opens, fails and closes sequences so that nothing of a closed one stays behind. */
#include "cluster/ring.h"
#include "worker/stage_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* docs/scheduler.md shows this table. */
static const bool may_become[SEQUENCE_STATES][SEQUENCE_STATES] = {
    [SEQUENCE_FREE] = {[SEQUENCE_OPEN] = true},
    [SEQUENCE_OPEN] = {[SEQUENCE_FAILED] = true, [SEQUENCE_CLOSING] = true},
    [SEQUENCE_FAILED] = {[SEQUENCE_CLOSING] = true},
    [SEQUENCE_CLOSING] = {[SEQUENCE_FREE] = true},
};

static void set_state(struct stage_sequence *q, enum stage_sequence_state state)
{
    assert(may_become[q->state][state]);
    q->state = state;
}

void stage_sequences_init(struct stage *s)
{
    s->free_sequence = CHAIN_NONE; /* entries never used follow by number, untouched till then */
    for (uint32_t i = 0; i < s->n_buckets; i++)
        s->buckets[i] = CHAIN_NONE;
}

/* Ids ascend, so their low bits spread evenly. */
static uint32_t *bucket_of(const struct stage *s, uint64_t id)
{
    return &s->buckets[id & (s->n_buckets - 1)];
}

struct stage_sequence *stage_sequence_find(const struct stage *s, uint64_t id)
{
    for (uint32_t i = *bucket_of(s, id); i != CHAIN_NONE; i = s->sequences[i].next) {
        if (s->sequences[i].params.sequence == id)
            return &s->sequences[i];
    }
    return NULL;
}

bool stage_serves(const struct stage *s, const struct sequence_params *params, uint32_t loop)
{
    return ring_worker((int)s->config.ring_size, params->ring_offset, loop) ==
           (int)s->config.ring_index;
}

uint32_t stage_sequence_limit(const struct stage *s, const struct sequence_params *params)
{
    /* The last token is never fed back. */
    uint64_t limit = (uint64_t)params->prompt_tokens + params->max_tokens - 1;
    return limit < s->config.max_positions ? (uint32_t)limit : s->config.max_positions;
}

/* STATUS_OK, or why the sequence cannot be opened here. */
static enum status open_check(const struct stage *s, const struct sequence_params *p,
                              struct err *err)
{
    const struct stage_config *c = &s->config;
    if (p->sequence <= s->highest_opened)
        return err_set(err, STATUS_INVALID,
                       "sequence %" PRIu64 " cannot be opened after %" PRIu64 ": ids ascend",
                       p->sequence, s->highest_opened);
    if (s->n_sequences == c->max_sequences)
        return err_set(err, STATUS_FULL, "all %" PRIu32 " places for sequences are taken",
                       c->max_sequences);
    if (p->max_loops < 1 || p->max_loops > c->n_loops || p->min_loops > p->max_loops)
        return err_set(err, STATUS_INVALID,
                       "max_loops %" PRIu32 " with min_loops %" PRIu32 "; the model has %" PRIu32
                       " loops",
                       p->max_loops, p->min_loops, c->n_loops);
    if (p->prompt_tokens < 1 || p->prompt_tokens > c->max_positions || p->max_tokens < 1)
        return err_set(err, STATUS_INVALID,
                       "prompt_tokens %" PRIu32 " and max_tokens %" PRIu32
                       "; both start at 1 and the model has %" PRIu32 " positions",
                       p->prompt_tokens, p->max_tokens, c->max_positions);
    if (p->n_stop_ids > SEQUENCE_MAX_STOP_IDS || p->n_force_exits > SEQUENCE_MAX_LOOPS)
        return err_set(err, STATUS_INVALID,
                       "%" PRIu32 " stop ids and %" PRIu32 " forced exits; at most %d and %d",
                       p->n_stop_ids, p->n_force_exits, SEQUENCE_MAX_STOP_IDS, SEQUENCE_MAX_LOOPS);
    uint32_t limit = stage_sequence_limit(s, p);
    uint64_t n_loops = (uint64_t)ring_loops_on((int)c->ring_size, p->ring_offset, p->max_loops,
                                               (int)c->ring_index);
    uint64_t n_blocks = n_loops * kv_blocks_needed(limit, c->block_size);
    if (n_blocks > c->n_blocks)
        return err_set(err, STATUS_NO_MEMORY,
                       "%" PRIu32 " positions at %" PRIu64 " loops need %" PRIu64
                       " KV blocks; this worker has %" PRIu32 ": raise --kv-memory",
                       limit, n_loops, n_blocks, c->n_blocks);
    return STATUS_OK;
}

void stage_sequence_open(struct stage *s, const struct sequence_params *params,
                         const int32_t *targets)
{
    struct err why = {0};
    if (open_check(s, params, &why) != STATUS_OK) {
        stage_output_notice(s, CONTROL_OPENED, params->sequence, why.code, why.message);
        return;
    }
    bool is_fresh = s->free_sequence == CHAIN_NONE;
    struct stage_sequence *q =
        &s->sequences[is_fresh ? s->n_touched_sequences++ : s->free_sequence];
    if (!is_fresh)
        s->free_sequence = q->next;
    s->n_sequences++;
    s->highest_opened = params->sequence;
    set_state(q, SEQUENCE_OPEN);
    q->params = *params;
    q->targets = targets;
    q->live_loop = 0;
    q->n_running_segments = 0;
    for (int i = 0; i < SEQUENCE_MAX_LOOPS; i++) {
        struct stage_lane *lane = &q->lanes[i];
        *lane = (struct stage_lane){.queue = QUEUE_NONE};
        chain_init(&lane->pending);
        chain_init(&lane->parked);
        chain_init(&lane->blocks);
    }
    uint32_t *bucket = bucket_of(s, params->sequence);
    q->next = *bucket;
    *bucket = (uint32_t)(q - s->sequences);
    stage_output_notice(s, CONTROL_OPENED, params->sequence, STATUS_OK, "");
}

/* Frees the rows and blocks of a dead sequence; a closing one leaves the table, too. Nothing
 * happens while rows of it are in the running batch, which reads its blocks, its slots and its
 * params. */
static void release_dead(struct stage *s, struct stage_sequence *q)
{
    assert(q->state == SEQUENCE_FAILED || q->state == SEQUENCE_CLOSING);
    if (q->n_running_segments > 0)
        return;
    stage_rows_free_all(s, q);
    for (int i = 0; i < SEQUENCE_MAX_LOOPS; i++)
        chain_free(&s->kv.pool, &q->lanes[i].blocks);
    if (q->state != SEQUENCE_CLOSING)
        return;
    set_state(q, SEQUENCE_FREE);
    uint32_t index = (uint32_t)(q - s->sequences);
    uint32_t *link = bucket_of(s, q->params.sequence);
    while (*link != index)
        link = &s->sequences[*link].next;
    *link = q->next;
    q->next = s->free_sequence;
    s->free_sequence = index;
    s->n_sequences--;
    stage_output_notice(s, CONTROL_CLOSED, q->params.sequence, STATUS_OK, "");
}

void stage_sequence_close(struct stage *s, uint64_t id)
{
    struct stage_sequence *q = stage_sequence_find(s, id);
    if (q == NULL) {
        stage_output_notice(s, CONTROL_CLOSED, id, STATUS_OK, "");
        return;
    }
    if (q->state == SEQUENCE_CLOSING)
        return; /* one notice, when it is freed, answers both */
    set_state(q, SEQUENCE_CLOSING);
    stage_rows_free_all(s,
                        q); /* waiting rows leave their queues now, so that no batch takes them */
    release_dead(s, q);
}

void stage_sequence_fail(struct stage *s, struct stage_sequence *q, enum status failure,
                         const char *message)
{
    if (q->state != SEQUENCE_OPEN)
        return;
    set_state(q, SEQUENCE_FAILED);
    stage_rows_free_all(s, q);
    stage_output_notice(s, CONTROL_FAILED, q->params.sequence, failure, message);
    release_dead(s, q);
}

void stage_sequence_segment_done(struct stage *s, struct stage_sequence *q)
{
    assert(q->n_running_segments > 0);
    q->n_running_segments--;
    if (q->state != SEQUENCE_OPEN)
        release_dead(s, q);
}
