/* A cluster of one real coordinator and scripted workers, each a thread on the in-process
 * transport.
 *
 * A fake worker shakes hands as its hello and ready say, acknowledges, and answers a prompt with
 * the tokens 0, 1, 2, 3, 0, 1, ... ("a", "b", "c", "d", "a", ...). Set a fake's fields before
 * cluster_run_fakes; read what it has seen after cluster_close. */
#ifndef TESTS_FAKE_WORKER_H
#define TESTS_FAKE_WORKER_H

#include "tests/tiny_checkpoint.h"
#include "tests/unit.h"

#include "cluster/host.h"
#include "coordinator/coordinator.h"
#include "proto/frame.h"

#include <pthread.h>
#include <time.h>

enum { FAKE_MAX_WORKERS = 4, FAKE_MAX_SEQUENCES = 512 };
#define FAKE_PATIENCE_NS UINT64_C(20000000000) /* a test that hangs ends after this */

struct fake {
    struct transport *transport;
    pthread_t thread;
    const struct model_config *model;
    /* what it does */
    struct control_hello hello;
    struct control_ready ready;
    bool is_silent; /* says nothing at all until shutdown */
    bool refuses_open, ignores_open, leaves_on_open, ignores_stats, ignores_trace;
    int64_t clock_ahead_ns;                            /* its clock less the real one */
    struct loop_timing timings[4][SEQUENCE_MAX_LOOPS]; /* of the tokens, by turns */
    uint32_t n_at_once; /* stops after that many tokens of a sequence; 0 = goes on to the end */
    bool observes_late; /* sends an observation when it is asked to close */
    uint32_t n_reports; /* of targets, sent after a sequence's tokens */
    bool swaps_tokens;  /* the later of two tokens is sent first */
    uint32_t n_chunks;  /* of its trace, 3 records each; 0 = it leaves when it is asked */
    uint64_t chunk_ns;  /* it rests so long before each of them */
    bool leaves_after_trace;
    bool quits; /* after a failed ready it says so again and is gone, as a worker does */
    /* what it saw */
    struct control_welcome welcome;
    struct control_sequence shutdown;
    bool has_welcome, has_shutdown, has_left;
    struct control_trace_request trace_request;
    uint32_t n_traces, n_opens, n_prompts, n_closes, n_prompt_rows;
    struct sequence_params params[FAKE_MAX_SEQUENCES];
};

static inline void fake_send(struct fake *f, const struct control_message *m)
{
    struct transport_message *message = NULL;
    if (transport_acquire(f->transport, control_size(m), &message, NULL) != STATUS_OK)
        abort();
    message->len_bytes = control_encode(m, message->bytes, message->cap_bytes);
    if (transport_post(f->transport, 0, message, NULL) != STATUS_OK)
        abort();
}

static inline void fake_answer(struct fake *f, enum control_kind kind, uint64_t sequence,
                               enum status failure, const char *message)
{
    struct control_message m = {.kind = kind, .sequence.sequence = sequence};
    m.sequence.failure = failure;
    snprintf(m.sequence.message, sizeof m.sequence.message, "%s", message);
    fake_send(f, &m);
}

static inline void fake_generate(struct fake *f, const struct sequence_params *p)
{
    uint32_t n = f->n_at_once != 0 && f->n_at_once < p->max_tokens ? f->n_at_once : p->max_tokens;
    struct control_token tokens[2]; /* two a message, so that some arrive after a stop */
    struct control_message m = {.kind = CONTROL_TOKENS, .tokens = {.items = tokens}};
    bool is_last = false;
    for (uint32_t i = 0; i < n && !is_last; i++) {
        struct control_token *t = &tokens[m.tokens.n++];
        memset(t, 0, sizeof *t);
        t->sequence = p->sequence;
        t->position = p->prompt_tokens + i;
        t->id = (int32_t)(i % 4);
        t->exit_loop = 1 + i % 3;
        memcpy(t->timings, f->timings[i % 4], sizeof t->timings);
        is_last = i + 1 == p->max_tokens;
        for (uint32_t k = 0; k < p->n_stop_ids; k++)
            is_last = is_last || p->stop_ids[k] == t->id;
        t->is_last = is_last;
        if (m.tokens.n == 2 || i + 1 == n || is_last) {
            if (f->swaps_tokens && m.tokens.n == 2) {
                const struct control_token later = tokens[1];
                tokens[1] = tokens[0];
                tokens[0] = later;
            }
            fake_send(f, &m);
            m.tokens.n = 0;
        }
    }
}

