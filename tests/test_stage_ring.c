/* stage: whole rings of 1, 2, 3, 4 and 6 workers: long prompts, eager and lazy, full mode, small
 * depths, what mates tell each other. */
#include "tests/stage_ring.h"

static const uint32_t ring_sizes[] = {1, 2, 3, 4, 6};
enum { N_RING_SIZES = sizeof ring_sizes / sizeof ring_sizes[0] };

static struct stage_config config_of(enum batching batching, uint32_t chunk)
{
    return (struct stage_config){.n_loops = 4,
                                 .max_positions = RING_MAX_POSITIONS,
                                 .n_blocks = 1000,
                                 .block_size = 4,
                                 .n_slots = 4000,
                                 .max_sequences = 16,
                                 .max_batch_rows = 32,
                                 .prefill_chunk = chunk,
                                 .batching = batching,
                                 .batch_ns = 1000,
                                 .row_ns = 10};
}

static struct sequence_params params_of(uint32_t prompt, uint32_t max_tokens, float threshold)
{
    struct sequence_params p = {0};
    sequence_params_init(&p);
    p.prompt_tokens = prompt;
    p.max_tokens = max_tokens;
    p.max_loops = 4;
    p.exit_mode = EXIT_MODE_EXACT;
    p.exit_threshold = threshold;
    return p;
}

static void run_to_the_end(struct ring *r)
{
    while (ring_pump(r))
        ;
    for (uint64_t id = 1; id <= r->n_sequences; id++) {
        assert_true(r->sequences[id].is_done);
        ring_check_tokens(&r->sequences[id]);
    }
    assert_int_equal(r->n_failed, 0);
}

static uint64_t rows_computed(const struct ring_sequence *q)
{
    uint64_t n = 0;
    for (int t = 0; t < SEQUENCE_MAX_LOOPS; t++)
        n += q->n_computed[t];
    return n;
}

static void test_stage_ring_long_prompts_give_the_same_tokens_everywhere(void **state)
{
    (void)state;
    static struct ring r;
    const uint32_t chunks[] = {1, 7, 64};
    for (int i = 0; i < N_RING_SIZES; i++) {
        for (int j = 0; j < 3; j++) {
            struct stage_config c = config_of(BATCHING_KNEE, chunks[j]);
            c.n_in_flight = 1 + (uint32_t)(i + j) % 2;
            ring_create(&r, ring_sizes[i], &c, 7 + (uint64_t)j);
            for (uint32_t k = 0; k < 6; k++) {
                struct sequence_params p = params_of(40 + k, 6, 0.6f);
                p.ring_offset = k;
                p.prefill = k % 2 ? PREFILL_LAZY : PREFILL_EAGER;
                ring_prompt(&r, ring_open(&r, &p), 100);
            }
            run_to_the_end(&r);
            ring_destroy(&r);
        }
    }
}

/* Whoever asks for the targets of a prompt hears all its rows at all loops, however early its last
 * row gets off; and the tokens are the same. */
static void test_stage_ring_prompts_with_targets_run_all_loops(void **state)
{
    (void)state;
    static struct ring r;
    const uint32_t chunks[] = {1, 7, 64};
    for (int i = 0; i < N_RING_SIZES; i++) {
        for (int j = 0; j < 3; j++) {
            struct stage_config c = config_of(BATCHING_KNEE, chunks[j]);
            ring_create(&r, ring_sizes[i], &c, 17 + (uint64_t)j);
            for (uint32_t k = 0; k < 6; k++) {
                struct sequence_params p = params_of(2 + 8 * k, 1 + k, 0.3f);
                p.ring_offset = k;
                p.n_observe_targets = p.prompt_tokens - 1;
                ring_prompt(&r, ring_open(&r, &p), 100);
            }
            run_to_the_end(&r);
            uint32_t n_early = 0;
            for (uint64_t id = 1; id <= r.n_sequences; id++) {
                const struct ring_sequence *q = &r.sequences[id];
                n_early += q->exits[0] < 4;
                for (int t = 0; t < 4; t++)
                    assert_true(q->n_computed[t] >= q->params.prompt_tokens);
            }
            assert_true(n_early > 0);
            ring_destroy(&r);
        }
    }
}

/* A prompt of 64 rows in chunks of 16 over W workers, all loops: how long until its first token, in
 * units of one chunk at one loop. One worker runs 4 chunks * 4 loops; four workers form a pipeline,
 * 4 + 3 deep. */
