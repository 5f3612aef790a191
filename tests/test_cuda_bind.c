/* Binding on the CUDA backend: a device sees each batch whole while the host prepares the next. */
#include "tests/cuda_world.h"

static const struct kernels_limits limits = {.n_rows = 40,
                                             .n_segments = 12,
                                             .n_table = 72,
                                             .block_size = 16,
                                             .n_slots = 100,
                                             .vocab_size = 50,
                                             .n_heads = 4,
                                             .n_kv_heads = 2,
                                             .head_dim = 64,
                                             .n_wanted_logits = 3};

struct batch {
    struct kernels_segment segments[12];
    int32_t table[72], slots[40], ids[40];
    struct kernels_live live[12];
    struct sequence_params params;
    struct kernels_batch batch;
};

static int32_t below(uint64_t *random, int n)
{
    return (int32_t)(cuda_world_random(random) % (uint64_t)n);
}

/* Segments of random lengths with their blocks; the last row of some is live. */
static void batch_random(struct batch *b, uint64_t *random)
{
    memset(b, 0, sizeof *b);
    sequence_params_init(&b->params);
    int n_segments = 1 + below(random, limits.n_segments), n_wanted = 0;
    int32_t row = 0, entry = 0, n_live = 0;
    for (int g = 0; g < n_segments; g++) {
        int32_t n_rows = 1 + below(random, 3), first_position = below(random, 40);
        int32_t n_blocks = (first_position + n_rows + limits.block_size - 1) / limits.block_size;
        b->segments[g] = (struct kernels_segment){.first_row = row,
                                                  .n_rows = n_rows,
                                                  .first_position = first_position,
                                                  .first_block = entry,
                                                  .n_blocks = n_blocks};
        for (int i = 0; i < n_blocks; i++)
            b->table[entry + i] = below(random, 64);
        for (int i = 0; i < n_rows; i++) {
            b->slots[row + i] = below(random, limits.n_slots);
            b->ids[row + i] = below(random, 2) ? below(random, limits.vocab_size) : -1;
        }
        row += n_rows;
        entry += n_blocks;
        if (below(random, 2))
            b->live[n_live++] =
                (struct kernels_live){.row = row - 1,
                                      .segment = g,
                                      .position = (uint32_t)(first_position + n_rows - 1),
                                      .loop = 1,
                                      .params = &b->params,
                                      .wants_logits = n_wanted < limits.n_wanted_logits &&
                                                      below(random, 2) && ++n_wanted};
    }
    b->batch = (struct kernels_batch){.n_rows = row,
                                      .n_segments = n_segments,
                                      .segments = b->segments,
                                      .block_table = b->table,
                                      .slots = b->slots,
                                      .ids = b->ids,
                                      .n_live = n_live,
                                      .live = b->live};
}

struct world {
    struct kernels *k;
    struct kernels_stream *s;
    struct kernels_kv kv;
    unsigned char *seen[KERNELS_MAX_IN_FLIGHT]; /* pinned: the device's side of each flight */
};

static struct world world_create(void)
{
    struct world w = {.k = cuda_world_kernels()};
    struct err err = {0};
    w.s = cuda_world_stream(w.k);
    cuda_must(kernels_stream_reserve(w.s, &limits, &err), &err);
    cuda_must(kernels_kv_create(w.k, DTYPE_BF16, 64, limits.block_size, 1, limits.n_kv_heads,
                                limits.head_dim, &w.kv, &err),
              &err);
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++) {
        void *host = NULL;
        cuda_must(kernels_host_alloc(w.k, cuda_stream_of(w.s)->pack_bytes, &host, &err), &err);
        w.seen[i] = host;
    }
    return w;
}

static void world_destroy(struct world *w)
{
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++)
        kernels_host_free(w->k, w->seen[i]);
    kernels_kv_destroy(w->k, &w->kv);
    kernels_stream_destroy(w->s);
    kernels_destroy(w->k);
}

/* Bind, have the device's side copied back as an operation of the batch, mark. */
static void world_send(const struct world *w, const struct kernels_batch *batch, int flight)
{
    struct cuda_stream *s = cuda_stream_of(w->s);
    struct err err = {0};
    cuda_must(kernels_bind(w->s, batch, &w->kv, flight, &err), &err);
    cuda_must(kernels_download(w->s, w->seen[flight], s->device_batch, s->pack_bytes, &err), &err);
    cuda_must(kernels_mark(w->s, flight, &err), &err);
}

