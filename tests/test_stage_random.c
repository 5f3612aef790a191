/* stage: whole rings under random sequences, exits, chunk sizes, delays and closes give the tokens
 * of the plain model, compute every row once, and give everything back. */
#include "tests/stage_ring.h"

#include <time.h>

static struct sequence_params random_params(struct ring *r)
{
    struct sequence_params p = {0};
    sequence_params_init(&p);
    p.ring_offset = ring_random(r, 8);
    p.prompt_tokens = 1 + ring_random(r, ring_random(r, 3) == 0 ? 40 : 6);
    p.max_tokens = 1 + ring_random(r, 20);
    p.min_tokens = ring_random(r, 3);
    p.exit_mode = ring_random(r, 4) == 0 ? EXIT_MODE_FULL : EXIT_MODE_EXACT;
    p.exit_threshold = (float)(1 + ring_random(r, 10)) / 10.0f;
    p.max_loops = 1 + ring_random(r, r->config.n_loops);
    p.min_loops = 1 + ring_random(r, p.max_loops);
    p.prefill = ring_random(r, 2) ? PREFILL_EAGER : PREFILL_LAZY;
    if (ring_random(r, 4) == 0)
        p.n_observe_targets = p.prompt_tokens - 1;
    p.n_stop_ids = ring_random(r, 3);
    for (uint32_t i = 0; i < p.n_stop_ids; i++)
        p.stop_ids[i] = (int32_t)ring_random(r, RING_VOCAB);
    if (ring_random(r, 4) == 0) {
        p.n_force_exits = p.max_loops;
        for (uint32_t i = 0; i < p.max_loops; i++)
            p.force_exits[i] = 1.0f / (float)p.max_loops;
        p.sampling.seed = r->random;
    }
    return p;
}

static void check_empty(struct ring *r)
{
    for (uint32_t w = 0; w < r->n_workers; w++) {
        struct control_stats stats = {0};
        stage_fill_stats(r->workers[w].stage, &stats);
        assert_int_equal(stats.kv_blocks_used, 0);
        assert_int_equal(stats.row_slots_used, 0);
        assert_int_equal(stats.parked_rows, 0);
        assert_int_equal(stats.n_sequences, 0);
        for (uint32_t m = 0; m < r->n_workers; m++)
            assert_false(r->workers[w].was_told_busy[m]);
        assert_int_equal(r->workers[w].stage->n_awaited_mates, 0);
    }
}

/* Returns how many batches were started while another one ran. */
static uint64_t run_one(uint64_t seed)
{
    static struct ring ring;
    struct ring *r = &ring;
    uint64_t dice = ring_mix(seed, 1);
    uint32_t n_workers = 1 + (uint32_t)(dice % RING_MAX_WORKERS);
    struct stage_config c = {.n_loops = 1 + (uint32_t)(dice >> 8) % 6,
                             .max_positions = RING_MAX_POSITIONS,
                             .n_blocks = 4000,
                             .block_size = 1 + (uint32_t)(dice >> 16) % 5,
                             .n_slots = 4000,
                             .max_sequences = 12,
                             .max_batch_rows = 1 + (uint32_t)(dice >> 24) % 24,
                             .prefill_chunk = 1 + (uint32_t)(dice >> 32) % 12,
                             .n_in_flight = 1 + (uint32_t)(dice >> 36) % STAGE_MAX_IN_FLIGHT,
                             .batching = (enum batching)((dice >> 40) % 4),
                             .batch_ns = 40,
                             .row_ns = 1 + (dice >> 48) % 20};
    ring_create(r, n_workers, &c, seed);
    uint32_t n_open = 0, n_checked = 0;
    const uint32_t n_sequences = 24;
    for (;;) {
        if (r->n_sequences < n_sequences && n_open < c.max_sequences && ring_random(r, 20) == 0) {
            struct sequence_params p = random_params(r);
            ring_prompt(r, ring_open(r, &p), 1 + ring_random(r, 50));
            n_open++;
        }
        for (uint64_t id = 1; id <= r->n_sequences; id++) {
            struct ring_sequence *q = &r->sequences[id];
            if (q->n_closed == n_workers) {
                q->n_closed = 0;
                n_open--;
                n_checked++;
                ring_check_tokens(q);
            } else if (!q->is_closing && (q->is_done || ring_random(r, 2000) == 0)) {
                ring_close(r, id);
            }
        }
        if (!ring_pump(r) && r->n_sequences == n_sequences && n_open == 0)
            break;
    }
    assert_int_equal(n_checked, n_sequences);
    assert_int_equal(r->n_failed, 0);
    check_empty(r);
    assert_true(c.n_in_flight > 1 || r->n_overlapped == 0);
    ring_destroy(r);
    return r->n_overlapped;
}

static void test_stage_random_rings_equal_the_plain_model(void **state)
{
    (void)state;
    const char *given = getenv("STAGE_SEED");
    uint64_t base = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
    uint64_t n = given != NULL ? 1 : 60, n_overlapped = 0;
    for (uint64_t i = 0; i < n; i++) {
        printf("stage_random: STAGE_SEED=%llu\n", (unsigned long long)(base + i));
        n_overlapped += run_one(base + i);
    }
    assert_true(given != NULL || n_overlapped > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_random_rings_equal_the_plain_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
