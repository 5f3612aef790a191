/* Linear layers on the GPU: every bucket and joined weights against a plain sum in double, and with
 * one order of additions bit for bit whatever else is in the batch, recorded or not. */
#include "tests/cuda_world.h"
#include "tests/kernels_reference.h"

#include "kernels/cuda_linear_kernels.h"

enum { MAX_JOBS = KERNELS_LINEAR_MAX_JOBS };

static struct backend open_backend(bool is_deterministic)
{
    struct backend b;
    assert_true(backend_open_as("cuda", 1, is_deterministic, &b));
    return b;
}

/* Weights that lie back to back, or each for itself. */
struct layer {
    struct test_weight weights[MAX_JOBS];
    const struct kernels_weight *jobs[MAX_JOBS];
    int n_jobs, k, n_out;
};

static void layer_open(const struct backend *b, struct layer *l, const int *rows, int n_jobs, int k,
                       bool is_joined, uint64_t seed)
{
    const struct weight *sources[MAX_JOBS] = {0};
    struct kernels_weight loaded[MAX_JOBS] = {0};
    struct err err = {0};
    *l = (struct layer){.n_jobs = n_jobs, .k = k};
    for (int j = 0; j < n_jobs; j++) {
        l->weights[j] = test_weight_make(b, seed + (uint64_t)j, rows[j], k, DTYPE_BF16, 0);
        sources[j] = &l->weights[j].source;
        l->n_out += rows[j];
    }
    if (is_joined)
        must(kernels_weight_load_joined(b->k, sources, n_jobs, loaded, &err), &err);
    for (int j = 0; j < n_jobs; j++) {
        if (is_joined)
            l->weights[j].w = loaded[j];
        else
            test_weight_load(b, &l->weights[j]);
        l->jobs[j] = &l->weights[j].w;
    }
    must(kernels_weights_ready(b->k, &err), &err);
}

static void layer_close(const struct backend *b, struct layer *l)
{
    for (int j = 0; j < l->n_jobs; j++)
        test_weight_close(b, &l->weights[j]);
}

static float *random_rows(uint64_t seed, int n, int k)
{
    float *x = random_floats(seed, (size_t)n * (size_t)k);
    round_all(x, (size_t)n * (size_t)k, DTYPE_BF16);
    return x;
}

/* y [n, n_out] of rows [first, first + n) of x; to be freed. */
static float *run(const struct backend *b, const struct layer *l, const struct array *x, int first,
                  int n, enum dtype y_dtype)
{
    struct err err = {0};
    struct array y = array_output(b, (size_t)n * (size_t)l->n_out, y_dtype);
    const uint16_t *rows = x->data;
    must(kernels_linear(b->s, y.data, y_dtype, rows + (size_t)first * (size_t)l->k, l->jobs,
                        l->n_jobs, n, &err),
         &err);
    return array_take(b, &y);
}

static void expect_double(const struct layer *l, const float *x, const float *y, int n,
                          enum dtype y_dtype)
{
    for (int i = 0; i < n; i++)
        for (int j = 0, at = 0; j < l->n_jobs; at += l->weights[j++].source.rows)
            for (int o = 0; o < l->weights[j].source.rows; o++) {
                double want = 0.0, scale = 0.0;
                for (int c = 0; c < l->k; c++) {
                    const double term =
                        (double)x[(size_t)i * (size_t)l->k + (size_t)c] *
                        test_weight_at(&l->weights[j], (size_t)o * (size_t)l->k + (size_t)c);
                    want += term;
                    scale += fabs(term);
                }
                assert_stored("linear_gpu",
                              (double)y[(size_t)i * (size_t)l->n_out + (size_t)(at + o)], want,
                              scale, y_dtype);
            }
}

