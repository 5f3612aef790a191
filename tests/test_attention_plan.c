/* The attention plan: every row meets every piece it sees once, partial results have their places.
 */
#include "kernels/attention_plan.h"
#include "tests/kernels_reference.h"

enum { MAX_ROWS = 700, MAX_SEGMENTS = 40, MAX_PIECES = 40, MAX_PAIRS = 3000 };

struct scene {
    struct kernels_segment segments[MAX_SEGMENTS];
    struct kernels_batch batch;
    struct attention_shape shape;
    struct cuda_attention_item split[MAX_PAIRS + MAX_ROWS], tile[MAX_ROWS];
    int n_split, n_tile;
};

static int below(uint64_t *state, int n)
{
    return (int)(random_bits(state) % (uint64_t)n);
}

static void scene_random(struct scene *s, uint64_t *state)
{
    static const int shapes[][2] = {{1, 1}, {16, 16}, {8, 2}, {12, 4}, {16, 1}, {40, 2}};
    static const int sizes[] = {1, 1, 1, 2, 4, 15, 16, 17, 64, 129, 200};
    const int *heads = shapes[below(state, 6)];
    memset(s, 0, sizeof *s);
    s->shape = (struct attention_shape){.n_heads = heads[0],
                                        .n_kv_heads = heads[1],
                                        .tile_rows = (int[]){0, 64, 128}[below(state, 3)],
                                        .max_pairs = (int[]){0, 20, MAX_PAIRS}[below(state, 3)]};
    int n = 1 + below(state, MAX_SEGMENTS), row = 0, block = 0;
    for (int i = 0; i < n; i++) {
        int n_rows = sizes[below(state, sizeof sizes / sizeof sizes[0])];
        if (row + n_rows > MAX_ROWS - MAX_SEGMENTS)
            n_rows = 1;
        int first = below(state, 4) == 0 ? 256 * below(state, 5) : below(state, 9000);
        s->segments[i] = (struct kernels_segment){.first_row = row,
                                                  .n_rows = n_rows,
                                                  .first_position = first,
                                                  .first_block = block,
                                                  .n_blocks = (first + n_rows + 15) / 16};
        row += n_rows;
        block += s->segments[i].n_blocks;
    }
    s->batch = (struct kernels_batch){.n_rows = row, .n_segments = n, .segments = s->segments};
}

static void scene_plan(struct scene *s)
{
    s->n_split = attention_plan_split(&s->shape, &s->batch, s->split);
    s->n_tile = attention_plan_tiles(&s->shape, &s->batch, s->tile);
    assert_in_range(s->n_split, 0, attention_plan_max_split_items(&s->shape, s->batch.n_rows));
    assert_in_range(s->n_tile, 0, attention_plan_max_tile_items(s->batch.n_rows));
}

static const struct kernels_segment *segment_of(const struct scene *s, int row)
{
    const struct kernels_segment *g = s->segments;
    while (row >= g->first_row + g->n_rows)
        g++;
    return g;
}

/* An item's rows are those of one segment, at their positions. */
static void check_item(const struct scene *s, const struct cuda_attention_item *item)
{
    assert_in_range(item->first_row, 0, s->batch.n_rows - 1);
    const struct kernels_segment *g = segment_of(s, item->first_row);
    assert_true(item->n_rows > 0);
    assert_true(item->first_row + item->n_rows <= g->first_row + g->n_rows);
    assert_int_equal(item->first_position, g->first_position + item->first_row - g->first_row);
    assert_int_equal(item->first_block, g->first_block);
}

