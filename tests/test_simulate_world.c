/* simulate_world: times are sums of costs, every request ends once, and a run is a function of its
 * config and load. */
#include "tests/unit.h"

#include "cli/simulate_why.h"
#include "tests/simulate_case.h"

#include <math.h>

static void assert_near(double found, double expected)
{
    if (fabs(found - expected) > 1e-9 + 1e-9 * fabs(expected))
        fail_msg("found %.9f, expected %.9f", found, expected);
}

/* Nothing is held after the end, and every request has ended once. */
static void assert_clean(const struct simulate_case *c)
{
    const struct simulate_result *r = &c->result;
    assert_int_equal(r->n_timed + r->n_cancelled, c->workload.n_requests);
    assert_int_equal(r->kv_blocks_left, 0);
    assert_int_equal(r->sequences_left, 0);
    uint64_t n_exits = 0;
    for (int t = 0; t <= SEQUENCE_MAX_LOOPS; t++)
        n_exits += r->exits[t];
    assert_int_equal(n_exits, r->n_tokens);
}

/* us of one stream on one worker: request 5, link 7, OPEN 2, OPENED 2, link 7 = 23; the prompt:
 * link 7, message 2 = 32; two batches of 10 + 1000 and the head's 100 = 2152; token: message 2,
 * link 7, token 3 = 2164. The next batch begins after the token's message, so tokens are 2 x 1010 +
 * 100 + 2 apart. The end: link 7, CLOSE 2, CLOSED 2, link 7. */
static void test_simulate_world_adds_up_one_stream(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    simulate_case_run(&c);
    assert_near(c.result.ttft_ms[0], 2.164);
    assert_near(c.result.tpot_ms[0], 2.122);
    assert_int_equal(c.result.ended_ns, 1000 * (2164 + 2 * 2122 + 18));
    assert_int_equal(c.result.n_tokens, 3);
    assert_int_equal(c.result.exits[2], 3);
    assert_int_equal(c.result.rank0_busy_ns, 1000 * (5 + 3 * 3));
    assert_int_equal(c.result.stats[0].n_batches, 6);
    assert_int_equal(c.result.stats[0].busy_ns, 1000 * (6 * 1010 + 3 * 100));
    /* OPENED, three times TOKENS, CLOSED; rows stay. */
    assert_int_equal(c.result.stats[0].n_messages_sent, 5);
    assert_clean(&c);
    simulate_case_free(&c);
}

/* On two workers loop 2's row and the next token's id travel: packed 2 + 1 for the row (2 for the
 * id), link 7, unpacked the same; a batch that feeds the mate is announced and ended by messages of
 * their own when nothing else travels. */
static void test_simulate_world_adds_hops(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 2);
    c.config.batching = BATCHING_GREEDY; /* nothing is announced */
    simulate_case_run(&c);
    double row_hop = 3 + 7 + 3, id_hop = 2 + 7 + 2, batches = 2 * 1010 + 100;
    /* The token's message goes out before the id. */
    assert_near(c.result.tpot_ms[0], (batches + row_hop + 2 + id_hop) / 1e3);
    assert_near(c.result.ttft_ms[0], (32 + batches + row_hop + 12) / 1e3);
    assert_near(c.result.slots.hop_s * 1e6, 9 + 3 * row_hop + 2 * (2 + id_hop));
    assert_near(c.result.slots.opening_s * 1e6, 18);
    assert_int_equal(c.result.stats[0].n_batches + c.result.stats[1].n_batches, 6);
    assert_clean(&c);
    simulate_case_free(&c);
}

/* us: a prompt of four chunks is there at 32. One batch at a time: loop 1 of a chunk with loop 2 of
 * the one before it, so five batches of 10 + 1000 and the head's 100, then 12 for the token. Two in
 * flight, started greedily: chunks 1 and 2 of loop 1, then 1 of loop 2 with 3, 2 with 4, 3, 4: six
 * of 1000 without a gap, and one hand-over. */
