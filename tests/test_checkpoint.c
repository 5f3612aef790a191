/* checkpoint: every weight is found with its exact shape; what is missing, misshapen, not finite or
 * misplaced is named with its file. */
#include "tests/tiny_checkpoint.h"

#include "model/checkpoint.h"

/* A fresh directory with the tiny Ouro model described but not yet written. */
struct fixture {
    char *dir;
    struct tiny_checkpoint m;
    struct checkpoint *c;
    struct err err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->dir = model_files_dir();
    tiny_init(&f->m, 1);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    checkpoint_close(f->c);
    model_files_remove(f->dir);
    free(f);
    return 0;
}

static enum status reopen(struct fixture *f, int n_loops)
{
    checkpoint_close(f->c);
    f->c = NULL;
    memset(&f->err, 0, sizeof f->err);
    return checkpoint_open(f->dir, n_loops, &f->c, &f->err);
}

static void expect_open_fails(struct fixture *f, enum status status, const char *const says[3])
{
    if (reopen(f, 0) != status)
        fail_msg("expected %s, message \"%s\"", status_name(status), f->err.message);
    assert_int_equal(f->err.code, status);
    assert_null(f->c);
    for (int i = 0; i < 3; i++)
        if (says[i] != NULL)
            assert_contains(f->err.message, says[i]);
}
#define SAYS(...) ((const char *const[3]){__VA_ARGS__})

static void check_weight(struct weight w, int rows, int cols)
{
    assert_non_null(w.data);
    assert_int_equal(w.rows, rows);
    assert_int_equal(w.cols, cols);
}

static void test_checkpoint_resolves_every_weight(void **state)
{
    struct fixture *f = *state;
    tiny_find(&f->m, "model.layers.0.self_attn.q_proj.weight")->dtype = "BF16";
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    const struct model_weights *w = &f->c->weights;
    assert_string_equal(f->c->dir, f->dir);
    assert_int_equal(f->c->config.n_loops, 3);
    assert_int_equal(f->c->dtype, DTYPE_BF16);
    check_weight(w->embed, 5, 6);
    check_weight(w->head, 5, 6);
    check_weight(w->norm, 1, 6);
    check_weight(w->gate, 1, 6);
    check_weight(w->gate_bias, 1, 1);
    assert_ptr_not_equal(w->head.data, w->embed.data);
    for (int i = 0; i < 2; i++) {
        const struct layer_weights *l = &w->layers[i];
        check_weight(l->norm_attention, 1, 6);
        check_weight(l->norm_attention_out, 1, 6);
        check_weight(l->norm_mlp, 1, 6);
        check_weight(l->norm_mlp_out, 1, 6);
        check_weight(l->q, 8, 6);
        check_weight(l->k, 4, 6);
        check_weight(l->v, 4, 6);
        check_weight(l->o, 6, 8);
        check_weight(l->gate, 10, 6);
        check_weight(l->up, 10, 6);
        check_weight(l->down, 6, 10);
    }
    uint64_t n = config_count_parameters(&f->c->config);
    assert_int_equal(f->c->len_bytes, 4 * n - 2 * 8 * 6); /* one q in bf16 */
    assert_int_equal(checkpoint_verify_finite(f->c, 2, &f->err), STATUS_OK);
    assert_int_equal(checkpoint_verify_finite(f->c, 0, &f->err), STATUS_INVALID);
}

static void test_checkpoint_opens_the_bundled_model(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(checkpoint_open("model/demo", 0, &f->c, &f->err), STATUS_OK);
    assert_int_equal(f->c->config.d_model, 64);
    assert_int_equal(f->c->config.n_loops, 4);
    assert_int_equal(f->c->len_bytes, 4 * 113409);
    assert_int_equal(checkpoint_verify_finite(f->c, 2, &f->err), STATUS_OK);
}

static void test_checkpoint_tied_head_is_the_embedding(void **state)
{
    struct fixture *f = *state;
    char *config =
        model_files_replace(TINY_OURO_CONFIG, "embeddings\": false", "embeddings\": true");
    tiny_remove(&f->m, "lm_head.weight");
    tiny_write(&f->m, config, f->dir);
    free(config);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_ptr_equal(f->c->weights.head.data, f->c->weights.embed.data);
    assert_int_equal(f->c->weights.head.rows, 5);
    assert_int_equal(f->c->len_bytes, 4 * config_count_parameters(&f->c->config));

    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    expect_open_fails(f, STATUS_NOT_FOUND,
                      SAYS("lm_head.weight is missing", "tie_word_embeddings"));
}

