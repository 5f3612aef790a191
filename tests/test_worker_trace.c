/* worker: messages in the trace, and how it answers when asked for it: in pieces, between its work,
 * within a window. */
#include "tests/worker_world.h"

#include <stdlib.h>

/* All pieces of one answer put together. */
struct answer {
    struct trace_record *records;
    size_t n, n_pieces;
    uint64_t n_lost;
    bool has_stats; /* the answer to a question asked in between came before its last piece */
};

static void ask(struct world *w, uint64_t tag, uint64_t window_ns)
{
    struct control_message m = {.kind = CONTROL_TRACE_REQUEST};
    m.trace_request = (struct control_trace_request){.tag = tag, .window_ns = window_ns};
    send_control(w, &m);
}

/* Takes in the answer to `tag`, whatever else comes. */
static struct answer take_answer(struct world *w, uint64_t tag)
{
    struct answer a = {0};
    for (bool is_last = false; !is_last;) {
        struct control_message m = receive_any(w, "an answer");
        if (m.kind == CONTROL_STATS) {
            a.has_stats = true;
        } else {
            assert_int_equal(m.kind, CONTROL_TRACE);
            if (m.trace.tag == tag) {
                is_last = m.trace.is_last;
                assert_true(is_last || m.trace.n > 0);
                assert_true(m.trace.n * sizeof *m.trace.records < 1 << 20);
                assert_true(m.trace.n_lost >= a.n_lost);
                a.n_lost = m.trace.n_lost;
                a.n_pieces++;
                a.records = realloc(a.records, (a.n + m.trace.n + 1) * sizeof *a.records);
                if (m.trace.n > 0)
                    memcpy(a.records + a.n, m.trace.records, m.trace.n * sizeof *m.trace.records);
                a.n += m.trace.n;
            }
        }
        control_clear(&m);
    }
    return a;
}

static const struct trace_record *find(const struct answer *a, enum trace_kind kind)
{
    for (size_t i = 0; i < a->n; i++)
        if (a->records[i].kind == kind)
            return &a->records[i];
    fail_msg("no record of kind %d among %zu", (int)kind, a->n);
    return NULL;
}

static size_t count(const struct answer *a, enum trace_kind kind)
{
    size_t n = 0;
    for (size_t i = 0; i < a->n; i++)
        n += a->records[i].kind == kind;
    return n;
}

/* Notes without frames: each makes one record and moves nothing. */
static void send_notes(struct world *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        send_bundle(w, i % 2 ? BUNDLE_DONE : BUNDLE_BUSY, 0);
}

/* The worker has taken in all that was sent before. Returns how many records it has made. */
static uint64_t await(struct world *w)
{
    send_control(w, &(struct control_message){.kind = CONTROL_STATS_REQUEST});
    return receive(w, CONTROL_STATS).stats.n_trace_records;
}

/* ... also what rank 2 has sent, whose messages may come later than ours. */
static uint64_t await_records(struct world *w, uint64_t n)
{
    const uint64_t deadline_ns = host_now_ns() + PATIENCE_NS;
    uint64_t n_made = 0;
    while ((n_made = await(w)) < n)
        if (host_now_ns() > deadline_ns)
            fail_msg("%llu records of %llu were made", (unsigned long long)n_made,
                     (unsigned long long)n);
    return n_made;
}

static void end(struct world *w)
{
    send_control(w, &(struct control_message){.kind = CONTROL_SHUTDOWN});
    receive(w, CONTROL_GOODBYE);
    world_close(w);
    assert_int_equal(w->status, STATUS_OK);
}

static void test_worker_trace_has_messages_beside_the_stages_records(void **state)
{
    (void)state;
    struct world w;
    world_open_traced(&w, 2, 1 << 20);
    open_sequence(&w, 1);
    const uint64_t begin_ns = host_now_ns();
    send_bundle(&w, 0, 1);
    struct control_message m = receive(&w, CONTROL_TOKENS);
    control_clear(&m);
    ask(&w, 11, 0);
    struct answer a = take_answer(&w, 11);
    const uint64_t end_ns = host_now_ns();
    assert_int_equal(a.n_pieces, 1);
    assert_int_equal(a.n_lost, 0);
    const struct trace_record *r = find(&a, TRACE_RECEIVE);
    assert_int_equal(count(&a, TRACE_RECEIVE), 1);
    assert_int_equal(r->peer, 2);
    assert_int_equal(r->message.n_frames, 1);
    assert_int_equal(r->message.n_bytes,
                     bundle_header_bytes() + frame_bytes(2, 1, FRAME_LIVE, D_MODEL));
    assert_true(begin_ns <= r->at_ns && r->lasted_ns > 0 && r->at_ns + r->lasted_ns <= end_ns);
    const struct trace_record *rows = find(&a, TRACE_ROWS), *batch = find(&a, TRACE_BATCH);
    assert_int_equal(rows->peer, 2);
    assert_int_equal(rows->loop, 2);
    assert_int_equal(rows->flags, TRACE_LIVE | TRACE_EXIT);
    assert_true(rows->at_ns >= r->at_ns && rows->rows.wait_ns < end_ns - begin_ns);
    assert_true(batch->batch.head_ns > 0 && batch->batch.head_ns <= batch->lasted_ns);
    assert_int_equal(count(&a, TRACE_SEND), 0);
    /* The idle span is told up to the question. */
    const struct trace_record *last = &a.records[a.n - 1];
    assert_int_equal(last->kind, TRACE_IDLE);
    assert_int_equal(last->at_ns, batch->at_ns + batch->lasted_ns);
    free(a.records);
    end(&w);
}

