/* GPU attention against plain double, and bit for bit in other cuts of a batch. */
#include "tests/cuda_attention_world.h"

static bool has_device(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0)
        return true;
    print_message("skipped: no GPU here\n");
    return false;
}

/* Whether a block may have that much shared memory here. */
static bool has_shared(size_t len_bytes)
{
    int most = 0;
    WORLD_OK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return len_bytes <= (size_t)most;
}

/* One head of one row in double: out [D]. Returns the sum of |weight * v|, which is what rounding
 * is relative to. */
static double row_reference(const struct world *w, int sequence, int position, int head,
                            double *out)
{
    const int kv_head = head / (w->n_heads / w->n_kv_heads);
    double *score = malloc((size_t)(position + 1) * sizeof *score);
    double top = -INFINITY, sum = 0.0, largest = 0.0;
    for (int p = 0; p <= position; p++) {
        score[p] = 0.0;
        for (int j = 0; j < w->head_dim; j++)
            score[p] += (double)world_float(world_value(0, sequence, position, head, j)) *
                        (double)world_float(world_value(1, sequence, p, kv_head, j));
        score[p] /= sqrt((double)w->head_dim);
        top = score[p] > top ? score[p] : top;
    }
    for (int p = 0; p <= position; p++) {
        score[p] = exp(score[p] - top);
        sum += score[p];
    }
    for (int j = 0; j < w->head_dim; j++) {
        double x = 0.0, scale = 0.0;
        for (int p = 0; p <= position; p++) {
            double v = (double)world_float(world_value(2, sequence, p, kv_head, j));
            x += score[p] / sum * v;
            scale += score[p] / sum * fabs(v);
        }
        out[j] = x;
        largest = scale > largest ? scale : largest;
    }
    free(score);
    return largest;
}

/* Every `stride`-th row and all rows at the edges of a segment; the rest is looked at for NaN. */
static void check_out(const struct world *w, int stride)
{
    double *want = malloc((size_t)w->head_dim * sizeof *want);
    int row = 0;
    for (int s = 0; s < w->n_segments; s++) {
        const struct world_segment *g = &w->segments[s];
        for (int i = 0; i < g->n_rows; i++, row++)
            for (int h = 0; h < w->n_heads; h++) {
                const uint16_t *got = w->out + (size_t)(row * w->n_heads + h) * (size_t)w->head_dim;
                bool is_checked = i == 0 || i == g->n_rows - 1 || (i + h) % stride == 0;
                double scale =
                    is_checked ? row_reference(w, g->sequence, g->first + i, h, want) : 0.0;
                for (int j = 0; j < w->head_dim; j++) {
                    double y = (double)world_float(got[j]);
                    /* Weights and the result are rounded to bf16. */
                    double allowed = 0x1p-9 * (scale + fabs(want[j])) + 1e-6;
                    if (is_checked ? !(fabs(y - want[j]) <= 1.5 * allowed) : !isfinite(y))
                        fail_msg(
                            "segment %d (%d rows at %d), row %d, head %d, column %d: got %.6g, "
                            "want %.6g, allowed %.3g",
                            s, g->n_rows, g->first, i, h, j, y, want[j], 1.5 * allowed);
                }
            }
    }
    const size_t row_len = (size_t)(w->n_heads * w->head_dim);
    for (size_t i = 0; i < WORLD_GUARD_ROWS * row_len; i++)
        if (w->out[(size_t)w->n_rows * row_len + i] != world_untouched)
            fail_msg("a row behind the batch was written");
    free(want);
}

static const int rows_of[] = {1, 2, 5, 16, 17, 70, 130};
static const int firsts[] = {0, 1, 255, 256, 300};

/* All row counts, each at another first position for each shift. */
static void fill_segments(struct world *w, int shift, int n)
{
    w->n_segments = n;
    for (int i = 0; i < n; i++)
        w->segments[i] = (struct world_segment){
            .sequence = i, .first = firsts[(i + shift) % 5], .n_rows = rows_of[i]};
}

struct shape_case {
    int n_heads, n_kv_heads, head_dim, block_size, n_segments;
};

