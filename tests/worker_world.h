/* A worker between a scripted coordinator and a scripted ring mate, in one process. */
#ifndef TESTS_WORKER_WORLD_H
#define TESTS_WORKER_WORLD_H

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

static inline void *worker_main(void *arg)
{
    struct world *w = arg;
    w->status = worker_run(w->ranks[1], &w->config, &w->err);
    return NULL;
}

static inline void send_control(struct world *w, const struct control_message *m)
{
    struct transport_message *message;
    assert_int_equal(transport_acquire(w->ranks[0], control_size(m), &message, NULL), STATUS_OK);
    message->len_bytes = control_encode(m, message->bytes, message->cap_bytes);
    assert_int_equal(transport_post(w->ranks[0], 1, message, NULL), STATUS_OK);
}

/* The worker's next message to rank 0, waited for because of `what`. */
static inline struct control_message receive_any(struct world *w, const char *what)
{
    struct control_message m;
    struct transport_message *message = NULL;
    const uint64_t deadline_ns = host_now_ns() + PATIENCE_NS;
    while (message == NULL && host_now_ns() < deadline_ns) {
        transport_wait(w->ranks[0], PATIENCE_NS / 10, NULL);
        assert_int_equal(transport_poll(w->ranks[0], &message, NULL), STATUS_OK);
    }
    if (message == NULL)
        fail_msg("no message of %s came", what);
    assert_int_equal(control_decode(message->bytes, message->len_bytes, &m, NULL), STATUS_OK);
    transport_release(w->ranks[0], message);
    return m;
}

/* The same; it must be of this kind. */
static inline struct control_message receive(struct world *w, enum control_kind kind)
{
    char what[32];
    snprintf(what, sizeof what, "kind %d", (int)kind);
    struct control_message m = receive_any(w, what);
    assert_int_equal(m.kind, kind);
    return m;
}

/* trace_bytes: of the worker's trace; 0: it records nothing. */
static inline void world_open_flights(struct world *w, uint32_t ring_size, uint64_t trace_bytes,
                                      uint32_t n_in_flight)
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
                                       .n_in_flight = n_in_flight,
                                       .batching = BATCHING_TICK,
                                       .wait_deadline_ns = WAIT_NS,
                                       .trace_bytes = trace_bytes};
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

static inline void world_open_traced(struct world *w, uint32_t ring_size, uint64_t trace_bytes)
{
    world_open_flights(w, ring_size, trace_bytes, 1);
}

static inline void world_open(struct world *w, uint32_t ring_size)
{
    world_open_traced(w, ring_size, 0);
}

static inline void world_close(struct world *w)
{
    pthread_join(w->thread, NULL);
    for (int i = 0; i < 3; i++)
        transport_destroy(w->ranks[i]);
    model_files_remove(w->dir);
}

/* One token, as the coordinator sends it. */
static inline void send_prompt(struct world *w, uint64_t sequence)
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
static inline void open_sequence(struct world *w, uint64_t sequence)
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

/* What rank 2 sends: flags, and the sequence's only row when it is not 0. */
static inline void send_bundle(struct world *w, uint32_t flags, uint64_t sequence)
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

#endif
