/* The CUDA backend's device and memory: what is missing is said, bytes arrive, nothing is left. */
#include "tests/cuda_world.h"

static const size_t piece = (size_t)4 << 20; /* of the staging in cuda_memory.c */

/* Sizes and offsets around the staging's pieces, from and to pageable and pinned memory. */
static void test_cuda_memory_copies_arrive(void **state)
{
    (void)state;
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_stream *s = cuda_world_stream(k);
    const size_t sizes[] = {1, 17, 4096, piece - 1, piece, piece + 1, 2 * piece + 5, 3 * piece};
    const size_t most = 3 * piece + 64;
    struct kernels_buffer device = {0};
    void *pinned = NULL;
    cuda_must(kernels_alloc(k, most, false, &device, &err), &err);
    cuda_must(kernels_host_alloc(k, most, &pinned, &err), &err);
    assert_int_equal((uintptr_t)device.data % 64, 0);
    assert_int_equal((uintptr_t)pinned % 64, 0);
    unsigned char *from = malloc(most), *to = malloc(most);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int way = 0; way < 4; way++) {
            const size_t skew = i % 3;
            unsigned char *source = (way & 1) ? (unsigned char *)pinned + skew : from + skew;
            unsigned char *target = (way & 2) ? (unsigned char *)pinned + skew : to + skew;
            unsigned char *middle = (unsigned char *)device.data + skew;
            cuda_world_fill(from, sizes[i] + skew, i * 4 + (size_t)way);
            if (way & 1)
                memcpy(source, from + skew, sizes[i]);
            cuda_must(kernels_upload(s, middle, source, sizes[i], &err), &err);
            cuda_must(kernels_stream_sync(s, &err), &err);
            memset(to, 0x5a, most);
            memset(target, 0x5a, sizes[i] + 1);
            cuda_must(kernels_download(s, target, middle, sizes[i], &err), &err);
            cuda_must(kernels_stream_sync(s, &err), &err);
            assert_memory_equal(target, from + skew, sizes[i]);
            assert_int_equal(target[sizes[i]], 0x5a);
        }
    free(from);
    free(to);
    kernels_host_free(k, pinned);
    kernels_free(k, &device);
    kernels_stream_destroy(s);
    kernels_destroy(k);
}

/* Uploads and downloads share the staging: none takes a piece that another still needs. */
static void test_cuda_memory_copies_keep_their_order(void **state)
{
    (void)state;
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_stream *s = cuda_world_stream(k);
    enum { N = 24, LEN = 1000 };
    struct kernels_buffer device = {0};
    static unsigned char from[N][LEN], to[N][LEN], *results[N];
    void *pinned = NULL;
    cuda_must(kernels_alloc(k, N * LEN, true, &device, &err), &err);
    cuda_must(kernels_host_alloc(k, N * LEN, &pinned, &err), &err);
    for (int i = 0; i < N; i++) {
        cuda_world_fill(from[i], LEN, (uint64_t)i);
        cuda_must(kernels_upload(s, device.data, from[i], LEN, &err), &err);
        results[i] = i % 3 == 0 ? to[i] : (unsigned char *)pinned + i * LEN;
        cuda_must(kernels_download(s, results[i], device.data, LEN, &err), &err);
    }
    cuda_must(kernels_stream_sync(s, &err), &err);
    for (int i = 0; i < N; i++)
        assert_memory_equal(results[i], from[i], LEN);
    kernels_host_free(k, pinned);
    kernels_free(k, &device);
    kernels_stream_destroy(s);
    kernels_destroy(k);
}

static void test_cuda_memory_zeroes_when_asked(void **state)
{
    (void)state;
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_stream *s = cuda_world_stream(k);
    struct kernels_buffer device = {0};
    static unsigned char got[100 * 1000];
    for (int i = 0; i < 3; i++) {
        cuda_must(kernels_alloc(k, sizeof got, true, &device, &err), &err);
        memset(got, 1, sizeof got);
        cuda_must(kernels_download(s, got, device.data, sizeof got, &err), &err);
        cuda_must(kernels_stream_sync(s, &err), &err);
        for (size_t b = 0; b < sizeof got; b++)
            assert_int_equal(got[b], 0);
        /* The next one may lie where this one lay. */
        cuda_world_fill(got, sizeof got, 9);
        cuda_must(kernels_upload(s, device.data, got, sizeof got, &err), &err);
        cuda_must(kernels_stream_sync(s, &err), &err);
        kernels_free(k, &device);
    }
    kernels_stream_destroy(s);
    kernels_destroy(k);
}