static void test_simulate_world_two_in_flight_hide_the_hand_over(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 2; n++) {
        struct simulate_case c;
        simulate_case_init(&c, 1);
        c.config.batching = BATCHING_GREEDY;
        c.config.n_in_flight = n;
        c.workload.prompt_min = c.workload.prompt_max = 64;
        c.workload.output_min = c.workload.output_max = 1;
        simulate_case_run(&c);
        double batches = n == 1 ? 5 * 1010 + 100 : 6 * 1000 + 100 + 10;
        assert_near(c.result.ttft_ms[0], (32 + batches + 12) / 1e3);
        assert_int_equal(c.result.stats[0].n_batches, n == 1 ? 5 : 6);
        assert_int_equal(c.result.stats[0].busy_ns, (uint64_t)(1e3 * batches));
        assert_clean(&c);
        simulate_case_free(&c);
    }
}

/* A row of d floats and its frame at one byte a nanosecond, beside the same without. */
static void test_simulate_world_charges_bytes(void **state)
{
    (void)state;
    struct simulate_case c, slow;
    simulate_case_init(&c, 2);
    simulate_case_init(&slow, 2);
    slow.config.cost.remote.ns_per_byte = 1;
    simulate_case_run(&c);
    simulate_case_run(&slow);
    assert_int_equal(c.result.n_messages, slow.result.n_messages);
    uint64_t n_bytes = c.result.stats[0].n_bytes_sent + c.result.stats[1].n_bytes_sent;
    assert_true(n_bytes > 3 * 8 * sizeof(float) + 2 * sizeof(int32_t));
    /* All but the last token's way, the end and what nobody waits for is on the stream's path. */
    double lost_s = (double)(slow.result.ended_ns - c.result.ended_ns) / 1e9;
    assert_true(lost_s > 0 && lost_s < 1e-9 * 2 * (double)n_bytes);
    assert_true(slow.result.slots.hop_s > c.result.slots.hop_s);
    simulate_case_free(&c);
    simulate_case_free(&slow);
}

/* A batch of less than 400 us runs on the driver's thread, and what arrives meanwhile waits for it.
 * us: both requests are taken at 80, so OPEN of the second and the first's prompt are there at 87
 * together; 91: OPENED is sent; 93: the first batch begins and lasts until 403. The second prompt
 * is there at 105 and handled from 403 to 405, before the result: so both are in the batch from 405
 * to 815 and the first token is there at 827. A driver with a thread for its batches has taken it
 * long before, and is 2 us earlier. */
static void test_simulate_world_short_batches_silence_the_driver(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.workload.n_requests = c.workload.concurrency = 2;
    c.config.cost.block.y[0] = 3e5;
    c.config.cost.coordinator_request_ns = 4e4;
    simulate_case_run(&c);
    assert_near(c.result.ttft_ms[0], 0.827);
    assert_clean(&c);
    simulate_case_free(&c);

    simulate_case_init(&c, 1);
    c.workload.n_requests = c.workload.concurrency = 2;
    c.config.cost.block.y[0] = 5e5;
    c.config.cost.coordinator_request_ns = 4e4;
    simulate_case_run(&c);
    assert_near(c.result.ttft_ms[0], 0.825 + 2 * 0.2);
    assert_clean(&c);
    simulate_case_free(&c);
}

