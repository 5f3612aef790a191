/* RoPE, append and paged attention against plain double, and bit for bit in other cuts of a batch.
 */
#include "tests/kernels_reference.h"

/* One sequence of n positions: projected q, k and v before the rotation. */
struct scene {
    int n, n_heads, n_kv_heads, head_dim;
    float *q, *k, *v;
};

static const double theta = 10000.0;

static struct scene scene_make(uint64_t seed, int n, int n_heads, int n_kv_heads, int head_dim)
{
    struct scene s = {.n = n, .n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim};
    s.q = random_floats(seed, (size_t)n * (size_t)(n_heads * head_dim));
    s.k = random_floats(seed + 1, (size_t)n * (size_t)(n_kv_heads * head_dim));
    s.v = random_floats(seed + 2, (size_t)n * (size_t)(n_kv_heads * head_dim));
    for (size_t i = 0; i < (size_t)n * (size_t)(n_heads * head_dim); i++)
        s.q[i] *= 4.0f; /* so that the softmax is not flat */
    return s;
}

static void scene_free(struct scene *s)
{
    free(s->q);
    free(s->k);
    free(s->v);
}

static double rotated(const float *x, int j, int position, int head_dim)
{
    int half = head_dim / 2, i = j % half;
    double angle = position * pow(theta, -2.0 * i / head_dim);
    double a = (double)x[i], b = (double)x[i + half];
    return j < half ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
}

/* out [n, H*D] of the whole sequence, in double. */
static double *scene_reference(const struct scene *s)
{
    const int d = s->head_dim, group = s->n_heads / s->n_kv_heads;
    double *out = calloc((size_t)s->n * (size_t)(s->n_heads * d), sizeof *out);
    double *k = malloc((size_t)s->n * (size_t)d * sizeof *k);
    double *weight = malloc((size_t)s->n * sizeof *weight);
    double *q = malloc((size_t)d * sizeof *q);
    for (int h = 0; h < s->n_heads; h++) {
        const size_t kv = (size_t)(h / group * d), kv_row = (size_t)(s->n_kv_heads * d);
        for (int p = 0; p < s->n; p++)
            for (int j = 0; j < d; j++)
                k[p * d + j] = rotated(s->k + (size_t)p * kv_row + kv, j, p, d);
        for (int i = 0; i < s->n; i++) {
            size_t at = (size_t)i * (size_t)(s->n_heads * d) + (size_t)(h * d);
            double top = -INFINITY, sum = 0.0;
            for (int j = 0; j < d; j++)
                q[j] = rotated(s->q + at, j, i, d);
            for (int p = 0; p <= i; p++) {
                weight[p] = 0.0;
                for (int j = 0; j < d; j++)
                    weight[p] += q[j] * k[p * d + j];
                weight[p] /= sqrt(d);
                top = fmax(top, weight[p]);
            }
            for (int p = 0; p <= i; p++)
                sum += weight[p] = exp(weight[p] - top);
            for (int p = 0; p <= i; p++)
                for (int j = 0; j < d; j++)
                    out[at + (size_t)j] +=
                        weight[p] / sum * (double)s->v[(size_t)p * kv_row + kv + (size_t)j];
        }
    }
    free(q);
    free(weight);
    free(k);
    return out;
}

/* Runs the scene in steps of `chunk` positions cut into `cuts` segments each, blocks taken from the
 * table in the order first, first + stride, ... modulo the pool; out [n, H*D]. */
struct cut {
    enum dtype dtype;
    int block_size, chunk, cuts, first_block, block_stride;
};

