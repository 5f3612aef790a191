/* Sequence parameters: each range is checked, and the message names the field and what is allowed.
 */
#include "tests/unit.h"

#include "proto/sequence.h"

#include <math.h>

enum { T = 4, VOCAB = 100, POSITIONS = 50 };

static struct sequence_params good(void)
{
    struct sequence_params p;
    sequence_params_init(&p);
    p.sequence = 1;
    p.prompt_tokens = 20;
    p.max_tokens = 30;
    p.max_loops = T;
    return p;
}

static void accepted(const struct sequence_params *p)
{
    struct err err = {0};
    if (sequence_params_check(p, T, VOCAB, POSITIONS, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void refused(const struct sequence_params *p, const char *what)
{
    struct err err = {0};
    assert_int_equal(sequence_params_check(p, T, VOCAB, POSITIONS, &err), STATUS_INVALID);
    if (strstr(err.message, what) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, what);
    assert_int_equal(sequence_params_check(p, T, VOCAB, POSITIONS, NULL), STATUS_INVALID);
}

/* `change` makes a good sequence a bad one, seen in the message. */
#define REFUSED(change, what)                                                                      \
    do {                                                                                           \
        struct sequence_params p = good();                                                         \
        change;                                                                                    \
        refused(&p, what);                                                                         \
    } while (0)

#define ACCEPTED(change)                                                                           \
    do {                                                                                           \
        struct sequence_params p = good();                                                         \
        change;                                                                                    \
        accepted(&p);                                                                              \
    } while (0)

static void test_sequence_init(void **state)
{
    (void)state;
    struct sequence_params p;
    memset(&p, 0xff, sizeof p);
    sequence_params_init(&p);
    assert_int_equal(p.sequence, 0);
    assert_int_equal(p.exit_mode, EXIT_MODE_FULL);
    assert_true(p.exit_threshold == 1.0f);
    assert_int_equal(p.min_loops, 1);
    assert_int_equal(p.prefill, PREFILL_EAGER);
    assert_true(p.sampling.temperature == 0.0f && p.sampling.top_p == 1.0f &&
                p.sampling.repetition_penalty == 1.0f);
    refused(&p, "sequence is 0; ids start at 1");
    p = good();
    accepted(&p);
}

static void test_sequence_lengths(void **state)
{
    (void)state;
    REFUSED(p.prompt_tokens = 0, "prompt_tokens is 0; allowed is 1..50");
    REFUSED(p.prompt_tokens = 51, "prompt_tokens is 51");
    REFUSED(p.max_tokens = 0, "max_tokens is 0");
    REFUSED(p.max_tokens = 31, "prompt_tokens 20 + max_tokens 31 = 51; the model has 50 positions");
    REFUSED(p.max_tokens = UINT32_MAX, "= 4294967315;");
    REFUSED(p.min_tokens = 31, "min_tokens is 31; allowed is 0..30");
    ACCEPTED(p.min_tokens = 30);
    ACCEPTED(p.ring_offset = UINT32_MAX);
}

static void test_sequence_depth(void **state)
{
    (void)state;
    REFUSED(p.exit_mode = (enum exit_mode)2, "exit_mode is 2; allowed is 0..1");
    REFUSED(p.exit_threshold = 0.0f, "exit_threshold is 0; allowed is (0, 1]");
    REFUSED(p.exit_threshold = 1.5f, "exit_threshold is 1.5");
    REFUSED(p.exit_threshold = NAN, "exit_threshold is nan");
    REFUSED(p.max_loops = 0, "max_loops is 0; allowed is 1..4");
    REFUSED(p.max_loops = 5, "max_loops is 5");
    REFUSED(p.min_loops = 0, "min_loops is 0");
    REFUSED((p.max_loops = 2, p.min_loops = 3), "min_loops is 3; allowed is 1..2");
    REFUSED(p.prefill = (enum prefill_policy)2, "prefill is 2");
    ACCEPTED((p.max_loops = 1, p.min_loops = 1));
    ACCEPTED((p.exit_mode = EXIT_MODE_EXACT, p.exit_threshold = 1e-30f));
    /* A model may have more loops than a sequence has room for. */
    struct sequence_params p = good();
    p.max_loops = SEQUENCE_MAX_LOOPS + 1;
    assert_int_equal(sequence_params_check(&p, 100, VOCAB, POSITIONS, NULL), STATUS_INVALID);
}

static void test_sequence_force_exits(void **state)
{
    (void)state;
    ACCEPTED((p.n_force_exits = 4, p.force_exits[0] = 0.1f, p.force_exits[1] = 0.3f,
              p.force_exits[2] = 0.3f, p.force_exits[3] = 0.3f));
    ACCEPTED((p.n_force_exits = 1, p.force_exits[0] = 1.0f));
    REFUSED(p.n_force_exits = 5, "n_force_exits is 5; allowed is 0..4");
    REFUSED((p.n_force_exits = 2, p.force_exits[0] = 0.5f), "force_exits sum to 0.5");
    REFUSED((p.n_force_exits = 2, p.force_exits[0] = 1.5f, p.force_exits[1] = -0.5f),
            "force_exits is 1.5");
    REFUSED((p.n_force_exits = 2, p.force_exits[0] = 1.0f, p.force_exits[1] = NAN),
            "force_exits is nan");
}

static void test_sequence_ids(void **state)
{
    (void)state;
    ACCEPTED((p.n_stop_ids = SEQUENCE_MAX_STOP_IDS, p.stop_ids[31] = VOCAB - 1));
    REFUSED(p.n_stop_ids = 33, "n_stop_ids is 33; allowed is 0..32");
    REFUSED((p.n_stop_ids = 2, p.stop_ids[1] = VOCAB), "stop_ids[1] is 100; allowed is 0..99");
    REFUSED((p.n_stop_ids = 2, p.stop_ids[0] = -1), "stop_ids[0] is -1");
    REFUSED((p.sampling.n_logit_bias = 1, p.sampling.bias_ids[0] = VOCAB),
            "logit_bias id[0] is 100");
    REFUSED(p.sampling.n_logit_bias = 301, "n_logit_bias is 301");
    REFUSED(p.sampling.n_logit_bias = -1, "n_logit_bias is -1");
    REFUSED((p.sampling.n_logit_bias = 1, p.sampling.biases[0] = 101.0f),
            "logit_bias is 101; allowed is [-100, 100]");
    REFUSED((p.sampling.n_logit_bias = 1, p.sampling.biases[0] = NAN), "logit_bias is nan");
    ACCEPTED((p.sampling.n_logit_bias = 300, p.sampling.biases[299] = -100.0f));
    REFUSED(p.observe_top = VOCAB + 1, "observe_top is 101");
    ACCEPTED(p.observe_top = VOCAB);
    REFUSED(p.observe_first = p.prompt_tokens, "observe_first is");
    ACCEPTED(p.observe_first = p.prompt_tokens - 1);
    REFUSED(p.n_observe_targets = p.prompt_tokens + 1, "n_observe_targets is");
    ACCEPTED(p.n_observe_targets = p.prompt_tokens);
    REFUSED((p.observe_first = 1, p.n_observe_targets = p.prompt_tokens), "n_observe_targets is");
    REFUSED(p.observe_hidden = true, "observe_hidden is set");
    ACCEPTED((p.observe_hidden = true, p.observe_top = 1));
    ACCEPTED((p.observe_hidden = true, p.n_observe_targets = 1));
}

static void test_sequence_sampling(void **state)
{
    (void)state;
    REFUSED(p.sampling.temperature = -0.1f, "temperature is -0.1");
    REFUSED(p.sampling.temperature = NAN, "temperature is nan");
    REFUSED(p.sampling.temperature = INFINITY, "temperature is inf");
    REFUSED(p.sampling.top_k = -1, "top_k is -1");
    REFUSED(p.sampling.top_p = 0.0f, "top_p is 0; allowed is (0, 1]");
    REFUSED(p.sampling.top_p = 1.01f, "top_p is 1.01");
    REFUSED(p.sampling.min_p = -0.1f, "min_p is -0.1");
    REFUSED(p.sampling.min_p = 1.1f, "min_p is 1.1; allowed is [0, 1]");
    REFUSED(p.sampling.repetition_penalty = 0.0f, "repetition_penalty is 0");
    REFUSED(p.sampling.presence_penalty = 2.5f, "presence_penalty is 2.5; allowed is [-2, 2]");
    REFUSED(p.sampling.frequency_penalty = -INFINITY, "frequency_penalty is -inf");
    REFUSED(p.sampling.n_logprobs = 21, "n_logprobs is 21; allowed is 0..20");
    REFUSED(p.sampling.n_logprobs = -1, "n_logprobs is -1");
    ACCEPTED((p.sampling.temperature = 2.0f, p.sampling.top_k = INT32_MAX, p.sampling.top_p = 0.1f,
              p.sampling.min_p = 1.0f, p.sampling.presence_penalty = -2.0f,
              p.sampling.n_logprobs = 20, p.sampling.seed = UINT64_MAX));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sequence_init),  cmocka_unit_test(test_sequence_lengths),
        cmocka_unit_test(test_sequence_depth), cmocka_unit_test(test_sequence_force_exits),
        cmocka_unit_test(test_sequence_ids),   cmocka_unit_test(test_sequence_sampling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