static void test_simulate_world_is_a_function_of_its_input(void **state)
{
    (void)state;
    struct simulate_case a, b;
    struct simulate_case *both[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        simulate_case_init(both[i], 6);
        both[i]->config.ring_size = 3;
        both[i]->config.cost.jitter = 0.1;
        both[i]->workload.n_requests = 200;
        both[i]->workload.concurrency = 24;
        both[i]->workload.prompt_max = 40;
        both[i]->workload.output_max = 20;
        both[i]->workload.cancel_fraction = 0.1;
        simulate_case_exits(both[i], 0.4f);
    }
    simulate_case_run(&a);
    simulate_case_run(&b);
    assert_true(a.result.n_cancelled > 0);
    assert_int_equal(a.result.ended_ns, b.result.ended_ns);
    assert_int_equal(a.result.n_events, b.result.n_events);
    assert_true(a.result.hash == b.result.hash);
    assert_memory_equal(a.result.stats, b.result.stats, 6 * sizeof *a.result.stats);
    assert_memory_equal(a.result.ttft_ms, b.result.ttft_ms, a.result.n_timed * sizeof(double));
    assert_clean(&a);
    simulate_case_free(&a);
    simulate_case_free(&b);
}

/* Tokens and exits do not depend on how many workers there are, how they batch, or what it costs.
 */
static void test_simulate_world_tokens_are_the_requests_own(void **state)
{
    (void)state;
    const uint32_t workers[] = {1, 2, 5, 8};
    uint64_t hash = 0;
    for (int i = 0; i < 4; i++) {
        struct simulate_case c;
        simulate_case_init(&c, workers[i]);
        c.config.batching = (enum batching)(i % 3);
        c.workload.n_requests = 50;
        c.workload.concurrency = 10 + i;
        c.workload.output_max = 9;
        simulate_case_exits(&c, 0.7f);
        simulate_case_run(&c);
        assert_clean(&c);
        assert_true(c.result.exits[1] > c.result.exits[2]);
        assert_true(i == 0 || c.result.hash == hash);
        hash = c.result.hash;
        simulate_case_free(&c);
    }
}

/* Neither places for sequences nor KV blocks are enough for all; everybody gets his turn. */
static void test_simulate_world_requests_wait_for_room(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 2);
    c.workload.n_requests = 40;
    c.workload.concurrency = 40;
    c.workload.output_max = 12;
    c.config.max_sequences = 4;
    simulate_case_run(&c);
    assert_clean(&c);
    double blocked_s = c.result.slots.blocked_s;
    assert_true(blocked_s > 0.1);
    simulate_case_free(&c);

    simulate_case_init(&c, 2);
    c.workload.n_requests = 40;
    c.workload.concurrency = 40;
    c.workload.output_max = 12;
    c.config.n_blocks = 4;
    c.config.n_slots = 16;
    simulate_case_run(&c);
    assert_clean(&c);
    assert_true(c.result.slots.blocked_s > 0.1);
    simulate_case_free(&c);
}

/* More than the scheduler's queue takes: the rest waits in front of it, and is lost no more. */
static void test_simulate_world_more_than_the_queue_holds(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.workload.n_requests = c.workload.concurrency = 5000;
    c.workload.output_min = c.workload.output_max = 1;
    simulate_case_run(&c);
    assert_int_equal(c.result.n_timed, 5000);
    assert_clean(&c);
    simulate_case_free(&c);
}

static void test_simulate_world_a_busy_coordinator_bounds_the_rate(void **state)
{
    (void)state;
    struct simulate_case c, one;
    struct simulate_why why;
    simulate_case_init(&c, 8);
    c.config.cost.coordinator_token_ns = 1e6;
    c.workload.n_requests = 64;
    c.workload.concurrency = 32;
    c.workload.output_min = c.workload.output_max = 20;
    simulate_case_run(&c);
    double elapsed_s = (double)(c.result.ended_ns - c.result.began_ns) / 1e9;
    double rate = (double)c.result.n_tokens / elapsed_s;
    assert_true(rate < 1000 && rate > 950);
    assert_true((double)c.result.rank0_busy_ns / 1e9 > 0.95 * elapsed_s);

    simulate_case_init(&one, 1);
    one.config.cost.coordinator_token_ns = 1e6;
    one.workload.n_requests = 8;
    one.workload.concurrency = 4;
    one.workload.output_min = one.workload.output_max = 20;
    simulate_case_run(&one);
    simulate_why_make(&c.result, 8, 32, &one.result, 4, &why);
    assert_int_equal(why.largest, LOSS_RANK0);
    assert_true(why.efficiency < 0.3);
    simulate_case_free(&c);
    simulate_case_free(&one);
}

