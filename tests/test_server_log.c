/* Log lines as they stand in the file: exact but for the time, one line whatever the values hold.
 */
#include "tests/unit.h"

#include "coordinator/server_log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <unistd.h>

static char captured[65536];

/* What one call writes. */
static const char *capture(bool is_json, enum log_level level, const char *event,
                           const struct log_field *fields, size_t n)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    const struct server_log log = {.fd = ends[1], .is_json = is_json, .level = LOG_LEVEL_INFO};
    server_log(&log, level, event, fields, n);
    close(ends[1]);
    ssize_t len = read(ends[0], captured, sizeof captured - 1);
    assert_true(len >= 0);
    captured[len] = '\0';
    close(ends[0]);
    return captured;
}

#define CAPTURE(is_json, level, event, ...)                                                        \
    capture(is_json, level, event, (const struct log_field[]){__VA_ARGS__},                        \
            sizeof((const struct log_field[]){__VA_ARGS__}) / sizeof(struct log_field))

/* Each digit of the time becomes 0. */
static const char *without_time(char *line, size_t at, size_t n)
{
    for (size_t i = at; i < at + n; i++)
        if (line[i] >= '0' && line[i] <= '9')
            line[i] = '0';
    return line;
}

static void test_server_log_line_for_people(void **state)
{
    (void)state;
    CAPTURE(false, LOG_LEVEL_INFO, "request_end", LOG_S("request_id", "cmpl-1"),
            LOG_I("status", 200), LOG_F("seconds", 0.25), LOG_B("stream", true), LOG_S("key", NULL),
            LOG_S("agent", "curl 7"), LOG_S("empty", ""));
    assert_string_equal(without_time(captured, 0, 12),
                        "00:00:00.000 info  request_end id=cmpl-1 status=200 seconds=0.25 "
                        "stream=true agent=\"curl 7\" empty=\"\"\n");
    CAPTURE(false, LOG_LEVEL_ERROR, "lost", LOG_I("least", INT64_MIN));
    assert_string_equal(without_time(captured, 0, 12),
                        "00:00:00.000 error lost least=-9223372036854775808\n");
}

static void test_server_log_line_as_json(void **state)
{
    (void)state;
    CAPTURE(true, LOG_LEVEL_WARN, "request_end", LOG_S("request_id", "cmpl-1"),
            LOG_I("status", 200), LOG_F("seconds", 0.25), LOG_B("stream", false),
            LOG_S("key", NULL));
    assert_string_equal(
        without_time(captured, 9, 24),
        "{\"time\":\"0000-00-00T00:00:00.000Z\",\"level\":\"warn\",\"event\":\"request_end\","
        "\"request_id\":\"cmpl-1\",\"status\":200,\"seconds\":0.25,\"stream\":false}\n");
}

static void test_server_log_levels(void **state)
{
    (void)state;
    assert_string_equal(capture(false, LOG_LEVEL_DEBUG, "e", NULL, 0), "");
    assert_string_not_equal(capture(false, LOG_LEVEL_INFO, "e", NULL, 0), "");
}

