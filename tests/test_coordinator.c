/* coordinator: a request's tokens and text arrive in order, it ends exactly once, and a lost worker
 * is named. */
#include "tests/fake_worker.h"

/* What the callbacks of one request have seen. */
struct seen {
    struct coordinator *coordinator;
    uint64_t id;
    uint32_t n_tokens, n_ends, n_rows;
    char text[256];
    int32_t ids[64];
    enum finish_reason reason;
    enum status failure;
    char message[ERR_MESSAGE_BYTES];
    struct completion_end end;
    uint32_t cancel_at;                    /* cancels itself at that token, 1-based */
    const struct completion_request *next; /* submitted from on_end */
};

static void on_token(void *user, const struct completion_token *token)
{
    struct seen *s = user;
    assert_int_equal(s->n_ends, 0);
    assert_int_equal(token->index, s->n_tokens);
    assert_int_equal(strlen(token->text), token->text_bytes);
    assert_true(token->at_ns > 0);
    s->ids[s->n_tokens++] = token->token->id;
    strcat(s->text, token->text);
    if (s->cancel_at == s->n_tokens)
        coordinator_cancel(s->coordinator, s->id);
}

static void on_observation(void *user, const struct control_observation *row)
{
    struct seen *s = user;
    assert_int_equal(s->n_ends, 0);
    assert_int_equal(row->loop, 2);
    assert_int_equal(row->n_top, 1);
    assert_int_equal(row->top_ids[0], 3);
    s->n_rows++;
}

static void on_end(void *user, const struct completion_end *end)
{
    struct seen *s = user;
    s->n_ends++;
    s->reason = end->reason;
    s->failure = end->failure;
    s->end = *end;
    snprintf(s->message, sizeof s->message, "%s", end->message);
    strcat(s->text, end->text);
    if (s->next != NULL)
        assert_int_equal(coordinator_submit(s->coordinator, s->next, NULL, NULL), STATUS_OK);
}

static const int32_t PROMPT[3] = {4, 0, 2};

static struct completion_request make_request(struct seen *s, uint32_t max_tokens)
{
    struct completion_request r = {.prompt_ids = PROMPT,
                                   .n_prompt = 3,
                                   .user = s,
                                   .on_token = on_token,
                                   .on_observation = on_observation,
                                   .on_end = on_end};
    sequence_params_init(&r.params);
    r.params.max_tokens = max_tokens;
    return r;
}

