/* rng: the published values of Philox4x32-10, an even distribution, and independence of seed,
 * position and stream. */
#include "tests/unit.h"

#include "kernels/rng.h"

static void test_rng_equals_the_published_values(void **state)
{
    (void)state;
    /* Random123 1.09, kat_vectors: philox4x32 10, counter 0, key 0 gives 6627e8d5 e169c58d bc57ac4c
     * 9b00dbd8. */
    double expected = (double)(UINT64_C(0xe169c58d6627e8d5) >> 11) * 0x1p-53;
    assert_true(rng_uniform(0, 0, (enum rng_stream)0) == expected);
}

static void test_rng_values_never_change(void **state)
{
    (void)state;
    /* From an independent implementation; a change would change users' seeded outputs. */
    static const struct {
        uint64_t seed;
        uint32_t position;
        enum rng_stream stream;
        uint64_t bits;
    } table[] = {
        {UINT64_C(0x1), 0u, RNG_SAMPLE, UINT64_C(0x225c963c833ff8dc)},
        {UINT64_C(0xdeadbeefcafef00d), 123456u, RNG_SAMPLE, UINT64_C(0xdc10f0ce6c760a23)},
        {UINT64_C(0xffffffffffffffff), 4294967295u, RNG_FORCED_EXIT, UINT64_C(0x60a258e9198c1278)},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        assert_true(rng_uniform(table[i].seed, table[i].position, table[i].stream) ==
                    (double)(table[i].bits >> 11) * 0x1p-53);
}

static void test_rng_is_uniform_over_positions_and_seeds(void **state)
{
    (void)state;
    enum { N = 100000, BINS = 20 };
    for (int over_seeds = 0; over_seeds < 2; over_seeds++) {
        uint32_t bins[BINS] = {0};
        double sum = 0.0, lag = 0.0, before = 0.5;
        for (uint32_t i = 0; i < N; i++) {
            double u = over_seeds ? rng_uniform(i, 3, RNG_SAMPLE) : rng_uniform(42, i, RNG_SAMPLE);
            assert_true(u >= 0.0 && u < 1.0);
            bins[(int)(u * BINS)]++;
            sum += u;
            lag += (u - 0.5) * (before - 0.5);
            before = u;
        }
        double chi = 0.0, expected = (double)N / BINS;
        for (int b = 0; b < BINS; b++)
            chi += ((double)bins[b] - expected) * ((double)bins[b] - expected) / expected;
        assert_true(chi < 43.8);                              /* 19 degrees of freedom, 0.1 % */
        assert_true(sum / N > 0.4955 && sum / N < 0.5045);    /* 5 standard deviations */
        assert_true(lag / N > -0.00135 && lag / N < 0.00135); /* 5 standard deviations of 1/12 */
    }
}

static void test_rng_streams_differ(void **state)
{
    (void)state;
    int n_same = 0;
    for (uint32_t i = 0; i < 1000; i++)
        n_same += rng_uniform(9, i, RNG_SAMPLE) == rng_uniform(9, i, RNG_FORCED_EXIT);
    assert_int_equal(n_same, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rng_equals_the_published_values),
        cmocka_unit_test(test_rng_values_never_change),
        cmocka_unit_test(test_rng_is_uniform_over_positions_and_seeds),
        cmocka_unit_test(test_rng_streams_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
