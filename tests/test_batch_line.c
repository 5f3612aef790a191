/* Batch lines: what each field means, and the exact message for each thing that is wrong. */
#include "tests/unit.h"

#include "cli/batch_line.h"

#define TEXT_LINE(fields)                                                                          \
    "{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": "        \
    "{\"prompt\": \"hi\"" fields "}}"
#define CHAT_LINE(fields)                                                                          \
    "{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": "   \
    "{" fields "}}"
#define HELLO "\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]"

static void read_line(const char *text, struct batch_line *line)
{
    struct err err = {0};
    if (batch_line_parse(text, strlen(text), 12, line, &err) != STATUS_OK)
        fail_msg("%s: %s", text, err.message);
}

static void default_params(struct sequence_params *p)
{
    sequence_params_init(p);
    p->max_tokens = 128;
    p->max_loops = 4;
    p->exit_mode = EXIT_MODE_EXACT;
    p->sampling.seed = 7;
    p->n_stop_ids = 1;
    p->stop_ids[0] = 1;
}

static void test_batch_line_reads_an_openai_line(void **state)
{
    (void)state;
    struct batch_line line;
    read_line(TEXT_LINE(", \"model\": \"m\", \"user\": \"u\", \"stream\": false, \"best_of\": 3"),
              &line);
    assert_string_equal(line.custom_id, "a");
    assert_false(line.is_chat);
    assert_int_equal(line.n_prompts, 1);
    assert_string_equal(line.prompts[0].text, "hi");
    assert_int_equal(line.prompts[0].text_bytes, 2);
    assert_int_equal(line.fields.given & ~(uint32_t)BATCH_OTHER, 0);
    assert_int_equal(batch_line_n_choices(&line), 1);
    assert_true(line.fields.skip_special);
    batch_line_clear(&line);
}

static void test_batch_line_reads_a_plain_line(void **state)
{
    (void)state;
    struct batch_line line;
    read_line("{\"prompt\": \"x\", \"answer\": 5, \"level\": [1], \"max_tokens\": 3}", &line);
    assert_string_equal(line.custom_id, "line-12");
    assert_int_equal(line.fields.max_tokens, 3);
    batch_line_clear(&line);
    read_line("{\"custom_id\": \"mine\", \"prompt\": [1, 2, 3], \"temperature\": null}", &line);
    assert_string_equal(line.custom_id, "mine");
    assert_int_equal(line.prompts[0].n_ids, 3);
    assert_int_equal(line.prompts[0].ids[2], 3);
    assert_null(line.prompts[0].text);
    assert_int_equal(line.fields.given, 0);
    batch_line_clear(&line);
}

static void test_batch_line_counts_prompts_times_n_as_choices(void **state)
{
    (void)state;
    struct batch_line line;
    read_line("{\"prompt\": [\"x\", \"yy\"], \"n\": 3}", &line);
    assert_int_equal(line.n_prompts, 2);
    assert_string_equal(line.prompts[1].text, "yy");
    assert_int_equal(batch_line_n_choices(&line), 6);
    batch_line_clear(&line);
    read_line("{\"prompt\": [[1, 2], [3]]}", &line);
    assert_int_equal(line.n_prompts, 2);
    assert_int_equal(line.prompts[0].n_ids, 2);
    assert_int_equal(line.prompts[1].ids[0], 3);
    batch_line_clear(&line);
}

static void test_batch_line_joins_the_text_parts_of_a_message(void **state)
{
    (void)state;
    struct batch_line line;
    read_line(CHAT_LINE("\"messages\": [{\"role\": \"developer\", \"content\": \"be brief\"}, "
                        "{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, "
                        "{\"type\": \"text\", \"text\": \"bc\"}]}], \"chat_template_kwargs\": "
                        "{\"enable_thinking\": true}"),
              &line);
    assert_true(line.is_chat);
    assert_int_equal(line.n_messages, 2);
    assert_string_equal(line.messages[0].role, "system");
    assert_string_equal(line.messages[0].content, "be brief");
    assert_string_equal(line.messages[1].content, "abc");
    assert_int_equal(line.messages[1].content_bytes, 3);
    assert_true(line.fields.enable_thinking);
    batch_line_clear(&line);
}

