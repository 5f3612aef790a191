/* Streams: queues of operations that run in order, at once or (lazy) when somebody waits. */
#include "tests/emulator/emulator_inside.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The default stream of each device comes first; NULL stands for it. */
static struct CUstream_st defaults[EMULATOR_MAX_DEVICES];
static struct CUstream_st *streams;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

cudaStream_t emulator_stream_of(cudaStream_t stream)
{
    if (stream == NULL)
        return &defaults[emulator_device()];
    for (struct CUstream_st *s = streams; s != NULL; s = s->next)
        if (s == stream)
            return s;
    return NULL;
}

/* ---- running -----------------------------------------------------------------------------------
 */

static void run_copy(const struct emulator_op *op)
{
    for (size_t y = 0; y < op->copy.height; y++)
        memmove((unsigned char *)op->copy.dst + y * op->copy.dst_pitch,
                (const unsigned char *)op->copy.src + y * op->copy.src_pitch, op->copy.width);
    emulator_count(0, 1, 0);
}

static void run_record(cudaStream_t stream, const struct emulator_op *op)
{
    cudaEvent_t event = op->record;
    event->has_time = true;
    event->at_ms = now_ms();
    if (event->stream == stream && event->number == op->number)
        event->is_done = true;
}

void emulator_run_op(const struct emulator_op *op)
{
    cudaError_t failure = emulator_take_run_failure();
    if (failure != cudaSuccess) {
        emulator_poison_context(failure);
        return;
    }
    switch (op->kind) {
    case EMULATOR_OP_KERNEL:
        emulator_count(1, 0, 0);
        emulator_run_kernel(&op->kernel, op->arguments);
        break;
    case EMULATOR_OP_COPY:
        run_copy(op);
        break;
    case EMULATOR_OP_SET:
        memset(op->set.p, op->set.value, op->set.len);
        break;
    case EMULATOR_OP_CALL:
        emulator_arena_call(op->call.function, op->call.user);
        break;
    case EMULATOR_OP_RUN:
        op->run.run(op->arguments);
        emulator_check_guards(op->run.name);
        break;
    case EMULATOR_OP_GRAPH:
        emulator_count(0, 0, 1);
        for (const struct emulator_op *o = op->graph->ops.first; o != NULL; o = o->next)
            emulator_run_op(o);
        break;
    case EMULATOR_OP_RECORD:
    case EMULATOR_OP_WAIT:
        break; /* emulator_run_first's */
    }
}

void emulator_run_first(cudaStream_t stream)
{
    struct emulator_op *op = stream->first;
    stream->first = op->next;
    if (stream->first == NULL)
        stream->last = NULL;
    stream->n_done = op->number;
    emulator_arena_open();
    if (op->kind == EMULATOR_OP_RECORD)
        run_record(stream, op);
    else if (op->kind == EMULATOR_OP_WAIT) {
        if (op->wait.stream != NULL)
            emulator_run_until(op->wait.stream, op->wait.number);
    } else
        emulator_run_op(op);
    emulator_arena_close();
    free(op);
}

void emulator_run_until(cudaStream_t stream, uint64_t number)
{
    if (stream->first == NULL || stream->first->number > number)
        return;
    emulator_arena_open(); /* once for all of them */
    while (stream->first != NULL && stream->first->number <= number)
        emulator_run_first(stream);
    emulator_arena_close();
}

void emulator_run_all(void)
{
    for (struct CUstream_st *s = streams; s != NULL; s = s->next)
        emulator_run_until(s, UINT64_MAX);
    for (int i = 0; i < EMULATOR_MAX_DEVICES; i++)
        emulator_run_until(&defaults[i], UINT64_MAX);
}

/* The default stream and the blocking ones wait for each other. */
static void order_with_default(cudaStream_t stream)
{
    bool is_default = stream >= defaults && stream < defaults + EMULATOR_MAX_DEVICES;
    if (is_default)
        for (struct CUstream_st *s = streams; s != NULL; s = s->next)
            if (s->is_blocking)
                emulator_run_until(s, UINT64_MAX);
    if (!is_default && stream->is_blocking)
        emulator_run_until(&defaults[stream->device], UINT64_MAX);
}

