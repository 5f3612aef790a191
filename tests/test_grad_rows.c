/* Row-wise operations of training against plain double: norms, SwiGLU, RoPE. */
#include "tests/grad_reference.h"

static const int widths[] = {1, 3, 16, 17, 64, 65, 130};
enum { N_WIDTHS = sizeof widths / sizeof widths[0], N = 3 };
static const float eps = 1e-6f;

/* Inputs and weights of one operation over N rows, and the random r of loss = sum r * y. */
struct rows_data {
    int d;
    double *x, *gain, *r;
};

static void for_all(void (*check)(const struct grad_ops *ops, int d))
{
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
        for (int w = 0; w < N_WIDTHS && grad_level(i) != NULL; w++)
            check(grad_level(i), widths[w]);
}

/* ---- norm ---------------------------------------------------------------------------------------
 */

static double plain_rstd(const double *x, int d)
{
    double sum = 0.0;
    for (int j = 0; j < d; j++)
        sum += x[j] * x[j];
    return 1.0 / sqrt(sum / d + (double)eps);
}

static double norm_loss(void *context)
{
    const struct rows_data *a = context;
    double loss = 0.0;
    for (int i = 0; i < N; i++) {
        const double *x = a->x + i * a->d, rstd = plain_rstd(x, a->d);
        for (int j = 0; j < a->d; j++)
            loss += a->r[i * a->d + j] * x[j] * rstd * a->gain[j];
    }
    return loss;
}

static void check_norm(const struct grad_ops *ops, int d)
{
    const size_t len = (size_t)(N * d), width = (size_t)d;
    float *x = random_floats(1, len), *gain = random_floats(2, width), *d_y = random_floats(3, len);
    float *start = random_floats(4, len), *y = guarded_floats(len), *rstd = guarded_floats(N);
    float *d_x = guarded_floats(len), *added = guarded_floats(len), *d_gain = guarded_floats(width);
    struct rows_data a = {d, widened(x, len), widened(gain, width), widened(d_y, len)};
    ops->norm(y, rstd, x, gain, N, d, eps);
    for (int i = 0; i < N * d; i++) {
        const double scale = plain_rstd(a.x + i / d * d, d);
        const double want = a.x[i] * scale * a.gain[i % d];
        grad_close("norm", (double)y[i], want, fabs(want));
        grad_close("norm", (double)rstd[i / d], scale, scale);
    }
    memcpy(added, start, len * sizeof *added);
    for (int j = 0; j < d; j++)
        d_gain[j] = 0.5f;
    ops->norm_back(d_x, d_gain, d_y, x, rstd, gain, N, d, false);
    for (int j = 0; j < d; j++) {
        double want = 0.5 + central_difference(norm_loss, &a, &a.gain[j]);
        grad_close("norm_back", (double)d_gain[j], want, N * sqrt(d));
        d_gain[j] = 0.0f;
    }
    ops->norm_back(added, d_gain, d_y, x, rstd, gain, N, d, true);
    for (int i = 0; i < N * d; i++) {
        const double want = central_difference(norm_loss, &a, &a.x[i]);
        const double scale = sqrt(d) * (double)rstd[i / d];
        grad_close("norm_back", (double)d_x[i], want, scale);
        grad_close("norm_back", (double)added[i], (double)start[i] + want, scale + 1.0);
    }
    guarded_free(y, len);
    guarded_free(rstd, N);
    guarded_free(d_x, len);
    guarded_free(added, len);
    guarded_free(d_gain, width);
    void *rest[] = {x, gain, d_y, start, a.x, a.gain, a.r};
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        free(rest[i]);
}

static void test_grad_norm_matches_double(void **state)
{
    (void)state;
    for_all(check_norm);
}

/* ---- SwiGLU -------------------------------------------------------------------------------------
 */

static double swiglu(double gate, double up)
{
    return gate / (1.0 + exp(-gate)) * up;
}

static double swiglu_loss(void *context)
{
    const struct rows_data *a = context;
    double loss = 0.0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < a->d; j++)
            loss +=
                a->r[i * a->d + j] * swiglu(a->x[2 * i * a->d + j], a->x[(2 * i + 1) * a->d + j]);
    return loss;
}

