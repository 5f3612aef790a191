/* A ring of real stages with a fake replica and a fake coordinator, stepped in virtual time by one
 * seed.
 *
 * The fake model is a hash: a row's value at loop t depends on its value at loop t-1 and on the K/V
 * of every position up to its own at loop t, read through the batch's block table. A wrong block,
 * slot, id or order changes the tokens. */
#ifndef TESTS_STAGE_RING_H
#define TESTS_STAGE_RING_H

#include "tests/unit.h"

#include "cluster/ring.h"
#include "worker/stage_state.h"

enum { RING_MAX_WORKERS = 6, RING_MAX_SEQUENCES = 40, RING_MAX_POSITIONS = 96, RING_VOCAB = 50 };

static inline uint64_t ring_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * UINT64_C(0x9E3779B97F4A7C15) ^ (b + UINT64_C(0x7F4A7C15));
    x ^= x >> 30;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    x ^= x >> 27;
    x *= UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}
static inline uint64_t ring_embed(int32_t id)
{
    return ring_mix((uint64_t)id, 11);
}
/* kv[0..p] of this loop, kv[p] made from the row's own value. */
static inline uint64_t ring_block(uint64_t h, uint32_t loop, const uint64_t *kv, uint32_t position)
{
    uint64_t sum = ring_mix(h, loop);
    for (uint32_t j = 0; j <= position; j++)
        sum = ring_mix(sum, kv[j]);
    return sum;
}
static inline float ring_lambda(uint64_t h)
{
    return (float)(h >> 40) / (float)(1 << 24);
}
static inline int32_t ring_token(uint64_t h)
{
    return (int32_t)(ring_mix(h, 77) % RING_VOCAB);
}

struct ring_message {
    struct ring_message *next;
    uint32_t source, flags, round, n_frames;
    uint64_t close; /* a close from the coordinator, when not 0 */
    struct ring_frame {
        struct frame head;
        int32_t *ids;
        uint64_t *rows;
    } * frames;
};

struct ring_sequence {
    struct sequence_params params;
    int32_t ids[RING_MAX_POSITIONS + 1];
    uint32_t exits[RING_MAX_POSITIONS + 1]; /* exit loop of each token */
    uint32_t n_tokens;
    uint32_t n_computed[SEQUENCE_MAX_LOOPS]; /* positions that were run at each loop */
    bool is_done, is_closing;
    uint32_t n_closed;
    uint64_t since_ns; /* the prompt's last row set out, or the last token came out */
};

struct ring_worker_state {
    struct stage *stage;
    struct trace *trace; /* NULL: nothing is recorded */
    uint64_t *store, *kv;
    /* In flight, the oldest first. */
    const struct batch *running[STAGE_MAX_IN_FLIGHT];
    uint64_t done_at_ns[STAGE_MAX_IN_FLIGHT];
    uint32_t n_running;
    struct batch_result result;
    uint64_t wake_at_ns;
    struct ring_message *inbox[RING_MAX_WORKERS + 1]; /* by source; the coordinator is last */
    bool was_told_busy[RING_MAX_WORKERS];             /* what each mate has announced */
    uint64_t n_notes;                                 /* messages without frames */
};

struct ring {
    uint32_t n_workers;
    struct stage_config config;
    uint64_t now_ns, random;
    struct ring_worker_state workers[RING_MAX_WORKERS];
    struct ring_sequence sequences[RING_MAX_SEQUENCES + 1]; /* by id */
    uint32_t n_sequences, n_failed;
    uint64_t n_batches, n_rows, n_messages;
    uint64_t n_overlapped; /* batches started while another one ran */
};

static inline uint32_t ring_random(struct ring *r, uint32_t n)
{
    r->random = ring_mix(r->random, 5);
    return (uint32_t)(r->random % n);
}

