/* Loss and update of training against plain double: cross-entropy, sums, AdamW. */
#include "tests/grad_reference.h"

static const int sizes[] = {1, 3, 16, 17, 49, 65, 200};
enum { N_SIZES = sizeof sizes / sizeof sizes[0], N = 3 };

static void for_all(void (*check)(const struct grad_ops *ops, int n))
{
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
        for (int s = 0; s < N_SIZES && grad_level(i) != NULL; s++)
            check(grad_level(i), sizes[s]);
}

/* ---- cross-entropy ------------------------------------------------------------------------------
 */

struct loss_data {
    int vocab_size;
    double *logits;
    int32_t targets[N];
    float scale[N];
};

static double plain_lse(const double *x, int n)
{
    double most = x[0], sum = 0.0;
    for (int j = 1; j < n; j++)
        most = fmax(most, x[j]);
    for (int j = 0; j < n; j++)
        sum += exp(x[j] - most);
    return most + log(sum);
}

static double cross_entropy_loss(void *context)
{
    const struct loss_data *a = context;
    double loss = 0.0;
    for (int i = 0; i < N; i++) {
        const double *x = a->logits + i * a->vocab_size;
        loss += (double)a->scale[i] * (plain_lse(x, a->vocab_size) - x[a->targets[i]]);
    }
    return loss;
}

static void check_cross_entropy(const struct grad_ops *ops, int vocab_size)
{
    const size_t len = (size_t)(N * vocab_size);
    float *x = random_floats(1, len), *logits = guarded_floats(len);
    float *ce = guarded_floats(N), *lse = guarded_floats(N);
    int32_t best[N];
    for (size_t i = 0; i < len; i++)
        x[i] *= 10.0f;
    memcpy(logits, x, len * sizeof *x);
    struct loss_data a = {.vocab_size = vocab_size, .logits = widened(x, len)};
    for (int i = 0; i < N; i++) {
        a.targets[i] = (i * 7 + vocab_size - 1) % vocab_size;
        a.scale[i] = 0.25f + (float)i;
    }
    ops->cross_entropy(ce, lse, best, logits, a.targets, N, vocab_size);
    ops->cross_entropy_back(logits, lse, a.targets, a.scale, N, vocab_size);
    for (int i = 0; i < N; i++) {
        const double *row = a.logits + i * vocab_size, want = plain_lse(row, vocab_size);
        grad_close("cross_entropy", (double)lse[i], want, 10.0);
        grad_close("cross_entropy", (double)ce[i], want - row[a.targets[i]], 10.0);
        for (int j = 0; j < vocab_size; j++) {
            assert_true(row[best[i]] > row[j] || (row[best[i]] == row[j] && best[i] <= j));
            const size_t at = (size_t)(i * vocab_size + j);
            const double slope = central_difference(cross_entropy_loss, &a, &a.logits[at]);
            grad_close("cross_entropy_back", (double)logits[at], slope, 10.0 * (double)a.scale[i]);
        }
    }
    guarded_free(logits, len);
    guarded_free(ce, N);
    guarded_free(lse, N);
    free(x);
    free(a.logits);
}

static void test_grad_cross_entropy_matches_double(void **state)
{
    (void)state;
    for_all(check_cross_entropy);
}

static void test_grad_cross_entropy_best_is_the_smaller_id_of_a_tie(void **state)
{
    (void)state;
    float logits[40];
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
        if (grad_level(i) == NULL)
            continue;
        for (int j = 0; j < 40; j++)
            logits[j] = j == 21 || j == 37 || j == 19 ? 2.0f : -1.0f;
        const int32_t target = 0;
        int32_t best = -1;
        float ce, lse;
        grad_level(i)->cross_entropy(&ce, &lse, &best, logits, &target, 1, 40);
        assert_int_equal(best, 19);
    }
}

/* A target that leads by far has a small loss that is no rounding error of lse. */
static void test_grad_cross_entropy_of_a_sure_target_keeps_its_digits(void **state)
{
    (void)state;
    const float logits[3] = {30.0f, 18.0f, 17.0f};
    const int32_t target = 0;
    const double want = log1p(exp(-12.0) + exp(-13.0));
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
        if (grad_level(i) == NULL)
            continue;
        int32_t best;
        float ce, lse;
        grad_level(i)->cross_entropy(&ce, &lse, &best, logits, &target, 1, 3);
        assert_true(fabs((double)ce - want) < 1.5e-7);
        assert_int_equal(best, 0);
    }
}

