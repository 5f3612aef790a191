/* tokenizer file: what we do not reproduce is refused by name, what changes nothing is accepted. */
#include "tests/unit.h"

#include "tests/tokenizer_fixture.h"

static void check_json(const char *json, size_t len, enum status status, const char *part)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    enum status got = tokenizer_parse(json, len, "file.json", &tokenizer, &err);
    if (got != status || (part && !strstr(err.message, part)))
        fail_msg("status %s, message \"%s\"; wanted %s with \"%s\"", status_name(got), err.message,
                 status_name(status), part ? part : "");
    if (got != STATUS_OK) {
        assert_null(tokenizer);
        assert_memory_equal(err.message, "file.json: ", 11);
    }
    tokenizer_free(tokenizer);
}

static void check(const struct fixture *f, enum status status, const char *part)
{
    size_t n;
    char *json = fixture_json(f, &n);
    check_json(json, n, status, part);
    free(json);
}

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define PRE   "\"pre_tokenizer\":" FIXTURE_PRE_WHOLE

static void test_tokenizer_file_corrupt_is_named(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"", "not JSON"},
        {"{\"model\":", "not JSON"},
        {"[]", "the file is not an object"},
        {"{" PRE "}", "model is not an object"},
        {"{" PRE ",\"model\":{\"type\":\"BPE\",\"merges\":[]}}", "model.vocab"},
        {"{" PRE ",\"model\":{" VOCAB "}}", "model.merges"},
        {"{" PRE ",\"model\":{\"vocab\":{\"a\":\"x\"},\"merges\":[]}}", "id of \"a\""},
        {"{" PRE ",\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "id of \"a\" is -1"},
        {"{" PRE ",\"model\":{\"vocab\":{\"a\":999999999},\"merges\":[]}}", "999999999"},
        {"{" PRE ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "id 0"},
        {"{" PRE ",\"model\":{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}}", "duplicate"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"ab\"]}}", "model.merges[0]"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"a b\",\"a  b\"]}}", "model.merges[1]"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[[\"a\"]]}}", "model.merges[0]"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[7]}}", "model.merges[0]"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"a c\"]}}", "\"c\" is not in"},
        {"{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"b a\"]}}", "merge into"},
        {"{\"added_tokens\":{}," PRE ",\"model\":{" VOCAB ",\"merges\":[]}}", "added_tokens"},
        {"{\"added_tokens\":[{\"id\":3}]," PRE ",\"model\":{" VOCAB ",\"merges\":[]}}",
         "no content"},
        {"{\"added_tokens\":[{\"id\":3,\"content\":\"ab\"}]," PRE ",\"model\":{" VOCAB
         ",\"merges\":[]}}",
         "\"ab\" has two ids, 2 and 3"},
        {"{\"added_tokens\":[{\"id\":2,\"content\":\"x\"}]," PRE ",\"model\":{" VOCAB
         ",\"merges\":[]}}",
         "id 2 is given to two tokens"},
        {"{\"added_tokens\":[{\"id\":3,\"content\":\"x\",\"special\":1}]," PRE ",\"model\":{" VOCAB
         ",\"merges\":[]}}",
         "added_tokens[].special"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        check_json(rows[i][0], strlen(rows[i][0]), STATUS_CORRUPT, rows[i][1]);
}

