/* cli/eval_tasks.h: problems by seed, every difficulty equally often, knobs checked. */
#include "tests/unit.h"

#include "cli/eval_tasks.h"

static void test_eval_tasks_every_level_equally_often(void **state)
{
    (void)state;
    struct eval_tasks t;
    assert_int_equal(eval_tasks_parse("hop,chain", NULL, TASK_TEST, 3, &t, NULL), STATUS_OK);
    assert_int_equal(t.n_tasks, 2);
    assert_int_equal(t.n_levels, 8);
    int counts[8] = {0};
    for (uint64_t i = 0; i < 80; i++) {
        struct task_problem p;
        char name[32];
        int level;
        assert_int_equal(eval_tasks_problem(&t, i, &p, &level, NULL), STATUS_OK);
        counts[level]++;
        eval_tasks_level_name(&t, level, name, sizeof name);
        assert_memory_equal(name, level < 4 ? "hop " : "dep ", 4);
        assert_int_equal(p.level, level < 4 ? level : level - 4);
        assert_string_equal(eval_tasks_of_level(&t, level)->task->name,
                            level < 4 ? "hop" : "chain");
    }
    for (int i = 0; i < 8; i++)
        assert_int_equal(counts[i], 10);
}

static void test_eval_tasks_repeat_by_seed(void **state)
{
    (void)state;
    struct eval_tasks a, b;
    struct task_problem p, q;
    int level;
    assert_int_equal(eval_tasks_parse("hop", NULL, TASK_TEST, 3, &a, NULL), STATUS_OK);
    assert_int_equal(eval_tasks_parse("hop", NULL, TASK_TEST, 4, &b, NULL), STATUS_OK);
    assert_int_equal(eval_tasks_problem(&a, 7, &p, &level, NULL), STATUS_OK);
    assert_int_equal(eval_tasks_problem(&a, 7, &q, &level, NULL), STATUS_OK);
    assert_string_equal(p.prompt, q.prompt);
    assert_int_equal(eval_tasks_problem(&b, 7, &q, &level, NULL), STATUS_OK);
    assert_string_not_equal(p.prompt, q.prompt);
}

static void test_eval_tasks_knobs(void **state)
{
    (void)state;
    struct eval_tasks t;
    assert_int_equal(
        eval_tasks_parse("hop,chain", "letters=14,hop.max_hops=2", TASK_TEST, 1, &t, NULL),
        STATUS_OK);
    assert_int_equal(t.tasks[0].knobs[task_knob_find(t.tasks[0].task, "letters")], 14);
    assert_int_equal(t.tasks[1].knobs[task_knob_find(t.tasks[1].task, "letters")], 14);
    assert_int_equal(t.tasks[0].n_levels, 2);
    assert_int_equal(t.tasks[1].first_level, 2);
}

static void test_eval_tasks_name_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *names, *knobs, *says;
    } cases[] = {
        {"hob", NULL, "no task 'hob'; there are hop, chain"},
        {"", NULL, "no task ''"},
        {"hop,hop", NULL, "'hop' is named twice"},
        {"hop", "leters=3", "no task here has a knob 'leters'; there are hop."},
        {"hop", "chain.letters=3", "no task here has a knob 'chain.letters'"},
        {"hop", "h.letters=4", "no task here has a knob 'h.letters'"},
        {"hop", ".letters=4", "no task here has a knob '.letters'"},
        {"hop", "letters", "'letters' is not KNOB=NUMBER"},
        {"hop", "letters=", "'' is not a whole number"},
        {"hop", "letters=9x", "'9x' is not a whole number"},
        {"hop", "letters=99999999999999999999", "is not a whole number"},
        {"hop", "letters=99", "letters of hop is 3 to 26"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct eval_tasks t;
        struct err err = {0};
        assert_int_equal(eval_tasks_parse(cases[i].names, cases[i].knobs, TASK_TEST, 1, &t, &err),
                         STATUS_INVALID);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_eval_tasks_every_level_equally_often),
        cmocka_unit_test(test_eval_tasks_repeat_by_seed),
        cmocka_unit_test(test_eval_tasks_knobs),
        cmocka_unit_test(test_eval_tasks_name_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
