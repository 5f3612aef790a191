/* worker: the driver between transport and stage, seen by a scripted coordinator and a scripted
 * ring mate. */
#include "tests/tiny_checkpoint.h"
#include "tests/unit.h"

#include "cluster/host.h"
#include "kernels/kernels.h"
#include "proto/control.h"
#include "proto/frame.h"
#include "worker/worker.h"

#include <pthread.h>

#define PATIENCE_NS UINT64_C(5000000000)
/* A wait for a mate that lasts to its deadline outlasts the test's patience. */
#define WAIT_NS UINT64_C(60000000000)

enum { D_MODEL = 6 };

/* Rank 0 and rank 2 are the test's, rank 1 is a worker. */
struct world {
    char *dir;
    struct transport *ranks[3];
    struct worker_config config;
    pthread_t thread;
    enum status status;
    struct err err;
};

static void *worker_main(void *arg)
{
    struct world *w = arg;
    w->status = worker_run(w->ranks[1], &w->config, &w->err);
    return NULL;
}

static void send_control(struct world *w, const struct control_message *m)
{
    struct transport_message *message;
    assert_int_equal(transport_acquire(w->ranks[0], control_size(m), &message, NULL), STATUS_OK);
    message->len_bytes = control_encode(m, message->bytes, message->cap_bytes);
    assert_int_equal(transport_post(w->ranks[0], 1, message, NULL), STATUS_OK);
}

/* The worker's next message to rank 0, which must be of this kind. */
static struct control_message receive(struct world *w, enum control_kind kind)
{
    struct control_message m;
    struct transport_message *message = NULL;
    const uint64_t deadline_ns = host_now_ns() + PATIENCE_NS;
    while (message == NULL && host_now_ns() < deadline_ns) {
        transport_wait(w->ranks[0], PATIENCE_NS / 10, NULL);
        assert_int_equal(transport_poll(w->ranks[0], &message, NULL), STATUS_OK);
    }
    if (message == NULL)
        fail_msg("no message of kind %d came", (int)kind);
    assert_int_equal(control_decode(message->bytes, message->len_bytes, &m, NULL), STATUS_OK);
    transport_release(w->ranks[0], message);
    assert_int_equal(m.kind, kind);
    return m;
}

static void world_open(struct world *w, uint32_t ring_size)
{
    struct tiny_checkpoint tiny;
    *w = (struct world){.dir = model_files_dir()};
    tiny_init(&tiny, 1);
    tiny_write(&tiny, TINY_OURO_CONFIG, w->dir);
    w->config = (struct worker_config){.model_dir = w->dir,
                                       .backend = "cpu",
                                       .kv_dtype_auto = true,
                                       .ring_size = ring_size,
                                       .block_size = 4,
                                       .max_batch_rows = 16,
                                       .max_sequences = 4,
                                       .prefill_chunk = 8,
                                       .batching = BATCHING_TICK,
                                       .wait_deadline_ns = WAIT_NS};
    assert_int_equal(transport_inproc_create(3, w->ranks, NULL), STATUS_OK);
    assert_int_equal(pthread_create(&w->thread, NULL, worker_main, w), 0);
    receive(w, CONTROL_HELLO);
    struct control_message welcome = {.kind = CONTROL_WELCOME};
    welcome.welcome.kv_bytes = 1 << 20;
    welcome.welcome.n_threads = 1;
    snprintf(welcome.welcome.isa, sizeof welcome.welcome.isa, "%s", kernels_cpu_best_isa());
    send_control(w, &welcome);
    struct control_message ready = receive(w, CONTROL_READY);
    assert_string_equal(ready.ready.message, "");
}

static void world_close(struct world *w)
{
    pthread_join(w->thread, NULL);
    for (int i = 0; i < 3; i++)
        transport_destroy(w->ranks[i]);
    model_files_remove(w->dir);
}