static void check_swiglu(const struct grad_ops *ops, int f)
{
    const size_t len = (size_t)(N * f);
    float *x = random_floats(5, 2 * len), *d_y = random_floats(6, len);
    for (size_t i = 0; i < 2 * len; i++)
        x[i] *= 8.0f;
    float *y = guarded_floats(len), *d_a = guarded_floats(2 * len);
    struct rows_data a = {f, widened(x, 2 * len), NULL, widened(d_y, len)};
    ops->swiglu(y, x, N, f);
    ops->swiglu_back(d_a, d_y, x, N, f);
    for (int i = 0; i < N * f; i++) {
        const int at = i / f * 2 * f + i % f;
        const double want = swiglu(a.x[at], a.x[at + f]);
        grad_close("swiglu", (double)y[i], want, fabs(want));
    }
    for (size_t i = 0; i < 2 * len; i++) {
        const double want = central_difference(swiglu_loss, &a, &a.x[i]);
        grad_close("swiglu_back", (double)d_a[i], want, 8.0);
    }
    guarded_free(y, len);
    guarded_free(d_a, 2 * len);
    free(x);
    free(d_y);
    free(a.x);
    free(a.r);
}

static void test_grad_swiglu_matches_double(void **state)
{
    (void)state;
    for_all(check_swiglu);
}

static void test_grad_swiglu_far_from_zero_stays_finite(void **state)
{
    (void)state;
    const float a[] = {-200.0f, 200.0f, -90.0f, 90.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    const float d_y[] = {1.0f, 1.0f, 1.0f, 1.0f};
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++) {
        if (grad_level(i) == NULL)
            continue;
        float y[4], d_a[8];
        grad_level(i)->swiglu(y, a, 1, 4);
        grad_level(i)->swiglu_back(d_a, d_y, a, 1, 4);
        for (int j = 0; j < 4; j++) {
            const double want = j % 2 == 0 ? 0.0 : (double)a[j];
            assert_true(fabs((double)y[j] - want) < 1e-30);
            assert_true(fabs((double)d_a[j] - (j % 2 == 0 ? 0.0 : 1.0)) < 1e-30);
            assert_true(fabs((double)d_a[4 + j] - want) < 1e-30);
        }
    }
}

/* ---- RoPE ---------------------------------------------------------------------------------------
 */

static void check_rope(const struct grad_ops *ops, int half)
{
    enum { HEADS = 3 };
    const int head_dim = 2 * half;
    const size_t stride = (size_t)(HEADS * head_dim) + 3, len = N * stride;
    const size_t n_angles = (size_t)(N * half);
    float *x = random_floats(7, len), *angle = random_floats(8, n_angles);
    float *y = guarded_floats(len), *cosines = guarded_floats(n_angles);
    float *sines = guarded_floats(n_angles);
    for (size_t i = 0; i < n_angles; i++) {
        cosines[i] = cosf(3.0f * angle[i]);
        sines[i] = sinf(3.0f * angle[i]);
    }
    /* Going back is the transposed rotation: the same with the sign of the sine changed. */
    for (int inverse = 0; inverse < 2; inverse++) {
        memcpy(y, x, len * sizeof *y);
        ops->rope(y, stride, cosines, sines, N, HEADS, head_dim, inverse == 1);
        for (size_t i = 0; i < len; i++) {
            const int column = (int)(i % stride), at = column % head_dim;
            if (column >= HEADS * head_dim) {
                assert_true(y[i] == x[i]);
                continue;
            }
            const size_t table = i / stride * (size_t)half + (size_t)(at % half);
            const double c = (double)cosines[table];
            const double s = (double)sines[table] * (inverse == 1 ? -1.0 : 1.0);
            const double other =
                at < half ? -(double)x[i + (size_t)half] * s : (double)x[i - (size_t)half] * s;
            grad_close("rope", (double)y[i], (double)x[i] * c + other, 2.0);
        }
    }
    guarded_free(y, len);
    guarded_free(cosines, n_angles);
    guarded_free(sines, n_angles);
    free(x);
    free(angle);
}

static void test_grad_rope_matches_double(void **state)
{
    (void)state;
    for_all(check_rope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_norm_matches_double),
        cmocka_unit_test(test_grad_swiglu_matches_double),
        cmocka_unit_test(test_grad_swiglu_far_from_zero_stays_finite),
        cmocka_unit_test(test_grad_rope_matches_double),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
