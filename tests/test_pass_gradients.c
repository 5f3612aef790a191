/* Tests that the gradient of every tensor equals central differences of the plain double loss, for
 * every objective, architecture and instruction-set level. */
#include "tests/pass_world.h"
#include "tests/train_reference.h"

static const struct pass_shape SANDWICH = {"sandwich, gqa", false, false, 2, 6, 9, 2, 1, 4, 7};
static const struct pass_shape TIED = {"sandwich, tied", false, true, 1, 8, 5, 2, 2, 2, 9};
static const struct pass_shape LLAMA = {"llama", true, false, 2, 5, 7, 4, 2, 2, 9};
static const struct pass_shape LLAMA_TIED = {"llama, tied", true, true, 2, 6, 7, 1, 1, 4, 9};
/* Whole vectors of every width, and tails. */
static const struct pass_shape WIDE = {"wide", false, false, 2, 40, 72, 3, 1, 22, 53};
/* The head takes its rows in several pieces. */
static const struct pass_shape MANY_TOKENS = {"many tokens", false, false, 1, 8, 8, 1, 1, 4, 33000};

static const char *const OBJECTIVES[] = {"uniform", "entropy", "last"};

static double loss_at(const struct params *p, const double *values,
                      const struct pass_world_sequences *w, const struct pass_options *o)
{
    struct train_reference r = reference_run(p, values, w->list, PASS_WORLD_SEQUENCES, o);
    return r.loss * (double)o->scale;
}

static double *doubled(const struct params *p)
{
    double *values = malloc(p->n_values * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < p->n_values; i++)
        values[i] = p->values[i];
    return values;
}

static void run_levels(const struct params *p, const struct pass_world_sequences *w,
                       const struct pass_options *o, float *grads[3], int *n_levels,
                       const struct grad_ops *levels[3])
{
    *n_levels = pass_world_levels(levels);
    for (int i = 0; i < *n_levels; i++) {
        grads[i] = calloc(p->n_values, sizeof *grads[i]);
        assert_non_null(grads[i]);
        pass_world_run(p, levels[i], w->list, PASS_WORLD_SEQUENCES, o, grads[i]);
    }
}

static void assert_tensor(const char *what, const char *objective, const char *level,
                          const struct params_tensor *t, const double *want, const float *found)
{
    double difference = 0, norm = 0;
    for (size_t i = 0; i < (size_t)t->rows * (size_t)t->cols; i++) {
        difference += (found[i] - want[i]) * (found[i] - want[i]);
        norm += want[i] * want[i];
    }
    if (!(sqrt(difference) <= 1e-4 * sqrt(norm)) && !(norm == 0 && difference == 0))
        fail_msg("%s, %s, %s: gradient of %s: norm %g, difference %g", what, objective, level,
                 t->name, sqrt(norm), sqrt(difference));
}

/* Every element of every tensor. */
static void check_every_element(const struct pass_shape *shape, enum recipe_objective objective,
                                const uint8_t *first_loops, int n_loops, uint64_t seed)
{
    struct params *p = pass_world_params(shape, seed);
    struct pass_world_sequences w;
    pass_world_open(&w, shape->vocab, 3, seed);
    struct pass_options o = {objective, n_loops, 0.3f, 0.25f, first_loops};
    const struct grad_ops *levels[3];
    float *grads[3];
    int n_levels;
    run_levels(p, &w, &o, grads, &n_levels, levels);
    double *values = doubled(p), *want = calloc(p->n_values, sizeof *want);
    assert_non_null(want);
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        for (size_t j = t->offset; j < t->offset + (size_t)t->rows * (size_t)t->cols; j++) {
            const double was = values[j], step = 1e-5;
            values[j] = was + step;
            double above = loss_at(p, values, &w, &o);
            values[j] = was - step;
            double below = loss_at(p, values, &w, &o);
            values[j] = was;
            want[j] = (above - below) / (2 * step);
            /* An element the loss does not see is 0 and not rounding. */
            if (fabs(want[j]) < 1e-11)
                want[j] = 0;
        }
        for (int l = 0; l < n_levels; l++)
            assert_tensor(shape->name, OBJECTIVES[objective], levels[l]->name, t, want + t->offset,
                          grads[l] + t->offset);
    }
    for (int l = 0; l < n_levels; l++)
        free(grads[l]);
    free(values);
    free(want);
    pass_world_close(&w);
    params_destroy(p);
}

/* Along the gradient itself, tensor by tensor, the loss must rise by the gradient's norm; along a
 * random direction by their product. is_brief: only the first, and only outside the layers. */
