/* simulate_why: what is lost goes to the reason it has, and the reasons add up. */
#include "tests/unit.h"

#include "cli/simulate_why.h"

#include <math.h>

/* A run of one second in which each worker made so many tokens and was busy and waiting so long. */
static struct simulate_result run_of(uint32_t n_workers, struct control_stats *stats,
                                     uint64_t tokens_each, double busy, double waiting)
{
    struct simulate_result r = {.ended_ns = 1000000000, .stats = stats};
    r.n_tokens = n_workers * tokens_each;
    for (uint32_t i = 0; i < n_workers; i++)
        stats[i] = (struct control_stats){.n_batches = 100,
                                          .n_rows = tokens_each,
                                          .busy_ns = (uint64_t)(busy * 1e9),
                                          .idle_waiting_ns = (uint64_t)(waiting * 1e9),
                                          .elapsed_ns = 1000000000};
    return r;
}

static void assert_close(double found, double expected)
{
    if (fabs(found - expected) > 1e-6)
        fail_msg("found %f, expected %f", found, expected);
}

static double sum(const struct simulate_why *why)
{
    double all = 0;
    for (int i = 0; i < SIMULATE_LOSSES; i++)
        all += why->losses[i];
    return all;
}

static void test_simulate_why_nothing_is_lost(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 1000, 1, 0), r = run_of(4, four, 1000, 1, 0);
    struct simulate_why why;
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.efficiency, 1);
    assert_close(why.base_tokens_per_s, 1000);
    assert_close(why.base_rows_per_batch, 10);
    assert_close(sum(&why), 0);
}

static void test_simulate_why_tells_waits_from_small_batches(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 1000, 1, 0), r = run_of(4, four, 700, 0.7, 0.3);
    struct simulate_why why;
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.efficiency, 0.7);
    assert_close(why.losses[LOSS_PEERS], 0.3);
    assert_close(sum(&why), 0.3);
    assert_int_equal(why.largest, LOSS_PEERS);

    r = run_of(4, four, 600, 1, 0);
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.efficiency, 0.6);
    assert_close(why.losses[LOSS_BATCHES], 0.4);
    assert_int_equal(why.largest, LOSS_BATCHES);
}

/* Half the time starved: it goes where the sequences were longer than with one worker. */
static void test_simulate_why_divides_starvation(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 1000, 1, 0);
    struct simulate_why why;
    const struct {
        struct simulate_slots slots;
        enum simulate_loss expected;
    } cases[] = {
        {{.rank0_s = 5}, LOSS_RANK0},    {{.hop_s = 5}, LOSS_LINKS},
        {{.wait_s = 5}, LOSS_IMBALANCE}, {{.blocked_s = 5}, LOSS_BLOCKED},
        {{.opening_s = 5}, LOSS_LINKS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct simulate_result r = run_of(4, four, 500, 0.5, 0);
        r.slots = cases[i].slots;
        simulate_why_make(&r, 4, 0, &base, 0, &why);
        assert_close(why.losses[cases[i].expected], 0.5);
        assert_int_equal(why.largest, cases[i].expected);
        assert_close(sum(&why), 0.5);
    }
    /* A busy coordinator is what an opening waits for. */
    struct simulate_result r = run_of(4, four, 500, 0.5, 0);
    r.slots.opening_s = 5;
    r.rank0_busy_ns = 900000000;
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_int_equal(why.largest, LOSS_RANK0);
    /* Two thirds on the links, one at other workers. */
    r = run_of(4, four, 500, 0.5, 0);
    r.slots.hop_s = 4;
    r.slots.wait_s = 2;
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.losses[LOSS_LINKS], 0.5 * 2 / 3);
    assert_close(why.losses[LOSS_IMBALANCE], 0.5 / 3);
}

/* Half of the sequences' time is at rank 0: batches of half the rows are its work, and smaller ones
 * are not. */
static void test_simulate_why_sees_who_keeps_batches_small(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 1000, 1, 0), r = run_of(4, four, 600, 1, 0);
    struct simulate_why why;
    base.slots.compute_s = 10;
    r.slots.compute_s = r.slots.rank0_s = 20;
    for (int i = 0; i < 4; i++)
        four[i].n_batches = 120; /* 5 rows instead of 10 */
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.losses[LOSS_RANK0], 0.4);
    assert_close(why.losses[LOSS_BATCHES], 0);
    for (int i = 0; i < 4; i++)
        four[i].n_batches = 240; /* 2.5 rows: a third of the loss is nobody's absence */
    simulate_why_make(&r, 4, 0, &base, 0, &why);
    assert_close(why.losses[LOSS_RANK0], 0.4 * 2 / 3);
    assert_close(why.losses[LOSS_BATCHES], 0.4 / 3);
}

/* Fewer in flight than asked for. */
static void test_simulate_why_sees_the_ramp(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 1000, 1, 0), r = run_of(4, four, 500, 0.5, 0);
    struct simulate_why why;
    base.in_flight = 10;
    r.in_flight = 20;
    simulate_why_make(&r, 4, 40, &base, 10, &why);
    assert_int_equal(why.largest, LOSS_RAMP);
    assert_close(why.losses[LOSS_RAMP], 0.5);
}

static void test_simulate_why_of_no_tokens(void **state)
{
    (void)state;
    struct control_stats one[1], four[4];
    struct simulate_result base = run_of(1, one, 0, 0, 0), r = run_of(4, four, 0, 0, 0);
    struct simulate_why why;
    simulate_why_make(&r, 4, 4, &base, 1, &why);
    assert_close(why.efficiency, 0);
    for (int i = 0; i < SIMULATE_LOSSES; i++) {
        assert_true(strlen(simulate_why_name((enum simulate_loss)i)) > 0);
        assert_true(strlen(simulate_why_text((enum simulate_loss)i)) > 10);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simulate_why_nothing_is_lost),
        cmocka_unit_test(test_simulate_why_tells_waits_from_small_batches),
        cmocka_unit_test(test_simulate_why_divides_starvation),
        cmocka_unit_test(test_simulate_why_sees_who_keeps_batches_small),
        cmocka_unit_test(test_simulate_why_sees_the_ramp),
        cmocka_unit_test(test_simulate_why_of_no_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