static float *scene_run(const struct backend *b, const struct scene *s, const struct cut *c)
{
    enum { LAYERS = 2, LAYER = 1, POOL = 211 };
    const int d = s->head_dim, q_row = s->n_heads * d, kv_row = s->n_kv_heads * d;
    struct err err = {0};
    struct kernels_kv kv;
    must(
        kernels_kv_create(b->k, c->dtype, POOL, c->block_size, LAYERS, s->n_kv_heads, d, &kv, &err),
        &err);
    memset(kv.memory.data, 0xff, kv.memory.len_bytes); /* NaN wherever nothing was written */
    int32_t table[POOL];
    for (int i = 0; i < POOL; i++)
        table[i] = (c->first_block + i * c->block_stride) % POOL;
    const size_t len = (size_t)s->n * (size_t)q_row;
    float *out = guarded_floats(len);
    float *cosine = malloc((size_t)s->n * (size_t)d * sizeof *cosine),
          *sine = cosine + s->n * (d / 2);
    float *q = malloc(len * sizeof *q);
    float *k = malloc((size_t)s->n * (size_t)kv_row * sizeof *k);
    memcpy(q, s->q, len * sizeof *q);
    memcpy(k, s->k, (size_t)s->n * (size_t)kv_row * sizeof *k);
    for (int at = 0; at < s->n; at += c->chunk) {
        int n = s->n - at < c->chunk ? s->n - at : c->chunk;
        struct kernels_segment segments[8];
        int n_segments = c->cuts < n ? c->cuts : n;
        for (int i = 0; i < n_segments; i++) {
            int first = n * i / n_segments, end = n * (i + 1) / n_segments;
            segments[i] = (struct kernels_segment){.first_row = first,
                                                   .n_rows = end - first,
                                                   .first_position = at + first,
                                                   .n_blocks = (at + end + c->block_size - 1) /
                                                               c->block_size};
        }
        struct kernels_batch batch = {
            .n_rows = n, .n_segments = n_segments, .segments = segments, .block_table = table};
        size_t rows = (size_t)at;
        must(kernels_rope_tables(b->s, cosine, sine, &batch, d, theta, &err), &err);
        must(kernels_rope_append(b->s, q + rows * (size_t)q_row, k + rows * (size_t)kv_row,
                                 s->v + rows * (size_t)kv_row, s->n_heads, cosine, sine, &batch,
                                 &kv, LAYER, &err),
             &err);
        must(kernels_attention(b->s, out + rows * (size_t)q_row, q + rows * (size_t)q_row,
                               s->n_heads, &batch, &kv, LAYER, &err),
             &err);
        must(kernels_stream_sync(b->s, &err), &err);
    }
    free(q);
    free(k);
    free(cosine);
    kernels_kv_destroy(b->k, &kv);
    return out;
}

static void check_scene(const struct backend *b, int n, int n_heads, int n_kv_heads, int head_dim,
                        const struct cut *c)
{
    struct scene s = scene_make((uint64_t)(n + head_dim), n, n_heads, n_kv_heads, head_dim);
    double *want = scene_reference(&s);
    float *got = scene_run(b, &s, c);
    const size_t len = (size_t)n * (size_t)(n_heads * head_dim);
    /* |v| <= 1; an error of a score e changes a weight by the factor exp(e): scores reach 4 sqrt(D)
     * / 3. */
    double scale = 1.0 + sqrt(head_dim);
    for (size_t i = 0; i < len; i++)
        assert_close("attention", (double)got[i], want[i], scale, c->dtype);
    guarded_free(got, len);
    free(want);
    scene_free(&s);
}

static void test_kernels_attention_matches_double(void **state)
{
    (void)state;
    static const int dims[] = {2, 6, 16, 18, 32, 34, 64, 80, 96, 128};
    static const int block_sizes[] = {1, 16, 64};
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 2, &b))
            continue;
        for (size_t a = 0; a < sizeof dims / sizeof dims[0]; a++)
            for (int t = 0; t < 2; t++) {
                struct cut c = {.dtype = t == 0 ? DTYPE_F32 : DTYPE_BF16,
                                .block_size = block_sizes[a % 3],
                                .chunk = 1 + 5 * (int)a,
                                .cuts = 1 + (int)a % 3,
                                .block_stride = 1 + (int)a};
                check_scene(&b, 67, 4, a % 2 == 0 ? 4 : 2, dims[a], &c);
            }
        struct cut c = {
            .dtype = DTYPE_BF16, .block_size = 16, .chunk = 1, .cuts = 1, .block_stride = 3};
        check_scene(&b, 150, 6, 1, 64, &c);
        backend_close(&b);
    }
}

/* Whole sequence at once on one thread against other chunkings, cuts, block tables and threads. */
static void check_invariance(const char *isa, enum dtype dtype, int n_heads, int n_kv_heads,
                             int head_dim)
{
    enum { N = 61 };
    struct scene s = scene_make(11, N, n_heads, n_kv_heads, head_dim);
    const size_t len = (size_t)N * (size_t)(n_heads * head_dim);
    struct backend b;
    assert_true(backend_open(isa, 1, &b));
    struct cut plain = {.dtype = dtype, .block_size = 16, .chunk = N, .cuts = 1, .block_stride = 1};
    float *base = scene_run(&b, &s, &plain);
    backend_close(&b);
    static const struct cut others[] = {
        {.block_size = 16, .chunk = 1, .cuts = 1, .first_block = 5, .block_stride = 3},
        {.block_size = 1, .chunk = 7, .cuts = 3, .first_block = 9, .block_stride = 17},
        {.block_size = 64, .chunk = N, .cuts = 5, .first_block = 2, .block_stride = 1},
        {.block_size = 3, .chunk = 20, .cuts = 2, .first_block = 100, .block_stride = 2},
        {.block_size = 16, .chunk = 50, .cuts = 1, .first_block = 0, .block_stride = 9},
    };
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        assert_true(backend_open(isa, n_threads, &b));
        for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
            struct cut c = others[i];
            c.dtype = dtype;
            float *out = scene_run(&b, &s, &c);
            assert_memory_equal(out, base, len * sizeof *out);
            guarded_free(out, len);
        }
        backend_close(&b);
    }
    guarded_free(base, len);
    scene_free(&s);
}

