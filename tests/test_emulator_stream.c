/* emulator_stream: operations in their order, at once or only when waited for, recorded and run
 * again; memory of one kind taken for another. */
#include "tests/unit.h"

#include "tests/emulator/emulator.h"
#include "tests/emulator/emulator_kernels.h"

#include <pthread.h>

enum { N = 64 };

static void ok(cudaError_t code)
{
    if (code != cudaSuccess)
        fail_msg("%s", cudaGetErrorName(code));
}

struct world {
    cudaStream_t stream;
    int32_t *device, *pinned;
};

static void world_open(struct world *w, bool is_lazy)
{
    emulator_set_lazy(is_lazy);
    ok(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking));
    ok(cudaMalloc((void **)&w->device, N * sizeof *w->device));
    ok(cudaMallocHost((void **)&w->pinned, N * sizeof *w->pinned));
}

static void world_close(struct world *w)
{
    ok(cudaStreamDestroy(w->stream));
    ok(cudaFree(w->device));
    ok(cudaFreeHost(w->pinned));
    emulator_set_lazy(false);
    assert_int_equal(emulator_n_live(), 0);
}

static void upload(struct world *w)
{
    ok(cudaMemcpyAsync(w->device, w->pinned, N * sizeof *w->device, cudaMemcpyHostToDevice,
                       w->stream));
}
static void download(struct world *w)
{
    ok(cudaMemcpyAsync(w->pinned, w->device, N * sizeof *w->device, cudaMemcpyDeviceToHost,
                       w->stream));
}
static void fill(struct world *w, int32_t value)
{
    for (int i = 0; i < N; i++)
        w->pinned[i] = value;
}

/* ---- order -------------------------------------------------------------------------------------
 */

static void test_emulator_stream_fresh_memory_is_poison(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, false);
    assert_int_equal(w.pinned[5], -1);
    fill(&w, 3);
    download(&w);
    ok(cudaStreamSynchronize(w.stream));
    assert_int_equal(w.pinned[N - 1], -1);
    world_close(&w);
}

static void test_emulator_stream_runs_lazily(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, true);
    fill(&w, 5);
    upload(&w);
    ok(emulator_try_add(w.device, N, 10, w.stream));
    /* Nothing has read it yet: staging used again too early is what the copy then sees. */
    fill(&w, 7);
    download(&w);
    assert_int_equal(w.pinned[0], 7); /* and the result is not there before the wait */
    ok(cudaStreamSynchronize(w.stream));
    for (int i = 0; i < N; i++)
        assert_int_equal(w.pinned[i], 17);
    world_close(&w);
}

static void test_emulator_stream_queries_make_progress(void **state)
{
    (void)state;
    struct world w;
    cudaEvent_t event;
    world_open(&w, true);
    ok(cudaEventCreate(&event));
    ok(cudaEventQuery(event)); /* never recorded */
    fill(&w, 1);
    upload(&w);
    ok(emulator_try_add(w.device, N, 1, w.stream));
    ok(cudaEventRecord(event, w.stream));
    ok(emulator_try_add(w.device, N, 1, w.stream));
    int n_queries = 0;
    while (cudaEventQuery(event) == cudaErrorNotReady)
        n_queries++;
    assert_int_equal(n_queries, 3);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaStreamQuery(w.stream), cudaErrorNotReady);
    ok(cudaStreamQuery(w.stream));
    ok(cudaEventDestroy(event));
    world_close(&w);
}

static void test_emulator_stream_waits_for_another(void **state)
{
    (void)state;
    struct world w;
    cudaStream_t other;
    cudaEvent_t begin, event;
    world_open(&w, true);
    ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    ok(cudaEventCreate(&begin));
    ok(cudaEventCreate(&event));
    fill(&w, 1);
    ok(cudaEventRecord(begin, w.stream));
    upload(&w);
    ok(emulator_try_add(w.device, N, 1, w.stream));
    ok(cudaEventRecord(event, w.stream));
    /* Behind the event: not waited for. */
    ok(emulator_try_add(w.device, N, 100, w.stream));
    ok(cudaStreamWaitEvent(other, event, 0));
    int32_t seen = 0;
    ok(cudaMemcpyAsync(&seen, w.device, sizeof seen, cudaMemcpyDeviceToHost, other));
    ok(cudaStreamSynchronize(other));
    assert_int_equal(seen, 2);
    ok(cudaEventSynchronize(event));
    float ms = -1.0f;
    ok(cudaEventElapsedTime(&ms, begin, event));
    assert_true(ms >= 0.0f && ms < 60000.0f);
    ok(cudaStreamSynchronize(w.stream));
    ok(cudaEventDestroy(begin));
    ok(cudaEventDestroy(event));
    ok(cudaStreamDestroy(other));
    world_close(&w);
}

