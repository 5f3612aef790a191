/* Batch lines: both shapes, whose line it is, and the exact message for each envelope that is
 * wrong.
 */
#include "tests/unit.h"

#include "cli/batch_line.h"

#define TEXT_LINE(fields)                                                                          \
    "{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": "        \
    "{\"prompt\": \"hi\"" fields "}}"

static void read_line(const char *text, struct batch_line *line)
{
    struct fault fault = {0};
    if (batch_line_parse(text, strlen(text), 12, line, &fault) != STATUS_OK)
        fail_msg("%s: %s", text, fault.err.message);
}

static void test_batch_line_reads_an_openai_line(void **state)
{
    (void)state;
    struct batch_line line;
    read_line(TEXT_LINE(", \"model\": \"m\", \"stream\": false, \"best_of\": 1"), &line);
    assert_string_equal(line.custom_id, "a");
    assert_false(line.body.is_chat);
    assert_int_equal(line.body.n_prompts, 1);
    assert_string_equal(line.body.prompts[0].text, "hi");
    batch_line_clear(&line);
    read_line("{\"custom_id\": \"b\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", "
              "\"body\": {\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}}",
              &line);
    assert_true(line.body.is_chat);
    assert_string_equal(line.body.messages[0].content, "hi");
    batch_line_clear(&line);
}

static void test_batch_line_reads_a_plain_line(void **state)
{
    (void)state;
    struct batch_line line;
    read_line("{\"prompt\": \"x\", \"answer\": 5, \"level\": [1], \"max_tokens\": 3}", &line);
    assert_string_equal(line.custom_id, "line-12");
    assert_int_equal(line.body.fields.max_tokens, 3);
    batch_line_clear(&line);
    read_line("{\"custom_id\": \"mine\", \"prompt\": [1, 2, 3], \"temperature\": null}", &line);
    assert_string_equal(line.custom_id, "mine");
    assert_int_equal(line.body.prompts[0].n_ids, 3);
    batch_line_clear(&line);
    read_line("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}", &line);
    assert_true(line.body.is_chat);
    batch_line_clear(&line);
}

struct bad_case {
    const char *text, *custom_id, *message;
};

static const struct bad_case bad_cases[] = {
    {"", "line-12", "the line is empty, expected a JSON object"},
    {"[1]", "line-12", "the line holds a JSON array, expected an object"},
    {"{}", "line-12", "prompt: expected a string or a list of token ids, found nothing"},
    {"{\"prompt\": \"\"}", "line-12", "prompt: expected text that is not empty, found \"\""},
    {"{\"prompt\": []}", "line-12", "prompt: expected a string or a list of token ids, found []"},
    {"{\"prompt\": 5}", "line-12", "prompt: expected a string or a list of token ids, found 5"},
    {"{\"prompt\": [1, \"x\"]}", "line-12", "prompt[1]: expected a token id, found \"x\""},
    {"{\"prompt\": [1, -4]}", "line-12", "prompt[1]: expected a token id, found -4"},
    {"{\"prompt\": [[1], \"\"]}", "line-12",
     "prompt[1]: expected text that is not empty, found \"\""},
    {"{\"prompt\": \"x\", \"custom_id\": 5}", "line-12",
     "custom_id: expected a string of 1 to 512 bytes, found 5"},
    {"{\"prompt\": \"x\", \"messages\": []}", "line-12",
     "prompt: a chat request takes messages instead"},
    {"{\"method\": \"POST\"}", "line-12",
     "custom_id: expected a string of 1 to 512 bytes, found nothing"},
    {"{\"custom_id\": \"a\", \"method\": \"GET\"}", "a",
     "method: expected \"POST\", found \"GET\""},
    {"{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/embeddings\"}", "a",
     "url: expected \"/v1/completions\" or \"/v1/chat/completions\", found \"/v1/embeddings\""},
    {"{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\"}", "a",
     "body: expected an object, found nothing"},
    {TEXT_LINE(", \"temperature\": \"hot\""), "a",
     "temperature: expected a number from 0 to 100, found \"hot\""},
    {TEXT_LINE(", \"tools\": [{}]"), "a", "tools: this server calls no tools; leave it out"},
};

static void test_batch_line_says_what_is_wrong(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++) {
        struct batch_line line;
        struct fault fault = {0};
        const struct bad_case *c = &bad_cases[i];
        if (batch_line_parse(c->text, strlen(c->text), 12, &line, &fault) == STATUS_OK)
            fail_msg("accepted: %s", c->text);
        assert_string_equal(fault.err.message, c->message);
        assert_string_equal(line.custom_id, c->custom_id);
        assert_null(line.body.root);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_line_reads_an_openai_line),
        cmocka_unit_test(test_batch_line_reads_a_plain_line),
        cmocka_unit_test(test_batch_line_says_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