static void check_directions(const struct pass_shape *shape, enum recipe_objective objective,
                             int n_rows, bool is_brief, uint64_t seed)
{
    struct params *p = pass_world_params(shape, seed);
    struct pass_world_sequences w;
    pass_world_open(&w, shape->vocab, n_rows, seed);
    struct pass_options o = {objective, 2, 0.3f, 0.25f, NULL};
    const struct grad_ops *levels[3];
    float *grads[3];
    int n_levels;
    run_levels(p, &w, &o, grads, &n_levels, levels);
    double *values = doubled(p);
    struct random r = random_of(seed, 3, 3);
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        if (is_brief && t->layer >= 0)
            continue;
        size_t n = (size_t)t->rows * (size_t)t->cols;
        double norm = pass_world_norm(grads[0] + t->offset, n);
        assert_true(norm > 0);
        for (int is_random = 0; is_random < 2 - is_brief; is_random++) {
            double *direction = calloc(n, sizeof *direction), length = 0, rise[2];
            assert_non_null(direction);
            for (size_t j = 0; j < n; j++) {
                direction[j] = is_random ? random_normal(&r) : grads[0][t->offset + j];
                length += direction[j] * direction[j];
            }
            for (int side = 0; side < 2; side++) {
                double step = (side ? -1e-4 : 1e-4) / sqrt(length);
                for (size_t j = 0; j < n; j++)
                    values[t->offset + j] = p->values[t->offset + j] + step * direction[j];
                rise[side] = loss_at(p, values, &w, &o);
            }
            for (size_t j = 0; j < n; j++)
                values[t->offset + j] = p->values[t->offset + j];
            double slope = (rise[0] - rise[1]) / 2e-4;
            for (int l = 0; l < n_levels; l++) {
                double product = 0;
                for (size_t j = 0; j < n; j++)
                    product += grads[l][t->offset + j] * direction[j] / sqrt(length);
                if (fabs(product - slope) > 1e-4 * norm)
                    fail_msg("%s, %s, %s: %s rises by %g along a direction, the gradient says %g",
                             shape->name, OBJECTIVES[objective], levels[l]->name, t->name, slope,
                             product);
            }
            free(direction);
        }
    }
    for (int l = 0; l < n_levels; l++)
        free(grads[l]);
    free(values);
    pass_world_close(&w);
    params_destroy(p);
}

static void test_pass_gradients_uniform(void **state)
{
    (void)state;
    check_every_element(&SANDWICH, RECIPE_UNIFORM, NULL, 3, 1);
    check_every_element(&LLAMA_TIED, RECIPE_UNIFORM, NULL, 2, 2);
}

/* Levels that begin to count at loop 1, 2, 3 and past the last open one. */
static void test_pass_gradients_uniform_from_level(void **state)
{
    (void)state;
    uint8_t first_loops[METRICS_MAX_LEVELS];
    for (int i = 0; i < METRICS_MAX_LEVELS; i++)
        first_loops[i] = (uint8_t)(i % 4 + 1);
    check_every_element(&SANDWICH, RECIPE_UNIFORM, first_loops, 3, 10);
}

static void test_pass_gradients_entropy(void **state)
{
    (void)state;
    check_every_element(&SANDWICH, RECIPE_ENTROPY, NULL, 3, 3);
    check_every_element(&TIED, RECIPE_ENTROPY, NULL, 4, 4);
    check_every_element(&TIED, RECIPE_ENTROPY, NULL, 1, 5);
}

static void test_pass_gradients_last(void **state)
{
    (void)state;
    check_every_element(&LLAMA, RECIPE_LAST, NULL, 2, 6);
    check_every_element(&TIED, RECIPE_LAST, NULL, 2, 7);
}

static void test_pass_gradients_of_wide_models(void **state)
{
    (void)state;
    check_directions(&WIDE, RECIPE_ENTROPY, 21, false, 8);
}

static void test_pass_gradients_head_in_pieces(void **state)
{
    (void)state;
    check_directions(&MANY_TOKENS, RECIPE_ENTROPY, 23, true, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_gradients_uniform),
        cmocka_unit_test(test_pass_gradients_uniform_from_level),
        cmocka_unit_test(test_pass_gradients_entropy),
        cmocka_unit_test(test_pass_gradients_last),
        cmocka_unit_test(test_pass_gradients_of_wide_models),
        cmocka_unit_test(test_pass_gradients_head_in_pieces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
