/* stage: where rows go after a batch: off at each loop, deeper with what was parked, or parked. */
#include "tests/stage_tape.h"

/* The worker that runs loop t of a sequence with offset 0 is number t - 1 of the ring. */
static struct tape tape_of_loop(uint32_t loop)
{
    struct stage_config c = tape_config();
    c.ring_index = loop - 1;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 3);
    tape_open(&t, &p);
    tape_frame(&t, 1, loop, 0, 3, true);
    tape_time(&t);
    return t;
}

static void test_stage_exit_at_loop_1_parks_and_feeds_itself(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(1);
    TAPE_DONE(&t, 103);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,3) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,3) live\n"
                   "> done: exit with 103\n"
                   "token seq 1 position 3 id 103 exit 1 cdf 0.5\n"
                   "start: seq 1 loop 1 [3,4) live\n"
                   "blocks 1 slots 4 parked 3 sequences 1 stale 0\n");
}

static void test_stage_exit_at_loop_2_parks_and_feeds_loop_1(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(2);
    TAPE_DONE(&t, 103);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,3) live cdf 0.5\n"
                   "> done: exit with 103\n"
                   "send to 0: seq 1 loop 1 [3,4) live cdf 0 ids 103\n"
                   "token seq 1 position 3 id 103 exit 2 cdf 0.75\n"
                   "blocks 1 slots 3 parked 3 sequences 1 stale 0\n");
}

static void test_stage_exit_at_loop_3_parks_and_feeds_loop_1(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(3);
    TAPE_DONE(&t, 103);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 3 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 3 [0,3) live cdf 0.75\n"
                   "> done: exit with 103\n"
                   "send to 0: seq 1 loop 1 [3,4) live cdf 0 ids 103\n"
                   "token seq 1 position 3 id 103 exit 3 cdf 0.875\n"
                   "blocks 1 slots 3 parked 3 sequences 1 stale 0\n");
}

static void test_stage_exit_at_the_last_loop_parks_nothing(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(4);
    TAPE_DONE(&t, 103);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 4 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 4 [0,3) live cdf 0.875\n"
                   "> done: exit with 103\n"
                   "send to 0: seq 1 loop 1 [3,4) live cdf 0 ids 103\n"
                   "token seq 1 position 3 id 103 exit 4 cdf 0.9375\n"
                   "blocks 1 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_going_deeper_takes_all_rows_along(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(2);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,3) live cdf 0.5\n"
                   "> done: on\n"
                   "send to 2: seq 1 loop 3 [0,3) live cdf 0.75 ids 100 101 102\n"
                   "blocks 1 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_deep_token_after_shallow_ones_revives_the_parked(void **state)
{
    (void)state;
    struct tape t = tape_of_loop(2);
    TAPE_DONE(&t, 103);
    tape_frame(&t, 1, 2, 3, 4, true);
    tape_time(&t);
    TAPE_DONE(&t, 104);
    tape_memory(&t);
    tape_frame(&t, 1, 2, 4, 5, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,3) live cdf 0.5\n"
                   "> done: exit with 103\n"
                   "send to 0: seq 1 loop 1 [3,4) live cdf 0 ids 103\n"
                   "token seq 1 position 3 id 103 exit 2 cdf 0.75\n"
                   "> frame seq 1 loop 2 [3,4) live\n"
                   "copy 1 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [3,4) live cdf 0.5\n"
                   "> done: exit with 104\n"
                   "send to 0: seq 1 loop 1 [4,5) live cdf 0 ids 104\n"
                   "token seq 1 position 4 id 104 exit 2 cdf 0.75\n"
                   "blocks 1 slots 4 parked 4 sequences 1 stale 0\n"
                   "> frame seq 1 loop 2 [4,5) live\n"
                   "copy 1 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [4,5) live cdf 0.5\n"
                   "> done: on\n"
                   "send to 2: seq 1 loop 3 [0,5) live cdf 0.75 ids 100 101 102 103 104\n"
                   "blocks 2 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_smaller_max_loops_is_the_last_loop(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_index = 1;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2);
    p.max_loops = 2;
    tape_open(&t, &p);
    tape_frame(&t, 1, 2, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, 102);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,2) live\n"
                   "copy 2 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,2) live cdf 0.5\n"
                   "> done: exit with 102\n"
                   "send to 0: seq 1 loop 1 [2,3) live cdf 0 ids 102\n"
                   "token seq 1 position 2 id 102 exit 2 cdf 0.75\n"
                   "blocks 1 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_one_worker_keeps_all_rows_inside(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 1;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2);
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, 102);
    tape_memory(&t);
    TAPE_DONE(&t, 103);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    TAPE_DONE(&t, 104);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,2) live\n"
                   "> done: on\n"
                   "start: seq 1 loop 2 [0,2) live cdf 0.5\n"
                   "> done: exit with 102\n"
                   "token seq 1 position 2 id 102 exit 2 cdf 0.75\n"
                   "start: seq 1 loop 1 [2,3) live\n"
                   "blocks 2 slots 3 parked 2 sequences 1 stale 0\n"
                   "> done: exit with 103\n"
                   "token seq 1 position 3 id 103 exit 1 cdf 0.5\n"
                   "start: seq 1 loop 1 [3,4) live\n"
                   "> done: on\n"
                   "start: seq 1 loop 2 [2,4) live cdf 0.5\n"
                   "> done: on\n"
                   "start: seq 1 loop 3 [0,4) live cdf 0.75\n"
                   "> done: on\n"
                   "start: seq 1 loop 4 [0,4) live cdf 0.875\n"
                   "blocks 4 slots 4 parked 0 sequences 1 stale 0\n"
                   "> done: exit with 104\n"
                   "token seq 1 position 4 id 104 exit 4 cdf 0.9375\n"
                   "start: seq 1 loop 1 [4,5) live\n"
                   "blocks 5 slots 1 parked 0 sequences 1 stale 0\n");
}

