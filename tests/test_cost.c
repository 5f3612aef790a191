/* cost: starts from the calibration, finds a and b from batches of mixed sizes, and stays sane when
 * they say nothing. */
#include "tests/unit.h"

#include "worker/cost.h"

#include <math.h>

static void assert_near(double value, double expected, double relative)
{
    if (fabs(value - expected) > relative * expected)
        fail_msg("%g is not within %g of %g", value, relative, expected);
}

static void test_cost_starts_at_the_calibration(void **state)
{
    (void)state;
    struct cost c;
    cost_init(&c, 2000000, 10000);
    assert_true(c.batch_ns == 2000000.0 && c.row_ns == 10000.0);
    cost_update(&c, 16, 2160000); /* as predicted: nothing moves */
    assert_near(c.batch_ns, 2000000.0, 1e-6);
    assert_near(c.row_ns, 10000.0, 1e-6);
}

static void test_cost_finds_a_and_b_from_mixed_batches(void **state)
{
    (void)state;
    struct cost c;
    cost_init(&c, 500000, 90000); /* far off */
    uint64_t random = 1;
    for (int i = 0; i < 2000; i++) {
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint32_t rows = 1 + (uint32_t)(random >> 33) % 64;
        double jitter = 0.95 + 0.1 * (double)((random >> 20) & 1023) / 1023.0;
        cost_update(&c, rows, (uint64_t)((2000000.0 + 30000.0 * rows) * jitter));
    }
    assert_near(c.batch_ns, 2000000.0, 0.05);
    assert_near(c.row_ns, 30000.0, 0.05);
}

static void test_cost_follows_a_machine_that_gets_slower(void **state)
{
    (void)state;
    struct cost c;
    cost_init(&c, 1000000, 10000);
    for (uint32_t i = 0; i < 1000; i++)
        cost_update(&c, 1 + i % 32, 20 * (1000000 + 10000 * (uint64_t)(1 + i % 32)));
    assert_near(c.batch_ns, 20000000.0, 0.02);
    assert_near(c.row_ns, 200000.0, 0.02);
}

static void test_cost_of_one_size_only_moves_a(void **state)
{
    (void)state;
    struct cost c;
    cost_init(&c, 1000000, 10000);
    for (int i = 0; i < 20000; i++)
        cost_update(&c, 8, 2080000);
    assert_near(c.batch_ns + 8.0 * c.row_ns, 2080000.0, 1e-3);
    assert_true(c.row_ns >= 0.0 && c.row_ns < 200000.0);
}

static void test_cost_is_never_negative(void **state)
{
    (void)state;
    struct cost c;
    /* More rows take less time: b would be negative. */
    cost_init(&c, 1000000, 10000);
    for (uint32_t i = 0; i < 2000; i++)
        cost_update(&c, 1 + i % 32, 5000000 - 100000 * (uint64_t)(i % 32));
    assert_true(c.row_ns == 0.0 && c.batch_ns > 0.0);
    /* Quadratic: a would be negative. */
    cost_init(&c, 0, 10000);
    for (uint32_t i = 0; i < 2000; i++)
        cost_update(&c, 1 + i % 32, 1000 * (uint64_t)(1 + i % 32) * (1 + i % 32));
    assert_true(c.batch_ns == 0.0 && c.row_ns > 0.0);
}

static void test_cost_one_stall_moves_little(void **state)
{
    (void)state;
    struct cost c;
    cost_init(&c, 1000000, 10000);
    for (uint32_t i = 0; i < 500; i++)
        cost_update(&c, 1 + i % 32, 1000000 + 10000 * (uint64_t)(1 + i % 32));
    cost_update(&c, 16, UINT64_C(5000000000)); /* 5 s: somebody stopped us */
    assert_near(c.batch_ns + 16.0 * c.row_ns, 1160000.0, 0.07);
    cost_update(&c, 0, 1000); /* no rows, no news */
    assert_near(c.batch_ns + 16.0 * c.row_ns, 1160000.0, 0.07);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_starts_at_the_calibration),
        cmocka_unit_test(test_cost_finds_a_and_b_from_mixed_batches),
        cmocka_unit_test(test_cost_follows_a_machine_that_gets_slower),
        cmocka_unit_test(test_cost_of_one_size_only_moves_a),
        cmocka_unit_test(test_cost_is_never_negative),
        cmocka_unit_test(test_cost_one_stall_moves_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
