/* cli/eval_score.h: an answer is right at a loop, and at a threshold, when all of its tokens are.
 */
#include "tests/unit.h"

#include "cli/eval_score.h"

/* lambda 0.6, 0.5: cdf 0.6, 0.8, 1 at three loops. */
static const float EARLY[] = {0.6f, 0.5f, 0.1f};
/* cdf 0.1, 0.28, 1 */
static const float LATE[] = {0.1f, 0.2f, 0.1f};
static const float LOGPROBS[] = {-3.0f, -2.0f, -1.0f};

static struct eval_score open_score(void)
{
    static const float thresholds[] = {0.2f, 0.5f, 1.0f};
    struct eval_score score;
    assert_int_equal(eval_score_create(&score, 3, thresholds, 3, 2, NULL), STATUS_OK);
    return score;
}

static void test_eval_score_needs_every_token(void **state)
{
    (void)state;
    struct eval_score score = open_score();
    struct eval_answer a;
    const bool first[] = {true, true, true}, second[] = {false, true, true};
    eval_answer_begin(&a, 1);
    eval_answer_add(&a, &score, EARLY, LOGPROBS, first);
    eval_answer_add(&a, &score, EARLY, LOGPROBS, second);
    eval_score_add(&score, &a);
    const struct eval_level *level = &score.levels[1], *all = &score.levels[2];
    assert_int_equal(level->n_answers, 1);
    assert_int_equal(level->n_tokens, 2);
    assert_int_equal(score.levels[0].n_answers, 0);
    assert_int_equal(all->n_answers, 1);
    assert_int_equal(level->right_at_loop[0], 0);
    assert_int_equal(level->right_at_loop[1], 1);
    assert_int_equal(level->right_at_loop[2], 1);
    /* Both leave at loop 1 for q 0.2 and 0.5, where the second token is wrong. */
    assert_int_equal(level->right_at_threshold[0], 0);
    assert_int_equal(level->right_at_threshold[1], 0);
    assert_int_equal(level->right_at_threshold[2], 1);
    assert_true(level->ce_at_loop[0] == 6 && level->ce_at_loop[2] == 2);
    assert_true(level->ce_at_threshold[1] == 6 && level->ce_at_threshold[2] == 2);
    eval_score_free(&score);
}

static void test_eval_score_exits(void **state)
{
    (void)state;
    struct eval_score score = open_score();
    struct eval_answer a;
    const bool deep[] = {false, true, true};
    eval_answer_begin(&a, 0);
    eval_answer_add(&a, &score, LATE, LOGPROBS, deep);
    eval_answer_add(&a, &score, EARLY, LOGPROBS, deep);
    eval_score_add(&score, &a);
    const struct eval_level *level = &score.levels[0];
    /* q 0.2: loops 2 and 1; q 0.5: loops 3 and 1; q 1: all three for both. */
    assert_true(eval_level_mean_exit(level, 0, 3) == 1.5);
    assert_true(eval_level_mean_exit(level, 1, 3) == 2);
    assert_true(eval_level_mean_exit(level, 2, 3) == 3);
    assert_int_equal(level->exit_counts[1][0], 1);
    assert_int_equal(level->exit_counts[1][2], 1);
    assert_int_equal(level->right_at_threshold[0], 0);
    assert_true(eval_level_mean_exit(&score.levels[1], 0, 3) == 0);
    eval_score_free(&score);
}

static void test_eval_score_refuses_too_many_thresholds(void **state)
{
    (void)state;
    float many[EVAL_MAX_THRESHOLDS + 1] = {0};
    struct eval_score score;
    struct err err = {0};
    assert_int_equal(eval_score_create(&score, 3, many, EVAL_MAX_THRESHOLDS + 1, 1, &err),
                     STATUS_INVALID);
    assert_non_null(strstr(err.message, "33 exit thresholds"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eval_score_needs_every_token),
        cmocka_unit_test(test_eval_score_exits),
        cmocka_unit_test(test_eval_score_refuses_too_many_thresholds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
