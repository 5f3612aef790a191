/* completion: stop strings wherever the token boundaries lie, and nothing shown that might still be
 * taken back. */
#include "tests/unit.h"

#include "coordinator/completion.h"

enum { A, B, C, AB, BC, ABC, E2, X82, XAC, X, SPECIAL };

/* Bytes E2 82 AC, the euro sign, are one token each: in byte-level BPE they are spelled U+00E2,
 * U+0124, U+00AC. */
static const char TOKENIZER[] =
    "{\"version\":\"1.0\",\"normalizer\":null,"
    "\"added_tokens\":[{\"id\":10,\"content\":\"<s>\",\"special\":true,\"single_word\":false,"
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false}],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
    "\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"bc\":4,\"abc\":5,"
    "\"\\u00e2\":6,\"\\u0124\":7,\"\\u00ac\":8,\"x\":9,\"<s>\":10},"
    "\"merges\":[\"a b\",\"b c\",\"ab c\"]}}";

static struct tokenizer *tokenizer;

static int load(void **state)
{
    (void)state;
    struct err err = {0};
    if (tokenizer_parse(TOKENIZER, sizeof TOKENIZER - 1, "test", &tokenizer, &err) == STATUS_OK)
        return 0;
    print_error("%s\n", err.message);
    return -1;
}

static int unload(void **state)
{
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

enum { INCLUDE_STOP = 1, KEEP_SPECIAL = 2 };

/* Pushes ids (-1 ends them); out gets the pieces, each followed by '|', "!" where a stop was found,
 * and what the end releases. */
static void run(const char *const *stops, uint32_t n_stops, int flags, const int32_t *ids,
                char *out)
{
    static struct completion c;
    struct err err = {0};
    char text[COMPLETION_TEXT_BYTES];
    if (completion_init(&c, tokenizer, (flags & KEEP_SPECIAL) != 0, (flags & INCLUDE_STOP) != 0,
                        stops, n_stops, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    size_t at = 0;
    for (; *ids >= 0; ids++) {
        bool was_stopped = c.is_stopped;
        size_t n = completion_push(&c, *ids, text);
        memcpy(out + at, text, n);
        at += n;
        out[at++] = c.is_stopped && !was_stopped ? '!' : '|';
    }
    size_t n = completion_flush(&c, text);
    memcpy(out + at, text, n);
    out[at + n] = '\0';
}

struct row {
    const char *stop, *other; /* other may be NULL */
    int flags;
    int32_t ids[8];
    const char *expected;
};

static void check_rows(const struct row *rows, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *stops[2] = {rows[i].stop, rows[i].other};
        char out[256];
        run(stops,
            rows[i].other != NULL  ? 2
            : rows[i].stop != NULL ? 1
                                   : 0,
            rows[i].flags, rows[i].ids, out);
        if (strcmp(out, rows[i].expected) != 0)
            fail_msg("row %zu gave %s, expected %s", i, out, rows[i].expected);
    }
}

static void test_completion_stop_over_token_boundaries(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {NULL, NULL, 0, {A, B, C, -1}, "a|b|c|"},
        {"bc", NULL, 0, {A, BC, A, -1}, "a|!|"},       /* inside one token */
        {"bc", NULL, 0, {AB, C, A, -1}, "a|!|"},       /* over a boundary */
        {"bc", NULL, 0, {ABC, A, -1}, "a!|"},          /* text before it in the same token */
        {"bc", NULL, 0, {AB, A, C, -1}, "a|ba|c|"},    /* held back, then released */
        {"bc", NULL, 0, {AB, -1}, "a|b"},              /* released by the end */
        {"abcx", NULL, 0, {A, B, C, X, -1}, "|||!"},   /* four tokens */
        {"bx", NULL, 0, {AB, B, B, X, -1}, "a|b|b|!"}, /* the last b of three */
        {"ababc",
         NULL,
         0,
         {AB, AB, ABC, A, -1},
         "||ab!|"}, /* the prefix starts anew inside itself */
        {"aabc", NULL, 0, {A, A, A, B, C, -1}, "||a||!"},
        {"b", NULL, 0, {ABC, -1}, "a!"}, /* what the token has behind it is dropped */
    };
    check_rows(rows, sizeof rows / sizeof rows[0]);
}

static void test_completion_overlapping_stops(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"bc", "abc", 0, {A, B, C, -1}, "||!"}, /* both complete at c: the longer one counts */
        {"abc", "bc", 0, {A, B, C, -1}, "||!"}, /* in any order */
        {"abc", "b", 0, {ABC, -1}, "a!"},       /* b is complete first, also inside one token */
        {"abc", "b", 0, {A, B, C, -1}, "|a!|"},
        {"abcx", "bcb", 0, {ABC, B, -1}, "|a!"}, /* the one that began later ends first */
        {"abcx", "bcb", 0, {ABC, X, -1}, "|!"},
        {"abcx", "bcb", 0, {ABC, C, -1}, "|abcc|"},
    };
    check_rows(rows, sizeof rows / sizeof rows[0]);
}

