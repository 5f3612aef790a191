/* Recording on the CUDA backend: what is kept runs again on what memory holds then. */
#include "tests/cuda_world.h"

#include "kernels/cuda_measure.h"

enum { LEN = 256, N_LINES = 130 };

struct world {
    struct kernels *k;
    struct kernels_stream *s;
    struct kernels_buffer from, to;
    unsigned char *host; /* pinned, LEN */
};

static struct world world_create(void)
{
    struct world w = {.k = cuda_world_kernels()};
    struct err err = {0};
    void *host = NULL;
    w.s = cuda_world_stream(w.k);
    cuda_must(kernels_alloc(w.k, LEN * N_LINES, true, &w.from, &err), &err);
    cuda_must(kernels_alloc(w.k, LEN * N_LINES, true, &w.to, &err), &err);
    cuda_must(kernels_host_alloc(w.k, LEN, &host, &err), &err);
    w.host = host;
    return w;
}

static void world_destroy(struct world *w)
{
    kernels_host_free(w->k, w->host);
    kernels_free(w->k, &w->from);
    kernels_free(w->k, &w->to);
    kernels_stream_destroy(w->s);
    kernels_destroy(w->k);
}

/* An operation: line `key` of `from` goes to the same line of `to`. */
static void copy_line(const struct world *w, int key)
{
    struct err err = {0};
    cuda_must(cuda_check(cuda_measure_copy((unsigned char *)w->to.data + key * LEN,
                                           (unsigned char *)w->from.data + key * LEN, LEN, 1,
                                           cuda_stream_of(w->s)->stream),
                         "copying", &err),
              &err);
}

static void record_line(const struct world *w, int key)
{
    struct err err = {0};
    cuda_must(kernels_record_begin(w->s, &err), &err);
    copy_line(w, key);
    cuda_must(kernels_record_end(w->s, (uint64_t)key, &err), &err);
}

static void write_line(const struct world *w, int key, unsigned char value)
{
    struct err err = {0};
    cuda_must(kernels_stream_sync(w->s, &err), &err);
    memset(w->host, value, LEN);
    cuda_must(kernels_upload(w->s, (unsigned char *)w->from.data + key * LEN, w->host, LEN, &err),
              &err);
}

static void expect_line(const struct world *w, int key, unsigned char value)
{
    struct err err = {0};
    unsigned char got[LEN];
    cuda_must(kernels_download(w->s, got, (unsigned char *)w->to.data + key * LEN, LEN, &err),
              &err);
    cuda_must(kernels_stream_sync(w->s, &err), &err);
    for (int i = 0; i < LEN; i++)
        assert_int_equal(got[i], value);
}

static bool replay(const struct world *w, int key)
{
    struct err err = {0};
    bool is_done = false;
    cuda_must(kernels_replay(w->s, (uint64_t)key, &is_done, &err), &err);
    return is_done;
}

static void test_cuda_graph_runs_at_the_end_and_again(void **state)
{
    (void)state;
    struct world w = world_create();
    write_line(&w, 3, 11);
    record_line(&w, 3);
    expect_line(&w, 3, 11);
    for (unsigned char v = 20; v < 25; v++) {
        write_line(&w, 3, v);
        assert_true(replay(&w, 3));
        expect_line(&w, 3, v);
    }
    world_destroy(&w);
}

static void test_cuda_graph_unknown_key_does_nothing(void **state)
{
    (void)state;
    struct world w = world_create();
    write_line(&w, 3, 11);
    assert_false(replay(&w, 3));
    expect_line(&w, 3, 0);
    world_destroy(&w);
}

/* Asked for before it was recorded: the first time it is run as it comes, then it is captured. */
static void test_cuda_graph_warms_up_once(void **state)
{
    (void)state;
    struct world w = world_create();
    for (unsigned char v = 1; v < 6; v++) {
        write_line(&w, 3, v);
        bool is_done = replay(&w, 3);
        assert_int_equal(is_done, v > 2);
        if (!is_done)
            record_line(&w, 3);
        expect_line(&w, 3, v);
    }
    /* What was only asked for has not been run. */
    assert_false(replay(&w, 4));
    assert_false(replay(&w, 5));
    assert_false(replay(&w, 4));
    record_line(&w, 4);
    assert_false(replay(&w, 4));
    record_line(&w, 4);
    assert_true(replay(&w, 4));
    /* Nor has what was dropped on the way. */
    struct err err = {0};
    assert_false(replay(&w, 6));
    cuda_must(kernels_record_begin(w.s, &err), &err);
    copy_line(&w, 6);
    cuda_must(kernels_stream_sync(w.s, &err), &err);
    assert_false(replay(&w, 6));
    record_line(&w, 6);
    assert_false(replay(&w, 6));
    world_destroy(&w);
}

/* A key recorded again means the new operations. */
static void test_cuda_graph_key_is_replaced(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    record_line(&w, 5);
    cuda_must(kernels_record_begin(w.s, &err), &err);
    copy_line(&w, 6);
    copy_line(&w, 7);
    cuda_must(kernels_record_end(w.s, 5, &err), &err);
    write_line(&w, 5, 1);
    write_line(&w, 6, 2);
    write_line(&w, 7, 3);
    assert_true(replay(&w, 5));
    expect_line(&w, 5, 0);
    expect_line(&w, 6, 2);
    expect_line(&w, 7, 3);
    world_destroy(&w);
}

