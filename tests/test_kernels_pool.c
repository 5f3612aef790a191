/* The fork-join pool and the backends' life: every thread runs each piece once, and errors say what
 * to do. */
#include "kernels/cpu_backend.h"
#include "tests/kernels_reference.h"

#include <stdatomic.h>

struct count {
    atomic_int runs[8];
    int last; /* written by thread 0 only, read by all in the next run */
    int expected;
    atomic_int n_wrong;
};

static void count_work(void *context, int thread)
{
    struct count *c = context;
    atomic_fetch_add(&c->runs[thread], 1);
    if (c->last != c->expected)
        atomic_fetch_add(&c->n_wrong, 1);
}

/* What the caller wrote before a run is seen by every thread, and what threads did is done after
 * it. */
static void check_pool(int n_threads, bool may_spin)
{
    enum { RUNS = 200 };
    struct cpu_pool *pool;
    struct err err = {0};
    must(cpu_pool_create(n_threads, may_spin, &pool, &err), &err);
    struct count c = {.last = 0};
    for (int i = 1; i <= RUNS; i++) {
        c.last = c.expected = i;
        cpu_pool_run(pool, count_work, &c);
        for (int t = 0; t < 8; t++)
            assert_int_equal(atomic_load(&c.runs[t]), t < n_threads ? i : 0);
    }
    assert_int_equal(atomic_load(&c.n_wrong), 0);
    cpu_pool_destroy(pool);
}

static void test_kernels_pool_runs_every_thread_once(void **state)
{
    (void)state;
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        check_pool(n_threads, false);
        check_pool(n_threads, true);
    }
}

static void test_kernels_pool_destroy_without_a_run(void **state)
{
    (void)state;
    struct cpu_pool *pool;
    struct err err = {0};
    must(cpu_pool_create(3, false, &pool, &err), &err);
    cpu_pool_destroy(pool);
    cpu_pool_destroy(NULL);
}

static void test_kernels_create_names_what_is_wrong(void **state)
{
    (void)state;
    struct kernels *k = NULL;
    struct err err = {0};
    if (kernels_cuda_devices() == 0) {
        assert_int_equal(kernels_create("cuda", NULL, &k, &err), STATUS_UNSUPPORTED);
        assert_non_null(strstr(err.message, "use --backend cpu"));
        must(kernels_create("auto", NULL, &k, &err), &err);
        assert_string_equal(kernels_name(k), "cpu");
        kernels_destroy(k);
        k = NULL;
    }
    assert_int_equal(kernels_create("abacus", NULL, &k, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "abacus"));
    struct kernels_options options = {.isa = "sse9"};
    assert_int_equal(kernels_create("cpu", &options, &k, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "sse9"));
    options = (struct kernels_options){.n_threads = -1};
    assert_int_equal(kernels_create("cpu", &options, &k, &err), STATUS_INVALID);
    assert_null(k);
    kernels_destroy(NULL);
}

static void test_kernels_isa_levels_have_an_order(void **state)
{
    (void)state;
    assert_string_equal(kernels_cpu_lesser_isa("avx512", "avx2"), "avx2");
    assert_string_equal(kernels_cpu_lesser_isa("portable", "avx512"), "portable");
    assert_string_equal(kernels_cpu_lesser_isa("avx512", "amx"), "avx512");
    assert_string_equal(kernels_cpu_lesser_isa("amx", "amx"), "amx");
    assert_null(kernels_cpu_lesser_isa("avx512", "neon"));
    assert_null(kernels_cpu_lesser_isa(NULL, "avx2"));
    struct backend b;
    assert_true(backend_open("auto", 0, &b));
    assert_string_equal(kernels_isa(b.k), kernels_cpu_best_isa());
    assert_string_equal(kernels_name(b.k), "cpu");
    assert_true(kernels_threads(b.k) >= 1);
    backend_close(&b);
}

