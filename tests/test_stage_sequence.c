/* stage: opening is refused with a reason, closing frees everything at the first moment it may,
 * create fails cleanly. */
#include "tests/stage_tape.h"

/* A huge table must fail as it does without a sanitizer. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void test_stage_open_is_refused_with_a_reason(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.max_sequences = 2;
    c.n_blocks = 4;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(4, 0, 3);
    tape_open(&t, &p);
    tape_open(&t, &p);
    p.sequence = 5;
    p.max_loops = 5;
    tape_open(&t, &p);
    p.max_loops = 4;
    p.prompt_tokens = 65;
    tape_open(&t, &p);
    p.prompt_tokens = 0;
    tape_open(&t, &p);
    p.prompt_tokens = 8;
    tape_open(&t, &p);
    p.prompt_tokens = 3;
    tape_open(&t, &p);
    p.sequence = 6;
    tape_open(&t, &p);
    tape_close(&t, 6);
    tape_memory(&t);
    tape_check(&t, "> open 4\n"
                   "opened seq 4\n"
                   "> open 4\n"
                   "opened seq 4: invalid: sequence 4 cannot be opened after 4: ids ascend\n"
                   "> open 5\n"
                   "opened seq 5: invalid: max_loops 5 with min_loops 1; the model has 4 loops\n"
                   "> open 5\n"
                   "opened seq 5: invalid: prompt_tokens 65 and max_tokens 10; both start at 1 "
                   "and the model has 64 positions\n"
                   "> open 5\n"
                   "opened seq 5: invalid: prompt_tokens 0 and max_tokens 10; both start at 1 and "
                   "the model has 64 positions\n"
                   "> open 5\n"
                   "opened seq 5: no_memory: 17 positions at 1 loops need 5 KV blocks; this "
                   "worker has 4: raise --kv-memory\n"
                   "> open 5\n"
                   "opened seq 5\n"
                   "> open 6\n"
                   "opened seq 6: full: all 2 places for sequences are taken\n"
                   "> close 6\n"
                   "closed seq 6\n"
                   "blocks 0 slots 0 parked 0 sequences 2 stale 0\n");
}

static void test_stage_close_frees_waiting_and_parked_rows_at_once(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 12);
    p.prefill = PREFILL_LAZY;
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 6, false);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_frame(&t, 1, 1, 6, 12, true);
    tape_memory(&t);
    tape_close(&t, 1);
    tape_memory(&t);
    tape_time(&t);
    tape_close(&t, 1);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,6)\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,6)\n"
                   "> done: on\n"
                   "> frame seq 1 loop 1 [6,12) live\n"
                   "blocks 2 slots 12 parked 6 sequences 1 stale 0\n"
                   "> close 1\n"
                   "closed seq 1\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 0\n"
                   "> time\n"
                   "> close 1\n"
                   "closed seq 1\n");
}

static void test_stage_close_waits_for_the_running_batch(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 12);
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 12, true);
    tape_time(&t);
    tape_close(&t, 1);
    tape_close(&t, 1);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,12) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,8)\n"
                   "> close 1\n"
                   "> close 1\n"
                   "blocks 2 slots 8 parked 0 sequences 1 stale 0\n"
                   "> done: on\n"
                   "closed seq 1\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 0\n");
}

static void test_stage_close_while_a_frame_is_under_way(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2);
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_close(&t, 1);
    assert_int_equal(tape_frame(&t, 1, 1, 2, 3, true), STATUS_OK);
    tape_time(&t);
    tape_memory(&t);
    /* Its place is free for another. */
    p.sequence = 2;
    tape_open(&t, &p);
    tape_frame(&t, 2, 1, 0, 2, true);
    assert_int_equal(tape_frame(&t, 1, 1, 3, 4, true), STATUS_OK);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,2) live\n"
                   "> done: on\n"
                   "send to 1: seq 1 loop 2 [0,2) live cdf 0.5 ids 100 101\n"
                   "> close 1\n"
                   "closed seq 1\n"
                   "> frame seq 1 loop 1 [2,3) live\n"
                   "> time\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 2 loop 1 [0,2) live\n"
                   "> frame seq 1 loop 1 [3,4) live\n"
                   "blocks 0 slots 2 parked 0 sequences 1 stale 2\n");
}

static void test_stage_failed_sequence_in_a_batch_is_freed_after_it(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 8);
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 4, false);
    tape_time(&t);
    assert_int_equal(tape_frame(&t, 1, 1, 6, 8, true), STATUS_CORRUPT);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_close(&t, 1);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,4)\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,4)\n"
                   "> frame seq 1 loop 1 [6,8) live\n"
                   "error corrupt: missing frame: sequence 1 loop 1 starts at position 6, "
                   "expected 4 (frontier 0)\n"
                   "failed seq 1: corrupt: missing frame: sequence 1 loop 1 starts at position 6, "
                   "expected 4 (frontier 0)\n"
                   "blocks 1 slots 4 parked 0 sequences 1 stale 0\n"
                   "> done: on\n"
                   "blocks 0 slots 0 parked 0 sequences 1 stale 0\n"
                   "> close 1\n"
                   "closed seq 1\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 0\n");
}

static void test_stage_frontiers_are_reported(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 1;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 3);
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 3, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, 103);
    TAPE_DONE(&t, 104);
    uint32_t frontiers[4] = {9, 9, 9, 9};
    assert_false(stage_frontiers(t.stage, 2, frontiers));
    assert_true(stage_frontiers(t.stage, 1, frontiers));
    const uint32_t expected[4] = {4, 3, 0, 0};
    assert_memory_equal(frontiers, expected, sizeof expected);
    stage_destroy(t.stage);
}

static void test_stage_create_refuses_impossible_sizes(void **state)
{
    (void)state;
    struct stage *s = NULL;
    struct err err = {0};
    struct stage_config c = tape_config();
    c.block_size = 0;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_INVALID);
    assert_string_equal(err.message, "stage: block_size is 0; allowed is 1..2147483647");
    c = tape_config();
    c.ring_index = 4;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_INVALID);
    assert_string_equal(err.message, "stage: ring_index is 4; allowed is 0..3");
    c = tape_config();
    c.ring_size = 0;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_INVALID);
    c = tape_config();
    c.n_loops = SEQUENCE_MAX_LOOPS + 1;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_INVALID);
    assert_null(s);
    stage_destroy(NULL);
}

static void test_stage_create_without_memory_leaves_nothing(void **state)
{
    (void)state;
    struct stage *s = NULL;
    struct err err = {0};
    struct stage_config c = tape_config();
    /* Its one allocation fails: 2^62 bytes of ids. */
    c.n_blocks = 1u << 30;
    c.block_size = 1u << 30;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "--kv-memory"));
    /* The size itself does not fit. */
    c.n_blocks = c.block_size = INT32_MAX;
    assert_int_equal(stage_create(&c, &s, &err), STATUS_NO_MEMORY);
    assert_null(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_open_is_refused_with_a_reason),
        cmocka_unit_test(test_stage_close_frees_waiting_and_parked_rows_at_once),
        cmocka_unit_test(test_stage_close_waits_for_the_running_batch),
        cmocka_unit_test(test_stage_close_while_a_frame_is_under_way),
        cmocka_unit_test(test_stage_failed_sequence_in_a_batch_is_freed_after_it),
        cmocka_unit_test(test_stage_frontiers_are_reported),
        cmocka_unit_test(test_stage_create_refuses_impossible_sizes),
        cmocka_unit_test(test_stage_create_without_memory_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
