/* The choice of a level of the training kernels by name. */
#include "tests/grad_reference.h"

static void test_grad_find_takes_the_best_level_by_default(void **state)
{
    (void)state;
    const struct grad_ops *named, *by_default, *by_null;
    struct err err = {0};
    must(grad_find("auto", &by_default, &err), &err);
    must(grad_find(NULL, &by_null, &err), &err);
    assert_ptr_equal(by_default, by_null);
    const char *best = kernels_cpu_best_isa();
    must(grad_find(best, &named, &err), &err);
    assert_ptr_equal(named, by_default);
    assert_string_equal(named->name, strcmp(best, "amx") == 0 ? "avx512" : best);
}

static void test_grad_find_refuses_an_unknown_level(void **state)
{
    (void)state;
    const struct grad_ops *ops = NULL;
    struct err err = {0};
    assert_int_equal(grad_find("avx1024", &ops, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "'avx1024'"));
    assert_null(ops);
}

static void test_grad_levels_fill_the_whole_table(void **state)
{
    (void)state;
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
        const struct grad_ops *ops = grad_level(i);
        if (ops == NULL)
            continue;
        const void *entries[sizeof *ops / sizeof(void *)];
        memcpy(entries, ops, sizeof entries);
        for (size_t e = 0; e < sizeof entries / sizeof entries[0]; e++)
            assert_non_null(entries[e]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_find_takes_the_best_level_by_default),
        cmocka_unit_test(test_grad_find_refuses_an_unknown_level),
        cmocka_unit_test(test_grad_levels_fill_the_whole_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