static inline void fake_report(struct fake *f, const struct sequence_params *p)
{
    for (uint32_t i = 0; i < f->n_reports; i++) {
        struct control_observation row = {.sequence = p->sequence,
                                          .position = i / 3,
                                          .loop = 1 + i % 3,
                                          .lambda = 0.25f,
                                          .has_target = true,
                                          .logprob = -1.0f};
        const struct control_message m = {.kind = CONTROL_OBSERVATIONS,
                                          .observations = {.n = 1, .items = &row}};
        fake_send(f, &m);
    }
}

static inline void fake_take_bundle(struct fake *f, const struct transport_message *message)
{
    const struct frame_limits limits = {.d_model = (uint32_t)f->model->d_model,
                                        .n_loops = (uint32_t)f->model->n_loops,
                                        .max_positions = (uint32_t)f->model->max_positions,
                                        .vocab_size = (uint32_t)f->model->vocab_size};
    struct bundle_reader r;
    struct frame frame;
    bool has_frame;
    if (bundle_open(&r, message->bytes, message->len_bytes, &limits, NULL) != STATUS_OK)
        abort();
    while (bundle_next(&r, &frame, &has_frame, NULL) == STATUS_OK && has_frame) {
        const struct sequence_params *p = &f->params[frame.sequence % FAKE_MAX_SEQUENCES];
        if (frame.loop != 1 || frame.first_position != 0 || frame.flags != FRAME_LIVE ||
            frame.n_rows != p->prompt_tokens || p->sequence != frame.sequence)
            abort();
        f->n_prompts++;
        f->n_prompt_rows += frame.n_rows;
        fake_generate(f, p);
        fake_report(f, p);
    }
}

static inline void fake_open(struct fake *f, const struct sequence_params *p)
{
    f->n_opens++;
    f->params[p->sequence % FAKE_MAX_SEQUENCES] = *p;
    if (f->leaves_on_open) {
        const struct control_message m = {.kind = CONTROL_GOODBYE,
                                          .goodbye_rank = (uint32_t)f->transport->rank};
        fake_send(f, &m);
    } else if (f->refuses_open) {
        fake_answer(f, CONTROL_OPENED, p->sequence, STATUS_NO_MEMORY, "the pool is full");
    } else if (!f->ignores_open) {
        fake_answer(f, CONTROL_OPENED, p->sequence, STATUS_OK, "");
    }
}

static inline void fake_close(struct fake *f, uint64_t sequence)
{
    f->n_closes++;
    if (f->observes_late) {
        const int32_t id = 3;
        const float logit = 0.5f;
        struct control_observation row = {.sequence = sequence,
                                          .position = 1,
                                          .loop = 2,
                                          .lambda = 0.25f,
                                          .n_top = 1,
                                          .top_ids = &id,
                                          .top_logits = &logit};
        const struct control_message m = {.kind = CONTROL_OBSERVATIONS,
                                          .observations = {.n = 1, .items = &row}};
        fake_send(f, &m);
    }
    fake_answer(f, CONTROL_CLOSED, sequence, STATUS_OK, "");
}

