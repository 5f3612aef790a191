/* What the tests of the service share: a client that checks every delivery, and an engine that is
 * stepped by hand or runs on a thread of its own, over scripted workers. */
#ifndef TESTS_SERVICE_CLIENT_H
#define TESTS_SERVICE_CLIENT_H

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

static inline void on_mail(void *user)
{
    struct client *c = user;
    atomic_fetch_add(&c->n_mails, 1);
    assert(atomic_load(&c->n_mails) <= atomic_load(&c->n_steps));
    sem_post(&c->mail);
}

static inline enum status step(struct client *c, struct err *err)
{
    atomic_fetch_add(&c->n_steps, 1);
    return service_step(c->service, 1000000000, err);
}

static inline void *engine_main(void *user)
{
    struct client *c = user;
    while (!atomic_load(&c->is_over) && step(c, NULL) == STATUS_OK)
        continue;
    return NULL;
}

static inline void client_init(struct client *c, struct cluster *cluster, bool has_thread)
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

static inline void client_stop(struct client *c)
{
    atomic_store(&c->is_over, true);
    service_wake(c->service);
    if (c->has_thread)
        pthread_join(c->thread, NULL);
    c->has_thread = false;
}

static inline void client_close(struct client *c)
{
    client_stop(c);
    service_destroy(c->service);
    free(c->snapshot);
    sem_destroy(&c->mail);
    cluster_close(c->cluster);
}

static inline void take_ended(struct client *c, struct order *o, const struct delivery *d)
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

static inline void take(struct client *c, const struct delivery *d)
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
static inline bool take_all(struct client *c)
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
static inline struct service_job *make_job(struct order *o, uint32_t n_prompts, uint32_t n,
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

static inline void run_until_ended(struct client *c, const struct order *orders, size_t n)
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

#endif
