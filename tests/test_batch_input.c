/* Input lines: numbers, blank lines, a last line without newline, long lines, slow writers. */
#include "tests/unit.h"

#include "cli/batch_input.h"

#include <unistd.h>

/* Opens what `text` is when it lies in a file. */
static void open_text(struct batch_input *in, const char *text, size_t n, size_t max_line,
                      uint64_t *n_counted)
{
    char path[] = "/tmp/batch_input_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, n), n);
    close(fd);
    struct err err = {0};
    if (batch_input_open(in, path, max_line, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    if (n_counted != NULL)
        assert_true(batch_input_count(path, n_counted));
    unlink(path);
}

static void expect(struct batch_input *in, enum batch_input_kind kind, const char *text,
                   uint64_t number)
{
    enum batch_input_kind found;
    const char *line = NULL;
    size_t n = 0;
    struct err err = {0};
    if (batch_input_next(in, 0, &found, &line, &n, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(found, kind);
    if (kind == BATCH_INPUT_LINE) {
        assert_int_equal(n, strlen(text));
        assert_memory_equal(line, text, n);
    }
    if (kind == BATCH_INPUT_LINE || kind == BATCH_INPUT_TOO_LONG)
        assert_int_equal(in->n_lines, number);
}

static void test_batch_input_numbers_lines_and_passes_over_blank_ones(void **state)
{
    (void)state;
    static const char text[] = "one\n\n  \t\r\ntwo\nthree";
    struct batch_input in;
    uint64_t n_counted = 0;
    open_text(&in, text, strlen(text), 0, &n_counted);
    assert_int_equal(n_counted, 3);
    expect(&in, BATCH_INPUT_LINE, "one", 1);
    expect(&in, BATCH_INPUT_LINE, "two", 4);
    expect(&in, BATCH_INPUT_LINE, "three", 5);
    expect(&in, BATCH_INPUT_END, NULL, 0);
    expect(&in, BATCH_INPUT_END, NULL, 0);
    batch_input_close(&in);
}

static void test_batch_input_passes_over_lines_that_are_too_long(void **state)
{
    (void)state;
    enum { LONG = 300000 };
    char *text = malloc(LONG + 16);
    assert_non_null(text);
    memset(text, 'x', LONG);
    memcpy(text, "a\n", 2);
    memcpy(text + LONG, "\nb\ntoolong", 10);
    struct batch_input in;
    open_text(&in, text, LONG + 10, 6, NULL);
    expect(&in, BATCH_INPUT_LINE, "a", 1);
    expect(&in, BATCH_INPUT_TOO_LONG, NULL, 2);
    expect(&in, BATCH_INPUT_LINE, "b", 3);
    expect(&in, BATCH_INPUT_TOO_LONG, NULL, 4);
    expect(&in, BATCH_INPUT_END, NULL, 0);
    assert_true(in.cap < LONG); /* it was never held */
    batch_input_close(&in);
    free(text);
}

static void test_batch_input_does_not_wait_for_a_slow_writer(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    struct batch_input in = {.fd = ends[0], .name = "pipe", .max_line = 100};
    expect(&in, BATCH_INPUT_LATER, NULL, 0);
    assert_int_equal(write(ends[1], "hal", 3), 3);
    expect(&in, BATCH_INPUT_LATER, NULL, 0);
    assert_int_equal(write(ends[1], "f\nx", 3), 3);
    expect(&in, BATCH_INPUT_LINE, "half", 1);
    expect(&in, BATCH_INPUT_LATER, NULL, 0);
    close(ends[1]);
    expect(&in, BATCH_INPUT_LINE, "x", 2);
    expect(&in, BATCH_INPUT_END, NULL, 0);
    batch_input_close(&in);
}

static void test_batch_input_names_a_file_it_cannot_read(void **state)
{
    (void)state;
    struct batch_input in = {.fd = -1};
    struct err err = {0};
    assert_int_equal(batch_input_open(&in, "/nonexistent.jsonl", 0, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.message, "cannot read /nonexistent.jsonl: No such file or directory");
    assert_int_equal(batch_input_open(&in, "/tmp", 0, &err), STATUS_IO);
    assert_string_equal(err.message, "cannot read /tmp: it is a directory");
    uint64_t n;
    assert_false(batch_input_count("/tmp", &n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_input_numbers_lines_and_passes_over_blank_ones),
        cmocka_unit_test(test_batch_input_passes_over_lines_that_are_too_long),
        cmocka_unit_test(test_batch_input_does_not_wait_for_a_slow_writer),
        cmocka_unit_test(test_batch_input_names_a_file_it_cannot_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