static void test_completion_include_stop_keeps_it(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"bc", NULL, INCLUDE_STOP, {AB, C, A, -1}, "a|bc!|"},
        {"b", NULL, INCLUDE_STOP, {ABC, -1}, "ab!"},
        {"bc", "abc", INCLUDE_STOP, {A, B, C, -1}, "||abc!"},
    };
    check_rows(rows, sizeof rows / sizeof rows[0]);
}

static void test_completion_half_characters_are_held(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {NULL, NULL, 0, {E2, X82, XAC, A, -1}, "||\xE2\x82\xAC|a|"},
        {NULL, NULL, 0, {E2, X82, -1}, "||\xEF\xBF\xBD"}, /* never completed */
        {NULL,
         NULL,
         0,
         {E2, A, -1},
         "|\xEF\xBF\xBD"
         "a|"},
        {"a\xE2\x82\xAC", NULL, 0, {X, A, E2, X82, XAC, -1}, "x||||!"},
        {"a\xE2\x82\xAC", NULL, 0, {A, E2, X82, A, -1}, "|||a\xEF\xBF\xBD|a"},
        {"\xE2\x82\xAC"
         "b",
         NULL,
         0,
         {E2, X82, XAC, B, -1},
         "|||!"},
        {"\xE2\x82\xAC"
         "b",
         NULL,
         0,
         {E2, X82, XAC, C, -1},
         "|||\xE2\x82\xAC"
         "c|"},
        /* The end turns half a character into U+FFFD, and that completes a stop string. */
        {"a\xEF\xBF\xBD", NULL, 0, {X, A, E2, -1}, "x|||"},
    };
    check_rows(rows, sizeof rows / sizeof rows[0]);
}

static void test_completion_special_tokens(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {NULL, NULL, 0, {A, SPECIAL, B, -1}, "a||b|"},
        {NULL, NULL, KEEP_SPECIAL, {A, SPECIAL, B, -1}, "a|<s>|b|"},
        {"ab", NULL, 0, {A, SPECIAL, B, -1}, "||!"}, /* it is not part of the text at all */
        {"ab", NULL, KEEP_SPECIAL, {A, SPECIAL, B, -1}, "|a<s>|b|"},
        {"<s>", NULL, KEEP_SPECIAL, {A, SPECIAL, B, -1}, "a|!|"},
    };
    check_rows(rows, sizeof rows / sizeof rows[0]);
}

static void test_completion_refuses_stops_that_cannot_work(void **state)
{
    (void)state;
    static struct completion c;
    struct err err = {0};
    char longest[COMPLETION_MAX_STOP_BYTES + 2];
    memset(longest, 'a', sizeof longest);
    longest[COMPLETION_MAX_STOP_BYTES + 1] = '\0';
    const char *stops[COMPLETION_MAX_STOPS + 1] = {longest};
    assert_int_equal(completion_init(&c, tokenizer, false, false, stops, 1, &err), STATUS_INVALID);
    longest[COMPLETION_MAX_STOP_BYTES] = '\0';
    assert_int_equal(completion_init(&c, tokenizer, false, false, stops, 1, &err), STATUS_OK);
    stops[0] = "";
    assert_int_equal(completion_init(&c, tokenizer, false, false, stops, 1, &err), STATUS_INVALID);
    stops[0] = "\x82\xAC";
    assert_int_equal(completion_init(&c, tokenizer, false, false, stops, 1, &err), STATUS_INVALID);
    for (int i = 0; i <= COMPLETION_MAX_STOPS; i++)
        stops[i] = "a";
    assert_int_equal(
        completion_init(&c, tokenizer, false, false, stops, COMPLETION_MAX_STOPS + 1, &err),
        STATUS_INVALID);
    assert_int_equal(completion_init(&c, NULL, false, false, stops, 1, &err), STATUS_UNSUPPORTED);
}

