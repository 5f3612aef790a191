/* Many clocks become one, hops lose the offset of two clocks, idle time gets its reason. */
#include "tests/trace_file.h"

static void align(struct trace_set *set)
{
    struct err err;
    assert_int_equal(trace_set_align(set, &err), STATUS_OK);
}

static void test_append_keeps_the_order_of_many(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(2);
    struct trace_record three[3] = {
        {.kind = TRACE_POOL}, {.kind = TRACE_POOL}, {.kind = TRACE_POOL}};
    struct err err;
    for (uint64_t i = 0; i < 100; i++) {
        for (uint64_t k = 0; k < 3; k++)
            three[k].at_ns = 3 * i + k;
        assert_int_equal(trace_set_append(set, 1, three, 3, &err), STATUS_OK);
        assert_int_equal(trace_set_append(set, 1, three, 0, &err), STATUS_OK);
    }
    assert_int_equal(set->ranks[1].n_records, 300);
    for (uint64_t i = 0; i < 300; i++)
        assert_int_equal(set->ranks[1].records[i].at_ns, i);
    assert_int_equal(trace_set_append(set, 2, three, 3, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "rank 2"));
    assert_int_equal(trace_set_append(set, 1, three, SIZE_MAX / 64, &err), STATUS_NO_MEMORY);
    assert_int_equal(set->ranks[1].n_records, 300);
    trace_set_destroy(set);
    trace_set_destroy(NULL);
}

static void test_clocks_become_the_coordinators(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(3);
    /* Worker 1 is 1000 ahead of the coordinator, worker 2 is 500 behind. */
    set->ranks[1].clock_offset_ns = 1000;
    set->ranks[1].clock_error_ns = 7;
    set->ranks[2].clock_offset_ns = -500;
    trace_file_add(set, 0, (struct trace_record){.kind = TRACE_TOKEN, .loop = 1, .at_ns = 5000});
    trace_file_add(set, 1,
                   (struct trace_record){.kind = TRACE_BATCH, .at_ns = 5000, .lasted_ns = 10});
    trace_file_add(
        set, 1, (struct trace_record){.kind = TRACE_POOL, .at_ns = 400}); /* before our clock's 0 */
    trace_file_add(set, 2,
                   (struct trace_record){.kind = TRACE_BATCH, .at_ns = 5000, .lasted_ns = 10});
    align(set);
    assert_int_equal(set->ranks[0].records[0].at_ns, 5000);
    assert_int_equal(set->ranks[1].records[0].at_ns, 0);
    assert_int_equal(set->ranks[1].records[1].at_ns, 4000);
    assert_int_equal(set->ranks[1].records[1].lasted_ns, 10);
    assert_int_equal(set->ranks[2].records[0].at_ns, 5500);
    assert_int_equal(set->ranks[1].clock_offset_ns, 0);
    assert_int_equal(set->ranks[1].clock_removed_ns, 1000);
    assert_int_equal(set->ranks[1].clock_error_ns, 7);
    assert_int_equal(set->ranks[2].clock_offset_ns, 0);
    trace_set_destroy(set);
}

static void test_hops_lose_the_offset(void **state)
{
    (void)state;
    static const struct {
        uint16_t peer;
        int64_t measured, corrected;
    } cases[] = {
        /* Of worker 2: 1000 + 500 between the clocks. */
        {2, 1540, 40},
        {2, 1490, 0}, /* less than nothing: the clocks' error */
        {2, -INT64_MAX, 0},
        /* The prompt, of the coordinator. */
        {0, 1025, 25},
        /* They stayed. */
        {1, 0, 0},
        /* A rank that does not exist has no clock to correct. */
        {9, 33, 33},
        {9, -33, 0},
    };
    struct trace_set *set = trace_file_set(3);
    set->ranks[1].clock_offset_ns = 1000;
    set->ranks[2].clock_offset_ns = -500;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        trace_file_add(set, 1,
                       (struct trace_record){.kind = TRACE_ROWS,
                                             .loop = 1,
                                             .at_ns = 2000 + i,
                                             .peer = cases[i].peer,
                                             .rows.hop_ns = cases[i].measured});
    align(set);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(set->ranks[1].records[i].rows.hop_ns, cases[i].corrected);
    trace_set_destroy(set);
}

