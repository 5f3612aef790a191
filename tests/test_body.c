/* Request bodies: what each field means, and the exact message for each thing that is wrong. */
#include "tests/unit.h"

#include "coordinator/body.h"

#define TEXT(fields) "{\"prompt\": \"hi\"" fields "}"
#define CHAT(fields) "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]" fields "}"

static void read_body(bool is_chat, const char *json, struct body *body)
{
    struct fault fault = {0};
    if (body_parse(is_chat, json, strlen(json), body, &fault) != STATUS_OK)
        fail_msg("%s: %s", json, fault.err.message);
}

static void test_body_reads_prompts_of_every_shape(void **state)
{
    (void)state;
    struct body body;
    read_body(false, TEXT(", \"model\": \"m\", \"user\": \"u\", \"unknown\": [1], \"top_k\": null"),
              &body);
    assert_false(body.is_chat);
    assert_int_equal(body.n_prompts, 1);
    assert_string_equal(body.prompts[0].text, "hi");
    assert_int_equal(body.prompts[0].text_bytes, 2);
    assert_string_equal(body.fields.model, "m");
    assert_int_equal(body.fields.given & ~(uint32_t)BODY_OTHER, 0);
    assert_true(body.fields.skip_special);
    body_clear(&body);
    read_body(false, "{\"prompt\": [1, 2.0, 3]}", &body);
    assert_null(body.prompts[0].text);
    assert_int_equal(body.prompts[0].n_ids, 3);
    assert_int_equal(body.prompts[0].ids[1], 2);
    body_clear(&body);
    read_body(false, "{\"prompt\": [\"x\", \"yy\"], \"n\": 3, \"best_of\": 3}", &body);
    assert_int_equal(body.n_prompts, 2);
    assert_string_equal(body.prompts[1].text, "yy");
    assert_int_equal(body_n_choices(&body), 6);
    body_clear(&body);
    read_body(false, "{\"prompt\": [[1, 2], [3]]}", &body);
    assert_int_equal(body.n_prompts, 2);
    assert_int_equal(body.prompts[0].n_ids, 2);
    assert_int_equal(body.prompts[1].ids[0], 3);
    body_clear(&body);
}

static void test_body_joins_the_text_parts_of_a_message(void **state)
{
    (void)state;
    struct body body;
    read_body(true,
              "{\"messages\": [{\"role\": \"developer\", \"content\": \"be brief\"}, "
              "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, "
              "{\"type\": \"text\", \"text\": \"bc\"}]}, {\"role\": \"assistant\", \"content\": "
              "[], \"tool_calls\": []}], \"chat_template_kwargs\": {\"enable_thinking\": true}}",
              &body);
    assert_true(body.is_chat);
    assert_int_equal(body.n_messages, 3);
    assert_string_equal(body.messages[0].role, "system");
    assert_string_equal(body.messages[0].content, "be brief");
    assert_string_equal(body.messages[1].content, "abc");
    assert_int_equal(body.messages[1].content_bytes, 3);
    assert_int_equal(body.messages[2].content_bytes, 0);
    assert_true(body.fields.enable_thinking);
    body_clear(&body);
}

static void test_body_reads_both_shapes_of_logprobs(void **state)
{
    (void)state;
    struct body body;
    read_body(false, TEXT(", \"logprobs\": 5"), &body);
    assert_true(body.fields.has_logprobs);
    assert_int_equal(body.fields.top_logprobs, 5);
    assert_false(body_wants_prompt_logprobs(&body));
    body_clear(&body);
    read_body(false, TEXT(", \"logprobs\": 0, \"echo\": true, \"max_tokens\": 0"), &body);
    assert_true(body.fields.has_logprobs && body_wants_prompt_logprobs(&body));
    assert_int_equal(body.fields.max_tokens, 0);
    body_clear(&body);
    read_body(true, CHAT(", \"logprobs\": true, \"top_logprobs\": 2.0"), &body);
    assert_true(body.fields.has_logprobs);
    assert_int_equal(body.fields.top_logprobs, 2);
    body_clear(&body);
    read_body(true, CHAT(", \"logprobs\": false"), &body);
    assert_false(body.fields.has_logprobs);
    body_clear(&body);
}

static void test_body_reads_what_a_stream_needs(void **state)
{
    (void)state;
    struct body body;
    read_body(
        true,
        CHAT(", \"stream\": true, \"stream_options\": {\"include_usage\": true, \"more\": 1}, "
             "\"loops\": {\"return_exit_loops\": true}"),
        &body);
    assert_true(body.fields.stream && body.fields.include_usage && body.fields.return_exit_loops);
    body_clear(&body);
    read_body(false, TEXT(", \"stream\": false, \"stream_options\": null"), &body);
    assert_false(body.fields.stream || body.fields.include_usage);
    body_clear(&body);
}

