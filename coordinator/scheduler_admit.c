/* Decides when the head of the queue may run, on which ring, and at which offset. */
#include "coordinator/scheduler_state.h"

#include "cluster/ring.h"

#include <assert.h>

uint32_t scheduler_blocks_per_loop(const struct scheduler_config *config,
                                   const struct sequence_params *params)
{
    uint64_t n_positions = (uint64_t)params->prompt_tokens + params->max_tokens;
    return (uint32_t)((n_positions + config->block_size - 1) / config->block_size);
}

/* Only the first min(T, G) steps of a sequence meet a new worker; the rest of the ring holds
 * nothing of it. */
static uint32_t touched_workers(const struct scheduler *s, uint32_t max_loops)
{
    return max_loops < s->config.ring_size ? max_loops : s->config.ring_size;
}

/* Blocks the sequence needs on ring worker `index`. In 64 bits: the product comes from a user's
 * lengths. */
static uint64_t blocks_on(const struct scheduler *s, uint32_t offset, uint32_t max_loops,
                          uint32_t per_loop, int index)
{
    return (uint64_t)ring_loops_on((int)s->config.ring_size, offset, max_loops, index) * per_loop;
}

enum status scheduler_check_fits(const struct scheduler *s, const struct sequence_params *params,
                                 struct err *err)
{
    const uint32_t size = s->config.ring_size;
    const uint32_t per_loop = scheduler_blocks_per_loop(&s->config, params);
    const uint32_t n_touched = touched_workers(s, params->max_loops);
    uint64_t least_missing = UINT64_MAX, need = 0;
    uint32_t worst = 0;
    for (uint32_t ring = 0; ring < s->n_rings; ring++) {
        for (uint32_t offset = 0; offset < size; offset++) {
            /* The placement's worst worker decides; the placement whose worst is mildest is
             * reported. */
            uint64_t missing = 0, missing_need = 0;
            uint32_t missing_worker = 0;
            for (uint32_t t = 1; t <= n_touched; t++) {
                int index = ring_worker((int)size, offset, t);
                uint32_t worker = ring * size + (uint32_t)index;
                uint64_t n = blocks_on(s, offset, params->max_loops, per_loop, index);
                uint64_t have = s->n_blocks[worker];
                if (n > have && n - have > missing) {
                    missing = n - have;
                    missing_need = n;
                    missing_worker = worker;
                }
            }
            if (missing == 0)
                return STATUS_OK;
            if (missing < least_missing) {
                least_missing = missing;
                need = missing_need;
                worst = missing_worker;
            }
        }
    }
    return err_set(err, STATUS_INVALID,
                   "the request can never fit: prompt_tokens %u + max_tokens %u at %u loops need "
                   "%llu KV blocks of %u positions on rank %u, which has %u: ask for fewer tokens "
                   "or loops, or give the workers more with --kv-memory",
                   params->prompt_tokens, params->max_tokens, params->max_loops,
                   (unsigned long long)need, s->config.block_size, worst + 1, s->n_blocks[worst]);
}

/* Would the sequence fit at this offset now? *most is the fullest worker it would leave. */
static bool fits_at(const struct scheduler *s, uint32_t ring, uint32_t offset,
                    const struct entry *e, uint32_t ring_most, uint32_t *most)
{
    const uint32_t size = s->config.ring_size;
    const uint32_t n_touched = touched_workers(s, e->params.max_loops);
    uint64_t result = ring_most;
    for (uint32_t t = 1; t <= n_touched; t++) {
        int index = ring_worker((int)size, offset, t);
        uint32_t worker = ring * size + (uint32_t)index;
        uint64_t after = s->reserved[worker] +
                         blocks_on(s, offset, e->params.max_loops, e->n_blocks_per_loop, index);
        if (after > s->n_blocks[worker])
            return false;
        result = after > result ? after : result;
    }
    *most = (uint32_t)result;
    return true;
}

/* The offset that leaves the smallest maximum; then the one where fewest sequences start; then the
 * lowest. */