/* The table has 128 places; who was used last stays. */
static void test_cuda_graph_least_recently_used_goes(void **state)
{
    (void)state;
    struct world w = world_create();
    for (int key = 0; key < 128; key++)
        record_line(&w, key);
    assert_true(replay(&w, 0));
    record_line(&w, 128);
    record_line(&w, 129);
    assert_true(replay(&w, 0));
    assert_false(replay(&w, 1));
    assert_false(replay(&w, 2));
    for (int key = 3; key < 130; key++) {
        write_line(&w, key, (unsigned char)(key + 1));
        assert_true(replay(&w, key));
        expect_line(&w, key, (unsigned char)(key + 1));
    }
    world_destroy(&w);
}

static void test_cuda_graph_wrong_order_is_told(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    bool is_done = false;
    unsigned char byte = 0;
    cuda_must_fail(kernels_record_end(w.s, 1, &err), STATUS_INVALID, &err, "does not record");
    cuda_must(kernels_record_begin(w.s, &err), &err);
    cuda_must_fail(kernels_record_begin(w.s, &err), STATUS_INVALID, &err, "records already");
    cuda_must_fail(kernels_upload(w.s, w.to.data, &byte, 1, &err), STATUS_INVALID, &err,
                   "while it records");
    cuda_must_fail(kernels_download(w.s, &byte, w.to.data, 1, &err), STATUS_INVALID, &err,
                   "while it records");
    cuda_must_fail(kernels_replay(w.s, 1, &is_done, &err), STATUS_INVALID, &err,
                   "while it records");
    copy_line(&w, 1);
    cuda_must(kernels_record_end(w.s, 1, &err), &err);
    assert_true(replay(&w, 1));
    world_destroy(&w);
}

/* An operation failed in between: the sync drops the recording, and the stream works on. */
static void test_cuda_graph_open_recording_is_dropped(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    write_line(&w, 2, 7);
    cuda_must(kernels_record_begin(w.s, &err), &err);
    copy_line(&w, 2);
    cuda_must(kernels_stream_sync(w.s, &err), &err);
    expect_line(&w, 2, 0);
    cuda_must_fail(kernels_record_end(w.s, 2, &err), STATUS_INVALID, &err, "does not record");
    record_line(&w, 2);
    expect_line(&w, 2, 7);
    /* And so does the end of the stream. */
    cuda_must(kernels_record_begin(w.s, &err), &err);
    copy_line(&w, 2);
    world_destroy(&w);
}

/* What cannot be recorded breaks the recording: its end says so, keeps nothing, and the stream
 * works on. */
static void test_cuda_graph_broken_recording_is_told(void **state)
{
    (void)state;
    struct world w = world_create();
    struct err err = {0};
    cuda_must(kernels_record_begin(w.s, &err), &err);
    copy_line(&w, 1);
    assert_int_not_equal(cudaStreamSynchronize(cuda_stream_of(w.s)->stream), cudaSuccess);
    cuda_must_fail(kernels_record_end(w.s, 1, &err), STATUS_INTERNAL, &err, "recording");
    assert_false(replay(&w, 1));
    write_line(&w, 1, 9);
    record_line(&w, 1);
    expect_line(&w, 1, 9);
    world_destroy(&w);
}

#ifdef CAROUSEL_CUDA_EMULATED

static enum status record_twice(void *context, struct err *err)
{
    const struct world *w = context;
    struct kernels_stream *s = NULL;
    bool is_done = false;
    enum status st = kernels_stream_create(w->k, "test", &s, err);
    if (st != STATUS_OK)
        return st;
    for (int i = 0; st == STATUS_OK && i < 2; i++) {
        st = kernels_record_begin(s, err);
        if (st == STATUS_OK)
            st = cuda_check(cuda_measure_nothing(cuda_stream_of(s)->stream), "nothing", err);
        if (st == STATUS_OK)
            st = kernels_record_end(s, 1, err);
    }
    if (st == STATUS_OK)
        st = kernels_replay(s, 1, &is_done, err);
    if (st == STATUS_OK)
        assert_true(is_done);
    if (st == STATUS_OK)
        st = kernels_stream_sync(s, err);
    kernels_stream_destroy(s);
    return st;
}

static void test_cuda_graph_survives_any_failing_call(void **state)
{
    (void)state;
    struct world w = world_create();
    cuda_world_fail_each(record_twice, &w, 10);
    world_destroy(&w);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_graph_runs_at_the_end_and_again),
        cmocka_unit_test(test_cuda_graph_unknown_key_does_nothing),
        cmocka_unit_test(test_cuda_graph_warms_up_once),
        cmocka_unit_test(test_cuda_graph_key_is_replaced),
        cmocka_unit_test(test_cuda_graph_least_recently_used_goes),
        cmocka_unit_test(test_cuda_graph_wrong_order_is_told),
        cmocka_unit_test(test_cuda_graph_open_recording_is_dropped),
        cmocka_unit_test(test_cuda_graph_broken_recording_is_told),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_graph_survives_any_failing_call),
#endif
    };
    return cuda_world_is_there("test_cuda_graph") ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