static void test_body_takes_fields_that_ask_for_nothing(void **state)
{
    (void)state;
    struct body body;
    read_body(
        true,
        CHAT(", \"max_tokens\": 4, \"max_completion_tokens\": 9, \"tools\": [], "
             "\"tool_choice\": \"none\", \"functions\": null, \"response_format\": "
             "{\"type\": \"text\"}, \"modalities\": [\"text\"], \"echo\": false, \"stop\": [], "
             "\"add_generation_prompt\": true, \"store\": true, \"metadata\": {\"a\": \"b\"}"),
        &body);
    assert_int_equal(body.fields.max_tokens, 9); /* the newer name wins */
    assert_int_equal(body.fields.n_stops, 0);
    assert_true(body.fields.given & BODY_STOP);
    body_clear(&body);
    read_body(false, TEXT(", \"suffix\": \"\", \"seed\": -5.0, \"stop\": \"x\""), &body);
    assert_int_equal(body.fields.seed, -5);
    assert_string_equal(body.fields.stops[0], "x");
    body_clear(&body);
}

struct bad_case {
    bool is_chat;
    const char *json, *param, *code, *message;
};

static const char value[] = "invalid_value", missing[] = "missing_required_parameter",
                  no[] = "unsupported_parameter", json_code[] = "invalid_json";

