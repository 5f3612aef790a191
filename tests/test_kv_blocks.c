/* kv_blocks: positions are covered by as few blocks as they need, and ids land at their position.
 */
#include "tests/unit.h"

#include "worker/kv_blocks.h"

enum { N_BLOCKS = 8, BLOCK_SIZE = 3 };

struct pool {
    struct kv_blocks kv;
    uint32_t next[N_BLOCKS];
    int32_t ids[N_BLOCKS * BLOCK_SIZE];
};

static void pool_init(struct pool *p)
{
    memset(p->ids, 0xff, sizeof p->ids);
    kv_blocks_init(&p->kv, p->next, p->ids, N_BLOCKS, BLOCK_SIZE);
}

static void test_kv_blocks_needed_rounds_up(void **state)
{
    (void)state;
    assert_int_equal(kv_blocks_needed(0, 16), 0);
    assert_int_equal(kv_blocks_needed(1, 16), 1);
    assert_int_equal(kv_blocks_needed(16, 16), 1);
    assert_int_equal(kv_blocks_needed(17, 16), 2);
    assert_int_equal(kv_blocks_needed(UINT32_MAX, 16), 1u << 28);
    assert_int_equal(kv_blocks_needed(5, 1), 5);
}

static void test_kv_blocks_cover_takes_only_what_is_missing(void **state)
{
    (void)state;
    struct pool p;
    struct chain a, b;
    pool_init(&p);
    chain_init(&a);
    chain_init(&b);
    static const struct {
        uint32_t n_positions, n_blocks;
    } steps[] = {{0, 0}, {1, 1}, {3, 1}, {4, 2}, {2, 2}, {9, 3}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        assert_true(kv_blocks_cover(&p.kv, &a, steps[i].n_positions));
        assert_int_equal(a.n, steps[i].n_blocks);
        assert_int_equal(p.kv.pool.n_used, steps[i].n_blocks);
    }
    assert_false(kv_blocks_cover(&p.kv, &b, 16)); /* six blocks, five are free */
    assert_int_equal(b.n, 0);
    assert_true(kv_blocks_cover(&p.kv, &b, 15));
    assert_true(kv_blocks_cover(&p.kv, &a, 9)); /* covered already: a full pool does not matter */
    chain_free(&p.kv.pool, &a);
    assert_true(kv_blocks_cover(&p.kv, &b, 24));
    assert_int_equal(p.kv.pool.n_used, N_BLOCKS);
}

static void test_kv_blocks_ids_land_at_their_position(void **state)
{
    (void)state;
    struct pool p;
    struct chain chains[2];
    int32_t tables[2][N_BLOCKS];
    pool_init(&p);
    chain_init(&chains[0]);
    chain_init(&chains[1]);
    /* Two sequences that grow in turns: neither has neighbouring blocks. */
    for (uint32_t position = 0; position < 10; position++) {
        for (int i = 0; i < 2; i++) {
            assert_true(kv_blocks_cover(&p.kv, &chains[i], position + 1));
            kv_blocks_list(&p.kv, &chains[i], chains[i].n, tables[i]);
            kv_blocks_set_id(&p.kv, tables[i], position, (int32_t)(100 * i + (int)position));
        }
    }
    for (int i = 0; i < 2; i++) {
        for (int position = 0; position < 10; position++) {
            int block = tables[i][position / BLOCK_SIZE];
            assert_in_range(block, 0, N_BLOCKS - 1);
            assert_int_equal(p.ids[block * BLOCK_SIZE + position % BLOCK_SIZE], 100 * i + position);
        }
    }
    int32_t first[2] = {-1, -1};
    kv_blocks_list(&p.kv, &chains[0], 1, first); /* the beginning of a chain */
    assert_int_equal(first[0], tables[0][0]);
    assert_int_equal(first[1], -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kv_blocks_needed_rounds_up),
        cmocka_unit_test(test_kv_blocks_cover_takes_only_what_is_missing),
        cmocka_unit_test(test_kv_blocks_ids_land_at_their_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
