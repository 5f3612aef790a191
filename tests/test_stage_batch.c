/* stage: the order in which waiting rows get into a batch, its budget and its blocks. */
#include "tests/stage_tape.h"

static void open_many(struct tape *t, uint64_t n, uint32_t prompt)
{
    for (uint64_t id = 1; id <= n; id++) {
        struct sequence_params p = tape_params(id, 0, prompt);
        tape_open(t, &p);
    }
}

static void test_stage_batch_takes_live_rows_first_then_prompts(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 20);
    for (uint64_t id = 3; id <= 4; id++) {
        struct sequence_params p = tape_params(id, 0, 2);
        tape_open(&t, &p);
    }
    tape_frame(&t, 1, 1, 0, 20, true);
    tape_frame(&t, 2, 1, 0, 20, true);
    tape_frame(&t, 3, 1, 0, 2, true);
    tape_frame(&t, 4, 1, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO, TAPE_GO, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> open 3\n"
                   "opened seq 3\n"
                   "> open 4\n"
                   "opened seq 4\n"
                   "> frame seq 1 loop 1 [0,20) live\n"
                   "> frame seq 2 loop 1 [0,20) live\n"
                   "> frame seq 3 loop 1 [0,2) live\n"
                   "> frame seq 4 loop 1 [0,2) live\n"
                   "> time\n"
                   "start: seq 3 loop 1 [0,2) live | seq 4 loop 1 [0,2) live | seq 1 loop 1 [0,8) "
                   "| seq 2 loop 1 [0,4)\n"
                   "> done: on on on on\n"
                   "send to 1: seq 3 loop 2 [0,2) live cdf 0.5 ids 300 301 | seq 4 loop 2 [0,2) "
                   "live cdf 0.5 ids 400 401 | seq 1 loop 2 [0,8) ids 100 101 102 103 104 105 106 "
                   "107 | seq 2 loop 2 [0,4) ids 200 201 202 203\n"
                   "start: seq 1 loop 1 [8,16) | seq 2 loop 1 [4,12)\n"
                   "> done: on on\n"
                   "send to 1: seq 1 loop 2 [8,16) ids 108 109 110 111 112 113 114 115 | seq 2 "
                   "loop 2 [4,12) ids 204 205 206 207 208 209 210 211\n"
                   "start: seq 1 loop 1 [16,20) live | seq 2 loop 1 [12,20) live\n"
                   "> done: on on\n"
                   "send to 1: seq 1 loop 2 [16,20) live cdf 0.5 ids 116 117 118 119 | seq 2 loop "
                   "2 [12,20) live cdf 0.5 ids 212 213 214 215 216 217 218 219\n");
}

static void test_stage_batch_splits_a_decode_chunk_at_the_budget(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_index = 1;
    c.max_batch_rows = 3;
    c.prefill_chunk = 3;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 2);
    tape_frame(&t, 1, 2, 0, 2, true);
    tape_frame(&t, 2, 2, 0, 3, true);
    tape_time(&t);
    /* Position 0 of sequence 2 is split off its live row; as a prompt row it goes on at once. */
    TAPE_DONE(&t, 102, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 1 loop 2 [0,2) live\n"
                   "copy 2 rows\n"
                   "> frame seq 2 loop 2 [0,3) live\n"
                   "copy 3 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,2) live cdf 0.5 | seq 2 loop 2 [0,1)\n"
                   "> done: exit with 102 on\n"
                   "send to 0: seq 1 loop 1 [2,3) live cdf 0 ids 102\n"
                   "send to 2: seq 2 loop 3 [0,1) ids 200\n"
                   "token seq 1 position 2 id 102 exit 2 cdf 0.75\n"
                   "start: seq 2 loop 2 [1,3) live cdf 0.5\n"
                   "> done: on\n"
                   "send to 2: seq 2 loop 3 [1,3) live cdf 0.75 ids 201 202\n"
                   "blocks 2 slots 2 parked 2 sequences 2 stale 0\n");
}

static void test_stage_batch_keeps_a_split_lazy_part_parked(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_index = 1;
    c.max_batch_rows = 3;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2);
    p.prefill = PREFILL_LAZY;
    tape_open(&t, &p);
    tape_frame(&t, 1, 2, 0, 5, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,5) live\n"
                   "copy 5 rows\n"
                   "> time\n"
                   "start: seq 1 loop 2 [0,3)\n"
                   "> done: on\n"
                   "start: seq 1 loop 2 [3,5) live cdf 0.5\n"
                   "blocks 2 slots 5 parked 3 sequences 1 stale 0\n"
                   "> done: on\n"
                   "send to 2: seq 1 loop 3 [0,5) live cdf 0.75 ids 100 101 102 103 104\n"
                   "blocks 2 slots 0 parked 0 sequences 1 stale 0\n");
}