/* What a device address of the batch's memory points to, in the copy. */
static const void *world_at(const struct world *w, int flight, const void *device)
{
    const struct cuda_stream *s = cuda_stream_of(w->s);
    uintptr_t at = (uintptr_t)device - (uintptr_t)s->device_batch;
    assert_true(at < s->pack_bytes);
    assert_int_equal(at % 16, 0);
    return w->seen[flight] + at;
}

static void expect_seen(const struct world *w, const struct kernels_batch *batch, int flight)
{
    struct cuda_batch seen;
    memcpy(&seen, w->seen[flight], sizeof seen);
    const size_t n = (size_t)batch->n_rows;
    assert_int_equal(seen.n_rows, batch->n_rows);
    assert_int_equal(seen.n_segments, batch->n_segments);
    assert_int_equal(seen.n_live, batch->n_live);
    assert_memory_equal(world_at(w, flight, seen.slots), batch->slots, n * sizeof(int32_t));
    assert_memory_equal(world_at(w, flight, seen.ids), batch->ids, n * sizeof(int32_t));
    assert_memory_equal(world_at(w, flight, seen.segments), batch->segments,
                        (size_t)batch->n_segments * sizeof *batch->segments);
    const struct kernels_segment *last = &batch->segments[batch->n_segments - 1];
    assert_memory_equal(world_at(w, flight, seen.block_table), batch->block_table,
                        (size_t)(last->first_block + last->n_blocks) * sizeof(int32_t));
    const int32_t *positions = world_at(w, flight, seen.positions);
    const int32_t *row_segments = world_at(w, flight, seen.row_segments);
    for (int g = 0; g < batch->n_segments; g++)
        for (int i = 0; i < batch->segments[g].n_rows; i++) {
            int row = batch->segments[g].first_row + i;
            assert_int_equal(row_segments[row], g);
            assert_int_equal(positions[row], batch->segments[g].first_position + i);
        }
    assert_ptr_equal(seen.outcomes, kernels_outcomes(w->s, flight));
    for (int i = 0, place = 0; i < batch->n_live; i++)
        if (batch->live[i].wants_logits)
            assert_ptr_equal(kernels_outcome_logits(w->s, flight, i),
                             seen.wanted_logits + (size_t)place++ * (size_t)limits.vocab_size);
}

/* Two batches are always in flight; each arrives as it was bound, though the caller's arrays and
 * the other flight's change meanwhile. */
static void test_cuda_bind_two_in_flight_arrive_whole(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 2024;
    static struct batch batches[KERNELS_MAX_IN_FLIGHT];
    enum { N = 200 };
    for (int i = 0; i < N + KERNELS_MAX_IN_FLIGHT; i++) {
        int flight = i % KERNELS_MAX_IN_FLIGHT;
        if (i >= KERNELS_MAX_IN_FLIGHT) {
            cuda_must(kernels_wait(w.s, flight, &err), &err);
            expect_seen(&w, &batches[flight].batch, flight);
        }
        if (i < N) {
            batch_random(&batches[flight], &random);
            world_send(&w, &batches[flight].batch, flight);
        }
    }
    world_destroy(&w);
}

/* Nothing of a batch is looked at after bind but through the copy. */
static void test_cuda_bind_takes_a_copy(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 7;
    static struct batch one, kept;
    batch_random(&one, &random);
    kept = one;
    kept.batch.segments = kept.segments;
    kept.batch.block_table = kept.table;
    kept.batch.slots = kept.slots;
    kept.batch.ids = kept.ids;
    kept.batch.live = kept.live;
    world_send(&w, &one.batch, 1);
    memset(&one, 0xff, sizeof one);
    cuda_must(kernels_wait(w.s, 1, &err), &err);
    expect_seen(&w, &kept.batch, 1);
    world_destroy(&w);
}