static void test_stage_ring_prompt_chunks_flow_through_the_workers(void **state)
{
    (void)state;
    static struct ring r;
    static const struct {
        uint32_t n_workers, low, high;
    } table[] = {{1, 16, 17}, {2, 8, 11}, {4, 7, 8}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct stage_config c = config_of(BATCHING_KNEE, 16);
        c.max_batch_rows = 16;
        c.batch_ns = 0;
        c.row_ns = 1000;
        ring_create(&r, table[i].n_workers, &c, 3);
        struct sequence_params p = params_of(64, 1, 1.0f);
        ring_prompt(&r, ring_open(&r, &p), 100);
        run_to_the_end(&r);
        uint64_t chunks = r.now_ns / 16000;
        if (chunks < table[i].low || chunks > table[i].high)
            fail_msg("%u workers took %llu chunk times", table[i].n_workers,
                     (unsigned long long)chunks);
        ring_destroy(&r);
    }
}

/* Runs 8 sequences through one worker, whose knee is at 10 rows; returns how many
 * batches it took. */
static uint64_t count_batches(uint32_t n_in_flight, uint32_t prompt, uint32_t max_tokens,
                              uint64_t *n_overlapped)
{
    static struct ring r;
    struct stage_config c = config_of(BATCHING_ROUND, 16);
    c.n_in_flight = n_in_flight;
    c.row_ns = 100;
    ring_create(&r, 1, &c, 11);
    for (uint32_t k = 0; k < 8; k++) {
        struct sequence_params p = params_of(prompt, max_tokens, 0.6f);
        ring_prompt(&r, ring_open(&r, &p), 100);
    }
    run_to_the_end(&r);
    uint64_t n = r.n_batches;
    *n_overlapped = r.n_overlapped;
    ring_destroy(&r);
    return n;
}

/* With all rows in one batch, a second one in flight would only split them. */
static void test_stage_ring_two_in_flight_do_not_split_a_decode(void **state)
{
    (void)state;
    uint64_t n_one, n_two, n_overlapped;
    n_one = count_batches(1, 1, 30, &n_overlapped);
    n_two = count_batches(2, 1, 30, &n_overlapped);
    assert_int_equal(n_one, n_two);
    assert_int_equal(n_overlapped, 0);
    count_batches(2, 60, 1, &n_overlapped);
    assert_true(n_overlapped > 0); /* prompts keep two in flight */
}

static void test_stage_ring_lazy_prompts_compute_no_more_than_needed(void **state)
{
    (void)state;
    static struct ring r;
    for (int i = 0; i < N_RING_SIZES; i++) {
        struct stage_config c = config_of(BATCHING_KNEE, 8);
        ring_create(&r, ring_sizes[i], &c, 5);
        /* Every token exits at loop 1: lazy never goes deeper, eager takes the prompt through all
         * loops but for its last position's segment. */
        struct sequence_params p = params_of(20, 5, 0.5f);
        p.n_force_exits = 1;
        p.force_exits[0] = 1.0f;
        p.prefill = PREFILL_LAZY;
        uint64_t lazy = ring_open(&r, &p);
        p.prefill = PREFILL_EAGER;
        uint64_t eager = ring_open(&r, &p);
        ring_prompt(&r, lazy, 100);
        ring_prompt(&r, eager, 100);
        run_to_the_end(&r);
        assert_int_equal(rows_computed(&r.sequences[lazy]), 24);
        assert_int_equal(r.sequences[eager].n_computed[0], 24);
        /* The segment with the live row, positions 16..19, stays parked after loop 1. */
        for (int t = 1; t < 4; t++)
            assert_int_equal(r.sequences[eager].n_computed[t], 16);
        uint32_t n_parked = 0;
        for (uint32_t w = 0; w < r.n_workers; w++)
            n_parked += r.workers[w].stage->n_parked;
        assert_int_equal(n_parked, 24 + 8);
        ring_destroy(&r);
    }
}

static void test_stage_ring_full_mode_computes_everything(void **state)
{
    (void)state;
    static struct ring r;
    for (int i = 0; i < N_RING_SIZES; i++) {
        struct stage_config c = config_of(BATCHING_TICK, 8);
        ring_create(&r, ring_sizes[i], &c, 5);
        struct sequence_params p = params_of(20, 5, 0.1f);
        p.exit_mode = EXIT_MODE_FULL;
        for (int k = 0; k < 3; k++) {
            p.prefill = k == 1 ? PREFILL_LAZY : PREFILL_EAGER;
            p.max_loops = k == 2 ? 3 : 4;
            p.ring_offset = (uint32_t)k;
            ring_prompt(&r, ring_open(&r, &p), 100);
        }
        run_to_the_end(&r);
        for (uint64_t id = 1; id <= 3; id++) {
            uint32_t depth = r.sequences[id].params.max_loops;
            assert_int_equal(rows_computed(&r.sequences[id]), 24 * depth);
            for (int k = 0; k < 5; k++)
                assert_int_equal(r.sequences[id].exits[k], depth);
        }
        for (uint32_t w = 0; w < r.n_workers; w++)
            assert_int_equal(r.workers[w].stage->slots.n_used, 0);
        ring_destroy(&r);
    }
}

