/* dtype: all 65536 halves widen exactly; rounding to bf16 goes to nearest, ties to even. */
#include "tests/unit.h"

#include "model/dtype.h"

#include <math.h>

static void test_dtype_f16_widens_every_value_exactly(void **state)
{
    (void)state;
    for (unsigned v = 0; v <= 0xffff; v++) {
        float f = dtype_from_f16((uint16_t)v);
        int exponent = (int)(v >> 10 & 0x1f), fraction = (int)(v & 0x3ff);
        assert_int_equal(signbit(f) != 0, v >> 15);
        if (exponent == 31 && fraction != 0)
            assert_true(isnan(f));
        else if (exponent == 31)
            assert_true(isinf(f));
        else if (exponent == 0)
            assert_true(fabs((double)f) == ldexp(fraction, -24));
        else
            assert_true(fabs((double)f) == ldexp(1024 + fraction, exponent - 25));
    }
}

static void test_dtype_bf16_survives_a_round_trip(void **state)
{
    (void)state;
    for (unsigned v = 0; v <= 0xffff; v++) {
        float f = dtype_from_bf16((uint16_t)v);
        if (isnan(f))
            assert_true(isnan(dtype_from_bf16(dtype_to_bf16(f))));
        else
            assert_int_equal(dtype_to_bf16(f), v);
    }
}

static void test_dtype_bf16_rounds_to_nearest_even(void **state)
{
    (void)state;
    assert_int_equal(dtype_to_bf16(0x1.00p0f), 0x3f80);
    assert_int_equal(dtype_to_bf16(0x1.01p0f), 0x3f80);     /* a tie: even stays */
    assert_int_equal(dtype_to_bf16(0x1.03p0f), 0x3f82);     /* a tie: odd goes up */
    assert_int_equal(dtype_to_bf16(0x1.010002p0f), 0x3f81); /* just above a tie */
    assert_int_equal(dtype_to_bf16(-0x1.03p0f), 0xbf82);
    assert_int_equal(dtype_to_bf16(0x1.fffffep127f), 0x7f80);
}

static void test_dtype_names_and_sizes(void **state)
{
    (void)state;
    assert_int_equal(dtype_bytes(DTYPE_F32), 4);
    assert_int_equal(dtype_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_bytes(DTYPE_F16), 2);
    assert_string_equal(dtype_name(DTYPE_F32), "f32");
    assert_string_equal(dtype_name(DTYPE_BF16), "bf16");
    assert_string_equal(dtype_name(DTYPE_F16), "f16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dtype_f16_widens_every_value_exactly),
        cmocka_unit_test(test_dtype_bf16_survives_a_round_trip),
        cmocka_unit_test(test_dtype_bf16_rounds_to_nearest_even),
        cmocka_unit_test(test_dtype_names_and_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
