/* service: every choice of a job ends exactly once, whatever is submitted and cancelled when. */
#include "tests/service_client.h"

/* ---- jobs ----------------------------------------------------------------------------------- */

static void test_service_delivers_tokens_text_and_one_end(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(2), false);
    service_submit(c.service, make_job(&o, 1, 1, 7));
    assert_false(service_is_idle(c.service));
    run_until_ended(&c, &o, 1);
    assert_string_equal(o.text, "abcdabc");
    assert_int_equal(o.n_tokens[0], 7);
    assert_int_equal(o.reasons[0], FINISH_LENGTH);
    while (!service_is_idle(c.service))
        assert_int_equal(step(&c, NULL), STATUS_OK);
    take_all(&c);
    client_close(&c);
}

static void test_service_draws_choice_i_with_seed_plus_i(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(1), false);
    service_submit(c.service, make_job(&o, 2, 3, 2));
    run_until_ended(&c, &o, 1);
    cluster_stop(c.cluster);
    for (uint32_t i = 0; i < 6; i++) { /* opened in order: sequence ids ascend from 1 */
        const struct sequence_params *p = &c.cluster->fakes[0].params[1 + i];
        assert_int_equal(p->prompt_tokens, 1 + i / 3);
        assert_int_equal(p->sampling.seed, 100 + i % 3);
    }
    client_close(&c);
}

static void test_service_keeps_choices_while_the_coordinator_is_full(void **state)
{
    (void)state;
    struct client c;
    struct order o[2];
    client_init(&c, cluster_open(1), false); /* 2 run, 4 are queued, 12 slots */
    service_submit(c.service, make_job(&o[0], 8, 8, 3));
    service_submit(c.service, make_job(&o[1], 1, 1, 3));
    assert_int_equal(step(&c, NULL), STATUS_OK);
    assert_ptr_equal(c.service->waiting_first, o[0].job);
    run_until_ended(&c, o, 2);
    for (uint32_t i = 0; i < 64; i++) {
        assert_int_equal(o[0].reasons[i], FINISH_LENGTH);
        assert_int_equal(o[0].n_tokens[i], 3);
    }
    assert_int_equal(o[1].reasons[0], FINISH_LENGTH);
    client_close(&c);
}

static void test_service_ends_refused_choices_alone(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    int32_t bad = 77;
    client_init(&c, cluster_open(1), false);
    struct service_job *job = make_job(&o, 3, 1, 2);
    job->body.prompts[1] = (struct body_prompt){.ids = &bad, .n_ids = 1};
    service_submit(c.service, job);
    run_until_ended(&c, &o, 1);
    assert_int_equal(o.reasons[0], FINISH_LENGTH);
    assert_int_equal(o.reasons[1], FINISH_ERROR);
    assert_int_equal(o.failures[1], STATUS_INVALID);
    assert_int_equal(o.reasons[2], FINISH_LENGTH);
    client_close(&c);
}

static void test_service_uses_deliveries_again(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(1), false);
    size_t n_first = 0;
    for (int i = 0; i < 20; i++) {
        service_submit(c.service, make_job(&o, 1, 4, 5));
        run_until_ended(&c, &o, 1);
        while (!service_is_idle(c.service))
            step(&c, NULL);
        take_all(&c);
        service_collect_idle(c.service);
        if (i == 9) /* the most that lay around at once varies with what a step finds */
            n_first = c.service->n_idle;
    }
    assert_true(n_first >= 4);
    assert_true(c.service->n_idle <= 3 * n_first);
    client_close(&c);
}

/* ---- cancels -------------------------------------------------------------------------------- */

static void test_service_cancels_what_runs_and_what_waits(void **state)
{
    (void)state;
    struct client c;
    struct order o[3];
    struct cluster *cluster = cluster_open(1);
    cluster->fakes[0].n_at_once = 1; /* none ends by itself */
    client_init(&c, cluster, false);
    service_submit(c.service, make_job(&o[0], 1, 5, 9));
    service_submit(c.service, make_job(&o[1], 5, 4, 9)); /* its last choices wait in the service */
    service_submit(c.service, make_job(&o[2], 1, 1, 9)); /* all of it does */
    while (o[0].n_tokens[0] == 0) {
        step(&c, NULL);
        take_all(&c);
    }
    assert_ptr_equal(c.service->waiting_last, o[2].job);
    service_cancel(c.service, o[2].job);
    service_cancel(c.service, o[2].job);
    run_until_ended(&c, &o[2], 1);
    assert_int_equal(o[0].n_ended + o[1].n_ended, 0);
    service_cancel(c.service, o[1].job);
    run_until_ended(&c, &o[1], 1);
    assert_int_equal(o[0].n_ended, 0);
    service_cancel(c.service, o[0].job);
    run_until_ended(&c, o, 3);
    for (int j = 0; j < 3; j++)
        for (uint32_t i = 0; i < o[j].n_choices; i++)
            assert_int_equal(o[j].reasons[i], FINISH_CANCELLED);
    client_close(&c);
}

static void test_service_cancel_before_the_engine_has_looked(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(1), false);
    service_submit(c.service, make_job(&o, 1, 4, 5));
    service_cancel(c.service, o.job);
    run_until_ended(&c, &o, 1);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(o.reasons[i], FINISH_CANCELLED);
    client_close(&c);
}

