/* scheduler: the life of a request, event by event, and every way it can end. */
#include "tests/scheduler_tape.h"

static void test_scheduler_normal_life(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 100);
    tape_expect(&t, "submit r7 20+3", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "opened w1 s1", "");
    tape_expect(&t, "opened w0 s1", "start w0 s1");
    tape_expect(&t, "token s1 @20 id5", "give r7 id5");
    tape_expect(&t, "token s1 @21 id6", "give r7 id6");
    tape_expect(&t, "token s1 @22 id8 last",
                "give r7 id8, close w0 s1, close w1 s1, end r7 length");
    tape_expect(&t, "closed w0 s1", "");
    tape_expect(&t, "closed w1 s1", "");
    tape_close(&t);
}

static void test_scheduler_ends_with_stop_at_a_stop_id(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 100);
    tape_expect(&t, "submit r1 4+10 stop 9", "open w0 s1+0");
    tape_expect(&t, "opened w0 s1", "start w0 s1");
    tape_expect(&t, "token s1 @4 id9 last", "give r1 id9, close w0 s1, end r1 stop");
    tape_expect(&t, "closed w0 s1", "");
    tape_close(&t);
}

static void test_scheduler_counts_tokens_itself(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 100);
    tape_expect(&t, "submit r1 4+2", "open w0 s1+0");
    tape_expect(&t, "opened w0 s1", "start w0 s1");
    tape_expect(&t, "token s1 @4 id1", "give r1 id1");
    tape_expect(&t, "token s1 @5 id2", "give r1 id2, close w0 s1, end r1 length");
    tape_expect(&t, "token s1 @6 id3", "");
    tape_expect(&t, "closed w0 s1", "");
    tape_close(&t);
}

static void test_scheduler_stop_string_ends_and_later_tokens_are_late(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 100);
    tape_expect(&t, "submit r1 4+9", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "opened w* s1", "start w0 s1");
    tape_expect(&t, "token s1 @4 id1", "give r1 id1");
    tape_expect(&t, "stop r1", "close w0 s1, close w1 s1, end r1 stop");
    tape_expect(&t, "stop r1", "");
    tape_expect(&t, "token s1 @5 id2", "");
    tape_expect(&t, "closed w1 s1", "");
    tape_expect(&t, "token s1 @6 id2 last", "");
    tape_expect(&t, "closed w0 s1", "");
    tape_expect(&t, "token s1 @7 id2", "");
    tape_expect(&t, "failed w0 s1", "");
    tape_close(&t);
}

static void test_scheduler_cancels_in_every_state(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 8); /* room for one: 4 loops on 2 workers x 4 blocks */
    tape_expect(&t, "submit r1 60+4", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "submit r2 60+4", "");
    tape_expect(&t, "cancel r2", "end r2 cancelled"); /* queued */
    tape_expect(&t, "cancel r2", "");                 /* ended */
    tape_expect(&t, "opened w0 s1", "");
    tape_expect(&t, "cancel r1", "close w0 s1, close w1 s1, end r1 cancelled"); /* opening */
    tape_expect(&t, "opened w1 s1", "");
    tape_expect(&t, "submit r3 60+4", "");
    tape_expect(&t, "cancel r1", ""); /* closing */
    tape_expect(&t, "closed w* s1", "open w0 s2+0, open w1 s2+0");
    tape_expect(&t, "opened w* s2", "start w0 s2");
    tape_expect(&t, "cancel r3", "close w0 s2, close w1 s2, end r3 cancelled"); /* running */
    tape_expect(&t, "closed w* s2", "");
    tape_close(&t);
}

static void test_scheduler_refused_opening_closes_the_whole_ring(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 3, 100);
    tape_expect(&t, "submit r1 4+4", "open w0 s1+0, open w1 s1+0, open w2 s1+0");
    tape_expect(&t, "opened w0 s1", "");
    tape_expect(&t, "refused w1 s1", "close w0 s1, close w1 s1, close w2 s1, end r1 error no room");
    tape_expect(&t, "refused w2 s1", "");
    tape_expect(&t, "closed w* s1", "");
    tape_close(&t);
}

static void test_scheduler_failure_while_running_ends_the_request(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 100);
    tape_expect(&t, "submit r1 4+4", "open w0 s1+0");
    tape_expect(&t, "opened w0 s1", "start w0 s1");
    tape_expect(&t, "failed w0 s1", "close w0 s1, end r1 error no room");
    tape_expect(&t, "failed w0 s1", "");
    tape_expect(&t, "closed w0 s1", "");
    tape_close(&t);
}