static void test_hops_of_a_clock_years_away(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(2);
    set->ranks[1].clock_offset_ns = INT64_MIN;
    trace_file_add(set, 1, (struct trace_record){.kind = TRACE_ROWS, .loop = 1, .rows.hop_ns = 5});
    trace_file_add(
        set, 1,
        (struct trace_record){.kind = TRACE_BATCH, .at_ns = UINT64_MAX - 9, .lasted_ns = 9});
    align(set);
    assert_int_equal(set->ranks[1].records[0].rows.hop_ns, 0);
    assert_int_equal(set->ranks[1].records[1].at_ns, UINT64_MAX);
    assert_int_equal(set->ranks[1].records[1].lasted_ns, 0);
    trace_set_destroy(set);
}

static void test_sorts_by_begin_and_keeps_ties(void **state)
{
    (void)state;
    static const uint64_t times[] = {50, 10, 30, 10, 40, 10, 0, 50, 30};
    static const uint32_t order[] = {6, 1, 3, 5, 2, 8, 4, 0, 7};
    struct trace_set *set = trace_file_set(2);
    for (uint32_t i = 0; i < 9; i++)
        trace_file_add(set, 1,
                       (struct trace_record){.kind = TRACE_POOL, .at_ns = times[i], .n_rows = i});
    align(set);
    for (uint32_t i = 0; i < 9; i++)
        assert_int_equal(set->ranks[1].records[i].n_rows, order[i]);
    trace_set_destroy(set);
}

static void expect_idle(const struct trace_set *set, size_t i, enum trace_idle why, uint64_t from,
                        uint64_t to)
{
    assert_true(i < set->ranks[1].n_records);
    const struct trace_record *r = &set->ranks[1].records[i];
    assert_int_equal(r->kind, TRACE_IDLE);
    assert_int_equal(r->flags, why);
    assert_int_equal(r->at_ns, from);
    assert_int_equal(r->at_ns + r->lasted_ns, to);
}

static void add_span(struct trace_set *set, uint32_t rank, enum trace_kind kind, uint16_t flags,
                     uint64_t from, uint64_t to)
{
    trace_file_add(
        set, rank,
        (struct trace_record){
            .kind = (uint8_t)kind, .flags = flags, .at_ns = from, .lasted_ns = to - from});
}

static void test_starved_is_split_by_its_reason(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(2);
    /* Blocked 100..200 and, in two records that touch, 300..400; drained from 350 on. */
    add_span(set, 0, TRACE_BLOCKED, TRACE_BLOCKED_SEQUENCES, 300, 360);
    add_span(set, 0, TRACE_BLOCKED, TRACE_BLOCKED_KV, 100, 200);
    add_span(set, 0, TRACE_BLOCKED, TRACE_BLOCKED_KV, 340, 400);
    add_span(set, 0, TRACE_DRAINING, 0, 350, 1000);
    set->ranks[1].clock_offset_ns = 5000;
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_STARVED, 5050, 5250);
    add_span(set, 1, TRACE_BATCH, 0, 5250, 5280);
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_PEER, 5280, 5290);
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_STARVED, 5290, 5450);
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_PEER, 5450, 5460);
    align(set);
    assert_int_equal(set->ranks[1].n_records, 9);
    expect_idle(set, 0, TRACE_IDLE_STARVED, 50, 100);
    expect_idle(set, 1, TRACE_IDLE_KV, 100, 200);
    expect_idle(set, 2, TRACE_IDLE_STARVED, 200, 250);
    assert_int_equal(set->ranks[1].records[3].kind, TRACE_BATCH);
    expect_idle(set, 4, TRACE_IDLE_PEER, 280, 290);
    expect_idle(set, 5, TRACE_IDLE_STARVED, 290, 300);
    expect_idle(set, 6, TRACE_IDLE_KV, 300, 400);
    expect_idle(set, 7, TRACE_IDLE_DRAINING, 400, 450);
    expect_idle(set, 8, TRACE_IDLE_PEER, 450, 460);
    trace_set_destroy(set);
}

static void test_nothing_to_align(void **state)
{
    (void)state;
    struct trace_set *set = trace_file_set(0);
    align(set);
    trace_set_destroy(set);
    set = trace_file_set(3);
    align(set);
    assert_int_equal(set->ranks[2].n_records, 0);
    trace_set_destroy(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append_keeps_the_order_of_many),
        cmocka_unit_test(test_clocks_become_the_coordinators),
        cmocka_unit_test(test_hops_lose_the_offset),
        cmocka_unit_test(test_hops_of_a_clock_years_away),
        cmocka_unit_test(test_sorts_by_begin_and_keeps_ties),
        cmocka_unit_test(test_starved_is_split_by_its_reason),
        cmocka_unit_test(test_nothing_to_align),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
