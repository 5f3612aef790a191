/* stage: two batches in flight: when the second one starts, what each holds, how they end. */
#include "tests/stage_tape.h"

/* The knee is at 5 rows. */
static struct stage_config two_config(void)
{
    struct stage_config c = tape_config();
    c.batching = BATCHING_ROUND;
    c.n_in_flight = 2;
    c.row_ns = 200;
    return c;
}

static void two_open(struct tape *t, uint64_t id, uint32_t offset, uint32_t prompt)
{
    struct sequence_params p = tape_params(id, offset, prompt);
    tape_open(t, &p);
}

static void test_stage_flight_chunks_of_one_prompt_follow_each_other(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    struct tape t;
    tape_create(&t, &c);
    two_open(&t, 1, 0, 28);
    tape_frame(&t, 1, 1, 0, 28, true);
    tape_time(&t);
    tape_time(&t);
    tape_time(&t); /* two are in flight */
    TAPE_DONE(&t, TAPE_GO);
    tape_time(&t); /* four rows are too few to go behind a batch */
    TAPE_DONE(&t, TAPE_GO);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(
        &t,
        "> open 1\n"
        "opened seq 1\n"
        "> frame seq 1 loop 1 [0,28) live\n"
        "> time\n"
        "send to 1 busy round 1: nothing\n"
        "start: seq 1 loop 1 [0,8)\n"
        "> time\n"
        "start: seq 1 loop 1 [8,16)\n"
        "> time\n"
        "> done: on\n"
        "send to 1 done busy round 2: seq 1 loop 2 [0,8) ids 100 101 102 103 104 105 106 107\n"
        "start: seq 1 loop 1 [16,24)\n"
        "> time\n"
        "> done: on\n"
        "send to 1 done busy round 3: seq 1 loop 2 [8,16) ids 108 109 110 111 112 113 114 115\n"
        "> time\n"
        "> done: on\n"
        "send to 1 done busy round 4: seq 1 loop 2 [16,24) ids 116 117 118 119 120 121 122 123\n"
        "start: seq 1 loop 1 [24,28) live\n"
        "> done: on\n"
        "send to 1 done: seq 1 loop 2 [24,28) live cdf 0.5 ids 124 125 126 127\n"
        "blocks 7 slots 0 parked 0 sequences 1 stale 0\n");
}

/* One worker: the rows of a batch come back to it, and so does everybody's next token. */
static void test_stage_flight_lockstep_decode_is_not_split(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    c.ring_size = 1;
    struct tape t;
    tape_create(&t, &c);
    for (uint64_t id = 1; id <= 2; id++) {
        two_open(&t, id, 0, 1);
        tape_frame(&t, id, 1, 0, 1, true);
    }
    tape_time(&t);
    two_open(&t, 3, 0, 10);
    tape_frame(&t, 3, 1, 0, 10, true);
    tape_time(&t); /* prompt rows enough, but the live rows would wait behind them */
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO, 101, TAPE_GO);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 2 loop 1 [0,1) live\n"
                   "> time\n"
                   "start: seq 1 loop 1 [0,1) live | seq 2 loop 1 [0,1) live\n"
                   "> open 3\n"
                   "opened seq 3\n"
                   "> frame seq 3 loop 1 [0,10) live\n"
                   "> time\n"
                   "> done: on on\n"
                   "start: seq 1 loop 2 [0,1) live cdf 0.5 | seq 2 loop 2 [0,1) live cdf 0.5 | seq "
                   "3 loop 1 [0,8)\n"
                   "> time\n"
                   "> done: on exit with 101 on\n"
                   "token seq 2 position 1 id 101 exit 2 cdf 0.75\n"
                   "start: seq 3 loop 1 [8,10) live | seq 1 loop 3 [0,1) live cdf 0.75 | seq 2 "
                   "loop 1 [1,2) live | seq 3 loop 2 [0,8)\n");
}

