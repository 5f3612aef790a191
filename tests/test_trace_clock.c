/* trace_clock: whatever comparisons come in whatever order, the offset is right within its error,
 * and times in order stay in order. */
#include "tests/unit.h"

#include "coordinator/trace_set.h"
#include "kernels/rng.h"

#include <math.h>

enum { CAP = 16 };
#define SECOND UINT64_C(1000000000)

static struct trace_clock at(uint64_t at_ns, int64_t offset_ns, uint64_t error_ns)
{
    return (struct trace_clock){.at_ns = at_ns, .offset_ns = offset_ns, .error_ns = error_ns};
}

static void test_a_quick_comparison_replaces_slow_ones(void **state)
{
    (void)state;
    struct trace_clock p[CAP];
    size_t n = 0;
    trace_clock_add(p, &n, CAP, at(10 * SECOND, 500, 1000));
    trace_clock_add(p, &n, CAP, at(10 * SECOND + 5000, 600, 2000)); /* says less */
    assert_int_equal(n, 1);
    trace_clock_add(p, &n, CAP, at(9 * SECOND, 700, 2000)); /* more about its own time */
    trace_clock_add(p, &n, CAP, at(11 * SECOND, 800, 100));
    assert_int_equal(n, 3);
    assert_int_equal(p[0].offset_ns, 700);
    trace_clock_add(p, &n, CAP, at(10 * SECOND + 7000, 550, 10));
    assert_int_equal(n, 3);
    assert_int_equal(p[1].offset_ns, 550);
    trace_clock_add(p, &n, CAP, at(10 * SECOND + 1, 550, 0)); /* before it, in the middle */
    assert_int_equal(n, 3);
    assert_int_equal(p[1].at_ns, 10 * SECOND + 1);
}

static void test_between_comparisons_the_offset_moves_evenly(void **state)
{
    (void)state;
    /* Years away, where a double has steps of 16 ns and more. */
    const int64_t far = INT64_C(90000000000000001);
    struct trace_clock p[CAP];
    size_t n = 0;
    uint64_t error_ns;
    trace_clock_add(p, &n, CAP, at(10 * SECOND, far, 100));
    assert_int_equal(trace_clock_offset(p, n, 10 * SECOND, &error_ns), far);
    assert_true(error_ns >= 100 && error_ns <= 101);
    assert_int_equal(trace_clock_offset(p, n, 8 * SECOND, &error_ns), far);
    assert_true(error_ns >= 100100 && error_ns <= 100101);
    trace_clock_add(p, &n, CAP, at(20 * SECOND, far + 1000, 300));
    assert_int_equal(trace_clock_offset(p, n, 10 * SECOND, NULL), far);
    assert_int_equal(trace_clock_offset(p, n, 15 * SECOND, &error_ns), far + 500);
    assert_true(error_ns >= 250200 && error_ns <= 250201);
    assert_int_equal(trace_clock_offset(p, n, 20 * SECOND, NULL), far + 1000);
    assert_int_equal(trace_clock_offset(p, n, 99 * SECOND, NULL), far + 1000);
    assert_int_equal(trace_clock_offset(p, n, 0, NULL), far);
}

/* A comparison that would turn time back is of the same moment as its neighbour, or a lie. */
static void test_what_would_turn_time_back_is_left_out(void **state)
{
    (void)state;
    struct trace_clock p[CAP];
    size_t n = 0;
    trace_clock_add(p, &n, CAP, at(1000, 0, 900));
    trace_clock_add(p, &n, CAP, at(2000, 600, 800));
    assert_int_equal(n, 1);
    assert_int_equal(p[0].offset_ns, 600);
    trace_clock_add(p, &n, CAP, at(5 * SECOND, INT64_MIN, 10));
    trace_clock_add(p, &n, CAP, at(6 * SECOND, INT64_MAX, 1));
    for (size_t i = 0; i + 1 < n; i++)
        assert_true(fabs((double)p[i + 1].offset_ns - (double)p[i].offset_ns) * 2.0 <
                    (double)(p[i + 1].at_ns - p[i].at_ns));
}

/* The true offset of a clock that gains 5 to 35 us a second. */
static double true_offset(double at_s)
{
    return 5e12 + 20e3 * at_s + 200.0 * 15e3 * sin(at_s / 200.0);
}

static double draw(uint64_t seed, uint64_t i)
{
    return rng_uniform(seed, (uint32_t)i, RNG_SAMPLE);
}