static void test_kernels_attention_is_batch_invariant(void **state)
{
    (void)state;
    for (int i = 0; i < N_ISAS; i++) {
        struct backend b;
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        backend_close(&b);
        check_invariance(all_isas[i], DTYPE_F32, 3, 3, 18);
        check_invariance(all_isas[i], DTYPE_BF16, 4, 2, 32);
        check_invariance(all_isas[i], DTYPE_BF16, 5, 1, 128);
        /* single rows that are worth all threads */
        check_invariance(all_isas[i], DTYPE_F32, 12, 12, 128);
    }
}

static void test_kernels_rope_tables_are_exact_at_large_positions(void **state)
{
    (void)state;
    enum { D = 128, N = 3, FIRST = 65000 };
    struct backend b;
    assert_true(backend_open("auto", 2, &b));
    struct kernels_segment segment = {.n_rows = N, .first_position = FIRST};
    struct kernels_batch batch = {.n_rows = N, .n_segments = 1, .segments = &segment};
    float *cosine = guarded_floats(N * D / 2), *sine = guarded_floats(N * D / 2);
    struct err err = {0};
    must(kernels_rope_tables(b.s, cosine, sine, &batch, D, 1e6, &err), &err);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < D / 2; j++) {
            double angle = (FIRST + i) * pow(1e6, -2.0 * j / D);
            assert_close("rope_tables", (double)cosine[i * D / 2 + j], cos(angle), 1.0, DTYPE_F32);
            assert_close("rope_tables", (double)sine[i * D / 2 + j], sin(angle), 1.0, DTYPE_F32);
        }
    guarded_free(cosine, N * D / 2);
    guarded_free(sine, N * D / 2);
    backend_close(&b);
}

static void test_kernels_attention_rejects_batches_that_do_not_fit(void **state)
{
    (void)state;
    struct backend b;
    assert_true(backend_open("portable", 1, &b));
    struct err err = {0};
    struct kernels_kv kv;
    assert_int_equal(kernels_kv_create(b.k, DTYPE_F16, 4, 16, 1, 2, 8, &kv, &err), STATUS_INVALID);
    assert_int_equal(kernels_kv_create(b.k, DTYPE_F32, 4, 16, 1, 2, 7, &kv, &err), STATUS_INVALID);
    must(kernels_kv_create(b.k, DTYPE_F32, 4, 16, 1, 2, 8, &kv, &err), &err);
    float q[2 * 16] = {0}, out[2 * 16];
    int32_t table[2] = {3, 4};
    struct kernels_segment segment = {.n_rows = 2, .first_position = 15, .n_blocks = 1};
    struct kernels_batch batch = {
        .n_rows = 2, .n_segments = 1, .segments = &segment, .block_table = table};
    assert_int_equal(kernels_attention(b.s, out, q, 2, &batch, &kv, 0, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "17 positions"));
    segment.n_blocks = 2;
    assert_int_equal(kernels_attention(b.s, out, q, 2, &batch, &kv, 0, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "KV block 4 of 4"));
    table[1] = 0;
    assert_int_equal(kernels_attention(b.s, out, q, 3, &batch, &kv, 0, &err), STATUS_INVALID);
    assert_int_equal(kernels_attention(b.s, out, q, 2, &batch, &kv, 1, &err), STATUS_INVALID);
    batch.n_rows = 3;
    assert_int_equal(kernels_attention(b.s, out, q, 2, &batch, &kv, 0, &err), STATUS_INVALID);
    batch.n_rows = 2;
    assert_int_equal(kernels_attention(b.s, out, q, 2, &batch, &kv, 0, &err), STATUS_OK);
    kernels_kv_destroy(b.k, &kv);
    backend_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_attention_matches_double),
        cmocka_unit_test(test_kernels_attention_is_batch_invariant),
        cmocka_unit_test(test_kernels_rope_tables_are_exact_at_large_positions),
        cmocka_unit_test(test_kernels_attention_rejects_batches_that_do_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
