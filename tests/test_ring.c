/* Placement: every worker is in one ring, every loop on one worker, the load even over offsets. */
#include "tests/unit.h"

#include "cluster/ring.h"

static void test_ring_default_size(void **state)
{
    (void)state;
    static const struct {
        int n_workers, n_loops, size;
    } cases[] = {
        {1, 4, 1},  {2, 4, 2},    {3, 4, 3},       {7, 4, 7},   {8, 4, 8},   {8, 1, 8},
        {9, 4, 9},  {10, 4, 5},   {12, 4, 4},      {12, 3, 3},  {12, 5, 6},  {13, 4, 13},
        {15, 4, 5}, {16, 4, 4},   {16, 8, 8},      {16, 1, 1},  {49, 4, 7},  {64, 4, 4},
        {64, 3, 4}, {1024, 4, 4}, {1021, 4, 1021}, {22, 8, 11}, {10, 6, 10}, {9, 1, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(ring_default_size(cases[i].n_workers, cases[i].n_loops), cases[i].size);
}

static void test_ring_default_size_is_valid_for_any_w(void **state)
{
    (void)state;
    for (int w = 1; w <= 300; w++) {
        for (int t = 1; t <= 8; t++) {
            int size = ring_default_size(w, t);
            assert_true(ring_size_is_valid(w, size));
            assert_int_equal(ring_count(w, size) * size, w);
            assert_true(size >= t || size == w);
        }
    }
}

static void test_ring_size_is_valid(void **state)
{
    (void)state;
    assert_true(ring_size_is_valid(12, 12));
    assert_true(ring_size_is_valid(12, 1));
    assert_false(ring_size_is_valid(12, 5));
    assert_false(ring_size_is_valid(12, 0));
    assert_false(ring_size_is_valid(12, -4));
    assert_false(ring_size_is_valid(12, 24));
}

static void test_ring_worker_moves_one_a_loop(void **state)
{
    (void)state;
    assert_int_equal(ring_worker(4, 0, 1), 0);
    assert_int_equal(ring_worker(4, 3, 1), 3);
    assert_int_equal(ring_worker(4, 3, 2), 0);
    assert_int_equal(ring_worker(1, 77, 4), 0);
    /* 2^32 is 1 mod 3: a sum in 32 bits would repeat a worker here. */
    for (uint32_t loop = 1; loop < 8; loop++)
        assert_int_equal(ring_worker(3, UINT32_MAX, loop + 1),
                         (ring_worker(3, UINT32_MAX, loop) + 1) % 3);
}

static void test_ring_loops_on_counts_ring_worker(void **state)
{
    (void)state;
    static const uint32_t bases[] = {0, 1, 1000, UINT32_MAX - 20};
    for (int size = 1; size <= 10; size++) {
        for (uint32_t k = 0; k < 4 * 20; k++) {
            uint32_t offset = bases[k % 4] + k / 4;
            for (uint32_t n = 0; n <= 8; n++) {
                int counts[10] = {0};
                for (uint32_t t = 1; t <= n; t++)
                    counts[ring_worker(size, offset, t)]++;
                for (int i = 0; i < size; i++)
                    assert_int_equal(ring_loops_on(size, offset, n, i), counts[i]);
            }
        }
    }
}

static void test_ring_ranks_round_trip(void **state)
{
    (void)state;
    for (int size = 1; size <= 9; size++) {
        int expected = 1;
        for (int ring = 0; ring < 5; ring++) {
            for (int i = 0; i < size; i++, expected++) {
                int rank = ring_rank(size, ring, i);
                assert_int_equal(rank, expected);
                assert_int_equal(ring_of_rank(size, rank), ring);
                assert_int_equal(ring_index_of_rank(size, rank), i);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring_default_size),
        cmocka_unit_test(test_ring_default_size_is_valid_for_any_w),
        cmocka_unit_test(test_ring_size_is_valid),
        cmocka_unit_test(test_ring_worker_moves_one_a_loop),
        cmocka_unit_test(test_ring_loops_on_counts_ring_worker),
        cmocka_unit_test(test_ring_ranks_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
