/* RoPE, append and paged attention against plain double, and bit for bit in other cuts of a batch.
 */
#include "tests/kernels_reference.h"

/* One sequence of n positions: projected q, k and v before the rotation, side by side in a row as
 * linear leaves them. */
struct scene {
    int n, n_heads, n_kv_heads, head_dim;
    enum dtype activation;
    float *qkv; /* [n, (H + 2G) * D], as the activation type holds it */
};

static const double theta = 10000.0;

static int qkv_row(const struct scene *s)
{
    return (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
}

static size_t out_len(const struct scene *s)
{
    return (size_t)s->n * (size_t)(s->n_heads * s->head_dim);
}

static struct scene scene_make(uint64_t seed, enum dtype activation, int n, int n_heads,
                               int n_kv_heads, int head_dim)
{
    struct scene s = {.n = n,
                      .n_heads = n_heads,
                      .n_kv_heads = n_kv_heads,
                      .head_dim = head_dim,
                      .activation = activation};
    const size_t row = (size_t)qkv_row(&s);
    s.qkv = random_floats(seed, (size_t)n * row);
    for (size_t i = 0; i < (size_t)n * row; i++)
        if (i % row < (size_t)(n_heads * head_dim))
            s.qkv[i] *= 4.0f; /* q, so that the softmax is not flat */
    round_all(s.qkv, (size_t)n * row, activation);
    return s;
}

static void scene_free(struct scene *s)
{
    free(s->qkv);
}

static double rotated(const float *x, int j, int position, int head_dim)
{
    int half = head_dim / 2, i = j % half;
    double angle = position * pow(theta, -2.0 * i / head_dim);
    double a = (double)x[i], b = (double)x[i + half];
    return j < half ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
}

/* What is left of a number that is kept as that dtype between two operations. */
static double kept(double x, enum dtype dtype)
{
    return dtype == DTYPE_F32 ? x : (double)rounded_to((float)x, dtype);
}

/* out [n, H*D] of the whole sequence, in double; q, k and v are rounded where a backend keeps them.
 */
static double *scene_reference(const struct scene *s, enum dtype kv_dtype)
{
    const int d = s->head_dim, group = s->n_heads / s->n_kv_heads, row = qkv_row(s);
    double *out = calloc(out_len(s), sizeof *out);
    double *k = malloc((size_t)s->n * (size_t)d * sizeof *k);
    double *weight = malloc((size_t)s->n * sizeof *weight);
    double *q = malloc((size_t)d * sizeof *q);
    for (int h = 0; h < s->n_heads; h++) {
        const float *k_rows = s->qkv + (s->n_heads + h / group) * d;
        const float *v_rows = k_rows + s->n_kv_heads * d;
        for (int p = 0; p < s->n; p++)
            for (int j = 0; j < d; j++)
                k[p * d + j] = kept(rotated(k_rows + (size_t)p * (size_t)row, j, p, d), kv_dtype);
        for (int i = 0; i < s->n; i++) {
            const float *q_row = s->qkv + (size_t)i * (size_t)row + h * d;
            size_t at = (size_t)i * (size_t)(s->n_heads * d) + (size_t)(h * d);
            double top = -INFINITY, sum = 0.0;
            for (int j = 0; j < d; j++)
                q[j] = kept(rotated(q_row, j, i, d), s->activation);
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
                        weight[p] / sum *
                        kept((double)v_rows[(size_t)p * (size_t)row + (size_t)j], kv_dtype);
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
enum { LAYERS = 2, LAYER = 1, MOST_BLOCKS = 211, MOST_CUTS = 8 };

/* Blocks of the pool: a prime, so that any stride visits all of them. */
static int pool_blocks(const struct cut *c)
{
    return c->block_size < 16 ? MOST_BLOCKS : 31;
}

/* Positions [at, at + n) in n_segments. */
static void scene_step(const struct backend *b, struct kernels_stream *stream,
                       const struct scene *s, const struct cut *c, const struct kernels_kv *kv,
                       const int32_t *table, int at, int n, void *qkv, void *out, float *cos_table,
                       float *sin_table)
{
    struct kernels_segment segments[MOST_CUTS];
    int n_segments = c->cuts < n ? c->cuts : n;
    for (int i = 0; i < n_segments; i++) {
        int first = n * i / n_segments, end = n * (i + 1) / n_segments;
        segments[i] =
            (struct kernels_segment){.first_row = first,
                                     .n_rows = end - first,
                                     .first_position = at + first,
                                     .n_blocks = (at + end + c->block_size - 1) / c->block_size};
    }
    const struct kernels_batch batch = {
        .n_rows = n, .n_segments = n_segments, .segments = segments, .block_table = table};
    struct err err = {0};
    (void)b;
    must(kernels_bind(stream, &batch, kv, 0, &err), &err);
    must(kernels_rope_tables(stream, cos_table, sin_table, s->head_dim, theta, n, &err), &err);
    must(kernels_rope_append(stream, qkv, s->n_heads, cos_table, sin_table, kv, LAYER, n, &err),
         &err);
    must(kernels_attention(stream, out, qkv, s->n_heads, kv, LAYER, n, &err), &err);
    must(kernels_stream_sync(stream, &err), &err);
}

static float *scene_run(const struct backend *b, const struct scene *s, const struct cut *c)
{
    const size_t d = (size_t)s->head_dim, n = (size_t)s->n, size = dtype_bytes(b->activation);
    const size_t row = (size_t)qkv_row(s), out_row = (size_t)s->n_heads * d;
    struct err err = {0};
    struct kernels_kv kv;
    must(kernels_kv_create(b->k, c->dtype, pool_blocks(c), c->block_size, LAYERS, s->n_kv_heads,
                           s->head_dim, &kv, &err),
         &err);
    /* NaN wherever nothing was written. */
    unsigned char poison[8192];
    memset(poison, 0xff, sizeof poison);
    for (size_t at = 0, part; at < kv.memory.len_bytes; at += part) {
        part = kv.memory.len_bytes - at < sizeof poison ? kv.memory.len_bytes - at : sizeof poison;
        must(kernels_upload(b->s, (char *)kv.memory.data + at, poison, part, &err), &err);
        must(kernels_stream_sync(b->s, &err), &err);
    }
    const int n_pool = pool_blocks(c);
    const struct kernels_limits limits = {.n_rows = s->n,
                                          .n_segments = s->n,
                                          .n_table = n_pool,
                                          .block_size = c->block_size,
                                          .n_heads = s->n_heads,
                                          .n_kv_heads = s->n_kv_heads,
                                          .head_dim = s->head_dim};
    struct kernels_stream *stream = stream_open(b, &limits);
    int32_t table[MOST_BLOCKS];
    for (int i = 0; i < n_pool; i++)
        table[i] = (c->first_block + i * c->block_stride) % n_pool;
    struct array qkv = array_put(b, s->qkv, n * row, b->activation);
    struct array out = array_output(b, n * out_row, b->activation);
    struct array cosine = array_output(b, n * d / 2, DTYPE_F32);
    struct array sine = array_output(b, n * d / 2, DTYPE_F32);
    for (int at = 0; at < s->n; at += c->chunk)
        scene_step(b, stream, s, c, &kv, table, at, s->n - at < c->chunk ? s->n - at : c->chunk,
                   (char *)qkv.data + (size_t)at * row * size,
                   (char *)out.data + (size_t)at * out_row * size, cosine.data, sine.data);
    kernels_stream_destroy(stream);
    free(array_take(b, &qkv));
    free(array_take(b, &cosine));
    free(array_take(b, &sine));
    kernels_kv_destroy(b->k, &kv);
    return array_take(b, &out);
}

static void check_scene(const struct backend *b, int n, int n_heads, int n_kv_heads, int head_dim,
                        const struct cut *c)
{
    struct scene s =
        scene_make((uint64_t)(n + head_dim), b->activation, n, n_heads, n_kv_heads, head_dim);
    double *want = scene_reference(&s, c->dtype);
    float *got = scene_run(b, &s, c);
    /* |v| <= 1; an error of a score e changes a weight by the factor exp(e): scores reach 4 sqrt(D)
     * / 3. With bf16 the rounding is in the reference, too: what is left are values that fall on
     * the other side of a tie, and on a GPU the weights' own rounding. */
    for (size_t i = 0; i < out_len(&s); i++)
        if (c->dtype == DTYPE_BF16)
            assert_close("attention_bf16", (double)got[i], want[i], 1.0, DTYPE_BF16);
        else
            assert_close("attention", (double)got[i], want[i], 1.0 + sqrt(head_dim), DTYPE_F32);
    free(got);
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

/* Rows one by one, in short and in long segments, in one batch; either mode. */
static void test_kernels_attention_on_a_gpu_matches_double(void **state)
{
    (void)state;
    static const int dims[] = {16, 32, 64, 96, 128};
    static const int block_sizes[] = {16, 1, 64, 32, 16};
    static const int chunks[] = {67, 1, 20, 3, 64};
    for (int is_deterministic = 0; is_deterministic < 2; is_deterministic++) {
        struct backend b;
        if (!backend_open_as("cuda", 1, is_deterministic == 1, &b))
            return;
        for (int a = 0; a < 5; a++) {
            struct cut c = {.dtype = DTYPE_BF16,
                            .block_size = block_sizes[a],
                            .chunk = chunks[a],
                            .cuts = 1 + a % 3,
                            .first_block = 5 * a,
                            .block_stride = 1 + a};
            check_scene(&b, 67, 4, a % 2 == 0 ? 4 : 2, dims[a], &c);
        }
        backend_close(&b);
    }
}

/* Whole sequence at once on one thread against other chunkings, cuts, block tables and threads. */
static void check_invariance(const char *name, enum dtype dtype, int n_heads, int n_kv_heads,
                             int head_dim)
{
    enum { N = 61 };
    struct backend b;
    assert_true(backend_open(name, 1, &b));
    struct scene s = scene_make(11, b.activation, N, n_heads, n_kv_heads, head_dim);
    struct cut plain = {.dtype = dtype, .block_size = 16, .chunk = N, .cuts = 1, .block_stride = 1};
    float *base = scene_run(&b, &s, &plain);
    const int most_threads = b.is_gpu ? 1 : 3;
    backend_close(&b);
    static const struct cut others[] = {
        {.block_size = 16, .chunk = 1, .cuts = 1, .first_block = 5, .block_stride = 3},
        {.block_size = 1, .chunk = 7, .cuts = 3, .first_block = 9, .block_stride = 17},
        {.block_size = 64, .chunk = N, .cuts = 5, .first_block = 2, .block_stride = 1},
        {.block_size = 3, .chunk = 20, .cuts = 2, .first_block = 100, .block_stride = 2},
        {.block_size = 16, .chunk = 50, .cuts = 1, .first_block = 0, .block_stride = 9},
    };
    for (int n_threads = 1; n_threads <= most_threads; n_threads++) {
        assert_true(backend_open(name, n_threads, &b));
        for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
            struct cut c = others[i];
            c.dtype = dtype;
            float *out = scene_run(&b, &s, &c);
            assert_memory_equal(out, base, out_len(&s) * sizeof *out);
            free(out);
        }
        backend_close(&b);
    }
    free(base);
    scene_free(&s);
}

static void test_kernels_attention_is_batch_invariant(void **state)
{
    (void)state;
    struct backend b;
    for (int i = 0; i < N_ISAS; i++) {
        if (!backend_open(all_isas[i], 1, &b))
            continue;
        backend_close(&b);
        check_invariance(all_isas[i], DTYPE_F32, 3, 3, 18);
        check_invariance(all_isas[i], DTYPE_BF16, 4, 2, 32);
        check_invariance(all_isas[i], DTYPE_BF16, 5, 1, 128);
        /* single rows that are worth all threads */
        check_invariance(all_isas[i], DTYPE_F32, 12, 12, 128);
    }
    if (backend_open("cuda", 1, &b)) {
        backend_close(&b);
        check_invariance("cuda", DTYPE_BF16, 4, 2, 32);
        check_invariance("cuda", DTYPE_BF16, 5, 1, 128);
    }
}

static void test_kernels_rope_tables_are_exact_at_large_positions(void **state)
{
    (void)state;
    enum { D = 128, N = 3, FIRST = 65000 };
    for (int k = 0; k < N_BACKENDS; k++) {
        struct backend b;
        if (!backend_open(all_backends[k], 2, &b))
            continue;
        const struct kernels_limits limits = {.n_rows = N,
                                              .n_segments = 1,
                                              .block_size = 16,
                                              .n_heads = 1,
                                              .n_kv_heads = 1,
                                              .head_dim = D};
        struct kernels_stream *stream = stream_open(&b, &limits);
        const struct kernels_segment segment = {.n_rows = N, .first_position = FIRST};
        const struct kernels_batch batch = {.n_rows = N, .n_segments = 1, .segments = &segment};
        struct array tables[2] = {array_output(&b, N * D / 2, DTYPE_F32),
                                  array_output(&b, N * D / 2, DTYPE_F32)};
        struct err err = {0};
        must(kernels_bind(stream, &batch, NULL, 0, &err), &err);
        must(kernels_rope_tables(stream, tables[0].data, tables[1].data, D, 1e6, N, &err), &err);
        must(kernels_stream_sync(stream, &err), &err);
        float *cosine = array_take(&b, &tables[0]), *sine = array_take(&b, &tables[1]);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < D / 2; j++) {
                double angle = (FIRST + i) * pow(1e6, -2.0 * j / D);
                assert_close("rope_tables", (double)cosine[i * D / 2 + j], cos(angle), 1.0,
                             DTYPE_F32);
                assert_close("rope_tables", (double)sine[i * D / 2 + j], sin(angle), 1.0,
                             DTYPE_F32);
            }
        free(cosine);
        free(sine);
        kernels_stream_destroy(stream);
        backend_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_attention_matches_double),
        cmocka_unit_test(test_kernels_attention_on_a_gpu_matches_double),
        cmocka_unit_test(test_kernels_attention_is_batch_invariant),
        cmocka_unit_test(test_kernels_rope_tables_are_exact_at_large_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
