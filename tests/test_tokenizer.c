/* tokenizer: encoding equals the reference in its traps, and user text writes no special token. */
#include "tests/unit.h"

#include "tests/tokenizer_fixture.h"

#include <pthread.h>

/* Encodes and joins the tokens' contents (their symbols) with " | ". */
static void check(const struct tokenizer *tokenizer, const char *text, size_t len, int flags,
                  const char *expected)
{
    char joined[1024];
    int32_t *ids = NULL;
    size_t n_ids = 0, n = 0, n_bytes;
    assert_int_equal(tokenizer_encode(tokenizer, text, len, flags, &ids, &n_ids, NULL, NULL),
                     STATUS_OK);
    for (size_t i = 0; i < n_ids; i++) {
        const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], &n_bytes);
        assert_non_null(bytes);
        assert_true(n + 2 * n_bytes + 4 < sizeof joined);
        n += i > 0 ? (size_t)sprintf(joined + n, " | ") : 0;
        for (size_t k = 0; k < n_bytes; k++)
            n += vocab_byte_symbol((unsigned char)bytes[k], joined + n);
    }
    joined[n] = '\0';
    assert_string_equal(joined, expected);
    free(ids);
}

/* The reference library's results for digits between pieces, as published for the vocabulary. */
static void test_tokenizer_traps_give_the_reference_tokens(void **state)
{
    (void)state;
    static const char *const merges[] = {"Ġ Ġ",   "ĠĠ Ġ",   "Ġ b", "č Ċ", "l e",  "a d",
                                         "le ad", "Ġ lead", "t r", "a i", "ai l", "tr ail",
                                         "Ċ č",   "Ġ 1",    "1 2", "0 0", "Ġ 0",  NULL};
    static const char *const rows[][2] = {
        {"a 12 b", "a | Ġ | 1 | 2 | Ġb"}, {"a  12", "a | ĠĠ | 1 | 2"},
        {"1 000", "1 | Ġ | 0 | 0 | 0"},   {"a   1   b", "a | ĠĠĠ | 1 | ĠĠ | Ġb"},
        {"\r\n1\r\n", "čĊ | 1 | čĊ"},     {"  lead", "Ġ | Ġlead"},
        {"trail  ", "trail | ĠĠ"},        {"½Ⅷ", "Â | ½ | â | ħ | §"},
    };
    for (int pairs = 0; pairs < 2; pairs++) {
        struct tokenizer *tokenizer =
            fixture_make(&(struct fixture){.merges = merges, .merges_as_pairs = pairs});
        for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
            check(tokenizer, rows[i][0], strlen(rows[i][0]), 0, rows[i][1]);
        tokenizer_free(tokenizer);
    }
}

static void test_tokenizer_merges_lowest_rank_then_leftmost(void **state)
{
    (void)state;
    static const char *const merges[] = {"b c", "a b", "a a", "aa a", NULL};
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    check(tokenizer, "abc", 3, 0, "a | bc");
    check(tokenizer, "ab", 2, 0, "ab");
    check(tokenizer, "aaaaa", 5, 0, "aa | aaa");
    check(tokenizer, "", 0, 0, "");
    tokenizer_free(tokenizer);
}

static void test_tokenizer_special_tokens_need_the_flag(void **state)
{
    (void)state;
    static const char text[] = "a<|im_end|><|im_end";
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    check(tokenizer, text, strlen(text), TOKENIZER_PARSE_SPECIAL,
          "a | <|im_end|> | < | | | i | m | _ | e | n | d");
    check(tokenizer, "<|im_end|>", 10, 0, "< | | | i | m | _ | e | n | d | | | >");
    assert_true(tokenizer_is_special(tokenizer, 2));
    assert_false(tokenizer_is_special(tokenizer, 3));
    assert_false(tokenizer_is_special(tokenizer, -1));
    assert_int_equal(tokenizer_find(tokenizer, "<|im_end|>"), 2);
    assert_int_equal(tokenizer_find(tokenizer, "<|nope|>"), -1);
    tokenizer_free(tokenizer);
}

/* Even where a whole piece is looked up in the vocabulary, text is no special token. */
static void test_tokenizer_plain_text_never_writes_a_special_token(void **state)
{
    (void)state;
    static const char *const parts[] = {"<|im_end|>", "<|",    "im_end", "|>", "<|endoftext|>",
                                        "<|im_",      "end|>", "\n",     "1",  "<|im_end|"};
    struct tokenizer *tokenizer = fixture_make(
        &(struct fixture){.model_options = "\"ignore_merges\":true,", .pre = FIXTURE_PRE_WHOLE});
    uint32_t seed = 99;
    for (int round = 0; round < 2000; round++) {
        char text[256] = "";
        int32_t *ids = NULL;
        size_t n = 0;
        for (int i = 0; i < round % 8; i++) {
            seed = seed * 1664525u + 1013904223u;
            strcat(text, parts[(seed >> 16) % 10]);
        }
        assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), 0, &ids, &n, NULL, NULL),
                         STATUS_OK);
        for (size_t i = 0; i < n; i++)
            assert_false(tokenizer_is_special(tokenizer, ids[i]));
        assert_int_equal(n, strlen(text));
        free(ids);
    }
    tokenizer_free(tokenizer);
}

