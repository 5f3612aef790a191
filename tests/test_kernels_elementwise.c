/* Row-wise operations against plain double: rows, norms, SwiGLU, gate, top-k. */
#include "tests/kernels_reference.h"

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
static const int widths[] = {1, 3, 16, 17, 64, 100, 130};
enum { N_WIDTHS = sizeof widths / sizeof widths[0], N = 5 };
static const float eps = 1e-6f;

/* Calls the check for every level this machine runs and every width. */
static void for_all(void (*check)(const struct backend *b, int d, enum dtype dtype))
{
    for (int i = 0; i < N_ISAS; i++)
        for (int n_threads = 1; n_threads <= 2; n_threads++) {
            struct backend b;
            if (!backend_open(all_isas[i], n_threads, &b))
                continue;
            for (int a = 0; a < N_WIDTHS; a++)
                for (int t = 0; t < 3; t++)
                    check(&b, widths[a], dtypes[t]);
            backend_close(&b);
        }
}

static double inverse_rms(const float *x, int d)
{
    double sum = 0.0;
    for (int j = 0; j < d; j++)
        sum += (double)x[j] * (double)x[j];
    return 1.0 / sqrt(sum / d + (double)eps);
}

static void check_norms(const struct backend *b, int d, enum dtype dtype)
{
    const size_t len = (size_t)N * (size_t)d;
    float *branch = random_floats(1, len), *start = random_floats(2, len);
    struct random_weight data[2] = {random_weight(3, (size_t)d, dtype, 1),
                                    random_weight(4, (size_t)d, dtype, 0)};
    struct kernels_weight gain[2];
    for (int i = 0; i < 2; i++)
        gain[i] =
            (struct kernels_weight){.data = data[i].data, .dtype = dtype, .rows = 1, .cols = d};
    float *y = guarded_floats(len), *h = guarded_floats(len), *next = guarded_floats(len);
    struct err err = {0};
    must(kernels_rms_norm(b->s, y, branch, &gain[0], N, eps, &err), &err);
    memcpy(h, start, len * sizeof *h);
    must(kernels_residual_norm(b->s, h, branch, &gain[0], next, &gain[1], N, d, eps, &err), &err);
    for (int i = 0; i < N; i++) {
        const size_t row = (size_t)i * (size_t)d;
        double scale = inverse_rms(branch + row, d), scale_h = inverse_rms(h + row, d);
        for (int j = 0; j < d; j++) {
            size_t at = row + (size_t)j;
            double want = (double)branch[at] * scale * weight_at(data[0].data, dtype, (size_t)j);
            assert_close("norm", (double)y[at], want, fabs(want), DTYPE_F32);
            assert_close("norm", (double)h[at], (double)start[at] + want,
                         fabs(want) + fabs((double)start[at]), DTYPE_F32);
            want = (double)h[at] * scale_h * weight_at(data[1].data, dtype, (size_t)j);
            assert_close("norm", (double)next[at], want, fabs(want), DTYPE_F32);
        }
    }
    /* Without norms it is the plain sum; a norm in place equals one beside. */
    memcpy(h, start, len * sizeof *h);
    must(kernels_residual_norm(b->s, h, branch, NULL, NULL, NULL, N, d, eps, &err), &err);
    for (size_t i = 0; i < len; i++)
        assert_true(h[i] == start[i] + branch[i]);
    must(kernels_rms_norm(b->s, branch, branch, &gain[0], N, eps, &err), &err);
    assert_memory_equal(branch, y, len * sizeof *y);
    guarded_free(y, len);
    guarded_free(h, len);
    guarded_free(next, len);
    free(branch);
    free(start);
    free(data[0].owner);
    free(data[1].owner);
}

static void test_kernels_norms_match_double(void **state)
{
    (void)state;
    for_all(check_norms);
}

static void check_swiglu(const struct backend *b, int d, enum dtype dtype)
{
    (void)dtype;
    const size_t len = (size_t)N * (size_t)d;
    float *gate = random_floats(5, len), *up = random_floats(6, len);
    for (size_t i = 0; i < len; i++)
        gate[i] *= i % 3 == 0 ? 100.0f : 8.0f;
    float *y = guarded_floats(len);
    struct err err = {0};
    must(kernels_swiglu(b->s, y, gate, up, N, d, &err), &err);
    for (size_t i = 0; i < len; i++) {
        double want = (double)gate[i] / (1.0 + exp(-(double)gate[i])) * (double)up[i];
        assert_close("swiglu", (double)y[i], want, fabs(want), DTYPE_F32);
    }
    must(kernels_swiglu(b->s, gate, gate, up, N, d, &err), &err);
    assert_memory_equal(gate, y, len * sizeof *y);
    guarded_free(y, len);
    free(gate);
    free(up);
}

static void test_kernels_swiglu_matches_double(void **state)
{
    (void)state;
    for_all(check_swiglu);
}

