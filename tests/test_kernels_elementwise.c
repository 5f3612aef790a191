/* Row-wise operations against plain double: rows, norms, SwiGLU, gate, top-k. */
#include "tests/kernels_reference.h"

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
static const int widths[] = {1, 3, 16, 17, 64, 100, 130};
enum { N_WIDTHS = sizeof widths / sizeof widths[0], N = 5 };
static const float eps = 1e-6f;

/* Widths of whole 16-byte units, as a model's are: the GPU asks for them. */
static const int gpu_widths[] = {8, 16, 64, 104, 1032};

/* Calls the check for every backend of this machine and every width. */
static void for_all(void (*check)(const struct backend *b, int d, enum dtype dtype))
{
    struct backend b;
    for (int i = 0; i < N_ISAS; i++)
        for (int n_threads = 1; n_threads <= 2; n_threads++) {
            if (!backend_open(all_isas[i], n_threads, &b))
                continue;
            for (int a = 0; a < N_WIDTHS; a++)
                for (int t = 0; t < 3; t++)
                    check(&b, widths[a], dtypes[t]);
            backend_close(&b);
        }
    if (!backend_open("cuda", 1, &b))
        return;
    for (int a = 0; a < 5; a++)
        check(&b, gpu_widths[a], dtypes[a % 3]);
    backend_close(&b);
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
    struct test_weight gain[2] = {test_weight_open(b, 3, 1, d, dtype, 1),
                                  test_weight_open(b, 4, 1, d, dtype, 0)};
    struct array x = array_put(b, branch, len, DTYPE_F32), h = array_put(b, start, len, DTYPE_F32);
    struct array sum = array_put(b, start, len, DTYPE_F32);
    struct array y = array_output(b, len, b->activation),
                 next = array_output(b, len, b->activation);
    struct array wide = array_output(b, len, DTYPE_F32);
    struct err err = {0};
    must(kernels_rms_norm(b->s, y.data, y.dtype, x.data, &gain[0].w, N, eps, &err), &err);
    must(kernels_residual_norm(b->s, h.data, x.data, &gain[0].w, next.data, next.dtype, &gain[1].w,
                               N, d, eps, &err),
         &err);
    /* Without norms it is the plain sum; a norm in place equals one beside. */
    must(
        kernels_residual_norm(b->s, sum.data, x.data, NULL, NULL, DTYPE_F32, NULL, N, d, eps, &err),
        &err);
    must(kernels_rms_norm(b->s, wide.data, DTYPE_F32, x.data, &gain[0].w, N, eps, &err), &err);
    must(kernels_rms_norm(b->s, x.data, DTYPE_F32, x.data, &gain[0].w, N, eps, &err), &err);
    float *got_y = array_take(b, &y), *got_h = array_take(b, &h), *got_next = array_take(b, &next);
    float *got_sum = array_take(b, &sum), *beside = array_take(b, &wide), *in = array_take(b, &x);
    for (int i = 0; i < N; i++) {
        const size_t row = (size_t)i * (size_t)d;
        double scale = inverse_rms(branch + row, d), scale_h = inverse_rms(got_h + row, d);
        for (int j = 0; j < d; j++) {
            size_t at = row + (size_t)j;
            double want = (double)branch[at] * scale * test_weight_at(&gain[0], (size_t)j);
            assert_stored("norm", (double)got_y[at], want, fabs(want), b->activation);
            assert_close("norm", (double)beside[at], want, fabs(want), DTYPE_F32);
            assert_close("norm", (double)got_h[at], (double)start[at] + want,
                         fabs(want) + fabs((double)start[at]), DTYPE_F32);
            want = (double)got_h[at] * scale_h * test_weight_at(&gain[1], (size_t)j);
            assert_stored("norm", (double)got_next[at], want, fabs(want), b->activation);
            assert_true(got_sum[at] == start[at] + branch[at]);
        }
    }
    assert_memory_equal(in, beside, len * sizeof *in);
    float *all[] = {got_y, got_h, got_next, got_sum, beside, in, branch, start};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
    test_weight_close(b, &gain[0]);
    test_weight_close(b, &gain[1]);
}

static void test_kernels_norms_match_double(void **state)
{
    (void)state;
    for_all(check_norms);
}

static void check_swiglu(const struct backend *b, int d, enum dtype dtype)
{
    (void)dtype;
    const size_t f = (size_t)d;
    float *x = random_floats(5, 2 * N * f);
    for (size_t i = 0; i < 2 * N * f; i++)
        if (i / f % 2 == 0)
            x[i] *= i % 3 == 0 ? 100.0f : 8.0f; /* the gates */
    round_all(x, 2 * N * f, b->activation);
    struct array input = array_put(b, x, 2 * N * f, b->activation);
    struct array output = array_output(b, N * f, b->activation);
    struct err err = {0};
    must(kernels_swiglu(b->s, output.data, input.data, N, d, &err), &err);
    float *y = array_take(b, &output);
    for (size_t i = 0; i < N * f; i++) {
        const double gate = (double)x[i / f * 2 * f + i % f];
        double want = gate / (1.0 + exp(-gate)) * (double)x[i / f * 2 * f + f + i % f];
        assert_stored("swiglu", (double)y[i], want, fabs(want), b->activation);
    }
    assert_int_equal(kernels_swiglu(b->s, input.data, input.data, N, d, &err), STATUS_INVALID);
    free(array_take(b, &input));
    free(x);
    free(y);
}

