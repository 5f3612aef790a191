/* tokenizer: ids and text equal the reference library's answers in tests/data
 * (scripts/make_tokenizer_goldens.py). */
#include "tests/unit.h"

#include "model/tokenizer.h"

#include <jansson.h>

static void check_encode(const struct tokenizer *tokenizer, const json_t *row, const char *name,
                         int flags, int line)
{
    const json_t *text = json_object_get(row, "text"), *expected = json_object_get(row, name);
    int32_t *ids = NULL;
    size_t n = 0;
    assert_true(json_is_string(text) && json_is_array(expected));
    assert_int_equal(tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                                      flags, &ids, &n, NULL, NULL),
                     STATUS_OK);
    for (size_t i = 0; i < n && i < json_array_size(expected); i++)
        if (ids[i] != json_integer_value(json_array_get(expected, i)))
            fail_msg("line %d, %s: id %zu is %d", line, name, i, (int)ids[i]);
    assert_int_equal(n, json_array_size(expected));
    free(ids);
}

/* Decodes the reference's ids, not ours, so that the two checks are independent. */
static void check_decode(const struct tokenizer *tokenizer, const json_t *row, const char *name,
                         const char *text_name, int line)
{
    const json_t *ids = json_object_get(row, name), *expected = json_object_get(row, text_name);
    struct detokenizer d;
    char *text = malloc(DETOKENIZER_MAX_BYTES * (json_array_size(ids) + 1));
    size_t n = 0, i;
    json_t *id;
    assert_true(text && json_is_string(expected));
    detokenizer_init(&d, tokenizer, true);
    json_array_foreach((json_t *)ids, i, id) n +=
        detokenizer_push(&d, (int32_t)json_integer_value(id), text + n, DETOKENIZER_MAX_BYTES);
    n += detokenizer_flush(&d, text + n, DETOKENIZER_MAX_BYTES);
    if (n != json_string_length(expected) || memcmp(text, json_string_value(expected), n) != 0)
        fail_msg("line %d, %s: \"%.*s\"", line, text_name, (int)n, text);
    free(text);
}

static void test_tokenizer_goldens_of_the_reference(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = NULL;
    struct err err = {0};
    if (tokenizer_load("tests/data/tokenizer_small.json", &tokenizer, &err) != STATUS_OK)
        fail_msg("%s (run from the repository's root)", err.message);
    FILE *file = fopen("tests/data/tokenizer_goldens.jsonl", "rb");
    assert_non_null(file);
    char *line = NULL;
    size_t cap = 0;
    int n_lines = 0;
    for (ssize_t len; (len = getline(&line, &cap, file)) > 0;) {
        json_t *row = json_loadb(line, (size_t)len, JSON_ALLOW_NUL, NULL);
        n_lines++;
        assert_non_null(row);
        check_encode(tokenizer, row, "parsed", TOKENIZER_PARSE_SPECIAL, n_lines);
        check_encode(tokenizer, row, "plain", 0, n_lines);
        check_decode(tokenizer, row, "parsed", "parsed_decoded", n_lines);
        check_decode(tokenizer, row, "plain", "plain_decoded", n_lines);
        json_decref(row);
    }
    assert_true(n_lines > 700);
    free(line);
    fclose(file);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tokenizer_goldens_of_the_reference)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
