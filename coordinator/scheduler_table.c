/* Keeps the scheduler's entries: one pool, two indexes, one queue, one function that changes a
 * state. */
#include "coordinator/scheduler_state.h"

#include "cluster/ring.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void scheduler_set_state(struct scheduler *s, uint32_t at, enum entry_state to, uint64_t now_ns)
{
    static const bool allowed[ENTRY_N_STATES][ENTRY_N_STATES] = {
        [ENTRY_FREE] = {[ENTRY_QUEUED] = true},
        [ENTRY_QUEUED] = {[ENTRY_OPENING] = true, [ENTRY_FREE] = true},
        [ENTRY_OPENING] = {[ENTRY_RUNNING] = true, [ENTRY_CLOSING] = true},
        [ENTRY_RUNNING] = {[ENTRY_CLOSING] = true},
        [ENTRY_CLOSING] = {[ENTRY_FREE] = true},
    };
    struct entry *e = &s->entries[at];
    assert(allowed[e->state][to]);
    scheduler_trace_leave(s, e, now_ns);
    s->n_in_state[e->state]--;
    s->n_in_state[to]++;
    e->state = to;
    e->since_ns = now_ns;
    e->n_acks = 0;
}

/* ---- indexes -------------------------------------------------------------------------------- */

/* Multiplying by 2^64 / golden ratio spreads ids that ascend by one over the buckets. */
static uint32_t *bucket(const struct scheduler *s, uint32_t *table, uint64_t id)
{
    return &table[(uint32_t)((id * 0x9E3779B97F4A7C15u) >> 32) & (s->n_buckets - 1)];
}

uint32_t scheduler_find_request(const struct scheduler *s, uint64_t request)
{
    uint32_t at = *bucket(s, s->by_request, request);
    while (at != SCHEDULER_NONE && s->entries[at].request != request)
        at = s->entries[at].request_next;
    return at;
}

uint32_t scheduler_find_entry(const struct scheduler *s, uint64_t sequence)
{
    uint32_t at = *bucket(s, s->by_sequence, sequence);
    while (at != SCHEDULER_NONE && s->entries[at].params.sequence != sequence)
        at = s->entries[at].sequence_next;
    return at;
}

void scheduler_link_request(struct scheduler *s, uint32_t at)
{
    uint32_t *head = bucket(s, s->by_request, s->entries[at].request);
    s->entries[at].request_next = *head;
    *head = at;
}

void scheduler_unlink_request(struct scheduler *s, uint32_t at)
{
    uint32_t *link = bucket(s, s->by_request, s->entries[at].request);
    while (*link != at)
        link = &s->entries[*link].request_next;
    *link = s->entries[at].request_next;
}

void scheduler_link_sequence(struct scheduler *s, uint32_t at)
{
    uint32_t *head = bucket(s, s->by_sequence, s->entries[at].params.sequence);
    s->entries[at].sequence_next = *head;
    *head = at;
}

void scheduler_unlink_sequence(struct scheduler *s, uint32_t at)
{
    uint32_t *link = bucket(s, s->by_sequence, s->entries[at].params.sequence);
    while (*link != at)
        link = &s->entries[*link].sequence_next;
    *link = s->entries[at].sequence_next;
}

/* ---- pool and queue ------------------------------------------------------------------------- */

uint32_t scheduler_take_entry(struct scheduler *s)
{
    uint32_t at = s->free_first;
    if (at == SCHEDULER_NONE) {
        assert(s->n_touched < s->n_entries); /* the queue's bound and max_running add up to it */
        return s->n_touched++;
    }
    s->free_first = s->entries[at].queue_next;
    return at;
}

void scheduler_give_entry(struct scheduler *s, uint32_t at)
{
    s->entries[at].queue_next = s->free_first;
    s->free_first = at;
}

void scheduler_queue_push(struct scheduler *s, uint32_t at)
{
    s->entries[at].queue_next = SCHEDULER_NONE;
    s->entries[at].queue_prev = s->queue_last;
    if (s->queue_last == SCHEDULER_NONE)
        s->queue_first = at;
    else
        s->entries[s->queue_last].queue_next = at;
    s->queue_last = at;
}

void scheduler_queue_remove(struct scheduler *s, uint32_t at)
{
    uint32_t next = s->entries[at].queue_next, prev = s->entries[at].queue_prev;
    if (prev == SCHEDULER_NONE)
        s->queue_first = next;
    else
        s->entries[prev].queue_next = next;
    if (next == SCHEDULER_NONE)
        s->queue_last = prev;
    else
        s->entries[next].queue_prev = prev;
}

uint8_t *scheduler_acks(const struct scheduler *s, uint32_t at)
{
    return s->acks + (size_t)at * s->config.ring_size;
}

struct scheduler_action *scheduler_emit(struct scheduler *s, enum scheduler_action_kind kind)
{
    assert(s->n_actions < s->cap_actions);
    struct scheduler_action *action = &s->actions[s->n_actions++];
    memset(action, 0, sizeof *action);
    action->kind = kind;
    return action;
}

/* ---- life ----------------------------------------------------------------------------------- */