/* Record i says 10 * rank + i and when it was made, by this worker's clock. */
static inline void fake_trace(struct fake *f, const struct control_trace_request *q)
{
    f->trace_request = *q;
    f->n_traces++;
    if (f->ignores_trace)
        return;
    for (uint32_t i = 0; i < f->n_chunks; i++) {
        struct trace_record records[3];
        memset(records, 0, sizeof records);
        nanosleep(&(struct timespec){.tv_nsec = (long)f->chunk_ns}, NULL);
        for (uint32_t k = 0; k < 3; k++) {
            records[k].kind = TRACE_POOL;
            records[k].at_ns = host_now_ns() + (uint64_t)f->clock_ahead_ns;
            records[k].pool.ready_rows = (uint32_t)f->transport->rank * 10 + i * 3 + k;
        }
        const struct control_message m = {.kind = CONTROL_TRACE,
                                          .trace = {.tag = q->tag,
                                                    .n_lost = (uint32_t)f->transport->rank * 100,
                                                    .is_last = i + 1 == f->n_chunks,
                                                    .n = 3,
                                                    .records = records}};
        fake_send(f, &m);
    }
}

static inline void fake_control(struct fake *f, const struct control_message *m)
{
    struct control_message answer;
    memset(&answer, 0, sizeof answer);
    switch (m->kind) {
    case CONTROL_WELCOME:
        f->welcome = m->welcome;
        f->has_welcome = true;
        answer.kind = CONTROL_READY;
        answer.ready = f->ready;
        fake_send(f, &answer);
        if (f->quits) {
            fake_answer(f, CONTROL_SHUTDOWN, 0, f->ready.failure, "leaving");
            f->has_left = true;
        }
        break;
    case CONTROL_OPEN:
        fake_open(f, &m->open);
        break;
    case CONTROL_CLOSE:
        fake_close(f, m->sequence.sequence);
        break;
    case CONTROL_STATS_REQUEST:
        answer.kind = CONTROL_STATS;
        answer.stats.tag = m->stats.tag;
        answer.stats.clock_ns = host_now_ns() + (uint64_t)f->clock_ahead_ns;
        answer.stats.n_rows = (uint64_t)f->transport->rank * 10;
        if (!f->ignores_stats)
            fake_send(f, &answer);
        break;
    case CONTROL_TRACE_REQUEST:
        if (f->n_chunks == 0) {
            fake_answer(f, CONTROL_SHUTDOWN, 0, STATUS_NO_MEMORY, "the records do not fit");
            f->has_left = true;
        }
        fake_trace(f, &m->trace_request);
        if (f->leaves_after_trace) {
            fake_answer(f, CONTROL_SHUTDOWN, 0, STATUS_IO, "out of work");
            f->has_left = true;
        }
        break;
    case CONTROL_SHUTDOWN:
        f->shutdown = m->shutdown;
        f->has_shutdown = true;
        answer.kind = CONTROL_GOODBYE;
        answer.goodbye_rank = (uint32_t)f->transport->rank;
        if (!f->is_silent)
            fake_send(f, &answer);
        break;
    default:
        abort();
    }
}

static inline void *fake_main(void *arg)
{
    struct fake *f = arg;
    const uint64_t deadline_ns = host_now_ns() + FAKE_PATIENCE_NS;
    if (!f->is_silent) {
        const struct control_message hello = {.kind = CONTROL_HELLO, .hello = f->hello};
        fake_send(f, &hello);
    }
    while (!f->has_shutdown && !f->has_left && host_now_ns() < deadline_ns) {
        struct transport_message *message = NULL;
        struct control_message m;
        int kind;
        if (transport_poll(f->transport, &message, NULL) != STATUS_OK)
            abort();
        if (message == NULL) {
            transport_wait(f->transport, 1000000000, NULL);
            continue;
        }
        if (message_kind(message->bytes, message->len_bytes, &kind, NULL) != STATUS_OK)
            abort();
        if (kind == MESSAGE_BUNDLE) {
            fake_take_bundle(f, message);
        } else {
            if (control_decode(message->bytes, message->len_bytes, &m, NULL) != STATUS_OK)
                abort();
            fake_control(f, &m);
            control_clear(&m);
        }
        transport_release(f->transport, message);
    }
    while (!transport_is_drained(f->transport) && host_now_ns() < deadline_ns) {
        struct transport_message *message = NULL;
        transport_poll(f->transport, &message, NULL);
        if (message != NULL)
            transport_release(f->transport, message);
    }
    return NULL;
}

