/* Tests train/sequence_rows.c: prefix and branches get the positions and starts that attention and
 * RoPE rely on. */
#include "tests/unit.h"

#include "train/sequence_rows.h"

static void append(struct sequence_rows *s, int32_t id)
{
    struct err err;
    assert_int_equal(sequence_rows_append(s, id, &err), STATUS_OK);
}

static void assert_ints(const int32_t *found, const int32_t *want, int n)
{
    for (int i = 0; i < n; i++)
        assert_int_equal(found[i], want[i]);
}

static void build(struct sequence_rows *s)
{
    for (int i = 0; i < 3; i++)
        append(s, 10 + i);
    sequence_rows_branch(s);
    append(s, 20);
    append(s, 21);
    sequence_rows_target(s, 5, 0.5f, 2);
    sequence_rows_branch(s);
    append(s, 30);
    sequence_rows_target(s, 6, 1, -1);
    append(s, 31);
}

static void test_sequence_rows_branches_restart_at_the_prefix(void **state)
{
    (void)state;
    struct sequence_rows s;
    assert_int_equal(sequence_rows_create(7, &s, NULL), STATUS_OK);
    for (int round = 0; round < 2; round++) { /* the second after a clear */
        build(&s);
        assert_int_equal(s.n, 7);
        assert_int_equal(s.n_prefix, 3);
        assert_ints(s.ids, (const int32_t[]){10, 11, 12, 20, 21, 30, 31}, 7);
        assert_ints(s.positions, (const int32_t[]){0, 1, 2, 3, 4, 3, 4}, 7);
        assert_ints(s.branch_start, (const int32_t[]){0, 0, 0, 3, 3, 5, 5}, 7);
        assert_ints(s.targets, (const int32_t[]){-1, -1, -1, -1, 5, 6, -1}, 7);
        assert_true(s.weights[4] == 0.5f && s.weights[5] == 1 && s.weights[6] == 0);
        assert_int_equal(s.levels[4], 2);
        assert_int_equal(s.levels[5], -1);
        sequence_rows_clear(&s);
        assert_int_equal(s.n, 0);
    }
    sequence_rows_free(&s);
}

static void test_sequence_rows_text_is_all_prefix(void **state)
{
    (void)state;
    struct sequence_rows s;
    assert_int_equal(sequence_rows_create(4, &s, NULL), STATUS_OK);
    for (int i = 0; i < 4; i++)
        append(&s, i);
    assert_int_equal(s.n_prefix, 4);
    assert_ints(s.positions, (const int32_t[]){0, 1, 2, 3}, 4);
    assert_ints(s.branch_start, (const int32_t[]){0, 0, 0, 0}, 4);
    sequence_rows_free(&s);
}

static void test_sequence_rows_refuses_a_row_too_many(void **state)
{
    (void)state;
    struct sequence_rows s;
    struct err err;
    assert_int_equal(sequence_rows_create(0, &s, &err), STATUS_INVALID);
    assert_int_equal(sequence_rows_create(1, &s, &err), STATUS_OK);
    append(&s, 1);
    assert_int_equal(sequence_rows_append(&s, 2, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "1 rows"));
    assert_int_equal(s.n, 1);
    sequence_rows_free(&s);
    sequence_rows_free(&s); /* free of nothing is fine */
    sequence_rows_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequence_rows_branches_restart_at_the_prefix),
        cmocka_unit_test(test_sequence_rows_text_is_all_prefix),
        cmocka_unit_test(test_sequence_rows_refuses_a_row_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