static void run_shapes(const struct shape_case *cases, int n_cases, enum attention_tile tile)
{
    for (int i = 0; i < n_cases; i++) {
        const struct shape_case *c = &cases[i];
        struct world w = {.n_heads = c->n_heads,
                          .n_kv_heads = c->n_kv_heads,
                          .head_dim = c->head_dim,
                          .block_size = c->block_size,
                          .tile = tile,
                          .has_tiles = cuda_attention_tile_rows(c->head_dim, tile) > 0,
                          .max_pairs = i % 3 == 1 ? 9 : WORLD_MAX_PAIRS,
                          .n_blocks = 3};
        if (!has_shared(cuda_attention_split_shared(c->head_dim)) ||
            !has_shared(cuda_attention_tile_shared(c->head_dim, tile))) {
            print_message("skipped: head_dim %d\n", c->head_dim);
            continue;
        }
        fill_segments(&w, i, c->n_segments);
        world_run(&w, (uint64_t)i + 7);
        check_out(&w, 11);
        free(w.out);
    }
}

static const struct shape_case fast_cases[] = {
    {2, 2, 16, 1, 7},   {2, 1, 32, 3, 7},   {4, 1, 16, 64, 7},  {1, 1, 64, 16, 7},
    {1, 1, 128, 16, 6}, {20, 1, 16, 16, 5}, {6, 2, 16, 16, 5},  {1, 1, 80, 16, 5},
    {1, 1, 96, 16, 4},  {1, 1, 192, 16, 4}, {1, 1, 256, 16, 4},
};
static const struct shape_case deterministic_cases[] = {
    {2, 1, 16, 3, 7},
    {1, 1, 64, 16, 6},
    {1, 1, 128, 16, 6},
    {1, 1, 192, 16, 3},
};

static void test_cuda_attention_equals_double(void **state)
{
    (void)state;
    if (has_device())
        run_shapes(fast_cases, sizeof fast_cases / sizeof fast_cases[0], ATTENTION_TILE_WIDE);
}

static void test_cuda_attention_in_narrow_tiles_equals_double(void **state)
{
    (void)state;
    if (has_device())
        run_shapes(fast_cases, sizeof fast_cases / sizeof fast_cases[0], ATTENTION_TILE_NARROW);
}

static void test_cuda_attention_deterministic_equals_double(void **state)
{
    (void)state;
    if (has_device())
        run_shapes(deterministic_cases, sizeof deterministic_cases / sizeof deterministic_cases[0],
                   ATTENTION_TILE_DETERMINISTIC);
}

/* One sequence, cut into segments of the given sizes, in one batch with another sequence. */
static struct world cut_world(int head_dim, const int *sizes, int n_sizes, int first)
{
    struct world w = {.n_heads = 2,
                      .n_kv_heads = 1,
                      .head_dim = head_dim,
                      .block_size = 16,
                      .tile = ATTENTION_TILE_DETERMINISTIC,
                      .has_tiles = true,
                      .max_pairs = WORLD_MAX_PAIRS,
                      .n_blocks = 5};
    for (int i = 0; i < n_sizes; i++) {
        w.segments[w.n_segments++] =
            (struct world_segment){.sequence = 0, .first = first, .n_rows = sizes[i]};
        first += sizes[i];
    }
    return w;
}

/* The rows of sequence 0 at [from, to) in both worlds, whose segments of it begin at from. */
static void assert_same_bits(const struct world *a, const struct world *b, int n_rows,
                             const char *what)
{
    const size_t len = (size_t)(n_rows * a->n_heads * a->head_dim);
    for (size_t i = 0; i < len; i++)
        if (a->out[i] != b->out[i])
            fail_msg("%s: row %zu, element %zu: %04x and %04x", what,
                     i / (size_t)(a->n_heads * a->head_dim), i % (size_t)(a->n_heads * a->head_dim),
                     a->out[i], b->out[i]);
}