/* One token, as the coordinator sends it. */
static void send_prompt(struct world *w, uint64_t sequence)
{
    const struct frame frame = {.sequence = sequence,
                                .loop = 1,
                                .n_rows = 1,
                                .flags = FRAME_LIVE,
                                .survival = 1.0f,
                                .sent_ns = host_now_ns()};
    const int32_t id = 3;
    size_t cap_bytes = bundle_header_bytes() + frame_bytes(1, 1, FRAME_LIVE, D_MODEL);
    struct transport_message *message;
    struct bundle_writer writer;
    void *ids, *rows;
    assert_int_equal(transport_acquire(w->ranks[0], cap_bytes, &message, NULL), STATUS_OK);
    bundle_begin(&writer, message->bytes, message->cap_bytes, D_MODEL, 0, 0);
    assert_int_equal(bundle_add(&writer, &frame, &ids, &rows, NULL), STATUS_OK);
    memcpy(ids, &id, sizeof id);
    message->len_bytes = bundle_end(&writer);
    assert_int_equal(transport_post(w->ranks[0], 1, message, NULL), STATUS_OK);
}

/* A sequence of one prompt token and one output token, with loop 1 on rank 2 and loop 2 here. */
static void open_sequence(struct world *w, uint64_t sequence)
{
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = sequence;
    m.open.ring_offset = 1;
    m.open.prompt_tokens = m.open.max_tokens = 1;
    m.open.max_loops = 2;
    send_control(w, &m);
    struct control_message opened = receive(w, CONTROL_OPENED);
    assert_int_equal(opened.sequence.failure, STATUS_OK);
}

/* The loops of a token have taken some time, and no more than has passed. */
static void check_timings(const struct control_token *token, uint32_t n_loops, uint64_t passed_ns)
{
    double sum_s = 0.0;
    assert_int_equal(token->exit_loop, n_loops);
    for (uint32_t t = 0; t < n_loops; t++) {
        const struct loop_timing *timing = &token->timings[t];
        assert_true(timing->hop_s >= 0.0 && timing->compute_s > 0.0f);
        assert_true((timing->hop_s > 0.0) == (t == 0)); /* loop 2 runs on the same worker */
        sum_s += timing->hop_s + (double)timing->wait_s + (double)timing->compute_s;
    }
    assert_true(sum_s < (double)passed_ns / 1e9 * (1 + 1e-6));
}

static void test_worker_says_its_clock_with_its_counters(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1);
    const uint64_t begin_ns = host_now_ns();
    send_control(&w, &(struct control_message){.kind = CONTROL_STATS_REQUEST, .stats.tag = 9});
    struct control_message m = receive(&w, CONTROL_STATS);
    assert_int_equal(m.stats.tag, 9);
    assert_true(begin_ns <= m.stats.clock_ns && m.stats.clock_ns <= host_now_ns());
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
}

/* Its targets come with the open, serve the batch, and are freed by the close (leak checked). */
static void test_worker_reports_an_observed_sequence(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1);
    int32_t target = 2;
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = 7;
    m.open.prompt_tokens = m.open.max_tokens = 1;
    m.open.max_loops = 2;
    m.open.n_observe_targets = 1;
    m.open.observe_hidden = true;
    m.open_targets = &target;
    send_control(&w, &m);
    receive(&w, CONTROL_OPENED);
    const uint64_t begin_ns = host_now_ns();
    send_prompt(&w, 7);
    for (uint32_t loop = 1; loop <= 2; loop++) {
        m = receive(&w, CONTROL_OBSERVATIONS);
        assert_int_equal(m.observations.n, 1);
        const struct control_observation *o = &m.observations.items[0];
        assert_int_equal(o->sequence, 7);
        assert_int_equal(o->loop, loop);
        assert_true(o->has_target && o->logprob < 0 && o->n_hidden == D_MODEL && o->n_top == 0);
        control_clear(&m);
    }
    m = receive(&w, CONTROL_TOKENS);
    check_timings(&m.tokens.items[0], 2, host_now_ns() - begin_ns);
    control_clear(&m);
    m = (struct control_message){.kind = CONTROL_CLOSE};
    m.sequence.sequence = 7;
    send_control(&w, &m);
    receive(&w, CONTROL_CLOSED);
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
    assert_int_equal(w.status, STATUS_OK);
}