static void test_batch_line_applies_what_it_gives_over_the_defaults(void **state)
{
    (void)state;
    struct batch_line line;
    struct sequence_params p;
    struct err err = {0};
    read_line(
        TEXT_LINE(
            ", \"max_tokens\": 5, \"min_tokens\": 2, \"temperature\": 0.5, \"top_k\": -1, "
            "\"top_p\": 0.9, \"min_p\": 0.1, \"repetition_penalty\": 1.5, "
            "\"presence_penalty\": -1, \"frequency_penalty\": 2, \"seed\": 40, \"n\": 2, "
            "\"stop_token_ids\": [1, 9], \"logit_bias\": {\"3\": -100, \"4\": 2.5}, "
            "\"logprobs\": 0, \"stop\": [\"x\", \"yz\"], \"include_stop_str_in_output\": true, "
            "\"skip_special_tokens\": false, \"return_token_ids\": true, \"ignore_eos\": true, "
            "\"loops\": {\"mode\": \"full\", \"max\": 3, \"min\": 2, \"exit_threshold\": 0.25}"),
        &line);
    default_params(&p);
    assert_int_equal(batch_line_apply(&line, 1, &p, &err), STATUS_OK);
    assert_int_equal(p.max_tokens, 5);
    assert_int_equal(p.min_tokens, 2);
    assert_float_equal(p.sampling.temperature, 0.5, 0);
    assert_int_equal(p.sampling.top_k, 0);
    assert_float_equal(p.sampling.top_p, 0.9f, 0);
    assert_float_equal(p.sampling.min_p, 0.1f, 0);
    assert_float_equal(p.sampling.repetition_penalty, 1.5, 0);
    assert_float_equal(p.sampling.presence_penalty, -1, 0);
    assert_float_equal(p.sampling.frequency_penalty, 2, 0);
    assert_int_equal(p.sampling.seed, 41); /* choice 1 of n */
    assert_int_equal(p.n_stop_ids, 2);     /* 1 was there already */
    assert_int_equal(p.stop_ids[1], 9);
    assert_int_equal(p.sampling.n_logit_bias, 2);
    assert_int_equal(p.sampling.bias_ids[1], 4);
    assert_float_equal(p.sampling.biases[1], 2.5, 0);
    assert_int_equal(p.sampling.n_logprobs, 1); /* the chosen token's own needs one */
    assert_int_equal(p.exit_mode, EXIT_MODE_FULL);
    assert_int_equal(p.max_loops, 3);
    assert_int_equal(p.min_loops, 2);
    assert_float_equal(p.exit_threshold, 0.25, 0);
    assert_int_equal(line.fields.n_stops, 2);
    assert_string_equal(line.fields.stops[1], "yz");
    assert_true(line.fields.include_stop && line.fields.return_token_ids && line.fields.ignore_eos);
    assert_false(line.fields.skip_special);
    batch_line_clear(&line);
}

static void test_batch_line_leaves_the_defaults_it_does_not_mention(void **state)
{
    (void)state;
    struct batch_line line;
    struct sequence_params p, before;
    read_line(TEXT_LINE(""), &line);
    default_params(&p);
    before = p;
    assert_int_equal(batch_line_apply(&line, 0, &p, NULL), STATUS_OK);
    assert_memory_equal(&p, &before, sizeof p);
    batch_line_clear(&line);
}

