/* Tests train/params.c: the table tiles the array, fresh values are drawn as asked, a checkpoint's
 * weights land where their names say. */
#include "tests/unit.h"

#include "tests/tiny_model.h"
#include "train/params.h"

static const struct tiny_spec OURO = {.n_layers = 3,
                                      .d = 24,
                                      .ffn = 40,
                                      .n_heads = 4,
                                      .n_kv_heads = 2,
                                      .head_dim = 10,
                                      .vocab = 37,
                                      .n_loops = 4,
                                      .seed = 3};

static struct params *create(const struct model_config *config)
{
    struct params *p;
    struct err err;
    if (params_create(config, &p, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return p;
}

static void test_params_table_tiles_the_values(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        struct tiny_spec spec = OURO;
        spec.is_llama = variant & 1;
        spec.is_tied = variant & 2;
        struct tiny_model *m = tiny_create(&spec);
        struct params *p = create(&m->checkpoint.config);
        size_t at = 0;
        for (size_t i = 0; i < p->n_tensors; i++) {
            assert_true(p->tensors[i].offset == at);
            assert_true(params_find(p, p->tensors[i].name) == &p->tensors[i]);
            at += (size_t)p->tensors[i].rows * (size_t)p->tensors[i].cols;
        }
        assert_true(at == p->n_values);
        assert_true(p->n_values == config_count_parameters(&m->checkpoint.config));
        assert_true((uintptr_t)p->values % 64 == 0);
        assert_true((p->head == p->embed) == spec.is_tied);
        assert_true((p->gate == SIZE_MAX) == spec.is_llama);
        assert_true((p->layers[0].norm_mlp_out == SIZE_MAX) == spec.is_llama);
        for (size_t i = 0; i < p->n_values; i++)
            assert_true(p->values[i] == 0);
        params_destroy(p);
        tiny_destroy(m);
    }
    params_destroy(NULL);
}

static size_t offset_of(const struct params *p, const char *name)
{
    const struct params_tensor *t = params_find(p, name);
    if (!t)
        fail_msg("no tensor %s", name);
    return t->offset;
}

static void test_params_q_k_v_are_one_matrix(void **state)
{
    (void)state;
    struct tiny_model *m = tiny_create(&OURO);
    struct params *p = create(&m->checkpoint.config);
    size_t q = offset_of(p, "model.layers.1.self_attn.q_proj.weight");
    assert_true(p->layers[1].qkv == q);
    assert_true(offset_of(p, "model.layers.1.self_attn.k_proj.weight") == q + 40 * 24);
    assert_true(offset_of(p, "model.layers.1.self_attn.v_proj.weight") == q + 60 * 24);
    size_t gate = offset_of(p, "model.layers.2.mlp.gate_proj.weight");
    assert_true(p->layers[2].gate_up == gate);
    assert_true(offset_of(p, "model.layers.2.mlp.up_proj.weight") == gate + 40 * 24);
    assert_true(params_find(p, "model.layers.0.self_attn.q_proj.weight")->decays);
    assert_false(params_find(p, "model.norm.weight")->decays);
    assert_false(params_find(p, "model.early_exit_gate.weight")->decays);
    assert_false(params_find(p, "model.early_exit_gate.weight")->is_vector);
    assert_true(params_find(p, "model.early_exit_gate.bias")->is_vector);
    assert_int_equal(params_find(p, "model.layers.2.mlp.down_proj.weight")->layer, 2);
    assert_null(params_find(p, "model.layers.3.mlp.down_proj.weight"));
    params_destroy(p);
    tiny_destroy(m);
}

static double spread(const struct params *p, const char *name)
{
    const struct params_tensor *t = params_find(p, name);
    double sum = 0;
    int n = t->rows * t->cols;
    for (int i = 0; i < n; i++)
        sum += (double)p->values[t->offset + (size_t)i] * p->values[t->offset + (size_t)i];
    return sqrt(sum / n);
}

static void test_params_draw_has_the_asked_spread(void **state)
{
    (void)state;
    struct tiny_model *m = tiny_create(&OURO);
    struct params *p = create(&m->checkpoint.config), *again = create(&m->checkpoint.config);
    struct params_init init;
    params_init_defaults(&init);
    params_draw(p, &init, 5);
    params_draw(again, &init, 5);
    assert_memory_equal(p->values, again->values, p->n_values * sizeof(float));
    params_draw(again, &init, 6);
    assert_true(p->values[0] != again->values[0]);
    /* 888 values: the spread of the spread is 1 / sqrt(2 * 888) = 2.4 %. */
    assert_true(fabs(spread(p, "model.embed_tokens.weight") - 1) < 0.1);
    assert_true(fabs(spread(p, "lm_head.weight") - 0.02) < 0.002);
    assert_true(fabs(spread(p, "model.layers.0.mlp.up_proj.weight") * sqrt(24) - 1) < 0.1);
    assert_true(fabs(spread(p, "model.layers.0.mlp.down_proj.weight") * sqrt(40) - 1) < 0.1);
    assert_true(p->values[p->layers[2].norm_mlp] == 1);
    assert_true(p->values[p->layers[2].norm_mlp_out] == 0.5f);
    assert_true(p->values[p->layers[2].norm_attention_out + 23] == 0.5f);
    assert_true(p->values[p->norm + 23] == 1);
    assert_true(p->values[p->gate] == 0 && p->values[p->gate_bias] == 0);
    init.matrix_std = 0.1f;
    params_draw(p, &init, 5);
    assert_true(fabs(spread(p, "model.layers.0.mlp.down_proj.weight") - 0.1) < 0.01);
    params_destroy(p);
    params_destroy(again);
    tiny_destroy(m);
}

static void assert_tensor(const struct params *p, const char *name, const struct weight *w)
{
    const struct params_tensor *t = params_find(p, name);
    assert_non_null(t);
    assert_int_equal(t->rows, w->rows);
    assert_int_equal(t->cols, w->cols);
    for (int i = 0; i < w->rows; i++)
        for (int j = 0; j < w->cols; j++)
            assert_true(p->values[t->offset + (size_t)(i * w->cols + j)] ==
                        (float)tiny_get(w, i, j));
}

static void test_params_load_copies_every_weight(void **state)
{
    (void)state;
    for (int variant = 0; variant < 3; variant++) {
        struct tiny_spec spec = OURO;
        spec.is_llama = variant == 1;
        spec.is_tied = variant == 2;
        spec.dtype = variant == 1 ? DTYPE_BF16 : DTYPE_F32;
        struct tiny_model *m = tiny_create(&spec);
        struct params *p = create(&m->checkpoint.config);
        struct err err;
        if (params_load(p, &m->checkpoint, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        const struct model_weights *w = &m->checkpoint.weights;
        const struct layer_weights *l = &w->layers[2];
        assert_tensor(p, "model.embed_tokens.weight", &w->embed);
        assert_tensor(p, "model.layers.2.input_layernorm.weight", &l->norm_attention);
        assert_tensor(p, "model.layers.2.post_attention_layernorm.weight", &l->norm_mlp);
        assert_tensor(p, "model.layers.2.self_attn.q_proj.weight", &l->q);
        assert_tensor(p, "model.layers.2.self_attn.k_proj.weight", &l->k);
        assert_tensor(p, "model.layers.2.self_attn.v_proj.weight", &l->v);
        assert_tensor(p, "model.layers.2.self_attn.o_proj.weight", &l->o);
        assert_tensor(p, "model.layers.2.mlp.gate_proj.weight", &l->gate);
        assert_tensor(p, "model.layers.2.mlp.up_proj.weight", &l->up);
        assert_tensor(p, "model.layers.2.mlp.down_proj.weight", &l->down);
        assert_tensor(p, "model.norm.weight", &w->norm);
        if (!spec.is_llama) {
            assert_tensor(p, "model.layers.2.input_layernorm_2.weight", &l->norm_attention_out);
            assert_tensor(p, "model.layers.2.post_attention_layernorm_2.weight", &l->norm_mlp_out);
            assert_tensor(p, "model.early_exit_gate.weight", &w->gate);
            assert_tensor(p, "model.early_exit_gate.bias", &w->gate_bias);
        }
        if (!spec.is_tied)
            assert_tensor(p, "lm_head.weight", &w->head);
        params_destroy(p);
        tiny_destroy(m);
    }
}

static void test_params_load_refuses_another_shape(void **state)
{
    (void)state;
    struct tiny_model *m = tiny_create(&OURO);
    const struct {
        struct tiny_spec spec;
        const char *word;
    } cases[] = {
        {{false, false, 3, 24, 48, 4, 2, 10, 37, 4, DTYPE_F32, 1}, "intermediate_size 40"},
        {{false, false, 3, 24, 40, 2, 1, 20, 37, 4, DTYPE_F32, 1}, "num_attention_heads 4"},
        {{true, false, 3, 24, 40, 4, 2, 10, 37, 1, DTYPE_F32, 1}, "norms on the branches"},
        {{false, true, 3, 24, 40, 4, 2, 10, 37, 4, DTYPE_F32, 1}, "lm_head"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tiny_model *other = tiny_create(&cases[i].spec);
        struct params *p = create(&other->checkpoint.config);
        struct err err;
        assert_int_equal(params_load(p, &m->checkpoint, &err), STATUS_MISMATCH);
        assert_non_null(strstr(err.message, cases[i].word));
        for (size_t j = 0; j < p->n_values; j++)
            assert_true(p->values[j] == 0);
        params_destroy(p);
        tiny_destroy(other);
    }
    tiny_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_params_table_tiles_the_values),
        cmocka_unit_test(test_params_q_k_v_are_one_matrix),
        cmocka_unit_test(test_params_draw_has_the_asked_spread),
        cmocka_unit_test(test_params_load_copies_every_weight),
        cmocka_unit_test(test_params_load_refuses_another_shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