static void test_cuda_attention_bits_do_not_depend_on_the_cut(void **state)
{
    (void)state;
    if (!has_device())
        return;
    enum { FIRST = 500, ROWS = 44 };
    static const int whole[] = {ROWS}, singles[] = {1, 2, 1, 5, 17, 3, 15}, halves[] = {20, 24};
    static const int dims[] = {16, 64};
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
        struct world base = cut_world(dims[d], whole, 1, FIRST); /* tiles */
        world_run(&base, 1);
        struct world w = cut_world(dims[d], singles, 7, FIRST); /* tiles and split items */
        world_run(&w, 2);
        assert_same_bits(&base, &w, ROWS, "cut into seven");
        free(w.out);
        w = cut_world(dims[d], halves, 2, FIRST);
        w.has_tiles = false; /* split items only */
        world_run(&w, 3);
        assert_same_bits(&base, &w, ROWS, "split items");
        free(w.out);
        w.max_pairs = 0; /* each through all pieces in one go */
        w.block_size = 3;
        w.n_blocks = 1;
        world_run(&w, 4);
        assert_same_bits(&base, &w, ROWS, "in one go");
        free(w.out);
        w = cut_world(dims[d], halves, 2, FIRST); /* next to others */
        w.segments[w.n_segments++] =
            (struct world_segment){.sequence = 5, .first = 3, .n_rows = 33};
        world_run(&w, 5);
        assert_same_bits(&base, &w, ROWS, "next to others");
        free(w.out);
        free(base.out);
    }
}

#ifdef CAROUSEL_CUDA_EMULATED
static void test_cuda_attention_bits_do_not_depend_on_the_order_of_threads(void **state)
{
    (void)state;
    static const char *const orders[] = {"forward", "reverse", "random:3"};
    static const int cut[] = {1, 3, 40};
    static const enum attention_tile tiles[] = {ATTENTION_TILE_NARROW, ATTENTION_TILE_WIDE,
                                                ATTENTION_TILE_DETERMINISTIC};
    for (int k = 0; k < 3; k++) {
        struct world base = {0};
        for (int i = 0; i < 3; i++) {
            struct world w = cut_world(16, cut, 3, 300);
            w.tile = tiles[k];
            emulator_set_order(orders[i]);
            world_run(&w, 1);
            if (i == 0) {
                base = w;
                continue;
            }
            assert_same_bits(&base, &w, 44, orders[i]);
            free(w.out);
        }
        free(base.out);
    }
    emulator_set_order(NULL);
}
#endif

/* A batch without items leaves everything as it was. */
static void test_cuda_attention_of_nothing_writes_nothing(void **state)
{
    (void)state;
    if (!has_device())
        return;
    struct world w = cut_world(16, NULL, 0, 0);
    world_run(&w, 1);
    check_out(&w, 1);
    free(w.out);
}

/* What the kernels cannot do is said when the stream is reserved, or at the call, with the values.
 */
static void test_cuda_attention_refuses_other_shapes(void **state)
{
    (void)state;
    struct backend b;
    if (!backend_open("cuda", 1, &b))
        return;
    const struct kernels_limits limits = {.n_rows = 4,
                                          .n_segments = 2,
                                          .n_table = 8,
                                          .block_size = 16,
                                          .n_heads = 4,
                                          .n_kv_heads = 2,
                                          .head_dim = 48};
    struct err err = {0};
    assert_int_equal(kernels_stream_reserve(b.s, &limits, &err), STATUS_UNSUPPORTED);
    assert_non_null(strstr(err.message, "head_dim 48"));
    assert_non_null(strstr(err.message, "96 128"));
    backend_close(&b);
}

static void test_cuda_attention_divides_positions_exactly(void **state)
{
    (void)state;
    uint64_t seed = 3;
    for (int size = 1; size <= 4096; size++) {
        const struct cuda_attention_blocks b = cuda_attention_blocks_of(size);
        for (int i = 0; i < 60; i++) {
            /* Around multiples of the size, where a division goes wrong first. */
            int64_t p = (int64_t)(random_bits(&seed) >> (33 + i % 20)) / size * size + i % 3 - 1;
            p = i == 0 ? INT32_MAX : p < 0 ? 0 : p;
            if (p <= INT32_MAX)
                assert_int_equal((uint64_t)p * b.factor >> b.shift, p / size);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_attention_equals_double),
        cmocka_unit_test(test_cuda_attention_in_narrow_tiles_equals_double),
        cmocka_unit_test(test_cuda_attention_deterministic_equals_double),
        cmocka_unit_test(test_cuda_attention_bits_do_not_depend_on_the_cut),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_attention_bits_do_not_depend_on_the_order_of_threads),
#endif
        cmocka_unit_test(test_cuda_attention_of_nothing_writes_nothing),
        cmocka_unit_test(test_cuda_attention_refuses_other_shapes),
        cmocka_unit_test(test_cuda_attention_divides_positions_exactly),
    };
#ifdef CAROUSEL_CUDA_EMULATED
    emulator_set_lazy(true);
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
