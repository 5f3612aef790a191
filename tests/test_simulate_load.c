/* simulate_load: requests are those of bench engine, arrivals follow their law, and a recorded
 * trace comes back as the requests it recorded. */
#include "tests/unit.h"

#include "coordinator/trace_set.h"
#include "tests/simulate_case.h"

#include <math.h>
#include <unistd.h>

static void test_simulate_load_draws_the_requests_of_bench_engine(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.workload.prompt_max = 30;
    c.workload.output_max = 20;
    c.workload.seed = 5;
    for (uint32_t i = 0; i < 10; i++) {
        struct bench_request here, there;
        int32_t *ids, expected[30];
        const uint8_t *exits;
        assert_int_equal(simulate_load_draw(&c.load, i, &here, &ids, &exits, NULL), STATUS_OK);
        bench_workload_draw(&c.workload, i, &c.config.model, &c.load.base, &there, expected);
        assert_int_equal(here.n_prompt, there.n_prompt);
        assert_int_equal(here.n_output, there.n_output);
        assert_memory_equal(ids, expected, here.n_prompt * sizeof *ids);
        assert_null(exits);
        free(ids);
    }
    simulate_case_free(&c);
}

static void test_simulate_load_bursts_come_together(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.load.arrivals = ARRIVALS_BURST;
    c.load.n_burst = 3;
    c.load.period_ns = 1000;
    uint64_t at_ns = 0;
    const uint64_t expected[] = {0, 0, 0, 1000, 1000, 1000, 2000};
    for (uint32_t i = 0; i < 7; i++) {
        at_ns = simulate_load_arrival_ns(&c.load, 10 + i, 10, at_ns);
        assert_int_equal(at_ns, expected[i]);
    }
    simulate_case_free(&c);
}

/* Gaps of a Poisson process: their mean is 1 / rate, and so is their standard deviation. */
static void test_simulate_load_poisson_gaps_are_exponential(void **state)
{
    (void)state;
    enum { N = 20000 };
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.load.arrivals = ARRIVALS_POISSON;
    c.load.rate_per_s = 1000;
    uint64_t at_ns = simulate_load_arrival_ns(&c.load, 0, 0, 0);
    assert_int_equal(at_ns, 0);
    double sum = 0, squares = 0;
    for (uint32_t i = 1; i <= N; i++) {
        uint64_t next_ns = simulate_load_arrival_ns(&c.load, i, 0, at_ns);
        assert_true(next_ns >= at_ns);
        double gap_ms = (double)(next_ns - at_ns) / 1e6;
        sum += gap_ms;
        squares += gap_ms * gap_ms;
        at_ns = next_ns;
    }
    double mean = sum / N, deviation = sqrt(squares / N - mean * mean);
    assert_true(fabs(mean - 1) < 0.03);
    assert_true(fabs(deviation - 1) < 0.05);
    simulate_case_free(&c);
}

static void test_simulate_load_open_arrivals_do_not_wait_for_ends(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.load.arrivals = ARRIVALS_BURST;
    c.load.n_burst = 20;
    c.load.period_ns = 1000 * 1000 * 1000;
    c.workload.n_requests = 40; /* and never more than one by itself: concurrency is 1 */
    simulate_case_run(&c);
    assert_int_equal(c.result.n_timed, 40);
    assert_true(c.result.ended_ns > 1000 * 1000 * 1000);
    assert_true((double)c.result.stats[0].n_rows / (double)c.result.stats[0].n_batches > 5);
    simulate_case_free(&c);
}

/* A simulated run with a trace, and the run of what was read back: the same requests, tokens and
 * exits. */
static void test_simulate_load_replays_a_trace(void **state)
{
    (void)state;
    struct simulate_case c, again;
    simulate_case_init(&c, 2);
    c.config.trace_bytes = 1 << 20;
    c.workload.n_requests = 30;
    c.workload.concurrency = 6;
    c.workload.prompt_max = 20;
    c.workload.output_max = 15;
    simulate_case_exits(&c, 0.6f);
    simulate_case_run(&c);
    struct trace_set *set = NULL;
    struct err err = {0};
    char path[] = "/tmp/carousel_replay_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(simulate_world_trace(c.world, &set, &err), STATUS_OK);
    assert_true(set->is_simulated);
    assert_int_equal(set->n_ranks, 3);
    assert_int_equal(trace_set_write(set, path, &err), STATUS_OK);
    trace_set_destroy(set);

    simulate_case_init(&again, 2);
    assert_int_equal(simulate_load_replay(&again.load, path, &err), STATUS_OK);
    assert_int_equal(again.load.n_recorded, 30);
    again.workload.n_requests = 30;
    simulate_case_run(&again);
    assert_int_equal(again.result.n_tokens, c.result.n_tokens);
    assert_memory_equal(again.result.exits, c.result.exits, sizeof c.result.exits);
    assert_int_equal(again.result.n_timed, 30);

    /* The same requests in the same order, by their lengths. */
    for (uint32_t i = 1; i < 30; i++)
        assert_true(again.load.recorded[i].arrived_ns >= again.load.recorded[i - 1].arrived_ns);
    simulate_case_free(&again);

    simulate_case_init(&again, 2);
    again.config.model.n_loops = 1;
    assert_int_equal(simulate_load_replay(&again.load, path, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "loop 2"));
    simulate_case_free(&again);
    simulate_case_free(&c);
    unlink(path);
}

static void test_simulate_load_refuses_a_trace_without_requests(void **state)
{
    (void)state;
    struct simulate_case c;
    struct trace_set *set = NULL;
    struct err err = {0};
    char path[] = "/tmp/carousel_replay_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    simulate_case_init(&c, 1);
    assert_int_equal(trace_set_create(2, &set, &err), STATUS_OK);
    set->n_loops = 2;
    set->ring_size = 1;
    assert_int_equal(trace_set_align(set, &err), STATUS_OK);
    assert_int_equal(trace_set_write(set, path, &err), STATUS_OK);
    trace_set_destroy(set);
    assert_int_equal(simulate_load_replay(&c.load, path, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(simulate_load_replay(&c.load, "/nowhere/at/all", &err), STATUS_NOT_FOUND);
    simulate_case_free(&c);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simulate_load_draws_the_requests_of_bench_engine),
        cmocka_unit_test(test_simulate_load_bursts_come_together),
        cmocka_unit_test(test_simulate_load_poisson_gaps_are_exponential),
        cmocka_unit_test(test_simulate_load_open_arrivals_do_not_wait_for_ends),
        cmocka_unit_test(test_simulate_load_replays_a_trace),
        cmocka_unit_test(test_simulate_load_refuses_a_trace_without_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
