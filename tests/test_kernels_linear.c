/* Linear layers against a plain sum in double, and bit for bit against themselves in other batches.
 */
#include "tests/kernels_reference.h"

#include <sys/mman.h>
#include <unistd.h>

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

static void run_linear(const struct backend *b, float *const *y, const float *x,
                       const struct kernels_weight *w, int n_jobs, int n)
{
    const struct kernels_weight *jobs[KERNELS_LINEAR_MAX_JOBS];
    for (int j = 0; j < n_jobs; j++)
        jobs[j] = &w[j];
    struct err err = {0};
    must(kernels_linear(b->s, y, x, jobs, n_jobs, n, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
}

static void check_linear(const struct backend *b, enum dtype dtype, int k, int n_out, int n,
                         size_t skew)
{
    float *x = random_floats((uint64_t)(k + n), (size_t)n * (size_t)k);
    struct random_weight data =
        random_weight((uint64_t)n_out, (size_t)n_out * (size_t)k, dtype, skew);
    struct kernels_weight w = {.data = data.data, .dtype = dtype, .rows = n_out, .cols = k};
    const size_t len = (size_t)n * (size_t)n_out;
    float *y = guarded_floats(len);
    run_linear(b, &y, x, &w, 1, n);
    for (int i = 0; i < n; i++)
        for (int o = 0; o < n_out; o++) {
            double want = 0.0, scale = 0.0;
            for (int j = 0; j < k; j++) {
                double term = (double)x[(size_t)i * (size_t)k + (size_t)j] *
                              weight_at(w.data, dtype, (size_t)o * (size_t)k + (size_t)j);
                want += term;
                scale += fabs(term);
            }
            assert_close("linear", (double)y[(size_t)i * (size_t)n_out + (size_t)o], want, scale,
                         DTYPE_F32);
        }
    guarded_free(y, len);
    free(data.owner);
    free(x);
}

static void test_kernels_linear_matches_double(void **state)
{
    (void)state;
    static const int ks[] = {1, 3, 17, 31, 33, 64, 100, 320};
    static const int shapes[][2] = {{1, 1},  {1, 7},  {2, 2},   {3, 5},   {4, 47},
                                    {5, 48}, {6, 49}, {7, 10},  {8, 100}, {9, 17},
                                    {11, 3}, {12, 6}, {13, 50}, {26, 97}};
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 2, &b))
            continue;
        for (int t = 0; t < 3; t++)
            for (size_t a = 0; a < sizeof ks / sizeof ks[0]; a++)
                for (size_t c = 0; c < sizeof shapes / sizeof shapes[0]; c++)
                    check_linear(&b, dtypes[t], ks[a], shapes[c][1], shapes[c][0], (a + c) % 4);
        backend_close(&b);
    }
}

/* Long enough that k is cut into several blocks and rows into several tiles. */
static void test_kernels_linear_matches_double_when_k_is_blocked(void **state)
{
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        for (int t = 0; t < 3; t++)
            check_linear(&b, dtypes[t], 2100, 50, 13, 0);
        check_linear(&b, DTYPE_BF16, 2048, 33, 35, 2);
        check_linear(&b, DTYPE_BF16, 5632, 19, 37, 1);
        backend_close(&b);
    }
}

/* Rows [0, n) of x alone, with n_threads threads, must repeat what one batch of all rows gave. */
static void check_invariance(const char *isa, enum dtype dtype, int k)
{
    enum { MOST = 70, OUT0 = 61, OUT1 = 97 };
    float *x = random_floats(7, (size_t)MOST * (size_t)k);
    struct random_weight data[2] = {random_weight(8, (size_t)OUT0 * (size_t)k, dtype, 0),
                                    random_weight(9, (size_t)OUT1 * (size_t)k, dtype, 1)};
    struct kernels_weight w[2] = {{.data = data[0].data, .dtype = dtype, .rows = OUT0, .cols = k},
                                  {.data = data[1].data, .dtype = dtype, .rows = OUT1, .cols = k}};
    float *base[2] = {guarded_floats((size_t)MOST * OUT0), guarded_floats((size_t)MOST * OUT1)};
    struct backend b;
    assert_true(backend_open(isa, 1, &b));
    for (int i = 0; i < MOST; i++) {
        float *one[2] = {base[0] + (size_t)i * OUT0, base[1] + (size_t)i * OUT1};
        run_linear(&b, one, x + (size_t)i * (size_t)k, w, 2, 1);
    }
    backend_close(&b);
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        assert_true(backend_open(isa, n_threads, &b));
        for (int n = 1; n <= MOST; n += n_threads) {
            int first = (MOST - n) / 2; /* another place for the same rows */
            float *y[2] = {guarded_floats((size_t)n * OUT0), guarded_floats((size_t)n * OUT1)};
            run_linear(&b, y, x + (size_t)first * (size_t)k, w, 2, n);
            assert_memory_equal(y[0], base[0] + (size_t)first * OUT0,
                                (size_t)n * OUT0 * sizeof(float));
            assert_memory_equal(y[1], base[1] + (size_t)first * OUT1,
                                (size_t)n * OUT1 * sizeof(float));
            guarded_free(y[0], (size_t)n * OUT0);
            guarded_free(y[1], (size_t)n * OUT1);
        }
        backend_close(&b);
    }
    guarded_free(base[0], (size_t)MOST * OUT0);
    guarded_free(base[1], (size_t)MOST * OUT1);
    free(data[0].owner);
    free(data[1].owner);
    free(x);
}