/* ---- the cluster ---------------------------------------------------------------------------- */

struct cluster {
    char *dir;
    struct checkpoint *checkpoint;
    struct tokenizer *tokenizer;
    uint32_t n_workers;
    struct transport *transports[FAKE_MAX_WORKERS + 1];
    struct fake fakes[FAKE_MAX_WORKERS];
    bool are_running;
    struct coordinator_config config;
    struct coordinator *coordinator;
};

static const char FAKE_TOKENIZER[] =
    "{\"version\":\"1.0\",\"normalizer\":null,\"added_tokens\":[],"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
    "\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\"},"
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"e\":4},\"merges\":[]}"
    "}";

/* T = 3, vocabulary of 5, context of 32; every worker has 12 blocks of 4 positions. */
static inline struct cluster *cluster_open(uint32_t n_workers)
{
    struct err err = {0};
    struct tiny_checkpoint tiny;
    struct cluster *c = calloc(1, sizeof *c);
    assert_non_null(c);
    c->dir = model_files_dir();
    c->n_workers = n_workers;
    tiny_init(&tiny, 1);
    tiny_write(&tiny, TINY_OURO_CONFIG, c->dir);
    if (checkpoint_open(c->dir, 0, &c->checkpoint, &err) != STATUS_OK ||
        tokenizer_parse(FAKE_TOKENIZER, sizeof FAKE_TOKENIZER - 1, "fake", &c->tokenizer, &err) ||
        transport_inproc_create((int)n_workers + 1, c->transports, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    for (uint32_t w = 0; w < n_workers; w++) {
        struct fake *f = &c->fakes[w];
        f->transport = c->transports[w + 1];
        f->model = &c->checkpoint->config;
        f->hello = (struct control_hello){.protocol = CONTROL_PROTOCOL_VERSION,
                                          .rank = w + 1,
                                          .host = "nodea",
                                          .version = CAROUSEL_VERSION,
                                          .backend = "cpu",
                                          .isa = "avx512",
                                          .fingerprint = c->checkpoint->fingerprint,
                                          .memory_available_bytes = 1 << 30,
                                          .n_cores = 8};
        host_boot_id(f->hello.boot_id, sizeof f->hello.boot_id);
        f->ready = (struct control_ready){.n_kv_blocks = 12, .block_size = 4, .n_row_slots = 48};
    }
    c->config = (struct coordinator_config){.max_queue = 4,
                                            .max_running = 2,
                                            .block_size = 4,
                                            .kv_dtype = DTYPE_F32,
                                            .start_timeout_ns = FAKE_PATIENCE_NS,
                                            .answer_timeout_ns = FAKE_PATIENCE_NS};
    return c;
}

/* Runs the fakes and shakes hands. */
static inline enum status cluster_start(struct cluster *c, struct err *err)
{
    for (uint32_t w = 0; w < c->n_workers; w++)
        assert_int_equal(pthread_create(&c->fakes[w].thread, NULL, fake_main, &c->fakes[w]), 0);
    c->are_running = true;
    enum status st = coordinator_create(c->transports[0], c->checkpoint, c->tokenizer, &c->config,
                                        &c->coordinator, err);
    return st != STATUS_OK ? st : coordinator_start(c->coordinator, err);
}

/* After this the fakes' fields may be read. */
static inline void cluster_stop(struct cluster *c)
{
    if (c->coordinator != NULL)
        coordinator_shutdown(c->coordinator);
    for (uint32_t w = 0; c->are_running && w < c->n_workers; w++)
        pthread_join(c->fakes[w].thread, NULL);
    c->are_running = false;
}

static inline void cluster_close(struct cluster *c)
{
    cluster_stop(c);
    coordinator_destroy(c->coordinator);
    for (uint32_t r = 0; r <= c->n_workers; r++)
        transport_destroy(c->transports[r]);
    tokenizer_free(c->tokenizer);
    checkpoint_close(c->checkpoint);
    model_files_remove(c->dir);
    free(c);
}

#endif
