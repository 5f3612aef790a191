/* The GPU's kernels that read the bound batch: rows in and out of the store, rotation, the append
 * to the KV pool; rows behind the batch reach nothing. */
#include "tests/cuda_world.h"
#include "tests/kernels_reference.h"

static struct backend open_backend(void)
{
    struct backend b;
    assert_true(backend_open_as("cuda", 1, false, &b));
    return b;
}

/* ---- rows of a batch, and what is behind it
 * ------------------------------------------------------
 */

enum { SLOTS = 40, BLOCKS = 12, BLOCK = 16, LAYERS = 2, ROWS = 9, MORE = 16 };

/* Two segments, rows 0..3 at positions 14.. and rows 4..8 at 3.., in blocks all over the pool. */
static const struct kernels_segment segments[] = {{0, 4, 14, 0, 2}, {4, 5, 3, 2, 1}};
static const int32_t table[] = {7, 2, 11}, slots[ROWS] = {3, 1, 39, 0, 8, 20, 4, 31, 30},
                     ids[ROWS] = {-1, 4, -1, 0, -1, -1, 2, 4, -1};

static int position_of(int row)
{
    return row < 4 ? 14 + row : 3 + row - 4;
}

static int block_of(int row)
{
    return row >= 4 ? 11 : position_of(row) < BLOCK ? 7 : 2;
}

static struct kernels_stream *bound_stream(const struct backend *b, const struct kernels_kv *kv,
                                           int n_heads, int n_kv_heads, int head_dim)
{
    static const struct kernels_batch batch = {.n_rows = ROWS,
                                               .n_segments = 2,
                                               .segments = segments,
                                               .block_table = table,
                                               .slots = slots,
                                               .ids = ids};
    const struct kernels_limits limits = {.n_rows = MORE,
                                          .n_segments = 2,
                                          .n_table = 3,
                                          .block_size = BLOCK,
                                          .n_slots = SLOTS,
                                          .vocab_size = 5,
                                          .n_heads = n_heads,
                                          .n_kv_heads = n_kv_heads,
                                          .head_dim = head_dim};
    struct kernels_stream *s = stream_open(b, &limits);
    struct err err = {0};
    must(kernels_bind(s, &batch, kv, 0, &err), &err);
    return s;
}

static void check_store(const struct backend *b, int d)
{
    const size_t width = (size_t)d, row_bytes = width * sizeof(float);
    struct kernels_stream *s = bound_stream(b, NULL, 1, 1, 16);
    struct err err = {0};
    struct test_weight embed = test_weight_open(b, 9, 5, d, DTYPE_BF16, 0);
    float *host = random_floats(10, SLOTS * width);
    struct array store = array_put(b, host, SLOTS * width, DTYPE_F32),
                 x = array_output(b, MORE * width, DTYPE_F32);
    must(kernels_load_rows(s, x.data, store.data, &embed.w, MORE, &err), &err);
    must(kernels_stream_sync(s, &err), &err);
    float *loaded = array_get(b, &x);
    for (int i = 0; i < MORE; i++)
        for (int j = 0; j < d; j++) {
            const float want =
                i >= ROWS     ? 0.0f
                : ids[i] >= 0 ? (float)test_weight_at(&embed, (size_t)ids[i] * width + (size_t)j)
                              : host[(size_t)slots[i] * width + (size_t)j];
            assert_true(loaded[(size_t)i * width + (size_t)j] == want);
        }
    /* Back, with the rows behind the batch full of NaN: no slot may see them. */
    array_free(b, &x);
    for (size_t j = 0; j < ROWS * width; j++)
        loaded[j] += 1.0f;
    for (size_t j = ROWS * width; j < MORE * width; j++)
        loaded[j] = NAN;
    x = array_put(b, loaded, MORE * width, DTYPE_F32);
    must(kernels_store_rows(s, store.data, x.data, MORE, d, &err), &err);
    must(kernels_stream_sync(s, &err), &err);
    for (int i = 0; i < ROWS; i++)
        memcpy(host + (size_t)slots[i] * width, loaded + (size_t)i * width, row_bytes);
    float *after = array_take(b, &store);
    assert_memory_equal(after, host, SLOTS * row_bytes);
    free(after);
    free(loaded);
    free(host);
    array_free(b, &x);
    test_weight_close(b, &embed);
    kernels_stream_destroy(s);
}

