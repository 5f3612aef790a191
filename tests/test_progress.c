/* Progress: the words, the estimate, and a bar that never outgrows the screen. */
#include "tests/unit.h"

#include "cli/progress.h"

#include <utf8proc.h>

static const struct progress_facts half = {.n_done = 62,
                                           .n_skipped = 20,
                                           .n_total = 102,
                                           .n_errors = 2,
                                           .n_tokens = 500,
                                           .sum_exit_loops = 1250,
                                           .elapsed_s = 10};

/* Columns a text takes; escape sequences take none. */
static int columns_of(const char *text)
{
    int columns = 0;
    for (size_t i = 0; text[i] != '\0';) {
        if (text[i] == '\033') {
            i += strcspn(text + i, "m") + 1;
            continue;
        }
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + i, -1, &c);
        assert_true(step > 0);
        columns += utf8proc_charwidth(c);
        i += (size_t)step;
    }
    return columns;
}

static void test_progress_estimates_from_this_run_alone(void **state)
{
    (void)state;
    /* 40 in 10 s: the other 40 take 10 s more. What earlier runs did says nothing about speed,
     * nor do bad lines. */
    assert_float_equal(progress_eta_s(&half), 10.0, 1e-9);
    struct progress_facts f = half;
    f.n_total = 0;
    assert_true(progress_eta_s(&f) < 0);
    f = half;
    f.n_skipped = 60; /* and 2 errors */
    assert_true(progress_eta_s(&f) < 0);
}

static void test_progress_line_says_all(void **state)
{
    (void)state;
    char text[256];
    progress_format_line(&half, text, sizeof text);
    assert_string_equal(text, "62/102 done, 50 tokens/s, mean exit loop 2.50, ETA 0:10, 2 errors");
    struct progress_facts f = {.n_done = 1, .n_errors = 1};
    size_t n = progress_format_line(&f, text, sizeof text);
    assert_string_equal(text, "1 done, 0 tokens/s, mean exit loop 0.00, 1 error");
    assert_int_equal(n, strlen(text));
}

static void test_progress_bar_shows_the_share_done(void **state)
{
    (void)state;
    struct terminal t = {.is_terminal = true, .columns = 71};
    char text[1024];
    progress_format_bar(&half, &t, text, sizeof text);
    assert_string_equal(text,
                        " 60% ##########....... 62/102  50 tok/s  exit 2.50  ETA 0:10  2 errors");
    t.columns = 61; /* too narrow for a bar */
    progress_format_bar(&half, &t, text, sizeof text);
    assert_string_equal(text, "62/102  50 tok/s  exit 2.50  ETA 0:10  2 errors");
}

static void test_progress_bar_fits_every_width(void **state)
{
    (void)state;
    const struct progress_facts facts[] = {
        half,
        {0},
        {.n_done = 5},
        {.n_done = 123456789,
         .n_total = 123456790,
         .n_errors = 4711,
         .n_tokens = 99999999999,
         .sum_exit_loops = 99999999999,
         .elapsed_s = 86400},
    };
    for (size_t i = 0; i < sizeof facts / sizeof facts[0]; i++)
        for (int columns = 40; columns < 200; columns++)
            for (int style = 0; style < 4; style++) {
                struct terminal t = {.is_terminal = true,
                                     .has_colour = style & 1,
                                     .has_utf8 = style & 2,
                                     .columns = columns};
                char text[1024];
                size_t n = progress_format_bar(&facts[i], &t, text, sizeof text);
                assert_int_equal(n, strlen(text));
                if (columns_of(text) >= columns)
                    fail_msg("facts %zu, %d columns, style %d: %s", i, columns, style, text);
            }
}

static void test_progress_writes_times(void **state)
{
    (void)state;
    char text[32];
    progress_format_time(7.4, text, sizeof text);
    assert_string_equal(text, "0:07");
    progress_format_time(59.6, text, sizeof text);
    assert_string_equal(text, "1:00");
    progress_format_time(3723, text, sizeof text);
    assert_string_equal(text, "1:02:03");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_progress_estimates_from_this_run_alone),
        cmocka_unit_test(test_progress_line_says_all),
        cmocka_unit_test(test_progress_bar_shows_the_share_done),
        cmocka_unit_test(test_progress_bar_fits_every_width),
        cmocka_unit_test(test_progress_writes_times),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
