/* config: dimensions come from the file; a wrong, missing or unsupported field is named with its
 * value. */
#include "tests/model_files.h"

#include "model/config.h"

#include <sys/stat.h>

static const char OURO[] =
    "{\"architectures\": [\"OuroForCausalLM\"], \"hidden_size\": 64, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 16,"
    " \"intermediate_size\": 192, \"vocab_size\": 49, \"rms_norm_eps\": 1e-06,"
    " \"rope_theta\": 10000.0, \"rope_scaling\": null, \"total_ut_steps\": 4,"
    " \"early_exit_threshold\": 0.5, \"max_position_embeddings\": 256, \"bos_token_id\": 0,"
    " \"eos_token_id\": [1, 2], \"tie_word_embeddings\": false, \"hidden_act\": \"silu\","
    " \"attention_bias\": false, \"use_sliding_window\": false, \"sliding_window\": 4096,"
    " \"layer_types\": [\"full_attention\", \"full_attention\"]}";

static const char LLAMA[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 64, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"intermediate_size\": 192, \"vocab_size\": 49,"
    " \"rms_norm_eps\": 1e-05, \"max_position_embeddings\": 256, \"tie_word_embeddings\": true}";

static enum status parse(const char *json, struct model_config *c, struct err *err)
{
    return config_parse(json, strlen(json), "dir/config.json", c, err);
}

static void test_config_reads_every_ouro_field(void **state)
{
    (void)state;
    struct model_config c;
    struct err err = {0};
    assert_int_equal(parse(OURO, &c, &err), STATUS_OK);
    assert_string_equal(c.architecture, "OuroForCausalLM");
    assert_true(c.has_sandwich_norms && c.has_gate && !c.is_tied);
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.d_model, 64);
    assert_int_equal(c.d_ffn, 192);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.vocab_size, 49);
    assert_int_equal(c.max_positions, 256);
    assert_int_equal(c.n_loops, 4);
    assert_true(c.rms_norm_eps == 1e-6f && c.rope_theta == 10000 && c.exit_threshold == 0.5f);
    assert_int_equal(c.bos_id, 0);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 2);
}

static void test_config_fills_what_llama_files_leave_out(void **state)
{
    (void)state;
    struct model_config c;
    struct err err = {0};
    assert_int_equal(parse(LLAMA, &c, &err), STATUS_OK);
    assert_true(!c.has_sandwich_norms && !c.has_gate && c.is_tied);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.n_loops, 1);
    assert_true(c.rope_theta == 10000 && c.exit_threshold == 1);
    assert_int_equal(c.bos_id, -1);
    assert_int_equal(c.n_eos, 0);

    char *newer = model_files_replace(
        LLAMA, "}", ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000}}");
    assert_int_equal(parse(newer, &c, &err), STATUS_OK);
    assert_true(c.rope_theta == 500000);
    free(newer);
}

/* One change to a good file, and what the answer must say. */
struct bend {
    const char *from, *to;
    enum status status;
    const char *says[2];
};

static void check_bends(const char *json, const struct bend *bends, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        struct model_config c;
        memset(&c, 0x5a, sizeof c);
        const struct model_config before = c;
        struct err err = {0};
        char *text = model_files_replace(json, bends[i].from, bends[i].to);
        enum status status = parse(text, &c, &err);
        if (status != bends[i].status)
            fail_msg("%s: status %s, message %s", bends[i].to, status_name(status), err.message);
        assert_int_equal(err.code, status);
        assert_contains(err.message, "dir/config.json");
        for (int k = 0; k < 2; k++)
            if (bends[i].says[k] != NULL)
                assert_contains(err.message, bends[i].says[k]);
        /* Outputs are written on success only. */
        assert_memory_equal(&c, &before, sizeof c);
        free(text);
    }
}