static void test_worker_trace_has_what_it_sends(void **state)
{
    (void)state;
    struct world w;
    world_open_traced(&w, 2, 1 << 20);
    struct control_message m = {.kind = CONTROL_OPEN};
    sequence_params_init(&m.open); /* all loops: loop 1 here, loop 2 on rank 2 */
    m.open.sequence = 5;
    m.open.prompt_tokens = m.open.max_tokens = 1;
    m.open.max_loops = 2;
    send_control(&w, &m);
    receive(&w, CONTROL_OPENED);
    send_prompt(&w, 5);
    struct transport_message *message = NULL;
    size_t n_frames_bytes = 0;
    uint32_t n_messages = 0;
    while (n_frames_bytes == 0) { /* notes come first */
        assert_int_equal(transport_wait(w.ranks[2], PATIENCE_NS, NULL), STATUS_OK);
        while (transport_poll(w.ranks[2], &message, NULL) == STATUS_OK && message != NULL) {
            n_messages++;
            if (message->len_bytes > bundle_header_bytes())
                n_frames_bytes = message->len_bytes;
            transport_release(w.ranks[2], message);
        }
    }
    ask(&w, 1, 0);
    struct answer a = take_answer(&w, 1);
    assert_int_equal(count(&a, TRACE_SEND), n_messages);
    const struct trace_record *r = find(&a, TRACE_SEND);
    while (r->kind != TRACE_SEND || r->message.n_frames == 0)
        assert_true(++r < a.records + a.n);
    assert_int_equal(r->peer, 2);
    assert_int_equal(r->message.n_bytes, n_frames_bytes);
    assert_int_equal(find(&a, TRACE_RECEIVE)->peer, 0);
    free(a.records);
    end(&w);
}

static void test_worker_answers_in_pieces_between_its_work(void **state)
{
    (void)state;
    enum { N_NOTES = 40000 };
    struct world w;
    world_open_traced(&w, 2, 8 << 20);
    send_notes(&w, N_NOTES);
    await_records(&w, N_NOTES);
    bool has_stats = false;
    for (uint64_t tag = 1; tag <= 50 && !has_stats; tag++) {
        /* What is asked meanwhile is answered between the pieces, unless they are all out before
         * this thread has asked. */
        ask(&w, tag, 0);
        send_control(&w, &(struct control_message){.kind = CONTROL_STATS_REQUEST});
        struct answer a = take_answer(&w, tag);
        assert_int_equal(a.n_pieces, 3);
        assert_int_equal(count(&a, TRACE_RECEIVE), N_NOTES);
        for (size_t i = 1; i < a.n; i++) /* oldest first */
            assert_true(a.records[i - 1].at_ns <= a.records[i].at_ns ||
                        a.records[i].kind == TRACE_IDLE);
        has_stats = a.has_stats;
        free(a.records);
        if (!has_stats)
            receive(&w, CONTROL_STATS);
    }
    assert_true(has_stats);
    /* A new question ends the answer to the one before. */
    ask(&w, 70, 0);
    ask(&w, 71, 0);
    struct answer a = take_answer(&w, 71);
    assert_int_equal(count(&a, TRACE_RECEIVE), N_NOTES);
    free(a.records);
    end(&w);
}

static void test_worker_trace_window_is_by_its_own_clock(void **state)
{
    (void)state;
    enum { WINDOW_NS = 1000 * 1000 };
    struct world w;
    world_open_traced(&w, 2, 1 << 20);
    send_notes(&w, 10);
    await_records(&w, 10);
    uint64_t now_ns = host_now_ns();
    const uint64_t until_ns = now_ns + 2 * WINDOW_NS;
    while (now_ns < until_ns)
        now_ns = host_now_ns();
    ask(&w, 3, WINDOW_NS);
    struct answer a = take_answer(&w, 3);
    for (size_t i = 0; i < a.n; i++)
        assert_true(a.records[i].at_ns + a.records[i].lasted_ns >= now_ns - WINDOW_NS);
    assert_int_equal(a.n, 1); /* it has been idle since long before that */
    assert_int_equal(a.records[0].kind, TRACE_IDLE);
    free(a.records);
    ask(&w, 4, UINT64_MAX);
    a = take_answer(&w, 4);
    assert_int_equal(count(&a, TRACE_RECEIVE), 10);
    free(a.records);
    end(&w);
}

static void test_worker_trace_says_how_much_is_lost(void **state)
{
    (void)state;
    struct world w;
    world_open_traced(&w, 2, 64 * sizeof(struct trace_record));
    send_notes(&w, 200);
    uint64_t n_made = await_records(&w, 200);
    ask(&w, 3, 0);
    struct answer a = take_answer(&w, 3);
    assert_int_equal(a.n, 64);
    assert_in_range(a.n_lost + a.n, n_made, n_made + 1); /* the idle span's */
    free(a.records);
    end(&w);
}

static void test_worker_without_a_trace_has_nothing_to_tell(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, 2);
    send_notes(&w, 4);
    assert_int_equal(await(&w), 0);
    ask(&w, 3, 0);
    struct answer a = take_answer(&w, 3);
    assert_int_equal(a.n, 0);
    assert_int_equal(a.n_pieces, 1);
    free(a.records);
    end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_trace_has_messages_beside_the_stages_records),
        cmocka_unit_test(test_worker_trace_has_what_it_sends),
        cmocka_unit_test(test_worker_answers_in_pieces_between_its_work),
        cmocka_unit_test(test_worker_trace_window_is_by_its_own_clock),
        cmocka_unit_test(test_worker_trace_says_how_much_is_lost),
        cmocka_unit_test(test_worker_without_a_trace_has_nothing_to_tell),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
