/* The GPU's row-wise kernels where they have paths of their own: wide and narrow rows, long lists,
 * host memory of both kinds; and that a row's bits are its own. */
#include "tests/cuda_world.h"
#include "tests/kernels_reference.h"

static struct backend open_backend(void)
{
    struct backend b;
    assert_true(backend_open_as("cuda", 1, false, &b));
    return b;
}

/* Weights with rows == 1 stay fp32 on the device. */
static struct test_weight gain_open(const struct backend *b, uint64_t seed, int d)
{
    return test_weight_open(b, seed, 1, d, DTYPE_BF16, 0);
}

/* ---- norms --------------------------------------------------------------------------------------
 */

static void expect_norm(const float *x, const struct test_weight *gain, const float *y, int d,
                        enum dtype dtype)
{
    double squares = 0.0;
    for (int j = 0; j < d; j++)
        squares += (double)x[j] * (double)x[j];
    for (int j = 0; j < d; j++) {
        const double want =
            (double)x[j] * test_weight_at(gain, (size_t)j) / sqrt(squares / d + 1e-6);
        assert_stored("norm", (double)y[j], want, fabs(want), dtype);
    }
}

static void check_norm(const struct backend *b, int n, int d, enum dtype dtype)
{
    const size_t len = (size_t)n * (size_t)d;
    struct err err = {0};
    float *x = random_floats((uint64_t)(n + d), len);
    struct test_weight gain = gain_open(b, 2, d);
    struct array in = array_put(b, x, len, DTYPE_F32), out = array_output(b, len, dtype);
    must(kernels_rms_norm(b->s, out.data, dtype, in.data, &gain.w, n, 1e-6f, &err), &err);
    float *y = array_take(b, &out);
    for (int i = 0; i < n; i++)
        expect_norm(x + (size_t)i * (size_t)d, &gain, y + (size_t)i * (size_t)d, d, dtype);
    /* The last row alone, from an address that forbids wide accesses when d is odd. */
    struct array one = array_output(b, (size_t)d, dtype);
    must(kernels_rms_norm(b->s, one.data, dtype,
                          (const float *)in.data + (size_t)(n - 1) * (size_t)d, &gain.w, 1, 1e-6f,
                          &err),
         &err);
    float *alone = array_take(b, &one);
    assert_memory_equal(alone, y + (size_t)(n - 1) * (size_t)d, (size_t)d * sizeof *y);
    free(alone);
    free(y);
    array_free(b, &in);
    test_weight_close(b, &gain);
    free(x);
}

static void test_cuda_rows_norm_takes_rows_of_any_width(void **state)
{
    (void)state;
    static const int widths[] = {1, 2, 30, 64, 127, 1000, 2048, 2050, 4098, 8192, 16384};
    struct backend b = open_backend();
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        check_norm(&b, 3, widths[i], DTYPE_F32);
        check_norm(&b, 2, widths[i], DTYPE_BF16);
    }
    backend_close(&b);
}

/* The same rows at an address that is no multiple of 16: other accesses, the same bits. */
static void test_cuda_rows_norm_gives_the_same_bits_at_any_address(void **state)
{
    (void)state;
    enum { N = 2, D = 2048 };
    struct backend b = open_backend();
    struct err err = {0};
    float *x = random_floats(5, N * D + 1);
    struct test_weight gain = gain_open(&b, 2, D);
    struct array in = array_put(&b, x, N * D, DTYPE_F32), out = array_output(&b, N * D, DTYPE_F32);
    must(kernels_rms_norm(b.s, out.data, DTYPE_F32, in.data, &gain.w, N, 1e-6f, &err), &err);
    float *y = array_take(&b, &out);
    array_free(&b, &in);
    memmove(x + 1, x, N * D * sizeof *x);
    in = array_put(&b, x, N * D + 1, DTYPE_F32);
    out = array_output(&b, N * D, DTYPE_F32);
    must(kernels_rms_norm(b.s, out.data, DTYPE_F32, (float *)in.data + 1, &gain.w, N, 1e-6f, &err),
         &err);
    float *other = array_take(&b, &out);
    assert_memory_equal(y, other, N * D * sizeof *y);
    free(y);
    free(other);
    free(x);
    array_free(&b, &in);
    test_weight_close(&b, &gain);
    backend_close(&b);
}