/* The warm-up is not counted, and leaves nothing behind. */
static void test_simulate_world_warm_up_is_not_counted(void **state)
{
    (void)state;
    struct simulate_case c;
    simulate_case_init(&c, 1);
    c.workload.n_warmup = 7;
    simulate_case_run(&c);
    assert_int_equal(c.result.n_tokens, 3);
    assert_near(c.result.ttft_ms[0], 2.164);
    assert_int_equal(c.result.ended_ns - c.result.began_ns, 1000 * (2164 + 2 * 2122 + 18));
    assert_int_equal(c.result.stats[0].n_batches, 6);
    assert_clean(&c);
    simulate_case_free(&c);
}

static void test_simulate_world_refuses_a_ring_that_does_not_divide(void **state)
{
    (void)state;
    struct simulate_case c;
    struct err err = {0};
    simulate_case_init(&c, 8);
    c.config.ring_size = 3;
    assert_int_equal(simulate_world_create(&c.config, &c.load, &c.world, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "ring of 3"));
    simulate_case_free(&c);
}

/* What cannot fit is told, and frees all. */
static void test_simulate_world_refuses_what_never_fits(void **state)
{
    (void)state;
    struct simulate_case c;
    struct err err = {0};
    simulate_case_init(&c, 1);
    c.config.n_blocks = 1;
    c.config.n_slots = 4;
    assert_int_equal(simulate_world_create(&c.config, &c.load, &c.world, &err), STATUS_OK);
    assert_int_equal(simulate_world_run(c.world, 0, 1, &c.result, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "can never fit"));
    simulate_case_free(&c);
}

/* Times that a cost file may have, and a run that would end after its clock does. */
static void test_simulate_world_ends_before_its_clock(void **state)
{
    (void)state;
    struct simulate_case c;
    struct err err = {0};
    simulate_case_init(&c, 2);
    c.config.cost.block.y[0] = c.config.cost.head.y[0] = 1e18;
    assert_int_equal(simulate_world_create(&c.config, &c.load, &c.world, &err), STATUS_OK);
    assert_int_equal(simulate_world_run(c.world, 0, 1, &c.result, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "simulated years"));
    simulate_case_free(&c);

    simulate_case_init(&c, 1);
    c.load.arrivals = ARRIVALS_BURST;
    c.load.n_burst = 1;
    c.load.period_ns = UINT64_C(1000000000000000000);
    assert_int_equal(simulate_world_create(&c.config, &c.load, &c.world, &err), STATUS_OK);
    assert_int_equal(simulate_world_run(c.world, 0, 40, &c.result, &err), STATUS_INVALID);
    simulate_case_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simulate_world_adds_up_one_stream),
        cmocka_unit_test(test_simulate_world_adds_hops),
        cmocka_unit_test(test_simulate_world_two_in_flight_hide_the_hand_over),
        cmocka_unit_test(test_simulate_world_charges_bytes),
        cmocka_unit_test(test_simulate_world_short_batches_silence_the_driver),
        cmocka_unit_test(test_simulate_world_is_a_function_of_its_input),
        cmocka_unit_test(test_simulate_world_tokens_are_the_requests_own),
        cmocka_unit_test(test_simulate_world_requests_wait_for_room),
        cmocka_unit_test(test_simulate_world_more_than_the_queue_holds),
        cmocka_unit_test(test_simulate_world_a_busy_coordinator_bounds_the_rate),
        cmocka_unit_test(test_simulate_world_warm_up_is_not_counted),
        cmocka_unit_test(test_simulate_world_refuses_a_ring_that_does_not_divide),
        cmocka_unit_test(test_simulate_world_refuses_what_never_fits),
        cmocka_unit_test(test_simulate_world_ends_before_its_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
