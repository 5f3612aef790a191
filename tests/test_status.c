/* status: the message keeps its values, is cut and not overrun, and a context goes in front. */
#include "tests/unit.h"

#include "proto/status.h"

static void test_status_set_formats_message(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(err_set(&err, STATUS_INVALID, "threshold %.1f", 1.5), STATUS_INVALID);
    assert_int_equal(err.code, STATUS_INVALID);
    assert_string_equal(err.message, "threshold 1.5");
    assert_int_equal(err_set(NULL, STATUS_IO, "x"), STATUS_IO);
}

static void test_status_wrap_puts_context_in_front(void **state)
{
    (void)state;
    struct err err = {0};
    err_set(&err, STATUS_CORRUPT, "bad offset");
    assert_int_equal(err_wrap(&err, "file %s", "a.safetensors"), STATUS_CORRUPT);
    assert_string_equal(err.message, "file a.safetensors: bad offset");
}

static void test_status_long_messages_are_cut(void **state)
{
    (void)state;
    char big[2 * ERR_MESSAGE_BYTES];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    struct err err = {0};
    err_set(&err, STATUS_IO, "%s", big);
    assert_int_equal(strlen(err.message), ERR_MESSAGE_BYTES - 1);
    err_wrap(&err, "%s", big);
    assert_int_equal(strlen(err.message), ERR_MESSAGE_BYTES - 1);
}

static void test_status_names_every_code(void **state)
{
    (void)state;
    for (int i = 0; i < STATUS_COUNT; i++)
        assert_string_not_equal(status_name((enum status)i), "unknown");
    assert_string_equal(status_name((enum status)999), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status_set_formats_message),
        cmocka_unit_test(test_status_wrap_puts_context_in_front),
        cmocka_unit_test(test_status_long_messages_are_cut),
        cmocka_unit_test(test_status_names_every_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