static void check(const struct backend *b, const int *rows, int n_jobs, int k, int n,
                  bool is_joined, enum dtype y_dtype)
{
    struct layer l;
    layer_open(b, &l, rows, n_jobs, k, is_joined, (uint64_t)(k + n));
    float *x = random_rows((uint64_t)n, n, k);
    struct array in = array_put(b, x, (size_t)n * (size_t)k, DTYPE_BF16);
    for (int again = 0; again < 2; again++) { /* the first call times algorithms, the second runs */
        float *y = run(b, &l, &in, 0, n, y_dtype);
        expect_double(&l, x, y, n, y_dtype);
        free(y);
    }
    array_free(b, &in);
    free(x);
    layer_close(b, &l);
}

/* Shapes with and without 16-byte rows, and every kind of bucket. */
static void check_shapes(bool is_deterministic)
{
    static const int outs[] = {64, 49, 2, 72};
    static const int ks[] = {64, 16, 50, 33};
    static const int ns[] = {1, 3, 8, 9, 33, 64, 65, 130};
    struct backend b = open_backend(is_deterministic);
    for (size_t i = 0; i < sizeof ns / sizeof ns[0]; i++)
        for (size_t j = 0; j < sizeof outs / sizeof outs[0]; j++)
            check(&b, &outs[j], 1, ks[(i + j) % 4], ns[i], false,
                  (i + j) % 2 != 0 ? DTYPE_F32 : DTYPE_BF16);
    backend_close(&b);
}

static void test_cuda_linear_matches_double(void **state)
{
    (void)state;
    check_shapes(false);
}

static void test_cuda_linear_matches_double_in_one_order(void **state)
{
    (void)state;
    check_shapes(true);
}

static void test_cuda_linear_takes_joined_and_scattered_weights(void **state)
{
    (void)state;
    static const int qkv[] = {64, 32, 32}, odd[] = {49, 7, 30, 3};
    for (int is_deterministic = 0; is_deterministic < 2; is_deterministic++) {
        struct backend b = open_backend(is_deterministic != 0);
        for (int is_joined = 0; is_joined < 2; is_joined++) {
            check(&b, qkv, 3, 64, 5, is_joined != 0, DTYPE_BF16);
            check(&b, qkv, 3, 64, 70, is_joined != 0, DTYPE_F32);
            check(&b, odd, 4, 40, 3, is_joined != 0, DTYPE_F32);
            check(&b, odd, 4, 40, 67, is_joined != 0, DTYPE_BF16);
        }
        backend_close(&b);
    }
}

static void test_cuda_linear_matches_double_on_random_shapes(void **state)
{
    (void)state;
    uint64_t seed = 20, random = seed * 0x9e3779b97f4a7c15ull + 1;
    print_message("seed %llu\n", (unsigned long long)seed);
    struct backend b[2] = {open_backend(false), open_backend(true)};
    for (int round = 0; round < 24; round++) {
        int rows[MAX_JOBS];
        const int n_jobs = 1 + (int)(random_bits(&random) % MAX_JOBS);
        for (int j = 0; j < n_jobs; j++)
            rows[j] = 2 + (int)(random_bits(&random) % 40);
        const int k = 1 + (int)(random_bits(&random) % 90),
                  n = 1 + (int)(random_bits(&random) % 90);
        check(&b[round % 2], rows, n_jobs, k, n, random_bits(&random) % 2 != 0,
              random_bits(&random) % 2 != 0 ? DTYPE_F32 : DTYPE_BF16);
    }
    backend_close(&b[0]);
    backend_close(&b[1]);
}

/* Rows of one batch of MOST, alone and in batches of any size, from any place. n_out decides
 * whether the algorithm may take several slices at once, k whether rows are whole 16 bytes. */