/* In place, with and without the branch's gain and the second norm. */
static void check_residual(const struct backend *b, int n, int d, bool has_gain, bool has_next,
                           enum dtype dtype)
{
    const size_t len = (size_t)n * (size_t)d;
    struct err err = {0};
    float *h = random_floats((uint64_t)d, len), *branch = random_floats((uint64_t)d + 1, len);
    struct test_weight gain = gain_open(b, 3, d), next = gain_open(b, 4, d);
    struct array dh = array_put(b, h, len, DTYPE_F32), db = array_put(b, branch, len, DTYPE_F32),
                 dy = array_output(b, len, dtype);
    must(kernels_residual_norm(b->s, dh.data, db.data, has_gain ? &gain.w : NULL,
                               has_next ? dy.data : NULL, dtype, has_next ? &next.w : NULL, n, d,
                               1e-6f, &err),
         &err);
    float *sum = array_take(b, &dh), *y = array_take(b, &dy);
    for (int i = 0; i < n; i++) {
        const size_t row = (size_t)i * (size_t)d;
        double squares = 0.0;
        for (int j = 0; j < d; j++)
            squares += (double)branch[row + (size_t)j] * (double)branch[row + (size_t)j];
        for (int j = 0; j < d; j++) {
            const double add =
                (double)branch[row + (size_t)j] *
                (has_gain ? test_weight_at(&gain, (size_t)j) / sqrt(squares / d + 1e-6) : 1.0);
            const double before = (double)h[row + (size_t)j];
            assert_close("norm", (double)sum[row + (size_t)j], before + add,
                         fabs(before) + fabs(add), DTYPE_F32);
        }
        if (has_next)
            expect_norm(sum + row, &next, y + row, d, dtype);
        for (int j = 0; j < d && !has_next; j++)
            assert_true(isnan(y[row + (size_t)j]));
    }
    free(sum);
    free(y);
    free(h);
    free(branch);
    array_free(b, &db);
    test_weight_close(b, &gain);
    test_weight_close(b, &next);
}

static void test_cuda_rows_residual_takes_rows_of_any_width(void **state)
{
    (void)state;
    static const int widths[] = {3, 64, 250, 2048, 4096, 8192, 16384};
    struct backend b = open_backend();
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++)
        for (int kind = 0; kind < 4; kind++)
            check_residual(&b, 2, widths[i], kind % 2 != 0, kind / 2 != 0,
                           i % 2 != 0 ? DTYPE_F32 : DTYPE_BF16);
    backend_close(&b);
}

static void test_cuda_rows_norm_says_how_wide_a_row_may_be(void **state)
{
    (void)state;
    struct backend b = open_backend();
    struct err err = {0};
    const int d = 16388;
    struct test_weight gain = gain_open(&b, 2, d);
    struct array x = array_output(&b, (size_t)d, DTYPE_F32);
    cuda_must_fail(kernels_rms_norm(b.s, x.data, DTYPE_F32, x.data, &gain.w, 1, 1e-6f, &err),
                   STATUS_UNSUPPORTED, &err, "rows of at most 16384");
    array_free(&b, &x);
    test_weight_close(&b, &gain);
    backend_close(&b);
}

/* ---- swiglu -------------------------------------------------------------------------------------
 */

static void test_cuda_rows_swiglu_holds_at_the_ends(void **state)
{
    (void)state;
    enum { F = 24 };
    static const float gates[F] = {0,     -0.0f,  1e-3f, -1e-3f, 1,        -1,   20,   -20,
                                   88,    -88,    89,    -89,    104,      -104, 1e4f, -1e4f,
                                   1e30f, -1e30f, 3e38f, -3e38f, INFINITY, 2,    -2,   0.5f};
    struct backend b = open_backend();
    struct err err = {0};
    for (int skip = 0; skip < 2; skip++) { /* 24 elements: wide; 23: one by one */
        const int f = F - skip;
        float x[2 * F];
        for (int j = 0; j < f; j++) {
            x[j] = rounded_to(gates[j], DTYPE_BF16);
            x[f + j] = 0.75f;
        }
        struct array in = array_put(&b, x, 2 * (size_t)f, DTYPE_BF16),
                     out = array_output(&b, (size_t)f, DTYPE_BF16);
        must(kernels_swiglu(b.s, out.data, in.data, 1, f, &err), &err);
        float *y = array_take(&b, &out);
        for (int j = 0; j < f; j++) {
            const double g = (double)x[j], want = g / (1.0 + exp(-g)) * 0.75;
            if (isinf(want))
                assert_true(isinf(y[j]) && y[j] > 0);
            else /* exp(-g) beyond fp32 makes it 0 */
                assert_true(fabs((double)y[j] - want) <= 1e-36 + 0x1p-8 * fabs(want));
        }
        free(y);
        array_free(&b, &in);
    }
    backend_close(&b);
}

