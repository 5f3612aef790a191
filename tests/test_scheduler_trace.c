/* scheduler: what it has decided is in the trace, each span once, from its begin to its end. */
#include "tests/scheduler_tape.h"

/* One ring of 2 workers with 12 blocks each, 2 sequences at once. */
static void open_traced(struct tape *t, uint32_t n_workers, uint32_t max_running)
{
    const uint32_t blocks[4] = {12, 12, 12, 12};
    struct scheduler_config config = {.n_workers = n_workers,
                                      .ring_size = 2,
                                      .n_loops = 4,
                                      .max_positions = 1024,
                                      .block_size = 16,
                                      .n_blocks = blocks,
                                      .max_queue = 8,
                                      .max_running = max_running};
    struct trace *trace = NULL;
    assert_int_equal(trace_create(1 << 14, &trace, NULL), STATUS_OK);
    config.trace = trace;
    tape_open(t, &config);
    t->ring_size = 2;
    t->trace = trace;
}

static void put_record(struct tape *t, const struct trace_record *r)
{
    unsigned at = (unsigned)r->at_ns, end = (unsigned)(r->at_ns + r->lasted_ns);
    unsigned request = (unsigned)r->request.request, sequence = (unsigned)r->sequence;
    struct err err = {0};
    if (trace_record_check(r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    switch (r->kind) {
    case TRACE_QUEUE:
        tape_put(t, "queue %u-%u r%u s%u rows %u", at, end, request, sequence, r->n_rows);
        break;
    case TRACE_ADMISSION:
        tape_put(t, "admission %u-%u r%u s%u to %u", at, end, request, sequence, r->peer);
        break;
    case TRACE_SEQUENCE:
        tape_put(t, "sequence %u-%u r%u s%u tokens %u %s", at, end, request, sequence, r->n_rows,
                 finish_reason_name((enum finish_reason)r->flags));
        break;
    case TRACE_TOKEN:
        tape_put(t, "token %u s%u @%u loop %u of %u id%d", at, sequence, r->position, r->loop,
                 r->peer, r->token.id);
        break;
    case TRACE_LOAD:
        tape_put(t, "load %u %u/%u/%u/%u blocks %u of %u", at, r->load.n_queued, r->load.n_opening,
                 r->load.n_running, r->load.n_closing, r->load.blocks_reserved_max,
                 r->load.n_blocks);
        break;
    case TRACE_BLOCKED:
        tape_put(t, "blocked %u-%u %s", at, end, r->flags == TRACE_BLOCKED_KV ? "kv" : "sequences");
        break;
    default:
        fail_msg("a record of kind %u", r->kind);
    }
}

/* What was recorded since the last look; loads only when they are asked for. */
static void expect_records(struct tape *t, bool with_loads, const char *expected)
{
    t->line[0] = '\0';
    for (uint64_t i = 0; i < t->trace->n_added; i++)
        if (with_loads || t->trace->records[i].kind != TRACE_LOAD)
            put_record(t, &t->trace->records[i]);
    t->trace->n_added = 0;
    if (strcmp(t->line, expected) != 0)
        fail_msg("\n  recorded %s\n  expected %s", t->line, expected);
}

static void expect_pending(struct tape *t, uint64_t now_ns, const char *expected)
{
    struct trace_record records[32];
    size_t n = scheduler_n_pending_records(t->scheduler);
    assert_true(n <= 32);
    scheduler_pending_records(t->scheduler, now_ns, records);
    t->line[0] = '\0';
    for (size_t i = 0; i < n; i++)
        put_record(t, &records[i]);
    if (strcmp(t->line, expected) != 0)
        fail_msg("\n  pending  %s\n  expected %s", t->line, expected);
}

static void close_traced(struct tape *t)
{
    expect_pending(t, t->now_ns, "");
    tape_close(t);
    trace_destroy(t->trace);
}

static void test_scheduler_records_a_request_from_queue_to_end(void **state)
{
    (void)state;
    struct tape t;
    open_traced(&t, 2, 2);
    tape_event(&t, "submit r7 20+2"); /* time 1 */
    expect_records(&t, true, "queue 1-1 r7 s1 rows 20, load 1 0/1/0/0 blocks 4 of 12");
    expect_pending(&t, 5, "admission 1-5 r7 s1 to 1");
    tape_event(&t, "opened w* s1"); /* 2, 3 */
    expect_records(&t, true, "admission 1-3 r7 s1 to 1, load 3 0/0/1/0 blocks 4 of 12");
    tape_event(&t, "token s1 @20 id5");
    expect_records(&t, true, "token 4 s1 @20 loop 1 of 1 id5");
    expect_pending(&t, 9, "sequence 3-9 r7 s1 tokens 1 none");
    tape_event(&t, "token s1 @21 id6 last");
    expect_records(&t, true,
                   "token 5 s1 @21 loop 1 of 1 id6, sequence 3-5 r7 s1 tokens 2 length, "
                   "load 5 0/0/0/1 blocks 4 of 12");
    tape_event(&t, "token s1 @22 id7"); /* late: nothing is delivered, nothing recorded */
    tape_event(&t, "closed w* s1");     /* 7, 8 */
    expect_records(&t, true, "load 8 0/0/0/0 blocks 0 of 12");
    close_traced(&t);
}

/* The second of a ring starts on its other worker; on a second ring the ranks are 3 and 4. */
static void test_scheduler_records_the_rank_that_runs_a_loop(void **state)
{
    (void)state;
    struct tape t;
    open_traced(&t, 4, 2);
    for (unsigned i = 1; i <= 4; i++) {
        char event[32];
        snprintf(event, sizeof event, "submit r%u 20+2", i);
        tape_event(&t, event);
    }
    expect_records(&t, false,
                   "queue 1-1 r1 s1 rows 20, queue 2-2 r2 s2 rows 20, queue 3-3 r3 s3 rows 20, "
                   "queue 4-4 r4 s4 rows 20");
    expect_pending(&t, 5,
                   "admission 1-5 r1 s1 to 1, admission 2-5 r2 s2 to 3, admission 3-5 r3 s3 to 2, "
                   "admission 4-5 r4 s4 to 4");
    for (unsigned i = 1; i <= 4; i++) {
        char event[32];
        snprintf(event, sizeof event, "cancel r%u", i);
        tape_event(&t, event);
        for (unsigned w = 0; w < 2; w++) {
            snprintf(event, sizeof event, "closed w%u s%u", w + (i % 2 == 0 ? 2 : 0), i);
            tape_event(&t, event);
        }
    }
    /* They never ran. */
    expect_records(&t, false,
                   "admission 1-5 r1 s1 to 1, admission 2-8 r2 s2 to 3, admission 3-11 r3 s3 to 2, "
                   "admission 4-14 r4 s4 to 4");
    close_traced(&t);
}

static void test_scheduler_records_why_the_head_waits(void **state)
{
    (void)state;
    struct tape t;
    enum trace_blocked why;
    open_traced(&t, 2, 2);
    tape_event(&t, "submit r1 40+8"); /* 3 blocks a loop, 2 loops a worker: 6 of 12 */
    assert_false(scheduler_is_blocked(t.scheduler, &why));
    tape_event(&t, "submit r2 60+4"); /* 8 more do not fit */
    assert_true(scheduler_is_blocked(t.scheduler, &why));
    assert_int_equal(why, TRACE_BLOCKED_KV);
    tape_event(&t, "submit r3 1+1"); /* would fit, but nobody passes the head */
    expect_records(&t, false, "queue 1-1 r1 s1 rows 40");
    expect_pending(&t, 9,
                   "blocked 2-9 kv, admission 1-9 r1 s1 to 1, queue 2-9 r2 s0 rows 60, "
                   "queue 3-9 r3 s0 rows 1");
    tape_event(&t, "cancel r2"); /* 4 */
    expect_records(&t, false, "queue 2-4 r2 s0 rows 60, queue 3-4 r3 s2 rows 1, blocked 2-4 kv");
    tape_event(&t, "submit r4 1+1"); /* 5: two are open */
    assert_true(scheduler_is_blocked(t.scheduler, &why));
    assert_int_equal(why, TRACE_BLOCKED_SEQUENCES);
    tape_event(&t, "cancel r3");
    tape_event(&t, "closed w* s2"); /* 7, 8 */
    expect_records(&t, false,
                   "admission 4-6 r3 s2 to 2, queue 5-8 r4 s3 rows 1, blocked 5-8 sequences");
    tape_event(&t, "cancel r1");
    tape_event(&t, "cancel r4");
    tape_event(&t, "closed w* s1");
    tape_event(&t, "closed w* s3");
    close_traced(&t);
}

/* The sequences' limit gives way to the blocks' one: two spans, one after the other. */
static void test_scheduler_records_a_change_of_the_reason(void **state)
{
    (void)state;
    struct tape t;
    open_traced(&t, 2, 2);
    tape_event(&t, "submit r1 40+8");
    tape_event(&t, "submit r2 1+1");
    tape_event(&t, "submit r3 60+4"); /* 3 */
    tape_event(&t, "cancel r2");
    tape_event(&t, "closed w* s2"); /* 5, 6 */
    tape_event(&t, "cancel r1");
    tape_event(&t, "closed w* s1"); /* 8, 9 */
    expect_records(&t, false,
                   "queue 1-1 r1 s1 rows 40, queue 2-2 r2 s2 rows 1, admission 2-4 r2 s2 to 2, "
                   "blocked 3-6 sequences, admission 1-7 r1 s1 to 1, queue 3-9 r3 s3 rows 60, "
                   "blocked 6-9 kv");
    tape_event(&t, "cancel r3");
    tape_event(&t, "closed w* s3");
    close_traced(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_records_a_request_from_queue_to_end),
        cmocka_unit_test(test_scheduler_records_the_rank_that_runs_a_loop),
        cmocka_unit_test(test_scheduler_records_why_the_head_waits),
        cmocka_unit_test(test_scheduler_records_a_change_of_the_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