static void check_run(uint64_t seed, double seconds)
{
    struct trace_clock p[CAP];
    size_t n = 0, n_in_order = 0;
    for (uint64_t i = 0; (double)i < seconds; i++) {
        double middle = (double)i + 0.5 * draw(seed, 4 * i);
        double half_trip = 5e3 + 2e5 * pow(draw(seed, 4 * i + 1), 8.0);
        double lie = (2.0 * draw(seed, 4 * i + 2) - 1.0) * half_trip;
        trace_clock_add(p, &n, CAP,
                        at((uint64_t)(middle * 1e9), (int64_t)(true_offset(middle) + lie),
                           (uint64_t)half_trip + 1));
        assert_true(n >= 1 && n <= CAP);
        for (size_t k = 1; k < n; k++)
            n_in_order += p[k - 1].at_ns < p[k].at_ns;
    }
    assert_true(n_in_order > 0);
    /* As if by the other clock: one event every 0.1 s, seen by ours. */
    uint64_t last = 0, error_ns;
    for (double t = 1.0; t < seconds; t += 0.1) {
        double off = (double)trace_clock_offset(p, n, (uint64_t)(t * 1e9), &error_ns);
        if (fabs(off - true_offset(t)) > (double)error_ns)
            fail_msg("seed %llu: at %.1f s the offset is off by %.0f ns, said is %llu",
                     (unsigned long long)seed, t, off - true_offset(t),
                     (unsigned long long)error_ns);
        uint64_t theirs = (uint64_t)(t * 1e9 + true_offset(t));
        uint64_t ours = theirs - (uint64_t)trace_clock_offset(p, n, (uint64_t)(t * 1e9), NULL);
        assert_true(ours >= last);
        last = ours;
    }
    /* Near the end, where most records of a ring buffer are, it is known well: within a second of
     * the last comparison, 50 us of drift. */
    trace_clock_offset(p, n, (uint64_t)(seconds * 1e9), &error_ns);
    assert_true(error_ns < 5000 + 200000 + 60000);
}

static void test_the_offset_is_right_within_its_error(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++)
        check_run(seed, seed % 2 == 0 ? 3000.0 : 7.0 + (double)seed);
}

/* Old ones become fewer, new ones stay dense. */
static void test_old_comparisons_thin_out(void **state)
{
    (void)state;
    struct trace_clock p[64];
    size_t n = 0;
    for (uint64_t i = 0; i <= 100000; i++)
        trace_clock_add(p, &n, 64, at(i * SECOND, (int64_t)i * 10000, 5000));
    assert_int_equal(n, 64);
    assert_int_equal(p[0].at_ns, 0);
    for (size_t i = 1; i < n; i++) {
        double age_s = 100000.0 - (double)p[i].at_ns / 1e9;
        double gap_s = (double)(p[i].at_ns - p[i - 1].at_ns) / 1e9;
        if (gap_s > 2.0 + 0.8 * age_s)
            fail_msg("%.0f s ago there is a gap of %.0f s", age_s, gap_s);
    }
    assert_int_equal(trace_clock_offset(p, n, 99990 * SECOND, NULL), INT64_C(999900000));
}

/* Aligning uses the offset of each record's time, for begin, end and hop. */
static void test_align_follows_a_drifting_clock(void **state)
{
    (void)state;
    struct trace_set *set = NULL;
    assert_int_equal(trace_set_create(3, &set, NULL), STATUS_OK);
    for (uint32_t rank = 1; rank < 3; rank++) {
        struct trace_rank *r = &set->ranks[rank];
        /* Rank 1 gains 10 us a second from 1000 s on, rank 2 loses as much. */
        int64_t sign = rank == 1 ? 1 : -1;
        r->clocks = calloc(2, sizeof *r->clocks);
        assert_non_null(r->clocks);
        r->clocks[0] = at(1000 * SECOND, 0, 100);
        r->clocks[1] = at(1100 * SECOND, sign * 1000000, 200);
        r->n_clocks = 2;
        r->clock_offset_ns = sign * 1000000;
        r->clock_error_ns = 200;
    }
    for (uint64_t i = 0; i <= 100; i += 10) {
        /* True: it begins at 1000 + i s, lasts 1 s, and came from rank 2 in 70 us. */
        uint64_t begin = (1000 + i) * SECOND + i * 10000, end = begin + SECOND + 10000;
        if (i == 100)
            end -= 10000; /* after the last comparison nobody knows */
        struct trace_record r = {.kind = TRACE_ROWS, .loop = 2, .peer = 2, .at_ns = begin};
        r.lasted_ns = end - begin;
        r.rows.hop_ns = 70000 + (int64_t)i * 20000;
        assert_int_equal(trace_set_append(set, 1, &r, 1, NULL), STATUS_OK);
    }
    assert_int_equal(trace_set_align(set, NULL), STATUS_OK);
    for (uint64_t i = 0; i <= 10; i++) {
        const struct trace_record *r = &set->ranks[1].records[i];
        assert_in_range(r->at_ns, (1000 + 10 * i) * SECOND - 2, (1000 + 10 * i) * SECOND + 2);
        assert_in_range(r->lasted_ns, SECOND - 2, SECOND + 2);
        assert_in_range((uint64_t)r->rows.hop_ns, 70000 - 4, 70000 + 4);
    }
    /* In the middle it is known least: 150 ns and 100 s / 4 of drift from either side. */
    assert_in_range(set->ranks[1].clock_error_ns, 2500000, 2600000);
    assert_int_equal(set->ranks[1].clock_removed_ns, 1000000);
    trace_set_destroy(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_quick_comparison_replaces_slow_ones),
        cmocka_unit_test(test_between_comparisons_the_offset_moves_evenly),
        cmocka_unit_test(test_what_would_turn_time_back_is_left_out),
        cmocka_unit_test(test_the_offset_is_right_within_its_error),
        cmocka_unit_test(test_old_comparisons_thin_out),
        cmocka_unit_test(test_align_follows_a_drifting_clock),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
