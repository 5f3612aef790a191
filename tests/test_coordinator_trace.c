/* coordinator: the records of all ranks come together while requests run, with clocks and their
 * errors; who does not send them is named. */
#include "tests/fake_worker.h"

#include "coordinator/coordinator_state.h"

struct seen {
    uint32_t n_tokens, n_ends;
};

static void on_token(void *user, const struct completion_token *token)
{
    (void)token;
    ((struct seen *)user)->n_tokens++;
}

static void on_end(void *user, const struct completion_end *end)
{
    (void)end;
    ((struct seen *)user)->n_ends++;
}

static void submit(struct cluster *c, struct seen *s, uint32_t max_tokens)
{
    static const int32_t prompt[3] = {4, 0, 2};
    struct err err = {0};
    struct completion_request r = {.prompt_ids = prompt, .n_prompt = 3, .user = s};
    r.on_token = on_token;
    r.on_end = on_end;
    sequence_params_init(&r.params);
    r.params.max_tokens = max_tokens;
    if (coordinator_submit(c->coordinator, &r, NULL, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static struct cluster *open_traced(uint32_t n_workers, uint32_t n_chunks)
{
    struct cluster *c = cluster_open(n_workers);
    for (uint32_t w = 0; w < n_workers; w++)
        c->fakes[w].n_chunks = n_chunks;
    if (trace_create(1 << 14, &c->config.trace, NULL) != STATUS_OK)
        fail_msg("no memory");
    return c;
}

static void start(struct cluster *c)
{
    struct err err = {0};
    if (cluster_start(c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void close_traced(struct cluster *c)
{
    struct trace *trace = c->config.trace;
    cluster_close(c);
    trace_destroy(trace);
}

static struct trace_set *collect(struct cluster *c, uint64_t window_ns)
{
    struct trace_set *set = NULL;
    struct err err = {0};
    if (coordinator_collect_trace(c->coordinator, window_ns, &set, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return set;
}

static void step(struct cluster *c)
{
    struct err err = {0};
    if (coordinator_step(c->coordinator, 1000000000, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void run_until_idle(struct cluster *c)
{
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (!coordinator_is_idle(c->coordinator)) {
        assert_true(host_now_ns() < deadline_ns);
        step(c);
    }
}

static uint32_t count(const struct trace_rank *rank, enum trace_kind kind)
{
    uint32_t n = 0;
    for (size_t i = 0; i < rank->n_records; i++)
        n += rank->records[i].kind == kind;
    return n;
}

static void test_coordinator_brings_all_records_together(void **state)
{
    (void)state;
    struct cluster *c = open_traced(3, 4);
    struct seen s[2] = {0};
    start(c);
    submit(c, &s[0], 5);
    submit(c, &s[1], 6);
    run_until_idle(c);
    struct trace_set *set = collect(c, 0);
    assert_int_equal(set->n_ranks, 4);
    assert_int_equal(set->n_loops, 3);
    assert_int_equal(set->ring_size, 3);
    assert_string_equal(set->version, CAROUSEL_VERSION);
    assert_string_equal(set->model, strrchr(c->dir, '/') + 1);
    const struct trace_rank *own = &set->ranks[0];
    assert_int_equal(count(own, TRACE_QUEUE), 2);
    assert_int_equal(count(own, TRACE_ADMISSION), 2);
    assert_int_equal(count(own, TRACE_SEQUENCE), 2);
    assert_int_equal(count(own, TRACE_TOKEN), 11);
    assert_true(count(own, TRACE_LOAD) > 0);
    assert_int_equal(count(own, TRACE_DRAINING), 0);
    assert_int_equal(own->n_lost, 0);
    for (uint32_t r = 1; r <= 3; r++) {
        const struct trace_rank *rank = &set->ranks[r];
        assert_string_equal(rank->host, "nodea");
        assert_int_equal(rank->n_lost, r * 100); /* said with every chunk, counted once */
        assert_int_equal(rank->n_records, 12);
        for (uint32_t i = 0; i < 12; i++)
            assert_int_equal(rank->records[i].pool.ready_rows, r * 10 + i);
        assert_true(rank->is_clock_shared);
        assert_int_equal(rank->clock_offset_ns, 0);
        assert_int_equal(rank->clock_error_ns, 0);
    }
    trace_set_destroy(set);
    /* Only what is younger than the window; the workers choose by their own clocks. */
    coordinator_note_draining(c->coordinator);
    set = collect(c, 1);
    assert_int_equal(set->ranks[0].n_records, 1);
    assert_int_equal(count(&set->ranks[0], TRACE_DRAINING), 1);
    trace_set_destroy(set);
    cluster_stop(c);
    assert_int_equal(c->fakes[0].n_traces, 2);
    assert_int_equal(c->fakes[0].trace_request.window_ns, 1);
    close_traced(c);
}

struct answer {
    struct coordinator *coordinator;
    struct trace_set *set;
    struct answer *next;
};

static void on_trace(void *user, struct trace_set *set)
{
    struct answer *a = user;
    assert_null(a->set);
    a->set = set;
    if (a->next != NULL)
        assert_int_equal(coordinator_request_trace(a->coordinator, 0, on_trace, a->next, NULL),
                         STATUS_OK);
}

/* One question at a time; the next may be asked from within the answer. Requests go on. */
static void test_coordinator_collects_while_requests_run(void **state)
{
    (void)state;
    struct cluster *c = open_traced(2, 2);
    c->fakes[0].n_at_once = c->fakes[1].n_at_once = 3; /* of 8: the sequence stays open */
    start(c);
    struct seen s = {0};
    struct err err = {0};
    struct answer second = {.coordinator = c->coordinator};
    struct answer first = {.coordinator = c->coordinator, .next = &second};
    submit(c, &s, 8);
    while (s.n_tokens < 3)
        step(c);
    assert_int_equal(coordinator_request_trace(c->coordinator, 0, on_trace, &first, &err),
                     STATUS_OK);
    assert_int_equal(coordinator_request_trace(c->coordinator, 0, on_trace, &first, &err),
                     STATUS_FULL);
    assert_contains(err.message, "2 of 2 workers still owe the records");
    while (second.set == NULL)
        step(c);
    for (int i = 0; i < 2; i++) {
        struct trace_set *set = i == 0 ? first.set : second.set;
        assert_int_equal(set->ranks[1].n_records + set->ranks[2].n_records, 12);
        assert_int_equal(count(&set->ranks[0], TRACE_TOKEN), 3);
        assert_int_equal(count(&set->ranks[0], TRACE_SEQUENCE), 1); /* it runs, and is there */
        trace_set_destroy(set);
    }
    assert_int_equal(s.n_ends, 0);
    close_traced(c);
}

/* The measured offset is the truth within the stored error, whoever is ahead of whom. */
static void test_coordinator_bounds_the_error_of_the_clocks(void **state)
{
    (void)state;
    static const int64_t ahead_ns[3] = {5000000000000, -300000000000, 0};
    struct cluster *c = open_traced(3, 1);
    for (int w = 0; w < 3; w++) {
        strcpy(c->fakes[w].hello.boot_id, "another");
        c->fakes[w].clock_ahead_ns = ahead_ns[w];
    }
    start(c);
    const struct peer_clock *k = &c->coordinator->peers[0].clock;
    struct trace_set *set = collect(c, 0);
    /* Those of the burst went ahead of the question. */
    assert_true(k->n_exchanges >= CLOCK_EXCHANGES_AT_START + CLOCK_BURST);
    for (int w = 0; w < 3; w++) {
        const struct trace_rank *rank = &set->ranks[w + 1];
        int64_t off_by = rank->clock_offset_ns - ahead_ns[w];
        assert_false(rank->is_clock_shared);
        assert_true(rank->clock_error_ns > 0);
        assert_true(rank->clock_error_ns < 1000000000); /* an exchange within a process */
        if ((off_by < 0 ? -off_by : off_by) > (int64_t)rank->clock_error_ns)
            fail_msg("rank %d: off by %lld ns, stored is %llu", w + 1, (long long)off_by,
                     (unsigned long long)rank->clock_error_ns);
    }
    trace_set_destroy(set);
    close_traced(c);
}

static void test_coordinator_counts_drift_since_an_exchange(void **state)
{
    (void)state;
    struct cluster *c = open_traced(1, 1);
    strcpy(c->fakes[0].hello.boot_id, "another");
    start(c);
    struct peer_clock *k = &c->coordinator->peers[0].clock;
    int64_t offset_ns;
    uint64_t error_ns, now_ns = host_now_ns();
    /* 1000 s ago, 2 us; 1 s ago, 20 us: 50 ms and 50 us of drift later the second is better. */
    memset(k, 0, sizeof *k);
    coordinator_clock_note(k, now_ns - 1000000000000, now_ns - 999999998000,
                           now_ns - 999999999000 + 500);
    coordinator_clock_note(k, now_ns - 1000000000, now_ns - 999980000, now_ns - 999990000 + 77);
    coordinator_worker_clock(c->coordinator, 0, &offset_ns, &error_ns);
    assert_int_equal(offset_ns, 77);
    assert_true(error_ns >= 10000 + 50000);
    assert_true(error_ns < 10000 + 50000 + 1000000); /* at most 20 s of this test */
    close_traced(c);
}

static void test_coordinator_names_who_does_not_send_its_trace(void **state)
{
    (void)state;
    struct cluster *c = open_traced(2, 1);
    c->fakes[1].ignores_trace = true;
    c->config.answer_timeout_ns = 100 * 1000 * 1000;
    start(c);
    struct trace_set *set = NULL;
    struct err err = {0};
    assert_int_equal(coordinator_collect_trace(c->coordinator, 0, &set, &err), STATUS_TIMEOUT);
    assert_contains(err.message, "rank 2 on nodea did not send its trace in 0.1 s");
    assert_null(set);
    close_traced(c);
}

/* Many records take longer than one answer may; what counts is that they come. */
static void test_coordinator_waits_while_records_come(void **state)
{
    (void)state;
    struct cluster *c = open_traced(1, 6);
    c->fakes[0].chunk_ns = 60 * 1000 * 1000;
    c->config.answer_timeout_ns = 200 * 1000 * 1000;
    start(c);
    struct trace_set *set = collect(c, 0);
    assert_int_equal(set->ranks[1].n_records, 18);
    trace_set_destroy(set);
    close_traced(c);
}

static void test_coordinator_survives_who_leaves_over_its_trace(void **state)
{
    (void)state;
    struct cluster *c = open_traced(2, 1);
    c->fakes[0].n_chunks = 0;
    start(c);
    struct trace_set *set = NULL;
    struct err err = {0};
    assert_int_equal(coordinator_collect_trace(c->coordinator, 0, &set, &err), STATUS_NO_MEMORY);
    assert_contains(err.message, "rank 1 on nodea has left the cluster: the records do not fit");
    assert_null(set);
    assert_int_equal(coordinator_collect_trace(c->coordinator, 0, &set, &err), STATUS_NO_MEMORY);
    close_traced(c);
}

/* Its last record and its last words come together: the trace is whole, the cluster is lost. */
static void test_coordinator_keeps_the_trace_of_who_leaves_after_it(void **state)
{
    (void)state;
    struct cluster *c = open_traced(1, 2);
    c->fakes[0].leaves_after_trace = true;
    start(c);
    struct trace_set *set = collect(c, 0);
    assert_int_equal(set->ranks[1].n_records, 6);
    trace_set_destroy(set);
    struct err err = {0};
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (coordinator_step(c->coordinator, 1000000, &err) == STATUS_OK)
        assert_true(host_now_ns() < deadline_ns);
    assert_contains(err.message, "rank 1 on nodea has left the cluster: out of work");
    close_traced(c);
}

/* Who is lost cannot be asked; what was recorded here is there, requests that ended with the
 * cluster among it. */
static void test_coordinator_has_its_own_records_of_a_lost_cluster(void **state)
{
    (void)state;
    struct cluster *c = open_traced(2, 0);
    c->fakes[0].n_at_once = c->fakes[1].n_at_once = 3;
    start(c);
    struct seen s = {0};
    struct err err = {0};
    submit(c, &s, 8);
    while (s.n_tokens < 3)
        step(c);
    struct trace_set *set = NULL;
    assert_int_equal(coordinator_collect_trace(c->coordinator, 0, &set, &err), STATUS_NO_MEMORY);
    assert_int_equal(coordinator_own_trace(c->coordinator, &set, &err), STATUS_OK);
    assert_int_equal(s.n_ends, 1);
    assert_int_equal(set->n_ranks, 3);
    assert_false(set->ranks[0].is_missing);
    assert_int_equal(count(&set->ranks[0], TRACE_TOKEN), 3);
    assert_int_equal(count(&set->ranks[0], TRACE_SEQUENCE), 1);
    for (uint32_t r = 1; r <= 2; r++) {
        assert_true(set->ranks[r].is_missing);
        assert_int_equal(set->ranks[r].n_records, 0);
        assert_string_equal(set->ranks[r].host, "nodea");
    }
    trace_set_destroy(set);
    close_traced(c);
}

static void test_coordinator_without_records_has_no_trace(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1);
    start(c);
    struct trace_set *set = NULL;
    struct err err = {0};
    assert_int_equal(coordinator_collect_trace(c->coordinator, 0, &set, &err), STATUS_INVALID);
    assert_contains(err.message, "--trace-buffer");
    assert_int_equal(coordinator_own_trace(c->coordinator, &set, &err), STATUS_INVALID);
    cluster_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinator_brings_all_records_together),
        cmocka_unit_test(test_coordinator_collects_while_requests_run),
        cmocka_unit_test(test_coordinator_bounds_the_error_of_the_clocks),
        cmocka_unit_test(test_coordinator_counts_drift_since_an_exchange),
        cmocka_unit_test(test_coordinator_names_who_does_not_send_its_trace),
        cmocka_unit_test(test_coordinator_waits_while_records_come),
        cmocka_unit_test(test_coordinator_survives_who_leaves_over_its_trace),
        cmocka_unit_test(test_coordinator_keeps_the_trace_of_who_leaves_after_it),
        cmocka_unit_test(test_coordinator_has_its_own_records_of_a_lost_cluster),
        cmocka_unit_test(test_coordinator_without_records_has_no_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
