/* optimizer: AdamW against a plain version in double, clipping, gradients that are not finite; the
 * looping regulariser against its formula and central differences in double. */
#include "tests/unit.h"

#include "train/optimizer.h"

#include <math.h>

static struct model_config make_config(int n_layers)
{
    struct model_config c = {.has_sandwich_norms = true,
                             .has_gate = true,
                             .n_layers = n_layers,
                             .d_model = 4,
                             .d_ffn = 7,
                             .n_heads = 2,
                             .n_kv_heads = 1,
                             .head_dim = 6,
                             .vocab_size = 9,
                             .max_positions = 64,
                             .n_loops = 2,
                             .rms_norm_eps = 1e-6f,
                             .rope_theta = 10000,
                             .exit_threshold = 1,
                             .bos_id = -1};
    snprintf(c.architecture, sizeof c.architecture, "OuroForCausalLM");
    return c;
}

/* In (-1, 1), the same for the same key. */
static double number_of(uint64_t key, size_t i)
{
    uint64_t x = (key + 1) * UINT64_C(0x9e3779b97f4a7c15) + i * UINT64_C(0xd1b54a32d192ed03);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return (double)((x ^ x >> 31) >> 11) / (double)(UINT64_C(1) << 52) - 1;
}

static struct params *make_params(int n_layers)
{
    struct params *p = NULL;
    const struct model_config config = make_config(n_layers);
    assert_int_equal(params_create(&config, &p, NULL), STATUS_OK);
    for (size_t i = 0; i < p->n_values; i++)
        p->values[i] = (float)number_of(1, i);
    return p;
}

static const struct grad_ops *ops_of(const char *isa)
{
    const struct grad_ops *ops = NULL;
    return grad_find(isa, &ops, NULL) == STATUS_OK ? ops : NULL;
}
static const char *const LEVELS[] = {"portable", "avx2", "avx512"};

static struct recipe *make_recipe(float clip)
{
    struct recipe *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->beta1 = 0.9f;
    r->beta2 = 0.98f;
    r->eps = 1e-8f;
    r->weight_decay = 0.05f;
    r->clip = clip;
    return r;
}

/* Some steps by every level of instructions, beside the same in double. */
static void compare_with_plain(const struct grad_ops *ops, float clip)
{
    enum { N_STEPS = 20 };
    struct params *p = make_params(3);
    struct recipe *r = make_recipe(clip);
    struct optimizer o;
    const size_t n = p->n_values;
    assert_int_equal(optimizer_create(p, &o, NULL), STATUS_OK);
    double *v = calloc(n, sizeof *v), *m1 = calloc(n, sizeof *m1), *m2 = calloc(n, sizeof *m2);
    float *grads = calloc(n, sizeof *grads);
    for (size_t i = 0; i < n; i++)
        v[i] = (double)p->values[i];
    for (int step = 1; step <= N_STEPS; step++) {
        const float lr = 0.01f * (float)step / N_STEPS;
        double squares = 0;
        for (size_t i = 0; i < n; i++) {
            grads[i] = (float)number_of((uint64_t)step + 10, i);
            squares += (double)grads[i] * (double)grads[i];
        }
        const double norm = sqrt(squares);
        const double scale = clip > 0 && norm > (double)clip ? (double)clip / norm : 1;
        for (size_t k = 0; k < p->n_tensors; k++) {
            const struct params_tensor *t = &p->tensors[k];
            for (size_t i = t->offset; i < t->offset + (size_t)t->rows * (size_t)t->cols; i++) {
                const double b1 = (double)r->beta1, b2 = (double)r->beta2;
                const double g = (double)grads[i] * scale;
                m1[i] = b1 * m1[i] + (1 - b1) * g;
                m2[i] = b2 * m2[i] + (1 - b2) * g * g;
                const double first = m1[i] / (1 - pow(b1, step));
                const double second = m2[i] / (1 - pow(b2, step));
                v[i] -= (double)lr * (first / (sqrt(second) + (double)r->eps) +
                                      (t->decays ? (double)r->weight_decay : 0) * v[i]);
            }
        }
        float found = 0;
        assert_int_equal(optimizer_step(&o, p, grads, ops, r, lr, &found, NULL), STATUS_OK);
        assert_true(fabs((double)found - norm) < 1e-6 * norm);
    }
    assert_int_equal(o.step, N_STEPS);
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs((double)p->values[i] - v[i]));
    if (!(worst < 2e-6))
        fail_msg("%s: the parameters differ by %g", ops->name, worst);
    free(grads);
    free(m2);
    free(m1);
    free(v);
    optimizer_free(&o);
    free(r);
    params_destroy(p);
}

