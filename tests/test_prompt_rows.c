/* prompt_rows: each row is judged at the loop where it leaves, in whatever order loops report. */
#include "tests/unit.h"

#include "coordinator/prompt_rows.h"

#include <math.h>

enum { N_PROMPT = 4, T = 4, N_TOP = 2 };

static const int32_t ids[N_PROMPT] = {5, 6, 7, 8};
/* With q = 0.5: row 0 leaves at 1, row 1 at 3, row 2 at T. */
static const float lambdas[N_PROMPT - 1][T] = {
    {0.6f, 0.9f, 0.9f, 0.9f}, {0.1f, 0.2f, 0.5f, 0.9f}, {0.0f, 0.1f, 0.1f, 0.1f}};

static struct sequence_params params_of(float q)
{
    struct sequence_params p;
    sequence_params_init(&p);
    p.prompt_tokens = N_PROMPT;
    p.max_loops = T;
    p.exit_mode = EXIT_MODE_EXACT;
    p.exit_threshold = q;
    p.observe_top = N_TOP;
    p.n_observe_targets = N_PROMPT - 1;
    return p;
}

/* Loop t of a row says -(10 * row + t) of its target, which is its second best. */
static void say(struct prompt_rows *rows, uint32_t row, uint32_t loop)
{
    const int32_t top_ids[] = {3, row + 1 < N_PROMPT ? ids[row + 1] : 0};
    const float logits[] = {2.0f, 1.0f};
    const struct control_observation o = {.position = row,
                                          .loop = loop,
                                          .lambda = row + 1 < N_PROMPT ? lambdas[row][loop - 1] : 1,
                                          .has_target = row + 1 < N_PROMPT,
                                          .logprob = -(float)(10 * row + loop),
                                          .log_norm = 2.5f,
                                          .n_top = N_TOP,
                                          .top_ids = top_ids,
                                          .top_logits = logits};
    prompt_rows_take(rows, &o);
}

static void check(const struct prompt_rows *rows, uint32_t i, uint32_t exit_loop)
{
    const struct prompt_row *row = prompt_rows_get(rows, i);
    assert_int_equal(row->exit_loop, exit_loop);
    assert_float_equal(row->logprob, -(float)(10 * (i - 1) + exit_loop), 0);
    assert_int_equal(row->n_top, N_TOP);
    assert_int_equal(row->top_ids[0], 3);
    assert_float_equal(row->top_logprobs[0], -0.5f, 0);
    /* The target's own number is the one told of it. */
    assert_int_equal(row->top_ids[1], ids[i]);
    assert_float_equal(row->top_logprobs[1], row->logprob, 0);
}

static void test_prompt_rows_are_judged_where_they_leave(void **state)
{
    (void)state;
    struct sequence_params p = params_of(0.5f);
    struct prompt_rows *rows = prompt_rows_create(ids, N_PROMPT, &p, T);
    for (uint32_t t = 1; t <= T; t++)
        for (uint32_t row = 0; row < N_PROMPT + 2; row++) {
            assert_int_equal(prompt_rows_are_complete(rows), t == T && row > 2);
            say(rows, row, t);
        }
    check(rows, 1, 1);
    check(rows, 2, 3);
    check(rows, 3, 4);
    prompt_rows_free(rows);
}

static void test_prompt_rows_take_any_order_and_repeats(void **state)
{
    (void)state;
    struct sequence_params p = params_of(0.5f);
    struct prompt_rows *rows = prompt_rows_create(ids, N_PROMPT, &p, T);
    for (uint32_t t = T; t >= 1; t--)
        for (uint32_t k = 0; k < 2; k++)
            for (uint32_t row = N_PROMPT - 1; row-- > 0;)
                say(rows, row, t);
    assert_true(prompt_rows_are_complete(rows));
    check(rows, 1, 1);
    check(rows, 2, 3);
    check(rows, 3, 4);
    prompt_rows_free(rows);
}

static void test_prompt_rows_follow_mode_and_bounds(void **state)
{
    (void)state;
    static const struct {
        enum exit_mode mode;
        uint32_t min_loops, max_loops, exits[N_PROMPT - 1];
    } table[] = {{EXIT_MODE_FULL, 1, 4, {4, 4, 4}},
                 {EXIT_MODE_FULL, 1, 2, {2, 2, 2}},
                 {EXIT_MODE_EXACT, 2, 4, {2, 3, 4}},
                 {EXIT_MODE_EXACT, 1, 2, {1, 2, 2}}};
    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        struct sequence_params p = params_of(0.5f);
        p.exit_mode = table[k].mode;
        p.min_loops = table[k].min_loops;
        p.max_loops = table[k].max_loops;
        struct prompt_rows *rows = prompt_rows_create(ids, N_PROMPT, &p, T);
        for (uint32_t row = 0; row + 1 < N_PROMPT; row++)
            for (uint32_t t = 1; t <= T; t++)
                say(rows, row, t);
        assert_true(prompt_rows_are_complete(rows));
        for (uint32_t i = 1; i < N_PROMPT; i++)
            check(rows, i, table[k].exits[i - 1]);
        prompt_rows_free(rows);
    }
}

static void test_prompt_rows_of_one_token_are_complete(void **state)
{
    (void)state;
    struct sequence_params p = params_of(0.5f);
    struct prompt_rows *rows = prompt_rows_create(ids, 1, &p, T);
    assert_true(prompt_rows_are_complete(rows));
    say(rows, 0, 1);
    assert_true(prompt_rows_are_complete(rows));
    prompt_rows_free(rows);
    prompt_rows_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompt_rows_are_judged_where_they_leave),
        cmocka_unit_test(test_prompt_rows_take_any_order_and_repeats),
        cmocka_unit_test(test_prompt_rows_follow_mode_and_bounds),
        cmocka_unit_test(test_prompt_rows_of_one_token_are_complete),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
