/* coordinator: what a token tells about its loops is by one clock, whatever clocks the workers
 * have; counters come without waiting. */
#include "tests/fake_worker.h"

#include "coordinator/coordinator_state.h"

/* ---- one worker's clock --------------------------------------------------------------------- */

static void test_clock_offset_is_that_of_the_quickest_exchange(void **state)
{
    (void)state;
    struct peer_clock k = {0};
    assert_int_equal(coordinator_clock_offset_ns(&k), 0);
    coordinator_clock_note(&k, 1000, 1400, 501200); /* in the middle: exactly 500000 ahead */
    assert_int_equal(coordinator_clock_offset_ns(&k), 500000);
    coordinator_clock_note(&k, 2000, 3000, 502900); /* slow: its answer came late */
    assert_int_equal(coordinator_clock_offset_ns(&k), 500000);
    coordinator_clock_note(&k, 4000, 4100, 504010); /* quicker than the first */
    assert_int_equal(coordinator_clock_offset_ns(&k), 499960);
}

/* Of two that were as quick, give or take what clocks drift meanwhile, the later one counts. */
static void test_clock_forgets_old_exchanges(void **state)
{
    (void)state;
    const uint64_t s = 1000000000;
    struct peer_clock k = {0};
    coordinator_clock_note(&k, s, s + 20000, s + 10000 + 1000);
    coordinator_clock_note(&k, s + s / 10, s + s / 10 + 40000, s + s / 10 + 20000 + 2000);
    assert_int_equal(coordinator_clock_offset_ns(&k), 1000); /* 5 us of drift: 15 us against 20 */
    coordinator_clock_note(&k, 2 * s, 2 * s + 40000, 2 * s + 20000 + 3000);
    assert_int_equal(coordinator_clock_offset_ns(&k), 3000); /* 50 us of drift */
}

static void test_clock_may_be_behind(void **state)
{
    (void)state;
    struct peer_clock k = {0};
    const uint64_t ours = UINT64_C(5000000000000);
    coordinator_clock_note(&k, ours, ours + 20, 7);
    assert_int_equal(coordinator_clock_offset_ns(&k), 7 - (int64_t)ours - 10);
    k.is_shared = true;
    assert_int_equal(coordinator_clock_offset_ns(&k), 0);
}

/* ---- tokens --------------------------------------------------------------------------------- */

struct seen {
    struct coordinator *coordinator;
    char order[64]; /* s: started, t: a token, e: the end */
    uint32_t n_tokens;
    struct control_token tokens[8];
    uint32_t workers[8][SEQUENCE_MAX_LOOPS];
    uint64_t id;
    bool cancels_at_start;
    uint32_t n_running; /* when it started */
};

static void on_start(void *user)
{
    struct seen *s = user;
    struct scheduler_load load;
    strcat(s->order, "s");
    coordinator_get_load(s->coordinator, &load);
    s->n_running = load.n_running;
    if (s->cancels_at_start)
        coordinator_cancel(s->coordinator, s->id);
}

static void on_token(void *user, const struct completion_token *token)
{
    struct seen *s = user;
    strcat(s->order, "t");
    s->tokens[s->n_tokens] = *token->token;
    memcpy(s->workers[s->n_tokens++], token->workers,
           token->token->exit_loop * sizeof *token->workers);
}

static void on_end(void *user, const struct completion_end *end)
{
    struct seen *s = user;
    (void)end;
    strcat(s->order, "e");
}

static struct completion_request make_request(struct seen *s, uint32_t max_tokens)
{
    static const int32_t prompt[3] = {4, 0, 2};
    struct completion_request r = {.prompt_ids = prompt,
                                   .n_prompt = 3,
                                   .user = s,
                                   .on_start = on_start,
                                   .on_token = on_token,
                                   .on_end = on_end};
    sequence_params_init(&r.params);
    r.params.max_tokens = max_tokens;
    return r;
}

