/* The ring buffer of trace records: what is kept, what is lost, what is refused. */
#include "tests/control_trip.h"

#include "proto/trace.h"

static struct trace *make(uint64_t n_records)
{
    struct trace *t = NULL;
    assert_int_equal(trace_create(n_records * sizeof(struct trace_record), &t, NULL), STATUS_OK);
    return t;
}

static void test_keeps_the_newest(void **state)
{
    (void)state;
    struct trace *t = make(5); /* rounded up to 8 */
    struct trace_record out[16];
    uint64_t n_lost = 99;
    assert_int_equal(trace_copy(t, 0, out, 16, &n_lost), 0);
    assert_int_equal(n_lost, 0);
    for (uint32_t i = 0; i < 11; i++)
        trace_add(t, TRACE_BATCH, 100 + i)->n_rows = i;
    assert_int_equal(trace_copy(t, 0, out, 16, &n_lost), 8);
    assert_int_equal(n_lost, 3);
    for (uint32_t i = 0; i < 8; i++) {
        assert_int_equal(out[i].n_rows, 3 + i);
        assert_int_equal(out[i].at_ns, 103 + i);
        assert_int_equal(out[i].kind, TRACE_BATCH);
    }
    trace_destroy(t);
}

static void test_a_window_counts_from_the_end_of_a_record(void **state)
{
    (void)state;
    struct trace *t = make(8);
    struct trace_record out[8];
    trace_add(t, TRACE_IDLE, 10)->lasted_ns = 90; /* ends at 100 */
    trace_add(t, TRACE_IDLE, 20)->lasted_ns = 10;
    trace_add(t, TRACE_IDLE, 99)->lasted_ns = 5;
    assert_int_equal(trace_copy(t, 100, out, 8, NULL), 2);
    assert_int_equal(out[0].at_ns, 10);
    assert_int_equal(out[1].at_ns, 99);
    assert_int_equal(trace_copy(t, 100, out, 1, NULL), 1); /* the newest ones */
    assert_int_equal(out[0].at_ns, 99);
    /* What is overwritten counts where the window reaches back to it. */
    for (uint64_t i = 0; i < 10; i++)
        trace_add(t, TRACE_LOAD, 200 + i);
    assert_int_equal(trace_n_lost(t, 0), 5);
    assert_int_equal(trace_n_lost(t, 202), 5);
    assert_int_equal(trace_n_lost(t, 203), 0);
    uint64_t n_lost = 99;
    assert_int_equal(trace_copy(t, 205, out, 8, &n_lost), 5);
    assert_int_equal(n_lost, 0);
    trace_destroy(t);
}

static void test_a_slot_is_zeroed(void **state)
{
    (void)state;
    struct trace *t = make(1);
    struct trace_record *r = trace_add(t, TRACE_TOKEN, 1);
    memset(r, 0xff, sizeof *r);
    r = trace_add(t, TRACE_LOAD, 2);
    const struct trace_record expected = {.kind = TRACE_LOAD, .at_ns = 2};
    assert_memory_equal(r, &expected, sizeof expected);
    trace_destroy(t);
}

static void test_too_large_is_told(void **state)
{
    (void)state;
    struct trace *t = NULL;
    struct err err = {0};
    if (sizeof(size_t) == 8)
        assert_int_equal(trace_create(UINT64_C(1) << 45, &t, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "--trace-buffer"));
}

static void test_travels(void **state)
{
    (void)state;
    struct trace_record records[3] = {
        {.kind = TRACE_ROWS, .loop = 2, .sequence = 7, .at_ns = 5, .rows = {.hop_ns = -3}},
        {.kind = TRACE_IDLE, .flags = TRACE_IDLE_PEER, .at_ns = 9, .lasted_ns = 1},
        {.kind = TRACE_DRAINING, .at_ns = 11},
    };
    struct control_message m = {.kind = CONTROL_TRACE}, out;
    m.trace.tag = 4;
    m.trace.n_lost = 12;
    m.trace.is_last = true;
    m.trace.n = 3;
    m.trace.records = records;
    round_trip(&m, &out);
    assert_int_equal(out.trace.tag, 4);
    assert_int_equal(out.trace.n_lost, 12);
    assert_true(out.trace.is_last);
    assert_int_equal(out.trace.n, 3);
    assert_memory_equal(out.trace.records, records, sizeof records);
    control_clear(&out);

    m = (struct control_message){.kind = CONTROL_TRACE_REQUEST};
    m.trace_request.tag = 8;
    m.trace_request.window_ns = 10000000000;
    round_trip(&m, &out);
    assert_int_equal(out.trace_request.tag, 8);
    assert_int_equal(out.trace_request.window_ns, 10000000000);
}

static void test_refuses(void **state)
{
    (void)state;
    const struct {
        struct trace_record record;
        const char *what;
    } cases[] = {
        {{.kind = 0}, "kind 0"},
        {{.kind = TRACE_KINDS}, "kind 14"},
        {{.kind = TRACE_BATCH, .loop = 9}, "loop 9"},
        {{.kind = TRACE_ROWS}, "no loop"},
        {{.kind = TRACE_IDLE, .flags = 4}, "idle reason of 4"},
        {{.kind = TRACE_BLOCKED, .flags = 2}, "reason of 2"},
        {{.kind = TRACE_BATCH, .at_ns = UINT64_MAX, .lasted_ns = 1}, "end of time"},
        {{.kind = TRACE_BATCH, .lasted_ns = UINT64_MAX}, "a length of 18446744073709551615"},
        {{.kind = TRACE_SEND, .message.n_bytes = UINT64_MAX}, "bytes of 18446744073709551615"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct trace_record record = cases[i].record;
        struct control_message m = {.kind = CONTROL_TRACE};
        m.trace.n = 1;
        m.trace.records = &record;
        refused(&m, cases[i].what);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keeps_the_newest),
        cmocka_unit_test(test_a_window_counts_from_the_end_of_a_record),
        cmocka_unit_test(test_a_slot_is_zeroed),
        cmocka_unit_test(test_too_large_is_told),
        cmocka_unit_test(test_travels),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
