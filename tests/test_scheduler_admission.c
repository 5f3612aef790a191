/* scheduler: who is admitted when, on which ring and at which offset; nothing is ever promised
 * twice. */
#include "tests/scheduler_tape.h"

#include <stdbool.h>

/* ---- the n-th allocation fails -------------------------------------------------------------- */

/* Sanitizers bring their own calloc and want to be alone with it. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CAN_FAIL_CALLOC 1
static int calloc_countdown = -1; /* fails the call that finds 0 */
void *__libc_calloc(size_t n, size_t size);
void *calloc(size_t n, size_t size)
{
    if (calloc_countdown >= 0 && calloc_countdown-- == 0)
        return NULL;
    return __libc_calloc(n, size);
}
#endif

static void test_scheduler_create_survives_every_failed_allocation(void **state)
{
    (void)state;
#ifdef CAN_FAIL_CALLOC
    const uint32_t blocks[2] = {10, 10};
    const struct scheduler_config config = {.n_workers = 2,
                                            .ring_size = 2,
                                            .n_loops = 4,
                                            .max_positions = 64,
                                            .block_size = 16,
                                            .n_blocks = blocks,
                                            .max_queue = 2,
                                            .max_running = 2};
    int n_failed = 0;
    for (;; n_failed++) {
        struct scheduler *s = NULL;
        struct err err = {0};
        calloc_countdown = n_failed;
        enum status st = scheduler_create(&config, &s, &err);
        bool has_failed = calloc_countdown < 0;
        calloc_countdown = -1;
        if (!has_failed) {
            assert_int_equal(st, STATUS_OK);
            scheduler_destroy(s);
            break;
        }
        assert_int_equal(st, STATUS_NO_MEMORY);
        assert_null(s);
    }
    assert_int_equal(n_failed, 10); /* every table was the one that failed once */
#else
    skip();
#endif
}

static void test_scheduler_create_names_what_is_wrong(void **state)
{
    (void)state;
    const uint32_t blocks[4] = {1, 1, 1, 1};
    const struct scheduler_config good = {.n_workers = 4,
                                          .ring_size = 2,
                                          .n_loops = 4,
                                          .max_positions = 64,
                                          .block_size = 16,
                                          .n_blocks = blocks,
                                          .max_queue = 2,
                                          .max_running = 2};
    struct scheduler_config bad[6];
    for (int i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].ring_size = 3;
    bad[1].n_loops = SEQUENCE_MAX_LOOPS + 1;
    bad[2].block_size = 0;
    bad[3].max_queue = 0;
    bad[4].max_running = 0;
    bad[5].max_running = UINT32_MAX;
    for (int i = 0; i < 6; i++) {
        struct scheduler *s = NULL;
        struct err err = {0};
        assert_int_equal(scheduler_create(&bad[i], &s, &err), STATUS_INVALID);
        assert_string_not_equal(err.message, "");
    }
}

/* ---- the queue ------------------------------------------------------------------------------ */

static void test_scheduler_queue_is_bounded(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 4); /* one request of 16 positions at a time */
    tape_expect(&t, "submit r1 8+8", "open w0 s1+0");
    for (int i = 2; i <= 9; i++) {
        char text[32];
        snprintf(text, sizeof text, "submit r%d 8+8", i);
        tape_expect(&t, text, "");
    }
    tape_expect(&t, "submit r10 8+8", "full");
    tape_expect(&t, "cancel r5", "end r5 cancelled");
    tape_expect(&t, "submit r10 8+8", "");
    tape_expect(&t, "submit r11 8+8", "full");
    scheduler_destroy(t.scheduler);
}

