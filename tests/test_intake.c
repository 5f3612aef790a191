/* intake: orders become jobs with complete parameters or faults, in order, on another thread. */
#include "tests/unit.h"

#include "coordinator/intake.h"
#include "model/checkpoint.h"
#include "tests/tokenizer_fixture.h"

#include <semaphore.h>

static const struct checkpoint checkpoint = {
    .config = {.vocab_size = 300, .max_positions = 64, .n_loops = 4}};

static struct intake_config config_of(const struct tokenizer *tokenizer)
{
    struct intake_config c = {.checkpoint = &checkpoint,
                              .tokenizer = tokenizer,
                              .model_dir = "the model",
                              .default_max_tokens = 16,
                              .has_seed = true};
    sequence_params_init(&c.defaults);
    c.defaults.max_loops = 4;
    c.defaults.exit_mode = EXIT_MODE_EXACT;
    c.defaults.exit_threshold = 0.5f;
    c.defaults.sampling.temperature = 1.0f;
    c.defaults.sampling.seed = 77;
    c.defaults.n_stop_ids = 1;
    c.defaults.stop_ids[0] = 2;
    return c;
}

static struct intake_order *order_of(bool is_chat, const char *json, const char *loops)
{
    struct intake_order *order = calloc(1, sizeof *order);
    assert_non_null(order);
    order->is_chat = is_chat;
    order->json = strdup(json);
    order->len_bytes = strlen(json);
    order->loops_json = loops != NULL ? strdup(loops) : NULL;
    return order;
}

static struct intake_order *read_order(const struct intake_config *c, bool is_chat,
                                       const char *json, const char *loops)
{
    struct intake_order *order = order_of(is_chat, json, loops);
    intake_read(c, order);
    assert_true((order->fault.err.code == STATUS_OK) == (order->job != NULL));
    assert_null(order->json);
    return order;
}

#define HELLO "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]"

static void test_intake_fills_in_the_servers_defaults(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    struct intake_order *o = read_order(&c, false, "{\"prompt\": \"abcd\", \"n\": 3}", NULL);
    assert_int_equal(o->job->n_choices, 3);
    assert_int_equal(o->job->params.max_tokens, 16);
    assert_int_equal(o->job->params.prompt_tokens, 4);
    assert_int_equal(o->job->params.sampling.seed, 77);
    assert_float_equal(o->job->params.exit_threshold, 0.5, 0);
    assert_int_equal(o->job->params.n_stop_ids, 1);
    intake_order_free(o);
    /* Near the context's end the default gives way; a chat gets all that is left. */
    char json[256] = "{\"prompt\": \"";
    memset(json + strlen(json), 'x', 60);
    strcat(json, "\"}");
    o = read_order(&c, false, json, NULL);
    assert_int_equal(o->job->params.max_tokens, 4);
    intake_order_free(o);
    o = read_order(&c, true, HELLO "}", NULL);
    assert_int_equal(o->job->params.prompt_tokens + o->job->params.max_tokens, 64);
    intake_order_free(o);
    o = read_order(&c, false, "{\"prompt\": \"ab\", \"ignore_eos\": true, \"stop_token_ids\": [9]}",
                   NULL);
    assert_int_equal(o->job->params.n_stop_ids, 1);
    assert_int_equal(o->job->params.stop_ids[0], 9);
    intake_order_free(o);
    tokenizer_free(tokenizer);
}

static void test_intake_asks_for_the_rows_of_an_echo_with_logprobs(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    c.defaults.prefill = PREFILL_LAZY;
    struct intake_order *o = read_order(
        &c, false, "{\"prompt\": \"abcd\", \"echo\": true, \"logprobs\": 3, \"max_tokens\": 0}",
        NULL);
    assert_int_equal(o->job->params.max_tokens, 1);
    assert_int_equal(o->job->params.n_observe_targets, 3);
    assert_int_equal(o->job->params.observe_first, 0);
    assert_int_equal(o->job->params.observe_top, 3);
    assert_int_equal(o->job->params.prefill, PREFILL_EAGER);
    assert_int_equal(o->job->params.sampling.n_logprobs, 3);
    intake_order_free(o);
    tokenizer_free(tokenizer);
}

