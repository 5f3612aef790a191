/* worker: the driver between transport and stage, seen by a scripted coordinator and a scripted
 * ring mate. */
#include "tests/worker_world.h"

/* The loops of a token have taken some time, and no more than has passed. */
static void check_timings(const struct control_token *token, uint32_t n_loops, uint64_t passed_ns)
{
    double sum_s = 0.0;
    assert_int_equal(token->exit_loop, n_loops);
    for (uint32_t t = 0; t < n_loops; t++) {
        const struct loop_timing *timing = &token->timings[t];
        assert_true(timing->hop_s >= 0.0 && timing->compute_s > 0.0f);
        assert_true((timing->hop_s > 0.0) == (t == 0)); /* loop 2 runs on the same worker */
        sum_s += timing->hop_s + (double)timing->wait_s + (double)timing->compute_s;
    }
    assert_true(sum_s < (double)passed_ns / 1e9 * (1 + 1e-6));
}

static void test_worker_says_its_clock_with_its_counters(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1);
    const uint64_t begin_ns = host_now_ns();
    send_control(&w, &(struct control_message){.kind = CONTROL_STATS_REQUEST, .stats.tag = 9});
    struct control_message m = receive(&w, CONTROL_STATS);
    assert_int_equal(m.stats.tag, 9);
    assert_true(begin_ns <= m.stats.clock_ns && m.stats.clock_ns <= host_now_ns());
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
}

/* Its targets come with the open, serve the batch, and are freed by the close (leak checked). */
static void report_observed(uint32_t n_in_flight)
{
    struct world w;
    world_open_flights(&w, 1, 0, n_in_flight);
    int32_t target = 2;
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = 7;
    m.open.prompt_tokens = m.open.max_tokens = 1;
    m.open.max_loops = 2;
    m.open.n_observe_targets = 1;
    m.open.observe_hidden = true;
    m.open_targets = &target;
    send_control(&w, &m);
    receive(&w, CONTROL_OPENED);
    const uint64_t begin_ns = host_now_ns();
    send_prompt(&w, 7);
    for (uint32_t loop = 1; loop <= 2; loop++) {
        m = receive(&w, CONTROL_OBSERVATIONS);
        assert_int_equal(m.observations.n, 1);
        const struct control_observation *o = &m.observations.items[0];
        assert_int_equal(o->sequence, 7);
        assert_int_equal(o->loop, loop);
        assert_true(o->has_target && o->logprob < 0 && o->n_hidden == D_MODEL && o->n_top == 0);
        control_clear(&m);
    }
    m = receive(&w, CONTROL_TOKENS);
    check_timings(&m.tokens.items[0], 2, host_now_ns() - begin_ns);
    control_clear(&m);
    m = (struct control_message){.kind = CONTROL_CLOSE};
    m.sequence.sequence = 7;
    send_control(&w, &m);
    receive(&w, CONTROL_CLOSED);
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
    assert_int_equal(w.status, STATUS_OK);
}

static void test_worker_reports_an_observed_sequence(void **state)
{
    (void)state;
    report_observed(1);
    report_observed(2); /* on the compute thread, whatever a batch takes */
}

static void test_worker_refuses_a_target_outside_the_vocabulary(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1);
    int32_t target = 1 << 20;
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = 7;
    m.open.prompt_tokens = m.open.max_tokens = m.open.max_loops = 1;
    m.open.n_observe_targets = 1;
    m.open_targets = &target;
    send_control(&w, &m);
    m = receive(&w, CONTROL_SHUTDOWN);
    assert_int_equal(m.shutdown.failure, STATUS_CORRUPT);
    assert_contains(m.shutdown.message, "target 0 of sequence 7 is 1048576");
    world_close(&w);
    assert_int_equal(w.status, STATUS_CORRUPT);
}

/* A mate's rows come with the word that its batch is over. Who overhears that goes on waiting for a
 * batch that has long ended. */
static void test_worker_hears_that_a_batch_is_over_when_rows_come_with_it(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 2);
    open_sequence(&w, 1);
    open_sequence(&w, 2); /* with one sequence alone there is never a wait */
    send_bundle(&w, BUNDLE_BUSY, 0);
    send_bundle(&w, BUNDLE_DONE, 1);
    struct control_message m = receive(&w, CONTROL_TOKENS);
    assert_int_equal(m.tokens.n, 1);
    assert_int_equal(m.tokens.items[0].sequence, 1);
    assert_int_equal(m.tokens.items[0].exit_loop, 2);
    control_clear(&m);
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
    assert_int_equal(w.status, STATUS_OK);
}

static void test_worker_refuses_a_word_from_outside_its_ring(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1); /* rank 2 is a ring of its own */
    send_bundle(&w, BUNDLE_BUSY, 0);
    struct control_message m = receive(&w, CONTROL_SHUTDOWN);
    assert_int_equal(m.shutdown.failure, STATUS_CORRUPT);
    assert_contains(m.shutdown.message, "rank 2");
    world_close(&w);
    assert_int_equal(w.status, STATUS_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_says_its_clock_with_its_counters),
        cmocka_unit_test(test_worker_reports_an_observed_sequence),
        cmocka_unit_test(test_worker_refuses_a_target_outside_the_vocabulary),
        cmocka_unit_test(test_worker_hears_that_a_batch_is_over_when_rows_come_with_it),
        cmocka_unit_test(test_worker_refuses_a_word_from_outside_its_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