static void test_grad_cross_entropy_shows_what_is_not_finite(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
        for (int at = 0; at < 2 * 33 && grad_level(i) != NULL; at++) {
            float logits[33] = {0.0f}, ce, lse;
            logits[at % 33] = bad[at / 33];
            const int32_t target = 4;
            int32_t best = -1;
            grad_level(i)->cross_entropy(&ce, &lse, &best, logits, &target, 1, 33);
            assert_false(isfinite(ce));
            assert_true(best >= 0 && best < 33);
        }
}

/* ---- sums and AdamW -----------------------------------------------------------------------------
 */

static void check_sums(const struct grad_ops *ops, int n)
{
    const size_t len = (size_t)n;
    float *x = random_floats(2, len), *start = random_floats(3, len), *y = guarded_floats(len);
    double sum = 0.0;
    memcpy(y, start, len * sizeof *y);
    ops->add(y, x, len);
    for (size_t i = 0; i < len; i++) {
        assert_true(y[i] == start[i] + x[i]);
        sum += (double)x[i] * (double)x[i];
    }
    assert_true(fabs(ops->sum_squares(x, len) - sum) <= 1e-14 * sum);
    assert_true(ops->sum_squares(x, len) == grad_level(0)->sum_squares(x, len));
    guarded_free(y, len);
    free(x);
    free(start);
}

static void test_grad_sums_match_double_and_all_levels(void **state)
{
    (void)state;
    for_all(check_sums);
}

/* Three steps, each from the floats that the one before left. */
static void check_adamw(const struct grad_ops *ops, int n)
{
    const size_t len = (size_t)n;
    float *grad = random_floats(4, len), *start = random_floats(5, len);
    float *values = guarded_floats(len), *m = guarded_floats(len), *v = guarded_floats(len);
    memcpy(values, start, len * sizeof *values);
    for (size_t i = 0; i < len; i++)
        m[i] = v[i] = 0.0f;
    grad[0] = 0.0f;
    for (int step = 1; step <= 3; step++) {
        const struct grad_adamw how = {.lr = 0.01f,
                                       .beta1 = 0.9f,
                                       .beta2 = 0.98f,
                                       .eps = 1e-8f,
                                       .weight_decay = 0.05f,
                                       .grad_scale = 0.7f,
                                       .correction1 = 1.0f - powf(0.9f, (float)step),
                                       .correction2 = 1.0f - powf(0.98f, (float)step)};
        const double b1 = (double)how.beta1, b2 = (double)how.beta2;
        double *before[] = {widened(values, len), widened(m, len), widened(v, len)};
        ops->adamw(values, m, v, grad, len, &how);
        for (size_t i = 0; i < len; i++) {
            const double g = (double)grad[i] * (double)how.grad_scale;
            const double mean = b1 * before[1][i] + (1.0 - b1) * g;
            const double square = b2 * before[2][i] + (1.0 - b2) * g * g;
            const double root = sqrt(square / (double)how.correction2) + (double)how.eps;
            const double move =
                mean / (double)how.correction1 / root + (double)how.weight_decay * before[0][i];
            grad_close("adamw", (double)m[i], mean, fabs(before[1][i]) + fabs(g));
            grad_close("adamw", (double)v[i], square, square);
            grad_close("adamw", (double)values[i], before[0][i] - (double)how.lr * move,
                       fabs(before[0][i]) + (double)how.lr * 2.0);
        }
        for (int i = 0; i < 3; i++)
            free(before[i]);
        for (size_t i = 0; i < len; i++)
            grad[i] = -0.5f * grad[i];
    }
    guarded_free(values, len);
    guarded_free(m, len);
    guarded_free(v, len);
    free(grad);
    free(start);
}

static void test_grad_adamw_matches_double(void **state)
{
    (void)state;
    for_all(check_adamw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_cross_entropy_matches_double),
        cmocka_unit_test(test_grad_cross_entropy_best_is_the_smaller_id_of_a_tie),
        cmocka_unit_test(test_grad_cross_entropy_of_a_sure_target_keeps_its_digits),
        cmocka_unit_test(test_grad_cross_entropy_shows_what_is_not_finite),
        cmocka_unit_test(test_grad_sums_match_double_and_all_levels),
        cmocka_unit_test(test_grad_adamw_matches_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