static enum status check_config(const struct scheduler_config *c, struct err *err)
{
    if (c->n_workers == 0 || c->n_workers > INT32_MAX || c->ring_size > c->n_workers ||
        !ring_size_is_valid((int)c->n_workers, (int)c->ring_size))
        return err_set(err, STATUS_INVALID,
                       "a ring of %u workers does not divide a cluster of %u: choose a divisor",
                       c->ring_size, c->n_workers);
    if (c->n_loops == 0 || c->n_loops > SEQUENCE_MAX_LOOPS)
        return err_set(err, STATUS_INVALID, "n_loops is %u; allowed is 1..%d", c->n_loops,
                       SEQUENCE_MAX_LOOPS);
    if (c->max_positions == 0 || c->block_size == 0 || c->max_queue == 0 || c->max_running == 0)
        return err_set(err, STATUS_INVALID,
                       "max_positions %u, block_size %u, max_queue %u and max_running %u must all "
                       "be at least 1",
                       c->max_positions, c->block_size, c->max_queue, c->max_running);
    /* Entries are counted in 32 bits with one value kept for "none". */
    uint64_t n_rings = c->n_workers / c->ring_size;
    if (n_rings * c->max_running + c->max_queue > INT32_MAX)
        return err_set(err, STATUS_INVALID,
                       "max_queue %u and max_running %u on %u rings are more than %d requests",
                       c->max_queue, c->max_running, (uint32_t)n_rings, INT32_MAX);
    return STATUS_OK;
}

enum status scheduler_create(const struct scheduler_config *config, struct scheduler **out,
                             struct err *err)
{
    enum status st = check_config(config, err);
    if (st != STATUS_OK)
        return st;
    struct scheduler *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the scheduler");
    s->config = *config;
    s->n_rings = config->n_workers / config->ring_size;
    s->n_entries = config->max_queue + s->n_rings * config->max_running;
    s->n_buckets = 16;
    while (s->n_buckets < s->n_entries && s->n_buckets < 1u << 30)
        s->n_buckets *= 2;
    /* One event can close a sequence and, by that, admit as many as may be open in all. */
    s->cap_actions = (size_t)config->n_workers * config->max_running + config->ring_size + 2;

    s->entries = calloc(s->n_entries, sizeof *s->entries);
    s->acks = calloc(s->n_entries, config->ring_size);
    s->n_blocks = calloc(config->n_workers, sizeof *s->n_blocks);
    s->reserved = calloc(config->n_workers, sizeof *s->reserved);
    s->starts = calloc(config->n_workers, sizeof *s->starts);
    s->ring_open = calloc(s->n_rings, sizeof *s->ring_open);
    s->by_request = calloc(s->n_buckets, sizeof *s->by_request);
    s->by_sequence = calloc(s->n_buckets, sizeof *s->by_sequence);
    s->actions = calloc(s->cap_actions, sizeof *s->actions);
    if (!s->entries || !s->acks || !s->n_blocks || !s->reserved || !s->starts || !s->ring_open ||
        !s->by_request || !s->by_sequence || !s->actions) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory for %u requests on %u workers", s->n_entries,
                     config->n_workers);
        scheduler_destroy(s);
        return st;
    }
    memcpy(s->n_blocks, config->n_blocks, config->n_workers * sizeof *s->n_blocks);
    s->config.n_blocks = s->n_blocks;
    memset(s->by_request, 0xff, s->n_buckets * sizeof *s->by_request);
    memset(s->by_sequence, 0xff, s->n_buckets * sizeof *s->by_sequence);
    s->queue_first = s->queue_last = s->free_first = SCHEDULER_NONE;
    s->n_in_state[ENTRY_FREE] = s->n_entries;
    *out = s;
    return STATUS_OK;
}

void scheduler_destroy(struct scheduler *s)
{
    if (s == NULL)
        return;
    free(s->entries);
    free(s->acks);
    free(s->n_blocks);
    free(s->reserved);
    free(s->starts);
    free(s->ring_open);
    free(s->by_request);
    free(s->by_sequence);
    free(s->actions);
    free(s);
}

/* ---- questions ------------------------------------------------------------------------------ */

void scheduler_get_load(const struct scheduler *s, struct scheduler_load *out)
{
    uint32_t most = 0;
    for (uint32_t w = 0; w < s->config.n_workers; w++)
        most = s->reserved[w] > most ? s->reserved[w] : most;
    *out = (struct scheduler_load){
        .n_queued = s->n_in_state[ENTRY_QUEUED],
        .n_opening = s->n_in_state[ENTRY_OPENING],
        .n_running = s->n_in_state[ENTRY_RUNNING],
        .n_closing = s->n_in_state[ENTRY_CLOSING],
        .blocks_reserved_max = most,
    };
}

uint32_t scheduler_blocks_reserved(const struct scheduler *s, uint32_t worker)
{
    assert(worker < s->config.n_workers);
    return s->reserved[worker];
}

bool scheduler_find_sequence(const struct scheduler *s, uint64_t sequence, uint64_t *request)
{
    uint32_t at = scheduler_find_entry(s, sequence);
    if (at == SCHEDULER_NONE)
        return false;
    if (request != NULL)
        *request = s->entries[at].request;
    return true;
}

bool scheduler_find_overdue(const struct scheduler *s, uint64_t before_ns, uint32_t *worker,
                            uint64_t *sequence)
{
    for (uint32_t at = 0; at < s->n_touched; at++) {
        const struct entry *e = &s->entries[at];
        if ((e->state != ENTRY_OPENING && e->state != ENTRY_CLOSING) || e->since_ns > before_ns)
            continue;
        const uint8_t *acks = scheduler_acks(s, at);
        uint32_t i = 0;
        while (acks[i] != ACK_OPEN_SENT && acks[i] != ACK_CLOSE_SENT)
            i++; /* there is one: the last answer changes the state */
        *worker = e->ring * s->config.ring_size + i;
        *sequence = e->params.sequence;
        return true;
    }
    return false;
}