static void test_service_cancel_after_the_last_end_sends_nothing(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(1), false);
    service_submit(c.service, make_job(&o, 1, 1, 2));
    while (!service_is_idle(c.service))
        step(&c, NULL);
    service_cancel(c.service, o.job); /* its end lies in the mailbox */
    assert_null(atomic_load(&c.service->cancels.last));
    assert_true(take_all(&c));
    assert_null(o.job);
    assert_int_equal(o.reasons[0], FINISH_LENGTH);
    step(&c, NULL);
    client_close(&c);
}

static void test_service_keeps_the_last_end_while_a_cancel_is_under_way(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(1), false);
    service_submit(c.service, make_job(&o, 1, 2, 2));
    /* The client's thread is inside service_cancel, between the flag and the box. */
    atomic_store(&o.job->is_cancel_sent, true);
    do {
        step(&c, NULL);
        take_all(&c);
    } while (!coordinator_is_idle(c.cluster->coordinator));
    assert_int_equal(o.n_ended, 1);
    assert_false(service_is_idle(c.service));
    mailbox_push(&c.service->cancels, &o.job->cancel_mail);
    run_until_ended(&c, &o, 1);
    assert_int_equal(o.reasons[0], FINISH_LENGTH);
    assert_int_equal(o.reasons[1], FINISH_LENGTH);
    assert_true(service_is_idle(c.service));
    client_close(&c);
}

/* ---- the cluster's own news ----------------------------------------------------------------- */

static void test_service_tells_a_lost_cluster_once(void **state)
{
    (void)state;
    struct client c;
    struct order o[2];
    struct err err = {0};
    struct cluster *cluster = cluster_open(1);
    cluster->fakes[0].leaves_on_open = true;
    client_init(&c, cluster, false);
    service_submit(c.service, make_job(&o[0], 1, 30, 3)); /* running, queued and waiting ones */
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (step(&c, &err) == STATUS_OK)
        assert_true(host_now_ns() < deadline_ns);
    assert_non_null(strstr(err.message, "left the cluster"));
    take_all(&c);
    assert_null(o[0].job);
    assert_int_equal(c.n_lost, 1);
    assert_int_equal(c.n_ended_before_lost, 0); /* the reason comes first */
    assert_string_equal(c.lost, err.message);
    service_submit(c.service, make_job(&o[1], 1, 2, 3));
    assert_int_equal(step(&c, &err), STATUS_IO);
    take_all(&c);
    assert_null(o[1].job);
    assert_int_equal(c.n_lost, 1);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_equal(o[0].reasons[i], FINISH_ERROR);
    assert_int_equal(o[1].failures[1], STATUS_IO);
    client_close(&c);
}

static void test_service_brings_stats_while_jobs_run_and_after(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    client_init(&c, cluster_open(2), false);
    service_submit(c.service, make_job(&o, 4, 4, 8));
    run_until_ended(&c, &o, 1);
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    while (c.n_stats < 3 || c.snapshot->kv_usage > 0) {
        assert_true(host_now_ns() < deadline_ns);
        assert_int_equal(step(&c, NULL), STATUS_OK);
        take_all(&c);
    }
    assert_int_equal(c.snapshot->n_workers, 2);
    assert_int_equal(c.snapshot->workers[1].n_rows, 20); /* the fakes say rank * 10 */
    client_close(&c);
}

static void test_service_fails_a_choice_whose_prompt_rows_are_missing(void **state)
{
    (void)state;
    struct client c;
    struct order o;
    struct cluster *cluster = cluster_open(1);
    cluster->fakes[0].observes_late = true; /* one row of many */
    client_init(&c, cluster, false);
    struct service_job *job = make_job(&o, 1, 1, 2);
    job->body.prompts[0].n_ids = 4;
    job->body.fields.echo = job->body.fields.has_logprobs = true;
    service_submit(c.service, job);
    run_until_ended(&c, &o, 1);
    assert_int_equal(o.reasons[0], FINISH_ERROR);
    assert_int_equal(o.failures[0], STATUS_INTERNAL);
    assert_int_equal(o.n_rows_told, 0);
    client_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_service_delivers_tokens_text_and_one_end),
        cmocka_unit_test(test_service_draws_choice_i_with_seed_plus_i),
        cmocka_unit_test(test_service_keeps_choices_while_the_coordinator_is_full),
        cmocka_unit_test(test_service_ends_refused_choices_alone),
        cmocka_unit_test(test_service_uses_deliveries_again),
        cmocka_unit_test(test_service_cancels_what_runs_and_what_waits),
        cmocka_unit_test(test_service_cancel_before_the_engine_has_looked),
        cmocka_unit_test(test_service_cancel_after_the_last_end_sends_nothing),
        cmocka_unit_test(test_service_keeps_the_last_end_while_a_cancel_is_under_way),
        cmocka_unit_test(test_service_tells_a_lost_cluster_once),
        cmocka_unit_test(test_service_brings_stats_while_jobs_run_and_after),
        cmocka_unit_test(test_service_fails_a_choice_whose_prompt_rows_are_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
