/* exit_rule: the published arithmetic, its thresholds and bounds, and forced distributions. */
#include "tests/unit.h"

#include "kernels/exit_rule.h"

static struct sequence_params params_of(uint32_t max_loops, float threshold)
{
    struct sequence_params p = {0};
    sequence_params_init(&p);
    p.exit_mode = EXIT_MODE_EXACT;
    p.exit_threshold = threshold;
    p.max_loops = max_loops;
    return p;
}

/* The loop where a row with these lambdas exits. */
static uint32_t exit_loop(const struct sequence_params *p, const float *lambdas, uint32_t position,
                          struct exit_state *state)
{
    *state = (struct exit_state){.survival = 1.0f, .cdf = 0.0f};
    uint32_t t = 1;
    while (!exit_rule_step(p, t, position, lambdas[t - 1], state))
        t++;
    return t;
}

static void test_exit_rule_first_loop_whose_cdf_reaches_q(void **state)
{
    (void)state;
    /* p = 0.25, 0.375, 0.1875, 0.1875; cdf = 0.25, 0.625, 0.8125, 1. All exact in fp32. */
    const float lambdas[] = {0.25f, 0.5f, 0.5f, 0.125f};
    static const struct {
        float threshold, cdf;
        uint32_t loop;
    } table[] = {{0.1f, 0.25f, 1},    {0.25f, 0.25f, 1},   {0.2500001f, 0.625f, 2},
                 {0.625f, 0.625f, 2}, {0.63f, 0.8125f, 3}, {0.8125f, 0.8125f, 3},
                 {0.82f, 1.0f, 4},    {0.99f, 1.0f, 4},    {1.0f, 1.0f, 4}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct sequence_params p = params_of(4, table[i].threshold);
        struct exit_state s;
        assert_int_equal(exit_loop(&p, lambdas, 0, &s), table[i].loop);
        assert_true(s.cdf == table[i].cdf);
    }
}

static void test_exit_rule_state_is_survival_and_cdf(void **state)
{
    (void)state;
    struct sequence_params p = params_of(4, 0.9f);
    struct exit_state s = {.survival = 1.0f, .cdf = 0.0f};
    assert_false(exit_rule_step(&p, 1, 0, 0.25f, &s));
    assert_true(s.survival == 0.75f && s.cdf == 0.25f);
    assert_false(exit_rule_step(&p, 2, 0, 0.5f, &s));
    assert_true(s.survival == 0.375f && s.cdf == 0.625f);
    /* The last lambda is never used, not even a NaN. */
    s = (struct exit_state){.survival = 0.375f, .cdf = 0.625f};
    assert_true(exit_rule_step(&p, 4, 0, 0.0f / 0.0f, &s));
    assert_true(s.survival == 0.0f && s.cdf == 1.0f);
}

static void test_exit_rule_threshold_one_is_all_loops(void **state)
{
    (void)state;
    /* A gate that is certain at once: the cdf is 1 after loop 1, and still all loops run. */
    const float lambdas[] = {1.0f, 1.0f, 1.0f, 1.0f};
    struct sequence_params p = params_of(4, 1.0f);
    struct exit_state s;
    assert_int_equal(exit_loop(&p, lambdas, 0, &s), 4);
    p.exit_threshold = 0.999f;
    assert_int_equal(exit_loop(&p, lambdas, 0, &s), 1);
    p.exit_mode = EXIT_MODE_FULL;
    assert_int_equal(exit_loop(&p, lambdas, 0, &s), 4);
}

static void test_exit_rule_min_and_max_loops_bound_the_exit(void **state)
{
    (void)state;
    const float sure[] = {1.0f, 1.0f, 1.0f, 1.0f}, never[] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t max_loops = 1; max_loops <= 4; max_loops++) {
        for (uint32_t min_loops = 1; min_loops <= max_loops; min_loops++) {
            struct sequence_params p = params_of(max_loops, 0.5f);
            p.min_loops = min_loops;
            struct exit_state s;
            assert_int_equal(exit_loop(&p, sure, 0, &s), min_loops);
            assert_int_equal(exit_loop(&p, never, 0, &s), max_loops);
            assert_true(s.cdf == 1.0f);
        }
    }
}

static void test_exit_rule_forced_distribution_is_followed(void **state)
{
    (void)state;
    const float lambdas[] = {1.0f, 1.0f, 1.0f, 1.0f};
    struct sequence_params p = params_of(4, 1.0f);
    p.exit_mode = EXIT_MODE_FULL; /* a forced distribution does not ask for the mode */
    p.n_force_exits = 4;
    const float shares[] = {0.1f, 0.3f, 0.0f, 0.6f};
    memcpy(p.force_exits, shares, sizeof shares);
    p.sampling.seed = 7;
    enum { N = 20000 };
    uint32_t counts[4] = {0};
    for (uint32_t position = 0; position < N; position++) {
        struct exit_state s;
        uint32_t loop = exit_loop(&p, lambdas, position, &s);
        counts[loop - 1]++;
        /* The same at every asking, and never an exit that may_exit has excluded. */
        assert_int_equal(exit_loop(&p, lambdas, position, &s), loop);
        for (uint32_t t = 1; t <= 4; t++)
            assert_true(exit_rule_may_exit(&p, t, position) == (t >= loop));
    }
    for (int i = 0; i < 4; i++) {
        double share = (double)counts[i] / N;
        /* 5 standard deviations of a share of 20000 draws are below 0.018. */
        assert_true(share > (double)shares[i] - 0.018 && share < (double)shares[i] + 0.018);
    }
    assert_int_equal(counts[2], 0);
}

static void test_exit_rule_may_exit_excludes_only_what_cannot_be(void **state)
{
    (void)state;
    struct sequence_params p = params_of(4, 0.5f);
    p.min_loops = 2;
    assert_false(exit_rule_may_exit(&p, 1, 0));
    assert_true(exit_rule_may_exit(&p, 2, 0));
    p.exit_mode = EXIT_MODE_FULL;
    assert_false(exit_rule_may_exit(&p, 3, 0));
    assert_true(exit_rule_may_exit(&p, 4, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exit_rule_first_loop_whose_cdf_reaches_q),
        cmocka_unit_test(test_exit_rule_state_is_survival_and_cdf),
        cmocka_unit_test(test_exit_rule_threshold_one_is_all_loops),
        cmocka_unit_test(test_exit_rule_min_and_max_loops_bound_the_exit),
        cmocka_unit_test(test_exit_rule_forced_distribution_is_followed),
        cmocka_unit_test(test_exit_rule_may_exit_excludes_only_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