/* Slots and ids may be absent; an absent array is NULL on the device, not what was there before. */
static void test_cuda_bind_absent_arrays_are_null(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 8;
    static struct batch b;
    batch_random(&b, &random);
    b.batch.slots = b.batch.ids = NULL;
    b.batch.n_live = 0;
    world_send(&w, &b.batch, 0);
    cuda_must(kernels_wait(w.s, 0, &err), &err);
    struct cuda_batch seen;
    memcpy(&seen, w.seen[0], sizeof seen);
    assert_null(seen.slots);
    assert_null(seen.ids);
    assert_int_equal(seen.n_live, 0);
    assert_int_equal(seen.n_rows, b.batch.n_rows);
    world_destroy(&w);
}

static void test_cuda_bind_flights_in_order(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 9;
    static struct batch b;
    batch_random(&b, &random);
    const struct kernels_batch *batch = &b.batch;
    cuda_must_fail(kernels_mark(w.s, 0, &err), STATUS_INVALID, &err, "flight 0");
    cuda_must(kernels_bind(w.s, batch, &w.kv, 0, &err), &err);
    cuda_must_fail(kernels_bind(w.s, batch, &w.kv, 0, &err), STATUS_INVALID, &err,
                   "flight 0 of stream 'test' was not waited for");
    cuda_must_fail(kernels_wait(w.s, 0, &err), STATUS_INVALID, &err, "was not marked");
    cuda_must(kernels_mark(w.s, 0, &err), &err);
    cuda_must_fail(kernels_bind(w.s, batch, &w.kv, 0, &err), STATUS_INVALID, &err,
                   "was not waited for");
    cuda_must(kernels_bind(w.s, batch, &w.kv, 1, &err), &err);
    cuda_must(kernels_wait(w.s, 0, &err), &err);
    cuda_must(kernels_bind(w.s, batch, &w.kv, 0, &err), &err);
    /* A sync is as good as waiting for all. */
    cuda_must(kernels_stream_sync(w.s, &err), &err);
    cuda_must(kernels_wait(w.s, 1, &err), &err);
    world_send(&w, batch, 1);
    cuda_must(kernels_wait(w.s, 1, &err), &err);
    expect_seen(&w, batch, 1);
    world_destroy(&w);
}

/* A refused batch leaves its flight free. */
static void test_cuda_bind_refused_batch_leaves_its_flight(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 10;
    static struct batch b;
    batch_random(&b, &random);
    b.table[0] = 64;
    cuda_must_fail(kernels_bind(w.s, &b.batch, &w.kv, 0, &err), STATUS_INVALID, &err,
                   "names KV block 64");
    cuda_must(kernels_record_begin(w.s, &err), &err);
    b.table[0] = 63;
    cuda_must_fail(kernels_bind(w.s, &b.batch, &w.kv, 0, &err), STATUS_INVALID, &err, "records");
    cuda_must(kernels_stream_sync(w.s, &err), &err);
    world_send(&w, &b.batch, 0);
    cuda_must(kernels_wait(w.s, 0, &err), &err);
    expect_seen(&w, &b.batch, 0);
    world_destroy(&w);
}