static void test_stage_batch_may_hold_several_loops_of_one_sequence(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 2;
    c.prefill_chunk = 4;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 1, 12);
    tape_frame(&t, 1, 1, 0, 4, false);
    tape_time(&t);
    tape_frame(&t, 1, 3, 0, 4, false);
    tape_frame(&t, 1, 1, 4, 12, true);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,4)\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,4)\n"
                   "> frame seq 1 loop 3 [0,4)\n"
                   "copy 4 rows\n"
                   "> frame seq 1 loop 1 [4,12) live\n"
                   "> done: on\n"
                   "send to 1: seq 1 loop 2 [0,4) ids 100 101 102 103\n"
                   "start: seq 1 loop 3 [0,4) | seq 1 loop 1 [4,8)\n"
                   "> done: on on\n"
                   "send to 1: seq 1 loop 4 [0,4) ids 100 101 102 103 | seq 1 loop 2 [4,8) ids "
                   "104 105 106 107\n"
                   "start: seq 1 loop 1 [8,12) live\n"
                   "> done: on\n"
                   "send to 1: seq 1 loop 2 [8,12) live cdf 0.5 ids 108 109 110 111\n");
}

static void test_stage_batch_interleaves_sequences_at_different_loops(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    struct tape t;
    tape_create(&t, &c);
    /* Offsets 0, 3, 2, 1: worker 0 runs their loops 1, 2, 3, 4. */
    for (uint32_t i = 0; i < 4; i++) {
        struct sequence_params p = tape_params(i + 1, (4 - i) % 4, 1);
        tape_open(&t, &p);
        tape_frame(&t, i + 1, i + 1, 0, 1, true);
    }
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO, 301, 401);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 2 loop 2 [0,1) live\n"
                   "copy 1 rows\n"
                   "> open 3\n"
                   "opened seq 3\n"
                   "> frame seq 3 loop 3 [0,1) live\n"
                   "copy 1 rows\n"
                   "> open 4\n"
                   "opened seq 4\n"
                   "> frame seq 4 loop 4 [0,1) live\n"
                   "copy 1 rows\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,1) live | seq 2 loop 2 [0,1) live cdf 0.5 | seq 3 loop "
                   "3 [0,1) live cdf 0.75 | seq 4 loop 4 [0,1) live cdf 0.875\n"
                   "> done: on on exit with 301 exit with 401\n"
                   "send to 1: seq 1 loop 2 [0,1) live cdf 0.5 ids 100 | seq 2 loop 3 [0,1) live "
                   "cdf 0.75 ids 200 | seq 4 loop 1 [1,2) live cdf 0 ids 401\n"
                   "send to 2: seq 3 loop 1 [1,2) live cdf 0 ids 301\n"
                   "token seq 3 position 1 id 301 exit 3 cdf 0.875\n"
                   "token seq 4 position 1 id 401 exit 4 cdf 0.9375\n"
                   "blocks 4 slots 1 parked 1 sequences 4 stale 0\n");
}

static void test_stage_batch_without_blocks_fails_one_sequence(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.n_blocks = 6;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 3, 9);
    for (uint64_t id = 1; id <= 3; id++)
        tape_frame(&t, id, 1, 0, 8, false);
    tape_time(&t);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    for (uint64_t id = 1; id <= 2; id++)
        tape_frame(&t, id, 1, 8, 9, true);
    tape_time(&t);
    TAPE_DONE(&t, 109, 209);
    tape_memory(&t);
    for (uint64_t id = 1; id <= 3; id++)
        tape_close(&t, id);
    tape_memory(&t);
    tape_check(&t,
               "> open 1\n"
               "opened seq 1\n"
               "> open 2\n"
               "opened seq 2\n"
               "> open 3\n"
               "opened seq 3\n"
               "> frame seq 1 loop 1 [0,8)\n"
               "> frame seq 2 loop 1 [0,8)\n"
               "> frame seq 3 loop 1 [0,8)\n"
               "> time\n"
               "start: seq 1 loop 1 [0,8) | seq 2 loop 1 [0,8)\n"
               "blocks 4 slots 24 parked 0 sequences 3 stale 0\n"
               "> done: on on\n"
               "send to 1: seq 1 loop 2 [0,8) ids 100 101 102 103 104 105 106 107 | seq 2 loop 2 "
               "[0,8) ids 200 201 202 203 204 205 206 207\n"
               "start: seq 3 loop 1 [0,8)\n"
               "> frame seq 1 loop 1 [8,9) live\n"
               "> frame seq 2 loop 1 [8,9) live\n"
               "> time\n"
               "> done: exit with 109\n"
               "send to 1: seq 3 loop 2 [0,8) ids 300 301 302 303 304 305 306 307\n"
               "failed seq 1: no_memory: sequence 1 loop 1 position 8: all 6 KV blocks are in use\n"
               "start: seq 2 loop 1 [8,9) live\n"
               "blocks 5 slots 1 parked 0 sequences 3 stale 0\n"
               "> close 1\n"
               "closed seq 1\n"
               "> close 2\n"
               "> close 3\n"
               "closed seq 3\n"
               "blocks 3 slots 1 parked 0 sequences 1 stale 0\n");
}