/* In stream order, and not a byte beyond. */
static void test_cuda_memory_is_filled(void **state)
{
    (void)state;
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_stream *s = cuda_world_stream(k);
    struct kernels_buffer device = {0};
    enum { LEN = 100 * 1000, FIRST = 7, N = 70001 };
    static unsigned char from[LEN], got[LEN];
    cuda_must(kernels_alloc(k, LEN, false, &device, &err), &err);
    cuda_world_fill(from, LEN, 3);
    cuda_must(kernels_upload(s, device.data, from, LEN, &err), &err);
    cuda_must(kernels_fill(s, (char *)device.data + FIRST, 0xbe, N, &err), &err);
    cuda_must(kernels_fill(s, device.data, 0x11, 0, &err), &err);
    cuda_must(kernels_download(s, got, device.data, LEN, &err), &err);
    cuda_must(kernels_stream_sync(s, &err), &err);
    memset(from + FIRST, 0xbe, N);
    assert_memory_equal(got, from, LEN);
    cuda_must(kernels_record_begin(s, &err), &err);
    cuda_must_fail(kernels_fill(s, device.data, 0, LEN, &err), STATUS_INVALID, &err, "records");
    cuda_must(kernels_stream_sync(s, &err), &err);
    kernels_free(k, &device);
    kernels_stream_destroy(s);
    kernels_destroy(k);
}

static void test_cuda_memory_says_when_it_is_full(void **state)
{
    (void)state;
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_memory before, during, after;
    struct kernels_buffer device = {0};
    cuda_must(kernels_device_memory(k, &before, &err), &err);
    assert_true(before.free_bytes > 0 && before.free_bytes <= before.total_bytes);
    enum status st = kernels_alloc(k, (size_t)before.total_bytes + 1, false, &device, &err);
    cuda_must_fail(st, STATUS_NO_MEMORY, &err, "the GPU has no room for");
    assert_null(device.data);
    /* The refusal is over: it spoils nothing that comes after. */
    cuda_must(kernels_alloc(k, (size_t)8 << 20, true, &device, &err), &err);
    cuda_must(kernels_device_memory(k, &during, &err), &err);
    assert_true(during.free_bytes <= before.free_bytes);
    kernels_free(k, &device);
    assert_null(device.data);
    cuda_must(kernels_device_memory(k, &after, &err), &err);
    assert_true(after.free_bytes >= during.free_bytes);
    kernels_free(k, &device);
    kernels_host_free(k, NULL);
    kernels_destroy(k);
}

static void test_cuda_device_must_exist(void **state)
{
    (void)state;
    struct kernels *k = NULL;
    struct err err = {0};
    const int wrong[] = {-1, 64, 1 << 30};
    for (int i = 0; i < 3; i++) {
        const struct kernels_options options = {.device = wrong[i]};
        cuda_must_fail(kernels_create("cuda", &options, &k, &err), STATUS_INVALID, &err,
                       "numbered from 0");
        assert_null(k);
    }
}

static void test_cuda_device_says_what_it_is(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    assert_string_equal(kernels_name(k), "cuda");
    assert_int_equal(strncmp(kernels_isa(k), "sm_", 3), 0);
    assert_int_equal(kernels_activation_dtype(k), DTYPE_BF16);
    assert_true(kernels_has_finish(k));
    assert_true(((struct cuda_kernels *)k)->n_multiprocessors > 0);
    kernels_destroy(k);
}

/* Every figure is there, and positive. */
static void test_cuda_measure_fills_its_figures(void **state)
{
    (void)state;
#ifdef CAROUSEL_CUDA_EMULATED
    emulator_set_memory((size_t)128 << 20);
    emulator_set_lazy(false);
#endif
    struct err err = {0};
    struct kernels *k = cuda_world_kernels();
    struct kernels_machine m = {0};
    cuda_must(kernels_measure_machine(k, &m, &err), &err);
    assert_true(m.peak_gflops > 0 && m.read_gbytes_s > 0 && m.copy_gbytes_s > 0);
    assert_true(m.matrix_tflops > 0 && m.upload_gbytes_s > 0 && m.launch_us > 0);
    kernels_destroy(k);
#ifdef CAROUSEL_CUDA_EMULATED
    emulator_set_memory((size_t)2 << 30);
    emulator_set_lazy(true);
#endif
}

#ifdef CAROUSEL_CUDA_EMULATED

static void test_cuda_device_that_is_not_there(void **state)
{
    (void)state;
    struct kernels *k = NULL;
    struct err err = {0};
    emulator_set_devices(0);
    assert_int_equal(kernels_cuda_devices(), 0);
    cuda_must_fail(kernels_create("cuda", NULL, &k, &err), STATUS_UNSUPPORTED, &err,
                   "shows no GPU");
    emulator_set_devices(3);
    assert_int_equal(kernels_cuda_devices(), 3);
    const struct kernels_options options = {.device = 3};
    cuda_must_fail(kernels_create("cuda", &options, &k, &err), STATUS_INVALID, &err, "3 GPUs");
    assert_null(k);
    emulator_set_devices(1);
}