/* An answer of gigabytes is refused before anything is computed for it. */
static void test_intake_bounds_the_log_probabilities_of_an_answer(void **state)
{
    (void)state;
    static const struct checkpoint large = {
        .config = {.vocab_size = 300, .max_positions = 65536, .n_loops = 4}};
    static const struct {
        const char *json;
        bool is_taken;
    } cases[] = {
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"logprobs\": 20}", true},
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"logprobs\": 20, \"n\": 2}", false},
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"n\": 128}", true},
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"logprobs\": 0, \"n\": 10}", true},
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"logprobs\": 0, \"n\": 11}", false},
        {"{\"prompt\": [1], \"max_tokens\": 65000, \"logprobs\": 20, \"n\": 2, \"stream\": true}",
         true},
    };
    struct intake_config c = config_of(NULL);
    c.checkpoint = &large;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct intake_order *o = read_order(&c, false, cases[i].json, NULL);
        assert_int_equal(o->job != NULL, cases[i].is_taken);
        if (!cases[i].is_taken)
            assert_string_equal(o->fault.param, "logprobs");
        intake_order_free(o);
    }
}

static void test_intake_puts_the_headers_loops_over_the_bodys(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    struct intake_order *o =
        read_order(&c, false, "{\"prompt\": \"ab\", \"loops\": {\"max\": 2, \"min\": 2}}",
                   "{\"max\": 3, \"return_exit_loops\": true}");
    assert_int_equal(o->job->params.max_loops, 3);
    assert_int_equal(o->job->params.min_loops, 2);
    assert_true(o->job->body.fields.return_exit_loops);
    intake_order_free(o);
    o = read_order(&c, false, "{\"prompt\": \"ab\", \"loops\": null}", "{\"mode\": \"full\"}");
    assert_int_equal(o->job->params.exit_mode, EXIT_MODE_FULL);
    intake_order_free(o);
    o = read_order(&c, false, "{\"prompt\": \"ab\", \"loops\": 7}", "{\"max\": 3}");
    assert_string_equal(o->fault.param, "loops");
    intake_order_free(o);
    o = read_order(&c, false, "{\"prompt\": \"ab\"}", "{\"max\": 99}");
    assert_string_equal(o->fault.param, "loops.max");
    intake_order_free(o);
    tokenizer_free(tokenizer);
}

static void test_intake_draws_a_seed_for_each_request_that_gives_none(void **state)
{
    (void)state;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    c.has_seed = false;
    struct intake_order *a = read_order(&c, false, "{\"prompt\": \"ab\"}", NULL);
    struct intake_order *b = read_order(&c, false, "{\"prompt\": \"ab\"}", NULL);
    struct intake_order *given = read_order(&c, false, "{\"prompt\": \"ab\", \"seed\": 5}", NULL);
    assert_true(a->job->params.sampling.seed != b->job->params.sampling.seed);
    assert_int_equal(given->job->params.sampling.seed, 5);
    intake_order_free(a);
    intake_order_free(b);
    intake_order_free(given);
    tokenizer_free(tokenizer);
}