/* One row: a hostile value, and how people see it. */
static void test_server_log_escapes_for_people(void **state)
{
    (void)state;
    static const struct {
        const char *value, *shown;
    } cases[] = {
        {"plain", "plain"},
        {"/v1/models?a", "/v1/models?a"},
        {"a=b", "\"a=b\""},
        {"two words", "\"two words\""},
        {"x\n12:00:00.000 error fake", "\"x\\n12:00:00.000 error fake\""},
        {"\r\t", "\"\\r\\t\""},
        {"say \"hi\"\\", "\"say \\\"hi\\\"\\\\\""},
        {"\x1b[2J", "\"\\u001b[2J\""},
        {"\x7f", "\"\\u007f\""},
        {"\xc2\x9b"
         "2J",
         "\"\\u009b2J\""}, /* C1: an escape sequence, too */
        {"\xe2\x80\xae"
         "txt",
         "\"\\u202etxt\""}, /* text that runs backwards */
        {"a\xe2\x80\xa8"
         "b",
         "\"a\\u2028b\""},                       /* line separator */
        {"\xf3\xa0\x80\x81", "\"\\U000e0001\""}, /* a tag that nobody sees */
        {"caf\xc3\xa9 \xf0\x9f\x98\x80", "\"caf\xc3\xa9 \xf0\x9f\x98\x80\""},
        {"\xff\xfe", "\"\\xff\\xfe\""},
        {"cut \xe2\x82", "\"cut \\xe2\\x82\""},
        {"\xc0\xaf\xed\xa0\x80", "\"\\xc0\\xaf\\xed\\xa0\\x80\""}, /* overlong, surrogate */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char expected[256];
        snprintf(expected, sizeof expected, "00:00:00.000 info  e v=%s\n", cases[i].shown);
        CAPTURE(false, LOG_LEVEL_INFO, "e", LOG_S("v", cases[i].value));
        assert_string_equal(without_time(captured, 0, 12), expected);
    }
}

/* Any bytes make one line that a strict reader takes, with the value in it. */
static void test_server_log_json_takes_any_bytes(void **state)
{
    (void)state;
    for (int c = 1; c < 256; c++) {
        const char value[] = {'a', (char)c, 'b', '\0'};
        const char *line = CAPTURE(true, LOG_LEVEL_INFO, "e", LOG_S("v", value));
        assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
        json_t *root = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(root);
        assert_string_equal(json_string_value(json_object_get(root, "v")), c < 0x80
                                                                               ? value
                                                                               : "a\xef\xbf\xbd"
                                                                                 "b");
        json_decref(root);
    }
    json_t *root = json_loads(CAPTURE(true, LOG_LEVEL_INFO, "e", LOG_F("v", NAN)), 0, NULL);
    assert_true(json_is_null(json_object_get(root, "v")));
    json_decref(root);
}

static void test_server_log_cuts_long_values_between_characters(void **state)
{
    (void)state;
    char value[4096], expected[1200];
    memset(value, 'a', sizeof value);
    value[1024] = '\0';
    snprintf(expected, sizeof expected, "00:00:00.000 info  e v=%.1024s\n", value);
    CAPTURE(false, LOG_LEVEL_INFO, "e", LOG_S("v", value));
    assert_string_equal(without_time(captured, 0, 12), expected);

    /* Bytes 1022 .. 1025 are one character: the cut falls before it. */
    memset(value, 'a', sizeof value);
    memcpy(value + 1022, "\xf0\x9f\x98\x80", 4);
    value[sizeof value - 1] = '\0';
    snprintf(expected, sizeof expected, "00:00:00.000 info  e v=\"%.1022s...\"\n", value);
    CAPTURE(false, LOG_LEVEL_INFO, "e", LOG_S("v", value));
    assert_string_equal(without_time(captured, 0, 12), expected);
    json_t *root = json_loads(CAPTURE(true, LOG_LEVEL_INFO, "e", LOG_S("v", value)), 0, NULL);
    snprintf(expected, sizeof expected, "%.1022s...", value);
    assert_string_equal(json_string_value(json_object_get(root, "v")), expected);
    json_decref(root);
}

static void test_server_log_that_cannot_be_written_harms_nobody(void **state)
{
    (void)state;
    const struct server_log log = {.fd = -1, .level = LOG_LEVEL_DEBUG};
    errno = ERANGE;
    server_log(&log, LOG_LEVEL_INFO, "e", NULL, 0);
    assert_int_equal(errno, ERANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_server_log_line_for_people),
        cmocka_unit_test(test_server_log_line_as_json),
        cmocka_unit_test(test_server_log_levels),
        cmocka_unit_test(test_server_log_escapes_for_people),
        cmocka_unit_test(test_server_log_json_takes_any_bytes),
        cmocka_unit_test(test_server_log_cuts_long_values_between_characters),
        cmocka_unit_test(test_server_log_that_cannot_be_written_harms_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