static void check_invariance(int n_out, int k, enum dtype y_dtype)
{
    enum { MOST = 300 };
    static const int sizes[] = {1, 2, 17, 63, 64, 65, 128, 129, 200, 256, 300};
    struct backend b = open_backend(true);
    struct layer l;
    const int rows[] = {n_out / 2, n_out - n_out / 2};
    layer_open(&b, &l, rows, 2, k, true, 3);
    float *x = random_rows(4, MOST, k);
    struct array in = array_put(&b, x, (size_t)MOST * (size_t)k, DTYPE_BF16);
    float *all = malloc((size_t)MOST * (size_t)n_out * sizeof *all);
    assert_non_null(all);
    for (int i = 0; i < MOST; i += 37) { /* rows alone, before the batches */
        float *y = run(&b, &l, &in, i, 1, y_dtype);
        memcpy(all + (size_t)i * (size_t)n_out, y, (size_t)n_out * sizeof *y);
        free(y);
    }
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        const int n = sizes[s], first = (MOST - n) / 2;
        float *y = run(&b, &l, &in, first, n, y_dtype);
        for (int i = 0; i < MOST; i += 37)
            if (i >= first && i < first + n)
                assert_memory_equal(y + (size_t)(i - first) * (size_t)n_out,
                                    all + (size_t)i * (size_t)n_out, (size_t)n_out * sizeof *y);
        free(y);
    }
    free(all);
    array_free(&b, &in);
    free(x);
    layer_close(&b, &l);
    backend_close(&b);
}

static void test_cuda_linear_is_batch_invariant_in_one_order(void **state)
{
    (void)state;
    check_invariance(64, 72, DTYPE_F32);
    check_invariance(66, 64, DTYPE_BF16); /* the stand-in's first choice here depends on n */
    check_invariance(49, 33, DTYPE_F32);
}

/* Rows of zeros give the same sums in any order: they must not decide that slices may be joined. */
static void test_cuda_linear_does_not_judge_by_zeros(void **state)
{
    (void)state;
    enum { N = 128, OUT = 66, K = 64 };
    struct backend b = open_backend(true);
    struct layer l;
    const int rows[] = {OUT};
    layer_open(&b, &l, rows, 1, K, false, 5);
    float *zeros = calloc((size_t)N * K, sizeof *zeros), *x = random_rows(6, N, K);
    assert_non_null(zeros);
    struct array in = array_put(&b, zeros, (size_t)N * K, DTYPE_BF16);
    free(run(&b, &l, &in, 0, N, DTYPE_F32));
    array_free(&b, &in);
    in = array_put(&b, x, (size_t)N * K, DTYPE_BF16);
    float *one = run(&b, &l, &in, 70, 1, DTYPE_F32), *all = run(&b, &l, &in, 0, N, DTYPE_F32);
    assert_memory_equal(one, all + 70 * OUT, OUT * sizeof *one);
    free(one);
    free(all);
    array_free(&b, &in);
    free(x);
    free(zeros);
    layer_close(&b, &l);
    backend_close(&b);
}