struct thread_work {
    struct kernels *k;
    enum status status;
    struct err err;
    int device;
};

/* A thread that has never heard of the device. */
static void *run_in_thread(void *context)
{
    struct thread_work *t = context;
    struct kernels_buffer device = {0};
    t->status = kernels_alloc(t->k, 100, true, &device, &t->err);
    if (cudaGetDevice(&t->device) != cudaSuccess)
        t->device = -1;
    kernels_free(t->k, &device);
    return NULL;
}

static void test_cuda_device_is_the_same_in_every_thread(void **state)
{
    (void)state;
    struct err err = {0};
    emulator_set_devices(2);
    const struct kernels_options options = {.device = 1};
    struct thread_work t = {0};
    cuda_must(kernels_create("cuda", &options, &t.k, &err), &err);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_in_thread, &t), 0);
    pthread_join(thread, NULL);
    cuda_must(t.status, &t.err);
    assert_int_equal(t.device, 1);
    kernels_destroy(t.k);
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    emulator_set_devices(1);
}

static enum status create_and_copy(void *context, struct err *err)
{
    (void)context;
    struct kernels *k = NULL;
    struct kernels_stream *s = NULL;
    struct kernels_buffer device = {0};
    void *pinned = NULL;
    static unsigned char from[5000], to[5000];
    enum status st = kernels_create("cuda", NULL, &k, err);
    if (st != STATUS_OK)
        return st;
    st = kernels_stream_create(k, "test", &s, err);
    if (st == STATUS_OK)
        st = kernels_alloc(k, sizeof from, true, &device, err);
    if (st == STATUS_OK)
        st = kernels_host_alloc(k, sizeof from, &pinned, err);
    if (st == STATUS_OK)
        st = kernels_upload(s, device.data, from, sizeof from, err);
    if (st == STATUS_OK)
        st = kernels_download(s, pinned, device.data, sizeof from, err);
    if (st == STATUS_OK)
        st = kernels_download(s, to, device.data, sizeof from, err);
    if (st == STATUS_OK)
        st = kernels_stream_sync(s, err);
    kernels_host_free(k, pinned);
    kernels_free(k, &device);
    kernels_stream_destroy(s);
    kernels_destroy(k);
    return st;
}

/* The n-th call of CUDA fails, for every n: an error with a message, and nothing is left. */
static void test_cuda_memory_survives_any_failing_call(void **state)
{
    (void)state;
    cuda_world_fail_each(create_and_copy, NULL, 15);
}

/* A kernel that crashed spoils the device: it is told at the wait, and destroying still works. */
static void test_cuda_device_failure_is_told(void **state)
{
    (void)state;
    struct err err = {0};
    int n_before = emulator_n_live();
    struct kernels *k = cuda_world_kernels();
    struct kernels_stream *s = cuda_world_stream(k);
    struct kernels_buffer device = {0};
    void *pinned = NULL;
    cuda_must(kernels_alloc(k, 64, false, &device, &err), &err);
    cuda_must(kernels_host_alloc(k, 64, &pinned, &err), &err);
    emulator_fail_run(cudaErrorIllegalAddress);
    cuda_must(kernels_upload(s, device.data, pinned, 64, &err), &err);
    cuda_must_fail(kernels_stream_sync(s, &err), STATUS_INTERNAL, &err, "cudaErrorIllegalAddress");
    kernels_host_free(k, pinned);
    kernels_free(k, &device);
    kernels_stream_destroy(s);
    kernels_destroy(k);
    emulator_revive();
    assert_int_equal(emulator_n_live(), n_before);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_memory_copies_arrive),
        cmocka_unit_test(test_cuda_memory_copies_keep_their_order),
        cmocka_unit_test(test_cuda_memory_zeroes_when_asked),
        cmocka_unit_test(test_cuda_memory_is_filled),
        cmocka_unit_test(test_cuda_memory_says_when_it_is_full),
        cmocka_unit_test(test_cuda_device_must_exist),
        cmocka_unit_test(test_cuda_device_says_what_it_is),
        cmocka_unit_test(test_cuda_measure_fills_its_figures),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_device_that_is_not_there),
        cmocka_unit_test(test_cuda_device_is_the_same_in_every_thread),
        cmocka_unit_test(test_cuda_memory_survives_any_failing_call),
        cmocka_unit_test(test_cuda_device_failure_is_told),
#endif
    };
    return cuda_world_is_there("test_cuda_memory") ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