static void check_gate(const struct backend *b, int d, enum dtype dtype)
{
    float *x = random_floats(7, (size_t)N * (size_t)d);
    struct random_weight data = random_weight(8, (size_t)d + 1, dtype, 1);
    struct kernels_weight w = {.data = data.data, .dtype = dtype, .rows = 1, .cols = d};
    struct kernels_weight bias = {
        .data = data.data + (size_t)d * dtype_bytes(dtype), .dtype = dtype, .rows = 1, .cols = 1};
    const int32_t rows[] = {4, 0, 2};
    float *lambda = guarded_floats(3), *alone = guarded_floats(1);
    struct err err = {0};
    must(kernels_gate(b->s, lambda, x, rows, 3, &w, &bias, &err), &err);
    for (int i = 0; i < 3; i++) {
        double z = weight_at(bias.data, dtype, 0), scale = 1.0;
        for (int j = 0; j < d; j++) {
            double term = (double)x[rows[i] * d + j] * weight_at(w.data, dtype, (size_t)j);
            z += term;
            scale += fabs(term);
        }
        assert_close("gate", (double)lambda[i], 1.0 / (1.0 + exp(-z)), scale, DTYPE_F32);
        must(kernels_gate(b->s, alone, x, rows + i, 1, &w, &bias, &err), &err);
        assert_memory_equal(alone, lambda + i, sizeof *alone);
    }
    guarded_free(lambda, 3);
    guarded_free(alone, 1);
    free(data.owner);
    free(x);
}

static void test_kernels_gate_matches_double(void **state)
{
    (void)state;
    for_all(check_gate);
}

static void check_rows(const struct backend *b, int d, enum dtype dtype)
{
    enum { VOCAB = 9, SLOTS = 6 };
    struct random_weight data = random_weight(9, (size_t)VOCAB * (size_t)d, dtype, 3);
    struct kernels_weight embed = {.data = data.data, .dtype = dtype, .rows = VOCAB, .cols = d};
    float *store = random_floats(10, (size_t)SLOTS * (size_t)d);
    const int32_t ids[N] = {8, -1, 0, -1, 3}, slots[N] = {-1, 5, 2, 0, 1};
    const size_t len = (size_t)N * (size_t)d, row_bytes = (size_t)d * sizeof(float);
    float *x = guarded_floats(len), *y = guarded_floats(2 * (size_t)d);
    struct err err = {0};
    must(kernels_load_rows(b->s, x, store, slots, &embed, ids, N, &err), &err);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < d; j++) {
            double want = ids[i] < 0
                              ? (double)store[slots[i] * d + j]
                              : weight_at(data.data, dtype, (size_t)ids[i] * (size_t)d + (size_t)j);
            assert_true((double)x[i * d + j] == want);
        }
    const int32_t rows[] = {3, 0}, to[] = {4, 1};
    must(kernels_gather_rows(b->s, y, x, rows, 2, d, &err), &err);
    assert_memory_equal(y, x + 3 * d, row_bytes);
    assert_memory_equal(y + d, x, row_bytes);
    must(kernels_store_rows(b->s, store, to, y, 2, d, &err), &err);
    assert_memory_equal(store + 4 * d, y, row_bytes);
    assert_memory_equal(store + d, y + d, row_bytes);
    const int32_t too_large[] = {VOCAB};
    assert_int_equal(kernels_load_rows(b->s, x, store, slots, &embed, too_large, 1, &err),
                     STATUS_INVALID);
    assert_non_null(strstr(err.message, "id 9"));
    guarded_free(x, len);
    guarded_free(y, 2 * (size_t)d);
    free(store);
    free(data.owner);
}

static void test_kernels_rows_move_unchanged(void **state)
{
    (void)state;
    for_all(check_rows);
}

/* Rank by counting, the definition itself. */
static void check_top_k(const struct backend *b, const float *logits, int n, int vocab, int top)
{
    const size_t len = (size_t)n * (size_t)top;
    float *values = guarded_floats(len);
    int32_t *ids = malloc(len * sizeof *ids);
    struct err err = {0};
    must(kernels_top_k(b->s, ids, values, logits, n, vocab, top, &err), &err);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < top; r++) {
            const float *row = logits + (size_t)i * (size_t)vocab;
            const int32_t id = ids[i * top + r];
            int n_before = 0;
            for (int j = 0; j < vocab; j++) {
                double a = isnan(row[j]) ? -INFINITY : (double)row[j];
                double c = isnan(row[id]) ? -INFINITY : (double)row[id];
                bool nan_later = a == c && !isnan(row[j]) && isnan(row[id]);
                bool nan_first = a == c && isnan(row[j]) && !isnan(row[id]);
                n_before += a > c || nan_later || (a == c && !nan_first && !nan_later && j < id);
            }
            assert_int_equal(n_before, r);
            assert_memory_equal(&values[i * top + r], &row[id], sizeof *row);
        }
    guarded_free(values, len);
    free(ids);
}

static void test_kernels_top_k_orders_values_ids_and_nan(void **state)
{
    (void)state;
    enum { ROWS = 3, VOCAB = 211 };
    float *logits = random_floats(12, (size_t)ROWS * VOCAB);
    for (int j = 0; j < VOCAB; j++) {
        logits[VOCAB + j] = (float)(j % 7); /* many ties */
        if (j % 5 != 0)
            logits[2 * VOCAB + j] = j % 3 == 0 ? NAN : -INFINITY;
    }
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        struct backend b;
        assert_true(backend_open("auto", n_threads, &b));
        static const int tops[] = {1, 2, 20, 100, VOCAB};
        for (int i = 0; i < 5; i++)
            check_top_k(&b, logits, ROWS, VOCAB, tops[i]);
        int32_t id;
        struct err err = {0};
        assert_int_equal(kernels_top_k(b.s, &id, logits, logits, 1, VOCAB, VOCAB + 1, &err),
                         STATUS_INVALID);
        backend_close(&b);
    }
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_norms_match_double),
        cmocka_unit_test(test_kernels_swiglu_matches_double),
        cmocka_unit_test(test_kernels_gate_matches_double),
        cmocka_unit_test(test_kernels_rows_move_unchanged),
        cmocka_unit_test(test_kernels_top_k_orders_values_ids_and_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
