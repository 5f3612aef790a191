/* Records what the scheduler decides, by the times of its events. */
#include "coordinator/scheduler_state.h"

#include "cluster/ring.h"

#include <assert.h>

/* The rank of who runs loop `loop` of the sequence. */
static uint16_t rank_at(const struct scheduler *s, const struct entry *e, uint32_t loop)
{
    const uint32_t size = s->config.ring_size;
    return (uint16_t)(e->ring * size +
                      (uint32_t)ring_worker((int)size, e->params.ring_offset, loop) + 1);
}

/* The span that ends when the entry leaves its state now. */
static struct trace_record describe(const struct scheduler *s, const struct entry *e,
                                    uint64_t now_ns)
{
    struct trace_record r = {.at_ns = e->since_ns,
                             .lasted_ns = now_ns > e->since_ns ? now_ns - e->since_ns : 0,
                             .sequence = e->params.sequence,
                             .request.request = e->request};
    switch (e->state) {
    case ENTRY_QUEUED:
        r.kind = TRACE_QUEUE;
        r.n_rows = e->params.prompt_tokens;
        break;
    case ENTRY_OPENING:
        r.kind = TRACE_ADMISSION;
        r.peer = rank_at(s, e, 1);
        break;
    case ENTRY_RUNNING:
        r.kind = TRACE_SEQUENCE;
        r.n_rows = e->n_tokens;
        r.flags = (uint16_t)e->reason;
        break;
    default:
        break;
    }
    return r;
}

static struct trace_record describe_blocked(const struct scheduler *s, uint64_t now_ns)
{
    const struct scheduler_tracing *t = &s->tracing;
    return (struct trace_record){.kind = TRACE_BLOCKED,
                                 .at_ns = t->blocked_since_ns,
                                 .lasted_ns = now_ns - t->blocked_since_ns,
                                 .flags = (uint16_t)t->blocked};
}

static void add(const struct scheduler *s, const struct trace_record *r)
{
    *trace_add(s->config.trace, (enum trace_kind)r->kind, r->at_ns) = *r;
}

void scheduler_trace_leave(struct scheduler *s, const struct entry *e, uint64_t now_ns)
{
    s->tracing.has_moved = true;
    if (s->config.trace == NULL)
        return;
    const struct trace_record r = describe(s, e, now_ns);
    if (r.kind != 0)
        add(s, &r);
}

void scheduler_trace_token(const struct scheduler *s, const struct entry *e,
                           const struct control_token *token, uint64_t now_ns)
{
    if (s->config.trace == NULL)
        return;
    struct trace_record *r = trace_add(s->config.trace, TRACE_TOKEN, now_ns);
    r->sequence = token->sequence;
    r->position = token->position;
    r->loop = (uint8_t)token->exit_loop;
    r->peer = rank_at(s, e, token->exit_loop);
    r->token.id = token->id;
    r->token.cdf = token->cdf;
}

static void trace_load(const struct scheduler *s, uint64_t now_ns)
{
    struct scheduler_load load;
    scheduler_get_load(s, &load);
    uint32_t n_blocks = s->n_blocks[0];
    for (uint32_t w = 1; w < s->config.n_workers; w++)
        n_blocks = s->n_blocks[w] < n_blocks ? s->n_blocks[w] : n_blocks;
    struct trace_record *r = trace_add(s->config.trace, TRACE_LOAD, now_ns);
    r->load.n_queued = load.n_queued;
    r->load.n_opening = load.n_opening;
    r->load.n_running = load.n_running;
    r->load.n_closing = load.n_closing;
    r->load.blocks_reserved_max = load.blocks_reserved_max;
    r->load.n_blocks = n_blocks;
}

void scheduler_trace_step(struct scheduler *s, uint64_t now_ns)
{
    struct scheduler_tracing *t = &s->tracing;
    if (!t->has_moved || s->config.trace == NULL)
        return;
    t->has_moved = false;
    trace_load(s, now_ns);
    enum trace_blocked why = TRACE_BLOCKED_KV;
    bool is_blocked = scheduler_is_blocked(s, &why);
    if (t->is_blocked && (!is_blocked || why != t->blocked)) {
        const struct trace_record r = describe_blocked(s, now_ns);
        add(s, &r);
        t->is_blocked = false;
    }
    if (is_blocked && !t->is_blocked) {
        t->is_blocked = true;
        t->blocked = why;
        t->blocked_since_ns = now_ns;
    }
}

size_t scheduler_n_pending_records(const struct scheduler *s)
{
    return (size_t)s->n_in_state[ENTRY_QUEUED] + s->n_in_state[ENTRY_OPENING] +
           s->n_in_state[ENTRY_RUNNING] + s->tracing.is_blocked;
}

void scheduler_pending_records(const struct scheduler *s, uint64_t now_ns, struct trace_record *out)
{
    size_t n = 0;
    if (s->tracing.is_blocked)
        out[n++] = describe_blocked(s, now_ns);
    for (uint32_t at = 0; at < s->n_touched; at++) {
        const struct entry *e = &s->entries[at];
        if (e->state == ENTRY_FREE || e->state == ENTRY_CLOSING)
            continue;
        out[n] = describe(s, e, now_ns);
        out[n++].flags = FINISH_NONE;
    }
    assert(n == scheduler_n_pending_records(s));
}
