/* Recorded operations: a stream's capture, and what runs it again with the arguments of then. */
#include "tests/emulator/emulator_inside.h"

#include <stdlib.h>

void emulator_graph_append(struct CUgraph_st *graph, struct emulator_op *op)
{
    if (graph->last != NULL)
        graph->last->next = op;
    else
        graph->first = op;
    graph->last = op;
    graph->n_ops++;
}

void emulator_graph_clear(struct CUgraph_st *graph)
{
    while (graph->first != NULL) {
        struct emulator_op *op = graph->first;
        graph->first = op->next;
        free(op);
    }
    *graph = (struct CUgraph_st){0};
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    cudaError_t code = emulator_enter();
    cudaStream_t s = emulator_stream_of(stream);
    if (code == cudaSuccess && s == NULL)
        code = cudaErrorInvalidResourceHandle;
    /* The default stream cannot be captured. */
    if (code == cudaSuccess && stream == NULL)
        code = cudaErrorStreamCaptureUnsupported;
    if (code == cudaSuccess && s->capture != NULL)
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess) {
        s->capture = calloc(1, sizeof *s->capture);
        if (s->capture == NULL)
            emulator_die("no memory for a graph");
        s->capture_mode = mode;
        s->capture_thread = pthread_self();
        s->is_capture_broken = false;
    }
    return emulator_leave(code);
}

/* The capture is over also where it failed. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    cudaError_t code = emulator_enter();
    cudaStream_t s = emulator_stream_of(stream);
    if (s == NULL || s->capture == NULL)
        return emulator_leave(code != cudaSuccess ? code : cudaErrorStreamCaptureUnmatched);
    if (code == cudaSuccess && s->is_capture_broken)
        code = cudaErrorStreamCaptureInvalidated;
    if (code == cudaSuccess) {
        *graph = s->capture;
        emulator_count_live(1);
    } else {
        *graph = NULL;
        emulator_graph_clear(s->capture);
        free(s->capture);
    }
    s->capture = NULL;
    s->is_capture_broken = false;
    return emulator_leave(code);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    cudaError_t code = emulator_enter();
    cudaStream_t s = emulator_stream_of(stream);
    if (code == cudaSuccess && s == NULL)
        code = cudaErrorInvalidResourceHandle;
    if (code == cudaSuccess)
        *status = s->capture == NULL     ? cudaStreamCaptureStatusNone
                  : s->is_capture_broken ? cudaStreamCaptureStatusInvalidated
                                         : cudaStreamCaptureStatusActive;
    return emulator_leave(code);
}

/* Only the count: there is nothing to be seen of a node here. */
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n_nodes)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (graph == NULL || nodes != NULL))
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess)
        *n_nodes = graph->n_ops;
    return emulator_leave(code);
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags)
{
    (void)flags;
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && graph == NULL)
        code = cudaErrorInvalidValue;
    if (code == cudaSuccess) {
        *exec = calloc(1, sizeof **exec);
        if (*exec == NULL)
            emulator_die("no memory for a graph");
        for (const struct emulator_op *op = graph->first; op != NULL; op = op->next)
            emulator_graph_append(&(*exec)->ops, emulator_op_copy(op, op->arguments));
        emulator_count_live(1);
    }
    return emulator_leave(code);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
    return cudaGraphInstantiateWithFlags(exec, graph, flags);
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    if (code == cudaSuccess && (exec == NULL || emulator_stream_of(stream) == NULL))
        code = cudaErrorInvalidValue;
    return emulator_leave(code);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    cudaError_t code = emulator_enter();
    struct emulator_op op = {.kind = EMULATOR_OP_GRAPH, .graph = exec};
    if (code == cudaSuccess)
        code = exec == NULL ? cudaErrorInvalidValue : emulator_add(stream, &op, NULL);
    return emulator_leave(code);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    cudaError_t dead = emulator_enter_quietly();
    if (exec == NULL)
        return emulator_leave(cudaErrorInvalidValue);
    emulator_run_all(); /* a launch of it may be queued */
    emulator_graph_clear(&exec->ops);
    free(exec);
    emulator_count_live(-1);
    return emulator_leave(dead);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    cudaError_t dead = emulator_enter_quietly();
    if (graph == NULL)
        return emulator_leave(cudaErrorInvalidValue);
    emulator_graph_clear(graph);
    free(graph);
    emulator_count_live(-1);
    return emulator_leave(dead);
}

/* Everything that is still there is given back; the device works again after a failure. */
cudaError_t cudaDeviceReset(void)
{
    emulator_enter_quietly();
    emulator_run_all();
    emulator_memory_reset();
    emulator_revive();
    return emulator_leave(cudaSuccess);
}
