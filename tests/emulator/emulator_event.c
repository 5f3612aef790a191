/* Events: places in a stream that others wait for, with the time they were passed. */
#include "tests/emulator/emulator_inside.h"

#include <stdlib.h>

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess) {
        *event = calloc(1, sizeof **event);
        if (*event == NULL)
            emulator_die("no memory for an event");
        emulator_count_live(1);
    }
    return emulator_leave(code);
}
cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    cudaError_t dead = emulator_enter_quietly();
    if (event == NULL)
        return emulator_leave(cudaErrorInvalidResourceHandle);
    emulator_run_all(); /* a record of it may be queued */
    free(event);
    emulator_count_live(-1);
    return emulator_leave(dead);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    cudaStream_t s = emulator_stream_of(stream);
    if (code == cudaSuccess && (event == NULL || s == NULL))
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess && s->capture == NULL && !s->is_capture_broken) {
        event->stream = s;
        event->number = s->n_added + 1;
        event->is_done = false;
    }
    struct emulator_op op = {.kind = EMULATOR_OP_RECORD, .record = event};
    if (code == cudaSuccess)
        code = emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}
/* Never recorded counts as done. */
static bool event_is_done(cudaEvent_t event)
{
    return event->stream == NULL || event->is_done;
}
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && event == NULL)
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess && !event_is_done(event)) {
        if (event->stream->first != NULL)
            emulator_run_first(event->stream);
        code = cudaErrorNotReady;
    }
    return emulator_leave(code);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && event == NULL)
        code = cudaErrorInvalidResourceHandle;
    if (code != cudaSuccess)
        return emulator_leave(code);
    if (!event_is_done(event))
        emulator_run_until(event->stream, event->number);
    return emulator_leave_after_run();
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (from == NULL || to == NULL || !from->has_time || !to->has_time))
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess && !(event_is_done(from) && event_is_done(to)))
        code = cudaErrorNotReady;
    if (code == cudaSuccess)
        *ms = (float)(to->at_ms - from->at_ms);
    return emulator_leave(code);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && event == NULL)
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess && event->stream != NULL && !event->is_done) {
        struct emulator_op op = {.kind = EMULATOR_OP_WAIT, .wait = {event->stream, event->number}};
        code = emulator_add(stream, &op, NULL);
    }
    return emulator_leave(code);
}