static void check_alloc(const char *name)
{
    struct backend b;
    if (!backend_open(name, 1, &b))
        return;
    struct kernels_buffer buffer;
    struct err err = {0};
    unsigned char bytes[3] = {1, 2, 3}, back[1000];
    must(kernels_alloc(b.k, sizeof back, true, &buffer, &err), &err);
    assert_int_equal((uintptr_t)buffer.data % 64, 0);
    must(kernels_upload(b.s, buffer.data, bytes, 3, &err), &err);
    must(kernels_download(b.s, back, buffer.data, sizeof back, &err), &err);
    must(kernels_stream_sync(b.s, &err), &err);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(back[i], i < 3 ? bytes[i] : 0);
    void *host;
    must(kernels_host_alloc(b.k, 1, &host, &err), &err);
    assert_int_equal((uintptr_t)host % 64, 0);
    kernels_host_free(b.k, host);
    kernels_host_free(b.k, NULL);
    assert_int_equal(kernels_host_alloc(b.k, 0, &host, &err), STATUS_INVALID);
    struct kernels_memory memory;
    must(kernels_device_memory(b.k, &memory, &err), &err);
    assert_true(memory.free_bytes <= memory.total_bytes && (memory.total_bytes > 0) == b.is_gpu);
    kernels_free(b.k, &buffer);
    assert_null(buffer.data);
    kernels_free(b.k, &buffer);
    assert_int_equal(kernels_alloc(b.k, 0, true, &buffer, &err), STATUS_INVALID);
    /* Far more than an address space holds. */
    assert_int_equal(kernels_alloc(b.k, SIZE_MAX / 4, true, &buffer, &err), STATUS_NO_MEMORY);
    struct kernels_kv kv;
    assert_int_equal(
        kernels_kv_create(b.k, DTYPE_F32, INT32_MAX, INT32_MAX, 64, 64, 128, &kv, &err),
        STATUS_NO_MEMORY);
    backend_close(&b);
}

static void test_kernels_alloc_gives_zeroed_aligned_memory(void **state)
{
    (void)state;
    check_alloc("portable");
    check_alloc("cuda");
}

/* Recording changes nothing: what is recorded has run, what is replayed runs once more. */
static void check_recording(const char *name)
{
    struct backend b;
    if (!backend_open(name, 1, &b))
        return;
    struct err err = {0};
    float one[16], zero[16] = {0};
    for (int i = 0; i < 16; i++)
        one[i] = 1.0f;
    struct array h = array_put(&b, zero, 16, DTYPE_F32), x = array_put(&b, one, 16, DTYPE_F32);
    const struct kernels_limits limits = {.n_rows = 2,
                                          .n_segments = 2,
                                          .block_size = 16,
                                          .n_heads = 1,
                                          .n_kv_heads = 1,
                                          .head_dim = 16};
    struct kernels_stream *s = stream_open(&b, &limits);
    bool is_done = true;
    /* Once to warm up, once to record, once to replay. */
    for (int i = 0; i < 3; i++) {
        must(kernels_replay(s, 7, &is_done, &err), &err);
        if (is_done)
            continue;
        must(kernels_record_begin(s, &err), &err);
        must(kernels_residual_norm(s, h.data, x.data, NULL, NULL, DTYPE_F32, NULL, 2, 8, 1e-6f,
                                   &err),
             &err);
        must(kernels_record_end(s, 7, &err), &err);
    }
    must(kernels_stream_sync(s, &err), &err);
    float *sum = array_take(&b, &h);
    for (int i = 0; i < 16; i++)
        assert_true(sum[i] == 3.0f);
    assert_true(is_done == b.is_gpu);
    free(sum);
    array_free(&b, &x);
    kernels_stream_destroy(s);
    backend_close(&b);
}

static void test_kernels_recording_runs_what_it_records(void **state)
{
    (void)state;
    check_recording("portable");
    check_recording("cuda");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_pool_runs_every_thread_once),
        cmocka_unit_test(test_kernels_pool_destroy_without_a_run),
        cmocka_unit_test(test_kernels_create_names_what_is_wrong),
        cmocka_unit_test(test_kernels_isa_levels_have_an_order),
        cmocka_unit_test(test_kernels_alloc_gives_zeroed_aligned_memory),
        cmocka_unit_test(test_kernels_recording_runs_what_it_records),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
