/* Recorded operations: a CUDA graph per key, of which the least recently used goes. */
#include "kernels/cuda_backend.h"

#include <stdlib.h>

/* The buckets of rows, a few times over. */
enum { CUDA_GRAPHS_MAX = 64 };

struct cuda_graph {
    uint64_t key;
    uint64_t last_used;   /* by the table's own count */
    cudaGraphExec_t exec; /* NULL: this entry is empty */
};

struct cuda_graphs {
    bool is_recording;
    uint64_t n_uses;
    struct cuda_graph entries[CUDA_GRAPHS_MAX];
};

enum status cuda_graphs_create(struct cuda_stream *s, struct err *err)
{
    s->graphs = calloc(1, sizeof *s->graphs);
    if (s->graphs == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for recordings of stream '%s'",
                       s->base.name);
    return STATUS_OK;
}

void cuda_graphs_destroy(struct cuda_stream *s)
{
    cuda_graphs_abandon(s);
    for (int i = 0; i < CUDA_GRAPHS_MAX; i++)
        if (s->graphs->entries[i].exec != NULL)
            (void)cudaGraphExecDestroy(s->graphs->entries[i].exec);
    free(s->graphs);
    s->graphs = NULL;
}

bool cuda_is_recording(const struct cuda_stream *s)
{
    return s->graphs->is_recording;
}

void cuda_graphs_abandon(struct cuda_stream *s)
{
    if (!s->graphs->is_recording)
        return;
    s->graphs->is_recording = false;
    cudaGraph_t graph = NULL;
    if (cudaStreamEndCapture(s->stream, &graph) != cudaSuccess)
        (void)cudaGetLastError();
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
}

static struct cuda_graph *cuda_graphs_find(struct cuda_graphs *g, uint64_t key)
{
    for (int i = 0; i < CUDA_GRAPHS_MAX; i++)
        if (g->entries[i].exec != NULL && g->entries[i].key == key)
            return &g->entries[i];
    return NULL;
}

/* The entry a new recording goes to: its key's own, an empty one, or the least recently used. */
static struct cuda_graph *cuda_graphs_place(struct cuda_graphs *g, uint64_t key)
{
    struct cuda_graph *place = cuda_graphs_find(g, key);
    if (place != NULL)
        return place;
    place = &g->entries[0];
    for (int i = 0; i < CUDA_GRAPHS_MAX; i++) {
        if (g->entries[i].exec == NULL)
            return &g->entries[i];
        if (g->entries[i].last_used < place->last_used)
            place = &g->entries[i];
    }
    return place;
}

static enum status cuda_graphs_launch(struct cuda_stream *s, struct cuda_graph *entry,
                                      struct err *err)
{
    entry->last_used = ++s->graphs->n_uses;
    return cuda_check(cudaGraphLaunch(entry->exec, s->stream), "running what was recorded", err);
}

enum status cuda_record_begin(struct kernels_stream *base, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    if (s->graphs->is_recording)
        return err_set(err, STATUS_INVALID, "stream '%s' records already", base->name);
    /* Thread-local: what other threads do meanwhile (waiting, taking memory) is no part of it and
     * does not break it. */
    st = cuda_check(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal),
                    "beginning to record", err);
    s->graphs->is_recording = st == STATUS_OK;
    return st;
}

enum status cuda_record_end(struct kernels_stream *base, uint64_t key, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    if (!s->graphs->is_recording)
        return err_set(err, STATUS_INVALID, "stream '%s' does not record", base->name);
    s->graphs->is_recording = false;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    st = cuda_check(cudaStreamEndCapture(s->stream, &graph),
                    "recording (an operation in it failed, or cannot be recorded)", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaGraphInstantiateWithFlags(&exec, graph, 0),
                        "making a recording runnable", err);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    if (st != STATUS_OK)
        return st;
    struct cuda_graph *entry = cuda_graphs_place(s->graphs, key);
    if (entry->exec != NULL) {
        /* It may still be running. */
        st = cuda_check(cudaStreamSynchronize(s->stream), "waiting for a stream", err);
        (void)cudaGraphExecDestroy(entry->exec);
    }
    *entry = (struct cuda_graph){.key = key, .exec = exec};
    return st == STATUS_OK ? cuda_graphs_launch(s, entry, err) : st;
}

enum status cuda_replay(struct kernels_stream *base, uint64_t key, bool *is_done, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st == STATUS_OK && s->graphs->is_recording)
        st = err_set(err, STATUS_INVALID, "replay on stream '%s' while it records", base->name);
    if (st != STATUS_OK)
        return st;
    struct cuda_graph *entry = cuda_graphs_find(s->graphs, key);
    if (entry == NULL)
        return STATUS_OK;
    st = cuda_graphs_launch(s, entry, err);
    *is_done = st == STATUS_OK;
    return st;
}