static void start(struct cluster *c)
{
    struct err err = {0};
    if (cluster_start(c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void submit(struct cluster *c, struct seen *s, uint32_t max_tokens)
{
    struct err err = {0};
    const struct completion_request r = make_request(s, max_tokens);
    s->coordinator = c->coordinator;
    if (coordinator_submit(c->coordinator, &r, &s->id, &err) != STATUS_OK)
        fail_msg("%s", err.message);
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

/* One of three workers starts a sequence; the fakes exit at loops 1, 2, 3 by turns. */
static void test_coordinator_tells_who_ran_each_loop(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    struct seen s[2] = {0};
    start(c);
    for (uint32_t i = 0; i < 2; i++)
        submit(c, &s[i], 4);
    run_until_idle(c);
    for (uint32_t i = 0; i < 2; i++) {
        assert_int_equal(s[i].n_tokens, 4);
        for (uint32_t k = 0; k < 4; k++)
            for (uint32_t t = 0; t < s[i].tokens[k].exit_loop; t++)
                assert_int_equal(s[i].workers[k][t], (i + t) % 3); /* offsets are given by turns */
    }
    cluster_close(c);
}

static void test_coordinator_counts_workers_from_their_ring(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(4);
    struct seen s[3] = {0};
    c->config.ring_size = 2;
    start(c);
    for (uint32_t i = 0; i < 3; i++)
        submit(c, &s[i], 3);
    run_until_idle(c);
    uint32_t n_second = 0;
    for (uint32_t i = 0; i < 3; i++) {
        const uint32_t *w = s[i].workers[2]; /* the third token runs three loops */
        assert_int_equal(w[0] / 2, w[1] / 2);
        assert_int_equal(w[1], w[0] ^ 1);
        assert_int_equal(w[2], w[0]);
        n_second += w[0] >= 2;
    }
    assert_int_equal(n_second, 1); /* rings are filled by turns */
    cluster_close(c);
}

/* Worker w's clock is ahead[w] seconds ahead of ours. The hops that the workers saw are those of
 * their clocks; what is delivered are the real ones: 10 s each, give or take what an exchange over
 * a busy machine errs. */
static void test_coordinator_takes_the_clocks_out_of_the_hops(void **state)
{
    (void)state;
    static const double ahead[3] = {5e6, -300.0, 1e4};
    struct cluster *c = cluster_open(3);
    struct fake *first = &c->fakes[0];
    for (int w = 0; w < 3; w++) {
        strcpy(c->fakes[w].hello.boot_id, "another");
        c->fakes[w].clock_ahead_ns = (int64_t)(ahead[w] * 1e9);
    }
    /* Loop t runs on worker t - 1; the token before exits at loop 1, 2, 3, 1. */
    for (int i = 0; i < 4; i++)
        for (int t = 0; t < 3; t++) {
            double from = t > 0 ? ahead[t - 1] : i > 0 ? ahead[(i - 1) % 3] : 0.0;
            first->timings[i][t] = (struct loop_timing){10.0 + ahead[t] - from, 0.25f, 0.5f};
        }
    first->timings[3][0].hop_s -= 20.0; /* less than nothing: as far as we know, nothing */
    start(c);
    struct seen s = {0};
    submit(c, &s, 4);
    run_until_idle(c);
    assert_int_equal(s.n_tokens, 4);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t t = 0; t < s.tokens[i].exit_loop; t++) {
            const struct loop_timing *timing = &s.tokens[i].timings[t];
            double expected = i == 3 ? 0.0 : 10.0;
            if (timing->hop_s < expected - 1.0 || timing->hop_s > expected + 1.0)
                fail_msg("token %u loop %u: a hop of %g s", i, t + 1, timing->hop_s);
            assert_true(timing->hop_s >= 0.0);
            assert_true(timing->wait_s == 0.25f && timing->compute_s == 0.5f);
        }
    assert_true(s.tokens[3].timings[0].hop_s == 0.0);
    cluster_close(c);
}

static void test_coordinator_leaves_hops_of_a_shared_clock_alone(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    for (int w = 0; w < 2; w++) {
        c->fakes[w].clock_ahead_ns = 123456789; /* not asked for, and not believed */
        c->fakes[w].timings[0][0].hop_s = 1.0 / 3;
    }
    start(c);
    struct seen s = {0};
    submit(c, &s, 1);
    struct control_stats stats[2];
    assert_int_equal(coordinator_collect_stats(c->coordinator, false, stats, NULL), STATUS_OK);
    run_until_idle(c);
    assert_true(s.tokens[0].timings[0].hop_s == 1.0 / 3);
    cluster_close(c);
}

static void test_coordinator_names_who_does_not_tell_its_clock(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    struct err err = {0};
    strcpy(c->fakes[1].hello.boot_id, "another");
    c->fakes[1].ignores_stats = true;
    c->config.start_timeout_ns = 100 * 1000 * 1000;
    assert_int_equal(cluster_start(c, &err), STATUS_TIMEOUT);
    assert_contains(err.message, "rank 2 (nodea) did not tell its clock within 0.1 s");
    cluster_close(c);
}

/* Clocks drift: the exchanges go on, once a second, while requests run. */
static void test_coordinator_asks_for_clocks_again(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    strcpy(c->fakes[1].hello.boot_id, "another");
    start(c);
    const struct peer_clock *k = &c->coordinator->peers[1].clock;
    assert_int_equal(k->n_exchanges, CLOCK_EXCHANGES_AT_START);
    assert_int_equal(c->coordinator->peers[0].clock.n_exchanges, 0); /* it shares our clock */
    c->coordinator->next_clock_ns = 0;                               /* a second has passed */
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (k->n_exchanges == CLOCK_EXCHANGES_AT_START && host_now_ns() < deadline_ns)
        step(c);
    assert_int_equal(k->n_exchanges, CLOCK_EXCHANGES_AT_START + 1);
    cluster_close(c);
}

/* ---- starts --------------------------------------------------------------------------------- */

static void test_coordinator_says_start_before_the_first_token(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    struct seen s[3] = {0}; /* the third waits until one of the others has ended */
    start(c);
    for (int i = 0; i < 3; i++)
        submit(c, &s[i], 2);
    assert_string_equal(s[0].order, ""); /* nothing comes from inside submit */
    run_until_idle(c);
    for (int i = 0; i < 3; i++) {
        assert_string_equal(s[i].order, "stte");
        assert_true(s[i].n_running >= 1); /* it counts itself */
    }
    cluster_close(c);
}

static void test_coordinator_takes_a_cancel_from_on_start(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    struct seen s = {.cancels_at_start = true}, queued = {0};
    c->config.max_running = 1;
    start(c);
    submit(c, &s, 2);
    submit(c, &queued, 2);
    coordinator_cancel(c->coordinator, queued.id);
    run_until_idle(c);
    assert_string_equal(s.order, "se");
    assert_string_equal(queued.order, "e"); /* it never started */
    cluster_close(c);
}

/* ---- counters and load ---------------------------------------------------------------------- */

struct answers {
    struct coordinator *coordinator;
    uint32_t n, n_wanted;
    uint64_t n_rows[3];
};

static void on_stats(void *user, const struct control_stats *stats)
{
    struct answers *a = user;
    a->n++;
    for (int w = 0; w < 3; w++)
        a->n_rows[w] += stats[w].n_rows;
    if (a->n < a->n_wanted) /* the next question may be asked at once */
        assert_int_equal(coordinator_request_stats(a->coordinator, on_stats, a, NULL), STATUS_OK);
}

static void test_coordinator_gives_counters_without_waiting(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    struct err err = {0};
    struct control_stats stats[3];
    start(c);
    struct answers a = {.coordinator = c->coordinator, .n_wanted = 3};
    assert_int_equal(coordinator_request_stats(c->coordinator, on_stats, &a, &err), STATUS_OK);
    assert_int_equal(a.n, 0);
    assert_int_equal(coordinator_request_stats(c->coordinator, on_stats, &a, &err), STATUS_FULL);
    assert_contains(err.message, "3 of 3 workers");
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (a.n < 3 && host_now_ns() < deadline_ns)
        step(c);
    assert_int_equal(a.n, 3);
    for (int w = 0; w < 3; w++)
        assert_int_equal(a.n_rows[w], 3 * 10 * (w + 1));
    /* Who waits for its own answer lets an open question end first. */
    a.n_wanted = 4;
    assert_int_equal(coordinator_request_stats(c->coordinator, on_stats, &a, &err), STATUS_OK);
    assert_int_equal(coordinator_collect_stats(c->coordinator, false, stats, &err), STATUS_OK);
    assert_int_equal(a.n, 4);
    assert_int_equal(stats[2].n_rows, 30);
    cluster_close(c);
}

static void test_coordinator_names_who_owes_counters(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    struct err err = {0};
    struct seen s = {0};
    c->fakes[2].ignores_stats = true;
    c->fakes[0].n_at_once = c->fakes[1].n_at_once = c->fakes[2].n_at_once = 1; /* s stays open */
    c->config.answer_timeout_ns = 100 * 1000 * 1000;
    start(c);
    submit(c, &s, 4);
    struct answers a = {.coordinator = c->coordinator, .n_wanted = 1};
    assert_int_equal(coordinator_request_stats(c->coordinator, on_stats, &a, &err), STATUS_OK);
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    enum status st = STATUS_OK;
    while (st == STATUS_OK && host_now_ns() < deadline_ns)
        st = coordinator_step(c->coordinator, 1000000000, &err);
    assert_int_equal(st, STATUS_TIMEOUT);
    assert_contains(err.message, "rank 3 on nodea did not answer for its counters in 0.1 s");
    assert_int_equal(a.n, 0);
    assert_string_equal(s.order, "ste");
    assert_int_equal(coordinator_request_stats(c->coordinator, on_stats, &a, &err), STATUS_TIMEOUT);
    cluster_close(c);
}

static void test_coordinator_says_how_full_it_is(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1); /* 12 blocks of 4 positions, T = 3 */
    struct seen s[4] = {0};
    struct scheduler_load load;
    c->config.max_running = 1;
    c->fakes[0].n_at_once = 1;
    start(c);
    assert_true(coordinator_kv_usage(c->coordinator) == 0.0);
    for (int i = 0; i < 3; i++)
        submit(c, &s[i], 4); /* 3 + 4 positions: 2 blocks at each of 3 loops */
    while (s[0].n_tokens == 0)
        step(c);
    coordinator_get_load(c->coordinator, &load);
    assert_int_equal(load.n_running, 1);
    assert_int_equal(load.n_queued, 2);
    assert_int_equal(load.blocks_reserved_max, 6);
    assert_true(coordinator_kv_usage(c->coordinator) == 0.5);
    for (int i = 0; i < 3; i++)
        coordinator_cancel(c->coordinator, s[i].id);
    run_until_idle(c);
    coordinator_get_load(c->coordinator, &load);
    assert_int_equal(load.n_queued + load.n_running + load.n_closing, 0);
    assert_true(coordinator_kv_usage(c->coordinator) == 0.0);
    cluster_close(c);
}

static void *wake_main(void *arg)
{
    coordinator_wake(arg);
    return NULL;
}

static void test_coordinator_wakes_from_another_thread(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1);
    pthread_t thread;
    start(c);
    const uint64_t begin_ns = host_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, wake_main, c->coordinator), 0);
    step(c); /* of a second, were it not woken before or meanwhile */
    assert_true(host_now_ns() - begin_ns < 900000000);
    pthread_join(thread, NULL);
    cluster_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clock_offset_is_that_of_the_quickest_exchange),
        cmocka_unit_test(test_clock_forgets_old_exchanges),
        cmocka_unit_test(test_clock_may_be_behind),
        cmocka_unit_test(test_coordinator_tells_who_ran_each_loop),
        cmocka_unit_test(test_coordinator_counts_workers_from_their_ring),
        cmocka_unit_test(test_coordinator_takes_the_clocks_out_of_the_hops),
        cmocka_unit_test(test_coordinator_leaves_hops_of_a_shared_clock_alone),
        cmocka_unit_test(test_coordinator_names_who_does_not_tell_its_clock),
        cmocka_unit_test(test_coordinator_asks_for_clocks_again),
        cmocka_unit_test(test_coordinator_says_start_before_the_first_token),
        cmocka_unit_test(test_coordinator_takes_a_cancel_from_on_start),
        cmocka_unit_test(test_coordinator_gives_counters_without_waiting),
        cmocka_unit_test(test_coordinator_names_who_owes_counters),
        cmocka_unit_test(test_coordinator_says_how_full_it_is),
        cmocka_unit_test(test_coordinator_wakes_from_another_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
