/* timed: the exits are those the exit rule draws, tokens depend on seed and position only, and the
 * durations are those of the cost model. */
#include "tests/unit.h"

#include "kernels/exit_rule.h"
#include "worker/timed.h"

#include <math.h>

enum { VOCAB = 100 };

static struct cost_model cost(double jitter)
{
    return (struct cost_model){
        .block = {2, {1, 11}, {1000, 2000}},
        .kv_position_ns = 2,
        .head = {2, {1, 2}, {50, 70}},
        .ranks_per_host = 1,
        .jitter = jitter,
    };
}

static struct sequence_params params(uint64_t id)
{
    struct sequence_params p;
    sequence_params_init(&p);
    p.sequence = id;
    p.max_loops = 4;
    p.sampling.seed = 40 + id;
    return p;
}

/* One live row at `position` through loops 1.. until it gets off; its token. */
static struct control_token ride(struct timed *t, const struct sequence_params *p,
                                 uint32_t position)
{
    struct exit_state exit = {.survival = 1};
    for (uint32_t loop = 1;; loop++) {
        struct batch_segment segment = {
            .sequence = p->sequence, .params = p, .loop = loop, .has_live = true, .exit = exit};
        struct kernels_segment geometry = {.n_rows = 1, .first_position = (int32_t)position};
        struct batch batch = {
            .n_rows = 1, .n_segments = 1, .segments = &segment, .geometry = &geometry};
        struct batch_outcome outcome;
        struct batch_result result = {.outcomes = &outcome};
        timed_run(t, &batch, &result);
        assert_int_equal(result.n_segments, 1);
        assert_int_equal(outcome.failure, STATUS_OK);
        assert_int_equal(result.n_heads, outcome.is_exit);
        if (outcome.is_exit)
            return outcome.token;
        exit = outcome.exit;
    }
}

static void test_timed_exits_as_the_rule_draws(void **state)
{
    (void)state;
    struct cost_model c = cost(0);
    struct timed t = {.cost = &c, .vocab_size = VOCAB};
    struct sequence_params p = params(1);
    const float force[] = {0.1f, 0.3f, 0.3f, 0.3f};
    p.n_force_exits = 4;
    memcpy(p.force_exits, force, sizeof force);
    unsigned count[5] = {0};
    for (uint32_t position = 0; position < 2000; position++) {
        uint32_t expected = 1;
        struct exit_state s = {.survival = 1};
        /* any gate: forced exits do not ask it */
        while (!exit_rule_step(&p, expected, position, 0.5f, &s))
            expected++;
        struct control_token token = ride(&t, &p, position);
        assert_int_equal(token.exit_loop, expected);
        static const double sum[] = {0, 0.1, 0.4, 0.7, 1.0};
        assert_true(fabs(token.cdf - sum[expected]) < 1e-5);
        count[expected]++;
    }
    for (int e = 1; e <= 4; e++)
        assert_true(fabs(count[e] / 2000.0 - (double)force[e - 1]) < 0.04);
    p.n_force_exits = 0; /* and without: all loops */
    assert_int_equal(ride(&t, &p, 3).exit_loop, 4);
    p.exit_mode = EXIT_MODE_EXACT;
    p.exit_threshold = 0.1f;
    assert_int_equal(ride(&t, &p, 3).exit_loop, 4);
    p.max_loops = 2;
    assert_int_equal(ride(&t, &p, 3).exit_loop, 2);
}

static uint32_t script(void *user, uint64_t sequence, uint32_t position)
{
    assert_ptr_equal(user, script);
    return sequence == 1 ? position % 5 : 7;
}

static void test_timed_exits_as_a_script_says(void **state)
{
    (void)state;
    struct cost_model c = cost(0);
    struct timed t = {
        .cost = &c, .vocab_size = VOCAB, .exit_loop = script, .user = (void *)(uintptr_t)script};
    struct sequence_params p = params(1);
    for (uint32_t position = 1; position < 5; position++)
        assert_int_equal(ride(&t, &p, position).exit_loop, position);
    assert_int_equal(ride(&t, &p, 0).exit_loop, 4); /* 0: draws; nothing is forced */
    p.sequence = 2;
    assert_int_equal(ride(&t, &p, 0).exit_loop, 4); /* deeper than the sequence may go */
}