static void check_coverage(const struct scene *s)
{
    static uint8_t n_seen[MAX_ROWS][MAX_PIECES], pair_used[MAX_PAIRS];
    memset(n_seen, 0, sizeof n_seen);
    memset(pair_used, 0, sizeof pair_used);
    const int heads = attention_heads_shared(s->shape.n_heads, s->shape.n_kv_heads);
    for (int i = 0; i < s->n_split; i++) {
        const struct cuda_attention_item *item = &s->split[i];
        const int pieces = attention_pieces(item->first_position + item->n_rows);
        check_item(s, item);
        assert_true(item->n_rows * heads <= ATTENTION_QUERIES);
        if (item->first_pair < 0) {
            assert_int_equal(item->first_piece, 0);
            assert_int_equal(item->n_pieces, pieces);
        } else {
            assert_int_equal(item->n_pieces, 1);
            assert_true(pieces > 1);
        }
        for (int r = 0; r < item->n_rows; r++)
            for (int p = item->first_piece; p < item->first_piece + item->n_pieces; p++) {
                n_seen[item->first_row + r][p]++;
                if (item->first_pair < 0)
                    continue;
                int pair = item->first_pair + r * pieces + p;
                assert_in_range(pair, 0, s->shape.max_pairs - 1);
                assert_int_equal(pair_used[pair]++, 0);
            }
    }
    for (int i = 0; i < s->n_tile; i++) {
        const struct cuda_attention_item *item = &s->tile[i];
        check_item(s, item);
        assert_in_range(item->n_rows, 1, s->shape.tile_rows);
        for (int r = 0; r < item->n_rows; r++)
            for (int p = 0; p < attention_pieces(item->first_position + item->n_rows); p++)
                n_seen[item->first_row + r][p]++;
    }
    for (int row = 0; row < s->batch.n_rows; row++) {
        const struct kernels_segment *g = segment_of(s, row);
        int own = attention_pieces(g->first_position + row - g->first_row + 1);
        for (int p = 0; p < MAX_PIECES; p++)
            if (p < own ? n_seen[row][p] != 1 : n_seen[row][p] > 1)
                fail_msg("row %d meets piece %d of %d %d times", row, p, own, n_seen[row][p]);
    }
}

static void test_attention_plan_covers_every_row_and_piece_once(void **state)
{
    (void)state;
    static struct scene s;
    uint64_t seed = 20260;
    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 600; i++) {
        scene_random(&s, &seed);
        scene_plan(&s);
        check_coverage(&s);
    }
}

static void test_attention_plan_puts_long_work_first(void **state)
{
    (void)state;
    static struct scene s;
    uint64_t seed = 77;
    for (int i = 0; i < 100; i++) {
        scene_random(&s, &seed);
        scene_plan(&s);
        for (int t = 1; t < s.n_tile; t++)
            assert_true(s.tile[t].first_position + s.tile[t].n_rows <=
                        s.tile[t - 1].first_position + s.tile[t - 1].n_rows);
        /* All pieces of a group, then whole pieces, then last ones. */
        int round = 0;
        for (int t = 0; t < s.n_split; t++) {
            const struct cuda_attention_item *item = &s.split[t];
            int pieces = attention_pieces(item->first_position + item->n_rows);
            int now = item->n_pieces > 1 ? 0 : item->first_piece < pieces - 1 ? 1 : 2;
            assert_true(now >= round);
            round = now;
        }
    }
}

/* Recorded batches of so few rows launch no tiles. */
static void test_attention_plan_has_no_tiles_in_small_batches(void **state)
{
    (void)state;
    static struct scene s;
    for (int extra = 0; extra < 2; extra++) {
        memset(&s, 0, sizeof s);
        s.shape = (struct attention_shape){
            .n_heads = 16, .n_kv_heads = 16, .tile_rows = 128, .max_pairs = 100};
        s.segments[0] =
            (struct kernels_segment){.n_rows = ATTENTION_TILE_BATCH + extra, .n_blocks = 4};
        s.batch = (struct kernels_batch){
            .n_rows = ATTENTION_TILE_BATCH + extra, .n_segments = 1, .segments = s.segments};
        scene_plan(&s);
        assert_int_equal(s.n_tile, extra);
        assert_int_equal(s.n_split, extra ? 0 : ATTENTION_TILE_BATCH / ATTENTION_QUERIES);
    }
}

static void test_attention_plan_pairs_follow_the_limits(void **state)
{
    (void)state;
    const struct kernels_limits limits = {.n_segments = 10, .n_table = 1600, .block_size = 16};
    assert_int_equal(attention_plan_pairs(&limits, 1000, (size_t)1 << 40), 4 * (100 + 10));
    assert_int_equal(attention_plan_pairs(&limits, 1000, 50500), 50);
    /* The largest sizes there are do not overflow. */
    const struct kernels_limits largest = {
        .n_segments = INT32_MAX, .n_table = INT32_MAX, .block_size = 4096};
    assert_int_equal(attention_plan_pairs(&largest, 10, 10000), 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_plan_covers_every_row_and_piece_once),
        cmocka_unit_test(test_attention_plan_puts_long_work_first),
        cmocka_unit_test(test_attention_plan_has_no_tiles_in_small_batches),
        cmocka_unit_test(test_attention_plan_pairs_follow_the_limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