/* trace_bytes a worker; 0: nothing is recorded. Worker w is rank w + 1. */
static inline void ring_create_traced(struct ring *r, uint32_t n_workers,
                                      const struct stage_config *config, uint64_t seed,
                                      uint64_t trace_bytes)
{
    memset(r, 0, sizeof *r);
    r->n_workers = n_workers;
    r->random = seed;
    r->now_ns = 1;
    r->config = *config;
    r->config.ring_size = n_workers;
    for (uint32_t w = 0; w < n_workers; w++) {
        struct ring_worker_state *worker = &r->workers[w];
        struct stage_config c = r->config;
        c.ring_index = w;
        c.rank = (uint16_t)(w + 1);
        struct err err = {0};
        if (trace_bytes > 0)
            assert_int_equal(trace_create(trace_bytes, &worker->trace, NULL), STATUS_OK);
        c.trace = worker->trace;
        if (stage_create(&c, &worker->stage, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        worker->store = calloc(c.n_slots, sizeof *worker->store);
        worker->kv = calloc((size_t)c.n_blocks * c.block_size, sizeof *worker->kv);
        worker->result.outcomes = calloc(c.max_batch_rows, sizeof *worker->result.outcomes);
    }
}

static inline void ring_create(struct ring *r, uint32_t n_workers,
                               const struct stage_config *config, uint64_t seed)
{
    ring_create_traced(r, n_workers, config, seed, 0);
}

static inline void ring_message_free(struct ring_message *m)
{
    for (uint32_t i = 0; i < m->n_frames; i++) {
        free(m->frames[i].ids);
        free(m->frames[i].rows);
    }
    free(m->frames);
    free(m);
}

static inline void ring_destroy(struct ring *r)
{
    for (uint32_t w = 0; w < r->n_workers; w++) {
        struct ring_worker_state *worker = &r->workers[w];
        stage_destroy(worker->stage);
        trace_destroy(worker->trace);
        free(worker->store);
        free(worker->kv);
        free(worker->result.outcomes);
        for (uint32_t i = 0; i <= RING_MAX_WORKERS; i++) {
            while (worker->inbox[i] != NULL) {
                struct ring_message *m = worker->inbox[i];
                worker->inbox[i] = m->next;
                ring_message_free(m);
            }
        }
    }
}

static inline void ring_post(struct ring *r, uint32_t source, uint32_t dest, struct ring_message *m)
{
    struct ring_message **end = &r->workers[dest].inbox[source];
    while (*end != NULL)
        end = &(*end)->next;
    m->source = source;
    *end = m;
    r->n_messages++;
}

/* Notes when the batch will be over: it begins when the one before it has ended. */
static inline void ring_start_batch(struct ring *r, struct ring_worker_state *w,
                                    const struct batch *b)
{
    uint32_t n = w->n_running++;
    assert_true(n < STAGE_MAX_IN_FLIGHT && (n == 0 || n < r->config.n_in_flight));
    uint64_t begins_ns =
        n > 0 && w->done_at_ns[n - 1] > r->now_ns ? w->done_at_ns[n - 1] : r->now_ns;
    w->running[n] = b;
    w->done_at_ns[n] = begins_ns + r->config.batch_ns + r->config.row_ns * b->n_rows +
                       ring_random(r, 1 + (uint32_t)(r->config.batch_ns / 4));
    r->n_batches++;
    r->n_rows += b->n_rows;
    r->n_overlapped += n > 0;
}

/* Runs the batch, as late as a replica may: it must have stayed what it was. */
static inline void ring_run_batch(struct ring *r, struct ring_worker_state *w,
                                  const struct batch *b)
{
    w->result.n_segments = b->n_segments;
    w->result.n_heads = 0;
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct batch_segment *s = &b->segments[i];
        const struct kernels_segment *g = &b->geometry[i];
        struct ring_sequence *q = &r->sequences[s->sequence];
        struct batch_outcome *out = &w->result.outcomes[i];
        *out = (struct batch_outcome){.exit = s->exit};
        assert_int_equal(g->first_row, n_rows);
        assert_int_equal(g->first_position, q->n_computed[s->loop - 1]);
        assert_true(s->loop == 1 ||
                    (uint32_t)(g->first_position + g->n_rows) <= q->n_computed[s->loop - 2]);
        uint64_t kv[RING_MAX_POSITIONS], h = 0;
        for (int32_t j = 0; j < g->n_rows; j++) {
            uint32_t position = (uint32_t)(g->first_position + j);
            int32_t slot = b->slots[g->first_row + j], id = b->ids[g->first_row + j];
            assert_true((id >= 0) == (s->loop == 1));
            h = s->loop == 1 ? ring_embed(id) : w->store[slot];
            for (uint32_t k = 0; k <= position; k++) {
                assert_true((int32_t)(k / (uint32_t)b->block_size) < g->n_blocks);
                size_t at = (size_t)b->block_table[g->first_block + (int32_t)k / b->block_size] *
                                (size_t)b->block_size +
                            k % (uint32_t)b->block_size;
                assert_int_equal(b->pool_ids[at], q->ids[k]);
                if (k == position)
                    w->kv[at] = ring_mix(h, s->loop);
                kv[k] = w->kv[at];
            }
            h = ring_block(h, s->loop, kv, position);
            w->store[slot] = h;
            if (s->has_live && j == g->n_rows - 1) {
                out->lambda = ring_lambda(h);
                out->is_exit =
                    exit_rule_step(s->params, s->loop, position, out->lambda, &out->exit);
                out->token.id = ring_token(h);
                w->result.n_heads += out->is_exit;
            }
        }
        q->n_computed[s->loop - 1] += (uint32_t)g->n_rows;
        n_rows += (uint32_t)g->n_rows;
    }
    assert_int_equal(n_rows, b->n_rows);
    assert_true(n_rows > 0 && n_rows <= r->config.max_batch_rows);
}

static inline void ring_send(struct ring *r, uint32_t source, const struct stage_output *o,
                             const struct stage_send *send)
{
    struct ring_message *m = calloc(1, sizeof *m);
    m->flags = send->flags;
    m->round = send->round;
    assert_true(m->round == 0 || (m->flags & BUNDLE_BUSY) != 0);
    m->n_frames = send->n_frames;
    m->frames = calloc(send->n_frames + 1, sizeof *m->frames);
    assert_true(send->mate != source && send->mate < r->n_workers);
    /* A mate has at most one announced batch: DONE only after BUSY, BUSY only after DONE. */
    bool *busy = &r->workers[send->mate].was_told_busy[source];
    if (send->flags & BUNDLE_DONE) {
        assert_true(*busy);
        *busy = false;
    }
    if (send->flags & BUNDLE_BUSY) {
        assert_false(*busy);
        *busy = true;
    }
    r->workers[source].n_notes += send->n_frames == 0;
    for (uint32_t i = 0; i < send->n_frames; i++) {
        const struct stage_frame *f = &o->frames[send->first_frame + i];
        uint32_t n = f->head.n_rows;
        m->frames[i].head = f->head;
        m->frames[i].ids = calloc(n, sizeof(int32_t));
        m->frames[i].rows = calloc(n, sizeof(uint64_t));
        for (uint32_t j = 0; j < n; j++) {
            m->frames[i].ids[j] = o->ids[f->first + j];
            if (f->head.loop > 1)
                m->frames[i].rows[j] = r->workers[source].store[o->slots[f->first + j]];
        }
    }
    ring_post(r, source, send->mate, m);
}

/* Used slots are those of rows that wait, are parked, or run; frontiers only grow and never cross.
 */
static inline void ring_check_stage(struct ring *r, uint32_t index)
{
    struct stage *s = r->workers[index].stage;
    uint32_t n_slots = 0, n_parked = 0, n_blocks = 0;
    for (uint32_t i = 0; i < s->n_running; i++)
        n_slots += s->flights[(s->oldest + i) % s->config.n_in_flight].batch.n_rows;
    for (uint32_t i = 0; i < s->config.max_sequences; i++) {
        const struct stage_sequence *q = &s->sequences[i];
        for (int t = 0; q->state != SEQUENCE_FREE && t < SEQUENCE_MAX_LOOPS; t++) {
            const struct stage_lane *lane = &q->lanes[t];
            n_slots += lane->pending.n + lane->parked.n;
            n_parked += lane->parked.n;
            n_blocks += lane->blocks.n;
            assert_true(lane->parked.n <= lane->frontier);
            assert_true(lane->frontier <= r->sequences[q->params.sequence].n_computed[t]);
        }
    }
    assert_int_equal(n_slots, s->slots.n_used);
    assert_int_equal(n_parked, s->n_parked);
    assert_int_equal(n_blocks, s->kv.pool.n_used);
}

/* The loops' times add up to all that has passed since the token before: nothing is left out, and
 * nothing is told twice. The parts are floats: a few times 1e-7 of them may be missing. */
static inline void ring_check_timings(const struct ring *r, const struct ring_sequence *q,
                                      const struct control_token *token)
{
    double sum_s = 0.0, passed_s = (double)(r->now_ns - q->since_ns) / 1e9;
    for (uint32_t t = 0; t < token->exit_loop; t++) {
        const struct loop_timing *timing = &token->timings[t];
        assert_true(timing->hop_s >= 0.0 && timing->wait_s >= 0.0f && timing->compute_s >= 0.0f);
        sum_s += timing->hop_s + (double)timing->wait_s + (double)timing->compute_s;
    }
    if (sum_s < passed_s * (1 - 1e-6) || sum_s > passed_s * (1 + 1e-6))
        fail_msg("the loops of a token took %.9f s, %.9f have passed", sum_s, passed_s);
}

static inline void ring_step(struct ring *r, uint32_t index, struct stage_event event,
                             const uint64_t *rows)
{
    struct ring_worker_state *w = &r->workers[index];
    const struct stage_output *o = NULL;
    struct err err = {0};
    event.now_ns = r->now_ns;
    if (stage_step(w->stage, &event, &o, &err) != STATUS_OK)
        fail_msg("worker %u: %s", index, err.message);
    for (uint32_t i = 0; i < o->n_copy; i++)
        w->store[o->copy_slots[i]] = rows[i];
    for (uint32_t i = 0; i < o->n_sends; i++)
        ring_send(r, index, o, &o->sends[i]);
    for (uint32_t i = 0; i < o->n_notices; i++) {
        const struct stage_notice *n = &o->notices[i];
        r->sequences[n->sequence].n_closed += n->kind == CONTROL_CLOSED;
        r->n_failed += n->kind == CONTROL_FAILED || n->failure != STATUS_OK;
    }
    for (uint32_t i = 0; i < o->n_tokens; i++) {
        struct ring_sequence *q = &r->sequences[o->tokens[i].sequence];
        assert_int_equal(o->tokens[i].position, q->params.prompt_tokens + q->n_tokens);
        assert_false(q->is_done);
        q->ids[o->tokens[i].position] = o->tokens[i].id;
        q->exits[q->n_tokens++] = o->tokens[i].exit_loop;
        q->is_done = o->tokens[i].is_last;
        ring_check_timings(r, q, &o->tokens[i]);
        q->since_ns = r->now_ns;
    }
    if (o->start != NULL)
        ring_start_batch(r, w, o->start);
    w->wake_at_ns = o->wake_at_ns;
    ring_check_stage(r, index);
}

static inline void ring_deliver(struct ring *r, uint32_t index, uint32_t source)
{
    struct ring_message *m = r->workers[index].inbox[source];
    r->workers[index].inbox[source] = m->next;
    if (m->close != 0)
        ring_step(r, index, (struct stage_event){.kind = STAGE_CLOSE, .sequence = m->close}, NULL);
    struct stage_event mate = {.kind = STAGE_MATE, .mate = source};
    mate.mate_flags = m->flags & BUNDLE_DONE;
    if (mate.mate_flags != 0)
        ring_step(r, index, mate, NULL);
    for (uint32_t i = 0; i < m->n_frames; i++) {
        struct frame head = m->frames[i].head;
        head.ids = m->frames[i].ids;
        uint16_t rank = source == RING_MAX_WORKERS ? 0 : (uint16_t)(source + 1);
        ring_step(r, index,
                  (struct stage_event){.kind = STAGE_FRAME, .frame = &head, .source_rank = rank},
                  m->frames[i].rows);
    }
    mate.mate_flags = m->flags & BUNDLE_BUSY;
    mate.mate_round = m->round;
    if (mate.mate_flags != 0)
        ring_step(r, index, mate, NULL);
    ring_message_free(m);
}

/* Opens the sequence on every worker; the id is the next one. The caller has filled all other
 * params. */
static inline uint64_t ring_open(struct ring *r, const struct sequence_params *params)
{
    uint64_t id = ++r->n_sequences;
    assert_true(id <= RING_MAX_SEQUENCES);
    struct ring_sequence *q = &r->sequences[id];
    q->params = *params;
    q->params.sequence = id;
    for (uint32_t p = 0; p < params->prompt_tokens; p++)
        q->ids[p] = (int32_t)(ring_mix(id, p) % RING_VOCAB);
    for (uint32_t w = 0; w < r->n_workers; w++)
        ring_step(r, w, (struct stage_event){.kind = STAGE_OPEN, .params = &q->params}, NULL);
    return id;
}

/* Sends the prompt as frames of at most `chunk` rows. */
static inline void ring_prompt(struct ring *r, uint64_t id, uint32_t chunk)
{
    struct ring_sequence *q = &r->sequences[id];
    uint32_t n = q->params.prompt_tokens;
    for (uint32_t first = 0; first < n; first += chunk) {
        uint32_t rows = n - first < chunk ? n - first : chunk;
        struct ring_message *m = calloc(1, sizeof *m);
        m->n_frames = 1;
        m->frames = calloc(1, sizeof *m->frames);
        m->frames[0].head = (struct frame){.sequence = id,
                                           .loop = 1,
                                           .first_position = first,
                                           .n_rows = rows,
                                           .flags = first + rows == n ? FRAME_LIVE : 0,
                                           .survival = 1.0f,
                                           .sent_ns = r->now_ns};
        m->frames[0].ids = calloc(rows, sizeof(int32_t));
        memcpy(m->frames[0].ids, q->ids + first, rows * sizeof(int32_t));
        q->since_ns = r->now_ns;
        ring_post(r, RING_MAX_WORKERS,
                  (uint32_t)ring_worker((int)r->n_workers, q->params.ring_offset, 1), m);
    }
}

static inline void ring_close(struct ring *r, uint64_t id)
{
    r->sequences[id].is_closing = true;
    for (uint32_t w = 0; w < r->n_workers; w++) {
        struct ring_message *m = calloc(1, sizeof *m);
        m->close = id;
        ring_post(r, RING_MAX_WORKERS, w, m);
    }
}

/* Does one thing of those that can happen now, or lets time pass until one can. False: nothing is
 * left to do. */
static inline bool ring_pump(struct ring *r)
{
    struct {
        uint32_t worker, source; /* source RING_MAX_WORKERS + 1: the batch; + 2: the clock */
    } choices[RING_MAX_WORKERS * (RING_MAX_WORKERS + 3)];
    uint32_t n = 0;
    uint64_t soonest_ns = UINT64_MAX;
    for (uint32_t w = 0; w < r->n_workers; w++) {
        const struct ring_worker_state *worker = &r->workers[w];
        for (uint32_t i = 0; i <= RING_MAX_WORKERS; i++) {
            if (worker->inbox[i] != NULL)
                choices[n].worker = w, choices[n++].source = i;
        }
        const uint64_t at[2] = {worker->n_running > 0 ? worker->done_at_ns[0] : 0,
                                worker->wake_at_ns};
        for (uint32_t i = 0; i < 2; i++) {
            if (at[i] != 0 && at[i] <= r->now_ns)
                choices[n].worker = w, choices[n++].source = RING_MAX_WORKERS + 1 + i;
            else if (at[i] != 0 && at[i] < soonest_ns)
                soonest_ns = at[i];
        }
    }
    if (n == 0) {
        if (soonest_ns == UINT64_MAX)
            return false;
        r->now_ns = soonest_ns;
        return true;
    }
    uint32_t pick = ring_random(r, n);
    uint32_t index = choices[pick].worker;
    struct ring_worker_state *worker = &r->workers[index];
    if (choices[pick].source <= RING_MAX_WORKERS) {
        ring_deliver(r, index, choices[pick].source);
    } else if (choices[pick].source == RING_MAX_WORKERS + 1) {
        ring_run_batch(r, worker, worker->running[0]);
        worker->running[0] = worker->running[1];
        worker->done_at_ns[0] = worker->done_at_ns[1];
        worker->n_running--;
        ring_step(r, index,
                  (struct stage_event){.kind = STAGE_BATCH_DONE, .result = &worker->result}, NULL);
    } else {
        ring_step(r, index, (struct stage_event){.kind = STAGE_TIME}, NULL);
    }
    r->now_ns += ring_random(r, 3);
    return true;
}

/* What the sequence must have produced: every loop of every position, no early exit saved. */
static inline void ring_check_tokens(const struct ring_sequence *q)
{
    static uint64_t kv[SEQUENCE_MAX_LOOPS][RING_MAX_POSITIONS];
    const struct sequence_params *p = &q->params;
    uint32_t n = p->prompt_tokens + q->n_tokens;
    for (uint32_t position = 0; position + 1 < n; position++) {
        uint64_t h = ring_embed(q->ids[position]);
        struct exit_state state = {.survival = 1.0f, .cdf = 0.0f};
        uint32_t exit_loop = 0;
        int32_t token = -1;
        for (uint32_t t = 1; t <= p->max_loops; t++) {
            kv[t - 1][position] = ring_mix(h, t);
            h = ring_block(h, t, kv[t - 1], position);
            if (exit_loop == 0 && exit_rule_step(p, t, position, ring_lambda(h), &state)) {
                exit_loop = t;
                token = ring_token(h);
            }
        }
        if (position + 1 < p->prompt_tokens)
            continue;
        assert_int_equal(q->ids[position + 1], token);
        assert_int_equal(q->exits[position + 1 - p->prompt_tokens], exit_loop);
    }
}

#endif