static void test_completion_without_tokenizer_has_no_text(void **state)
{
    (void)state;
    static struct completion c;
    struct err err = {0};
    char text[COMPLETION_TEXT_BYTES];
    assert_int_equal(completion_init(&c, NULL, false, false, NULL, 0, &err), STATUS_OK);
    assert_int_equal(completion_push(&c, A, text), 0);
    assert_int_equal(completion_flush(&c, text), 0);
}

/* The longest stop string and a stream that nearly matches it again and again. */
static void test_completion_longest_stop(void **state)
{
    (void)state;
    static struct completion c;
    struct err err = {0};
    char stop[COMPLETION_MAX_STOP_BYTES + 1], text[COMPLETION_TEXT_BYTES];
    memset(stop, 'a', sizeof stop);
    stop[COMPLETION_MAX_STOP_BYTES - 1] = 'b';
    stop[COMPLETION_MAX_STOP_BYTES] = '\0';
    const char *stops[1] = {stop};
    assert_int_equal(completion_init(&c, tokenizer, false, false, stops, 1, &err), STATUS_OK);
    size_t n_text = 0;
    for (int i = 0; i < 1000; i++)
        n_text += completion_push(&c, A, text);
    assert_int_equal(n_text, 1000 - (COMPLETION_MAX_STOP_BYTES - 1));
    assert_int_equal(completion_push(&c, B, text), 0);
    assert_true(c.is_stopped);
}

/* ---- any token boundaries, against a search in the whole text -------------------------------- */

static uint64_t random_state;
static uint32_t draw(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* The definition, plainly: the first end of any stop in the text, the longest of those. */
static void search(const char *text, const char *const *stops, int n_stops, char *expected)
{
    size_t n = strlen(text);
    for (size_t end = 1; end <= n; end++) {
        size_t longest = 0;
        for (int i = 0; i < n_stops; i++) {
            size_t len = strlen(stops[i]);
            if (len <= end && len > longest && strncmp(text + end - len, stops[i], len) == 0)
                longest = len;
        }
        if (longest > 0) {
            snprintf(expected, end - longest + 1, "%s", text);
            return;
        }
    }
    strcpy(expected, text);
}

static void test_completion_any_boundaries_give_the_same_text(void **state)
{
    (void)state;
    static const char *const words[] = {"a", "b", "c", "ab", "bc", "abc"};
    random_state = 20;
    print_message("seed 20\n");
    for (int round = 0; round < 3000; round++) {
        char stop_text[2][8], text[64] = "", expected[64], got[256], plain[256];
        const char *stops[2] = {stop_text[0], stop_text[1]};
        for (int i = 0; i < 2; i++) {
            uint32_t n = 1 + draw(5);
            for (uint32_t k = 0; k < n; k++)
                stop_text[i][k] = (char)('a' + draw(3));
            stop_text[i][n] = '\0';
        }
        int32_t ids[16];
        int n_ids = 1 + (int)draw(14);
        for (int i = 0; i < n_ids; i++) {
            ids[i] = (int32_t)draw(6);
            strcat(text, words[ids[i]]);
        }
        ids[n_ids] = -1;
        search(text, stops, 2, expected);
        run(stops, 2, 0, ids, got);
        size_t n = 0;
        for (const char *p = got; *p != '\0'; p++)
            if (*p != '|' && *p != '!')
                plain[n++] = *p;
        plain[n] = '\0';
        if (strcmp(plain, expected) != 0)
            fail_msg("round %d: %s with stops %s, %s gave %s, expected %s", round, text, stops[0],
                     stops[1], got, expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_completion_stop_over_token_boundaries),
        cmocka_unit_test(test_completion_overlapping_stops),
        cmocka_unit_test(test_completion_include_stop_keeps_it),
        cmocka_unit_test(test_completion_half_characters_are_held),
        cmocka_unit_test(test_completion_special_tokens),
        cmocka_unit_test(test_completion_refuses_stops_that_cannot_work),
        cmocka_unit_test(test_completion_without_tokenizer_has_no_text),
        cmocka_unit_test(test_completion_longest_stop),
        cmocka_unit_test(test_completion_any_boundaries_give_the_same_text),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