static void test_kernels_swiglu_matches_double(void **state)
{
    (void)state;
    for_all(check_swiglu);
}

static void check_gate(const struct backend *b, int d, enum dtype dtype)
{
    float *x = random_floats(7, (size_t)N * (size_t)d);
    struct test_weight w = test_weight_open(b, 8, 1, d, dtype, 1);
    struct test_weight bias = test_weight_open(b, 9, 1, 1, dtype, 0);
    const int32_t rows[] = {4, 0, 2};
    struct array input = array_put(b, x, (size_t)N * (size_t)d, DTYPE_F32);
    struct array output = array_output(b, 3, DTYPE_F32);
    struct err err = {0};
    must(kernels_gate(b->s, output.data, input.data, rows, 3, &w.w, &bias.w, &err), &err);
    float *lambda = array_take(b, &output);
    for (int i = 0; i < 3; i++) {
        double z = test_weight_at(&bias, 0), scale = 1.0;
        for (int j = 0; j < d; j++) {
            double term = (double)x[rows[i] * d + j] * test_weight_at(&w, (size_t)j);
            z += term;
            scale += fabs(term);
        }
        assert_close("gate", (double)lambda[i], 1.0 / (1.0 + exp(-z)), scale, DTYPE_F32);
        struct array one = array_output(b, 1, DTYPE_F32);
        must(kernels_gate(b->s, one.data, input.data, rows + i, 1, &w.w, &bias.w, &err), &err);
        float *alone = array_take(b, &one);
        assert_memory_equal(alone, lambda + i, sizeof *alone);
        free(alone);
    }
    free(lambda);
    array_free(b, &input);
    test_weight_close(b, &w);
    test_weight_close(b, &bias);
    free(x);
}

static void test_kernels_gate_matches_double(void **state)
{
    (void)state;
    for_all(check_gate);
}

enum { VOCAB = 9, SLOTS = 6 };

static struct kernels_stream *rows_stream(const struct backend *b)
{
    const struct kernels_limits limits = {.n_rows = N,
                                          .n_segments = 1,
                                          .block_size = 16,
                                          .n_slots = SLOTS,
                                          .vocab_size = VOCAB,
                                          .n_heads = 1,
                                          .n_kv_heads = 1,
                                          .head_dim = 16};
    return stream_open(b, &limits);
}

static void check_rows(const struct backend *b, int d, enum dtype dtype)
{
    const size_t len = (size_t)N * (size_t)d, row_bytes = (size_t)d * sizeof(float);
    struct test_weight embed = test_weight_open(b, 9, VOCAB, d, dtype, 3);
    float *store = random_floats(10, (size_t)SLOTS * (size_t)d);
    const int32_t ids[N] = {8, -1, 0, -1, 3}, slots[N] = {3, 5, 2, 0, 1};
    const struct kernels_segment segment = {.n_rows = N};
    const struct kernels_batch batch = {
        .n_rows = N, .n_segments = 1, .segments = &segment, .slots = slots, .ids = ids};
    struct kernels_stream *s = rows_stream(b);
    struct array places = array_put(b, store, (size_t)SLOTS * (size_t)d, DTYPE_F32);
    struct array loaded = array_output(b, len, DTYPE_F32);
    const int32_t rows[] = {3, 0};
    struct array some = array_output(b, 2 * (size_t)d, b->activation);
    struct err err = {0};
    must(kernels_bind(s, &batch, NULL, 0, &err), &err);
    must(kernels_load_rows(s, loaded.data, places.data, &embed.w, N, &err), &err);
    must(kernels_gather_rows(s, some.data, loaded.data, rows, 2, d, &err), &err);
    must(kernels_store_rows(s, places.data, loaded.data, N, d, &err), &err);
    must(kernels_stream_sync(s, &err), &err);
    float *x = array_get(b, &loaded), *y = array_take(b, &some), *after = array_take(b, &places);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < d; j++) {
            double want = ids[i] < 0 ? (double)store[slots[i] * d + j]
                                     : test_weight_at(&embed, (size_t)(ids[i] * d + j));
            assert_true((double)x[i * d + j] == want);
        }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < d; j++)
            assert_true(y[i * d + j] == rounded_to(x[rows[i] * d + j], b->activation));
    for (int i = 0; i < N; i++)
        assert_memory_equal(after + slots[i] * d, x + i * d, row_bytes);
    assert_memory_equal(after + 4 * d, store + 4 * d, row_bytes); /* nobody's slot */
    array_free(b, &loaded);
    kernels_stream_destroy(s);
    test_weight_close(b, &embed);
    free(x);
    free(y);
    free(after);
    free(store);
}