static void test_checkpoint_llama_has_no_gate(void **state)
{
    struct fixture *f = *state;
    static const char from[] = "\"total_ut_steps\": 3, ";
    char *no_loops = model_files_replace(TINY_OURO_CONFIG, from, "");
    char *config = model_files_replace(no_loops, "OuroFor", "LlamaFor");
    tiny_init(&f->m, 0);
    tiny_add(&f->m, "model.layers.0.self_attn.rotary_emb.inv_freq", 1, 1, 1);
    tiny_add(&f->m, "something.else", 2, 3, 3);
    tiny_write(&f->m, config, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_int_equal(f->c->config.n_loops, 1);
    assert_null(f->c->weights.gate.data);
    assert_null(f->c->weights.gate_bias.data);
    assert_null(f->c->weights.layers[1].norm_attention_out.data);
    assert_null(f->c->weights.layers[1].norm_mlp_out.data);
    assert_int_equal(reopen(f, 5), STATUS_OK);
    assert_int_equal(f->c->config.n_loops, 5);

    /* The same tensors called Ouro lack the gate. */
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    expect_open_fails(f, STATUS_NOT_FOUND, SAYS("model.early_exit_gate.weight is missing", f->dir));
    /* Sandwich norms under the name of Llama would be left out silently. */
    tiny_init(&f->m, 1);
    tiny_write(&f->m, config, f->dir);
    expect_open_fails(f, STATUS_UNSUPPORTED, SAYS("input_layernorm_2.weight", "another model"));
    free(config);
    free(no_loops);
}

static void test_checkpoint_missing_parts_are_named(void **state)
{
    struct fixture *f = *state;
    char *dir = f->dir;
    f->dir = (char *)"/nonexistent/model";
    expect_open_fails(f, STATUS_NOT_FOUND, SAYS("/nonexistent/model does not exist"));
    f->dir = dir;
    expect_open_fails(f, STATUS_NOT_FOUND, SAYS(f->dir, "config.json does not exist"));
    model_files_write(f->dir, "config.json", TINY_OURO_CONFIG, strlen(TINY_OURO_CONFIG));
    expect_open_fails(f, STATUS_NOT_FOUND, SAYS(f->dir, "neither model.safetensors"));
    tiny_remove(&f->m, "model.layers.1.mlp.up_proj.weight");
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    expect_open_fails(f, STATUS_NOT_FOUND,
                      SAYS("tensor model.layers.1.mlp.up_proj.weight is missing from", f->dir,
                           "/model.safetensors"));
}

static void test_checkpoint_every_wrong_shape_is_named(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < f->m.n; i++) {
        struct tiny_tensor *t = &f->m.tensors[i];
        for (int k = 0; k < t->rank; k++) {
            t->shape[k]++;
            tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
            expect_open_fails(f, STATUS_CORRUPT, SAYS(t->name, "/model.safetensors: expected ["));
            t->shape[k]--;
        }
    }
    struct tiny_tensor *up = tiny_find(&f->m, "model.layers.1.mlp.up_proj.weight");
    up->shape[1] = 5;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    expect_open_fails(f, STATUS_CORRUPT, SAYS("expected [10, 6], found [10, 5]"));
    up->rank = 1;
    up->shape[0] = 60;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    expect_open_fails(f, STATUS_CORRUPT, SAYS("expected [10, 6], found [60]"));
}

static void test_checkpoint_refuses_tensors_it_would_ignore(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *name;
        enum status status;
    } extra[] = {
        {"model.layers.0.self_attn.q_proj.bias", STATUS_UNSUPPORTED},
        {"model.layers.1.self_attn.q_norm.weight", STATUS_UNSUPPORTED},
        {"model.layers.2.self_attn.q_proj.weight", STATUS_CORRUPT},
    };
    for (size_t i = 0; i < sizeof extra / sizeof extra[0]; i++) {
        tiny_init(&f->m, 1);
        tiny_add(&f->m, extra[i].name, 1, 1, 6);
        tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
        expect_open_fails(f, extra[i].status, SAYS(extra[i].name, f->dir));
    }
}

static void test_checkpoint_truncated_data_is_named(void **state)
{
    struct fixture *f = *state;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", f->dir);
    assert_int_equal(truncate(path, 3000), 0);
    expect_open_fails(f, STATUS_CORRUPT, SAYS("/model.safetensors", "truncated", "tensor "));
}

