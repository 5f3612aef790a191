/* text_lines: lines come back whole wherever the buffer ends. */
#include "tests/unit.h"

#include "train/text_lines.h"

#include <sys/stat.h>
#include <unistd.h>

static FILE *create(char *path)
{
    FILE *file = fdopen(mkstemp(path), "wb");
    assert_non_null(file);
    return file;
}

/* Lines around the buffer's first size and its doubling, empty ones between them. */
static void test_text_lines_returns_lines_of_any_length(void **state)
{
    static const size_t lengths[] = {0,     1,     65534, 65535,  65536,  0,      0,      65537,
                                     10000, 55534, 1,     131071, 131072, 131073, 400000, 3};
    enum { N = sizeof lengths / sizeof lengths[0] };
    (void)state;
    for (int has_last_newline = 0; has_last_newline < 2; has_last_newline++) {
        char path[] = "/tmp/carousel_test_XXXXXX";
        struct text_lines lines;
        const char *line;
        size_t len;
        FILE *file = create(path);
        for (size_t i = 0; i < N; i++) {
            for (size_t k = 0; k < lengths[i]; k++)
                fputc((int)('a' + (i + k) % 26), file);
            if (i + 1 < N || has_last_newline)
                fputc('\n', file);
        }
        assert_int_equal(fclose(file), 0);
        assert_int_equal(text_lines_open(path, &lines, NULL), STATUS_OK);
        for (size_t i = 0; i < N; i++) {
            assert_int_equal(text_lines_next(&lines, &line, &len, NULL), STATUS_OK);
            assert_non_null(line);
            assert_int_equal(lines.number, i + 1);
            assert_int_equal(len, lengths[i]);
            for (size_t k = 0; k < len; k++)
                if (line[k] != (char)('a' + (i + k) % 26))
                    fail_msg("line %zu differs at %zu", i, k);
        }
        for (int again = 0; again < 2; again++) {
            assert_int_equal(text_lines_next(&lines, &line, &len, NULL), STATUS_OK);
            assert_null(line);
        }
        text_lines_close(&lines);
        unlink(path);
    }
}

/* A hole of zeros stands in for a file that is no text. */
static void test_text_lines_refuses_an_endless_line(void **state)
{
    char path[] = "/tmp/carousel_test_XXXXXX";
    struct text_lines lines;
    struct err err = {0};
    const char *line;
    size_t len;
    (void)state;
    FILE *file = create(path);
    fputs("{}\n", file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(truncate(path, (off_t)TEXT_LINES_MAX_BYTES + 100), 0);
    assert_int_equal(text_lines_open(path, &lines, NULL), STATUS_OK);
    assert_int_equal(text_lines_next(&lines, &line, &len, NULL), STATUS_OK);
    assert_int_equal(len, 2);
    assert_int_equal(text_lines_next(&lines, &line, &len, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, ":2: the line has more than 67108864 bytes"));
    text_lines_close(&lines);
    unlink(path);
}

static void test_text_lines_opens_regular_files_only(void **state)
{
    struct text_lines lines;
    char path[] = "/tmp/carousel_test_XXXXXX";
    (void)state;
    assert_int_equal(text_lines_open("/tmp", &lines, NULL), STATUS_IO);
    text_lines_close(&lines);
    assert_int_equal(text_lines_open("/no/such", &lines, NULL), STATUS_NOT_FOUND);
    text_lines_close(&lines);
    close(mkstemp(path));
    unlink(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(text_lines_open(path, &lines, NULL), STATUS_IO); /* and does not wait */
    text_lines_close(&lines);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_lines_returns_lines_of_any_length),
        cmocka_unit_test(test_text_lines_refuses_an_endless_line),
        cmocka_unit_test(test_text_lines_opens_regular_files_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