static struct cluster *open_started(uint32_t n_workers)
{
    struct err err = {0};
    struct cluster *c = cluster_open(n_workers);
    if (cluster_start(c, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return c;
}

static void submit(struct cluster *c, struct seen *s, const struct completion_request *r)
{
    struct err err = {0};
    s->coordinator = c->coordinator;
    if (coordinator_submit(c->coordinator, r, &s->id, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void run_until_idle(struct cluster *c)
{
    struct err err = {0};
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (!coordinator_is_idle(c->coordinator)) {
        assert_true(host_now_ns() < deadline_ns);
        if (coordinator_step(c->coordinator, 1000000000, &err) != STATUS_OK)
            fail_msg("%s", err.message);
    }
}

/* ---- how requests end ----------------------------------------------------------------------- */

static void test_coordinator_streams_tokens_and_text(void **state)
{
    (void)state;
    struct cluster *c = open_started(3);
    struct seen s = {0};
    struct completion_request r = make_request(&s, 7);
    submit(c, &s, &r);
    assert_int_equal(coordinator_n_active(c->coordinator), 1);
    run_until_idle(c);
    assert_int_equal(s.n_ends, 1);
    assert_int_equal(s.reason, FINISH_LENGTH);
    assert_int_equal(s.n_tokens, 7);
    assert_string_equal(s.text, "abcdabc");
    assert_int_equal(s.end.n_tokens, 7);
    assert_true(s.end.submitted_ns > 0 && s.end.started_ns >= s.end.submitted_ns);
    assert_true(s.end.first_token_ns >= s.end.started_ns && s.end.ended_ns >= s.end.first_token_ns);
    cluster_stop(c);
    for (int w = 0; w < 3; w++) {
        assert_int_equal(c->fakes[w].n_opens, 1);
        assert_int_equal(c->fakes[w].n_closes, 1);
        assert_int_equal(c->fakes[w].params[1].max_loops, 3); /* 0 means all */
    }
    assert_int_equal(c->fakes[0].n_prompt_rows, 3);
    cluster_close(c);
}

static void test_coordinator_puts_tokens_that_overtook_in_order(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1);
    c->fakes[0].swaps_tokens = true;
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    struct seen all = {0}, stopped = {0}, cancelled = {.cancel_at = 2};
    struct completion_request r =
        make_request(&all, 6); /* the last one comes before its predecessor */
    submit(c, &all, &r);
    run_until_idle(c);
    r = make_request(&stopped, 6);
    r.n_stops = 1;
    r.stops[0] = "c"; /* the token behind it is here already */
    submit(c, &stopped, &r);
    run_until_idle(c);
    r = make_request(&cancelled, 6);
    submit(c, &cancelled, &r);
    run_until_idle(c);
    assert_string_equal(all.text, "abcdab");
    assert_int_equal(all.reason, FINISH_LENGTH);
    assert_string_equal(stopped.text, "ab");
    assert_int_equal(stopped.reason, FINISH_STOP);
    assert_int_equal(cancelled.n_tokens, 2);
    assert_int_equal(cancelled.reason, FINISH_CANCELLED);
    cluster_close(c);
}

static void test_coordinator_stop_id_is_no_text(void **state)
{
    (void)state;
    struct cluster *c = open_started(1);
    struct seen plain = {0}, included = {0};
    struct completion_request r = make_request(&plain, 7);
    r.params.n_stop_ids = 1;
    r.params.stop_ids[0] = 2;
    submit(c, &plain, &r);
    r.user = &included;
    r.include_stop = true;
    submit(c, &included, &r);
    run_until_idle(c);
    assert_int_equal(plain.reason, FINISH_STOP);
    assert_int_equal(plain.n_tokens, 3);
    assert_string_equal(plain.text, "ab");
    assert_string_equal(included.text, "abc");
    cluster_close(c);
}

static void test_coordinator_stop_string_ends_early(void **state)
{
    (void)state;
    struct cluster *c = open_started(2);
    struct seen s = {0}, last = {0};
    struct completion_request r = make_request(&s, 20);
    r.n_stops = 2;
    r.stops[0] = "cda";
    r.stops[1] = "dd";
    submit(c, &s, &r);
    r.params.max_tokens = 5; /* the token that completes it is the last one allowed, too */
    r.user = &last;
    submit(c, &last, &r);
    run_until_idle(c);
    assert_int_equal(s.reason, FINISH_STOP);
    assert_int_equal(s.n_tokens, 5); /* 15 more came late */
    assert_string_equal(s.text, "ab");
    assert_int_equal(last.reason, FINISH_STOP);
    assert_string_equal(last.text, "ab");
    assert_int_equal(last.n_ends, 1);
    cluster_close(c);
}

static void test_coordinator_cancels_queued_and_running(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(1);
    c->fakes[0].n_at_once = 3;
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    struct seen running = {.cancel_at = 3}, other = {0}, queued = {0};
    struct completion_request r = make_request(&running, 9); /* 3 loops x 3 blocks of 12 */
    submit(c, &running, &r);
    r = make_request(&queued, 9);
    submit(c, &queued, &r);
    r = make_request(&other, 2);
    submit(c, &other, &r);
    coordinator_cancel(c->coordinator, queued.id);
    assert_int_equal(queued.n_ends, 0); /* callbacks come from step only */
    coordinator_cancel(c->coordinator, queued.id);
    coordinator_cancel(c->coordinator, 12345);
    run_until_idle(c);
    assert_int_equal(queued.n_ends, 1);
    assert_int_equal(queued.reason, FINISH_CANCELLED);
    assert_int_equal(queued.end.started_ns, 0);
    assert_int_equal(running.n_ends, 1);
    assert_int_equal(running.reason, FINISH_CANCELLED);
    assert_int_equal(running.n_tokens, 3);
    assert_int_equal(other.reason, FINISH_LENGTH);
    coordinator_cancel(c->coordinator, running.id); /* long gone */
    assert_true(coordinator_is_idle(c->coordinator));
    cluster_close(c);
}

static void test_coordinator_submits_from_the_end_of_another(void **state)
{
    (void)state;
    struct cluster *c = open_started(2);
    struct seen first = {0}, second = {0};
    struct completion_request r = make_request(&second, 4);
    first.next = &r;
    second.coordinator = c->coordinator;
    struct completion_request q = make_request(&first, 2);
    submit(c, &first, &q);
    run_until_idle(c);
    assert_int_equal(first.n_ends, 1);
    assert_int_equal(second.n_ends, 1);
    assert_string_equal(second.text, "abcd");
    cluster_close(c);
}

static void test_coordinator_many_requests_pass_through_a_small_house(void **state)
{
    (void)state;
    enum { N = 200 };
    struct cluster *c = open_started(2);
    struct seen *seen = calloc(N, sizeof *seen);
    assert_non_null(seen);
    for (int i = 0; i < N;) {
        struct completion_request r = make_request(&seen[i], 1 + (uint32_t)i % 9);
        struct err err = {0};
        enum status st = coordinator_submit(c->coordinator, &r, &seen[i].id, &err);
        if (st == STATUS_OK) {
            i++;
            continue;
        }
        assert_int_equal(st, STATUS_FULL);
        assert_int_equal(coordinator_step(c->coordinator, 1000000000, &err), STATUS_OK);
    }
    run_until_idle(c);
    for (int i = 0; i < N; i++) {
        assert_int_equal(seen[i].n_ends, 1);
        assert_int_equal(seen[i].n_tokens, 1 + i % 9);
    }
    free(seen);
    cluster_stop(c);
    assert_int_equal(c->fakes[0].n_opens, N);
    assert_int_equal(c->fakes[0].n_prompts + c->fakes[1].n_prompts, N);
    assert_true(c->fakes[0].n_prompts > N / 4 && c->fakes[1].n_prompts > N / 4);
    cluster_close(c);
}

static void test_coordinator_late_observations_come_before_the_end(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[0].observes_late = c->fakes[1].observes_late = true;
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    struct seen s = {0};
    struct completion_request r = make_request(&s, 2);
    r.params.observe_top = 1;
    submit(c, &s, &r);
    run_until_idle(c);
    assert_int_equal(s.n_ends, 1);
    assert_int_equal(s.n_rows, 2);
    cluster_close(c);
}

static void on_report(void *user, const struct control_observation *row)
{
    struct seen *s = user;
    assert_true(row->has_target && s->n_ends == 0);
    s->n_rows++;
}

/* The last row of a prompt may get off before the others have been through all loops: the sequence
 * is closed once every target was told at every loop, 2 * 3 times here. */
static void test_coordinator_ends_after_the_reports_of_all_targets(void **state)
{
    (void)state;
    static const int32_t targets[2] = {0, 2};
    for (uint32_t n_reports = 5; n_reports <= 6; n_reports++) {
        struct cluster *c = cluster_open(1);
        c->fakes[0].n_reports = n_reports;
        assert_int_equal(cluster_start(c, NULL), STATUS_OK);
        struct seen s = {0};
        struct completion_request r = make_request(&s, 2);
        r.on_observation = on_report;
        r.params.exit_mode = EXIT_MODE_EXACT;
        r.params.exit_threshold = 0.5f;
        r.params.n_observe_targets = 2;
        r.observe_targets = targets;
        submit(c, &s, &r);
        while (s.n_rows < n_reports)
            assert_int_equal(coordinator_step(c->coordinator, 1000000000, NULL), STATUS_OK);
        /* The tokens came first, and the last one waits for the last report. */
        assert_int_equal(s.n_tokens, n_reports == 6 ? 2 : 1);
        if (n_reports == 5)
            coordinator_cancel(c->coordinator, s.id);
        run_until_idle(c);
        assert_int_equal(s.n_ends, 1);
        assert_int_equal(s.reason, n_reports == 6 ? FINISH_LENGTH : FINISH_CANCELLED);
        cluster_close(c);
    }
}

static void test_coordinator_refusal_ends_with_the_workers_message(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[1].refuses_open = true;
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    struct seen s = {0};
    struct completion_request r = make_request(&s, 2);
    submit(c, &s, &r);
    run_until_idle(c);
    assert_int_equal(s.reason, FINISH_ERROR);
    assert_int_equal(s.failure, STATUS_NO_MEMORY);
    assert_string_equal(s.message, "rank 2 on nodea: the pool is full");
    cluster_close(c);
}

static void test_coordinator_refuses_bad_requests(void **state)
{
    (void)state;
    struct cluster *c = open_started(1);
    struct seen s = {0};
    struct err err = {0};
    const int32_t outside[2] = {1, 5};
    struct completion_request r = make_request(&s, 2);
    r.n_prompt = 0;
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_contains(err.message, "prompt is empty");
    r = make_request(&s, 2);
    r.prompt_ids = outside;
    r.n_prompt = 2;
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_contains(err.message, "prompt token 1 is 5; the vocabulary has ids 0..4");
    r = make_request(&s, 30);
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_contains(err.message, "context_length_exceeded: the prompt has 3 tokens and max_tokens "
                                 "is 30, together 33; the model's context is 32");
    r = make_request(&s, 17); /* 5 blocks at 3 loops, of 12 */
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_contains(err.message, "--kv-memory");
    r = make_request(&s, 2);
    r.params.exit_threshold = 1.5f;
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_contains(err.message, "exit_threshold");
    r = make_request(&s, 2);
    r.n_stops = 1;
    r.stops[0] = "";
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, &err), STATUS_INVALID);
    assert_true(coordinator_is_idle(c->coordinator));
    cluster_close(c);
    assert_int_equal(s.n_ends, 0);
}

/* ---- when the cluster fails ----------------------------------------------------------------- */

/* Steps until the error; every request has ended with it by then. */
static void check_fatal(struct cluster *c, enum status code, const char *words)
{
    struct err err = {0};
    struct seen first = {0}, second = {0};
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    struct completion_request r = make_request(&first, 9);
    submit(c, &first, &r);
    r.user = &second;
    submit(c, &second, &r);
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    enum status st = STATUS_OK;
    while (st == STATUS_OK && host_now_ns() < deadline_ns)
        st = coordinator_step(c->coordinator, 1000000000, &err);
    assert_int_equal(st, code);
    assert_contains(err.message, words);
    assert_int_equal(first.n_ends, 1);
    assert_int_equal(first.reason, FINISH_ERROR);
    assert_string_equal(first.message, err.message);
    assert_int_equal(second.n_ends, 1);
    assert_int_equal(coordinator_n_active(c->coordinator), 0);
    assert_int_equal(coordinator_submit(c->coordinator, &r, NULL, NULL), code);
    assert_int_equal(coordinator_step(c->coordinator, 0, NULL), code);
    cluster_stop(c);
    assert_int_equal(c->fakes[0].shutdown.failure, code);
    cluster_close(c);
}

static void test_coordinator_names_a_worker_that_leaves(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[1].leaves_on_open = true;
    check_fatal(c, STATUS_IO, "rank 2 on nodea has left the cluster");
}

static void test_coordinator_names_a_worker_that_does_not_answer(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(2);
    c->fakes[1].ignores_open = true;
    c->config.answer_timeout_ns = 50 * 1000 * 1000;
    check_fatal(c, STATUS_TIMEOUT, "rank 2 on nodea has not acknowledged sequence 1");
}

static void test_coordinator_collects_counters(void **state)
{
    (void)state;
    struct cluster *c = cluster_open(3);
    struct control_stats stats[3];
    struct err err = {0};
    c->config.answer_timeout_ns = 100 * 1000 * 1000;
    c->fakes[1].ignores_stats = true;
    assert_int_equal(cluster_start(c, NULL), STATUS_OK);
    assert_int_equal(coordinator_collect_stats(c->coordinator, false, stats, &err), STATUS_TIMEOUT);
    assert_contains(err.message, "rank 2 on nodea");
    cluster_close(c);

    c = open_started(3);
    assert_int_equal(coordinator_collect_stats(c->coordinator, false, stats, &err), STATUS_OK);
    for (int w = 0; w < 3; w++)
        assert_int_equal(stats[w].n_rows, 10 * (w + 1));
    cluster_close(c);
}

static void test_coordinator_shutdown_ends_what_is_active(void **state)
{
    (void)state;
    struct cluster *c = open_started(1);
    struct seen s = {0}, queued = {0};
    struct completion_request r = make_request(&s, 9);
    submit(c, &s, &r);
    r.user = &queued;
    submit(c, &queued, &r);
    cluster_stop(c);
    assert_int_equal(s.n_ends, 1);
    assert_int_equal(s.reason, FINISH_CANCELLED);
    assert_int_equal(queued.n_ends, 1);
    cluster_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_coordinator_streams_tokens_and_text),
        cmocka_unit_test(test_coordinator_puts_tokens_that_overtook_in_order),
        cmocka_unit_test(test_coordinator_stop_id_is_no_text),
        cmocka_unit_test(test_coordinator_stop_string_ends_early),
        cmocka_unit_test(test_coordinator_cancels_queued_and_running),
        cmocka_unit_test(test_coordinator_submits_from_the_end_of_another),
        cmocka_unit_test(test_coordinator_many_requests_pass_through_a_small_house),
        cmocka_unit_test(test_coordinator_late_observations_come_before_the_end),
        cmocka_unit_test(test_coordinator_ends_after_the_reports_of_all_targets),
        cmocka_unit_test(test_coordinator_refusal_ends_with_the_workers_message),
        cmocka_unit_test(test_coordinator_refuses_bad_requests),
        cmocka_unit_test(test_coordinator_names_a_worker_that_leaves),
        cmocka_unit_test(test_coordinator_names_a_worker_that_does_not_answer),
        cmocka_unit_test(test_coordinator_collects_counters),
        cmocka_unit_test(test_coordinator_shutdown_ends_what_is_active),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