static void test_stage_flight_few_rows_wait_for_the_running_batch(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    c.batching = BATCHING_KNEE;
    struct tape t;
    tape_create(&t, &c);
    for (uint64_t id = 1; id <= 7; id++)
        two_open(&t, id, 0, 1);
    tape_frame(&t, 1, 1, 0, 1, true);
    tape_time(&t);
    for (uint64_t id = 2; id <= 5; id++)
        tape_frame(&t, id, 1, 0, 1, true);
    t.now_ns += 1000000; /* no deadline counts while a batch runs */
    tape_time(&t);
    tape_frame(&t, 6, 1, 0, 1, true);
    tape_time(&t);
    tape_frame(&t, 7, 1, 0, 1, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO, TAPE_GO, TAPE_GO, TAPE_GO);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> open 3\n"
                   "opened seq 3\n"
                   "> open 4\n"
                   "opened seq 4\n"
                   "> open 5\n"
                   "opened seq 5\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> open 7\n"
                   "opened seq 7\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 1 loop 1 [0,1) live\n"
                   "> frame seq 2 loop 1 [0,1) live\n"
                   "> frame seq 3 loop 1 [0,1) live\n"
                   "> frame seq 4 loop 1 [0,1) live\n"
                   "> frame seq 5 loop 1 [0,1) live\n"
                   "> time\n"
                   "> frame seq 6 loop 1 [0,1) live\n"
                   "> time\n"
                   "start: seq 2 loop 1 [0,1) live | seq 3 loop 1 [0,1) live | seq 4 loop 1 [0,1) "
                   "live | seq 5 loop 1 [0,1) live | seq 6 loop 1 [0,1) live\n"
                   "> frame seq 7 loop 1 [0,1) live\n"
                   "> time\n"
                   "> done: on\n"
                   "send to 1 done busy: seq 1 loop 2 [0,1) live cdf 0.5 ids 100\n"
                   "> done: on on on on on\n"
                   "send to 1 done busy: seq 2 loop 2 [0,1) live cdf 0.5 ids 200 | seq 3 loop 2 "
                   "[0,1) live cdf 0.5 ids 300 | seq 4 loop 2 [0,1) live cdf 0.5 ids 400 | seq 5 "
                   "loop 2 [0,1) live cdf 0.5 ids 500 | seq 6 loop 2 [0,1) live cdf 0.5 ids 600\n"
                   "start: seq 7 loop 1 [0,1) live\n");
}

/* Five live rows wait, but a batch would take two of them. */
static void test_stage_flight_what_a_batch_would_take_counts(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    struct tape t;
    tape_create(&t, &c);
    for (uint64_t id = 1; id <= 6; id++)
        two_open(&t, id, 0, 1);
    tape_frame(&t, 1, 1, 0, 1, true);
    tape_time(&t);
    for (uint64_t id = 2; id <= 6; id++)
        tape_frame(&t, id, 1, 0, 1, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> open 3\n"
                   "opened seq 3\n"
                   "> open 4\n"
                   "opened seq 4\n"
                   "> open 5\n"
                   "opened seq 5\n"
                   "> open 6\n"
                   "opened seq 6\n"
                   "> frame seq 1 loop 1 [0,1) live\n"
                   "> time\n"
                   "send to 1 busy round 1: nothing\n"
                   "start: seq 1 loop 1 [0,1) live\n"
                   "> frame seq 2 loop 1 [0,1) live\n"
                   "> frame seq 3 loop 1 [0,1) live\n"
                   "> frame seq 4 loop 1 [0,1) live\n"
                   "> frame seq 5 loop 1 [0,1) live\n"
                   "> frame seq 6 loop 1 [0,1) live\n"
                   "> time\n"
                   "> done: on\n"
                   "send to 1 done busy round 2: seq 1 loop 2 [0,1) live cdf 0.5 ids 100\n"
                   "start: seq 2 loop 1 [0,1) live | seq 3 loop 1 [0,1) live\n");
}

/* Mate 1 may be fed by both batches, mate 3 by the second alone: each hears of one batch at a time.
 */
static void test_stage_flight_mates_hear_of_one_batch_at_a_time(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    struct tape t;
    tape_create(&t, &c);
    two_open(&t, 1, 0, 6);
    two_open(&t, 2, 3, 6); /* its loop 2 is here, loop 3 on mate 1, loop 1 on mate 3 */
    tape_frame(&t, 1, 1, 0, 6, true);
    tape_time(&t);
    tape_mate_busy(&t, 3, 7);
    t.source_rank = 3; /* mate 3: the tape's own rank is 0 */
    tape_mate(&t, 3, BUNDLE_DONE);
    tape_frame(&t, 2, 2, 0, 6, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, 206);
    tape_check(
        &t,
        "> open 1\n"
        "opened seq 1\n"
        "> open 2\n"
        "opened seq 2\n"
        "> frame seq 1 loop 1 [0,6) live\n"
        "> time\n"
        "send to 1 busy round 1: nothing\n"
        "start: seq 1 loop 1 [0,6) live\n"
        "> mate 3 busy in round 7\n"
        "> mate 3 done\n"
        "> frame seq 2 loop 2 [0,6) live\n"
        "copy 6 rows\n"
        "> time\n"
        "send to 3 busy round 8: nothing\n"
        "start: seq 2 loop 2 [0,6) live cdf 0.5\n"
        "> done: on\n"
        "send to 1 done busy round 8: seq 1 loop 2 [0,6) live cdf 0.5 ids 100 101 102 103 104 105\n"
        "> done: exit with 206\n"
        "send to 1 done: nothing\n"
        "send to 3 done: seq 2 loop 1 [6,7) live cdf 0 ids 206\n"
        "token seq 2 position 6 id 206 exit 2 cdf 0.75\n");
}

