/* stage: when a batch starts, and what ring mates are told of it. */
#include "tests/stage_tape.h"

static void open_many(struct tape *t, uint64_t n, uint32_t prompt)
{
    for (uint64_t id = 1; id <= n; id++) {
        struct sequence_params p = tape_params(id, 0, prompt);
        tape_open(t, &p);
    }
}

static void test_stage_start_announces_nothing_after_the_last_token(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_index = 1;
    c.batching = BATCHING_KNEE;
    struct tape t;
    tape_create(&t, &c);
    struct sequence_params p = tape_params(1, 0, 2);
    p.max_tokens = 1; /* its token will not come back to loop 1 */
    tape_open(&t, &p);
    tape_frame(&t, 1, 2, 0, 2, true);
    tape_time(&t);
    TAPE_DONE(&t, 102);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> frame seq 1 loop 2 [0,2) live\n"
                   "copy 2 rows\n"
                   "> time\n"
                   "send to 2 busy: nothing\n"
                   "start: seq 1 loop 2 [0,2) live cdf 0.5\n"
                   "> done: exit with 102\n"
                   "send to 2 done: nothing\n"
                   "token seq 1 position 2 id 102 exit 2 cdf 0.75 last\n");
}

static void test_stage_start_announces_to_the_mates_it_may_feed(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.ring_index = 1;
    c.batching = BATCHING_KNEE;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 2);
    tape_frame(&t, 1, 2, 0, 2, true);
    tape_time(&t);
    tape_frame(&t, 2, 2, 0, 2, true);
    TAPE_DONE(&t, TAPE_GO);
    TAPE_DONE(&t, 203);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> frame seq 1 loop 2 [0,2) live\n"
                   "copy 2 rows\n"
                   "> time\n"
                   "send to 0 busy: nothing\n"
                   "send to 2 busy: nothing\n"
                   "start: seq 1 loop 2 [0,2) live cdf 0.5\n"
                   "> frame seq 2 loop 2 [0,2) live\n"
                   "copy 2 rows\n"
                   "> done: on\n"
                   "send to 0 done busy: nothing\n"
                   "send to 2 done busy: seq 1 loop 3 [0,2) live cdf 0.75 ids 100 101\n"
                   "start: seq 2 loop 2 [0,2) live cdf 0.5\n"
                   "> done: exit with 203\n"
                   "send to 0 done: seq 2 loop 1 [2,3) live cdf 0 ids 203\n"
                   "send to 2 done: nothing\n"
                   "token seq 2 position 2 id 203 exit 2 cdf 0.75\n");
}

static void test_stage_start_waits_for_busy_mates_until_the_deadline(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.batching = BATCHING_KNEE;
    c.wait_deadline_ns = 500;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 2);
    tape_mate(&t, 3, BUNDLE_BUSY);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    t.now_ns += 200;
    tape_time(&t);
    t.now_ns += 300;
    tape_time(&t);
    t.now_ns += 100;
    tape_frame(&t, 2, 1, 0, 2, true);
    /* Mate 3 is busy still: the rest waits anew. */
    TAPE_DONE(&t, 102);
    tape_mate(&t, 3, BUNDLE_DONE);
    tape_time(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> mate 3 busy\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "wake in 500 ns\n"
                   "> time\n"
                   "wake in 300 ns\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 1 loop 1 [0,2) live\n"
                   "> frame seq 2 loop 1 [0,2) live\n"
                   "> done: exit with 102\n"
                   "send to 1 done: nothing\n"
                   "token seq 1 position 2 id 102 exit 1 cdf 0.5\n"
                   "wake in 500 ns\n"
                   "> mate 3 done\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 2 loop 1 [0,2) live | seq 1 loop 1 [2,3) live\n");
}

/* The last worker of a round ends, and starts the next in the same breath: those who waited for it
 * start, too. */
static void test_stage_start_does_not_wait_for_mates_that_start_later(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.batching = BATCHING_KNEE;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 2);
    tape_mate(&t, 2, BUNDLE_BUSY);
    tape_mate(&t, 3, BUNDLE_BUSY);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    /* The note that 2 has started overtakes the rows of 3, for which both had waited. */
    tape_mate(&t, 2, BUNDLE_DONE);
    tape_mate(&t, 2, BUNDLE_BUSY);
    tape_time(&t);
    tape_mate(&t, 3, BUNDLE_DONE);
    tape_frame(&t, 2, 1, 0, 2, true);
    tape_mate(&t, 3, BUNDLE_BUSY);
    tape_time(&t);
    /* In the next round both are waited for. */
    TAPE_DONE(&t, 102, 202);
    tape_mate(&t, 2, BUNDLE_DONE);
    tape_time(&t);
    tape_mate(&t, 3, BUNDLE_DONE);
    tape_time(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> mate 2 busy\n"
                   "> mate 3 busy\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "wake in 2400 ns\n"
                   "> mate 2 done\n"
                   "> mate 2 busy\n"
                   "> time\n"
                   "wake in 2400 ns\n"
                   "> mate 3 done\n"
                   "> frame seq 2 loop 1 [0,2) live\n"
                   "> mate 3 busy\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 1 loop 1 [0,2) live | seq 2 loop 1 [0,2) live\n"
                   "> done: exit with 102 exit with 202\n"
                   "send to 1 done: nothing\n"
                   "token seq 1 position 2 id 102 exit 1 cdf 0.5\n"
                   "token seq 2 position 2 id 202 exit 1 cdf 0.5\n"
                   "wake in 2400 ns\n"
                   "> mate 2 done\n"
                   "> time\n"
                   "wake in 2400 ns\n"
                   "> mate 3 done\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 1 loop 1 [2,3) live | seq 2 loop 1 [2,3) live\n");
}