static void test_scheduler_token_out_of_order_is_an_error(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 100);
    tape_expect(&t, "submit r1 4+4", "open w0 s1+0");
    tape_expect(&t, "opened w0 s1", "start w0 s1");
    tape_expect(&t, "token s1 @5 id1",
                "close w0 s1, end r1 error sequence 1 sent a token at position 5; expected was 4");
    tape_expect(&t, "closed w0 s1", "");
    tape_expect(&t, "submit r2 4+4", "open w0 s2+0");
    tape_expect(&t, "token s2 @4 id1",
                "close w0 s2, end r2 error sequence 2 sent a token at position 4; expected was 4, "
                "after its start");
    tape_expect(&t, "closed w0 s2", "");
    tape_close(&t);
}

static void test_scheduler_refuses_what_breaks_the_protocol(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 100);
    tape_expect(&t, "opened w0 s1", "corrupt"); /* never opened */
    tape_expect(&t, "token s1 @4 id1", "corrupt");
    tape_expect(&t, "submit r1 4+4", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "submit r1 4+4", "internal"); /* the handle is in use */
    tape_expect(&t, "closed w0 s1", "corrupt");   /* nobody asked */
    tape_expect(&t, "opened w0 s1", "");
    tape_expect(&t, "opened w0 s1", "corrupt"); /* twice */
    assert_non_null(strstr(t.err.message, "rank 1"));
    tape_expect(&t, "stop r1", "internal"); /* before a token */
    tape_expect(&t, "opened w7 s1", "internal");
    /* None of it changed anything. */
    tape_expect(&t, "opened w1 s1", "start w0 s1");
    tape_expect(&t, "cancel r1", "close w0 s1, close w1 s1, end r1 cancelled");
    tape_expect(&t, "closed w0 s1", "");
    tape_expect(&t, "closed w0 s1", "corrupt");
    tape_expect(&t, "closed w1 s1", "");
    tape_close(&t);
}

static void test_scheduler_names_who_owes_an_answer(void **state)
{
    (void)state;
    struct tape t;
    uint32_t worker = 99;
    uint64_t sequence = 99;
    tape_open_ring(&t, 2, 100);
    tape_expect(&t, "submit r1 4+4", "open w0 s1+0, open w1 s1+0"); /* at 1 ns */
    tape_expect(&t, "opened w0 s1", "");
    assert_false(scheduler_find_overdue(t.scheduler, 0, &worker, &sequence));
    assert_true(scheduler_find_overdue(t.scheduler, 1, &worker, &sequence));
    assert_int_equal(worker, 1);
    assert_int_equal(sequence, 1);
    tape_expect(&t, "opened w1 s1", "start w0 s1");
    assert_false(scheduler_find_overdue(t.scheduler, 1000, &worker, &sequence)); /* it computes */
    tape_expect(&t, "cancel r1", "close w0 s1, close w1 s1, end r1 cancelled");  /* at 4 ns */
    tape_expect(&t, "closed w1 s1", "");
    assert_false(scheduler_find_overdue(t.scheduler, 3, &worker, &sequence));
    assert_true(scheduler_find_overdue(t.scheduler, 4, &worker, &sequence));
    assert_int_equal(worker, 0);
    tape_expect(&t, "closed w0 s1", "");
    tape_close(&t);
}

static void test_scheduler_finds_a_sequence_until_it_is_closed(void **state)
{
    (void)state;
    struct tape t;
    uint64_t request = 0;
    tape_open_ring(&t, 1, 100);
    assert_false(scheduler_find_sequence(t.scheduler, 1, &request));
    tape_expect(&t, "submit r5 4+4", "open w0 s1+0");
    tape_expect(&t, "cancel r5", "close w0 s1, end r5 cancelled");
    assert_true(scheduler_find_sequence(t.scheduler, 1, &request));
    assert_int_equal(request, 5);
    tape_expect(&t, "closed w0 s1", "");
    assert_false(scheduler_find_sequence(t.scheduler, 1, NULL));
    tape_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_normal_life),
        cmocka_unit_test(test_scheduler_ends_with_stop_at_a_stop_id),
        cmocka_unit_test(test_scheduler_counts_tokens_itself),
        cmocka_unit_test(test_scheduler_stop_string_ends_and_later_tokens_are_late),
        cmocka_unit_test(test_scheduler_cancels_in_every_state),
        cmocka_unit_test(test_scheduler_refused_opening_closes_the_whole_ring),
        cmocka_unit_test(test_scheduler_failure_while_running_ends_the_request),
        cmocka_unit_test(test_scheduler_token_out_of_order_is_an_error),
        cmocka_unit_test(test_scheduler_refuses_what_breaks_the_protocol),
        cmocka_unit_test(test_scheduler_names_who_owes_an_answer),
        cmocka_unit_test(test_scheduler_finds_a_sequence_until_it_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