static bool choose_offset(const struct scheduler *s, uint32_t ring, const struct entry *e,
                          uint32_t *out)
{
    const uint32_t size = s->config.ring_size;
    const uint32_t *starts = s->starts + (size_t)ring * size;
    if (s->ring_open[ring] == s->config.max_running)
        return false;
    uint32_t ring_most = 0;
    for (uint32_t i = 0; i < size; i++) {
        uint32_t reserved = s->reserved[ring * size + i];
        ring_most = reserved > ring_most ? reserved : ring_most;
    }
    bool found = false;
    uint32_t best = 0, best_most = 0;
    for (uint32_t offset = 0; offset < size; offset++) {
        uint32_t most;
        if (!fits_at(s, ring, offset, e, ring_most, &most))
            continue;
        if (!found || most < best_most || (most == best_most && starts[offset] < starts[best])) {
            found = true;
            best = offset;
            best_most = most;
        }
    }
    if (found)
        *out = best;
    return found;
}

static uint64_t ring_reserved(const struct scheduler *s, uint32_t ring)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->config.ring_size; i++)
        sum += s->reserved[ring * s->config.ring_size + i];
    return sum;
}

/* The least loaded ring (blocks, then sequences, then the lowest) among those that can take it now.
 */
static bool choose_place(const struct scheduler *s, const struct entry *e, uint32_t *ring_out,
                         uint32_t *offset_out)
{
    bool found = false;
    uint64_t least = 0;
    uint32_t least_open = 0;
    for (uint32_t ring = 0; ring < s->n_rings; ring++) {
        uint64_t load = ring_reserved(s, ring);
        uint32_t n_open = s->ring_open[ring], offset;
        if (found && (load > least || (load == least && n_open >= least_open)))
            continue;
        if (!choose_offset(s, ring, e, &offset))
            continue;
        found = true;
        least = load;
        least_open = n_open;
        *ring_out = ring;
        *offset_out = offset;
    }
    return found;
}

static void reserve(struct scheduler *s, const struct entry *e)
{
    const uint32_t size = s->config.ring_size;
    for (uint32_t i = 0; i < size; i++)
        s->reserved[e->ring * size + i] += (uint32_t)blocks_on(
            s, e->params.ring_offset, e->params.max_loops, e->n_blocks_per_loop, (int)i);
    s->starts[e->ring * size + e->params.ring_offset]++;
    s->ring_open[e->ring]++;
}

void scheduler_release(struct scheduler *s, uint32_t at)
{
    const struct entry *e = &s->entries[at];
    const uint32_t size = s->config.ring_size;
    for (uint32_t i = 0; i < size; i++) {
        uint32_t n = (uint32_t)blocks_on(s, e->params.ring_offset, e->params.max_loops,
                                         e->n_blocks_per_loop, (int)i);
        assert(s->reserved[e->ring * size + i] >= n);
        s->reserved[e->ring * size + i] -= n;
    }
    s->starts[e->ring * size + e->params.ring_offset]--;
    s->ring_open[e->ring]--;
}

/* Strictly first come, first served: a large head waits until it fits and nobody passes it, so that
 * no request starves. */
void scheduler_admit(struct scheduler *s, uint64_t now_ns)
{
    while (s->queue_first != SCHEDULER_NONE) {
        uint32_t at = s->queue_first;
        struct entry *e = &s->entries[at];
        uint32_t ring = 0, offset = 0;
        if (!choose_place(s, e, &ring, &offset))
            return;
        scheduler_queue_remove(s, at);
        e->ring = ring;
        e->params.ring_offset = offset;
        e->params.sequence = ++s->last_sequence;
        scheduler_set_state(s, at, ENTRY_OPENING, now_ns);
        scheduler_link_sequence(s, at);
        reserve(s, e);
        uint8_t *acks = scheduler_acks(s, at);
        for (uint32_t i = 0; i < s->config.ring_size; i++) {
            acks[i] = ACK_OPEN_SENT;
            struct scheduler_action *a = scheduler_emit(s, SCHEDULER_SEND_OPEN);
            a->worker = ring * s->config.ring_size + i;
            a->request = e->request;
            a->sequence = e->params.sequence;
            a->params = &e->params;
        }
    }
}

bool scheduler_is_blocked(const struct scheduler *s, enum trace_blocked *why)
{
    if (s->queue_first == SCHEDULER_NONE)
        return false; /* whatever can be admitted has been, at the end of every step */
    *why = TRACE_BLOCKED_SEQUENCES;
    for (uint32_t ring = 0; ring < s->n_rings; ring++)
        if (s->ring_open[ring] < s->config.max_running)
            *why = TRACE_BLOCKED_KV;
    return true;
}
