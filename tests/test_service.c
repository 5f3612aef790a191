/* service: every choice of a job ends exactly once, whatever is submitted and cancelled when. */
#include "coordinator/service_state.h"
#include "tests/fake_worker.h"

#include <assert.h>
#include <semaphore.h>

enum { MAX_CHOICES = 64 };

/* ---- a client ------------------------------------------------------------------------------- */

struct client {
    struct cluster *cluster;
    struct service *service;
    /* engine thread, when it is one of its own */
    pthread_t thread;
    bool has_thread;
    atomic_bool is_over;
    atomic_uint n_steps, n_mails;
    sem_t mail;
    /* what was delivered beside jobs */
    uint32_t n_lost, n_stats, n_ended, n_ended_before_lost;
    struct service_snapshot *snapshot;
    char lost[ERR_MESSAGE_BYTES];
};

/* A job and what became of it. */
struct order {
    struct service_job *job; /* NULL once the last end was taken */
    uint32_t n_choices, n_ended, n_rows_told;
    uint32_t n_tokens[MAX_CHOICES];
    bool is_started[MAX_CHOICES], has_ended[MAX_CHOICES];
    enum finish_reason reasons[MAX_CHOICES];
    enum status failures[MAX_CHOICES];
    char message[ERR_MESSAGE_BYTES];
    char text[256];             /* of all choices, as it came */
    uint32_t cancel_after_ends; /* cancels itself when so many have ended */
};

static void on_mail(void *user)
{
    struct client *c = user;
    atomic_fetch_add(&c->n_mails, 1);
    assert(atomic_load(&c->n_mails) <= atomic_load(&c->n_steps));
    sem_post(&c->mail);
}

static enum status step(struct client *c, struct err *err)
{
    atomic_fetch_add(&c->n_steps, 1);
    return service_step(c->service, 1000000000, err);
}

static void *engine_main(void *user)
{
    struct client *c = user;
    while (!atomic_load(&c->is_over) && step(c, NULL) == STATUS_OK)
        continue;
    return NULL;
}

static void client_init(struct client *c, struct cluster *cluster, bool has_thread)
{
    struct err err = {0};
    memset(c, 0, sizeof *c);
    c->cluster = cluster;
    c->has_thread = has_thread;
    sem_init(&c->mail, 0, 0);
    const struct service_config config = {
        .stats_interval_ns = 1000000, .on_mail = on_mail, .user = c};
    if (cluster_start(cluster, &err) != STATUS_OK ||
        service_create(cluster->coordinator, &config, &c->service, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    if (has_thread)
        assert_int_equal(pthread_create(&c->thread, NULL, engine_main, c), 0);
}

static void client_stop(struct client *c)
{
    atomic_store(&c->is_over, true);
    service_wake(c->service);
    if (c->has_thread)
        pthread_join(c->thread, NULL);
    c->has_thread = false;
}

static void client_close(struct client *c)
{
    client_stop(c);
    service_destroy(c->service);
    free(c->snapshot);
    sem_destroy(&c->mail);
    cluster_close(c->cluster);
}

static void take_ended(struct client *c, struct order *o, const struct delivery *d)
{
    o->has_ended[d->choice] = true;
    o->reasons[d->choice] = d->end.reason;
    o->failures[d->choice] = d->end.failure;
    assert_ptr_equal(d->end.text, d->text);
    assert_ptr_equal(d->end.message, d->message);
    snprintf(o->message, sizeof o->message, "%s", d->end.message);
    strncat(o->text, d->text, sizeof o->text - strlen(o->text) - 1);
    o->n_ended++;
    c->n_ended++;
    if (o->n_ended == o->cancel_after_ends)
        service_cancel(c->service, o->job);
    if (o->n_ended < o->n_choices)
        return;
    service_job_clear(o->job);
    free(o->job->body.prompts);
    free(o->job);
    o->job = NULL;
}

static void take(struct client *c, const struct delivery *d)
{
    if (d->kind == DELIVERY_LOST) {
        c->n_lost++;
        c->n_ended_before_lost = c->n_ended;
        snprintf(c->lost, sizeof c->lost, "%s", d->message);
        return;
    }
    if (d->kind == DELIVERY_STATS) {
        c->n_stats++;
        free(c->snapshot);
        c->snapshot = d->snapshot;
        return;
    }
    struct order *o = d->job->user;
    assert_ptr_equal(o->job, d->job);
    assert_true(d->choice < o->n_choices);
    assert_false(o->has_ended[d->choice]);
    assert_true(d->at_ns > 0);
    switch (d->kind) {
    case DELIVERY_STARTED:
        assert_false(o->is_started[d->choice]);
        o->is_started[d->choice] = true;
        break;
    case DELIVERY_TOKEN:
        assert_true(o->is_started[d->choice]);
        assert_int_equal(d->index, o->n_tokens[d->choice]++);
        assert_int_equal(strlen(d->text), d->text_bytes);
        for (uint32_t t = 0; t < d->token.exit_loop; t++)
            assert_true(d->workers[t] < c->cluster->n_workers);
        strncat(o->text, d->text, sizeof o->text - strlen(o->text) - 1);
        break;
    case DELIVERY_PROMPT:
        assert_true(prompt_rows_are_complete(d->prompt_rows));
        o->n_rows_told++;
        break;
    default:
        assert_int_equal(d->kind, DELIVERY_ENDED);
        take_ended(c, o, d);
    }
}

/* True when something was there. */
static bool take_all(struct client *c)
{
    struct delivery *d = service_take(c->service);
    bool was_there = d != NULL;
    while (d != NULL) {
        struct delivery *next = (struct delivery *)d->mail.next;
        take(c, d);
        service_give_back(c->service, d);
        d = next;
    }
    return was_there;
}

/* n prompts of 1 + i tokens. */
static struct service_job *make_job(struct order *o, uint32_t n_prompts, uint32_t n,
                                    uint32_t max_tokens)
{
    static const int32_t ids[] = {4, 0, 2, 1, 3, 4, 0, 2};
    struct service_job *job = calloc(1, sizeof *job);
    memset(o, 0, sizeof *o);
    o->job = job;
    o->n_choices = job->n_choices = n_prompts * n;
    assert_true(o->n_choices <= MAX_CHOICES);
    job->user = o;
    job->body.n_prompts = n_prompts;
    job->body.prompts = calloc(n_prompts, sizeof *job->body.prompts);
    for (uint32_t i = 0; i < n_prompts; i++)
        job->body.prompts[i] =
            (struct body_prompt){.ids = (int32_t *)ids, .n_ids = 1 + i % (sizeof ids / 4)};
    job->body.fields.n = n;
    sequence_params_init(&job->params);
    job->params.max_tokens = max_tokens;
    job->params.max_loops = 3;
    job->params.sampling.seed = 100;
    return job;
}

static void run_until_ended(struct client *c, const struct order *orders, size_t n)
{
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    for (size_t i = 0; i < n; i++)
        while (orders[i].job != NULL) {
            struct err err = {0};
            assert_true(host_now_ns() < deadline_ns);
            if (!c->has_thread && step(c, &err) != STATUS_OK && c->n_lost == 0 && !take_all(c))
                fail_msg("%s", err.message);
            if (!take_all(c) && c->has_thread)
                sem_wait(&c->mail);
        }
}

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

/* ---- storms --------------------------------------------------------------------------------- */

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*seed >> 33);
}