/* The largest batch that was reserved fits, with live rows that all want their logits. */
static void test_cuda_bind_largest_batch_fits(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    static struct batch b;
    static const int32_t n_rows[12] = {29, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    sequence_params_init(&b.params);
    for (int g = 0, row = 0; g < 12; row += n_rows[g++]) {
        int32_t n_blocks = g == 0 ? 20 : 4;
        b.segments[g] = (struct kernels_segment){.first_row = row,
                                                 .n_rows = n_rows[g],
                                                 .first_position = g == 0 ? 291 : 60,
                                                 .first_block = g == 0 ? 0 : 16 + 4 * g,
                                                 .n_blocks = n_blocks};
        b.live[g] = (struct kernels_live){.row = row + n_rows[g] - 1,
                                          .segment = g,
                                          .position = (uint32_t)b.segments[g].first_position +
                                                      (uint32_t)n_rows[g] - 1,
                                          .loop = 1,
                                          .params = &b.params,
                                          .wants_logits = g < limits.n_wanted_logits};
    }
    b.batch = (struct kernels_batch){.n_rows = limits.n_rows,
                                     .n_segments = limits.n_segments,
                                     .segments = b.segments,
                                     .block_table = b.table,
                                     .slots = b.slots,
                                     .ids = b.ids,
                                     .n_live = limits.n_segments,
                                     .live = b.live};
    for (int flight = 0; flight < KERNELS_MAX_IN_FLIGHT; flight++)
        world_send(&w, &b.batch, flight);
    for (int flight = 0; flight < KERNELS_MAX_IN_FLIGHT; flight++) {
        cuda_must(kernels_wait(w.s, flight, &err), &err);
        expect_seen(&w, &b.batch, flight);
    }
    world_destroy(&w);
}

struct waiter {
    struct kernels_stream *s;
    enum status status;
    struct err err;
    int flight;
};

static void *wait_in_thread(void *context)
{
    struct waiter *w = context;
    w->status = kernels_wait(w->s, w->flight, &w->err);
    return NULL;
}

/* One thread waits for a flight while another binds and marks the next. */
static void test_cuda_bind_another_thread_waits(void **state)
{
    (void)state;
    struct world w = world_create();
    uint64_t random = 11;
    static struct batch batches[KERNELS_MAX_IN_FLIGHT];
    batch_random(&batches[0], &random);
    world_send(&w, &batches[0].batch, 0);
    for (int i = 1; i < 40; i++) {
        int flight = i % 2;
        struct waiter waiter = {.s = w.s, .flight = 1 - flight};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, wait_in_thread, &waiter), 0);
        batch_random(&batches[flight], &random);
        world_send(&w, &batches[flight].batch, flight);
        pthread_join(thread, NULL);
        cuda_must(waiter.status, &waiter.err);
        expect_seen(&w, &batches[1 - flight].batch, 1 - flight);
    }
    world_destroy(&w);
}

#ifdef CAROUSEL_CUDA_EMULATED

static enum status reserve_and_bind(void *context, struct err *err)
{
    const struct world *w = context;
    struct kernels_stream *s = NULL;
    uint64_t random = 12;
    static struct batch b;
    batch_random(&b, &random);
    enum status st = kernels_stream_create(w->k, "test", &s, err);
    if (st != STATUS_OK)
        return st;
    st = kernels_stream_reserve(s, &limits, err);
    for (int flight = 0; st == STATUS_OK && flight < 2; flight++) {
        st = kernels_bind(s, &b.batch, &w->kv, flight, err);
        if (st == STATUS_OK)
            st = kernels_mark(s, flight, err);
    }
    for (int flight = 0; st == STATUS_OK && flight < 2; flight++)
        st = kernels_wait(s, flight, err);
    kernels_stream_destroy(s);
    return st;
}

static void test_cuda_bind_survives_any_failing_call(void **state)
{
    (void)state;
    struct world w = world_create();
    cuda_world_fail_each(reserve_and_bind, &w, 15);
    world_destroy(&w);
}

/* A batch that crashed the device is told at its wait, and its flight is over. */
static void test_cuda_bind_failed_batch_is_told(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    uint64_t random = 13;
    static struct batch b;
    batch_random(&b, &random);
    emulator_fail_run(cudaErrorIllegalAddress);
    world_send(&w, &b.batch, 0);
    cuda_must_fail(kernels_wait(w.s, 0, &err), STATUS_INTERNAL, &err, "cudaErrorIllegalAddress");
    cuda_must_fail(kernels_stream_sync(w.s, &err), STATUS_INTERNAL, &err,
                   "cudaErrorIllegalAddress");
    emulator_revive();
    world_send(&w, &b.batch, 0);
    cuda_must(kernels_wait(w.s, 0, &err), &err);
    expect_seen(&w, &b.batch, 0);
    world_destroy(&w);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_bind_two_in_flight_arrive_whole),
        cmocka_unit_test(test_cuda_bind_takes_a_copy),
        cmocka_unit_test(test_cuda_bind_absent_arrays_are_null),
        cmocka_unit_test(test_cuda_bind_flights_in_order),
        cmocka_unit_test(test_cuda_bind_refused_batch_leaves_its_flight),
        cmocka_unit_test(test_cuda_bind_largest_batch_fits),
        cmocka_unit_test(test_cuda_bind_another_thread_waits),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_bind_survives_any_failing_call),
        cmocka_unit_test(test_cuda_bind_failed_batch_is_told),
#endif
    };
    return cuda_world_is_there("test_cuda_bind") ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