static void test_batch_line_reads_both_shapes_of_logprobs(void **state)
{
    (void)state;
    struct batch_line line;
    read_line(TEXT_LINE(", \"logprobs\": 5"), &line);
    assert_true(line.fields.has_logprobs);
    assert_int_equal(line.fields.top_logprobs, 5);
    batch_line_clear(&line);
    read_line(CHAT_LINE(HELLO ", \"logprobs\": true, \"top_logprobs\": 2"), &line);
    assert_true(line.fields.has_logprobs);
    assert_int_equal(line.fields.top_logprobs, 2);
    batch_line_clear(&line);
    read_line(CHAT_LINE(HELLO ", \"logprobs\": false"), &line);
    assert_false(line.fields.has_logprobs);
    batch_line_clear(&line);
}

static void test_batch_line_takes_the_newer_name_of_the_chat_limit(void **state)
{
    (void)state;
    struct batch_line line;
    read_line(CHAT_LINE(HELLO ", \"max_tokens\": 4, \"max_completion_tokens\": 9"), &line);
    assert_int_equal(line.fields.max_tokens, 9);
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
    {TEXT_LINE(", \"temperature\": -1"), "a",
     "temperature: expected a number from 0 to 100, found -1"},
    {TEXT_LINE(", \"max_tokens\": 1.5"), "a",
     "max_tokens: expected a whole number from 1 to 2147483647, found 1.5"},
    {TEXT_LINE(", \"max_tokens\": 0"), "a",
     "max_tokens: expected a whole number from 1 to 2147483647, found 0"},
    {TEXT_LINE(", \"seed\": true"), "a", "seed: expected a whole number, found true"},
    {TEXT_LINE(", \"n\": 129"), "a", "n: expected a whole number from 1 to 128, found 129"},
    {TEXT_LINE(", \"model\": 1"), "a", "model: expected a string, found 1"},
    {TEXT_LINE(", \"stream\": \"no\""), "a", "stream: expected true or false, found \"no\""},
    {TEXT_LINE(", \"stop\": [\"\"]"), "a",
     "stop: expected a string of 1 to 256 bytes, or a list of at most 16 of them, found \"\""},
    {TEXT_LINE(", \"stop\": 3"), "a",
     "stop: expected a string of 1 to 256 bytes, or a list of at most 16 of them, found 3"},
    {TEXT_LINE(", \"stop_token_ids\": [\"x\"]"), "a",
     "stop_token_ids[0]: expected a token id, found \"x\""},
    {TEXT_LINE(", \"stop_token_ids\": 1"), "a",
     "stop_token_ids: expected a list of at most 32 token ids, found 1"},
    {TEXT_LINE(", \"logit_bias\": {\"x\": 1}"), "a",
     "logit_bias: expected token ids as keys, found \"x\""},
    {TEXT_LINE(", \"logit_bias\": {\"4\": 101}"), "a",
     "logit_bias.4: expected a number from -100 to 100, found 101"},
    {TEXT_LINE(", \"logit_bias\": []"), "a",
     "logit_bias: expected an object of at most 300 entries \"token id\": number, found []"},
    {TEXT_LINE(", \"logprobs\": true"), "a",
     "logprobs: expected a whole number from 0 to 20, found true"},
    {TEXT_LINE(", \"echo\": true, \"logprobs\": 1"), "a",
     "echo: expected no \"logprobs\" beside it (those of prompt tokens are not computed), found "
     "true"},
    {TEXT_LINE(", \"loops\": 4"), "a",
     "loops: expected an object such as {\"mode\": \"exact\"}, found 4"},
    {TEXT_LINE(", \"loops\": {\"mode\": \"verify\"}"), "a",
     "loops.mode: expected \"full\" or \"exact\", found \"verify\""},
    {TEXT_LINE(", \"loops\": {\"max\": 9}"), "a",
     "loops.max: expected a whole number from 1 to 8, found 9"},
    {TEXT_LINE(", \"loops\": {\"exit_threshold\": 0}"), "a",
     "loops.exit_threshold: expected a number from 1e-09 to 1, found 0"},
    {TEXT_LINE(", \"messages\": []"), "a",
     "messages: /v1/completions takes prompt; messages go to /v1/chat/completions"},
    {CHAT_LINE("\"messages\": []"), "a",
     "messages: expected a list of messages that is not empty, found []"},
    {CHAT_LINE("\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]"), "a",
     "messages[0].role: expected \"system\", \"developer\", \"user\" or \"assistant\", found "
     "\"tool\""},
    {CHAT_LINE("\"messages\": [{\"role\": \"user\"}]"), "a",
     "messages[0].content: expected a string or a list of text parts, found nothing"},
    {CHAT_LINE("\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]"),
     "a",
     "messages[0].content[0]: expected {\"type\": \"text\", \"text\": ...}, found "
     "{\"type\":\"image_url\"}"},
    {CHAT_LINE(HELLO ", \"logprobs\": 3"), "a", "logprobs: expected true or false, found 3"},
    {CHAT_LINE(HELLO ", \"top_logprobs\": 3"), "a",
     "top_logprobs: expected \"logprobs\": true beside it, found nothing"},
    {CHAT_LINE(HELLO ", \"chat_template_kwargs\": 1"), "a",
     "chat_template_kwargs: expected an object, found 1"},
};