static void test_scheduler_admission_waits_for_blocks(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 8);
    /* 4 loops on 2 workers: 2 loops each, of 2 blocks: 4 of 8 on each. */
    tape_expect(&t, "submit r1 16+16", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "submit r2 16+16", "open w0 s2+1, open w1 s2+1");
    assert_int_equal(scheduler_blocks_reserved(t.scheduler, 0), 8);
    tape_expect(&t, "submit r3 16+17", "");
    tape_expect(&t, "opened w* s1", "start w0 s1");
    tape_expect(&t, "opened w* s2", "start w1 s2");
    tape_expect(&t, "cancel r1", "close w0 s1, close w1 s1, end r1 cancelled");
    tape_expect(&t, "closed w0 s1", ""); /* its blocks count until the last worker has let go */
    tape_expect(&t, "closed w1 s1", ""); /* r3 needs 6 of 8 */
    tape_expect(&t, "cancel r2", "close w0 s2, close w1 s2, end r2 cancelled");
    tape_expect(&t, "closed w* s2", "open w0 s3+0, open w1 s3+0");
    tape_expect(&t, "cancel r3", "close w0 s3, close w1 s3, end r3 cancelled");
    tape_expect(&t, "closed w* s3", "");
    tape_close(&t);
}

static void test_scheduler_nobody_overtakes_the_head(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 8);
    tape_expect(&t, "submit r1 8+8", "open w0 s1+0");
    tape_expect(&t, "submit r2 16+16", ""); /* needs all 8 */
    tape_expect(&t, "submit r3 8+8", "");   /* would fit, but r2 was first */
    tape_expect(&t, "submit r4 8+8", "");
    tape_expect(&t, "cancel r2", "end r2 cancelled, open w0 s2+0");
    tape_expect(&t, "cancel r1", "close w0 s1, end r1 cancelled");
    tape_expect(&t, "closed w0 s1", "open w0 s3+0");
    tape_expect(&t, "cancel r3", "close w0 s2, end r3 cancelled");
    tape_expect(&t, "cancel r4", "close w0 s3, end r4 cancelled");
    tape_expect(&t, "closed w0 s2", "");
    tape_expect(&t, "closed w0 s3", "");
    tape_close(&t);
}

static void test_scheduler_open_sequences_are_bounded(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 1, 1000);
    tape_expect(&t, "submit r1 8+8", "open w0 s1+0");
    tape_expect(&t, "submit r2 8+8", "open w0 s2+0");
    tape_expect(&t, "submit r3 8+8", "open w0 s3+0");
    tape_expect(&t, "submit r4 8+8", "open w0 s4+0");
    tape_expect(&t, "submit r5 8+8", "");
    tape_expect(&t, "cancel r2", "close w0 s2, end r2 cancelled");
    tape_expect(&t, "closed w0 s2", "open w0 s5+0");
    scheduler_destroy(t.scheduler);
}

static void test_scheduler_refuses_what_can_never_fit(void **state)
{
    (void)state;
    struct tape t;
    tape_open_ring(&t, 2, 8);
    tape_expect(&t, "submit r1 60+5", "invalid"); /* 5 blocks at 2 loops on each worker */
    assert_non_null(
        strstr(t.err.message, "need 10 KV blocks of 16 positions on rank 1, which has 8"));
    assert_non_null(strstr(t.err.message, "--kv-memory"));
    tape_expect(&t, "submit r1 60+5 loops 2", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "submit r2 1000+25 loops 1", "invalid");
    assert_non_null(strstr(t.err.message, "context_length_exceeded: the prompt has 1000 tokens and "
                                          "max_tokens is 25, together 1025; the model's context is "
                                          "1024"));
    tape_expect(&t, "submit r2 4294967295+4294967295", "invalid");
    tape_expect(&t, "submit r2 0+1", "invalid");
    tape_expect(&t, "submit r2 1+0", "invalid");
    tape_expect(&t, "submit r2 1+1 loops 5", "invalid");
    tape_expect(&t, "cancel r1", "close w0 s1, close w1 s1, end r1 cancelled");
    tape_expect(&t, "closed w* s1", "");
    tape_close(&t);
}

/* ---- placement ------------------------------------------------------------------------------ */