static void test_stage_ring_exact_computes_less_than_full(void **state)
{
    (void)state;
    static struct ring r;
    struct stage_config c = config_of(BATCHING_KNEE, 8);
    ring_create(&r, 4, &c, 5);
    /* q = 0.2 with lambdas even in [0, 1): four of five tokens exit at loop 1. */
    struct sequence_params p = params_of(4, 60, 0.2f);
    ring_prompt(&r, ring_open(&r, &p), 100);
    p.exit_threshold = 1.0f;
    ring_prompt(&r, ring_open(&r, &p), 100);
    run_to_the_end(&r);
    assert_int_equal(rows_computed(&r.sequences[2]), 63 * 4);
    assert_true(rows_computed(&r.sequences[1]) < 63 * 4);
    uint32_t n_shallow = 0;
    for (uint32_t i = 0; i < r.sequences[1].n_tokens; i++)
        n_shallow += r.sequences[1].exits[i] == 1;
    assert_true(n_shallow > 30);
    ring_destroy(&r);
}

/* Runs 40 sequences through n_workers where a batch's fixed cost dominates and varies by a quarter;
 * returns the rows of a batch and the time. */
static void run_rule(enum batching rule, uint32_t n_workers, const float *exits, double *rows,
                     double *time_ns)
{
    static struct ring r;
    struct stage_config c = config_of(rule, 8);
    c.max_sequences = 40;
    c.batch_ns = 100000;
    c.row_ns = 100;
    ring_create(&r, n_workers, &c, 5);
    for (uint32_t k = 0; k < 40; k++) {
        struct sequence_params p = params_of(2, 60, 0.9f);
        p.ring_offset = k;
        p.n_force_exits = 4;
        memcpy(p.force_exits, exits, 4 * sizeof *exits);
        p.sampling.seed = k + 1;
        ring_prompt(&r, ring_open(&r, &p), 100);
    }
    run_to_the_end(&r);
    *rows = (double)r.n_rows / (double)r.n_batches;
    *time_ns = (double)r.now_ns;
    uint64_t n_notes = 0;
    for (uint32_t w = 0; w < r.n_workers; w++)
        n_notes += r.workers[w].n_notes;
    assert_true((n_notes == 0) == (rule == BATCHING_GREEDY));
    ring_destroy(&r);
}

/* Waiting for the mates must make fuller batches, and more tokens in the same time, than starting
 * at once where exits mix; and must not cost where there is nothing to wait for, because the ring's
 * rows all take the same way. */
static void test_stage_ring_batching_rules_when_weight_bound(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_workers;
        float exits[4];
    } cases[] = {
        {4, {0.1f, 0.3f, 0.3f, 0.3f}}, /* as in the design's table */
        {6, {0.1f, 0.3f, 0.3f, 0.3f}},
        {4, {0.0f, 0.0f, 0.0f, 1.0f}},
        {6, {0.7f, 0.1f, 0.1f, 0.1f}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double rows[4], time_ns[4];
        printf("%u workers, exits from loop 1 on %.1f: rows per batch, ms:", cases[i].n_workers,
               (double)cases[i].exits[0]);
        for (int b = BATCHING_GREEDY; b <= BATCHING_ROUND; b++) {
            run_rule((enum batching)b, cases[i].n_workers, cases[i].exits, &rows[b], &time_ns[b]);
            printf("  %.2f %.2f", rows[b], time_ns[b] / 1e6);
        }
        printf("\n");
        bool is_mixed = cases[i].exits[3] < 1.0f;
        if (is_mixed && cases[i].n_workers == 4) {
            assert_true(rows[BATCHING_KNEE] > 1.2 * rows[BATCHING_GREEDY]);
            assert_true(time_ns[BATCHING_KNEE] < 0.95 * time_ns[BATCHING_GREEDY]);
        }
        if (is_mixed)
            assert_true(time_ns[BATCHING_ROUND] < 0.95 * time_ns[BATCHING_GREEDY]);
        assert_true(time_ns[BATCHING_ROUND] < 1.02 * time_ns[BATCHING_GREEDY]);
        assert_true(time_ns[BATCHING_ROUND] < 1.05 * time_ns[BATCHING_KNEE]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_ring_long_prompts_give_the_same_tokens_everywhere),
        cmocka_unit_test(test_stage_ring_prompts_with_targets_run_all_loops),
        cmocka_unit_test(test_stage_ring_prompt_chunks_flow_through_the_workers),
        cmocka_unit_test(test_stage_ring_two_in_flight_do_not_split_a_decode),
        cmocka_unit_test(test_stage_ring_lazy_prompts_compute_no_more_than_needed),
        cmocka_unit_test(test_stage_ring_full_mode_computes_everything),
        cmocka_unit_test(test_stage_ring_exact_computes_less_than_full),
        cmocka_unit_test(test_stage_ring_batching_rules_when_weight_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