static void test_batch_line_says_what_is_wrong(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad_cases / sizeof bad_cases[0]; i++) {
        struct batch_line line;
        struct err err = {0};
        const struct bad_case *c = &bad_cases[i];
        if (batch_line_parse(c->text, strlen(c->text), 12, &line, &err) == STATUS_OK)
            fail_msg("accepted: %s", c->text);
        assert_string_equal(err.message, c->message);
        assert_string_equal(line.custom_id, c->custom_id);
        assert_null(line.root);
    }
}

static void test_batch_line_refuses_more_choices_than_it_can_hold(void **state)
{
    (void)state;
    enum { N = 40 };
    char text[N * 8 + 64];
    size_t at = (size_t)snprintf(text, sizeof text, "{\"n\": 128, \"prompt\": [\"x\"");
    for (int i = 1; i < N; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, ", \"x\"");
    snprintf(text + at, sizeof text - at, "]}");
    struct batch_line line;
    struct err err = {0};
    assert_int_equal(batch_line_parse(text, strlen(text), 1, &line, &err), STATUS_INVALID);
    assert_string_equal(err.message, "prompt: 40 prompts with n = 128 are 5120 choices, accepted "
                                     "are 4096 in one line");
}

static void test_batch_line_refuses_stop_ids_that_do_not_fit(void **state)
{
    (void)state;
    struct batch_line line;
    struct sequence_params p;
    struct err err = {0};
    default_params(&p);
    p.n_stop_ids = SEQUENCE_MAX_STOP_IDS;
    read_line(TEXT_LINE(", \"stop_token_ids\": [90]"), &line);
    assert_int_equal(batch_line_apply(&line, 0, &p, &err), STATUS_INVALID);
    assert_string_equal(err.message, "stop_token_ids: with the model's own there are more than 32");
    batch_line_clear(&line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_line_reads_an_openai_line),
        cmocka_unit_test(test_batch_line_reads_a_plain_line),
        cmocka_unit_test(test_batch_line_counts_prompts_times_n_as_choices),
        cmocka_unit_test(test_batch_line_joins_the_text_parts_of_a_message),
        cmocka_unit_test(test_batch_line_applies_what_it_gives_over_the_defaults),
        cmocka_unit_test(test_batch_line_leaves_the_defaults_it_does_not_mention),
        cmocka_unit_test(test_batch_line_reads_both_shapes_of_logprobs),
        cmocka_unit_test(test_batch_line_takes_the_newer_name_of_the_chat_limit),
        cmocka_unit_test(test_batch_line_says_what_is_wrong),
        cmocka_unit_test(test_batch_line_refuses_more_choices_than_it_can_hold),
        cmocka_unit_test(test_batch_line_refuses_stop_ids_that_do_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