/* Submits n equal requests and writes their offsets as digits. */
static void place(struct tape *t, int n, char *offsets)
{
    for (int i = 0; i < n; i++) {
        char text[32];
        unsigned sequence, offset;
        snprintf(text, sizeof text, "submit r%d 8+8", i + 1);
        t->line[0] = '\0';
        tape_event(t, text);
        if (sscanf(t->line, "open w%*u s%u+%u", &sequence, &offset) != 2)
            fail_msg("%s gave %s", text, t->line);
        offsets[i] = (char)('0' + offset);
    }
    offsets[n] = '\0';
}

static void check_offsets(uint32_t n_workers, int n, const char *expected, uint32_t most_blocks)
{
    uint32_t blocks[16];
    char offsets[32];
    for (uint32_t w = 0; w < n_workers; w++)
        blocks[w] = 100;
    const struct scheduler_config config = {.n_workers = n_workers,
                                            .ring_size = n_workers,
                                            .n_loops = 4,
                                            .max_positions = 64,
                                            .block_size = 16,
                                            .n_blocks = blocks,
                                            .max_queue = 4,
                                            .max_running = 24};
    struct tape t;
    struct scheduler_load load;
    tape_open(&t, &config);
    place(&t, n, offsets);
    assert_string_equal(offsets, expected);
    scheduler_get_load(t.scheduler, &load);
    assert_int_equal(load.blocks_reserved_max, most_blocks);
    scheduler_destroy(t.scheduler);
}

static void test_scheduler_placement_rotates_offsets(void **state)
{
    (void)state;
    check_offsets(1, 3, "000", 12);
    check_offsets(2, 5, "01010", 10);
    check_offsets(4, 6, "012301", 6);
    /* W above T: the second sequence begins where the first one's loops end. */
    check_offsets(8, 4, "0415", 2);
    /* W not a multiple of T: 3 workers for 4 loops, and 6, stay level, too. */
    check_offsets(3, 6, "012012", 8);
    check_offsets(6, 6, "012435", 4);
}

static void test_scheduler_placement_prefers_the_empty_ring(void **state)
{
    (void)state;
    const uint32_t blocks[4] = {8, 8, 8, 6};
    const struct scheduler_config config = {.n_workers = 4,
                                            .ring_size = 2,
                                            .n_loops = 4,
                                            .max_positions = 64,
                                            .block_size = 16,
                                            .n_blocks = blocks,
                                            .max_queue = 4,
                                            .max_running = 4};
    struct tape t;
    tape_open(&t, &config);
    tape_expect(&t, "submit r1 16+16", "open w0 s1+0, open w1 s1+0");
    tape_expect(&t, "submit r2 8+8", "open w2 s2+0, open w3 s2+0");
    tape_expect(&t, "submit r3 8+8", "open w2 s3+1, open w3 s3+1");
    /* Both rings hold 4 a worker; ring 0 has fewer sequences. */
    tape_expect(&t, "submit r4 8+8", "open w0 s4+1, open w1 s4+1");
    /* Ring 1 is the emptier one, but 4 more do not fit on its small worker, nor on ring 0. */
    tape_expect(&t, "submit r5 16+16", "");
    tape_expect(&t, "opened w0 s2", "corrupt"); /* lives on the other ring */
    tape_expect(&t, "opened w2 s2", "");
    tape_expect(&t, "opened w3 s2", "start w2 s2");
    tape_expect(&t, "opened w2 s3", "");
    tape_expect(&t, "opened w3 s3", "start w3 s3"); /* offset 1 */
    tape_expect(&t, "cancel r4", "close w0 s4, close w1 s4, end r4 cancelled");
    tape_expect(&t, "closed w0 s4", "");
    tape_expect(&t, "closed w1 s4", "open w0 s5+1, open w1 s5+1");
    scheduler_destroy(t.scheduler);
}

/* ---- any order of events -------------------------------------------------------------------- */

enum { WORKERS = 6, RING = 3, MAX_OPEN = 5, MAX_REQUESTS = 400, MAX_SEQUENCES = 400 };

