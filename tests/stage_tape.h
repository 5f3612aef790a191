/* One stage, events in, a text out: one line for each event (">") and one for each element of its
 * output.
 *
 * The id of position p of sequence s is 100 * s + p. Every lambda is 0.5, so a live row that has
 * passed t loops has cdf 1 - 0.5^t. Time stands still unless a test moves it. */
#ifndef TESTS_STAGE_TAPE_H
#define TESTS_STAGE_TAPE_H

#include "tests/unit.h"

#include "worker/stage.h"

struct tape {
    struct stage *stage;
    struct stage_config config;
    uint64_t now_ns;
    const struct batch *running[STAGE_MAX_IN_FLIGHT]; /* the oldest first */
    char text[32768];
    size_t len;
    uint16_t source_rank; /* of frames; 0: the coordinator */
};

/* A ring of four workers, of which this is number 0; greedy; no limit in the way. */
static inline struct stage_config tape_config(void)
{
    return (struct stage_config){.ring_size = 4,
                                 .ring_index = 0,
                                 .n_loops = 4,
                                 .max_positions = 64,
                                 .n_blocks = 64,
                                 .block_size = 4,
                                 .n_slots = 256,
                                 .max_sequences = 8,
                                 .max_batch_rows = 16,
                                 .prefill_chunk = 8,
                                 .batching = BATCHING_GREEDY,
                                 .batch_ns = 1000,
                                 .row_ns = 100};
}

static inline struct sequence_params tape_params(uint64_t id, uint32_t offset, uint32_t prompt)
{
    struct sequence_params p = {0};
    sequence_params_init(&p);
    p.sequence = id;
    p.ring_offset = offset;
    p.prompt_tokens = prompt;
    p.max_tokens = 10;
    p.exit_mode = EXIT_MODE_EXACT;
    p.exit_threshold = 0.9f;
    p.max_loops = 4;
    return p;
}

