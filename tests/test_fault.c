/* fault: what each kind of failure is called over HTTP. */
#include "tests/unit.h"

#include "coordinator/fault.h"

static void test_fault_request_names_the_field(void **state)
{
    (void)state;
    struct fault fault;
    assert_int_equal(fault_request(&fault, STATUS_INVALID, "n", "invalid_value", "n is %d", 3),
                     STATUS_INVALID);
    assert_int_equal(fault.http_status, 400);
    assert_string_equal(fault.type, "invalid_request_error");
    assert_string_equal(fault.code, "invalid_value");
    assert_string_equal(fault.param, "n");
    assert_string_equal(fault.err.message, "n is 3");
    assert_int_equal(fault.err.code, STATUS_INVALID);
    fault_request(&fault, STATUS_CORRUPT, NULL, NULL, "no");
    assert_string_equal(fault.param, "");
    assert_null(fault.code);
    assert_int_equal(fault_request(NULL, STATUS_CORRUPT, NULL, NULL, "no"), STATUS_CORRUPT);
}

static void test_fault_request_cuts_a_long_field(void **state)
{
    (void)state;
    struct fault fault;
    char param[2 * FAULT_PARAM_BYTES];
    memset(param, 'x', sizeof param - 1);
    param[sizeof param - 1] = '\0';
    fault_request(&fault, STATUS_INVALID, param, NULL, "%s", param);
    assert_int_equal(strlen(fault.param), FAULT_PARAM_BYTES - 1);
}

static void test_fault_from_err_chooses_the_status(void **state)
{
    (void)state;
    static const struct {
        enum status code;
        int http_status;
        const char *type, *fault_code;
    } table[] = {
        {STATUS_INVALID, 400, "invalid_request_error", NULL},
        {STATUS_CORRUPT, 400, "invalid_request_error", NULL},
        {STATUS_UNSUPPORTED, 400, "invalid_request_error", NULL},
        {STATUS_NOT_FOUND, 400, "invalid_request_error", NULL},
        {STATUS_FULL, 429, "rate_limit_error", "queue_full"},
        {STATUS_TIMEOUT, 504, "timeout_error", "deadline_exceeded"},
        {STATUS_NO_MEMORY, 500, "server_error", NULL},
        {STATUS_INTERNAL, 500, "server_error", NULL},
        {STATUS_CANCELLED, 500, "server_error", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct fault fault;
        struct err err;
        err_set(&err, table[i].code, "why");
        fault_from_err(&fault, &err);
        assert_int_equal(fault.http_status, table[i].http_status);
        assert_string_equal(fault.type, table[i].type);
        if (table[i].fault_code == NULL)
            assert_null(fault.code);
        else
            assert_string_equal(fault.code, table[i].fault_code);
        assert_string_equal(fault.err.message, "why");
        assert_string_equal(fault.param, "");
    }
}

static void test_fault_set_never_leaves_err_ok(void **state)
{
    (void)state;
    static const int statuses[] = {400, 401, 404, 405, 413, 415, 429, 500, 503, 504};
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        struct fault fault;
        fault_set(&fault, statuses[i], "server_error", "loading", "status %d", statuses[i]);
        assert_int_not_equal(fault.err.code, STATUS_OK);
        assert_int_equal(fault.http_status, statuses[i]);
        assert_string_equal(fault.code, "loading");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fault_request_names_the_field),
        cmocka_unit_test(test_fault_request_cuts_a_long_field),
        cmocka_unit_test(test_fault_from_err_chooses_the_status),
        cmocka_unit_test(test_fault_set_never_leaves_err_ok),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
