/* Linear layers against a plain sum in double, and bit for bit against themselves in other batches.
 */
#include "tests/kernels_reference.h"

#include <sys/mman.h>
#include <unistd.h>

static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

/* y [n, outputs of all jobs] in the backend's memory. */
static void run_linear(const struct backend *b, const struct array *y, const void *x,
                       const struct kernels_weight *w, int n_jobs, int n)
{
    const struct kernels_weight *jobs[KERNELS_LINEAR_MAX_JOBS];
    for (int j = 0; j < n_jobs; j++)
        jobs[j] = &w[j];
    struct err err = {0};
    must(kernels_linear(b->s, y->data, y->dtype, x, jobs, n_jobs, n, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
}

/* The same on the CPU, whose memory is the host's. */
static void run_on_host(const struct backend *b, float *y, const float *x,
                        const struct kernels_weight *w, int n_jobs, int n)
{
    const struct array out = {.data = y, .dtype = DTYPE_F32};
    run_linear(b, &out, x, w, n_jobs, n);
}

struct shape {
    int k, n, n_jobs, n_out[KERNELS_LINEAR_MAX_JOBS];
    enum dtype dtype, out;
    size_t skew;
};

/* What the weight's elements count as, once for all rows. */
static double *weight_values(const struct test_weight *t)
{
    const size_t n = (size_t)t->source.rows * (size_t)t->source.cols;
    double *values = malloc(n * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < n; i++)
        values[i] = test_weight_at(t, i);
    return values;
}

/* Outputs [0, n_out) of one row. */
static void check_row(const struct backend *b, const struct shape *shape, int n_out,
                      const double *w, const float *x, const float *y)
{
    for (int o = 0; o < n_out; o++, w += shape->k) {
        double want = 0.0, scale = 0.0;
        for (int i = 0; i < shape->k; i++) {
            double term = (double)x[i] * w[i];
            want += term;
            scale += fabs(term);
        }
        assert_stored(b->is_gpu ? "linear_gpu" : "linear", (double)y[o], want, scale, shape->out);
    }
}

/* Weights loaded as they are in the block: joined, outputs side by side. */
static void check_linear(const struct backend *b, const struct shape *shape)
{
    const int n = shape->n, k = shape->k;
    struct test_weight t[KERNELS_LINEAR_MAX_JOBS];
    const struct weight *sources[KERNELS_LINEAR_MAX_JOBS];
    struct kernels_weight w[KERNELS_LINEAR_MAX_JOBS];
    size_t row = 0;
    for (int j = 0; j < shape->n_jobs; j++) {
        t[j] = test_weight_make(b, (uint64_t)(shape->n_out[j] + j), shape->n_out[j], k,
                                shape->dtype, shape->skew);
        sources[j] = &t[j].source;
        row += (size_t)shape->n_out[j];
    }
    struct err err = {0};
    must(kernels_weight_load_joined(b->k, sources, shape->n_jobs, w, &err), &err);
    must(kernels_weights_ready(b->k, &err), &err);
    float *x = random_floats((uint64_t)(k + n), (size_t)n * (size_t)k);
    round_all(x, (size_t)n * (size_t)k, b->activation);
    struct array input = array_put(b, x, (size_t)n * (size_t)k, b->activation);
    struct array output = array_output(b, (size_t)n * row, shape->out);
    run_linear(b, &output, input.data, w, shape->n_jobs, n);
    float *y = array_take(b, &output);
    size_t column = 0;
    for (int j = 0; j < shape->n_jobs; column += (size_t)shape->n_out[j++]) {
        double *values = weight_values(&t[j]);
        for (int i = 0; i < n; i++)
            check_row(b, shape, shape->n_out[j], values, x + (size_t)i * (size_t)k,
                      y + (size_t)i * row + column);
        free(values);
    }
    assert_int_equal(column, row);
    for (int j = 0; j < shape->n_jobs; j++) {
        kernels_weight_unload(b->k, &w[j]);
        free(t[j].owned.owner);
    }
    array_free(b, &input);
    free(x);
    free(y);
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
                    check_linear(&b, &(struct shape){.k = ks[a],
                                                     .n = shapes[c][0],
                                                     .n_jobs = 1,
                                                     .n_out = {shapes[c][1]},
                                                     .dtype = dtypes[t],
                                                     .skew = (a + c) % 4});
        backend_close(&b);
    }
}

/* Shapes whose rows are whole 16-byte units, as a model's are, on every backend; weights joined. */
static void test_kernels_linear_joins_outputs_in_one_row(void **state)
{
    (void)state;
    static const int ks[] = {8, 16, 72, 512};
    static const int ns[] = {1, 2, 3, 8, 13, 33};
    for (int i = 0; i < N_BACKENDS; i++) {
        struct backend b;
        if (!backend_open(all_backends[i], 2, &b))
            continue;
        for (int a = 0; a < 4; a++)
            for (int c = 0; c < 6; c++) {
                struct shape shape = {.k = ks[a],
                                      .n = ns[c],
                                      .n_jobs = 1 + (a + c) % 4,
                                      .n_out = {48, 8, 24, 40},
                                      .dtype = dtypes[(a + c) % 3],
                                      .out = DTYPE_F32};
                check_linear(&b, &shape);
                shape.out = b.activation;
                check_linear(&b, &shape);
            }
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
            check_linear(&b,
                         &(struct shape){
                             .k = 2100, .n = 13, .n_jobs = 1, .n_out = {50}, .dtype = dtypes[t]});
        check_linear(
            &b,
            &(struct shape){
                .k = 2048, .n = 35, .n_jobs = 1, .n_out = {33}, .dtype = DTYPE_BF16, .skew = 2});
        check_linear(
            &b,
            &(struct shape){
                .k = 5632, .n = 37, .n_jobs = 1, .n_out = {19}, .dtype = DTYPE_BF16, .skew = 1});
        backend_close(&b);
    }
}

/* Rows [0, n) of x alone, with n_threads threads, must repeat what one batch of all rows gave. */
static void check_invariance(const char *name, enum dtype dtype, int k, int out0, int out1)
{
    enum { MOST = 70 };
    const size_t row = (size_t)(out0 + out1), k_len = (size_t)k;
    const bool is_gpu = strcmp(name, "cuda") == 0;
    float *x = random_floats(7, MOST * k_len), *base = malloc(MOST * row * sizeof *base);
    for (int n_threads = 0; n_threads <= (is_gpu ? 1 : 3); n_threads++) {
        struct backend b;
        assert_true(backend_open(name, n_threads == 0 ? 1 : n_threads, &b));
        struct test_weight t[2] = {test_weight_open(&b, 8, out0, k, dtype, 0),
                                   test_weight_open(&b, 9, out1, k, dtype, is_gpu ? 0 : 1)};
        const struct kernels_weight w[2] = {t[0].w, t[1].w};
        struct array input = array_put(&b, x, MOST * k_len, b.activation);
        const size_t x_row = k_len * dtype_bytes(b.activation);
        for (int i = 0; n_threads == 0 && i < MOST; i++) {
            struct array y = array_output(&b, row, DTYPE_F32);
            run_linear(&b, &y, (const char *)input.data + (size_t)i * x_row, w, 2, 1);
            float *one = array_take(&b, &y);
            memcpy(base + (size_t)i * row, one, row * sizeof *one);
            free(one);
        }
        for (int n = 1; n_threads > 0 && n <= MOST; n += is_gpu ? 7 : n_threads) {
            int first = (MOST - n) / 2; /* another place for the same rows */
            struct array y = array_output(&b, (size_t)n * row, DTYPE_F32);
            run_linear(&b, &y, (const char *)input.data + (size_t)first * x_row, w, 2, n);
            float *got = array_take(&b, &y);
            assert_memory_equal(got, base + (size_t)first * row, (size_t)n * row * sizeof *got);
            free(got);
        }
        array_free(&b, &input);
        test_weight_close(&b, &t[0]);
        test_weight_close(&b, &t[1]);
        backend_close(&b);
    }
    free(base);
    free(x);
}

static void test_kernels_linear_is_batch_invariant(void **state)
{
    (void)state;
    struct backend b;
    for (int i = 0; i < N_ISAS; i++) {
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        backend_close(&b);
        for (int t = 0; t < 3; t++)
            check_invariance(all_isas[i], dtypes[t], 75, 61, 97);
        check_invariance(all_isas[i], DTYPE_BF16, 2100, 61,
                         97); /* every call is worth all threads */
    }
    if (backend_open("cuda", 1, &b)) {
        backend_close(&b);
        check_invariance("cuda", DTYPE_BF16, 72, 64, 96);
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
        run_on_host(&b, y, x, &w, 1, N);
        for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
            float one[OUT];
            run_on_host(&b, one, x + (size_t)rows[r] * K, &w, 1, 1);
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
    enum { K = 72, N = 19 };
    float x[N * K];
    uint16_t ones[K * K] = {0};
    uint64_t seed = 11;
    for (int i = 0; i < N * K; i++)
        x[i] = ldexpf(random_float(&seed), i % 160 - 80);
    for (int o = 0; o < K; o++)
        ones[o * K + o] = dtype_to_bf16(1.0f);
    const struct weight source = {.data = ones, .dtype = DTYPE_BF16, .rows = K, .cols = K};
    for (int i = 0; i < N_BACKENDS; i++) {
        struct backend b;
        struct err err = {0};
        if (!backend_open(all_backends[i], 1, &b))
            continue;
        float stored[N * K];
        memcpy(stored, x, sizeof x);
        round_all(stored, N * K, b.activation);
        struct kernels_weight w;
        must(kernels_weight_load(b.k, &source, &w, &err), &err);
        must(kernels_weights_ready(b.k, &err), &err);
        struct array input = array_put(&b, x, N * K, b.activation);
        struct array output = array_output(&b, N * K, DTYPE_F32);
        run_linear(&b, &output, input.data, &w, 1, N);
        float *y = array_take(&b, &output);
        assert_memory_equal(y, stored, sizeof x);
        free(y);
        array_free(&b, &input);
        kernels_weight_unload(b.k, &w);
        backend_close(&b);
    }
}

/* What is not finite in a row or in an output's weights shows there and nowhere else. */
static void test_kernels_linear_shows_what_is_not_finite(void **state)
{
    (void)state;
    enum { K = 40, OUT = 40, N = 18, ROW = 7, OUTPUT = 20 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < N_BACKENDS * 3; i++) {
        struct backend b;
        if (!backend_open(all_backends[i / 3], 1, &b))
            continue;
        float *x = random_floats(12, (size_t)N * K);
        struct test_weight t = test_weight_make(&b, 13, OUT, K, DTYPE_BF16, 0);
        const uint16_t bits = dtype_to_bf16(bad[i % 3]);
        x[ROW * K + 34] = bad[i % 3];
        memcpy(t.owned.data + (OUTPUT * K + 3) * 2, &bits, 2);
        test_weight_load(&b, &t);
        struct array input = array_put(&b, x, N * K, b.activation);
        struct array output = array_output(&b, N * OUT, DTYPE_F32);
        run_linear(&b, &output, input.data, &t.w, 1, N);
        float *y = array_take(&b, &output);
        for (int r = 0; r < N; r++)
            for (int o = 0; o < OUT; o++)
                assert_int_equal(isfinite(y[r * OUT + o]) != 0, r != ROW && o != OUTPUT);
        free(y);
        array_free(&b, &input);
        test_weight_close(&b, &t);
        backend_close(&b);
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
    float *x = random_floats(14, (size_t)N * MOST_K), y[N * MOST_OUT];
    for (int i = 0; i < N_ISAS * 3; i++) {
        struct backend b;
        if (!backend_open(all_isas[i / 3], 1, &b))
            continue;
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            const int k = shapes[s][0], n_out = shapes[s][1];
            const enum dtype dtype = dtypes[i % 3];
            struct kernels_weight w = {.dtype = dtype, .rows = n_out, .cols = k};
            w.data = area + len - (size_t)k * (size_t)n_out * dtype_bytes(dtype);
            run_on_host(&b, y, x, &w, 1, 1);
            run_on_host(&b, y, x, &w, 1, N);
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
    float *x = random_floats(3, (size_t)N * K), *y = guarded_floats((size_t)N * 3 * OUT);
    struct test_weight t[3];
    struct kernels_weight w[3];
    for (int j = 0; j < 3; j++) {
        t[j] = test_weight_open(&b, 4, OUT, K, dtypes[j], 0);
        w[j] = t[j].w;
    }
    run_on_host(&b, y, x, w, 3, N);
    for (int j = 0; j < 3; j++) {
        float *alone = guarded_floats((size_t)N * OUT);
        run_on_host(&b, alone, x, &w[j], 1, N);
        for (int i = 0; i < N; i++)
            assert_memory_equal(y + (size_t)i * 3 * OUT + (size_t)j * OUT, alone + (size_t)i * OUT,
                                OUT * sizeof(float));
        guarded_free(alone, (size_t)N * OUT);
        test_weight_close(&b, &t[j]);
    }
    guarded_free(y, (size_t)N * 3 * OUT);
    free(x);
    backend_close(&b);
}

static void test_kernels_linear_rejects_shapes_that_do_not_fit(void **state)
{
    (void)state;
    struct backend b;
    assert_true(backend_open("portable", 1, &b));
    float x[4] = {0}, y[5];
    struct kernels_weight four = {.data = x, .dtype = DTYPE_F32, .rows = 1, .cols = 4};
    struct kernels_weight two = {.data = x, .dtype = DTYPE_F32, .rows = 1, .cols = 2};
    const struct kernels_weight *w[5] = {&four, &two, &four, &four, &four};
    struct err err = {0};
    assert_int_equal(kernels_linear(b.s, y, DTYPE_F32, x, w, 2, 1, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "weight 1 is [1, 2]"));
    assert_int_equal(kernels_linear(b.s, y, DTYPE_F32, x, w, 5, 1, &err), STATUS_INVALID);
    assert_int_equal(kernels_linear(b.s, y, DTYPE_F32, x, w, 1, -1, &err), STATUS_INVALID);
    assert_int_equal(kernels_linear(b.s, y, DTYPE_BF16, x, w, 1, 1, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "an output of bf16"));
    assert_int_equal(kernels_linear(b.s, y, DTYPE_F32, x, w, 1, 0, &err), STATUS_OK);
    const struct weight sources[2] = {{.data = x, .dtype = DTYPE_F32, .rows = 1, .cols = 4},
                                      {.data = x, .dtype = DTYPE_F32, .rows = 2, .cols = 2}};
    const struct weight *const joined[] = {&sources[0], &sources[1]};
    struct kernels_weight out[2];
    assert_int_equal(kernels_weight_load_joined(b.k, joined, 2, out, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "joined weight 1 has 2 columns"));
    assert_int_equal(kernels_weight_load_joined(b.k, joined, 0, out, &err), STATUS_INVALID);
    backend_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_linear_matches_double),
        cmocka_unit_test(test_kernels_linear_joins_outputs_in_one_row),
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
