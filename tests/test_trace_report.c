/* The report of traces that are small enough to work out by hand. */
#include "tests/trace_file.h"

#include "cli/trace_report.h"
#include "cli/trace_samples.h"

#include <math.h>

enum { US = 1000 };

static void near(double found, double wanted_us, const char *what)
{
    if (fabs(found - wanted_us * 1e-6) > 1e-12)
        fail_msg("%s: wanted %.3f us, found %.3f us", what, wanted_us, found * 1e6);
}
#define NEAR(found, wanted_us) near(found, wanted_us, #found)

static void add_rows(struct trace_set *set, uint32_t rank, uint8_t loop, uint64_t sequence,
                     uint32_t first, uint32_t n, uint64_t at_us, uint64_t hop_us, uint64_t wait_us,
                     uint16_t flags)
{
    struct trace_record batch = {
        .kind = TRACE_BATCH, .at_ns = at_us * US, .lasted_ns = 100 * US, .n_rows = n};
    batch.batch.rows_by_loop[loop - 1] = (uint16_t)n;
    batch.batch.head_ns = (flags & TRACE_EXIT) != 0 ? 7 * US + loop : 0;
    batch.batch.n_heads = (flags & TRACE_EXIT) != 0;
    trace_file_add(set, rank, batch);
    trace_file_add(
        set, rank,
        (struct trace_record){.kind = TRACE_ROWS,
                              .loop = loop,
                              .at_ns = at_us * US,
                              .lasted_ns = 100 * US,
                              .sequence = sequence,
                              .position = first,
                              .n_rows = n,
                              .flags = flags,
                              .rows = {(int64_t)(hop_us * US), wait_us * US,
                                       (flags & TRACE_EXIT) != 0 ? n : 0, n > 1 ? n - 1 : 0}});
}

static void add_span(struct trace_set *set, uint32_t rank, enum trace_kind kind, uint16_t flags,
                     uint64_t from_us, uint64_t to_us)
{
    trace_file_add(set, rank,
                   (struct trace_record){.kind = (uint8_t)kind,
                                         .flags = flags,
                                         .at_ns = from_us * US,
                                         .lasted_ns = (to_us - from_us) * US,
                                         .sequence = 1,
                                         .n_rows = 3});
}

static void add_token(struct trace_set *set, uint32_t position, uint8_t loop, uint64_t at_us)
{
    trace_file_add(set, 0,
                   (struct trace_record){.kind = TRACE_TOKEN,
                                         .sequence = 1,
                                         .position = position,
                                         .loop = loop,
                                         .at_ns = at_us * US});
}

/* One sequence, a prompt of three, three tokens that exit at loops 2, 1 and 2; two workers. Times
 * in microseconds; the trace begins at 1000. */
static struct trace_set *make_set(void)
{
    struct trace_set *set;
    struct err err;
    assert_int_equal(trace_set_create(3, &set, &err), STATUS_OK);
    set->n_loops = 2;
    set->ring_size = 2;
    set->ranks[2].clock_error_ns = 4 * US;
    set->ranks[1].clock_error_ns = 3 * US;
    add_span(set, 0, TRACE_QUEUE, 0, 1000, 1010);
    add_span(set, 0, TRACE_ADMISSION, 0, 1010, 1040);
    add_span(set, 0, TRACE_SEQUENCE, 2, 1040, 1700);
    /* Token 3: the prompt, sent at 1040, arrives at 1050, waits 10; loop 2 on worker 2. The rows'
     * own wait there is 60, of the oldest; 15 after the end of loop 1's batch it begins. */
    add_rows(set, 1, 1, 1, 0, 3, 1060, 10, 10, TRACE_LIVE);
    add_rows(set, 2, 2, 1, 0, 3, 1175, 5, 60, TRACE_LIVE | TRACE_EXIT);
    add_token(set, 3, 2, 1280);
    /* Token 4: loop 1 only, 20 after the exit of token 3. */
    add_rows(set, 1, 1, 1, 3, 1, 1295, 20, 0, TRACE_LIVE | TRACE_EXIT);
    add_token(set, 4, 1, 1403);
    /* Token 5: stays on worker 1 for loop 1. */
    add_rows(set, 1, 1, 1, 4, 1, 1400, 0, 5, TRACE_LIVE);
    add_rows(set, 2, 2, 1, 3, 2, 1550, 30, 20, TRACE_LIVE | TRACE_EXIT);
    add_token(set, 5, 2, 1660);
    /* Rows that decide nothing are in no loop's table. */
    add_rows(set, 1, 2, 9, 0, 5, 1600, 9, 9, 0);
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_STARVED, 1170, 1290);
    add_span(set, 1, TRACE_IDLE, TRACE_IDLE_PEER, 1500, 1598);
    add_span(set, 1, TRACE_RECEIVE, 0, 1050, 1060); /* before the first batch: driver's own */
    add_span(set, 1, TRACE_SEND, 0, 1155, 1165);    /* half in a batch, half the driver's own */
    add_span(set, 1, TRACE_RECEIVE, 0, 1180, 1190); /* while idle */
    add_span(set, 2, TRACE_IDLE, TRACE_IDLE_KV, 1275, 1500);
    assert_int_equal(trace_set_align(set, &err), STATUS_OK);
    return set;
}