/* Recorded at first sight (no algorithm timed or compared yet), then replayed on other rows. */
static void check_recorded(bool is_deterministic, int n)
{
    enum { OUT = 64, K = 48 };
    struct backend b = open_backend(is_deterministic);
    struct layer l;
    const int rows[] = {OUT};
    struct err err = {0};
    bool is_done = false;
    const size_t n_in = (size_t)n * K, n_out = (size_t)n * OUT;
    layer_open(&b, &l, rows, 1, K, false, 7);
    const struct kernels_limits limits = {.n_rows = n,
                                          .n_segments = 1,
                                          .n_table = 4,
                                          .block_size = 16,
                                          .n_slots = 4,
                                          .vocab_size = 50,
                                          .n_heads = 1,
                                          .n_kv_heads = 1,
                                          .head_dim = 16};
    must(kernels_stream_reserve(b.s, &limits, &err), &err);
    float *first = random_rows(8, n, K), *second = random_rows(9, n, K);
    struct array x = array_put(&b, first, n_in, DTYPE_BF16), y = array_output(&b, n_out, DTYPE_F32);
    must(kernels_record_begin(b.s, &err), &err);
    must(kernels_linear(b.s, y.data, DTYPE_F32, x.data, l.jobs, 1, n, &err), &err);
    must(kernels_record_end(b.s, 1, &err), &err);
    float *got = array_get(&b, &y);
    expect_double(&l, first, got, n, DTYPE_F32);
    free(got);
    struct array other = array_put(&b, second, n_in, DTYPE_BF16);
    assert_int_equal(
        cudaMemcpy(x.data, other.data, n_in * sizeof(uint16_t), cudaMemcpyDeviceToDevice),
        cudaSuccess);
    must(kernels_replay(b.s, 1, &is_done, &err), &err);
    assert_true(is_done);
    got = array_get(&b, &y);
    expect_double(&l, second, got, n, DTYPE_F32);
    if (is_deterministic) { /* the same bits as unrecorded */
        float *again = run(&b, &l, &x, 0, n, DTYPE_F32);
        assert_memory_equal(again, got, n_out * sizeof *got);
        free(again);
    }
    free(got);
    array_free(&b, &other);
    array_free(&b, &x);
    array_free(&b, &y);
    free(first);
    free(second);
    layer_close(&b, &l);
    backend_close(&b);
}

static void test_cuda_linear_can_be_recorded(void **state)
{
    (void)state;
    check_recorded(false, 5);
    check_recorded(true, 5);
    check_recorded(true, 130);
}

static void test_cuda_linear_squares_for_a_rate(void **state)
{
    (void)state;
    enum { SIZE = 48 };
    struct backend b = open_backend(false);
    struct err err = {0};
    float *a = random_rows(10, SIZE, SIZE), *w = random_rows(11, SIZE, SIZE);
    struct array da = array_put(&b, a, SIZE * SIZE, DTYPE_BF16),
                 dw = array_put(&b, w, SIZE * SIZE, DTYPE_BF16),
                 dc = array_output(&b, SIZE * SIZE, DTYPE_BF16);
    must(cuda_linear_square(cuda_stream_of(b.s), dc.data, da.data, dw.data, SIZE, 3, &err), &err);
    float *c = array_take(&b, &dc);
    for (int i = 0; i < SIZE; i++)
        for (int o = 0; o < SIZE; o++) {
            double want = 0.0, scale = 0.0;
            for (int k = 0; k < SIZE; k++) {
                want += (double)a[i * SIZE + k] * (double)w[o * SIZE + k];
                scale += fabs((double)a[i * SIZE + k] * (double)w[o * SIZE + k]);
            }
            assert_stored("linear_gpu", (double)c[i * SIZE + o], want, scale, DTYPE_BF16);
        }
    array_free(&b, &da);
    array_free(&b, &dw);
    free(a);
    free(w);
    free(c);
    backend_close(&b);
}

/* Our own kernel for few rows: outputs and k that are no whole tiles, rows of y apart, neighbours
 * untouched; and each row alone gives the bits it has among sixteen. */
