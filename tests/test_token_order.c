/* token_order: a token that overtook its predecessor waits, comes out once, and is dropped with its
 * sequence. */
#include "tests/unit.h"

#include "coordinator/token_order.h"

static struct control_token token(uint64_t sequence, uint32_t position)
{
    return (struct control_token){
        .sequence = sequence, .position = position, .id = (int32_t)(10 * position)};
}

static void test_token_order_gives_back_by_position(void **state)
{
    (void)state;
    struct token_order o = {0};
    for (uint32_t p = 40; p > 5; p--) {
        struct control_token t = token(1, p), other = token(2, p);
        assert_int_equal(token_order_hold(&o, &t, NULL), STATUS_OK);
        assert_int_equal(token_order_hold(&o, &other, NULL), STATUS_OK);
    }
    struct control_token out;
    assert_false(token_order_take(&o, 1, 5, &out));
    for (uint32_t p = 6; p <= 40; p++) {
        assert_true(token_order_take(&o, 1, p, &out));
        assert_int_equal(out.sequence, 1);
        assert_int_equal(out.id, 10 * p);
        assert_false(token_order_take(&o, 1, p, &out));
    }
    assert_int_equal(o.n, 35);
    token_order_free(&o);
}

static void test_token_order_refuses_a_double(void **state)
{
    (void)state;
    struct token_order o = {0};
    struct err err = {0};
    struct control_token t = token(3, 9);
    assert_int_equal(token_order_hold(&o, &t, &err), STATUS_OK);
    assert_int_equal(token_order_hold(&o, &t, &err), STATUS_CORRUPT);
    assert_string_equal(err.message, "sequence 3 sent the token at position 9 twice");
    token_order_free(&o);
}

static void test_token_order_drops_a_sequence(void **state)
{
    (void)state;
    struct token_order o = {0};
    for (uint32_t p = 0; p < 4; p++) {
        struct control_token a = token(1, p), b = token(2, p);
        token_order_hold(&o, &a, NULL);
        token_order_hold(&o, &b, NULL);
    }
    token_order_drop(&o, 1);
    struct control_token out;
    assert_int_equal(o.n, 4);
    assert_false(token_order_take(&o, 1, 2, &out));
    assert_true(token_order_take(&o, 2, 2, &out));
    token_order_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_order_gives_back_by_position),
        cmocka_unit_test(test_token_order_refuses_a_double),
        cmocka_unit_test(test_token_order_drops_a_sequence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