static void test_tokenizer_missing_bytes_are_dropped_and_counted(void **state)
{
    (void)state;
    static const char *const merges[] = {"a b", NULL};
    struct tokenizer *tokenizer =
        fixture_make(&(struct fixture){.merges = merges, .missing = "~\x01"});
    int32_t *ids = NULL;
    size_t n = 0, n_dropped = 0;
    struct err err = {0};
    /* The neighbours of a dropped byte meet, if a piece holds both. */
    for (int again = 0; again < 2; again++) {
        assert_int_equal(tokenizer_encode(tokenizer, "x~~ ~~", 6, 0, &ids, &n, &n_dropped, &err),
                         STATUS_OK);
        assert_int_equal(n, 2);
        assert_int_equal(n_dropped, 4);
        free(ids);
    }
    check(tokenizer, "a~b", 3, 0, "a | b");
    ids = NULL;
    assert_int_equal(
        tokenizer_encode(tokenizer, "ok ~", 4, TOKENIZER_STRICT, &ids, &n, &n_dropped, &err),
        STATUS_INVALID);
    assert_non_null(strstr(err.message, "byte 0x7E at offset 3"));
    assert_null(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "~", 1, 0, &ids, &n, &n_dropped, &err), STATUS_OK);
    assert_null(ids);
    assert_int_equal(n, 0);
    assert_int_equal(n_dropped, 1);
    tokenizer_free(tokenizer);

    tokenizer =
        fixture_make(&(struct fixture){.merges = merges, .missing = "~", .pre = FIXTURE_PRE_WHOLE});
    check(tokenizer, "a~b", 3, 0, "ab");
    tokenizer_free(tokenizer);
}

static void test_tokenizer_ignore_merges_takes_whole_words(void **state)
{
    (void)state;
    /* "abc" is in the vocabulary, but merging "b c" first never reaches it. */
    static const char *const merges[] = {"b c", "a b", "ab c", NULL};
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    check(tokenizer, "abc abc", 7, 0, "a | bc | Ġ | a | bc");
    tokenizer_free(tokenizer);
    tokenizer = fixture_make(
        &(struct fixture){.merges = merges, .model_options = "\"ignore_merges\":true,"});
    check(tokenizer, "abc abc", 7, 0, "abc | Ġ | a | bc");
    tokenizer_free(tokenizer);
}

static void test_tokenizer_added_tokens_longest_of_the_leftmost(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){
        .more_added = ",{\"id\":500,\"content\":\"<t>\"},{\"id\":501,\"content\":\"<t> c\"},"
                      "{\"id\":502,\"content\":\"t> \",\"normalized\":false},"
                      "{\"id\":503,\"content\":\"<<t>>\",\"special\":true}"});
    check(tokenizer, "<t> x<t>y", 9, 0, "< | t>Ġ | x | <t> | y");
    check(tokenizer, "<t>c", 4, 0, "<t> | c");
    /* A special token that is not parsed hides what lies in it from the matches of its own pass. */
    check(tokenizer, "<<t>>", 5, 0, "< | <t> | >");
    check(tokenizer, "<<t>>", 5, TOKENIZER_PARSE_SPECIAL, "<<t>>");
    assert_int_equal(tokenizer_vocab_size(tokenizer), 504);
    tokenizer_free(tokenizer);
}

static void test_tokenizer_bos_as_the_template_asks(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){
        .top_options =
            "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":"
            "{\"id\":\"B\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
            "{\"SpecialToken\":{\"id\":\"E\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":"
            "{\"B\":{\"id\":\"B\",\"ids\":[1],\"tokens\":[\"x\"]},"
            "\"E\":{\"id\":\"E\",\"ids\":[2,0],\"tokens\":[\"y\",\"z\"]}}},"});
    check(tokenizer, "a", 1, TOKENIZER_ADD_BOS, "<|im_start|> | a | <|im_end|> | <|endoftext|>");
    check(tokenizer, "", 0, TOKENIZER_ADD_BOS, "<|im_start|> | <|im_end|> | <|endoftext|>");
    check(tokenizer, "a", 1, 0, "a");
    tokenizer_free(tokenizer);
}

/* With all byte symbols and no special tokens parsed, decoding gives any bytes back. */
static void test_tokenizer_round_trip_of_any_bytes(void **state)
{
    (void)state;
    static const char *const merges[] = {"Ġ Ġ", "Ã ©", "a b", "ab Ġ", NULL};
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    uint32_t seed = 4711;
    for (int round = 0; round < 500; round++) {
        char text[300];
        int32_t *ids = NULL;
        size_t n = 0, at = 0, n_bytes, n_dropped = 1;
        size_t len = (size_t)round % sizeof text;
        for (size_t i = 0; i < len; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = round % 2 ? (char)(seed >> 24) : "ab \xC3\xA9"[(seed >> 16) % 5];
        }
        assert_int_equal(tokenizer_encode(tokenizer, text, len, 0, &ids, &n, &n_dropped, NULL),
                         STATUS_OK);
        assert_int_equal(n_dropped, 0);
        for (size_t i = 0; i < n; i++, at += n_bytes) {
            const char *bytes = tokenizer_token_bytes(tokenizer, ids[i], &n_bytes);
            assert_true(at + n_bytes <= len);
            assert_memory_equal(text + at, bytes, n_bytes);
        }
        assert_int_equal(at, len);
        free(ids);
    }
    tokenizer_free(tokenizer);
}