static void test_stage_start_of_a_single_stream_never_waits(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.batching = BATCHING_KNEE;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 1, 2);
    tape_mate(&t, 3, BUNDLE_BUSY);
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> mate 3 busy\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "send to 1 busy: nothing\n"
                   "start: seq 1 loop 1 [0,2) live\n");
}

static void test_stage_start_waits_for_mates_of_earlier_rounds_only(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.batching = BATCHING_ROUND;
    c.rank = 1;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 2, 2);
    tape_mate_busy(&t, 3, 9); /* far ahead: what it gives belongs to a later round than ours */
    tape_frame(&t, 1, 1, 0, 2, true);
    tape_time(&t);
    tape_mate_busy(&t, 2, 1); /* its rows belong into our second round */
    TAPE_DONE(&t, 102);
    tape_mate(&t, 2, BUNDLE_DONE);
    tape_time(&t);
    tape_mate(&t, 3, BUNDLE_DONE);
    t.source_rank = 4;
    tape_frame(&t, 2, 1, 0, 2, true);
    TAPE_DONE(&t, 103); /* a row of round 2 here, one of round 9 there: that makes 10 */
    tape_check(&t, "> open 1\n"
                   "opened seq 1\n"
                   "> open 2\n"
                   "opened seq 2\n"
                   "> mate 3 busy in round 9\n"
                   "> frame seq 1 loop 1 [0,2) live\n"
                   "> time\n"
                   "send to 1 busy round 1: nothing\n"
                   "start: seq 1 loop 1 [0,2) live\n"
                   "> mate 2 busy in round 1\n"
                   "> done: exit with 102\n"
                   "send to 1 done: nothing\n"
                   "token seq 1 position 2 id 102 exit 1 cdf 0.5\n"
                   "wake in 2200 ns\n"
                   "> mate 2 done\n"
                   "> time\n"
                   "send to 1 busy round 2: nothing\n"
                   "start: seq 1 loop 1 [2,3) live\n"
                   "> mate 3 done\n"
                   "> frame seq 2 loop 1 [0,2) live\n"
                   "> done: exit with 103\n"
                   "send to 1 done busy round 10: nothing\n"
                   "token seq 1 position 3 id 103 exit 1 cdf 0.5\n"
                   "start: seq 2 loop 1 [0,2) live | seq 1 loop 1 [3,4) live\n");
}

/* Rows that are in one batch would go round together. */
static void test_stage_start_takes_its_share_of_what_has_gathered(void **state)
{
    (void)state;
    struct stage_config c = tape_config();
    c.batching = BATCHING_ROUND;
    struct tape t;
    tape_create(&t, &c);
    open_many(&t, 6, 1);
    for (uint64_t id = 1; id <= 6; id++)
        tape_frame(&t, id, 1, 0, 1, true);
    t.len = 0;
    tape_time(&t); /* six of six sequences are here, and a fourth of them is two */
    TAPE_DONE(&t, TAPE_GO, TAPE_GO);
    tape_check(&t, "> time\n"
                   "send to 1 busy round 1: nothing\n"
                   "start: seq 1 loop 1 [0,1) live | seq 2 loop 1 [0,1) live\n"
                   "> done: on on\n"
                   "send to 1 done busy round 2: seq 1 loop 2 [0,1) live cdf 0.5 ids 100 | seq 2 "
                   "loop 2 [0,1) live cdf 0.5 ids 200\n"
                   "start: seq 3 loop 1 [0,1) live | seq 4 loop 1 [0,1) live\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage_start_announces_nothing_after_the_last_token),
        cmocka_unit_test(test_stage_start_announces_to_the_mates_it_may_feed),
        cmocka_unit_test(test_stage_start_waits_for_busy_mates_until_the_deadline),
        cmocka_unit_test(test_stage_start_does_not_wait_for_mates_that_start_later),
        cmocka_unit_test(test_stage_start_waits_for_mates_of_earlier_rounds_only),
        cmocka_unit_test(test_stage_start_takes_its_share_of_what_has_gathered),
        cmocka_unit_test(test_stage_start_of_a_single_stream_never_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