static void test_cuda_rope_rows_behind_the_batch_are_zero_and_reach_no_slot(void **state)
{
    (void)state;
    struct backend b = open_backend();
    check_store(&b, 2048);
    check_store(&b, 24);
    check_store(&b, 7);
    backend_close(&b);
}

/* ---- rope ---------------------------------------------------------------------------------------
 */

struct rope_case {
    int n_heads, n_kv_heads, d;
    float *qkv;           /* [MORE, (H + 2G) D] before, rounded to bf16 */
    float *cosine, *sine; /* [MORE, D / 2] as the device made them */
    const float *after;   /* qkv afterwards */
    const uint16_t *pool; /* afterwards; 0xabab where nobody wrote */
};

/* Element j of head `head` of a row, rotated. */
static double rotated(const struct rope_case *c, int row, int head, int j)
{
    const int half = c->d / 2, pair = j % half;
    const size_t width = (size_t)(c->n_heads + 2 * c->n_kv_heads) * (size_t)c->d;
    const float *x = c->qkv + (size_t)row * width + (size_t)head * (size_t)c->d;
    const double co = (double)c->cosine[row * half + pair], si = (double)c->sine[row * half + pair];
    const double a = (double)x[pair], b = (double)x[pair + half];
    return j < half ? a * co - b * si : b * co + a * si;
}

static size_t pool_at(const struct rope_case *c, int row, int layer, int head, bool is_v)
{
    const size_t half = (size_t)BLOCK * (size_t)c->d;
    return (((size_t)block_of(row) * LAYERS + (size_t)layer) * (size_t)c->n_kv_heads +
            (size_t)head) *
               2 * half +
           (is_v ? half : 0) + (size_t)(position_of(row) % BLOCK) * (size_t)c->d;
}

static void expect_rope(const struct rope_case *c, int layer)
{
    const int d = c->d, n_all = c->n_heads + 2 * c->n_kv_heads;
    size_t n_written = 0, n_changed = 0;
    for (int row = 0; row < MORE; row++)
        for (int head = 0; head < n_all; head++)
            for (int j = 0; j < d; j++) {
                const size_t at =
                    ((size_t)row * (size_t)n_all + (size_t)head) * (size_t)d + (size_t)j;
                const bool is_rotated = row < ROWS && head < c->n_heads + c->n_kv_heads;
                if (is_rotated)
                    assert_stored("rope", (double)c->after[at], rotated(c, row, head, j), 2.0,
                                  DTYPE_BF16);
                else
                    assert_true(c->after[at] == c->qkv[at]);
                if (row >= ROWS || head < c->n_heads)
                    continue;
                const bool is_v = head >= c->n_heads + c->n_kv_heads;
                const int kv_head = (head - c->n_heads) % c->n_kv_heads;
                const uint16_t kept = c->pool[pool_at(c, row, layer, kv_head, is_v) + (size_t)j];
                assert_int_equal(kept, dtype_to_bf16(c->after[at]));
                n_written++;
            }
    const size_t n_pool = (size_t)BLOCKS * LAYERS * (size_t)c->n_kv_heads * 2 * BLOCK * (size_t)d;
    for (size_t i = 0; i < n_pool; i++)
        n_changed += c->pool[i] != 0xabab;
    assert_int_equal(n_changed, n_written); /* nothing of the rows behind, nothing elsewhere */
}