static void test_timed_tokens_depend_on_seed_and_position(void **state)
{
    (void)state;
    struct cost_model c = cost(0.05);
    struct timed a = {.cost = &c, .vocab_size = VOCAB, .jitter_seed = 1};
    struct timed b = {.cost = &c, .vocab_size = VOCAB, .jitter_seed = 2};
    struct sequence_params p = params(1), q = params(2);
    uint32_t n_other = 0;
    for (uint32_t position = 0; position < 200; position++) {
        struct control_token x = ride(&a, &p, position), y = ride(&b, &p, position);
        assert_int_equal(x.id, y.id);
        assert_int_equal(x.position, position + 1);
        assert_in_range(x.id, 0, VOCAB - 1);
        assert_true(fabsf(x.logprob + logf(VOCAB)) < 1e-6f);
        n_other += x.id != ride(&a, &q, position).id;
    }
    assert_true(n_other > 180);
    /* All but three tokens stop: never one of them. */
    p.n_stop_ids = SEQUENCE_MAX_STOP_IDS;
    for (int i = 0; i < SEQUENCE_MAX_STOP_IDS; i++)
        p.stop_ids[i] = i;
    struct timed small = {.cost = &c, .vocab_size = SEQUENCE_MAX_STOP_IDS + 3};
    p.sampling.n_logprobs = 5;
    for (uint32_t position = 0; position < 200; position++) {
        struct control_token x = ride(&small, &p, position);
        assert_in_range(x.id, SEQUENCE_MAX_STOP_IDS, SEQUENCE_MAX_STOP_IDS + 2);
        assert_int_equal(x.n_top, 5);
        assert_int_equal(x.top_ids[0], x.id);
    }
}

static void test_timed_duration_is_the_cost_models(void **state)
{
    (void)state;
    struct cost_model c = cost(0);
    struct timed t = {.cost = &c, .vocab_size = VOCAB};
    struct sequence_params p = params(1), q = params(2), observed = params(3);
    observed.observe_top = 1;
    p.max_loops = 1;
    struct batch_segment segments[] = {
        {.sequence = 1, .params = &p, .loop = 1, .has_live = true, .exit = {.survival = 1}},
        {.sequence = 2, .params = &q, .loop = 1, .has_live = true, .exit = {.survival = 1}},
        {.sequence = 3, .params = &observed, .loop = 1, .exit = {.survival = 1}},
    };
    /* contexts 1, 101 and 102, 11, 12 and 13 */
    struct kernels_segment geometry[] = {{.first_row = 0, .n_rows = 1, .first_position = 0},
                                         {.first_row = 1, .n_rows = 2, .first_position = 100},
                                         {.first_row = 3, .n_rows = 3, .first_position = 10}};
    struct batch batch = {.n_rows = 6, .n_segments = 3, .segments = segments, .geometry = geometry};
    struct batch_outcome outcomes[3];
    struct batch_result result = {.outcomes = outcomes, .n_observations = 9};
    timed_run(&t, &batch, &result);
    assert_int_equal(result.compute_ns, 1500 + 2 * (1 + 101 + 102 + 11 + 12 + 13) + 50);
    assert_int_equal(result.head_ns, 50);
    assert_int_equal(result.n_heads, 1);
    assert_int_equal(result.n_observations, 0);
    assert_true(outcomes[0].is_exit);
    assert_false(outcomes[1].is_exit);
    assert_int_equal(outcomes[2].failure, STATUS_INVALID);
    assert_int_equal(t.n_batches, 1);
}

static void test_timed_jitter_is_repeatable_and_fair(void **state)
{
    (void)state;
    struct cost_model c = cost(0.25);
    c.block = (struct cost_curve){1, {1}, {1e9}};
    c.kv_position_ns = 0;
    struct timed a = {.cost = &c, .vocab_size = VOCAB, .jitter_seed = 5}, b = a;
    struct timed other = {.cost = &c, .vocab_size = VOCAB, .jitter_seed = 6};
    struct sequence_params p = params(1);
    struct batch_segment segment = {
        .sequence = 1, .params = &p, .loop = 1, .exit = {.survival = 1}};
    struct kernels_segment geometry = {.n_rows = 1};
    struct batch batch = {
        .n_rows = 1, .n_segments = 1, .segments = &segment, .geometry = &geometry};
    struct batch_outcome outcome;
    struct batch_result x = {.outcomes = &outcome}, y = x, z = x;
    enum { N = 4000 };
    double sum = 0, squares = 0;
    unsigned n_equal = 0;
    for (int i = 0; i < N; i++) {
        timed_run(&a, &batch, &x);
        timed_run(&b, &batch, &y);
        timed_run(&other, &batch, &z);
        assert_int_equal(x.compute_ns, y.compute_ns);
        assert_true(x.compute_ns > 0.1e9 && x.compute_ns < 1.9e9);
        n_equal += x.compute_ns == z.compute_ns;
        double factor = (double)x.compute_ns / 1e9;
        sum += factor;
        squares += (factor - 1) * (factor - 1);
    }
    assert_true(fabs(sum / N - 1) < 0.015);
    assert_true(fabs(sqrt(squares / N) - 0.25) < 0.01);
    assert_true(n_equal < 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timed_exits_as_the_rule_draws),
        cmocka_unit_test(test_timed_exits_as_a_script_says),
        cmocka_unit_test(test_timed_tokens_depend_on_seed_and_position),
        cmocka_unit_test(test_timed_duration_is_the_cost_models),
        cmocka_unit_test(test_timed_jitter_is_repeatable_and_fair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