static void storm(uint64_t seed, uint32_t n_at_once)
{
    enum { N_JOBS = 100, WINDOW = 12 };
    const uint64_t first_seed = seed;
    struct order *orders = calloc(N_JOBS + WINDOW, sizeof *orders);
    struct client c;
    struct cluster *cluster = cluster_open(2);
    for (int w = 0; w < 2; w++)
        cluster->fakes[w].n_at_once = n_at_once;
    client_init(&c, cluster, true);
    uint32_t n_submitted = 0, n_open = 0, first_open = 0;
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    do {
        if (host_now_ns() > deadline_ns)
            fail_msg("seed %llu hangs", (unsigned long long)first_seed);
        while (n_submitted < N_JOBS && n_open < WINDOW && next_random(&seed) % 4 != 0) {
            struct order *o = &orders[n_submitted++];
            struct service_job *job =
                make_job(o, 1 + next_random(&seed) % 3, 1 + next_random(&seed) % 3,
                         1 + next_random(&seed) % 12);
            o->cancel_after_ends = next_random(&seed) % 6; /* the last end, too */
            service_submit(c.service, job);
            if (next_random(&seed) % 8 == 0)
                service_cancel(c.service, job);
            n_open++;
        }
        struct order *o = &orders[first_open + next_random(&seed) % WINDOW];
        if (o->job != NULL && next_random(&seed) % 3 == 0)
            service_cancel(c.service, o->job);
        if (!take_all(&c) && next_random(&seed) % 2 == 0)
            sched_yield();
        while (first_open < n_submitted && orders[first_open].job == NULL)
            first_open++;
        n_open = 0;
        for (uint32_t i = first_open; i < n_submitted; i++)
            n_open += orders[i].job != NULL;
    } while (n_open > 0 || n_submitted < N_JOBS);
    client_stop(&c);
    take_all(&c);
    for (uint32_t i = 0; i < N_JOBS; i++)
        for (uint32_t k = 0; k < orders[i].n_choices; k++) {
            assert_true(orders[i].has_ended[k]);
            if (orders[i].reasons[k] != FINISH_CANCELLED)
                assert_int_equal(orders[i].reasons[k], FINISH_LENGTH);
        }
    assert_int_equal(c.n_lost, 0);
    client_close(&c);
    free(orders);
}

static void test_service_survives_storms_of_cancels(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++)
        storm(seed, 0);
}

static void test_service_survives_storms_where_only_cancels_end(void **state)
{
    (void)state;
    for (uint64_t seed = 11; seed <= 13; seed++)
        storm(seed, 2);
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
        cmocka_unit_test(test_service_survives_storms_of_cancels),
        cmocka_unit_test(test_service_survives_storms_where_only_cancels_end),
        cmocka_unit_test(test_service_tells_a_lost_cluster_once),
        cmocka_unit_test(test_service_brings_stats_while_jobs_run_and_after),
        cmocka_unit_test(test_service_fails_a_choice_whose_prompt_rows_are_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