static void test_stage_flight_close_waits_for_both_batches(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    struct tape t;
    tape_create(&t, &c);
    two_open(&t, 1, 0, 28);
    tape_frame(&t, 1, 1, 0, 28, true);
    tape_time(&t);
    tape_time(&t);
    tape_close(&t, 1);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO);
    tape_memory(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 1 [0,28) live\n"
                   "> time\n"
                   "send to 1 busy round 1: nothing\n"
                   "start: seq 1 loop 1 [0,8)\n"
                   "> time\n"
                   "start: seq 1 loop 1 [8,16)\n"
                   "> close 1\n"
                   "blocks 4 slots 16 parked 0 sequences 1 stale 0\n"
                   "> done: on\n"
                   "send to 1 done busy round 2: nothing\n"
                   "blocks 4 slots 8 parked 0 sequences 1 stale 0\n"
                   "> done: on\n"
                   "send to 1 done: nothing\n"
                   "closed seq 1\n"
                   "blocks 0 slots 0 parked 0 sequences 0 stale 0\n");
}

static void test_stage_flight_failure_of_the_first_ends_the_second(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    struct tape t;
    tape_create(&t, &c);
    two_open(&t, 1, 0, 28);
    two_open(&t, 2, 0, 8);
    tape_frame(&t, 1, 1, 0, 28, true);
    tape_time(&t);
    tape_frame(&t, 2, 1, 0, 8, true);
    tape_time(&t);
    TAPE_DONE(&t, TAPE_FAIL);
    tape_memory(&t);
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    tape_memory(&t);
    tape_check(
        &t, "> open 1\n"
            "opened seq 1\n"
            "> open 2\n"
            "opened seq 2\n"
            "> frame seq 1 loop 1 [0,28) live\n"
            "> time\n"
            "send to 1 busy round 1: nothing\n"
            "start: seq 1 loop 1 [0,8)\n"
            "> frame seq 2 loop 1 [0,8) live\n"
            "> time\n"
            "start: seq 2 loop 1 [0,8) live | seq 1 loop 1 [8,16)\n"
            "> done: nan\n"
            "send to 1 done busy round 2: nothing\n"
            "failed seq 1: invalid: sequence 1 loop 1 positions 0..7: the model gave non-finite "
            "values (invalid)\n"
            "blocks 6 slots 16 parked 0 sequences 2 stale 0\n"
            "> done: on on\n"
            "send to 1 done: seq 2 loop 2 [0,8) live cdf 0.5 ids 200 201 202 203 204 205 206 207\n"
            "blocks 2 slots 0 parked 0 sequences 2 stale 0\n");
}

/* The second batch's own time begins when the first has ended; until then its rows wait. */
static void test_stage_flight_times_follow_each_other(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    assert_int_equal(trace_create(1 << 16, &c.trace, NULL), STATUS_OK);
    struct tape t;
    tape_create(&t, &c);
    two_open(&t, 1, 0, 16);
    t.now_ns = 2000;
    tape_frame(&t, 1, 1, 0, 16, true);
    tape_time(&t);
    t.now_ns = 2100;
    tape_time(&t);
    t.now_ns = 5000;
    TAPE_DONE(&t, TAPE_GO);
    t.now_ns = 9000;
    TAPE_DONE(&t, 216);
    t.now_ns = 9500;
    stage_flush_idle(t.stage, t.now_ns);
    t.len = 0;
    for (uint64_t i = 0; i < c.trace->n_added; i++) {
        const struct trace_record *r = &c.trace->records[i];
        if (r->kind == TRACE_BATCH)
            tape_print(&t, "batch of %u: %llu..%llu\n", r->n_rows, (unsigned long long)r->at_ns,
                       (unsigned long long)(r->at_ns + r->lasted_ns));
        if (r->kind == TRACE_ROWS)
            tape_print(&t, "rows from %u: waited %llu\n", r->position,
                       (unsigned long long)r->rows.wait_ns);
        if (r->kind == TRACE_IDLE)
            tape_print(&t, "idle: %llu..%llu\n", (unsigned long long)r->at_ns,
                       (unsigned long long)(r->at_ns + r->lasted_ns));
    }
    struct trace *trace = c.trace;
    tape_check(&t, "batch of 8: 2000..5000\n"
                   "rows from 0: waited 0\n"
                   "batch of 8: 5000..9000\n"
                   "rows from 8: waited 3000\n");
    trace_destroy(trace);
}

static void test_stage_flight_refuses_more_than_two(void **state)
{
    (void)state;
    struct stage_config c = two_config();
    c.n_in_flight = 3;
    struct stage *s = NULL;
    struct err err = {0};
    assert_int_equal(stage_create(&c, &s, &err), STATUS_INVALID);
    assert_string_equal(err.message, "stage: n_in_flight is 3; allowed is 0..2");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_flight_chunks_of_one_prompt_follow_each_other),
        cmocka_unit_test(test_stage_flight_lockstep_decode_is_not_split),
        cmocka_unit_test(test_stage_flight_few_rows_wait_for_the_running_batch),
        cmocka_unit_test(test_stage_flight_what_a_batch_would_take_counts),
        cmocka_unit_test(test_stage_flight_mates_hear_of_one_batch_at_a_time),
        cmocka_unit_test(test_stage_flight_close_waits_for_both_batches),
        cmocka_unit_test(test_stage_flight_failure_of_the_first_ends_the_second),
        cmocka_unit_test(test_stage_flight_times_follow_each_other),
        cmocka_unit_test(test_stage_flight_refuses_more_than_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
