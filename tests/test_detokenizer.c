/* detokenizer: whole characters come out as soon as they are certain, and lossily where they are
 * not. */
#include "tests/unit.h"

#include "tests/tokenizer_fixture.h"

static const char *const merges[] = {"h i", "\xC3\xB0 \xC5\x81", NULL}; /* "hi"; bytes F0 9F */

static int32_t id_of_byte(int byte)
{
    return 3 + byte;
}

/* Pushes bytes one token each; the pushes' outputs are joined with '|', the flush after '/'. */
static void check(const char *bytes, size_t n, const char *expected)
{
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    struct detokenizer d;
    char joined[512], out[DETOKENIZER_MAX_BYTES];
    size_t len = 0;
    detokenizer_init(&d, tokenizer, true);
    for (size_t i = 0; i <= n; i++) {
        size_t got =
            i < n ? detokenizer_push(&d, id_of_byte((unsigned char)bytes[i]), out, sizeof out)
                  : detokenizer_flush(&d, out, sizeof out);
        joined[len++] = i == n ? '/' : '|';
        memcpy(joined + len, out, got);
        len += got;
    }
    joined[len] = '\0';
    assert_string_equal(joined, expected);
    assert_int_equal(detokenizer_flush(&d, out, sizeof out), 0);
    tokenizer_free(tokenizer);
}

static void test_detokenizer_holds_back_until_complete(void **state)
{
    (void)state;
    check("ab", 2, "|a|b/");
    check("\xC3\xA9", 2, "||\u00E9/");
    check("\xE2\x82\xAC!", 4, "|||\u20AC|!/");
    check("\xF0\x9F\x99\x82", 4, "||||\U0001F642/");
}

/* One U+FFFD for each maximal subpart, as the reference's lossy decoding gives. */
static void test_detokenizer_replaces_what_cannot_become_a_character(void **state)
{
    (void)state;
    check("\xFF"
          "a",
          2, "|\uFFFD|a/");
    check("\x80\x80", 2, "|\uFFFD|\uFFFD/");
    check("\xC3"
          "a",
          2,
          "||\uFFFD"
          "a/");
    check("\xE2\x82"
          "a",
          3,
          "|||\uFFFD"
          "a/");
    check("\xE2\x82\xC3\xA9", 4, "|||\uFFFD|\u00E9/");
    check("\xC0\xAF", 2, "|\uFFFD|\uFFFD/");                       /* overlong */
    check("\xE0\x9F\x80", 3, "||\uFFFD\uFFFD|\uFFFD/");            /* overlong */
    check("\xED\xA0\x80", 3, "||\uFFFD\uFFFD|\uFFFD/");            /* a surrogate */
    check("\xF4\x90\x80\x80", 4, "||\uFFFD\uFFFD|\uFFFD|\uFFFD/"); /* above U+10FFFF */
    check("\xF5\x80", 2, "|\uFFFD|\uFFFD/");
}

static void test_detokenizer_flush_gives_one_replacement(void **state)
{
    (void)state;
    check("a\xF0\x9F\x99", 4, "|a|||/\uFFFD");
    check("\xC3", 1, "|/\uFFFD");
}

static void test_detokenizer_joins_a_character_over_tokens(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    struct detokenizer d;
    char out[DETOKENIZER_MAX_BYTES];
    detokenizer_init(&d, tokenizer, true);
    int32_t pair = tokenizer_find(tokenizer, "\xC3\xB0\xC5\x81");
    assert_true(pair > 0);
    assert_int_equal(detokenizer_push(&d, pair, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, id_of_byte(0x99), out, sizeof out), 0);
    /* A skipped special token and an id without token leave the held bytes alone. */
    assert_int_equal(detokenizer_push(&d, 2, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, -1, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, 100000, out, sizeof out), 0);
    assert_int_equal(detokenizer_push(&d, id_of_byte(0x82), out, sizeof out), 4);
    assert_memory_equal(out, "\U0001F642", 4);
    tokenizer_free(tokenizer);
}

static void test_detokenizer_shows_or_skips_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    struct detokenizer d;
    char out[DETOKENIZER_MAX_BYTES];
    detokenizer_init(&d, tokenizer, true);
    assert_int_equal(detokenizer_push(&d, 2, out, sizeof out), 0);
    detokenizer_init(&d, tokenizer, false);
    assert_int_equal(detokenizer_push(&d, 2, out, sizeof out), 10);
    assert_memory_equal(out, "<|im_end|>", 10);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_detokenizer_holds_back_until_complete),
        cmocka_unit_test(test_detokenizer_replaces_what_cannot_become_a_character),
        cmocka_unit_test(test_detokenizer_flush_gives_one_replacement),
        cmocka_unit_test(test_detokenizer_joins_a_character_over_tokens),
        cmocka_unit_test(test_detokenizer_shows_or_skips_special_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