/* The workers' side, as little of it as the scheduler can see. */
struct world {
    struct scheduler *scheduler;
    uint64_t random;
    struct {
        bool is_taken;
        int n_ends;
    } requests[MAX_REQUESTS + 1];
    struct {
        uint64_t request;
        uint32_t ring, prompt, max_tokens, n_tokens;
        uint8_t owes_opened[RING], owes_closed[RING];
        bool is_started, is_closing;
    } sequences[MAX_SEQUENCES + 1];
    uint64_t n_sequences;
};

static uint32_t draw(struct world *w, uint32_t n)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->random >> 33) % n;
}

static void world_take(struct world *w, const struct scheduler_action *a)
{
    uint32_t i = a->worker % RING;
    switch (a->kind) {
    case SCHEDULER_SEND_OPEN:
        assert_true(a->sequence == w->n_sequences || a->sequence == w->n_sequences + 1);
        w->n_sequences = a->sequence;
        w->sequences[a->sequence].request = a->request;
        w->sequences[a->sequence].ring = a->worker / RING;
        w->sequences[a->sequence].prompt = a->params->prompt_tokens;
        w->sequences[a->sequence].max_tokens = a->params->max_tokens;
        w->sequences[a->sequence].owes_opened[i] = 1;
        break;
    case SCHEDULER_SEND_START:
        assert_false(w->sequences[a->sequence].is_started);
        w->sequences[a->sequence].is_started = true;
        break;
    case SCHEDULER_SEND_CLOSE:
        assert_int_equal(w->sequences[a->sequence].owes_closed[i], 0);
        w->sequences[a->sequence].owes_closed[i] = 1;
        w->sequences[a->sequence].is_closing = true;
        break;
    case SCHEDULER_DELIVER:
        assert_int_equal(w->requests[a->request].n_ends, 0);
        break;
    case SCHEDULER_END:
        assert_true(w->requests[a->request].is_taken);
        assert_int_equal(w->requests[a->request].n_ends++, 0);
        break;
    }
}

static enum status world_step(struct world *w, const struct scheduler_event *event)
{
    const struct scheduler_action *actions;
    size_t n;
    struct err err = {0};
    if (event->kind == SCHEDULER_SUBMIT)
        w->requests[event->request].is_taken = true;
    enum status st = scheduler_step(w->scheduler, event, &actions, &n, &err);
    if (st != STATUS_OK) {
        assert_int_equal(event->kind, SCHEDULER_SUBMIT);
        w->requests[event->request].is_taken = false;
        return st;
    }
    for (size_t i = 0; i < n; i++)
        world_take(w, &actions[i]);
    return st;
}

/* One worker of one sequence says what it owes, or a token comes, wanted or not. */
static void world_answer(struct world *w, uint64_t sequence)
{
    uint32_t i = draw(w, RING);
    struct scheduler_event event = {.sequence = sequence,
                                    .worker = w->sequences[sequence].ring * RING + i};
    struct control_token token = {.sequence = sequence};
    if (w->sequences[sequence].owes_opened[i]) {
        event.kind = SCHEDULER_OPENED;
        event.failure = draw(w, 20) == 0 ? STATUS_NO_MEMORY : STATUS_OK;
        w->sequences[sequence].owes_opened[i] = 0;
    } else if (w->sequences[sequence].owes_closed[i] == 1) {
        event.kind = SCHEDULER_CLOSED;
        w->sequences[sequence].owes_closed[i] = 2;
    } else if (w->sequences[sequence].is_started) {
        token.position = w->sequences[sequence].prompt + w->sequences[sequence].n_tokens++;
        token.is_last = draw(w, 10) == 0;
        event.kind = draw(w, 40) == 0 ? SCHEDULER_FAILED : SCHEDULER_TOKEN;
        event.token = &token;
    } else {
        return;
    }
    assert_int_equal(world_step(w, &event), STATUS_OK);
}