static void test_checkpoint_verify_names_tensor_and_element(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *dtype;
        uint32_t bits;
        const char *says;
    } bad[] = {
        {"F32", 0x7fc00000, "is nan"}, {"F32", 0xff800000, "is -inf"}, {"F32", 0x7f800001, "nan"},
        {"BF16", 0x7f80, "is inf"},    {"BF16", 0xffc0, "nan"},        {"F16", 0x7c00, "is inf"},
        {"F16", 0xfe00, "nan"},
    };
    static const char name[] = "model.layers.1.mlp.down_proj.weight";
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (int element = 0; element < 60; element += 59) {
            struct tiny_tensor *t = tiny_find(&f->m, name);
            t->dtype = bad[i].dtype;
            t->bad_element = element;
            t->bad_bits = bad[i].bits;
            tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
            assert_int_equal(reopen(f, 0), STATUS_OK);
            for (int n_threads = 1; n_threads <= 3; n_threads++) {
                char says[160];
                snprintf(says, sizeof says, "tensor %s in %s/model.safetensors: element %d ", name,
                         f->dir, element);
                assert_int_equal(checkpoint_verify_finite(f->c, n_threads, &f->err),
                                 STATUS_CORRUPT);
                assert_contains(f->err.message, says);
                assert_contains(f->err.message, bad[i].says);
            }
        }
    }
    /* The largest finite values of each type pass. */
    struct tiny_tensor *t = tiny_find(&f->m, name);
    t->dtype = "F16";
    t->bad_bits = 0xfbff;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_int_equal(checkpoint_verify_finite(f->c, 1, &f->err), STATUS_OK);
}

/* A matrix of several turns of the scan, two bad tensors: the first in order of name is told,
 * however many threads look. */
static void test_checkpoint_verify_names_the_first_of_many(void **state)
{
    struct fixture *f = *state;
    char *config = model_files_replace(TINY_OURO_CONFIG, "vocab_size\": 5", "vocab_size\": 90000");
    struct tiny_tensor *embed = tiny_find(&f->m, "model.embed_tokens.weight");
    struct tiny_tensor *norm = tiny_find(&f->m, "model.norm.weight");
    embed->shape[0] = tiny_find(&f->m, "lm_head.weight")->shape[0] = 90000;
    embed->bad_element = 300001;
    norm->bad_element = 2;
    embed->bad_bits = norm->bad_bits = 0x7fc00000;
    tiny_write(&f->m, config, f->dir);
    free(config);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        assert_int_equal(checkpoint_verify_finite(f->c, n_threads, &f->err), STATUS_CORRUPT);
        assert_contains(f->err.message, "tensor model.embed_tokens.weight");
        assert_contains(f->err.message, "element 300001 is nan");
    }
}

/* Three shards, as large checkpoints come. */
static void write_shards(struct fixture *f, const char *from, const char *to)
{
    char *index = calloc(1, TINY_BYTES);
    assert_non_null(index);
    size_t used = (size_t)snprintf(index, TINY_BYTES, "{\"metadata\": {}, \"weight_map\": {");
    for (int s = 0; s < 3; s++) {
        char file[64];
        int first = f->m.n * s / 3, last = f->m.n * (s + 1) / 3;
        snprintf(file, sizeof file, "model-%05d-of-00003.safetensors", s + 1);
        tiny_write_part(&f->m, first, last, f->dir, file);
        for (int i = first; i < last; i++)
            used += (size_t)snprintf(index + used, TINY_BYTES - used, "%s\"%s\": \"%s\"",
                                     i > 0 ? ", " : "", f->m.tensors[i].name, file);
    }
    strcat(index, "}}");
    char *bent = model_files_replace(index, from, to);
    model_files_write(f->dir, "config.json", TINY_OURO_CONFIG, strlen(TINY_OURO_CONFIG));
    model_files_write(f->dir, "model.safetensors.index.json", bent, strlen(bent));
    free(bent);
    free(index);
}

static void test_checkpoint_opens_shards(void **state)
{
    struct fixture *f = *state;
    struct tiny_tensor *t = tiny_find(&f->m, "model.layers.1.self_attn.o_proj.weight");
    t->bad_element = 7;
    t->bad_bits = 0x7f800000;
    write_shards(f, "{", "{");
    assert_int_equal(reopen(f, 0), STATUS_OK);
    check_weight(f->c->weights.layers[1].down, 6, 10);
    assert_int_equal(f->c->len_bytes, 4 * config_count_parameters(&f->c->config));
    assert_int_equal(checkpoint_verify_finite(f->c, 2, &f->err), STATUS_CORRUPT);
    assert_contains(f->err.message, "o_proj.weight in");
    assert_contains(f->err.message, "model-00003-of-00003.safetensors: element 7 is inf");
}