static void test_stage_stop_id_ends_the_sequence_after_min_tokens(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 1;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 1);
    p.min_tokens = 1;
    p.max_loops = 1;
    p.n_stop_ids = 2;
    p.stop_ids[0] = 5;
    p.stop_ids[1] = 7;
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 1, true);
    tape_time(&t);
    TAPE_DONE(&t, 7);
    TAPE_DONE(&t, 7);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,1) live\n"
                   "> done: exit with 7\n"
                   "token seq 1 position 1 id 7 exit 1 cdf 0.5\n"
                   "start: seq 1 loop 1 [1,2) live\n"
                   "> done: exit with 7\n"
                   "token seq 1 position 2 id 7 exit 1 cdf 0.5 last\n");
}

static void test_stage_max_tokens_and_the_last_position_end_the_sequence(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 1;
    c.max_positions = 5;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 1);
    p.max_loops = 1;
    p.max_tokens = 2;
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 1, true);
    tape_time(&t);
    TAPE_DONE(&t, 11);
    TAPE_DONE(&t, 12);
    p.sequence = 2;
    p.prompt_tokens = 4;
    p.max_tokens = 100;
    tape_open(&t, &p);
    tape_frame(&t, 2, 1, 0, 4, true);
    tape_time(&t);
    TAPE_DONE(&t, 13);
    TAPE_DONE(&t, 14);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,1) live\n"
                   "> done: exit with 11\n"
                   "token seq 1 position 1 id 11 exit 1 cdf 0.5\n"
                   "start: seq 1 loop 1 [1,2) live\n"
                   "> done: exit with 12\n"
                   "token seq 1 position 2 id 12 exit 1 cdf 0.5 last\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 2 loop 1 [0,4) live\n"
                   "> time\n"
                   "start: seq 2 loop 1 [0,4) live\n"
                   "> done: exit with 13\n"
                   "token seq 2 position 4 id 13 exit 1 cdf 0.5\n"
                   "start: seq 2 loop 1 [4,5) live\n"
                   "> done: exit with 14\n"
                   "token seq 2 position 5 id 14 exit 1 cdf 0.5 last\n");
}

static void test_stage_non_finite_values_fail_their_own_sequence(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2), p2 = tape_params(2, 0, 2);
    tape_open(&t, &p);
    tape_open(&t, &p2);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_frame(&t, 2, 1, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_FAIL, TAPE_GO);
    tape_memory(&t);
    tape_close(&t, 1);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> frame seq 2 loop 1 [0,2) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,2) live | seq 2 loop 1 [0,2) live\n"
                   "> done: nan on\n"
                   "send to 1: seq 2 loop 2 [0,2) live cdf 0.5 ids 200 201\n"
                   "failed seq 1: invalid: sequence 1 loop 1 positions 0..1: the model gave "
                   "non-finite values (invalid)\n"
                   "blocks 1 slots 0 parked 0 sequences 2 stale 0\n"
                   "> close 1\n"
                   "closed seq 1\n"
                   "blocks 1 slots 0 parked 0 sequences 1 stale 0\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_exit_at_loop_1_parks_and_feeds_itself),
        cmocka_unit_test(test_stage_exit_at_loop_2_parks_and_feeds_loop_1),
        cmocka_unit_test(test_stage_exit_at_loop_3_parks_and_feeds_loop_1),
        cmocka_unit_test(test_stage_exit_at_the_last_loop_parks_nothing),
        cmocka_unit_test(test_stage_going_deeper_takes_all_rows_along),
        cmocka_unit_test(test_stage_deep_token_after_shallow_ones_revives_the_parked),
        cmocka_unit_test(test_stage_smaller_max_loops_is_the_last_loop),
        cmocka_unit_test(test_stage_one_worker_keeps_all_rows_inside),
        cmocka_unit_test(test_stage_stop_id_ends_the_sequence_after_min_tokens),
        cmocka_unit_test(test_stage_max_tokens_and_the_last_position_end_the_sequence),
        cmocka_unit_test(test_stage_non_finite_values_fail_their_own_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