static void test_stage_batch_without_blocks_for_anyone_does_not_start(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.n_blocks = 5;
    c.max_batch_rows = c.prefill_chunk = 32;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 18);
    p.max_tokens = 3;
    tape_open(&t, &p);
    tape_frame(&t, 1, 1, 0, 18, true);
    tape_time(&t);
    p.sequence = 2;
    tape_open(&t, &p);
    tape_frame(&t, 2, 1, 0, 18, true);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(
        &t, "> open 1\n"
            "opened seq 1\n"
            "> frame seq 1 loop 1 [0,18) live\n"
            "> time\n"
            "start: seq 1 loop 1 [0,18) live\n"
            "> open 2\n"
            "opened seq 2\n"
            "> frame seq 2 loop 1 [0,18) live\n"
            "> done: on\n"
            "send to 1: seq 1 loop 2 [0,18) live cdf 0.5 ids 100 101 102 103 104 105 106 107 108 "
            "109 110 111 112 113 114 115 116 117\n"
            "failed seq 2: no_memory: sequence 2 loop 1 position 0: all 5 KV blocks are in use\n"
            "blocks 5 slots 0 parked 0 sequences 2 stale 0\n");
}

static void test_stage_batch_without_blocks_fails_all_lanes_of_a_sequence(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_size = 2;
    c.n_blocks = 10;
    c.max_batch_rows = c.prefill_chunk = 64;
    struct tape t;
    tape_create(&t, &c);
    for (uint64_t id = 1; id <= 4; id++) {
        struct sequence_params p = tape_params(id, 0, 18);
        p.max_tokens = 3;
        p.prefill = PREFILL_LAZY;
        tape_open(&t, &p);
    }
    /* Two prompts take all blocks and park. */
    tape_frame(&t, 1, 1, 0, 17, false);
    tape_frame(&t, 2, 1, 0, 17, false);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    /* Lanes of one sequence side by side, and another behind them. */
    tape_frame(&t, 3, 1, 0, 4, false);
    tape_frame(&t, 3, 3, 0, 4, false);
    tape_frame(&t, 4, 1, 0, 4, false);
    tape_time(&t);
    tape_memory(&t);
    tape_check(
        &t, "> open 1\n"
            "opened seq 1\n"
            "> open 2\n"
            "opened seq 2\n"
            "> open 3\n"
            "opened seq 3\n"
            "> open 4\n"
            "opened seq 4\n"
            "> frame seq 1 loop 1 [0,17)\n"
            "> frame seq 2 loop 1 [0,17)\n"
            "> time\n"
            "start: seq 1 loop 1 [0,17) | seq 2 loop 1 [0,17)\n"
            "> done: on on\n"
            "> frame seq 3 loop 1 [0,4)\n"
            "> frame seq 3 loop 3 [0,4)\n"
            "copy 4 rows\n"
            "> frame seq 4 loop 1 [0,4)\n"
            "> time\n"
            "failed seq 3: no_memory: sequence 3 loop 1 position 0: all 10 KV blocks are in use\n"
            "failed seq 4: no_memory: sequence 4 loop 1 position 0: all 10 KV blocks are in use\n"
            "blocks 10 slots 34 parked 34 sequences 4 stale 0\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_batch_takes_live_rows_first_then_prompts),
        cmocka_unit_test(test_stage_batch_splits_a_decode_chunk_at_the_budget),
        cmocka_unit_test(test_stage_batch_keeps_a_split_lazy_part_parked),
        cmocka_unit_test(test_stage_batch_may_hold_several_loops_of_one_sequence),
        cmocka_unit_test(test_stage_batch_interleaves_sequences_at_different_loops),
        cmocka_unit_test(test_stage_batch_without_blocks_fails_one_sequence),
        cmocka_unit_test(test_stage_batch_without_blocks_for_anyone_does_not_start),
        cmocka_unit_test(test_stage_batch_without_blocks_fails_all_lanes_of_a_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
