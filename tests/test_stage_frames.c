/* stage: a frame that is doubled, missing, stale, misrouted or impossible is seen at once, and
 * harms its own sequence only. */
#include "tests/stage_tape.h"

static struct tape tape_with_one_open(uint32_t prompt)
{
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(5, 0, prompt);
    tape_open(&t, &p);
    return t;
}

static void test_stage_doubled_frame_is_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    tape_frame(&t, 5, 1, 0, 4, false);
    assert_int_equal(tape_frame(&t, 5, 1, 0, 4, false), STATUS_CORRUPT);
    tape_memory(&t);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "error corrupt: doubled frame: sequence 5 loop 1 starts at position 0, "
                   "expected 4 (frontier 0)\n"
                   "failed seq 5: corrupt: doubled frame: sequence 5 loop 1 starts at position 0, "
                   "expected 4 (frontier 0)\n"
                   "blocks 0 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_doubled_frame_after_its_batch_is_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    tape_frame(&t, 5, 1, 0, 4, false);
    tape_time(&t);
    assert_int_equal(tape_frame(&t, 5, 1, 0, 4, false), STATUS_CORRUPT);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "> time\n"
                   "start: seq 5 loop 1 [0,4)\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "error corrupt: doubled frame: sequence 5 loop 1 starts at position 0, "
                   "expected 4 (frontier 0)\n"
                   "failed seq 5: corrupt: doubled frame: sequence 5 loop 1 starts at position 0, "
                   "expected 4 (frontier 0)\n"
                   "blocks 1 slots 4 parked 0 sequences 1 stale 0\n"
                   "> done: on\n"
                   "blocks 0 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_missing_frame_is_corrupt_and_others_go_on(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    struct sequence_params p = tape_params(6, 0, 2);
    tape_open(&t, &p);
    tape_frame(&t, 6, 1, 0, 2, true);
    assert_int_equal(tape_frame(&t, 5, 1, 4, 8, true), STATUS_CORRUPT);
    tape_time(&t);
    tape_close(&t, 5);
    TAPE_DONE(&t, 602);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> frame seq 6 loop 1 [0,2) live\n"
                   "> frame seq 5 loop 1 [4,8) live\n"
                   "error corrupt: missing frame: sequence 5 loop 1 starts at position 4, "
                   "expected 0 (frontier 0)\n"
                   "failed seq 5: corrupt: missing frame: sequence 5 loop 1 starts at position 4, "
                   "expected 0 (frontier 0)\n"
                   "> time\n"
                   "start: seq 6 loop 1 [0,2) live\n"
                   "> close 5\n"
                   "closed seq 5\n"
                   "> done: exit with 602\n"
                   "token seq 6 position 2 id 602 exit 1 cdf 0.5\n"
                   "start: seq 6 loop 1 [2,3) live\n");
}

static void test_stage_frames_of_failed_and_closed_sequences_are_stale(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    assert_int_equal(tape_frame(&t, 5, 1, 4, 8, true), STATUS_CORRUPT);
    assert_int_equal(tape_frame(&t, 5, 1, 0, 4, false), STATUS_OK);
    tape_close(&t, 5);
    assert_int_equal(tape_frame(&t, 5, 1, 0, 4, false), STATUS_OK);
    assert_int_equal(tape_frame(&t, 3, 1, 0, 4, false), STATUS_OK);
    tape_memory(&t);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 1 [4,8) live\n"
                   "error corrupt: missing frame: sequence 5 loop 1 starts at position 4, "
                   "expected 0 (frontier 0)\n"
                   "failed seq 5: corrupt: missing frame: sequence 5 loop 1 starts at position 4, "
                   "expected 0 (frontier 0)\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "> close 5\n"
                   "closed seq 5\n"
                   "> frame seq 5 loop 1 [0,4)\n"
                   "> frame seq 3 loop 1 [0,4)\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 3\n");
}

static void test_stage_frame_of_a_sequence_never_opened_is_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    assert_int_equal(tape_frame(&t, 6, 1, 0, 4, false), STATUS_CORRUPT);
    tape_memory(&t);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 6 loop 1 [0,4)\n"
                   "error corrupt: sequence 6 loop 1 position 0 was never opened here; the last "
                   "one opened is 5\n"
                   "failed seq 6: corrupt: sequence 6 loop 1 position 0 was never opened here; "
                   "the last one opened is 5\n"
                   "blocks 0 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_misrouted_frames_are_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    assert_int_equal(tape_frame(&t, 5, 2, 0, 4, false), STATUS_CORRUPT);
    /* In a ring of one, no worker is there that could send a deeper loop. */
    struct sequence_params p = tape_params(6, 0, 8);
    struct stage_config c = tape_config();
    c.ring_size = 1;
    stage_destroy(t.stage);
    assert_int_equal(stage_create(&c, &t.stage, NULL), STATUS_OK);
    tape_open(&t, &p);
    assert_int_equal(tape_frame(&t, 6, 2, 0, 4, false), STATUS_CORRUPT);
    /* A loop the sequence does not have. */
    p = tape_params(7, 0, 8);
    p.max_loops = 2;
    tape_open(&t, &p);
    assert_int_equal(tape_frame(&t, 7, 3, 0, 4, false), STATUS_CORRUPT);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 2 [0,4)\n"
                   "error corrupt: misrouted frame: sequence 5 (ring offset 0, 4 loops) loop 2 "
                   "position 0 reached ring worker 0 of 4\n"
                   "failed seq 5: corrupt: misrouted frame: sequence 5 (ring offset 0, 4 loops) "
                   "loop 2 position 0 reached ring worker 0 of 4\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> frame seq 6 loop 2 [0,4)\n"
                   "error corrupt: misrouted frame: sequence 6 (ring offset 0, 4 loops) loop 2 "
                   "position 0 reached ring worker 0 of 1\n"
                   "failed seq 6: corrupt: misrouted frame: sequence 6 (ring offset 0, 4 loops) "
                   "loop 2 position 0 reached ring worker 0 of 1\n"
                   "> open 7\n"
                   "opened seq 7\n"
                   "> frame seq 7 loop 3 [0,4)\n"
                   "error corrupt: misrouted frame: sequence 7 (ring offset 0, 2 loops) loop 3 "
                   "position 0 reached ring worker 0 of 1\n"
                   "failed seq 7: corrupt: misrouted frame: sequence 7 (ring offset 0, 2 loops) "
                   "loop 3 position 0 reached ring worker 0 of 1\n");
}