static const struct bad_case bad_cases[] = {
    {false, "", "", json_code, "the body is empty, expected a JSON object"},
    {false, "[1]", "", json_code, "the body holds a JSON array, expected an object"},
    {false, "{\"prompt\": \"\\ud800\"}", "", json_code,
     "the body is not valid JSON: line 1, column 19: invalid Unicode '\\uD800' near "
     "'\"\\ud800\"'"},
    {false, "{\"prompt\": \"a\\u0000b\"}", "", json_code,
     "the body is not valid JSON: line 1, column 21: \\u0000 is not allowed near "
     "'\"a\\u0000b\"'"},
    {false, "{\"seed\": NaN}", "", json_code,
     "the body is not valid JSON: line 1, column 12: invalid token near 'NaN'"},
    {false, "{\"seed\": 99999999999999999999}", "", json_code,
     "the body is not valid JSON: line 1, column 29: too big integer near "
     "'99999999999999999999'"},
    {false, "{\"seed\": 1, \"seed\": 2}", "", json_code,
     "the body is not valid JSON: line 1, column 18: duplicate object key near '\"seed\"'"},
    {false, "{}", "prompt", missing,
     "prompt: expected a string or a list of token ids, found nothing"},
    {false, "{\"prompt\": null}", "prompt", missing,
     "prompt: expected a string or a list of token ids, found nothing"},
    {false, "{\"prompt\": \"\"}", "prompt", value,
     "prompt: expected text that is not empty, found \"\""},
    {false, "{\"prompt\": []}", "prompt", value,
     "prompt: expected a string or a list of token ids, found []"},
    {false, "{\"prompt\": 5}", "prompt", value,
     "prompt: expected a string or a list of token ids, found 5"},
    {false, "{\"prompt\": [1, \"x\"]}", "prompt[1]", value,
     "prompt[1]: expected a token id, found \"x\""},
    {false, "{\"prompt\": [1, -4]}", "prompt[1]", value,
     "prompt[1]: expected a token id, found -4"},
    {false, "{\"prompt\": [1, 2.5]}", "prompt[1]", value,
     "prompt[1]: expected a token id, found 2.5"},
    {false, "{\"prompt\": [[1], [2, null]]}", "prompt[1][1]", value,
     "prompt[1][1]: expected a token id, found null"},
    {false, "{\"prompt\": [[1], \"\"]}", "prompt[1]", value,
     "prompt[1]: expected text that is not empty, found \"\""},
    {true, "{\"prompt\": \"x\", \"messages\": []}", "prompt", value,
     "prompt: a chat request takes messages instead"},
    {false, TEXT(", \"messages\": []"), "messages", value,
     "messages: /v1/completions takes prompt; messages go to /v1/chat/completions"},
    {false, TEXT(", \"temperature\": \"hot\""), "temperature", value,
     "temperature: expected a number from 0 to 100, found \"hot\""},
    {false, TEXT(", \"temperature\": -1"), "temperature", value,
     "temperature: expected a number from 0 to 100, found -1"},
    {false, TEXT(", \"top_p\": 0"), "top_p", value,
     "top_p: expected a number from 1e-09 to 1, found 0"},
    {false, TEXT(", \"max_tokens\": 1.5"), "max_tokens", value,
     "max_tokens: expected a whole number from 0 to 2147483647, found 1.5"},
    {false, TEXT(", \"max_tokens\": 1e300"), "max_tokens", value,
     "max_tokens: expected a whole number from 0 to 2147483647, found 1.0000000000000001e300"},
    {false, TEXT(", \"max_tokens\": 0"), "max_tokens", value,
     "max_tokens: expected a whole number from 1 to 2147483647, or 0 with \"echo\": true, found "
     "0"},
    {true, CHAT(", \"max_completion_tokens\": 0"), "max_completion_tokens", value,
     "max_completion_tokens: expected a whole number from 1 to 2147483647, found 0"},
    {false, TEXT(", \"seed\": true"), "seed", value, "seed: expected a whole number, found true"},
    {false, TEXT(", \"seed\": 1e17"), "seed", value, "seed: expected a whole number, found 1e17"},
    {false, TEXT(", \"n\": 129"), "n", value,
     "n: expected a whole number from 1 to 128, found 129"},
    {false, TEXT(", \"n\": 2, \"best_of\": 5"), "best_of", value,
     "best_of: expected the same as n, which is 2, found 5"},
    {false, TEXT(", \"model\": 1"), "model", value, "model: expected a string, found 1"},
    {false, TEXT(", \"stream\": \"no\""), "stream", value,
     "stream: expected true or false, found \"no\""},
    {false, TEXT(", \"stream_options\": {}"), "stream_options", value,
     "stream_options: expected \"stream\": true beside it, found {}"},
    {false, TEXT(", \"stream\": true, \"stream_options\": {\"include_usage\": 1}"),
     "stream_options.include_usage", value,
     "stream_options.include_usage: expected true or false, found 1"},
    {false, TEXT(", \"stop\": [\"\"]"), "stop", value,
     "stop: expected a string of 1 to 256 bytes, or a list of at most 16 of them, found \"\""},
    {false, TEXT(", \"stop\": 3"), "stop", value,
     "stop: expected a string of 1 to 256 bytes, or a list of at most 16 of them, found 3"},
    {false, TEXT(", \"stop_token_ids\": [\"x\"]"), "stop_token_ids[0]", value,
     "stop_token_ids[0]: expected a token id, found \"x\""},
    {false, TEXT(", \"stop_token_ids\": 1"), "stop_token_ids", value,
     "stop_token_ids: expected a list of at most 32 token ids, found 1"},
    {false, TEXT(", \"logit_bias\": {\"x\": 1}"), "logit_bias", value,
     "logit_bias: expected token ids as keys, found \"x\""},
    {false, TEXT(", \"logit_bias\": {\"04\": 1}"), "logit_bias", value,
     "logit_bias: expected token ids as keys, found \"04\""},
    {false, TEXT(", \"logit_bias\": {\"4\": 101}"), "logit_bias.4", value,
     "logit_bias.4: expected a number from -100 to 100, found 101"},
    {false, TEXT(", \"logit_bias\": []"), "logit_bias", value,
     "logit_bias: expected an object of at most 300 entries \"token id\": number, found []"},
    {false, TEXT(", \"logprobs\": true"), "logprobs", value,
     "logprobs: expected a whole number from 0 to 20, found true"},
    {true, CHAT(", \"logprobs\": 3"), "logprobs", value,
     "logprobs: expected true or false, found 3"},
    {true, CHAT(", \"top_logprobs\": 3"), "top_logprobs", missing,
     "top_logprobs: expected \"logprobs\": true beside it, found nothing"},
    {true, CHAT(", \"logprobs\": true, \"top_logprobs\": 21"), "top_logprobs", value,
     "top_logprobs: expected a whole number from 0 to 20, found 21"},
    {false, TEXT(", \"loops\": 4"), "loops", value,
     "loops: expected an object such as {\"mode\": \"exact\"}, found 4"},
    {false, TEXT(", \"loops\": {\"mode\": \"verify\"}"), "loops.mode", value,
     "loops.mode: expected \"full\" or \"exact\", found \"verify\""},
    {false, TEXT(", \"loops\": {\"max\": 9}"), "loops.max", value,
     "loops.max: expected a whole number from 1 to 8, found 9"},
    {false, TEXT(", \"loops\": {\"exit_threshold\": 0}"), "loops.exit_threshold", value,
     "loops.exit_threshold: expected a number from 1e-09 to 1, found 0"},
    {true, "{}", "messages", missing,
     "messages: expected a list of messages that is not empty, found nothing"},
    {true, "{\"messages\": []}", "messages", value,
     "messages: expected a list of messages that is not empty, found []"},
    {true, "{\"messages\": [1]}", "messages[0]", value,
     "messages[0]: expected an object with role and content, found 1"},
    {true, "{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", "messages[0].role", value,
     "messages[0].role: expected \"system\", \"developer\", \"user\" or \"assistant\", found "
     "\"tool\""},
    {true, "{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content", missing,
     "messages[0].content: expected a string or a list of text parts, found nothing"},
    {true, "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
     "messages[0].content[0]", value,
     "messages[0].content[0]: expected {\"type\": \"text\", \"text\": ...}, found "
     "{\"type\":\"image_url\"}"},
    {true, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [1]}]}",
     "messages[0].tool_calls", no,
     "messages[0].tool_calls: this server calls no tools; send the conversation as text"},
    {true, CHAT(", \"chat_template_kwargs\": 1"), "chat_template_kwargs", value,
     "chat_template_kwargs: expected an object, found 1"},
    {true, CHAT(", \"tools\": [{\"type\": \"function\"}]"), "tools", no,
     "tools: this server calls no tools; leave it out"},
    {true, CHAT(", \"tool_choice\": \"required\""), "tool_choice", no,
     "tool_choice: this server calls no tools; leave it out"},
    {true, CHAT(", \"response_format\": {\"type\": \"json_object\"}"), "response_format", no,
     "response_format: answers are plain text here, no grammar or schema binds them; leave it out"},
    {true, CHAT(", \"modalities\": [\"text\", \"audio\"]"), "modalities", no,
     "modalities: this server reads and writes text only; leave it out"},
    {true, CHAT(", \"echo\": true"), "echo", no,
     "echo: only /v1/completions gives the prompt back; leave it out"},
    {false, TEXT(", \"suffix\": \"end\""), "suffix", no,
     "suffix: this server does not do that; leave it out"},
};