static void test_intake_says_what_does_not_fit_the_model(void **state)
{
    (void)state;
    static const struct {
        bool is_chat;
        const char *json, *param, *code, *message;
    } table[] = {
        {false, "{\"prompt\": \"abcd\", \"max_tokens\": 61}", "prompt", "context_length_exceeded",
         "this model's context is 64 tokens; the prompt has 4 and max_tokens asks for 61"},
        {false, "{\"prompt\": [1, 300]}", "prompt", "invalid_value",
         "prompt[1]: expected a token id from 0 to 299, found 300"},
        {false, "{\"prompt\": [[1], [2, 400]]}", "prompt[1]", "invalid_value",
         "prompt[1][1]: expected a token id from 0 to 299, found 400"},
        {false, "{\"prompt\": \"ab\", \"loops\": {\"max\": 5}}", "loops.max", "invalid_value",
         "loops.max: expected at most 4, which is what this model has, found 5"},
        {false, "{\"prompt\": \"ab\", \"loops\": {\"max\": 2, \"min\": 3}}", "loops.min",
         "invalid_value", "loops.min: expected at most loops.max, which is 2, found 3"},
        {false, "{\"prompt\": \"ab\", \"max_tokens\": 2, \"min_tokens\": 3}", "min_tokens",
         "invalid_value", "min_tokens: expected at most max_tokens, which is 2, found 3"},
        {false, "{\"prompt\": \"ab\", \"logit_bias\": {\"300\": 1}}", "logit_bias", "invalid_value",
         "logit_bias: expected token ids from 0 to 299, found 300"},
        {false, "{\"prompt\": \"ab\", \"stop_token_ids\": [300]}", "stop_token_ids",
         "invalid_value", "stop_token_ids: expected token ids from 0 to 299, found 300"},
        {false, "{\"prompt\": \"ab\", \"n\": 9}", "n", "invalid_value",
         "this server takes at most 8 choices in one request, prompts times n; found 9"},
        {false, "{\"prompt\": \"abcdefghijabcdefghijabcdefghijabcdefghij\"}", "prompt",
         "prompt_too_long", "this server takes prompts of at most 32 tokens, found 40"},
    };
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    c.max_choices = 8;
    c.max_prompt_tokens = 32;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct intake_order *o = read_order(&c, table[i].is_chat, table[i].json, NULL);
        if (o->job != NULL)
            fail_msg("accepted: %s", table[i].json);
        assert_string_equal(o->fault.err.message, table[i].message);
        assert_string_equal(o->fault.param, table[i].param);
        assert_string_equal(o->fault.code, table[i].code);
        assert_int_equal(o->fault.http_status, 400);
        intake_order_free(o);
    }
    c.tokenizer = NULL;
    struct intake_order *o = read_order(&c, true, HELLO "}", NULL);
    assert_string_equal(o->fault.err.message, "the model has no tokenizer.json: give the prompt as "
                                              "token ids, without stop strings");
    intake_order_free(o);
    tokenizer_free(tokenizer);
}

static void on_mail(void *user)
{
    sem_post(user);
}

static void test_intake_answers_in_order_from_its_thread(void **state)
{
    (void)state;
    enum { N = 300 };
    sem_t mail;
    struct tokenizer *tokenizer = fixture_make(&(struct fixture){0});
    struct intake_config c = config_of(tokenizer);
    struct intake *intake = NULL;
    sem_init(&mail, 0, 0);
    c.on_mail = on_mail;
    c.user = &mail;
    assert_int_equal(intake_create(&c, &intake, NULL), STATUS_OK);
    static int numbers[N];
    for (int i = 0; i < N; i++) {
        struct intake_order *order =
            order_of(false, i % 3 == 0 ? "{\"prompt\": 3}" : "{\"prompt\": \"abc\"}", NULL);
        numbers[i] = i;
        order->user = &numbers[i];
        intake_put(intake, order);
    }
    int n = 0;
    while (n < N) {
        sem_wait(&mail);
        struct intake_order *order = intake_take(intake);
        while (order != NULL) {
            struct intake_order *next = (struct intake_order *)order->mail.next;
            assert_int_equal(*(int *)order->user, n);
            assert_true((order->job == NULL) == (n % 3 == 0));
            assert_true(order->job == NULL || order->job->user == order->user);
            intake_order_free(order);
            order = next;
            n++;
        }
    }
    for (int i = 0; i < 5; i++) /* left inside, to be freed with it */
        intake_put(intake, order_of(false, "{\"prompt\": \"abc\"}", NULL));
    intake_destroy(intake);
    intake_destroy(NULL);
    sem_destroy(&mail);
    tokenizer_free(tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_intake_fills_in_the_servers_defaults),
        cmocka_unit_test(test_intake_asks_for_the_rows_of_an_echo_with_logprobs),
        cmocka_unit_test(test_intake_bounds_the_log_probabilities_of_an_answer),
        cmocka_unit_test(test_intake_puts_the_headers_loops_over_the_bodys),
        cmocka_unit_test(test_intake_draws_a_seed_for_each_request_that_gives_none),
        cmocka_unit_test(test_intake_says_what_does_not_fit_the_model),
        cmocka_unit_test(test_intake_answers_in_order_from_its_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