static void check_few(const struct backend *b, int n, int m, int k, enum dtype y_dtype)
{
    const int ld = m + 3, rows[] = {m};
    const size_t n_in = (size_t)n * (size_t)k, n_out = (size_t)n * (size_t)ld;
    const bool is_f32 = y_dtype == DTYPE_F32;
    struct layer l;
    layer_open(b, &l, rows, 1, k, false, 13);
    float *x = random_rows((uint64_t)n, n, k);
    struct array in = array_put(b, x, n_in, DTYPE_BF16), out = array_output(b, n_out, y_dtype);
    cudaStream_t stream = cuda_stream_of(b->s)->stream;
    assert_int_equal(
        cuda_linear_few(stream, out.data, is_f32, in.data, l.jobs[0]->data, n, m, k, ld),
        cudaSuccess);
    float *y = array_take(b, &out), *packed = malloc((size_t)n * (size_t)m * sizeof *packed);
    assert_non_null(packed);
    for (int i = 0; i < n; i++) {
        memcpy(packed + (size_t)i * (size_t)m, y + (size_t)i * (size_t)ld,
               (size_t)m * sizeof *packed);
        for (int j = m; j < ld; j++)
            assert_true(isnan(y[(size_t)i * (size_t)ld + (size_t)j]));
    }
    expect_double(&l, x, packed, n, y_dtype);
    for (int i = 0; i < n; i += 3) {
        out = array_output(b, (size_t)m, y_dtype);
        assert_int_equal(cuda_linear_few(stream, out.data, is_f32,
                                         (const uint16_t *)in.data + (size_t)i * (size_t)k,
                                         l.jobs[0]->data, 1, m, k, m),
                         cudaSuccess);
        float *alone = array_take(b, &out);
        assert_memory_equal(alone, packed + (size_t)i * (size_t)m, (size_t)m * sizeof *alone);
        free(alone);
    }
    free(packed);
    free(y);
    array_free(b, &in);
    free(x);
    layer_close(b, &l);
}

static void test_cuda_linear_of_few_rows_matches_double(void **state)
{
    (void)state;
    struct backend b = open_backend(false);
    for (int n = 1; n <= CUDA_LINEAR_FEW; n += 3)
        check_few(&b, n, 50, 72, n % 2 != 0 ? DTYPE_F32 : DTYPE_BF16);
    check_few(&b, 16, 16, 8, DTYPE_F32);
    check_few(&b, 8, 2, 32, DTYPE_F32);
    check_few(&b, 5, 33, 2056, DTYPE_BF16); /* more than one round of all warps' loads */
    check_few(&b, 13, 17, 3000, DTYPE_F32);
    backend_close(&b);
}

static void test_cuda_linear_refuses_vectors(void **state)
{
    (void)state;
    struct backend b = open_backend(false);
    struct layer l;
    const int rows[] = {1};
    struct err err = {0};
    layer_open(&b, &l, rows, 1, 16, false, 12);
    struct array x = array_output(&b, 16, DTYPE_BF16), y = array_output(&b, 1, DTYPE_F32);
    cuda_must_fail(kernels_linear(b.s, y.data, DTYPE_F32, x.data, l.jobs, 1, 1, &err),
                   STATUS_INVALID, &err, "matrices on the device are bf16");
    array_free(&b, &x);
    array_free(&b, &y);
    layer_close(&b, &l);
    backend_close(&b);
}

#ifdef CAROUSEL_CUDA_EMULATED
static enum status reserve(void *context, struct err *err)
{
    struct cuda_stream *s = context;
    enum status st = cuda_linear_reserve(s, err);
    cuda_linear_release(s);
    return st;
}

static void test_cuda_linear_gives_back_what_it_took_when_memory_ends(void **state)
{
    (void)state;
    struct backend b = open_backend(true);
    cuda_world_fail_each(reserve, cuda_stream_of(b.s), 5);
    backend_close(&b);
}
#endif

int main(void)
{
    if (!cuda_world_is_there("test_cuda_linear"))
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_linear_matches_double),
        cmocka_unit_test(test_cuda_linear_matches_double_in_one_order),
        cmocka_unit_test(test_cuda_linear_takes_joined_and_scattered_weights),
        cmocka_unit_test(test_cuda_linear_matches_double_on_random_shapes),
        cmocka_unit_test(test_cuda_linear_is_batch_invariant_in_one_order),
        cmocka_unit_test(test_cuda_linear_does_not_judge_by_zeros),
        cmocka_unit_test(test_cuda_linear_can_be_recorded),
        cmocka_unit_test(test_cuda_linear_squares_for_a_rate),
        cmocka_unit_test(test_cuda_linear_of_few_rows_matches_double),
        cmocka_unit_test(test_cuda_linear_refuses_vectors),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_linear_gives_back_what_it_took_when_memory_ends),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