/* ---- lists --------------------------------------------------------------------------------------
 */

static void test_cuda_rows_gather_takes_long_lists(void **state)
{
    (void)state;
    enum { N = 37, CHOSEN = 1100 };
    struct backend b = open_backend();
    struct err err = {0};
    for (int d = 15; d <= 16; d++) {
        const size_t width = (size_t)d;
        int32_t rows[CHOSEN];
        uint64_t random = 77;
        for (int i = 0; i < CHOSEN; i++)
            rows[i] = (int32_t)(random_bits(&random) % N);
        float *x = random_floats(12, N * width);
        struct array in = array_put(&b, x, N * width, DTYPE_F32),
                     out = array_output(&b, CHOSEN * width, DTYPE_BF16);
        must(kernels_gather_rows(b.s, out.data, in.data, rows, CHOSEN, d, &err), &err);
        float *y = array_take(&b, &out);
        for (size_t i = 0; i < CHOSEN * width; i++)
            assert_true(y[i] ==
                        rounded_to(x[(size_t)rows[i / width] * width + i % width], DTYPE_BF16));
        free(x);
        free(y);
        array_free(&b, &in);
    }
    backend_close(&b);
}

/* 600 rows of 20 numbers to and from pinned and ordinary memory by turns, at odd addresses. */
static void test_cuda_rows_travel_to_both_kinds_of_host_memory(void **state)
{
    (void)state;
    enum { N = 600, D = 20, STRIDE = D + 1 };
    struct backend b = open_backend();
    struct err err = {0};
    void *pinned = NULL;
    float *pageable = malloc((size_t)N * STRIDE * sizeof *pageable);
    assert_non_null(pageable);
    must(kernels_host_alloc(b.k, (size_t)N * STRIDE * sizeof(float), &pinned, &err), &err);
    float *x = random_floats(13, (size_t)N * D);
    struct array store = array_put(&b, x, (size_t)N * D, DTYPE_F32),
                 copy = array_output(&b, (size_t)N * D, DTYPE_F32);
    void *host[N];
    int32_t there[N], back[N];
    float *next[2] = {pinned, pageable};
    for (int i = 0; i < N; i++) { /* runs of ten: side by side, or a float apart */
        float **memory = &next[i / 10 % 3 == 2];
        host[i] = *memory;
        *memory += i / 10 % 2 != 0 ? STRIDE : D;
        there[i] = (i * 7) % N;
        back[i] = (i * 11) % N;
    }
    for (int i = 0; i < N; i++)
        memset(host[i], 0xff, D * sizeof(float));
    must(kernels_rows_to_host(b.s, host, store.data, there, N, D, &err), &err);
    must(kernels_stream_sync(b.s, &err), &err);
    for (int i = 0; i < N; i++)
        assert_memory_equal(host[i], x + (size_t)there[i] * D, D * sizeof *x);
    must(kernels_rows_from_host(b.s, copy.data, back, (const void *const *)host, N, D, &err), &err);
    float *y = array_take(&b, &copy);
    for (int i = 0; i < N; i++)
        assert_memory_equal(y + (size_t)back[i] * D, x + (size_t)there[i] * D, D * sizeof *x);
    free(y);
    free(x);
    free(pageable);
    kernels_host_free(b.k, pinned);
    array_free(&b, &store);
    backend_close(&b);
}

int main(void)
{
    if (!cuda_world_is_there("test_cuda_rows"))
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_rows_norm_takes_rows_of_any_width),
        cmocka_unit_test(test_cuda_rows_norm_gives_the_same_bits_at_any_address),
        cmocka_unit_test(test_cuda_rows_residual_takes_rows_of_any_width),
        cmocka_unit_test(test_cuda_rows_norm_says_how_wide_a_row_may_be),
        cmocka_unit_test(test_cuda_rows_swiglu_holds_at_the_ends),
        cmocka_unit_test(test_cuda_rows_gather_takes_long_lists),
        cmocka_unit_test(test_cuda_rows_travel_to_both_kinds_of_host_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