/* ---- adding ------------------------------------------------------------------------------------
 */

struct emulator_op *emulator_op_copy(const struct emulator_op *op, const void *arguments)
{
    struct emulator_op *copy = malloc(sizeof *copy + op->len_bytes);
    if (copy == NULL)
        emulator_die("no memory for an operation of a stream");
    *copy = *op;
    copy->next = NULL;
    if (op->len_bytes > 0)
        memcpy(copy->arguments, arguments, op->len_bytes);
    return copy;
}

cudaError_t emulator_add(cudaStream_t stream, const struct emulator_op *op, const void *arguments)
{
    cudaStream_t s = emulator_stream_of(stream);
    if (s == NULL)
        return cudaErrorInvalidResourceHandle;
    if (s->is_capture_broken)
        return cudaErrorStreamCaptureInvalidated;
    if (s->capture != NULL) {
        /* What another stream recorded, or has to wait for, is no part of this graph. */
        if (op->kind == EMULATOR_OP_RECORD || op->kind == EMULATOR_OP_WAIT)
            return emulator_break_capture(s);
        emulator_graph_append(s->capture, emulator_op_copy(op, arguments));
        return cudaSuccess;
    }
    struct emulator_op *added = emulator_op_copy(op, arguments);
    added->number = ++s->n_added;
    if (s->last != NULL)
        s->last->next = added;
    else
        s->first = added;
    s->last = added;
    order_with_default(s);
    if (!emulator_is_lazy())
        emulator_run_until(s, UINT64_MAX);
    return cudaSuccess;
}

cudaError_t emulator_enqueue(cudaStream_t stream, const char *name, void (*run)(const void *),
                             const void *arguments, size_t len_bytes)
{
    cudaError_t code = emulator_enter();
    struct emulator_op op = {.kind = EMULATOR_OP_RUN, .run = {name, run}, .len_bytes = len_bytes};
    if (code == cudaSuccess)
        code = emulator_add(stream, &op, arguments);
    return emulator_leave(code);
}

cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (width > dst_pitch || width > src_pitch))
        code = cudaErrorInvalidValue;
    if (width == 0 || height == 0)
        return emulator_leave(code);
    if (code == cudaSuccess)
        code = emulator_check_copy(dst, src, width, kind);
    if (code == cudaSuccess)
        code =
            emulator_check_copy((unsigned char *)dst + (height - 1) * dst_pitch,
                                (const unsigned char *)src + (height - 1) * src_pitch, width, kind);
    struct emulator_op op = {.kind = EMULATOR_OP_COPY,
                             .copy = {dst, src, dst_pitch, src_pitch, width, height}};
    if (code == cudaSuccess)
        code = emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t len, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        code = emulator_check_copy(dst, src, len, kind);
    struct emulator_op op = {.kind = EMULATOR_OP_COPY, .copy = {dst, src, len, len, len, 1}};
    if (code == cudaSuccess && len > 0)
        code = emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t len, cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    enum emulator_place place;
    int device;
    if (code == cudaSuccess && len > 0 &&
        (!emulator_place_of(p, len, &place, &device) || place == EMULATOR_PAGEABLE))
        code = cudaErrorInvalidValue;
    struct emulator_op op = {.kind = EMULATOR_OP_SET, .set = {p, value, len}};
    if (code == cudaSuccess && len > 0)
        code = emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}

/* On the default stream, and done when it returns. */
static cudaError_t finish_default(cudaError_t code)
{
    if (code != cudaSuccess)
        return code;
    code = emulator_enter_quietly();
    emulator_run_until(emulator_stream_of(NULL), UINT64_MAX);
    cudaError_t after = emulator_enter_quietly();
    emulator_leave(cudaSuccess);
    return emulator_leave(code != cudaSuccess ? code : after);
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t len, enum cudaMemcpyKind kind)
{
    cudaError_t code = emulator_enter_quietly();
    if (code == cudaSuccess)
        code = emulator_refuse_in_capture();
    if (emulator_leave(code) != cudaSuccess)
        return code;
    return finish_default(cudaMemcpyAsync(dst, src, len, kind, NULL));
}
cudaError_t cudaMemset(void *p, int value, size_t len)
{
    return finish_default(cudaMemsetAsync(p, value, len, NULL));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *user)
{
    cudaError_t code = emulator_enter();
    struct emulator_op op = {.kind = EMULATOR_OP_CALL, .call = {function, user}};
    if (code == cudaSuccess)
        code = function == NULL ? cudaErrorInvalidValue : emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}