static void test_body_says_what_is_wrong(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++) {
        const struct bad_case *c = &bad_cases[i];
        struct body body;
        struct fault fault = {0};
        enum status status = body_parse(c->is_chat, c->json, strlen(c->json), &body, &fault);
        if (status == STATUS_OK)
            fail_msg("accepted: %s", c->json);
        assert_string_equal(fault.err.message, c->message);
        assert_string_equal(fault.param, c->param);
        assert_string_equal(fault.code, c->code);
        assert_string_equal(fault.type, "invalid_request_error");
        assert_int_equal(fault.http_status, 400);
        assert_int_equal(fault.err.code, status);
        assert_null(body.root);
    }
}

static void test_body_refuses_more_choices_than_it_can_hold(void **state)
{
    (void)state;
    enum { N = 40 };
    char text[N * 8 + 64];
    size_t at = (size_t)snprintf(text, sizeof text, "{\"n\": 128, \"prompt\": [\"x\"");
    for (int i = 1; i < N; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, ", \"x\"");
    snprintf(text + at, sizeof text - at, "]}");
    struct body body;
    struct fault fault = {0};
    assert_int_equal(body_parse(false, text, strlen(text), &body, &fault), STATUS_INVALID);
    assert_string_equal(fault.err.message,
                        "prompt: 40 prompts with n = 128 are 5120 choices, accepted are 4096 in "
                        "one request");
}

static void test_body_refuses_nesting_without_end(void **state)
{
    (void)state;
    enum { DEPTH = 100000 };
    char *text = malloc(DEPTH + 16);
    assert_non_null(text);
    size_t at = (size_t)sprintf(text, "{\"prompt\": ");
    memset(text + at, '[', DEPTH);
    struct body body;
    struct fault fault = {0};
    assert_int_equal(body_parse(false, text, at + DEPTH, &body, &fault), STATUS_CORRUPT);
    assert_non_null(strstr(fault.err.message, "maximum parsing depth reached"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_body_reads_prompts_of_every_shape),
        cmocka_unit_test(test_body_joins_the_text_parts_of_a_message),
        cmocka_unit_test(test_body_reads_both_shapes_of_logprobs),
        cmocka_unit_test(test_body_reads_what_a_stream_needs),
        cmocka_unit_test(test_body_takes_fields_that_ask_for_nothing),
        cmocka_unit_test(test_body_says_what_is_wrong),
        cmocka_unit_test(test_body_refuses_more_choices_than_it_can_hold),
        cmocka_unit_test(test_body_refuses_nesting_without_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