static void test_optimizer_is_adamw(void **state)
{
    (void)state;
    assert_non_null(ops_of("portable"));
    for (size_t i = 0; i < sizeof LEVELS / sizeof LEVELS[0]; i++)
        if (ops_of(LEVELS[i]) != NULL) {
            compare_with_plain(ops_of(LEVELS[i]), 0);    /* no clipping */
            compare_with_plain(ops_of(LEVELS[i]), 1);    /* clips every step */
            compare_with_plain(ops_of(LEVELS[i]), 1000); /* never */
        }
}

static void test_optimizer_clips_to_the_norm(void **state)
{
    (void)state;
    /* With beta1 = 0 the first moment is the clipped gradient itself. */
    struct params *p = make_params(2);
    struct recipe *r = make_recipe(0.5f);
    struct optimizer o;
    float *grads = calloc(p->n_values, sizeof *grads), norm = 0;
    assert_int_equal(optimizer_create(p, &o, NULL), STATUS_OK);
    r->beta1 = 0;
    for (size_t i = 0; i < p->n_values; i++)
        grads[i] = (float)number_of(3, i);
    assert_int_equal(optimizer_step(&o, p, grads, ops_of("portable"), r, 0, &norm, NULL),
                     STATUS_OK);
    double squares = 0;
    for (size_t i = 0; i < p->n_values; i++) {
        squares += (double)o.m[i] * (double)o.m[i];
        assert_true(p->values[i] == (float)number_of(1, i)); /* lr 0 */
    }
    assert_true(norm > 1);
    assert_true(fabs(sqrt(squares) - 0.5) < 1e-6);
    optimizer_reset(&o, p);
    assert_int_equal(o.step, 0);
    for (size_t i = 0; i < p->n_values; i++)
        assert_true(o.m[i] == 0 && o.v[i] == 0);
    free(grads);
    optimizer_free(&o);
    free(r);
    params_destroy(p);
}

static void test_optimizer_gradient_that_is_not_finite_changes_nothing(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    struct params *p = make_params(2);
    struct recipe *r = make_recipe(1);
    struct optimizer o;
    struct err err = {0};
    float *grads = calloc(p->n_values, sizeof *grads), norm = -7;
    assert_int_equal(optimizer_create(p, &o, NULL), STATUS_OK);
    const struct params_tensor *t = params_find(p, "model.layers.1.mlp.down_proj.weight");
    assert_non_null(t);
    for (int i = 0; i < 3; i++) {
        grads[t->offset + 2 * (size_t)t->cols + 3] = bad[i];
        assert_int_equal(optimizer_step(&o, p, grads, ops_of("portable"), r, 1, &norm, &err),
                         STATUS_CORRUPT);
        assert_non_null(strstr(err.message, t->name));
        assert_non_null(strstr(err.message, "row 2, column 3"));
    }
    for (size_t i = 0; i < p->n_values; i++)
        grads[i] = 3e38f; /* each is finite, their norm is not */
    assert_int_equal(optimizer_step(&o, p, grads, ops_of("portable"), r, 1, &norm, &err),
                     STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "norm"));
    assert_true(norm == -7 && o.step == 0);
    for (size_t i = 0; i < p->n_values; i++)
        assert_true(p->values[i] == (float)number_of(1, i) && o.m[i] == 0 && o.v[i] == 0);
    free(grads);
    optimizer_free(&o);
    free(r);
    params_destroy(p);
}

/* ---- the looping regulariser ---------------------------------------------------------------- */

/* The tensors of each group by name, in the order of optimizer_looping_group. */
static const char *const GROUPS[OPTIMIZER_LOOPING_GROUPS] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

static const struct params_tensor *tensor_of(const struct params *p, int g, int layer)
{
    char name[PARAMS_NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, GROUPS[g]);
    const struct params_tensor *t = params_find(p, name);
    assert_non_null(t);
    return t;
}

/* R_G(k), as the paper's formula has it. */
static double plain_cosine(const struct params *p, const double *values, int k, int g)
{
    const int n_layers = p->config.n_layers;
    double sum = 0;
    for (int i = 0; i <= n_layers / k - 2; i++)
        for (int j = 0; j < k; j++) {
            const struct params_tensor *a = tensor_of(p, g, i * k + j);
            const struct params_tensor *b = tensor_of(p, g, (i + 1) * k + j);
            double aa = 0, bb = 0, ab = 0;
            for (size_t e = 0; e < (size_t)a->rows * (size_t)a->cols; e++) {
                aa += values[a->offset + e] * values[a->offset + e];
                bb += values[b->offset + e] * values[b->offset + e];
                ab += values[a->offset + e] * values[b->offset + e];
            }
            sum += ab / sqrt(aa * bb);
        }
    return sum / (n_layers - k);
}