static void test_kernels_linear_is_batch_invariant(void **state)
{
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        backend_close(&b);
        for (int t = 0; t < 3; t++)
            check_invariance(all_isas[i], dtypes[t], 75);
        check_invariance(all_isas[i], DTYPE_BF16, 2100); /* every call is worth all threads */
    }
}

/* Rows so long that few share one reading of the weights: each alone must repeat the batch. */
static void test_kernels_linear_is_invariant_when_rows_are_cut(void **state)
{
    (void)state;
    enum { K = 5632, OUT = 40, N = 70 };
    static const int rows[] = {0, 15, 16, 31, 32, 35, 36, 48, 64, 69};
    float *x = random_floats(5, (size_t)N * K), *y = guarded_floats((size_t)N * OUT);
    struct random_weight data = random_weight(6, (size_t)OUT * K, DTYPE_BF16, 0);
    const struct kernels_weight w = {
        .data = data.data, .dtype = DTYPE_BF16, .rows = OUT, .cols = K};
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 2, &b))
            continue;
        run_linear(&b, &y, x, &w, 1, N);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            float one[OUT], *out = one;
            run_linear(&b, &out, x + (size_t)rows[r] * K, &w, 1, 1);
            assert_memory_equal(one, y + (size_t)rows[r] * OUT, sizeof one);
        }
        backend_close(&b);
    }
    guarded_free(y, (size_t)N * OUT);
    free(data.owner);
    free(x);
}

/* Weights of which row o is a single one, at element o: y must repeat the bits of x. */
static void test_kernels_linear_keeps_every_bit_of_x(void **state)
{
    (void)state;
    enum { K = 70, N = 19 };
    float x[N * K], y[N * K], *out = y;
    uint16_t ones[K * K] = {0};
    uint64_t seed = 11;
    for (int i = 0; i < N * K; i++)
        x[i] = ldexpf(random_float(&seed), i % 160 - 80);
    for (int o = 0; o < K; o++)
        ones[o * K + o] = dtype_to_bf16(1.0f);
    const struct kernels_weight w = {.data = ones, .dtype = DTYPE_BF16, .rows = K, .cols = K};
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        memset(y, 0xff, sizeof y);
        run_linear(&b, &out, x, &w, 1, N);
        assert_memory_equal(y, x, sizeof x);
        backend_close(&b);
    }
}

/* What is not finite in a row or in an output's weights shows there and nowhere else. */
static void test_kernels_linear_shows_what_is_not_finite(void **state)
{
    (void)state;
    enum { K = 37, OUT = 35, N = 18, ROW = 7, OUTPUT = 20 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < N_ISAS * 3; i++) {
        struct backend b;
        if (!backend_open(all_isas[i / 3], 1, &b))
            continue;
        float *x = random_floats(12, (size_t)N * K), y[N * OUT], *out = y;
        struct random_weight data = random_weight(13, (size_t)OUT * K, DTYPE_BF16, 0);
        const struct kernels_weight w = {
            .data = data.data, .dtype = DTYPE_BF16, .rows = OUT, .cols = K};
        const uint16_t bits = dtype_to_bf16(bad[i % 3]);
        x[ROW * K + 34] = bad[i % 3];
        memcpy(data.data + (OUTPUT * K + 3) * 2, &bits, 2);
        run_linear(&b, &out, x, &w, 1, N);
        for (int r = 0; r < N; r++)
            for (int o = 0; o < OUT; o++)
                assert_int_equal(isfinite(y[r * OUT + o]) != 0, r != ROW && o != OUTPUT);
        backend_close(&b);
        free(data.owner);
        free(x);
    }
}