static void count_up(void *user)
{
    ++*(int *)user;
}

static void test_emulator_stream_calls_the_host_in_order(void **state)
{
    (void)state;
    struct world w;
    int n_calls = 0;
    world_open(&w, true);
    ok(cudaLaunchHostFunc(w.stream, count_up, &n_calls));
    ok(cudaMemsetAsync(w.device, 0, N * sizeof *w.device, w.stream));
    assert_int_equal(n_calls, 0);
    download(&w);
    ok(cudaDeviceSynchronize());
    assert_int_equal(n_calls, 1);
    assert_int_equal(w.pinned[9], 0);
    world_close(&w);
}

/* ---- graphs ------------------------------------------------------------------------------------
 */

static void test_emulator_stream_graph_replays_what_was_recorded(void **state)
{
    (void)state;
    struct world w;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    enum cudaStreamCaptureStatus status;
    size_t n_nodes = 0;
    world_open(&w, true);
    fill(&w, 0);
    ok(cudaStreamBeginCapture(w.stream, cudaStreamCaptureModeThreadLocal));
    ok(cudaStreamIsCapturing(w.stream, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    upload(&w);
    int32_t add = 3;
    ok(emulator_try_add(w.device, N, add, w.stream));
    add = 1000; /* the argument was copied */
    ok(cudaStreamEndCapture(w.stream, &graph));
    ok(cudaGraphGetNodes(graph, NULL, &n_nodes));
    assert_int_equal(n_nodes, 2);
    ok(cudaGraphInstantiateWithFlags(&exec, graph, 0));
    ok(cudaGraphDestroy(graph));

    uint64_t n_kernels = emulator_counts().n_kernels;
    for (int32_t round = 0; round < 3; round++) {
        fill(&w, 10 * round);
        ok(cudaGraphLaunch(exec, w.stream));
        ok(emulator_try_add(w.device, N, 1, w.stream));
        ok(cudaStreamSynchronize(w.stream));
        download(&w);
        ok(cudaStreamSynchronize(w.stream));
        assert_int_equal(w.pinned[N - 1], 10 * round + 4);
    }
    assert_int_equal(emulator_counts().n_kernels - n_kernels, 6);
    ok(cudaGraphExecDestroy(exec));
    world_close(&w);
}

static void *take_memory(void *arg)
{
    void *p = NULL;
    cudaError_t *code = arg;
    *code = cudaMalloc(&p, 16);
    if (*code == cudaSuccess)
        *code = cudaFree(p);
    return NULL;
}

/* A capture binds the thread that began it; a global one all threads. */
static void test_emulator_stream_capture_is_of_its_thread(void **state)
{
    (void)state;
    static const struct {
        enum cudaStreamCaptureMode mode;
        cudaError_t own, other;
    } cases[] = {
        {cudaStreamCaptureModeGlobal, cudaErrorStreamCaptureUnsupported,
         cudaErrorStreamCaptureUnsupported},
        {cudaStreamCaptureModeThreadLocal, cudaErrorStreamCaptureUnsupported, cudaSuccess},
        {cudaStreamCaptureModeRelaxed, cudaSuccess, cudaSuccess},
    };
    struct world w;
    world_open(&w, false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cudaGraph_t graph;
        cudaError_t own, other;
        pthread_t thread;
        ok(cudaStreamBeginCapture(w.stream, cases[i].mode));
        assert_int_equal(pthread_create(&thread, NULL, take_memory, &other), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(other, cases[i].other);
        take_memory(&own);
        assert_int_equal(own, cases[i].own);
        if (cudaStreamEndCapture(w.stream, &graph) == cudaSuccess)
            ok(cudaGraphDestroy(graph));
    }
    (void)cudaGetLastError();
    world_close(&w);
}

static void test_emulator_stream_capture_refuses_what_cannot_be_recorded(void **state)
{
    (void)state;
    struct world w;
    cudaGraph_t graph = NULL;
    void *p = NULL;
    world_open(&w, false);
    ok(cudaStreamBeginCapture(w.stream, cudaStreamCaptureModeGlobal));
    ok(emulator_try_add(w.device, N, 1, w.stream));
    assert_int_equal(cudaStreamSynchronize(w.stream), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(emulator_try_add(w.device, N, 1, w.stream), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaStreamEndCapture(w.stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);
    ok(cudaStreamBeginCapture(w.stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
    assert_int_equal(cudaStreamEndCapture(w.stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaStreamEndCapture(w.stream, &graph), cudaErrorStreamCaptureUnmatched);
    ok(cudaStreamSynchronize(w.stream)); /* it works again */
    (void)cudaGetLastError();
    world_close(&w);
}

/* ---- memory and errors -------------------------------------------------------------------------
 */

static void test_emulator_stream_copies_have_a_direction(void **state)
{
    (void)state;
    struct world w;
    int32_t pageable[N] = {0};
    size_t len = sizeof pageable;
    world_open(&w, false);
    static const enum cudaMemcpyKind up = cudaMemcpyHostToDevice, down = cudaMemcpyDeviceToHost;
    ok(cudaMemcpy(w.device, pageable, len, up));
    ok(cudaMemcpy(pageable, w.device, len, cudaMemcpyDefault));
    assert_int_equal(cudaMemcpy(w.device, pageable, len, down), cudaErrorInvalidMemcpyDirection);
    assert_int_equal(cudaMemcpy(pageable, w.pinned, len, up), cudaErrorInvalidMemcpyDirection);
    assert_int_equal(cudaMemcpy(w.device, w.device, len, up), cudaErrorInvalidMemcpyDirection);
    assert_int_equal(cudaMemcpy(w.device, pageable, len + 1, up), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(w.device + 1, pageable, len, up), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(pageable, 0, len), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(pageable), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(w.pinned), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    ok(cudaHostRegister(pageable, len, cudaHostRegisterDefault));
    assert_int_equal(cudaHostRegister(pageable, 4, 0), cudaErrorHostMemoryAlreadyRegistered);
    ok(emulator_try_add(pageable, N, 4, w.stream)); /* a kernel reaches it now */
    assert_int_equal(pageable[N - 1], 4);
    ok(cudaHostUnregister(pageable));
    assert_int_equal(cudaHostUnregister(pageable), cudaErrorHostMemoryNotRegistered);
    (void)cudaGetLastError();
    world_close(&w);
}

static void test_emulator_stream_memory_runs_out(void **state)
{
    (void)state;
    size_t free_bytes, total_bytes;
    void *p = NULL, *q = NULL;
    emulator_set_memory(1 << 20);
    ok(cudaMalloc(&p, 1 << 19));
    ok(cudaMemGetInfo(&free_bytes, &total_bytes));
    assert_int_equal(free_bytes, 1 << 19);
    assert_int_equal(total_bytes, 1 << 20);
    assert_int_equal(cudaMalloc(&q, (1 << 19) + 1), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    ok(cudaFree(p));
    emulator_set_memory((size_t)2 << 30);
}

static void test_emulator_stream_fails_when_told_to(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, true);
    emulator_fail_call(2, cudaErrorMemoryAllocation);
    ok(emulator_try_add(w.device, N, 1, w.stream));
    assert_int_equal(emulator_try_add(w.device, N, 1, w.stream), cudaErrorMemoryAllocation);
    ok(emulator_try_add(w.device, N, 1, w.stream));
    /* A kernel that crashes is told at the wait, and by all that follows. */
    emulator_fail_run(cudaErrorIllegalAddress);
    ok(emulator_try_add(w.device, N, 1, w.stream));
    assert_int_equal(cudaStreamSynchronize(w.stream), cudaErrorIllegalAddress);
    assert_int_equal(cudaMemset(w.device, 0, 4), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    emulator_revive();
    ok(cudaMemset(w.device, 0, 4));
    world_close(&w);
}

static void test_emulator_stream_counts_devices(void **state)
{
    (void)state;
    int n = -1;
    struct cudaDeviceProp prop;
    ok(cudaGetDeviceCount(&n));
    assert_int_equal(n, 1);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    ok(cudaGetDeviceProperties(&prop, 0));
    assert_int_equal(prop.sharedMemPerBlockOptin, 227 * 1024);
    emulator_set_devices(0);
    assert_int_equal(cudaGetDeviceCount(&n), cudaErrorNoDevice);
    assert_int_equal(n, 0);
    assert_string_equal(cudaGetErrorName(cudaErrorNoDevice), "cudaErrorNoDevice");
    emulator_set_devices(1);
    (void)cudaGetLastError();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_emulator_stream_fresh_memory_is_poison),
        cmocka_unit_test(test_emulator_stream_runs_lazily),
        cmocka_unit_test(test_emulator_stream_queries_make_progress),
        cmocka_unit_test(test_emulator_stream_waits_for_another),
        cmocka_unit_test(test_emulator_stream_calls_the_host_in_order),
        cmocka_unit_test(test_emulator_stream_graph_replays_what_was_recorded),
        cmocka_unit_test(test_emulator_stream_capture_is_of_its_thread),
        cmocka_unit_test(test_emulator_stream_capture_refuses_what_cannot_be_recorded),
        cmocka_unit_test(test_emulator_stream_copies_have_a_direction),
        cmocka_unit_test(test_emulator_stream_memory_runs_out),
        cmocka_unit_test(test_emulator_stream_fails_when_told_to),
        cmocka_unit_test(test_emulator_stream_counts_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
