/* stage: what it records of its batches, their segments and its idle time, in virtual time; that
 * the sums are right, and that recording decides nothing. */
#include "tests/stage_ring.h"
#include "tests/stage_tape.h"

enum { RANK = 7, N_RECORDS = 64 };

/* One stage that records, stepped at chosen times. */
struct story {
    struct tape tape;
    struct trace *trace;
    const struct stage_output *out;
};

static void story_open(struct story *s, const struct stage_config *config, uint32_t n_prompt)
{
    struct stage_config c = *config;
    assert_int_equal(trace_create(N_RECORDS * sizeof(struct trace_record), &s->trace, NULL),
                     STATUS_OK);
    c.trace = s->trace;
    c.rank = RANK;
    tape_create(&s->tape, &c);
    s->tape.now_ns = 100;
    for (uint64_t id = 1; id <= 2; id++) {
        struct sequence_params p = tape_params(id, 0, n_prompt);
        tape_open(&s->tape, &p);
    }
}

static void story_close(struct story *s)
{
    stage_destroy(s->tape.stage);
    trace_destroy(s->trace);
}

static void story_step(struct story *s, uint64_t at_ns, struct stage_event event)
{
    struct err err = {0};
    event.now_ns = at_ns;
    if (stage_step(s->tape.stage, &event, &s->out, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    if (s->out->start != NULL)
        s->tape.running[0] = s->out->start;
}

/* Rows [first, first + n) of a loop, the last of them live or not. */
static void story_frame(struct story *s, uint64_t at_ns, uint64_t sent_ns, uint16_t rank,
                        uint64_t sequence, uint32_t loop, uint32_t first, uint32_t n, bool is_live)
{
    static const int32_t ids[64];
    float survival = is_live ? 1.0f / (float)(1u << (loop - 1)) : 1.0f;
    const struct frame f = {.sequence = sequence,
                            .loop = loop,
                            .first_position = first,
                            .n_rows = n,
                            .flags = is_live ? FRAME_LIVE : 0,
                            .survival = survival,
                            .cdf = 1.0f - survival,
                            .ids = ids,
                            .sent_ns = sent_ns};
    story_step(s, at_ns,
               (struct stage_event){.kind = STAGE_FRAME, .frame = &f, .source_rank = rank});
}

static void story_time(struct story *s, uint64_t at_ns, bool is_start)
{
    story_step(s, at_ns, (struct stage_event){.kind = STAGE_TIME});
    assert_true((s->out->start != NULL) == is_start);
}

/* The batch ends: every live row exits with an id, or goes on. */
static void story_done(struct story *s, uint64_t at_ns, int id)
{
    struct batch_outcome outcomes[4] = {0};
    const struct batch *b = s->tape.running[0];
    for (uint32_t i = 0; i < b->n_segments; i++) {
        outcomes[i] = (struct batch_outcome){.lambda = 0.5f, .is_exit = id >= 0, .token.id = id};
        outcomes[i].exit.survival = b->segments[i].exit.survival * 0.5f;
        outcomes[i].exit.cdf = 1.0f - outcomes[i].exit.survival;
    }
    struct batch_result result = {
        .n_segments = b->n_segments, .outcomes = outcomes, .n_heads = 3, .head_ns = 5};
    s->tape.running[0] = NULL;
    story_step(s, at_ns, (struct stage_event){.kind = STAGE_BATCH_DONE, .result = &result});
}

static void story_mate(struct story *s, uint64_t at_ns, uint32_t mate, uint32_t flags)
{
    story_step(s, at_ns,
               (struct stage_event){.kind = STAGE_MATE, .mate = mate, .mate_flags = flags});
}

/* The whole trace as text, a line a record, and begins a new one. */
static void check_trace(struct story *s, const char *expected)
{
    static struct trace_record records[N_RECORDS];
    static const char *const idle[] = {"starved", "peer"};
    char text[4096];
    size_t at = 0, n = trace_copy(s->trace, 0, records, N_RECORDS, NULL);
    text[0] = '\0';
    for (size_t i = 0; i < n; i++) {
        const struct trace_record *r = &records[i];
        assert_int_equal(trace_record_check(r, NULL), STATUS_OK);
        at += (size_t)snprintf(text + at, sizeof text - at, "%d+%d ", (int)r->at_ns,
                               (int)r->lasted_ns);
        if (r->kind == TRACE_IDLE)
            at += (size_t)snprintf(text + at, sizeof text - at, "idle %s", idle[r->flags]);
        else if (r->kind == TRACE_BATCH)
            at += (size_t)snprintf(text + at, sizeof text - at,
                                   "batch rows %u (%u %u %u %u) segments %u heads %u in %u",
                                   r->n_rows, r->batch.rows_by_loop[0], r->batch.rows_by_loop[1],
                                   r->batch.rows_by_loop[2], r->batch.rows_by_loop[3],
                                   r->batch.n_segments, r->batch.n_heads, r->batch.head_ns);
        else if (r->kind == TRACE_ROWS)
            at += (size_t)snprintf(
                text + at, sizeof text - at,
                "rows seq %d loop %u [%u,%u)%s%s from %u hop %d wait %d parked "
                "%u revived %u",
                (int)r->sequence, r->loop, r->position, r->position + r->n_rows,
                r->flags & TRACE_LIVE ? " live" : "", r->flags & TRACE_EXIT ? " exit" : "", r->peer,
                (int)r->rows.hop_ns, (int)r->rows.wait_ns, r->rows.n_parked, r->rows.n_revived);
        else if (r->kind == TRACE_POOL)
            at += (size_t)snprintf(text + at, sizeof text - at,
                                   "pool blocks %u/%u parked %u ready %u sequences %u",
                                   r->pool.kv_blocks_used, r->pool.kv_blocks_total,
                                   r->pool.parked_rows, r->pool.ready_rows, r->pool.n_sequences);
        else
            fail_msg("the stage wrote a record of kind %d", r->kind);
        at += (size_t)snprintf(text + at, sizeof text - at, "\n");
        assert_true(at < sizeof text);
    }
    s->trace->n_added = 0;
    if (strcmp(text, expected) != 0)
        fail_msg("the trace is\n%s\nexpected was\n%s", text, expected);
}

static void test_stage_trace_tells_a_batch_its_segments_and_the_pool(void **state)
{
    (void)state;
    struct story s;
    const struct stage_config config = tape_config();
    story_open(&s, &config, 3);
    story_frame(&s, 300, 250, 0, 1, 1, 0, 3, true);
    story_frame(&s, 310, 999, 0, 2, 1, 0, 3, true); /* the sender's clock is ahead of ours */
    story_time(&s, 320, true);
    story_done(&s, 400, -1); /* on to loop 2 */
    check_trace(&s,
                "100+200 idle starved\n"
                "320+80 batch rows 6 (6 0 0 0) segments 2 heads 3 in 5\n"
                "320+80 rows seq 1 loop 1 [0,3) live from 0 hop 50 wait 20 parked 0 revived 0\n"
                "320+80 rows seq 2 loop 1 [0,3) live from 0 hop -689 wait 10 parked 0 revived 0\n"
                "400+0 pool blocks 2/64 parked 0 ready 0 sequences 2\n");
    /* The token of one sequence gets off here, and its id stays for loop 1; then all goes on. */
    story_frame(&s, 500, 480, 9, 1, 1, 3, 1, true);
    story_time(&s, 500, true);
    story_done(&s, 520, 42);
    assert_non_null(s.out->start);
    story_done(&s, 630, -1);
    check_trace(&s,
                "400+100 idle starved\n"
                "500+20 batch rows 1 (1 0 0 0) segments 1 heads 3 in 5\n"
                "500+20 rows seq 1 loop 1 [3,4) live exit from 9 hop 20 wait 0 parked 1 revived 0\n"
                "520+0 pool blocks 2/64 parked 1 ready 1 sequences 2\n"
                "520+110 batch rows 1 (1 0 0 0) segments 1 heads 3 in 5\n"
                "520+110 rows seq 1 loop 1 [4,5) live from 7 hop 0 wait 0 parked 0 revived 1\n"
                "630+0 pool blocks 3/64 parked 0 ready 0 sequences 2\n");
    story_close(&s);
}

static void test_stage_trace_waits_from_the_oldest_row_of_a_segment(void **state)
{
    (void)state;
    struct story s;
    const struct stage_config config = tape_config();
    story_open(&s, &config, 12); /* chunks of 8 */
    story_frame(&s, 200, 150, 0, 1, 1, 0, 6, false);
    story_frame(&s, 230, 220, 0, 1, 1, 6, 6, true);
    story_time(&s, 240, true);
    story_frame(&s, 250, 290, 0, 2, 1, 0, 12, true);
    story_done(&s, 300, -1);
    story_done(&s, 350, -1);
    check_trace(&s,
                "100+100 idle starved\n"
                "240+60 batch rows 8 (8 0 0 0) segments 1 heads 3 in 5\n"
                "240+60 rows seq 1 loop 1 [0,8) from 0 hop 50 wait 40 parked 0 revived 0\n"
                "300+0 pool blocks 2/64 parked 0 ready 12 sequences 2\n"
                "300+50 batch rows 12 (12 0 0 0) segments 2 heads 3 in 5\n"
                "300+50 rows seq 1 loop 1 [8,12) live from 0 hop 10 wait 70 parked 0 revived 0\n"
                "300+50 rows seq 2 loop 1 [0,8) from 0 hop -40 wait 50 parked 0 revived 0\n"
                "350+0 pool blocks 5/64 parked 0 ready 4 sequences 2\n");
    story_close(&s);
}

static void test_stage_trace_says_what_idle_time_was_for(void **state)
{
    (void)state;
    struct story s;
    struct stage_config config = tape_config();
    config.batching = BATCHING_TICK;
    config.wait_deadline_ns = 1000000;
    story_open(&s, &config, 1);
    /* Nobody to wait for: what the driver needs to take in messages is no idle time. */
    story_frame(&s, 200, 200, 0, 1, 1, 0, 1, true);
    story_time(&s, 260, true);
    story_mate(&s, 280, 2, BUNDLE_BUSY);
    story_done(&s, 300, -1);
    /* The mate may feed us: held back, since the rows came. */
    story_frame(&s, 400, 400, 0, 2, 1, 0, 1, true);
    story_time(&s, 410, false);
    story_mate(&s, 500, 2, BUNDLE_DONE);
    story_time(&s, 510, true);
    /* Rows that are here when a batch ends. */
    story_mate(&s, 520, 2, BUNDLE_BUSY);
    story_frame(&s, 530, 530, 9, 1, 1, 1, 1, true);
    story_done(&s, 600, -1);
    assert_null(s.out->start);
    /* The rows go before the wait is over. */
    story_step(&s, 650, (struct stage_event){.kind = STAGE_CLOSE, .sequence = 1});
    story_step(&s, 700, (struct stage_event){.kind = STAGE_CLOSE, .sequence = 2});
    stage_flush_idle(s.tape.stage, 900);
    check_trace(&s, "100+100 idle starved\n"
                    "260+40 batch rows 1 (1 0 0 0) segments 1 heads 3 in 5\n"
                    "260+40 rows seq 1 loop 1 [0,1) live from 0 hop 0 wait 60 parked 0 revived 0\n"
                    "300+0 pool blocks 1/64 parked 0 ready 0 sequences 2\n"
                    "300+100 idle starved\n"
                    "400+110 idle peer\n"
                    "510+90 batch rows 1 (1 0 0 0) segments 1 heads 3 in 5\n"
                    "510+90 rows seq 2 loop 1 [0,1) live from 0 hop 0 wait 110 parked 0 revived 0\n"
                    "600+0 pool blocks 2/64 parked 0 ready 1 sequences 2\n"
                    "600+50 idle peer\n"
                    "650+250 idle starved\n");
    /* A span that is told goes on from there, once. */
    stage_flush_idle(s.tape.stage, 900);
    stage_flush_idle(s.tape.stage, 1000);
    stage_flush_idle(s.tape.stage, 990);
    check_trace(&s, "900+100 idle starved\n");
    story_close(&s);
}

static void test_stage_trace_begins_with_the_first_event(void **state)
{
    (void)state;
    struct tape t;
    struct trace *trace;
    struct stage_config config = tape_config();
    assert_int_equal(trace_create(1, &trace, NULL), STATUS_OK);
    config.trace = trace;
    tape_create(&t, &config);
    stage_flush_idle(t.stage, 1000); /* there is nothing to tell, and no time it could be since */
    assert_int_equal(trace->n_added, 0);
    tape_time(&t);
    stage_flush_idle(t.stage, t.now_ns + 5);
    assert_int_equal(trace->n_added, 1);
    assert_int_equal(trace->records[0].at_ns, t.now_ns);
    assert_int_equal(trace->records[0].lasted_ns, 5);
    stage_destroy(t.stage);
    trace_destroy(trace);
    config.trace = NULL;
    tape_create(&t, &config);
    stage_flush_idle(t.stage, 1000);
    stage_destroy(t.stage);
}

/* ---- whole rings ---------------------------------------------------------------------------- */

static void run_ring(struct ring *r, uint32_t n_workers, uint64_t seed, enum batching batching,
                     uint64_t trace_bytes)
{
    const struct stage_config config = {.n_loops = 4,
                                        .max_positions = RING_MAX_POSITIONS,
                                        .n_blocks = 2000,
                                        .block_size = 4,
                                        .n_slots = 4000,
                                        .max_sequences = 16,
                                        .max_batch_rows = 24,
                                        .prefill_chunk = 8,
                                        .batching = batching,
                                        .batch_ns = 400,
                                        .row_ns = 20};
    ring_create_traced(r, n_workers, &config, seed, trace_bytes);
    for (uint32_t i = 0; i < 12; i++) {
        struct sequence_params p = {0};
        sequence_params_init(&p);
        p.ring_offset = i;
        p.prompt_tokens = 1 + 3 * (i % 7);
        p.max_tokens = 16;
        p.max_loops = 4;
        p.exit_mode = EXIT_MODE_EXACT;
        p.exit_threshold = 0.6f;
        p.prefill = i % 3 == 0 ? PREFILL_LAZY : PREFILL_EAGER;
        ring_prompt(r, ring_open(r, &p), 5);
        for (uint32_t j = 0; j < i % 4; j++)
            ring_pump(r);
    }
    while (ring_pump(r))
        ;
    for (uint64_t id = 1; id <= r->n_sequences; id++) {
        assert_true(r->sequences[id].is_done);
        ring_check_tokens(&r->sequences[id]);
    }
}

/* What a worker's records add up to. */
struct sums {
    uint64_t n_batches, n_rows, n_heads, n_parked, n_revived, rows_by_loop[SEQUENCE_MAX_LOOPS];
    uint64_t n_exits[RING_MAX_SEQUENCES + 1][SEQUENCE_MAX_LOOPS];
};

static void add_rows(struct sums *sums, const struct trace_record *r, const struct trace_record *b,
                     const struct ring *ring, uint32_t rank)
{
    const struct ring_sequence *q = &ring->sequences[r->sequence];
    const bool is_ours =
        ring_worker((int)ring->n_workers, q->params.ring_offset, r->loop) == (int)rank - 1;
    assert_true(is_ours && r->at_ns == b->at_ns && r->lasted_ns == b->lasted_ns);
    assert_true(r->n_rows > 0 && r->position + r->n_rows <= q->n_computed[r->loop - 1]);
    /* All clocks are one here. */
    assert_true(r->peer == rank ? r->rows.hop_ns == 0 : r->rows.hop_ns >= 0);
    assert_true(r->peer <= ring->n_workers && (r->peer > 0 || r->loop == 1));
    assert_true(r->rows.n_parked == 0 || r->rows.n_parked == r->n_rows);
    assert_true((r->flags & TRACE_LIVE) || !(r->flags & TRACE_EXIT));
    sums->n_parked += r->rows.n_parked;
    sums->n_revived += r->rows.n_revived;
    sums->rows_by_loop[r->loop - 1] += r->n_rows;
    sums->n_exits[r->sequence][r->loop - 1] += (r->flags & TRACE_EXIT) != 0;
}

/* Batches and idle spans of a worker follow each other; segments belong to their batch. */
static void add_worker(struct sums *all, const struct ring *ring, uint32_t w)
{
    const struct trace *trace = ring->workers[w].trace;
    static struct sums sums;
    memset(&sums, 0, sizeof sums);
    assert_true(trace->n_added > 0 && trace->n_added <= trace->mask + 1);
    uint64_t free_from_ns = 0, n_rows_left = 0, n_pools = 0;
    const struct trace_record *batch = NULL;
    for (uint64_t i = 0; i < trace->n_added; i++) {
        const struct trace_record *r = &trace->records[i];
        assert_int_equal(trace_record_check(r, NULL), STATUS_OK);
        if (r->kind == TRACE_ROWS) {
            assert_true(r->n_rows <= n_rows_left);
            n_rows_left -= r->n_rows;
            add_rows(&sums, r, batch, ring, w + 1);
            continue;
        }
        assert_int_equal(n_rows_left, 0);
        if (r->kind == TRACE_POOL) {
            assert_int_equal(r->at_ns, free_from_ns);
            n_pools++;
            continue;
        }
        assert_true(r->lasted_ns > 0 && r->at_ns >= free_from_ns);
        free_from_ns = r->at_ns + r->lasted_ns;
        if (r->kind != TRACE_BATCH) {
            assert_int_equal(r->kind, TRACE_IDLE);
            continue;
        }
        batch = r;
        n_rows_left = r->n_rows;
        sums.n_batches++;
        sums.n_rows += r->n_rows;
        sums.n_heads += r->batch.n_heads;
    }
    struct control_stats stats = {0};
    stage_fill_stats(ring->workers[w].stage, &stats);
    assert_int_equal(sums.n_batches, stats.n_batches);
    assert_int_equal(n_pools, stats.n_batches);
    assert_int_equal(sums.n_rows, stats.n_rows);
    assert_int_equal(sums.n_heads, stats.n_heads);
    assert_int_equal(sums.n_parked, stats.n_parked_total);
    assert_int_equal(sums.n_revived, stats.n_revived_total);
    assert_memory_equal(sums.rows_by_loop, stats.rows_by_loop, sizeof sums.rows_by_loop);
    all->n_parked += sums.n_parked;
    all->n_revived += sums.n_revived;
    for (uint64_t id = 1; id <= ring->n_sequences; id++)
        for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
            all->n_exits[id][t] += sums.n_exits[id][t];
}

static void test_stage_trace_adds_up_over_whole_rings(void **state)
{
    (void)state;
    static struct ring r;
    for (uint32_t n_workers = 1; n_workers <= 4; n_workers++) {
        run_ring(&r, n_workers, 40 + n_workers, BATCHING_KNEE, 1 << 20);
        static struct sums all;
        memset(&all, 0, sizeof all);
        uint64_t n_parked_now = 0;
        for (uint32_t w = 0; w < n_workers; w++) {
            add_worker(&all, &r, w);
            n_parked_now += r.workers[w].stage->n_parked;
        }
        /* Every token got off where its row's segment says. */
        for (uint64_t id = 1; id <= r.n_sequences; id++) {
            uint64_t n_exits[SEQUENCE_MAX_LOOPS] = {0};
            for (uint32_t i = 0; i < r.sequences[id].n_tokens; i++)
                n_exits[r.sequences[id].exits[i] - 1]++;
            assert_memory_equal(n_exits, all.n_exits[id], sizeof n_exits);
        }
        /* Nothing is closed: who was parked and did not go on is still there. */
        assert_true(all.n_parked > 0 && all.n_revived > 0);
        assert_int_equal(all.n_parked - all.n_revived, n_parked_now);
        ring_destroy(&r);
    }
}

static void test_stage_trace_decides_nothing(void **state)
{
    (void)state;
    static struct ring with, without;
    for (int batching = BATCHING_GREEDY; batching <= BATCHING_ROUND; batching++) {
        run_ring(&with, 3, 5, (enum batching)batching, 64);
        run_ring(&without, 3, 5, (enum batching)batching, 0);
        assert_int_equal(with.now_ns, without.now_ns);
        assert_int_equal(with.n_batches, without.n_batches);
        assert_int_equal(with.n_rows, without.n_rows);
        assert_int_equal(with.n_messages, without.n_messages);
        for (uint64_t id = 1; id <= with.n_sequences; id++)
            assert_memory_equal(with.sequences[id].ids, without.sequences[id].ids,
                                sizeof with.sequences[id].ids);
        for (uint32_t w = 0; w < 3; w++) {
            assert_null(without.workers[w].stage->arrivals);
            assert_true(with.workers[w].trace->n_added > 100); /* in a buffer of one record */
        }
        ring_destroy(&with);
        ring_destroy(&without);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_trace_tells_a_batch_its_segments_and_the_pool),
        cmocka_unit_test(test_stage_trace_waits_from_the_oldest_row_of_a_segment),
        cmocka_unit_test(test_stage_trace_says_what_idle_time_was_for),
        cmocka_unit_test(test_stage_trace_begins_with_the_first_event),
        cmocka_unit_test(test_stage_trace_adds_up_over_whole_rings),
        cmocka_unit_test(test_stage_trace_decides_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