static void test_worker_refuses_a_target_outside_the_vocabulary(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1);
    int32_t target = 1 << 20;
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open);
    m.open.sequence = 7;
    m.open.prompt_tokens = m.open.max_tokens = m.open.max_loops = 1;
    m.open.n_observe_targets = 1;
    m.open_targets = &target;
    send_control(&w, &m);
    m = receive(&w, CONTROL_SHUTDOWN);
    assert_int_equal(m.shutdown.failure, STATUS_CORRUPT);
    assert_contains(m.shutdown.message, "target 0 of sequence 7 is 1048576");
    world_close(&w);
    assert_int_equal(w.status, STATUS_CORRUPT);
}

/* What rank 2 sends: flags, and the sequence's only row when it is not 0. */
static void send_bundle(struct world *w, uint32_t flags, uint64_t sequence)
{
    const struct frame frame = {.sequence = sequence,
                                .loop = 2,
                                .n_rows = 1,
                                .flags = FRAME_LIVE,
                                .survival = 0.5f,
                                .cdf = 0.5f};
    const float row[D_MODEL] = {1, 0.5f, -1, 2, 0, 1};
    const int32_t id = 3;
    size_t cap_bytes = bundle_header_bytes() + frame_bytes(2, 1, FRAME_LIVE, D_MODEL);
    struct transport_message *message;
    struct bundle_writer writer;
    void *ids, *rows;
    assert_int_equal(transport_acquire(w->ranks[2], cap_bytes, &message, NULL), STATUS_OK);
    bundle_begin(&writer, message->bytes, message->cap_bytes, D_MODEL, flags, 0);
    if (sequence != 0) {
        assert_int_equal(bundle_add(&writer, &frame, &ids, &rows, NULL), STATUS_OK);
        memcpy(ids, &id, sizeof id);
        memcpy(rows, row, sizeof row);
    }
    message->len_bytes = bundle_end(&writer);
    assert_int_equal(transport_post(w->ranks[2], 1, message, NULL), STATUS_OK);
}

/* A mate's rows come with the word that its batch is over. Who overhears that goes on waiting for a
 * batch that has long ended. */
static void test_worker_hears_that_a_batch_is_over_when_rows_come_with_it(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 2);
    open_sequence(&w, 1);
    open_sequence(&w, 2); /* with one sequence alone there is never a wait */
    send_bundle(&w, BUNDLE_BUSY, 0);
    send_bundle(&w, BUNDLE_DONE, 1);
    struct control_message m = receive(&w, CONTROL_TOKENS);
    assert_int_equal(m.tokens.n, 1);
    assert_int_equal(m.tokens.items[0].sequence, 1);
    assert_int_equal(m.tokens.items[0].exit_loop, 2);
    control_clear(&m);
    send_control(&w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(&w, CONTROL_GOODBYE);
    world_close(&w);
    assert_int_equal(w.status, STATUS_OK);
}

static void test_worker_refuses_a_word_from_outside_its_ring(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 1); /* rank 2 is a ring of its own */
    send_bundle(&w, BUNDLE_BUSY, 0);
    struct control_message m = receive(&w, CONTROL_SHUTDOWN);
    assert_int_equal(m.shutdown.failure, STATUS_CORRUPT);
    assert_contains(m.shutdown.message, "rank 2");
    world_close(&w);
    assert_int_equal(w.status, STATUS_CORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_says_its_clock_with_its_counters),
        cmocka_unit_test(test_worker_reports_an_observed_sequence),
        cmocka_unit_test(test_worker_refuses_a_target_outside_the_vocabulary),
        cmocka_unit_test(test_worker_hears_that_a_batch_is_over_when_rows_come_with_it),
        cmocka_unit_test(test_worker_refuses_a_word_from_outside_its_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