static double plain_loss(const struct params *p, const double *values, int k, double weight)
{
    double sum = 0;
    for (int g = 0; g < OPTIMIZER_LOOPING_GROUPS; g++)
        sum += 1 - plain_cosine(p, values, k, g);
    return weight * sum / OPTIMIZER_LOOPING_GROUPS;
}

static void test_looping_gradient_is_that_of_the_formula(void **state)
{
    (void)state;
    static const struct {
        int n_layers, k;
    } cases[] = {{4, 2}, {3, 1}, {6, 3}, {6, 2}};
    const float weight = 10;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct params *p = make_params(cases[c].n_layers);
        const size_t n = p->n_values;
        float *grads = calloc(n, sizeof *grads), cosines[OPTIMIZER_LOOPING_GROUPS];
        double *values = calloc(n, sizeof *values);
        for (size_t i = 0; i < n; i++) {
            values[i] = (double)p->values[i];
            grads[i] = 0.25f; /* it is added to what is there */
        }
        optimizer_looping(p, cases[c].k, weight, grads, cosines);
        for (int g = 0; g < OPTIMIZER_LOOPING_GROUPS; g++)
            assert_true(fabs((double)cosines[g] - plain_cosine(p, values, cases[c].k, g)) < 1e-6);
        double worst = 0, largest = 0;
        size_t n_moved = 0;
        for (size_t i = 0; i < n; i++) {
            const double h = 1e-5, at = values[i];
            values[i] = at + h;
            const double above = plain_loss(p, values, cases[c].k, (double)weight);
            values[i] = at - h;
            const double below = plain_loss(p, values, cases[c].k, (double)weight);
            values[i] = at;
            const double expected = (above - below) / (2 * h);
            worst = fmax(worst, fabs((double)grads[i] - 0.25 - expected));
            largest = fmax(largest, fabs(expected));
            n_moved += grads[i] != 0.25f;
        }
        if (!(largest > 0.01 && worst < 1e-6 * fmax(1, largest)))
            fail_msg("L = %d, k = %d: off by %g of %g", cases[c].n_layers, cases[c].k, worst,
                     largest);
        assert_true(n_moved > n / 2);
        float again[OPTIMIZER_LOOPING_GROUPS]; /* figures alone */
        optimizer_looping(p, cases[c].k, weight, NULL, again);
        assert_memory_equal(again, cosines, sizeof cosines);
        optimizer_looping(p, cases[c].k, weight, grads, NULL);
        free(values);
        free(grads);
        params_destroy(p);
    }
}

static void test_looping_equal_blocks_have_cosine_one(void **state)
{
    (void)state;
    struct params *p = make_params(4);
    float *grads = calloc(p->n_values, sizeof *grads), cosines[OPTIMIZER_LOOPING_GROUPS];
    for (int g = 0; g < OPTIMIZER_LOOPING_GROUPS; g++)
        for (int l = 0; l < 2; l++) {
            const struct params_tensor *a = tensor_of(p, g, l), *b = tensor_of(p, g, l + 2);
            const size_t n = (size_t)a->rows * (size_t)a->cols;
            for (size_t i = 0; i < n; i++) /* the length does not count, a zero matrix has none */
                p->values[b->offset + i] = g == 3 ? 0 : 2 * p->values[a->offset + i];
        }
    optimizer_looping(p, 2, 1, grads, cosines);
    for (int g = 0; g < OPTIMIZER_LOOPING_GROUPS; g++)
        assert_true(fabs((double)cosines[g] - (g == 3 ? 0 : 1)) < 1e-6);
    for (size_t i = 0; i < p->n_values; i++)
        assert_true(fabsf(grads[i]) < 1e-6f);
    assert_string_equal(optimizer_looping_group(0), "q");
    assert_string_equal(optimizer_looping_group(6), "down");
    assert_null(optimizer_looping_group(7));
    assert_null(optimizer_looping_group(-1));
    free(grads);
    params_destroy(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimizer_is_adamw),
        cmocka_unit_test(test_optimizer_clips_to_the_norm),
        cmocka_unit_test(test_optimizer_gradient_that_is_not_finite_changes_nothing),
        cmocka_unit_test(test_looping_gradient_is_that_of_the_formula),
        cmocka_unit_test(test_looping_equal_blocks_have_cosine_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
