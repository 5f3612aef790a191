/* pretokenize: pieces are those of the reference's Digits and GPT-2 split, and cover every text. */
#include "tests/unit.h"

#include "model/pretokenize.h"

static const struct pretokenizer smol = {
    .split_digits = true, .individual_digits = true, .use_regex = true};
static const struct pretokenizer gpt2 = {.use_regex = true};
static const struct pretokenizer runs = {.split_digits = true, .use_regex = true};
static const struct pretokenizer digits_only = {.split_digits = true, .individual_digits = true};

struct row {
    const char *text;
    const char *pieces; /* joined by '|' */
};

static void check(const struct pretokenizer *rules, const char *text, size_t len,
                  const char *expected)
{
    char joined[1024];
    size_t n = 0, n_piece;
    const char *piece;
    struct pretokenize_scan scan;
    pretokenize_start(&scan, rules, text, len);
    while (pretokenize_next(&scan, &piece, &n_piece)) {
        assert_true(n_piece > 0 && n + n_piece + 2 < sizeof joined);
        if (n > 0)
            joined[n++] = '|';
        memcpy(joined + n, piece, n_piece);
        n += n_piece;
    }
    joined[n] = '\0';
    assert_string_equal(joined, expected);
}

static void check_rows(const struct pretokenizer *rules, const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++)
        check(rules, rows[i].text, strlen(rows[i].text), rows[i].pieces);
}

static void test_pretokenize_digits_end_the_view_of_the_split(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"a 12 b", "a| |1|2| b"},
        {"a  12", "a|  |1|2"},
        {"1 000", "1| |0|0|0"},
        {"a   1   b", "a|   |1|  | b"},
        {"\r\n1\r\n", "\r\n|1|\r\n"},
        {"  lead", " | lead"},
        {"trail  ", "trail|  "},
        {"x1y", "x|1|y"},
        {" 1", " |1"},
        {"", ""},
    };
    check_rows(&smol, rows, sizeof rows / sizeof rows[0]);
}

static void test_pretokenize_split_alone_sees_the_digits(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"a 12 b", "a| 12| b"},
        {"a  12", "a| | 12"},
        {"\r\n1\r\n", "\r|\n|1|\r\n"},
        {"3.14", "3|.|14"},
    };
    check_rows(&gpt2, rows, sizeof rows / sizeof rows[0]);
}

static void test_pretokenize_digits_in_runs_or_without_split(void **state)
{
    (void)state;
    static const struct row in_runs[] = {{"a 12 b", "a| |12| b"}, {"½Ⅷ3x", "½Ⅷ3|x"}};
    static const struct row unsplit[] = {{"it's 12 b!", "it's |1|2| b!"}, {"  x", "  x"}};
    check_rows(&runs, in_runs, 2);
    check_rows(&digits_only, unsplit, 2);
}

static void test_pretokenize_any_unicode_number_is_a_digit(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"½Ⅷ٣٤", "½|Ⅷ|٣|٤"}, {"x²y", "x|²|y"}, {"一二", "一二"}, {"①②", "①|②"}};
    check_rows(&smol, rows, 4);
}

static void test_pretokenize_contractions_are_lower_case(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"don't we'll they've I'm you're he'd it's",
         "don|'t| we|'ll| they|'ve| I|'m| you|'re| he|'d| it|'s"},
        {"DON'T", "DON|'|T"},
        {"'sx", "'s|x"},
        {"''s", "''|s"},
        {" 's", " '|s"},
        {"'", "'"},
        {"'r", "'|r"},
        {"'l'l", "'|l|'|l"},
        {"don\u2019t", "don|\u2019|t"},
    };
    check_rows(&smol, rows, sizeof rows / sizeof rows[0]);
}

static void test_pretokenize_marks_are_no_letters_and_nbsp_no_plain_space(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"e\u0301a", "e|\u0301|a"},
        {" \u0301x", " \u0301|x"},
        {"a\u00A0b", "a|\u00A0|b"},
        {"a\u00A0 b", "a|\u00A0| b"},
        {"a \u00A0b", "a| |\u00A0|b"},
        {"a\u3000\u2003b", "a|\u3000|\u2003|b"},
        {"a\u200Bb", "a|\u200B|b"}, /* zero width space is no white space */
        {"a\xC2\x85\n", "a|\xC2\x85\n"},
        {" \n x", " \n| x"},
        {"a\tb", "a|\t|b"},
        {"\x1C!", "\x1C!"},
    };
    check_rows(&smol, rows, sizeof rows / sizeof rows[0]);
}

/* U+105C0 is a letter and U+10D40 a digit since Unicode 16; U+2EBF0 a letter since 15.1. */
static void test_pretokenize_knows_newer_letters_and_digits(void **state)
{
    (void)state;
    static const struct row rows[] = {{"a\U000105C0b!", "a\U000105C0b|!"},
                                      {"\U00010D40\U00010D41", "\U00010D40|\U00010D41"},
                                      {"a\U0002EBF0", "a\U0002EBF0"},
                                      {"a\U000E0080!", "a|\U000E0080!"}};
    check_rows(&smol, rows, 4);
}

static void test_pretokenize_invalid_bytes_are_other_characters(void **state)
{
    (void)state;
    check(&smol, "a\xFF\xFE b", 5, "a|\xFF\xFE| b");
    check(&smol, "a \xE2\x82", 4, "a| \xE2\x82");       /* cut off */
    check(&smol, "\xC0\x80z", 3, "\xC0\x80|z");         /* overlong */
    check(&smol, "\xED\xA0\x80z", 4, "\xED\xA0\x80|z"); /* a surrogate */
    check(&smol,
          "\xC2"
          "1",
          2, "\xC2|1");
}

/* Random bytes: pieces follow each other without gap and end with the text. */
static void test_pretokenize_pieces_cover_the_text(void **state)
{
    (void)state;
    static const char alphabet[] = "ab1' \n\t'st\xC2\xBD\xA0\xE2\x80\x83\xFF";
    const struct pretokenizer *all[] = {&smol, &gpt2, &runs, &digits_only};
    uint32_t seed = 12345;
    for (int round = 0; round < 4000; round++) {
        char text[64];
        size_t len = (size_t)(round % 60), n_piece;
        for (size_t i = 0; i < len; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = alphabet[(seed >> 16) % (sizeof alphabet - 1)];
        }
        const char *at = text, *piece;
        struct pretokenize_scan scan;
        pretokenize_start(&scan, all[round % 4], text, len);
        while (pretokenize_next(&scan, &piece, &n_piece)) {
            assert_ptr_equal(piece, at);
            assert_true(n_piece > 0);
            at += n_piece;
        }
        assert_ptr_equal(at, text + len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pretokenize_digits_end_the_view_of_the_split),
        cmocka_unit_test(test_pretokenize_split_alone_sees_the_digits),
        cmocka_unit_test(test_pretokenize_digits_in_runs_or_without_split),
        cmocka_unit_test(test_pretokenize_any_unicode_number_is_a_digit),
        cmocka_unit_test(test_pretokenize_contractions_are_lower_case),
        cmocka_unit_test(test_pretokenize_marks_are_no_letters_and_nbsp_no_plain_space),
        cmocka_unit_test(test_pretokenize_knows_newer_letters_and_digits),
        cmocka_unit_test(test_pretokenize_invalid_bytes_are_other_characters),
        cmocka_unit_test(test_pretokenize_pieces_cover_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