static void test_stage_live_row_out_of_place_is_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    assert_int_equal(tape_frame(&t, 5, 1, 0, 4, true), STATUS_CORRUPT);
    struct sequence_params p = tape_params(6, 0, 8);
    tape_open(&t, &p);
    assert_int_equal(tape_frame(&t, 6, 1, 0, 8, false), STATUS_CORRUPT);
    p = tape_params(7, 0, 8);
    tape_open(&t, &p);
    assert_int_equal(tape_frame(&t, 7, 1, 0, 8, true), STATUS_OK);
    assert_int_equal(tape_frame(&t, 7, 1, 8, 9, true), STATUS_CORRUPT);
    tape_memory(&t);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 1 [0,4) live\n"
                   "error corrupt: sequence 5 loop 1: positions 0..3 are live, but the prompt has "
                   "8 tokens (frontier 0)\n"
                   "failed seq 5: corrupt: sequence 5 loop 1: positions 0..3 are live, but the "
                   "prompt has 8 tokens (frontier 0)\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> frame seq 6 loop 1 [0,8)\n"
                   "error corrupt: sequence 6 loop 1: positions 0..7 have no live row, but the "
                   "prompt has 8 tokens (frontier 0)\n"
                   "failed seq 6: corrupt: sequence 6 loop 1: positions 0..7 have no live row, "
                   "but the prompt has 8 tokens (frontier 0)\n"
                   "> open 7\n"
                   "opened seq 7\n"
                   "> frame seq 7 loop 1 [0,8) live\n"
                   "> frame seq 7 loop 1 [8,9) live\n"
                   "error corrupt: sequence 7 loop 1 position 8: rows arrive after its live row, "
                   "which is at loop 1 (frontier 0)\n"
                   "failed seq 7: corrupt: sequence 7 loop 1 position 8: rows arrive after its "
                   "live row, which is at loop 1 (frontier 0)\n"
                   "blocks 0 slots 0 parked 0 sequences 3 stale 0\n");
}

static void test_stage_rows_past_the_sequence_are_corrupt(void **state)
{
    (void)state;
    struct tape t = tape_with_one_open(8);
    /* 8 + 10 tokens; the last of them, position 17, is never fed back. */
    assert_int_equal(tape_frame(&t, 5, 1, 0, 18, true), STATUS_CORRUPT);
    struct sequence_params p = tape_params(6, 0, 8);
    tape_open(&t, &p);
    assert_int_equal(tape_frame(&t, 6, 1, 0, 17, true), STATUS_OK);
    tape_check(&t, "> open 5\n"
                   "opened seq 5\n"
                   "> frame seq 5 loop 1 [0,18) live\n"
                   "error corrupt: sequence 5 loop 1: 18 rows from position 0, its last position "
                   "is 16 (frontier 0)\n"
                   "failed seq 5: corrupt: sequence 5 loop 1: 18 rows from position 0, its last "
                   "position is 16 (frontier 0)\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> frame seq 6 loop 1 [0,17) live\n");
}

static void test_stage_out_of_slots_fails_the_sequence_only(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.n_slots = 10;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 8), p2 = tape_params(2, 0, 8);
    tape_open(&t, &p);
    tape_open(&t, &p2);
    tape_frame(&t, 1, 1, 0, 8, true);
    assert_int_equal(tape_frame(&t, 2, 1, 0, 8, true), STATUS_OK);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 1 loop 1 [0,8) live\n"
                   "> frame seq 2 loop 1 [0,8) live\n"
                   "failed seq 2: no_memory: sequence 2 loop 1 position 0: 8 rows arrive, 2 of 10 "
                   "row slots are free\n"
                   "blocks 0 slots 8 parked 0 sequences 2 stale 0\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_doubled_frame_is_corrupt),
        cmocka_unit_test(test_stage_doubled_frame_after_its_batch_is_corrupt),
        cmocka_unit_test(test_stage_missing_frame_is_corrupt_and_others_go_on),
        cmocka_unit_test(test_stage_frames_of_failed_and_closed_sequences_are_stale),
        cmocka_unit_test(test_stage_frame_of_a_sequence_never_opened_is_corrupt),
        cmocka_unit_test(test_stage_misrouted_frames_are_corrupt),
        cmocka_unit_test(test_stage_live_row_out_of_place_is_corrupt),
        cmocka_unit_test(test_stage_rows_past_the_sequence_are_corrupt),
        cmocka_unit_test(test_stage_out_of_slots_fails_the_sequence_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
