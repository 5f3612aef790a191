/* Tests train/random.c: streams are functions of their key, and the numbers are spread as they
 * should be. */
#include "tests/unit.h"

#include "train/random.h"

#include <math.h>

static void test_random_same_key_same_numbers(void **state)
{
    (void)state;
    struct random a = random_of(7, 100, 3), b = random_of(7, 100, 3);
    for (int i = 0; i < 100; i++)
        assert_true(random_bits(&a) == random_bits(&b));
}

/* Written down once: a run must be repeatable with next year's build. */
static void test_random_known_values(void **state)
{
    (void)state;
    struct random zero = {0}; /* the published sequence of SplitMix64 from state 0 */
    assert_true(random_bits(&zero) == UINT64_C(0xE220A8397B1DCDAF));
    assert_true(random_bits(&zero) == UINT64_C(0x6E789E6AA1B965F4));
    assert_true(random_bits(&zero) == UINT64_C(0x06C45D188009454F));
}

static void test_random_neighbouring_keys_differ(void **state)
{
    (void)state;
    uint64_t seen[8 * 8 * 8];
    int n = 0;
    for (uint64_t seed = 0; seed < 8; seed++)
        for (uint64_t step = 0; step < 8; step++)
            for (uint64_t index = 0; index < 8; index++) {
                struct random r = random_of(seed, step, index);
                seen[n] = random_bits(&r);
                for (int i = 0; i < n; i++)
                    assert_true(seen[i] != seen[n]);
                n++;
            }
}

static void test_random_below_is_even(void **state)
{
    (void)state;
    enum { N = 70000, SIDES = 7 };
    int counts[SIDES] = {0};
    struct random r = random_of(1, 2, 3);
    for (int i = 0; i < N; i++) {
        int side = random_below(&r, SIDES);
        assert_in_range(side, 0, SIDES - 1);
        counts[side]++;
    }
    double chi = 0;
    for (int i = 0; i < SIDES; i++)
        chi += pow(counts[i] - (double)N / SIDES, 2) / ((double)N / SIDES);
    assert_true(chi < 22.5); /* 0.999 of chi-squared with 6 degrees of freedom */
    assert_int_equal(random_below(&r, 1), 0);
}

static void test_random_normal_has_its_moments(void **state)
{
    (void)state;
    enum { N = 100000 };
    double sum = 0, squares = 0, fourth = 0;
    struct random r = random_of(4, 5, 6);
    for (int i = 0; i < N; i++) {
        double x = random_normal(&r);
        assert_true(isfinite(x));
        sum += x;
        squares += x * x;
        fourth += x * x * x * x;
    }
    assert_true(fabs(sum / N) < 0.015);
    assert_true(fabs(squares / N - 1) < 0.02);
    assert_true(fabs(fourth / N - 3) < 0.15);
}

static void test_random_uniform_stays_below_one(void **state)
{
    (void)state;
    struct random r = random_of(9, 9, 9);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double x = random_uniform(&r);
        assert_true(x >= 0 && x < 1);
        sum += x;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
}

static void test_random_shuffle_reaches_every_order(void **state)
{
    (void)state;
    int counts[6] = {0};
    struct random r = random_of(11, 0, 0);
    for (int i = 0; i < 6000; i++) {
        int items[3] = {0, 1, 2};
        random_shuffle(&r, items, 3);
        assert_int_equal(items[0] + items[1] + items[2], 3);
        assert_int_equal(items[0] * items[1] + items[1] * items[2] + items[0] * items[2], 2);
        counts[items[0] * 2 + (items[1] > items[2])]++;
    }
    for (int i = 0; i < 6; i++)
        assert_in_range(counts[i], 880, 1120);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_same_key_same_numbers),
        cmocka_unit_test(test_random_known_values),
        cmocka_unit_test(test_random_neighbouring_keys_differ),
        cmocka_unit_test(test_random_below_is_even),
        cmocka_unit_test(test_random_normal_has_its_moments),
        cmocka_unit_test(test_random_uniform_stays_below_one),
        cmocka_unit_test(test_random_shuffle_reaches_every_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