static void test_tokenizer_file_unsupported_is_named(void **state)
{
    (void)state;
    const struct {
        struct fixture f;
        const char *part;
    } rows[] = {
        {{.top_options = "\"truncation\":{\"max_length\":5},"}, "truncation"},
        {{.top_options = "\"padding\":{},"}, "padding"},
        {{.top_options = "\"surprise\":1,"}, "surprise"},
        {{.top_options = "\"post_processor\":{\"type\":\"BertProcessing\"},"}, "BertProcessing"},
        {{.model_options = "\"dropout\":0.1,"}, "dropout"},
        {{.model_options = "\"continuing_subword_prefix\":\"##\","}, "continuing_subword_prefix"},
        {{.model_options = "\"end_of_word_suffix\":\"</w>\","}, "end_of_word_suffix"},
        {{.model_options = "\"novelty\":true,"}, "novelty"},
        {{.model_options = "\"unk_token\":\"<|endoftext|>\",", .missing = "~"}, "unk_token"},
        {{.model_options = "\"byte_fallback\":true,", .missing = "~"}, "byte_fallback"},
        {{.pre = "null"}, "no ByteLevel"},
        {{.pre = "{\"type\":\"Metaspace\"}"}, "Metaspace"},
        {{.pre = "{\"type\":\"Digits\"}"}, "no ByteLevel"},
        {{.pre = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"}, "add_prefix_space"},
        {{.pre = "{\"type\":\"ByteLevel\"}"}, "add_prefix_space"},
        {{.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\","
                 "\"add_prefix_space\":false},{\"type\":\"Digits\"}]}"},
         "Digits"},
        {{.more_added = ",{\"id\":900,\"content\":\"x y\",\"lstrip\":true}"}, "lstrip"},
        {{.more_added = ",{\"id\":900,\"content\":\"x y\",\"rstrip\":true}"}, "rstrip"},
        {{.more_added = ",{\"id\":900,\"content\":\"x y\",\"single_word\":true}"}, "single_word"},
        {{.more_added = ",{\"id\":3,\"content\":\"Ā\",\"special\":true}"}, "byte symbol"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        check(&rows[i].f, STATUS_UNSUPPORTED, rows[i].part);
    static const char *const files[][2] = {
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "model.type \"Unigram\""},
        {"{\"normalizer\":{\"type\":\"NFC\"},\"model\":{}}", "normalizer \"NFC\""},
        {"{\"decoder\":{\"type\":\"Fuse\"},\"model\":{}}", "decoder \"Fuse\""},
        {"{\"added_tokens\":[{\"id\":2,\"content\":\"ab\",\"special\":true}]," PRE
         ",\"model\":{" VOCAB ",\"merges\":[\"a b\"]}}",
         "makes the special token \"ab\""},
    };
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        check_json(files[i][0], strlen(files[i][0]), STATUS_UNSUPPORTED, files[i][1]);
}

static void test_tokenizer_file_harmless_options_pass(void **state)
{
    (void)state;
    check(&(struct fixture){.model_options = "\"unk_token\":\"<|endoftext|>\",\"fuse_unk\":false,"
                                             "\"byte_fallback\":true,\"dropout\":null,"
                                             "\"end_of_word_suffix\":\"\","},
          STATUS_OK, NULL);
    check(&(struct fixture){.top_options = "\"truncation\":null,\"padding\":null,"
                                           "\"post_processor\":{\"type\":\"ByteLevel\"},"},
          STATUS_OK, NULL);
    check_json("{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"#version: 0.2\",\"a b\"]}}",
               strlen("{" PRE ",\"model\":{" VOCAB ",\"merges\":[\"#version: 0.2\",\"a b\"]}}"),
               STATUS_OK, NULL);
}

static void test_tokenizer_file_token_length_is_bounded(void **state)
{
    (void)state;
    for (int over = 0; over < 2; over++) {
        size_t n = TOKENIZER_MAX_TOKEN_BYTES + (size_t)over;
        char *json = malloc(n + 512);
        assert_non_null(json);
        int head = sprintf(json, "{" PRE ",\"model\":{\"vocab\":{\"");
        memset(json + head, 'x', n);
        int tail = sprintf(json + (size_t)head + n, "\":0},\"merges\":[]}}");
        check_json(json, (size_t)head + n + (size_t)tail, over ? STATUS_UNSUPPORTED : STATUS_OK,
                   over ? "longer than 1024" : NULL);
        free(json);
    }
}

static void test_tokenizer_file_missing_is_not_found(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    assert_int_equal(tokenizer_load("tests/data/no_such.json", &tokenizer, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "tests/data/no_such.json"));
    assert_int_equal(tokenizer_load("tests", &tokenizer, &err), STATUS_IO);
    assert_null(tokenizer);
    tokenizer_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokenizer_file_corrupt_is_named),
        cmocka_unit_test(test_tokenizer_file_unsupported_is_named),
        cmocka_unit_test(test_tokenizer_file_harmless_options_pass),
        cmocka_unit_test(test_tokenizer_file_token_length_is_bounded),
        cmocka_unit_test(test_tokenizer_file_missing_is_not_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
