/* knee: greedy, tick and the knee rule start and wait when the design says so. */
#include "tests/unit.h"

#include "worker/knee.h"

/* a = 1000 ns, b = 100 ns: the knee is at 10 rows. One mate is busy, nothing has waited yet. */
static struct knee_input input(enum batching batching, uint32_t n_ready)
{
    return (struct knee_input){.batching = batching,
                               .n_ready = n_ready,
                               .max_rows = 64,
                               .batch_ns = 1000,
                               .row_ns = 100,
                               .n_busy_mates = 1};
}

static void test_knee_decides_as_the_table_says(void **state)
{
    (void)state;
    static const struct {
        enum batching batching;
        uint32_t n_ready, n_busy;
        uint64_t waited_ns, deadline_ns;
        bool starts;
        uint64_t again_ns;
    } table[] = {
        {BATCHING_GREEDY, 1, 3, 0, 0, true, 0},
        {BATCHING_TICK, 1, 0, 0, 0, true, 0},       /* nobody to wait for */
        {BATCHING_TICK, 1, 1, 0, 0, false, 2200},   /* twice 1000 + 100 */
        {BATCHING_TICK, 63, 1, 0, 0, false, 14600}, /* beyond the knee, tick still waits */
        {BATCHING_TICK, 64, 1, 0, 0, true, 0},      /* the batch is full */
        {BATCHING_KNEE, 1, 0, 0, 0, true, 0},
        {BATCHING_KNEE, 9, 1, 0, 0, false, 3800},
        {BATCHING_KNEE, 10, 1, 0, 0, true, 0}, /* a/b */
        {BATCHING_KNEE, 9, 1, 3799, 0, false, 1},
        {BATCHING_KNEE, 9, 1, 3800, 0, true, 0}, /* the deadline */
        {BATCHING_KNEE, 9, 1, 0, 500, false, 500},
        {BATCHING_KNEE, 9, 1, 499, 500, false, 1},
        {BATCHING_KNEE, 9, 1, 500, 500, true, 0},
        {BATCHING_ROUND, 1, 0, 0, 0, true, 0},
        {BATCHING_ROUND, 9, 1, 0, 0, false, 3800},
        {BATCHING_ROUND, 10, 1, 0, 0, true, 0},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct knee_input in = input(table[i].batching, table[i].n_ready);
        in.n_busy_mates = table[i].n_busy;
        in.waited_ns = table[i].waited_ns;
        in.deadline_ns = table[i].deadline_ns;
        uint64_t again_ns = 0;
        if (knee_should_start(&in, &again_ns) != table[i].starts || again_ns != table[i].again_ns)
            fail_msg("row %zu: again in %llu ns", i, (unsigned long long)again_ns);
    }
}

static void test_knee_without_a_row_cost_waits_for_mates(void **state)
{
    (void)state;
    struct knee_input in = input(BATCHING_KNEE, 40);
    in.row_ns = 0; /* the knee is never reached */
    uint64_t again_ns = 0;
    assert_false(knee_should_start(&in, &again_ns));
    assert_int_equal(again_ns, 2000);
    in.batch_ns = 0; /* nothing costs anything */
    assert_true(knee_should_start(&in, &again_ns));
}

static void test_knee_does_not_wrap(void **state)
{
    (void)state;
    struct knee_input in = input(BATCHING_KNEE, 3);
    in.batch_ns = UINT64_MAX;
    in.row_ns = UINT64_MAX / 4;
    in.waited_ns = 10;
    uint64_t again_ns = 0;
    assert_false(knee_should_start(&in, &again_ns));
    assert_true(again_ns == UINT64_MAX - 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_knee_decides_as_the_table_says),
        cmocka_unit_test(test_knee_without_a_row_cost_waits_for_mates),
        cmocka_unit_test(test_knee_does_not_wrap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