static inline void tape_create(struct tape *t, const struct stage_config *config)
{
    *t = (struct tape){.config = *config, .now_ns = 1000000};
    struct err err = {0};
    if (stage_create(config, &t->stage, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

__attribute__((format(printf, 2, 3))) static inline void tape_print(struct tape *t,
                                                                    const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(t->text + t->len, sizeof t->text - t->len, format, args);
    va_end(args);
    t->len += (size_t)n;
    assert_true(t->len < sizeof t->text);
}

static inline void tape_sends(struct tape *t, const struct stage_output *o)
{
    for (uint32_t i = 0; i < o->n_sends; i++) {
        const struct stage_send *send = &o->sends[i];
        tape_print(t, "send to %u%s%s", send->mate, send->flags & BUNDLE_DONE ? " done" : "",
                   send->flags & BUNDLE_BUSY ? " busy" : "");
        assert_true((send->round != 0) == ((send->flags & BUNDLE_BUSY) != 0));
        if (t->config.batching == BATCHING_ROUND && send->round != 0)
            tape_print(t, " round %u", send->round);
        tape_print(t, ":");
        for (uint32_t j = 0; j < send->n_frames; j++) {
            const struct stage_frame *f = &o->frames[send->first_frame + j];
            tape_print(t, "%s seq %llu loop %u [%u,%u)", j > 0 ? " |" : "",
                       (unsigned long long)f->head.sequence, f->head.loop, f->head.first_position,
                       f->head.first_position + f->head.n_rows);
            if (f->head.flags & FRAME_LIVE)
                tape_print(t, " live cdf %.4g", (double)f->head.cdf);
            tape_print(t, " ids");
            for (uint32_t k = 0; k < f->head.n_rows; k++) {
                tape_print(t, " %d", o->ids[f->first + k]);
                assert_true((o->slots[f->first + k] == -1) == (f->head.loop == 1));
            }
        }
        tape_print(t, "%s\n", send->n_frames == 0 ? " nothing" : "");
    }
}

static inline void tape_batch(struct tape *t, const struct batch *b)
{
    tape_print(t, "start:");
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct batch_segment *s = &b->segments[i];
        const struct kernels_segment *g = &b->geometry[i];
        tape_print(t, "%s seq %llu loop %u [%d,%d)%s", i > 0 ? " |" : "",
                   (unsigned long long)s->sequence, s->loop, g->first_position,
                   g->first_position + g->n_rows, s->has_live ? " live" : "");
        if (s->has_live && s->loop > 1)
            tape_print(t, " cdf %.4g", (double)s->exit.cdf);
        /* The history the sampler will see, read as it reads it. */
        for (int32_t p = 0; p < g->first_position + g->n_rows; p++) {
            int32_t block = b->block_table[g->first_block + p / b->block_size];
            assert_true(p / b->block_size < g->n_blocks);
            assert_true(b->pool_ids[block * b->block_size + p % b->block_size] >= 0);
        }
    }
    tape_print(t, "\n");
}

static inline enum status tape_step(struct tape *t, struct stage_event event)
{
    const struct stage_output *o = NULL;
    struct err err = {0};
    event.now_ns = t->now_ns;
    enum status st = stage_step(t->stage, &event, &o, &err);
    if (st != STATUS_OK)
        tape_print(t, "error %s: %s\n", status_name(st), err.message);
    if (o->n_copy > 0)
        tape_print(t, "copy %u rows\n", o->n_copy);
    tape_sends(t, o);
    for (uint32_t i = 0; i < o->n_notices; i++) {
        const struct stage_notice *n = &o->notices[i];
        const char *what = n->kind == CONTROL_OPENED   ? "opened"
                           : n->kind == CONTROL_CLOSED ? "closed"
                                                       : "failed";
        tape_print(t, "%s seq %llu", what, (unsigned long long)n->sequence);
        if (n->failure != STATUS_OK)
            tape_print(t, ": %s: %s", status_name(n->failure), n->message);
        tape_print(t, "\n");
    }
    for (uint32_t i = 0; i < o->n_tokens; i++) {
        const struct control_token *k = &o->tokens[i];
        tape_print(t, "token seq %llu position %u id %d exit %u cdf %.4g%s\n",
                   (unsigned long long)k->sequence, k->position, k->id, k->exit_loop,
                   (double)k->cdf, k->is_last ? " last" : "");
    }
    if (o->start != NULL) {
        t->running[t->running[0] != NULL] = o->start;
        tape_batch(t, o->start);
    }
    if (o->wake_at_ns > t->now_ns)
        tape_print(t, "wake in %llu ns\n", (unsigned long long)(o->wake_at_ns - t->now_ns));
    return st;
}

static inline void tape_open(struct tape *t, const struct sequence_params *p)
{
    tape_print(t, "> open %llu\n", (unsigned long long)p->sequence);
    tape_step(t, (struct stage_event){.kind = STAGE_OPEN, .params = p});
}

static inline void tape_close(struct tape *t, uint64_t id)
{
    tape_print(t, "> close %llu\n", (unsigned long long)id);
    tape_step(t, (struct stage_event){.kind = STAGE_CLOSE, .sequence = id});
}

/* Rows [first, end) for a loop; the last is live or not. Does not start a batch: tape_time does.
 */
static inline enum status tape_frame(struct tape *t, uint64_t id, uint32_t loop, uint32_t first,
                                     uint32_t end, bool is_live)
{
    int32_t ids[256];
    for (uint32_t p = first; p < end; p++)
        ids[p - first] = (int32_t)(100 * id + p);
    float survival = is_live ? 1.0f / (float)(1u << (loop - 1)) : 1.0f;
    struct frame f = {.sequence = id,
                      .loop = loop,
                      .first_position = first,
                      .n_rows = end - first,
                      .flags = is_live ? FRAME_LIVE : 0,
                      .survival = survival,
                      .cdf = 1.0f - survival,
                      .ids = ids};
    tape_print(t, "> frame seq %llu loop %u [%u,%u)%s\n", (unsigned long long)id, loop, first, end,
               is_live ? " live" : "");
    return tape_step(
        t, (struct stage_event){.kind = STAGE_FRAME, .frame = &f, .source_rank = t->source_rank});
}

static inline void tape_time(struct tape *t)
{
    tape_print(t, "> time\n");
    tape_step(t, (struct stage_event){.kind = STAGE_TIME});
}

static inline void tape_mate(struct tape *t, uint32_t mate, uint32_t flags)
{
    tape_print(t, "> mate %u%s%s\n", mate, flags & BUNDLE_DONE ? " done" : "",
               flags & BUNDLE_BUSY ? " busy" : "");
    tape_step(t, (struct stage_event){.kind = STAGE_MATE, .mate = mate, .mate_flags = flags});
}

static inline void tape_mate_busy(struct tape *t, uint32_t mate, uint32_t round)
{
    tape_print(t, "> mate %u busy in round %u\n", mate, round);
    tape_step(
        t, (struct stage_event){
               .kind = STAGE_MATE, .mate = mate, .mate_flags = BUNDLE_BUSY, .mate_round = round});
}

enum { TAPE_GO = -1, TAPE_FAIL = -2 };
/* What each segment of the oldest running batch did: an id (its live row exits with it), TAPE_GO or
 * TAPE_FAIL. */
static inline void tape_done(struct tape *t, const int *segments)
{
    struct batch_outcome outcomes[32] = {0};
    const struct batch *b = t->running[0];
    assert_non_null(b);
    tape_print(t, "> done:");
    for (uint32_t i = 0; i < b->n_segments; i++) {
        outcomes[i].lambda = 0.5f;
        outcomes[i].exit.survival = b->segments[i].exit.survival * 0.5f;
        outcomes[i].exit.cdf = 1.0f - outcomes[i].exit.survival;
        outcomes[i].failure = segments[i] == TAPE_FAIL ? STATUS_INVALID : STATUS_OK;
        outcomes[i].is_exit = segments[i] >= 0;
        outcomes[i].token.id = segments[i];
        if (segments[i] >= 0)
            tape_print(t, " exit with %d", segments[i]);
        else
            tape_print(t, segments[i] == TAPE_GO ? " on" : " nan");
    }
    tape_print(t, "\n");
    struct batch_result result = {.n_segments = b->n_segments, .outcomes = outcomes};
    t->running[0] = t->running[1];
    t->running[1] = NULL;
    tape_step(t, (struct stage_event){.kind = STAGE_BATCH_DONE, .result = &result});
}
#define TAPE_DONE(t, ...) tape_done((t), (const int[]){__VA_ARGS__})

static inline void tape_memory(struct tape *t)
{
    struct control_stats stats = {0};
    stage_fill_stats(t->stage, &stats);
    tape_print(t, "blocks %u slots %u parked %u sequences %u stale %llu\n", stats.kv_blocks_used,
               stats.row_slots_used, stats.parked_rows, stats.n_sequences,
               (unsigned long long)stats.n_stale_frames);
}

/* Compares the whole text and ends the tape. */
static inline void tape_check(struct tape *t, const char *expected)
{
    stage_destroy(t->stage);
    if (strcmp(t->text, expected) != 0)
        fail_msg("the tape has\n%s\nexpected was\n%s", t->text, expected);
}

#endif