static void test_kernels_rows_move_unchanged(void **state)
{
    (void)state;
    for_all(check_rows);
}

/* Lists of rows between a store and host memory anywhere, as in messages. */
static void check_rows_on_host(const struct backend *b, int d, enum dtype dtype)
{
    (void)dtype;
    const size_t row = (size_t)d, row_bytes = row * sizeof(float);
    float *store = random_floats(11, SLOTS * row);
    struct array places = array_put(b, store, SLOTS * row, DTYPE_F32);
    const int32_t slots[] = {4, 0, 5};
    struct err err = {0};
    void *pinned;
    must(kernels_host_alloc(b->k, 3 * (row_bytes + 4), &pinned, &err), &err);
    assert_int_equal((uintptr_t)pinned % 64, 0);
    void *host[3];
    for (int i = 0; i < 3; i++)
        host[i] = (char *)pinned + (size_t)i * (row_bytes + 4) + 4;
    must(kernels_rows_to_host(b->s, host, places.data, slots, 3, d, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(host[i], store + slots[i] * d, row_bytes);
    const void *const turned[] = {host[1], host[2], host[0]};
    must(kernels_rows_from_host(b->s, places.data, slots, turned, 3, d, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
    float *after = array_take(b, &places);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(after + slots[i] * d, store + slots[(i + 1) % 3] * d, row_bytes);
    assert_memory_equal(after + row, store + row, 3 * row_bytes); /* the slots between */
    const int32_t below[] = {-1};
    assert_int_equal(kernels_rows_to_host(b->s, host, places.data, below, 1, d, &err),
                     STATUS_INVALID);
    assert_int_equal(kernels_rows_from_host(b->s, places.data, below, turned, 1, d, &err),
                     STATUS_INVALID);
    kernels_host_free(b->k, pinned);
    free(after);
    free(store);
}

static void test_kernels_rows_travel_to_host_memory_and_back(void **state)
{
    (void)state;
    for_all(check_rows_on_host);
}

/* Rank by counting, the definition itself. */
static void check_top_k(const struct backend *b, const struct array *logits, const float *host,
                        int n, int vocab, int top)
{
    const size_t len = (size_t)n * (size_t)top;
    struct array values = array_output(b, len, DTYPE_F32);
    struct array ids = array_output(b, len, DTYPE_F32); /* as many bytes */
    int32_t *got = malloc(len * sizeof *got);
    struct err err = {0};
    must(kernels_top_k(b->s, ids.data, values.data, logits->data, n, vocab, top, &err), &err);
    must(kernels_download(b->s, got, ids.data, len * sizeof *got, &err), &err);
    float *value = array_take(b, &values);
    for (int i = 0; i < n; i++)
        for (int r = 0; r < top; r++) {
            const float *row = host + (size_t)i * (size_t)vocab;
            const int32_t id = got[i * top + r];
            int n_before = 0;
            assert_true(id >= 0 && id < vocab);
            for (int j = 0; j < vocab; j++) {
                double a = isnan(row[j]) ? -INFINITY : (double)row[j];
                double c = isnan(row[id]) ? -INFINITY : (double)row[id];
                bool nan_later = a == c && !isnan(row[j]) && isnan(row[id]);
                bool nan_first = a == c && isnan(row[j]) && !isnan(row[id]);
                n_before += a > c || nan_later || (a == c && !nan_first && !nan_later && j < id);
            }
            assert_int_equal(n_before, r);
            assert_memory_equal(&value[i * top + r], &row[id], sizeof *row);
        }
    free(array_take(b, &ids));
    free(value);
    free(got);
}

static void test_kernels_top_k_orders_values_ids_and_nan(void **state)
{
    (void)state;
    enum { ROWS = 3, ENTRIES = 211 };
    float *logits = random_floats(12, (size_t)ROWS * ENTRIES);
    for (int j = 0; j < ENTRIES; j++) {
        logits[ENTRIES + j] = (float)(j % 7); /* many ties */
        if (j % 5 != 0)
            logits[2 * ENTRIES + j] = j % 3 == 0 ? NAN : -INFINITY;
    }
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        struct backend b;
        if (!backend_open(n_threads == 4 ? "cuda" : "auto", n_threads, &b))
            continue;
        struct array input = array_put(&b, logits, (size_t)ROWS * ENTRIES, DTYPE_F32);
        static const int tops[] = {1, 2, 20, 100, ENTRIES};
        for (int i = 0; i < (b.is_gpu ? 3 : 5); i++)
            check_top_k(&b, &input, logits, ROWS, ENTRIES, tops[i]);
        struct err err = {0};
        assert_int_equal(
            kernels_top_k(b.s, input.data, input.data, input.data, 1, ENTRIES, ENTRIES + 1, &err),
            STATUS_INVALID);
        array_free(&b, &input);
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
        cmocka_unit_test(test_kernels_rows_travel_to_host_memory_and_back),
        cmocka_unit_test(test_kernels_top_k_orders_values_ids_and_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