static void world_submit(struct world *w, uint64_t request)
{
    struct sequence_params params;
    sequence_params_init(&params);
    params.max_loops = 1 + draw(w, 4);
    params.prompt_tokens = 1 + draw(w, 60);
    params.max_tokens = 1 + draw(w, 30);
    const struct scheduler_event event = {
        .kind = SCHEDULER_SUBMIT, .request = request, .params = &params};
    enum status st = world_step(w, &event);
    assert_true(st == STATUS_OK || st == STATUS_FULL || st == STATUS_INVALID);
}

static void world_check(const struct world *w, const uint32_t *blocks)
{
    struct scheduler_load load;
    scheduler_get_load(w->scheduler, &load);
    assert_true(load.n_queued <= 10);
    assert_true(load.n_opening + load.n_running + load.n_closing <= WORKERS / RING * MAX_OPEN);
    for (uint32_t i = 0; i < WORKERS; i++)
        assert_true(scheduler_blocks_reserved(w->scheduler, i) <= blocks[i]);
}

static void run_world(uint64_t seed)
{
    static const uint32_t blocks[WORKERS] = {12, 12, 12, 20, 16, 12};
    const struct scheduler_config config = {.n_workers = WORKERS,
                                            .ring_size = RING,
                                            .n_loops = 4,
                                            .max_positions = 80,
                                            .block_size = 16,
                                            .n_blocks = blocks,
                                            .max_queue = 10,
                                            .max_running = MAX_OPEN};
    struct world *w = calloc(1, sizeof *w);
    struct err err = {0};
    assert_non_null(w);
    w->random = seed;
    assert_int_equal(scheduler_create(&config, &w->scheduler, &err), STATUS_OK);
    uint64_t n_requests = 0;
    for (uint64_t steps = 0;; steps++) {
        struct scheduler_load load;
        scheduler_get_load(w->scheduler, &load);
        bool is_idle = load.n_queued + load.n_opening + load.n_running + load.n_closing == 0;
        if (n_requests == MAX_REQUESTS && is_idle)
            break;
        assert_true(steps < 1000000); /* else it is stuck */
        uint32_t what = draw(w, 16);
        if (what == 0 && n_requests < MAX_REQUESTS) {
            world_submit(w, ++n_requests);
        } else if (what == 1 && n_requests > 0 && draw(w, 4) == 0) {
            const struct scheduler_event cancel = {.kind = SCHEDULER_CANCEL,
                                                   .request = 1 + draw(w, (uint32_t)n_requests)};
            assert_int_equal(world_step(w, &cancel), STATUS_OK);
        } else if (w->n_sequences > 0) {
            /* Mostly the young ones; old ones speak up late now and then. */
            uint64_t back = draw(w, draw(w, 8) == 0 ? (uint32_t)w->n_sequences : 16);
            if (back < w->n_sequences)
                world_answer(w, w->n_sequences - back);
        }
        world_check(w, blocks);
    }
    for (uint64_t r = 1; r <= MAX_REQUESTS; r++)
        assert_int_equal(w->requests[r].n_ends, w->requests[r].is_taken ? 1 : 0);
    for (uint32_t i = 0; i < WORKERS; i++)
        assert_int_equal(scheduler_blocks_reserved(w->scheduler, i), 0);
    assert_true(w->n_sequences > 50);
    scheduler_destroy(w->scheduler);
    free(w);
}

static void test_scheduler_any_order_of_events_keeps_the_books(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        print_message("seed %u\n", (unsigned)seed);
        run_world(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scheduler_create_survives_every_failed_allocation),
        cmocka_unit_test(test_scheduler_create_names_what_is_wrong),
        cmocka_unit_test(test_scheduler_queue_is_bounded),
        cmocka_unit_test(test_scheduler_admission_waits_for_blocks),
        cmocka_unit_test(test_scheduler_nobody_overtakes_the_head),
        cmocka_unit_test(test_scheduler_open_sequences_are_bounded),
        cmocka_unit_test(test_scheduler_refuses_what_can_never_fit),
        cmocka_unit_test(test_scheduler_placement_rotates_offsets),
        cmocka_unit_test(test_scheduler_placement_prefers_the_empty_ring),
        cmocka_unit_test(test_scheduler_any_order_of_events_keeps_the_books),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
