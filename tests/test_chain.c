/* chain: items are handed out once, keep their order, and all come back. */
#include "tests/unit.h"

#include "worker/chain.h"

enum { N = 16 };

static void assert_items(struct chain_pool *pool, const struct chain *chain, const uint32_t *items,
                         uint32_t n)
{
    assert_int_equal(chain->n, n);
    uint32_t at = chain->head;
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(at, items[i]);
        if (i + 1 == n)
            assert_int_equal(at, chain->tail);
        at = pool->next[at];
    }
}

static void test_chain_take_gives_each_item_once(void **state)
{
    (void)state;
    uint32_t next[N];
    bool is_seen[N] = {false};
    struct chain_pool pool;
    struct chain chain;
    chain_pool_init(&pool, next, N);
    chain_init(&chain);
    assert_true(chain_take(&pool, &chain, 5));
    assert_true(chain_take(&pool, &chain, N - 5));
    assert_int_equal(chain.n, N);
    assert_int_equal(pool.n_used, N);
    while (chain.n > 0) {
        uint32_t item = chain_pop(&pool, &chain);
        assert_true(item < N && !is_seen[item]);
        is_seen[item] = true;
    }
    assert_int_equal(pool.n_used, N); /* detached items count as used */
}

static void test_chain_take_of_too_many_changes_nothing(void **state)
{
    (void)state;
    uint32_t next[N];
    struct chain_pool pool;
    struct chain chain;
    chain_pool_init(&pool, next, N);
    chain_init(&chain);
    assert_true(chain_take(&pool, &chain, 10));
    const struct chain before = chain;
    assert_false(chain_take(&pool, &chain, N - 10 + 1));
    assert_memory_equal(&chain, &before, sizeof chain);
    assert_int_equal(pool.n_used, 10);
    assert_true(chain_take(&pool, &chain, 0));
    assert_int_equal(chain.n, 10);
}

static void test_chain_keeps_its_order(void **state)
{
    (void)state;
    uint32_t next[N];
    struct chain_pool pool;
    struct chain all, left, right;
    chain_pool_init(&pool, next, N);
    chain_init(&all);
    chain_init(&left);
    chain_init(&right);
    assert_true(chain_take(&pool, &all, 6));
    uint32_t items[6];
    for (int i = 0; i < 6; i++) {
        items[i] = chain_pop(&pool, &all);
        chain_push(&pool, i < 4 ? &left : &right, items[i]);
    }
    assert_items(&pool, &all, NULL, 0);
    assert_items(&pool, &left, items, 4);
    assert_items(&pool, &right, items + 4, 2);
    chain_append(&pool, &left, &right);
    assert_items(&pool, &left, items, 6);
    assert_items(&pool, &right, NULL, 0);
    chain_append(&pool, &left, &right); /* nothing to append */
    assert_items(&pool, &left, items, 6);
    chain_append(&pool, &right, &left); /* to an empty one */
    assert_items(&pool, &right, items, 6);
}

static void test_chain_free_gives_all_back(void **state)
{
    (void)state;
    uint32_t next[N];
    struct chain_pool pool;
    struct chain a, b;
    chain_pool_init(&pool, next, N);
    chain_init(&a);
    chain_init(&b);
    for (int round = 0; round < 100; round++) {
        assert_true(chain_take(&pool, &a, (uint32_t)(round % (N - 1)) + 1));
        assert_true(chain_take(&pool, &b, N - a.n));
        assert_false(chain_take(&pool, &a, 1));
        chain_free(&pool, &a);
        assert_int_equal(pool.n_used, b.n);
        chain_free(&pool, &b);
        chain_free(&pool, &b); /* empty is fine */
        assert_int_equal(pool.n_used, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chain_take_gives_each_item_once),
        cmocka_unit_test(test_chain_take_of_too_many_changes_nothing),
        cmocka_unit_test(test_chain_keeps_its_order),
        cmocka_unit_test(test_chain_free_gives_all_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
