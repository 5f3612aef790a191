/* A coordinator and real workers: the times of a token's loops are what has passed at the
 * coordinator, but for the way there. */
#include "tests/tiny_checkpoint.h"
#include "tests/unit.h"

#include "cluster/host.h"
#include "coordinator/coordinator.h"
#include "worker/worker.h"

#include <pthread.h>

enum { N_WORKERS = 2, N_TOKENS = 24, MAX_LOOPS = 3 };
#define PATIENCE_NS UINT64_C(20000000000)

struct world_worker {
    struct transport *transport;
    struct worker_config config;
    pthread_t thread;
    enum status status;
    struct err err;
};

static void *worker_main(void *arg)
{
    struct world_worker *w = arg;
    w->status = worker_run(w->transport, &w->config, &w->err);
    return NULL;
}

/* What one request saw. */
struct seen {
    uint32_t n_tokens, n_other_worker, n_same_worker;
    uint64_t at_ns[N_TOKENS];
    double sum_s[N_TOKENS];
    uint32_t last_worker;
    uint64_t started_ns;
    bool has_ended;
};

static void on_token(void *user, const struct completion_token *token)
{
    struct seen *s = user;
    const struct control_token *t = token->token;
    double sum_s = 0.0;
    for (uint32_t i = 0; i < t->exit_loop; i++) {
        const struct loop_timing *timing = &t->timings[i];
        assert_true(timing->wait_s >= 0.0f && timing->compute_s > 0.0f);
        /* A row hops where its worker changes, and nowhere else. */
        bool is_same = s->n_tokens + i > 0 && s->last_worker == token->workers[i];
        assert_true((timing->hop_s == 0.0) == is_same);
        is_same ? s->n_same_worker++ : s->n_other_worker++;
        s->last_worker = token->workers[i];
        sum_s += timing->hop_s + (double)timing->wait_s + (double)timing->compute_s;
    }
    s->sum_s[s->n_tokens] = sum_s;
    s->at_ns[s->n_tokens++] = token->at_ns;
}

static void on_end(void *user, const struct completion_end *end)
{
    struct seen *s = user;
    assert_string_equal(end->message, "");
    s->started_ns = end->started_ns;
    s->has_ended = true;
}

/* The coordinator knows when a token reached it, not how long that took: the times up to any token
 * fit into what has passed since the start, and of at least one token they are most of what has
 * passed since the one before. */
static void check(const struct seen *s)
{
    double all_s = 0.0, best = 0.0;
    assert_int_equal(s->n_tokens, N_TOKENS);
    for (uint32_t i = 0; i < N_TOKENS; i++) {
        uint64_t before_ns = i > 0 ? s->at_ns[i - 1] : s->started_ns;
        all_s += s->sum_s[i];
        double passed_s = (double)(s->at_ns[i] - s->started_ns) / 1e9;
        if (all_s > passed_s * (1 + 1e-6))
            fail_msg("up to token %u the loops took %.9f s; %.9f have passed", i, all_s, passed_s);
        double share = s->sum_s[i] / ((double)(s->at_ns[i] - before_ns) / 1e9);
        best = share > best ? share : best;
    }
    assert_true(best > 0.5);
    assert_true(s->n_same_worker > 0 && s->n_other_worker > 0);
}

static void test_loop_timings_are_the_time_that_passes(void **state)
{
    (void)state;
    struct tiny_checkpoint tiny;
    struct transport *ranks[N_WORKERS + 1];
    struct world_worker workers[N_WORKERS];
    struct checkpoint *checkpoint;
    struct coordinator *coordinator;
    struct err err = {0};
    char *dir = model_files_dir();
    tiny_init(&tiny, 1);
    tiny_write(&tiny, TINY_OURO_CONFIG, dir);
    assert_int_equal(checkpoint_open(dir, 0, &checkpoint, &err), STATUS_OK);
    assert_int_equal(transport_inproc_create(N_WORKERS + 1, ranks, &err), STATUS_OK);
    for (int i = 0; i < N_WORKERS; i++) {
        struct world_worker *w = &workers[i];
        *w = (struct world_worker){.transport = ranks[i + 1]};
        w->config = (struct worker_config){.model_dir = dir,
                                           .backend = "cpu",
                                           .kv_dtype_auto = true,
                                           .block_size = 4,
                                           .max_batch_rows = 16,
                                           .max_sequences = 2,
                                           .prefill_chunk = 8,
                                           .batching = BATCHING_KNEE};
        assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
    }
    const struct coordinator_config config = {.max_running = 2,
                                              .kv_bytes = 1 << 20,
                                              .block_size = 4,
                                              .kv_dtype = DTYPE_F32,
                                              .n_threads = 1};
    if (coordinator_create(ranks[0], checkpoint, NULL, &config, &coordinator, &err) != STATUS_OK ||
        coordinator_start(coordinator, &err) != STATUS_OK)
        fail_msg("%s", err.message);

    static const int32_t prompt[3] = {4, 0, 2};
    struct seen seen = {0};
    struct completion_request r = {
        .prompt_ids = prompt, .n_prompt = 3, .user = &seen, .on_token = on_token, .on_end = on_end};
    sequence_params_init(&r.params);
    r.params.max_tokens = N_TOKENS;
    r.params.exit_mode = EXIT_MODE_EXACT;
    r.params.n_force_exits = MAX_LOOPS;
    for (int t = 0; t < MAX_LOOPS; t++)
        r.params.force_exits[t] = 1.0f / MAX_LOOPS;
    assert_int_equal(coordinator_submit(coordinator, &r, NULL, &err), STATUS_OK);
    const uint64_t deadline_ns = host_now_ns() + PATIENCE_NS;
    while (!seen.has_ended && host_now_ns() < deadline_ns)
        if (coordinator_step(coordinator, 1000000000, &err) != STATUS_OK)
            fail_msg("%s", err.message);
    check(&seen);

    coordinator_shutdown(coordinator);
    for (int i = 0; i < N_WORKERS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].status, STATUS_OK);
    }
    coordinator_destroy(coordinator);
    for (int i = 0; i <= N_WORKERS; i++)
        transport_destroy(ranks[i]);
    checkpoint_close(checkpoint);
    model_files_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loop_timings_are_the_time_that_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