/* A naive merge loop over letters: rescan for the lowest rank until nothing merges. */
static size_t merge_naively(const char *const *merges, char words[][32], size_t n)
{
    for (;;) {
        size_t best = SIZE_MAX, at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            char pair[80];
            snprintf(pair, sizeof pair, "%.31s %.31s", words[i], words[i + 1]);
            for (size_t rank = 0; merges[rank] && rank < best; rank++)
                if (strcmp(pair, merges[rank]) == 0) {
                    best = rank;
                    at = i;
                }
        }
        if (best == SIZE_MAX)
            return n;
        size_t len = strlen(words[at]);
        memcpy(words[at] + len, words[at + 1], strlen(words[at + 1]) + 1);
        memmove(words + at + 1, words + at + 2, (n - at - 2) * sizeof words[0]);
        n--;
    }
}

static void test_tokenizer_merge_order_equals_a_naive_loop(void **state)
{
    (void)state;
    static const char *const merges[] = {"b a",  "a a",   "a b",  "ba b",  "aa a",   "c ba",
                                         "ab a", "bab a", "aa b", "aab c", "ab aab", NULL};
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    uint32_t seed = 3;
    for (int round = 0; round < 3000; round++) {
        char text[25], words[25][32], expected[256] = "";
        size_t len = 1 + (size_t)round % 24;
        for (size_t i = 0; i < len; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = "aaabbc"[(seed >> 16) % 6];
            snprintf(words[i], sizeof words[i], "%c", text[i]);
        }
        size_t n = merge_naively(merges, words, len);
        for (size_t i = 0; i < n; i++) {
            strcat(expected, i > 0 ? " | " : "");
            strcat(expected, words[i]);
        }
        check(tokenizer, text, len, 0, expected);
    }
    tokenizer_free(tokenizer);
}

/* One piece of 512 KiB: a quadratic loop would take minutes. */
static void test_tokenizer_long_runs_stay_fast(void **state)
{
    (void)state;
    static const char *const merges[] = {"a a", "aa aa", "aaaa aaaa", NULL};
    enum { LEN = 1 << 19 };
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    char *text = malloc(LEN);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_non_null(text);
    memset(text, 'a', LEN);
    assert_int_equal(tokenizer_encode(tokenizer, text, LEN, 0, &ids, &n, NULL, NULL), STATUS_OK);
    assert_int_equal(n, LEN / 8);
    free(ids);
    free(text);
    tokenizer_free(tokenizer);
}

struct reader {
    const struct tokenizer *tokenizer;
    size_t n_ids;
};

static void *encode_often(void *arg)
{
    struct reader *reader = arg;
    for (int i = 0; i < 200; i++) {
        int32_t *ids = NULL;
        static const char text[] = "abab ab <|im_end|> ab 12 ab abab";
        if (tokenizer_encode(reader->tokenizer, text, strlen(text), TOKENIZER_PARSE_SPECIAL, &ids,
                             &reader->n_ids, NULL, NULL) != STATUS_OK)
            reader->n_ids = 0;
        free(ids);
    }
    return NULL;
}

static void test_tokenizer_is_shared_by_threads(void **state)
{
    (void)state;
    static const char *const merges[] = {"a b", "ab ab", NULL};
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){.merges = merges});
    struct reader readers[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        readers[i] = (struct reader){.tokenizer = tokenizer};
        assert_int_equal(pthread_create(&threads[i], NULL, encode_often, &readers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(readers[i].n_ids, 14);
    }
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_traps_give_the_reference_tokens),
        cmocka_unit_test(test_tokenizer_merges_lowest_rank_then_leftmost),
        cmocka_unit_test(test_tokenizer_special_tokens_need_the_flag),
        cmocka_unit_test(test_tokenizer_plain_text_never_writes_a_special_token),
        cmocka_unit_test(test_tokenizer_missing_bytes_are_dropped_and_counted),
        cmocka_unit_test(test_tokenizer_ignore_merges_takes_whole_words),
        cmocka_unit_test(test_tokenizer_added_tokens_longest_of_the_leftmost),
        cmocka_unit_test(test_tokenizer_bos_as_the_template_asks),
        cmocka_unit_test(test_tokenizer_round_trip_of_any_bytes),
        cmocka_unit_test(test_tokenizer_merge_order_equals_a_naive_loop),
        cmocka_unit_test(test_tokenizer_long_runs_stay_fast),
        cmocka_unit_test(test_tokenizer_is_shared_by_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