static void make(const struct trace_set *set, struct trace_report *r)
{
    struct err err = {0};
    if (trace_report_make(set, r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_requests_and_tokens(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    make(set, &r);
    assert_int_equal(r.n_tokens, 3);
    assert_int_equal(r.n_requests, 1);
    assert_int_equal(r.n_incomplete, 0);
    assert_int_equal(r.n_lost, 0);
    NEAR(r.elapsed_s, 700);
    assert_true(fabs(r.tokens_per_s - 3 / 700e-6) < 1e-6);
    assert_int_equal(r.queue.n, 1);
    NEAR(r.queue.p50_s, 10);
    NEAR(r.admission.max_s, 30);
    NEAR(r.ttft.mean_s, 280);
    assert_int_equal(r.tpot.n, 2);
    NEAR(r.tpot.p50_s, 123);
    NEAR(r.tpot.p90_s, 257);
    NEAR(r.tpot.mean_s, 190);
    NEAR(r.clock_error_s, 4);
    trace_report_free(&r);
    trace_set_destroy(set);
}

static void test_loops(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    make(set, &r);
    assert_int_equal(r.n_loops, 2);
    assert_int_equal(r.loops[0].n_exits, 1);
    assert_int_equal(r.loops[1].n_exits, 2);
    assert_int_equal(r.loops[0].hop.n, 3);
    NEAR(r.loops[0].hop.p50_s, 10);
    NEAR(r.loops[0].hop.p99_s, 20);
    NEAR(r.loops[0].wait.mean_s, 5);
    NEAR(r.loops[0].compute.p50_s, 100);
    assert_int_equal(r.loops[0].head.n, 1);
    NEAR(r.loops[0].head.max_s, 7.001);
    assert_int_equal(r.loops[1].hop.n, 2);
    NEAR(r.loops[1].wait.max_s, 60);
    assert_int_equal(r.loops[1].head.n, 2);
    NEAR(r.loops[1].head.p50_s, 7.002);
    assert_int_equal(r.loops[2].hop.n, 0);
    trace_report_free(&r);
    trace_set_destroy(set);
}

static void test_workers(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    make(set, &r);
    assert_int_equal(r.n_workers, 2);
    const struct trace_worker_report *one = &r.workers[0], *two = &r.workers[1];
    NEAR(one->elapsed_s, 650); /* 1050 .. 1700 */
    NEAR(one->busy_s, 400);
    NEAR(one->idle_s[TRACE_IDLE_STARVED], 120);
    NEAR(one->idle_s[TRACE_IDLE_PEER], 98);
    NEAR(one->idle_s[TRACE_IDLE_KV], 0);
    NEAR(one->receive_s, 20);
    NEAR(one->send_s, 10);
    NEAR(one->driver_s, 15);
    /* 1165..1170, 1290..1295, 1395..1400, 1598..1600 */
    NEAR(one->rest_s, 17);
    assert_int_equal(one->n_batches, 4);
    assert_int_equal(one->n_rows, 10);
    assert_int_equal(one->rows_by_loop[0], 5);
    assert_int_equal(one->rows_by_loop[1], 5);
    assert_int_equal(one->n_parked, 1);
    assert_int_equal(one->n_revived, 6);
    NEAR(two->elapsed_s, 475);
    NEAR(two->busy_s, 200);
    NEAR(two->idle_s[TRACE_IDLE_KV], 225);
    NEAR(two->rest_s, 50);
    assert_int_equal(two->n_parked, 5);
    trace_report_free(&r);
    trace_set_destroy(set);
}

static void test_the_slowest_token(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    make(set, &r);
    assert_int_equal(r.n_slow, 1);
    assert_int_equal(r.n_slow_listed, 1);
    const struct trace_slow_token *t = &r.slow[0];
    /* Token 5: 1395, where token 4 left, .. 1660; its loop 2 began 50 after the end of loop 1. */
    assert_int_equal(t->position, 5);
    assert_int_equal(t->n_steps, 3);
    NEAR(t->at_s, 395);
    NEAR(t->total_s, 265);
    assert_int_equal(t->steps[0].loop, 1);
    assert_int_equal(t->steps[0].rank, 1);
    NEAR(t->steps[0].hop_s, 0);
    NEAR(t->steps[0].wait_s, 5);
    NEAR(t->steps[0].compute_s, 100);
    assert_int_equal(t->steps[1].rank, 2);
    NEAR(t->steps[1].hop_s, 30);
    NEAR(t->steps[1].wait_s, 20);
    NEAR(t->steps[1].compute_s, 100);
    assert_int_equal(t->steps[2].loop, 0);
    assert_int_equal(t->steps[2].rank, 0);
    NEAR(t->steps[2].hop_s, 10);
    NEAR(r.slow_total_s, 265);
    NEAR(r.slow_hop_s, 30);
    NEAR(r.slow_wait_s, 25);
    NEAR(r.slow_compute_s, 200);
    NEAR(r.slow_deliver_s, 10);
    NEAR(r.slow_by_loop_s[0], 105);
    NEAR(r.slow_by_loop_s[1], 150);
    trace_report_free(&r);
    trace_set_destroy(set);
}

/* Between two batches lies less than the oldest row's wait: that began before the live row's own
 * batch had ended. */
static void test_a_way_has_no_time_twice(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    for (size_t i = 0; i < set->ranks[0].n_records; i++) {
        struct trace_record *a = &set->ranks[0].records[i];
        if (a->kind == TRACE_TOKEN && a->position > 3)
            a->sequence = 77; /* nothing else is known of it */
    }
    make(set, &r);
    assert_int_equal(r.n_incomplete, 2);
    assert_int_equal(r.n_slow, 1);
    const struct trace_slow_token *t = &r.slow[0];
    assert_int_equal(t->position, 3);
    NEAR(t->at_s, 40);
    NEAR(t->total_s, 240);
    NEAR(t->steps[1].hop_s, 5);
    NEAR(t->steps[1].wait_s, 10);
    trace_report_free(&r);
    trace_set_destroy(set);
}

/* The ring buffers overwrote the beginning: what is left is told, and nothing is made up. */
static void test_a_trace_that_starts_in_the_middle(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    struct trace_rank *first = &set->ranks[1];
    size_t n = 0;
    for (size_t i = 0; i < first->n_records; i++)
        if (first->records[i].at_ns > 1100 * US)
            first->records[n++] = first->records[i];
    first->n_lost = first->n_records - n;
    first->n_records = n;
    /* Of the coordinator all that began before 1300 is gone. */
    n = 0;
    for (size_t i = 0; i < set->ranks[0].n_records; i++)
        if (set->ranks[0].records[i].at_ns > 1300 * US)
            set->ranks[0].records[n++] = set->ranks[0].records[i];
    set->ranks[0].n_records = n;
    make(set, &r);
    assert_int_equal(r.n_tokens, 2);
    assert_int_equal(r.n_lost, 3);
    assert_int_equal(r.n_requests, 0);
    assert_int_equal(r.ttft.n, 0);
    assert_int_equal(r.tpot.n, 1);
    assert_int_equal(r.n_incomplete, 0);
    NEAR(r.elapsed_s, 545); /* from the send at 1155 */
    trace_report_free(&r);
    trace_set_destroy(set);
}

/* What waits has no sequence yet, and never gets one when its client leaves. */
static void test_requests_without_a_sequence_count(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    for (uint64_t i = 0; i < 2; i++)
        trace_file_add(set, 0,
                       (struct trace_record){.kind = TRACE_QUEUE,
                                             .at_ns = (1600 + i) * US,
                                             .lasted_ns = 10 * US,
                                             .n_rows = 3,
                                             .request.request = 8 + i});
    make(set, &r);
    assert_int_equal(r.n_requests, 3);
    assert_int_equal(r.queue.n, 3);
    assert_int_equal(r.ttft.n, 1);
    trace_report_free(&r);
    trace_set_destroy(set);
}

static void test_nothing_gives_zeros(void **state)
{
    (void)state;
    struct trace_set *set;
    struct trace_report r;
    struct err err;
    for (uint32_t n_ranks = 0; n_ranks < 3; n_ranks++) {
        assert_int_equal(trace_set_create(n_ranks, &set, &err), STATUS_OK);
        make(set, &r);
        assert_int_equal(r.n_tokens, 0);
        assert_int_equal(r.n_slow, 0);
        assert_true(r.elapsed_s == 0 && r.tokens_per_s == 0);
        trace_report_free(&r);
        trace_set_destroy(set);
    }
}

/* A loop that ran twice, after a worker was lost: the later one brought the token. */
static void test_a_loop_that_ran_twice(void **state)
{
    (void)state;
    struct trace_set *set = make_set();
    struct trace_report r;
    struct err err;
    add_rows(set, 2, 1, 1, 4, 1, 1405, 2, 3, TRACE_LIVE);
    assert_int_equal(trace_set_align(set, &err), STATUS_OK);
    make(set, &r);
    assert_int_equal(r.slow[0].position, 5);
    assert_int_equal(r.slow[0].steps[0].rank, 2);
    NEAR(r.slow[0].total_s, 260); /* 1400 .. 1660 */
    trace_report_free(&r);
    trace_set_destroy(set);
}

static void test_quantiles_are_nearest_rank(void **state)
{
    (void)state;
    static const struct {
        uint64_t n;
        double p50, p90, p99;
    } cases[] = {{1, 1, 1, 1}, {2, 1, 2, 2}, {10, 5, 9, 10}, {100, 50, 90, 99}, {101, 51, 91, 100}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct trace_samples s = {0};
        struct trace_quantiles q;
        struct err err;
        for (uint64_t k = cases[i].n; k > 0; k--)
            trace_samples_add(&s, k * US);
        assert_int_equal(trace_samples_take(&s, &q, &err), STATUS_OK);
        assert_int_equal(q.n, cases[i].n);
        NEAR(q.p50_s, cases[i].p50);
        NEAR(q.p90_s, cases[i].p90);
        NEAR(q.p99_s, cases[i].p99);
        NEAR(q.max_s, (double)cases[i].n);
        NEAR(q.mean_s, (double)(cases[i].n + 1) / 2);
        assert_int_equal(s.n, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_and_tokens),
        cmocka_unit_test(test_loops),
        cmocka_unit_test(test_workers),
        cmocka_unit_test(test_the_slowest_token),
        cmocka_unit_test(test_a_way_has_no_time_twice),
        cmocka_unit_test(test_a_trace_that_starts_in_the_middle),
        cmocka_unit_test(test_requests_without_a_sequence_count),
        cmocka_unit_test(test_nothing_gives_zeros),
        cmocka_unit_test(test_a_loop_that_ran_twice),
        cmocka_unit_test(test_quantiles_are_nearest_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