/* ---- streams -----------------------------------------------------------------------------------
 */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    (void)priority;
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess) {
        struct CUstream_st *s = calloc(1, sizeof *s);
        if (s == NULL)
            emulator_die("no memory for a stream");
        s->device = emulator_device();
        s->is_blocking = (flags & cudaStreamNonBlocking) == 0;
        s->next = streams;
        streams = s;
        emulator_count_live(1);
        *stream = s;
    }
    return emulator_leave(code);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

static void forget_waits(const struct CUstream_st *in, cudaStream_t gone)
{
    for (struct emulator_op *op = in->first; op != NULL; op = op->next)
        if (op->kind == EMULATOR_OP_WAIT && op->wait.stream == gone)
            op->wait.stream = NULL;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaError_t dead = emulator_enter_quietly();
    struct CUstream_st **at = &streams;
    while (*at != NULL && *at != stream)
        at = &(*at)->next;
    if (*at == NULL)
        return emulator_leave(cudaErrorInvalidResourceHandle);
    emulator_run_until(stream, UINT64_MAX);
    *at = stream->next;
    for (struct CUstream_st *s = streams; s != NULL; s = s->next)
        forget_waits(s, stream);
    if (stream->capture != NULL) {
        emulator_graph_clear(stream->capture);
        free(stream->capture);
    }
    free(stream);
    emulator_count_live(-1);
    return emulator_leave(dead);
}

/* Waiting, and asking, on a stream that captures ends the capture with an error. */
static cudaError_t stream_enter(cudaStream_t stream, cudaStream_t *out)
{
    cudaError_t code = emulator_enter();
    cudaStream_t s = emulator_stream_of(stream);
    if (code == cudaSuccess && s == NULL)
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess && s->capture != NULL)
        code = emulator_break_capture(s);
    *out = s;
    return code;
}

/* What became of it: an operation that ran may have killed the device. */
cudaError_t emulator_leave_after_run(void)
{
    cudaError_t code = emulator_enter_quietly();
    emulator_leave(cudaSuccess);
    return emulator_leave(code);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaStream_t s;
    cudaError_t code = stream_enter(stream, &s);
    if (code != cudaSuccess)
        return emulator_leave(code);
    order_with_default(s);
    emulator_run_until(s, UINT64_MAX);
    return emulator_leave_after_run();
}
cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess)
        code = emulator_refuse_in_capture();
    if (code != cudaSuccess)
        return emulator_leave(code);
    emulator_run_all();
    return emulator_leave_after_run();
}
cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    cudaStream_t s;
    cudaError_t code = stream_enter(stream, &s);
    if (code == cudaSuccess && s->first != NULL) {
        emulator_run_first(s);
        code = cudaErrorNotReady;
    }
    return emulator_leave(code);
}

/* ---- captures ----------------------------------------------------------------------------------
 */

cudaError_t emulator_break_capture(cudaStream_t stream)
{
    if (stream->capture != NULL)
        emulator_graph_clear(stream->capture);
    stream->is_capture_broken = true;
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t emulator_refuse_in_capture(void)
{
    cudaError_t code = cudaSuccess;
    for (struct CUstream_st *s = streams; s != NULL; s = s->next)
        if (s->capture != NULL && (s->capture_mode == cudaStreamCaptureModeGlobal ||
                                   (s->capture_mode == cudaStreamCaptureModeThreadLocal &&
                                    pthread_equal(s->capture_thread, pthread_self()))))
            code = emulator_break_capture(s);
    return code;
}