static void test_checkpoint_bad_index_is_named(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *from, *to;
        enum status status;
        const char *says[3];
    } bends[] = {
        {"model-00001-of",
         "model-00009-of",
         STATUS_NOT_FOUND,
         {"model-00009-of-00003.safetensors does not exist", "model.embed_tokens.weight"}},
        {"model-00001-of",
         "model-00002-of",
         STATUS_CORRUPT,
         {"tensor model.embed_tokens.weight is not in", "model-00002-of-00003.safetensors"}},
        {"\"model-00001-of-00003.safetensors\"",
         "\"../model.safetensors\"",
         STATUS_CORRUPT,
         {"weight_map", "../model.safetensors"}},
        {"\"model-00001-of-00003.safetensors\"", "\"/etc/passwd\"", STATUS_CORRUPT, {"weight_map"}},
        {"\"model-00001-of-00003.safetensors\"", "\"\"", STATUS_CORRUPT, {"weight_map"}},
        {"\"model-00001-of-00003.safetensors\"", "1", STATUS_CORRUPT, {"weight_map", "found 1"}},
        {"\"model-00001-of-00003.safetensors\"",
         "\"config.json\"",
         STATUS_CORRUPT,
         {"config.json"}},
        {"\"model.embed_tokens.weight\"", "\"a\\nb\"", STATUS_CORRUPT, {"weight_map"}},
        {"\"model.norm.weight\": \"model-00001-of-00003.safetensors\", ",
         "",
         STATUS_NOT_FOUND,
         {"tensor model.norm.weight is missing from", "index.json"}},
        {"\"weight_map\"", "\"weight_mop\"", STATUS_CORRUPT, {"weight_map", "found nothing"}},
        {"\"model.norm.weight\"", "\"model.embed_tokens.weight\"", STATUS_CORRUPT, {"uplicate"}},
        {"{\"metadata\"", "{{\"metadata\"", STATUS_CORRUPT, {"index.json is not valid JSON"}},
    };
    for (size_t i = 0; i < sizeof bends / sizeof bends[0]; i++) {
        write_shards(f, bends[i].from, bends[i].to);
        expect_open_fails(f, bends[i].status, bends[i].says);
    }
}

/* Equal files give equal fingerprints; one bit of what ranks must share gives another. */
static void test_checkpoint_fingerprint_tells_models_apart(void **state)
{
    struct fixture *f = *state;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    const uint64_t plain = f->c->fingerprint;
    assert_int_equal(reopen(f, 3), STATUS_OK);
    assert_true(f->c->fingerprint == plain);
    assert_int_equal(reopen(f, 2), STATUS_OK);
    assert_true(f->c->fingerprint != plain);

    tiny_find(&f->m, "model.layers.0.mlp.up_proj.weight")->bad_element = 0;
    tiny_find(&f->m, "model.layers.0.mlp.up_proj.weight")->bad_bits = 0x3f000001;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_true(f->c->fingerprint != plain);

    tiny_init(&f->m, 1);
    char *config = model_files_replace(TINY_OURO_CONFIG, "1e-06", "1e-05");
    tiny_write(&f->m, config, f->dir);
    free(config);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_true(f->c->fingerprint != plain);

    struct tiny_tensor first = f->m.tensors[0];
    f->m.tensors[0] = f->m.tensors[2];
    f->m.tensors[2] = first; /* embed and head change places in the file: other offsets */
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_true(f->c->fingerprint != plain);

    tiny_init(&f->m, 1);
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 0), STATUS_OK);
    assert_true(f->c->fingerprint == plain);
}

static void test_checkpoint_loops_out_of_range(void **state)
{
    struct fixture *f = *state;
    tiny_write(&f->m, TINY_OURO_CONFIG, f->dir);
    assert_int_equal(reopen(f, 9), STATUS_INVALID);
    assert_null(f->c);
    assert_contains(f->err.message, "found 9");
    assert_int_equal(reopen(f, -1), STATUS_INVALID);
    assert_int_equal(reopen(f, 8), STATUS_OK);
    assert_int_equal(f->c->config.n_loops, 8);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_checkpoint_resolves_every_weight),
        TEST(test_checkpoint_opens_the_bundled_model),
        TEST(test_checkpoint_tied_head_is_the_embedding),
        TEST(test_checkpoint_llama_has_no_gate),
        TEST(test_checkpoint_missing_parts_are_named),
        TEST(test_checkpoint_every_wrong_shape_is_named),
        TEST(test_checkpoint_refuses_tensors_it_would_ignore),
        TEST(test_checkpoint_truncated_data_is_named),
        TEST(test_checkpoint_verify_names_tensor_and_element),
        TEST(test_checkpoint_verify_names_the_first_of_many),
        TEST(test_checkpoint_opens_shards),
        TEST(test_checkpoint_bad_index_is_named),
        TEST(test_checkpoint_fingerprint_tells_models_apart),
        TEST(test_checkpoint_loops_out_of_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