static void check_rope(const struct backend *b, int n_heads, int n_kv_heads, int d)
{
    const int layer = 1;
    const size_t n_qkv = (size_t)MORE * (size_t)(n_heads + 2 * n_kv_heads) * (size_t)d,
                 n_angles = (size_t)MORE * (size_t)d / 2;
    struct rope_case c = {.n_heads = n_heads, .n_kv_heads = n_kv_heads, .d = d};
    struct kernels_kv kv;
    struct err err = {0};
    must(kernels_kv_create(b->k, DTYPE_BF16, BLOCKS, BLOCK, LAYERS, n_kv_heads, d, &kv, &err),
         &err);
    struct kernels_stream *s = bound_stream(b, &kv, n_heads, n_kv_heads, d);
    unsigned char *pool = malloc(kv.memory.len_bytes);
    assert_non_null(pool);
    memset(pool, 0xab, kv.memory.len_bytes);
    c.qkv = random_floats(11, n_qkv);
    round_all(c.qkv, n_qkv, DTYPE_BF16);
    struct array qkv = array_put(b, c.qkv, n_qkv, DTYPE_BF16),
                 cosine = array_output(b, n_angles, DTYPE_F32),
                 sine = array_output(b, n_angles, DTYPE_F32);
    must(kernels_upload(s, kv.memory.data, pool, kv.memory.len_bytes, &err), &err);
    must(kernels_rope_tables(s, cosine.data, sine.data, d, 1e4, MORE, &err), &err);
    must(kernels_rope_append(s, qkv.data, n_heads, cosine.data, sine.data, &kv, layer, MORE, &err),
         &err);
    must(kernels_download(s, pool, kv.memory.data, kv.memory.len_bytes, &err), &err);
    must(kernels_stream_sync(s, &err), &err);
    float *after = array_take(b, &qkv);
    c.cosine = array_take(b, &cosine);
    c.sine = array_take(b, &sine);
    for (int i = 0; i < MORE; i++)
        for (int j = 0; j < d / 2; j++) {
            const double angle = (i < ROWS ? position_of(i) : 0) * pow(1e4, -2.0 * j / d);
            assert_close("rope_tables", (double)c.cosine[i * (d / 2) + j], cos(angle), 1.0,
                         DTYPE_F32);
            assert_close("rope_tables", (double)c.sine[i * (d / 2) + j], sin(angle), 1.0,
                         DTYPE_F32);
        }
    c.after = after;
    c.pool = (const uint16_t *)(const void *)pool;
    expect_rope(&c, layer);
    free(after);
    free(c.cosine);
    free(c.sine);
    free(c.qkv);
    free(pool);
    kernels_stream_destroy(s);
    kernels_kv_destroy(b->k, &kv);
}

static void test_cuda_rope_writes_the_pool_and_nothing_else(void **state)
{
    (void)state;
    struct backend b = open_backend();
    check_rope(&b, 4, 2, 64);
    check_rope(&b, 3, 3, 16);
    check_rope(&b, 2, 1, 96);
    backend_close(&b);
}

static void test_cuda_rope_refuses_kv_in_fp32(void **state)
{
    (void)state;
    struct backend b = open_backend();
    struct kernels_stream *s = bound_stream(&b, NULL, 1, 1, 16);
    struct err err = {0};
    struct array x = array_output(&b, MORE * 48, DTYPE_BF16);
    const struct kernels_kv kv = {.memory = x.buffer,
                                  .dtype = DTYPE_F32,
                                  .n_blocks = 1,
                                  .block_size = BLOCK,
                                  .n_layers = 1,
                                  .n_kv_heads = 1,
                                  .head_dim = 16};
    cuda_must_fail(cuda_rope_append(s, x.data, 1, x.data, x.data, &kv, 0, ROWS, &err),
                   STATUS_UNSUPPORTED, &err, "--kv-dtype bf16");
    array_free(&b, &x);
    kernels_stream_destroy(s);
    backend_close(&b);
}

int main(void)
{
    if (!cuda_world_is_there("test_cuda_rope"))
        return 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_rope_rows_behind_the_batch_are_zero_and_reach_no_slot),
        cmocka_unit_test(test_cuda_rope_writes_the_pool_and_nothing_else),
        cmocka_unit_test(test_cuda_rope_refuses_kv_in_fp32),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