static void test_config_refuses_what_it_does_not_compute(void **state)
{
    (void)state;
    static const struct bend ouro[] = {
        {"OuroForCausalLM", "GPT2LMHeadModel", STATUS_UNSUPPORTED, {"GPT2LMHeadModel"}},
        {"sliding_window\": false",
         "sliding_window\": true",
         STATUS_UNSUPPORTED,
         {"use_sliding_window", "found true"}},
        {"\"use_sliding_window\": false,", "", STATUS_UNSUPPORTED, {"sliding_window", "4096"}},
        {"scaling\": null",
         "scaling\": {\"type\": \"yarn\"}",
         STATUS_UNSUPPORTED,
         {"rope_scaling", "yarn"}},
        {"bias\": false", "bias\": true", STATUS_UNSUPPORTED, {"attention_bias", "true"}},
        {"silu", "gelu", STATUS_UNSUPPORTED, {"hidden_act", "\"gelu\""}},
        {"[\"full_attention\"",
         "[\"sliding_attention\"",
         STATUS_UNSUPPORTED,
         {"layer_types[0]", "sliding_attention"}},
        {"\"hidden_size\"",
         "\"mlp_bias\": true, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"mlp_bias"}},
        {"\"hidden_size\"",
         "\"quantization_config\": {}, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"quantization_config"}},
        {"\"hidden_size\"",
         "\"partial_rotary_factor\": 0.5, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"partial_rotary_factor", "0.5"}},
        {"\"hidden_size\"",
         "\"rope_parameters\": {\"rope_type\": \"yarn\"}, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"rope_parameters", "yarn"}},
        {"[1, 2]", "[1,2,3,4,5,6,7,8,9]", STATUS_UNSUPPORTED, {"eos_token_id"}},
    };
    check_bends(OURO, ouro, sizeof ouro / sizeof ouro[0]);
    static const struct bend llama[] = {
        {"\"hidden_size\"",
         "\"total_ut_steps\": 4, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"total_ut_steps", "--loops"}},
        {"\"hidden_size\"",
         "\"sliding_window\": 128, \"hidden_size\"",
         STATUS_UNSUPPORTED,
         {"sliding_window", "128"}},
    };
    check_bends(LLAMA, llama, sizeof llama / sizeof llama[0]);
}

static void test_config_names_a_nonsense_value(void **state)
{
    (void)state;
    static const struct bend bends[] = {
        {"size\": 64", "size\": 0", STATUS_CORRUPT, {"hidden_size", "found 0"}},
        {"size\": 64", "size\": -64", STATUS_CORRUPT, {"hidden_size", "found -64"}},
        {"size\": 64", "size\": 64.0", STATUS_CORRUPT, {"hidden_size", "an integer"}},
        {"size\": 64", "size\": 1e300", STATUS_CORRUPT, {"hidden_size", "1e300"}},
        {"size\": 64", "size\": 9007199254740993", STATUS_CORRUPT, {"9007199254740993"}},
        {"size\": 64", "size\": 99999999999999999999999", STATUS_CORRUPT, {"not valid JSON"}},
        {"size\": 64", "size\": 1e999", STATUS_CORRUPT, {"not valid JSON"}},
        {"size\": 64", "size\": \"64\"", STATUS_CORRUPT, {"hidden_size", "\"64\""}},
        {"size\": 64", "size\": true", STATUS_CORRUPT, {"hidden_size", "true"}},
        {"\"hidden_size\": 64,", "", STATUS_CORRUPT, {"hidden_size", "missing"}},
        {"\"hidden_size\": 64,",
         "\"hidden_size\": null,",
         STATUS_CORRUPT,
         {"hidden_size", "missing"}},
        {"layers\": 2", "layers\": 513", STATUS_CORRUPT, {"num_hidden_layers", "513"}},
        {"layers\": 2", "layers\": 3", STATUS_CORRUPT, {"layer_types", "num_hidden_layers = 3"}},
        {"_heads\": 4", "_heads\": 2147483647", STATUS_CORRUPT, {"num_attention_heads"}},
        {"value_heads\": 2", "value_heads\": 3", STATUS_CORRUPT, {"3", "does not divide"}},
        {"value_heads\": 2",
         "value_heads\": 0",
         STATUS_CORRUPT,
         {"num_key_value_heads", "found 0"}},
        {"head_dim\": 16", "head_dim\": 15", STATUS_CORRUPT, {"head_dim 15 is odd"}},
        {"head_dim\": 16", "head_dim\": 0", STATUS_CORRUPT, {"head_dim", "found 0"}},
        {"vocab_size\": 49", "vocab_size\": 4294967297", STATUS_CORRUPT, {"vocab_size"}},
        {"1e-06", "0", STATUS_CORRUPT, {"rms_norm_eps", "found 0"}},
        {"1e-06", "1e-300", STATUS_CORRUPT, {"rms_norm_eps"}},
        {"1e-06", "NaN", STATUS_CORRUPT, {"not valid JSON"}},
        {"10000.0", "-1", STATUS_CORRUPT, {"rope_theta", "found -1"}},
        {"10000.0", "\"x\"", STATUS_CORRUPT, {"rope_theta", "\"x\""}},
        {"\"rope_theta\": 10000.0,", "", STATUS_CORRUPT, {"rope_theta", "missing"}},
        {"steps\": 4", "steps\": 0", STATUS_CORRUPT, {"total_ut_steps", "found 0"}},
        {"steps\": 4", "steps\": 9", STATUS_CORRUPT, {"total_ut_steps", "from 1 to 8"}},
        {"threshold\": 0.5", "threshold\": 1.5", STATUS_CORRUPT, {"early_exit_threshold", "1.5"}},
        {"threshold\": 0.5", "threshold\": -0.5", STATUS_CORRUPT, {"early_exit_threshold"}},
        {"\"bos_token_id\": 0", "\"bos_token_id\": 49", STATUS_CORRUPT, {"bos_token_id", "49"}},
        {"[1, 2]", "[1, 49]", STATUS_CORRUPT, {"eos_token_id", "found 49"}},
        {"[1, 2]", "-1", STATUS_CORRUPT, {"eos_token_id", "found -1"}},
        {"embeddings\": false", "embeddings\": 0", STATUS_CORRUPT, {"tie_word_embeddings"}},
        {"[\"OuroForCausalLM\"]", "\"OuroForCausalLM\"", STATUS_CORRUPT, {"architectures"}},
        {"[\"OuroForCausalLM\"]", "[]", STATUS_CORRUPT, {"architectures"}},
        {"\"architectures\": [\"OuroForCausalLM\"],", "", STATUS_CORRUPT, {"architectures"}},
        {"\"hidden_size\"", "\"vocab_size\": 50, \"hidden_size\"", STATUS_CORRUPT, {"uplicate"}},
    };
    check_bends(OURO, bends, sizeof bends / sizeof bends[0]);
    static const struct bend llama[] = {
        {"size\": 64", "size\": 66", STATUS_CORRUPT, {"hidden_size 66", "no head_dim"}},
    };
    check_bends(LLAMA, llama, 1);
}

static void test_config_refuses_text_that_is_not_an_object(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "{", "[1]", "3", "{} x", "not json", "\xff\xfe{}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct model_config c;
        struct err err = {0};
        assert_int_equal(parse(texts[i], &c, &err), STATUS_CORRUPT);
        assert_contains(err.message, "dir/config.json");
    }
    struct model_config c;
    assert_int_equal(config_parse("{\"a\": \"\0\"}", 10, "f", &c, NULL), STATUS_CORRUPT);

    char *deep = malloc(100000);
    assert_non_null(deep);
    memset(deep, '[', 100000);
    assert_int_equal(config_parse(deep, 100000, "f", &c, NULL), STATUS_CORRUPT);
    free(deep);
}

static void test_config_need_not_be_terminated(void **state)
{
    (void)state;
    size_t len = strlen(OURO);
    char *exact = malloc(len);
    assert_non_null(exact);
    memcpy(exact, OURO, len);
    struct model_config c;
    assert_int_equal(config_parse(exact, len, "f", &c, NULL), STATUS_OK);
    free(exact);
}

static void test_config_load_says_what_is_missing(void **state)
{
    (void)state;
    char *dir = model_files_dir();
    struct model_config c;
    struct err err = {0};
    assert_int_equal(config_load("/nonexistent/model", &c, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, "model directory /nonexistent/model does not exist");
    assert_int_equal(config_load(dir, &c, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, "/config.json does not exist");
    model_files_write(dir, "config.json", "", 0);
    assert_int_equal(config_load(dir, &c, &err), STATUS_CORRUPT);
    assert_contains(err.message, "has 0 bytes");
    model_files_write(dir, "config.json", OURO, strlen(OURO));
    assert_int_equal(config_load(dir, &c, &err), STATUS_OK);
    assert_int_equal(c.d_model, 64);

    char path[512];
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_int_equal(config_load(path, &c, &err), STATUS_NOT_FOUND);
    assert_contains(err.message, "is not a directory");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* must be refused, not waited for */
    assert_int_equal(config_load(dir, &c, &err), STATUS_IO);
    assert_contains(err.message, "not a regular file");
    model_files_remove(dir);
}

static void test_config_loops_are_limited(void **state)
{
    (void)state;
    struct model_config c;
    struct err err = {0};
    assert_int_equal(parse(OURO, &c, &err), STATUS_OK);
    assert_int_equal(config_set_loops(&c, 0, &err), STATUS_OK);
    assert_int_equal(c.n_loops, 4);
    assert_int_equal(config_set_loops(&c, 9, &err), STATUS_INVALID);
    assert_contains(err.message, "found 9");
    assert_int_equal(config_set_loops(&c, -1, &err), STATUS_INVALID);
    assert_int_equal(c.n_loops, 4);
    assert_int_equal(config_set_loops(&c, 8, &err), STATUS_OK);
    assert_int_equal(c.n_loops, 8);
}

/* The published sizes of Ouro-1.4B and Ouro-2.6B. */
static void test_config_counts_the_published_sizes(void **state)
{
    (void)state;
    struct model_config c = {.has_sandwich_norms = true,
                             .has_gate = true,
                             .n_layers = 24,
                             .d_model = 2048,
                             .d_ffn = 5632,
                             .n_heads = 16,
                             .n_kv_heads = 16,
                             .head_dim = 128,
                             .vocab_size = 49152};
    assert_true(config_count_parameters(&c) == 1434652673u);
    assert_int_equal(config_kv_bytes_per_position(&c, DTYPE_BF16), 196608);
    assert_int_equal(config_kv_bytes_per_position(&c, DTYPE_F32), 2 * 196608);
    c.n_layers = 48;
    assert_true(config_count_parameters(&c) == 2667974657u);
    c.is_tied = true;
    assert_true(config_count_parameters(&c) == 2667974657u - 49152u * 2048u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_config_reads_every_ouro_field),
        cmocka_unit_test(test_config_fills_what_llama_files_leave_out),
        cmocka_unit_test(test_config_refuses_what_it_does_not_compute),
        cmocka_unit_test(test_config_names_a_nonsense_value),
        cmocka_unit_test(test_config_refuses_text_that_is_not_an_object),
        cmocka_unit_test(test_config_need_not_be_terminated),
        cmocka_unit_test(test_config_load_says_what_is_missing),
        cmocka_unit_test(test_config_loops_are_limited),
        cmocka_unit_test(test_config_counts_the_published_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
