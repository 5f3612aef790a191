/* Linear layers of training against plain double: forward, gradient of the input, of the weight. */
#include "tests/grad_reference.h"

static const int shapes[][3] = {
    /* n, k, n_out */
    {1, 1, 1},    {3, 1, 17},  {1, 17, 3},    {5, 3, 1},     {13, 65, 33}, {17, 64, 49},
    {12, 16, 16}, {65, 31, 1}, {25, 300, 19}, {300, 17, 35}, {7, 130, 600}};
enum { N_SHAPES = sizeof shapes / sizeof shapes[0] };

struct sum {
    double value, magnitude;
};

/* sum_p a[p * a_step] b[p * b_step] */
static struct sum plain_dot(const float *a, size_t a_step, const float *b, size_t b_step, int n)
{
    struct sum s = {0};
    for (size_t p = 0; p < (size_t)n; p++) {
        double product = (double)a[p * a_step] * (double)b[p * b_step];
        s.value += product;
        s.magnitude += fabs(product);
    }
    return s;
}

static void check_forward(const struct grad_ops *ops, int n, int k, int n_out)
{
    const size_t in = (size_t)k, out = (size_t)n_out, len = (size_t)n * out;
    float *x = random_floats(1, (size_t)n * in), *w = random_floats(2, out * in);
    float *y = guarded_floats(len);
    ops->linear(y, x, w, n, k, n_out);
    for (size_t i = 0; i < len; i++) {
        struct sum s = plain_dot(x + i / out * in, 1, w + i % out * in, 1, k);
        grad_close("linear", (double)y[i], s.value, s.magnitude);
    }
    guarded_free(y, len);
    free(x);
    free(w);
}

static void check_back_input(const struct grad_ops *ops, int n, int k, int n_out)
{
    const size_t in = (size_t)k, out = (size_t)n_out, len = (size_t)n * in;
    float *d_y = random_floats(3, (size_t)n * out), *w = random_floats(4, out * in);
    float *start = random_floats(5, len), *d_x = guarded_floats(len), *added = guarded_floats(len);
    memcpy(added, start, len * sizeof *added);
    ops->linear_back_input(d_x, d_y, w, n, k, n_out, false);
    ops->linear_back_input(added, d_y, w, n, k, n_out, true);
    for (size_t i = 0; i < len; i++) {
        struct sum s = plain_dot(d_y + i / in * out, 1, w + i % in, in, n_out);
        grad_close("linear", (double)d_x[i], s.value, s.magnitude);
        const double before = (double)start[i];
        grad_close("linear", (double)added[i], before + s.value, fabs(before) + s.magnitude);
    }
    guarded_free(d_x, len);
    guarded_free(added, len);
    free(d_y);
    free(w);
    free(start);
}

static void check_back_weight(const struct grad_ops *ops, int n, int k, int n_out)
{
    const size_t in = (size_t)k, out = (size_t)n_out, len = out * in;
    float *d_y = random_floats(6, (size_t)n * out), *x = random_floats(7, (size_t)n * in);
    float *start = random_floats(8, len), *d_w = guarded_floats(len);
    memcpy(d_w, start, len * sizeof *d_w);
    ops->linear_back_weight(d_w, d_y, x, n, k, n_out);
    for (size_t i = 0; i < len; i++) {
        struct sum s = plain_dot(d_y + i / in, out, x + i % in, in, n);
        const double before = (double)start[i];
        grad_close("linear", (double)d_w[i], before + s.value, fabs(before) + s.magnitude);
    }
    guarded_free(d_w, len);
    free(d_y);
    free(x);
    free(start);
}

static void for_all(void (*check)(const struct grad_ops *ops, int n, int k, int n_out))
{
    for (int i = 0; i < N_GRAD_LEVEL_NAMES; i++)
        for (int s = 0; s < N_SHAPES && grad_level(i) != NULL; s++)
            check(grad_level(i), shapes[s][0], shapes[s][1], shapes[s][2]);
}

static void test_grad_linear_matches_double(void **state)
{
    (void)state;
    for_all(check_forward);
}

static void test_grad_linear_back_input_matches_double(void **state)
{
    (void)state;
    for_all(check_back_input);
}

static void test_grad_linear_back_weight_matches_double(void **state)
{
    (void)state;
    for_all(check_back_weight);
}

/* ---- against central differences of the forward pass ------------------------------------------
 */

enum { N = 3, K = 5, OUT = 4 };

struct small_linear {
    double *x, *w, *r;
};

/* sum of r[i][o] y[i][o] */
static double small_loss(void *context)
{
    const struct small_linear *l = context;
    double loss = 0.0;
    for (int i = 0; i < N; i++)
        for (int o = 0; o < OUT; o++)
            for (int j = 0; j < K; j++)
                loss += l->r[i * OUT + o] * l->x[i * K + j] * l->w[o * K + j];
    return loss;
}

static void test_grad_linear_gradients_are_central_differences(void **state)
{
    (void)state;
    float *x = random_floats(9, N * K), *w = random_floats(10, OUT * K);
    float *r = random_floats(11, N * OUT);
    struct small_linear l = {widened(x, N * K), widened(w, OUT * K), widened(r, N * OUT)};
    for (int level = 0; level < N_GRAD_LEVEL_NAMES; level++) {
        const struct grad_ops *ops = grad_level(level);
        if (ops == NULL)
            continue;
        float d_x[N * K], d_w[OUT * K] = {0};
        ops->linear_back_input(d_x, r, w, N, K, OUT, false);
        ops->linear_back_weight(d_w, r, x, N, K, OUT);
        for (int i = 0; i < N * K; i++)
            assert_true(fabs((double)d_x[i] - central_difference(small_loss, &l, &l.x[i])) < 1e-6);
        for (int i = 0; i < OUT * K; i++)
            assert_true(fabs((double)d_w[i] - central_difference(small_loss, &l, &l.w[i])) < 1e-6);
    }
    free(l.x);
    free(l.w);
    free(l.r);
    free(x);
    free(w);
    free(r);
}

/* A row of y and of d_x does not depend on the rows around it. */
static void test_grad_linear_rows_are_independent(void **state)
{
    (void)state;
    enum { ROWS = 41, IN = 70, WIDE = 37 };
    float *x = random_floats(12, ROWS * IN), *w = random_floats(13, WIDE * IN);
    float all[ROWS * WIDE], one[WIDE];
    for (int level = 0; level < N_GRAD_LEVEL_NAMES; level++) {
        const struct grad_ops *ops = grad_level(level);
        if (ops == NULL)
            continue;
        ops->linear(all, x, w, ROWS, IN, WIDE);
        for (int i = 0; i < ROWS; i++) {
            ops->linear(one, x + i * IN, w, 1, IN, WIDE);
            assert_memory_equal(one, all + i * WIDE, sizeof one);
        }
    }
    free(x);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_grad_linear_matches_double),
        cmocka_unit_test(test_grad_linear_back_input_matches_double),
        cmocka_unit_test(test_grad_linear_back_weight_matches_double),
        cmocka_unit_test(test_grad_linear_gradients_are_central_differences),
        cmocka_unit_test(test_grad_linear_rows_are_independent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