/* The page after the matrix cannot be read. */
static void test_kernels_linear_reads_no_further_than_the_matrix(void **state)
{
    (void)state;
    enum { N = 20, MOST_K = 65, MOST_OUT = 65 };
    static const int shapes[][2] = {{1, 1}, {3, 17}, {31, 15}, {33, 16}, {64, 33}, {65, 65}};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), len = 8 * page;
    unsigned char *area =
        mmap(NULL, len + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(area != MAP_FAILED && len >= (size_t)MOST_K * MOST_OUT * 4);
    assert_int_equal(mprotect(area + len, page, PROT_NONE), 0);
    float *x = random_floats(14, (size_t)N * MOST_K), y[N * MOST_OUT], *out = y;
    for (int i = 0; i < N_ISAS * 3; i++) {
        struct backend b;
        if (!backend_open(all_isas[i / 3], 1, &b))
            continue;
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            const int k = shapes[s][0], n_out = shapes[s][1];
            const enum dtype dtype = dtypes[i % 3];
            struct kernels_weight w = {.dtype = dtype, .rows = n_out, .cols = k};
            w.data = area + len - (size_t)k * (size_t)n_out * dtype_bytes(dtype);
            run_linear(&b, &out, x, &w, 1, 1);
            run_linear(&b, &out, x, &w, 1, N);
            for (int j = 0; j < N * n_out; j++)
                assert_true(y[j] == 0.0f);
        }
        backend_close(&b);
    }
    free(x);
    munmap(area, len + page);
}

static void test_kernels_linear_mixes_dtypes_in_one_call(void **state)
{
    (void)state;
    enum { K = 70, OUT = 20, N = 5 };
    struct backend b;
    assert_true(backend_open("auto", 2, &b));
    float *x = random_floats(3, (size_t)N * K);
    struct random_weight data[3];
    struct kernels_weight w[3];
    float *y[3], *alone[3];
    for (int t = 0; t < 3; t++) {
        data[t] = random_weight(4, (size_t)OUT * K, dtypes[t], 0);
        w[t] = (struct kernels_weight){
            .data = data[t].data, .dtype = dtypes[t], .rows = OUT, .cols = K};
        y[t] = guarded_floats((size_t)N * OUT);
        alone[t] = guarded_floats((size_t)N * OUT);
        run_linear(&b, &alone[t], x, &w[t], 1, N);
    }
    run_linear(&b, y, x, w, 3, N);
    for (int t = 0; t < 3; t++) {
        assert_memory_equal(y[t], alone[t], (size_t)N * OUT * sizeof(float));
        guarded_free(y[t], (size_t)N * OUT);
        guarded_free(alone[t], (size_t)N * OUT);
        free(data[t].owner);
    }
    free(x);
    backend_close(&b);
}

static void test_kernels_linear_rejects_shapes_that_do_not_fit(void **state)
{
    (void)state;
    struct backend b;
    assert_true(backend_open("portable", 1, &b));
    float x[4] = {0}, y0[4], *y[5] = {y0, y0, y0, y0, y0};
    struct kernels_weight four = {.data = x, .dtype = DTYPE_F32, .rows = 1, .cols = 4};
    struct kernels_weight two = {.data = x, .dtype = DTYPE_F32, .rows = 1, .cols = 2};
    const struct kernels_weight *w[5] = {&four, &two, &four, &four, &four};
    struct err err = {0};
    assert_int_equal(kernels_linear(b.s, y, x, w, 2, 1, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "weight 1 is [1, 2]"));
    assert_int_equal(kernels_linear(b.s, y, x, w, 5, 1, &err), STATUS_INVALID);
    assert_int_equal(kernels_linear(b.s, y, x, w, 1, -1, &err), STATUS_INVALID);
    assert_int_equal(kernels_linear(b.s, y, x, w, 1, 0, &err), STATUS_OK);
    backend_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_linear_matches_double),
        cmocka_unit_test(test_kernels_linear_matches_double_when_k_is_blocked),
        cmocka_unit_test(test_kernels_linear_is_batch_invariant),
        cmocka_unit_test(test_kernels_linear_is_invariant_when_rows_are_cut),
        cmocka_unit_test(test_kernels_linear_keeps_every_bit_of_x),
        cmocka_unit_test(test_kernels_linear_shows_what_is_not_finite),
        cmocka_unit_test(test_kernels_linear_reads_no_further_than_the_matrix),
        cmocka_unit_test(test_kernels_linear_mixes_dtypes_in_one_call),
        cmocka_unit_test(test_kernels_linear_rejects_shapes_that_do_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
