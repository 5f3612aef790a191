/* Recorded operations: a CUDA graph per key, of which the least recently used goes.
 *
 * What replay did not find for the first time is run as it comes and only noted: libraries choose
 * their algorithms by trying them, and kernels are loaded when they first run, neither of which a
 * capture allows. The second time it is captured. A recording that no replay asked for is captured
 * at once. */
#include "kernels/cuda_backend.h"

#include <stdlib.h>

/* Every bucket of rows with every bucket of heads up to it, and room to spare. */
enum { CUDA_GRAPHS_MAX = 128 };

enum cuda_graphs_state { CUDA_GRAPHS_IDLE, CUDA_GRAPHS_WARMING, CUDA_GRAPHS_CAPTURING };

struct cuda_graph {
    uint64_t key;
    uint64_t last_used;   /* by the table's own count, from 1; 0: this entry is empty */
    cudaGraphExec_t exec; /* NULL: has only been run */
};

struct cuda_graphs {
    enum cuda_graphs_state state;
    bool is_first; /* the last replay met its key for the first time */
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
    return s->graphs->state != CUDA_GRAPHS_IDLE;
}

void cuda_graphs_abandon(struct cuda_stream *s)
{
    const bool is_capturing = s->graphs->state == CUDA_GRAPHS_CAPTURING;
    s->graphs->state = CUDA_GRAPHS_IDLE;
    if (!is_capturing)
        return;
    cudaGraph_t graph = NULL;
    if (cudaStreamEndCapture(s->stream, &graph) != cudaSuccess)
        (void)cudaGetLastError();
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
}

static struct cuda_graph *cuda_graphs_find(struct cuda_graphs *g, uint64_t key)
{
    for (int i = 0; i < CUDA_GRAPHS_MAX; i++)
        if (g->entries[i].last_used > 0 && g->entries[i].key == key)
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
    for (int i = 1; i < CUDA_GRAPHS_MAX; i++)
        if (g->entries[i].last_used < place->last_used)
            place = &g->entries[i];
    return place;
}

/* Puts exec (NULL: the key has been run) in its place. */
static enum status cuda_graphs_keep(struct cuda_stream *s, uint64_t key, cudaGraphExec_t exec,
                                    struct cuda_graph **out, struct err *err)
{
    struct cuda_graph *entry = cuda_graphs_place(s->graphs, key);
    enum status st = STATUS_OK;
    if (entry->exec != NULL) {
        /* It may still be running. */
        st = cuda_check(cudaStreamSynchronize(s->stream), "waiting for a stream", err);
        (void)cudaGraphExecDestroy(entry->exec);
    }
    *entry = (struct cuda_graph){.key = key, .last_used = ++s->graphs->n_uses, .exec = exec};
    *out = entry;
    return st;
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
    struct cuda_graphs *g = s->graphs;
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    if (g->state != CUDA_GRAPHS_IDLE)
        return err_set(err, STATUS_INVALID, "stream '%s' records already", base->name);
    if (g->is_first) {
        g->is_first = false;
        g->state = CUDA_GRAPHS_WARMING;
        return STATUS_OK;
    }
    /* Thread-local: what other threads do meanwhile (waiting, taking memory) is no part of it and
     * does not break it. */
    st = cuda_check(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal),
                    "beginning to record", err);
    if (st == STATUS_OK)
        g->state = CUDA_GRAPHS_CAPTURING;
    return st;
}

static enum status cuda_graphs_end_capture(struct cuda_stream *s, cudaGraphExec_t *exec,
                                           struct err *err)
{
    cudaGraph_t graph = NULL;
    enum status st =
        cuda_check(cudaStreamEndCapture(s->stream, &graph),
                   "recording (an operation in it failed, or cannot be recorded)", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaGraphInstantiateWithFlags(exec, graph, 0),
                        "making a recording runnable", err);
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    return st;
}

enum status cuda_record_end(struct kernels_stream *base, uint64_t key, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    struct cuda_graph *entry = NULL;
    cudaGraphExec_t exec = NULL;
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    const enum cuda_graphs_state state = s->graphs->state;
    if (state == CUDA_GRAPHS_IDLE)
        return err_set(err, STATUS_INVALID, "stream '%s' does not record", base->name);
    s->graphs->state = CUDA_GRAPHS_IDLE;
    if (state == CUDA_GRAPHS_CAPTURING)
        st = cuda_graphs_end_capture(s, &exec, err);
    if (st == STATUS_OK)
        st = cuda_graphs_keep(s, key, exec, &entry, err);
    return st == STATUS_OK && exec != NULL ? cuda_graphs_launch(s, entry, err) : st;
}

enum status cuda_replay(struct kernels_stream *base, uint64_t key, bool *is_done, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st == STATUS_OK && s->graphs->state != CUDA_GRAPHS_IDLE)
        st = err_set(err, STATUS_INVALID, "replay on stream '%s' while it records", base->name);
    if (st != STATUS_OK)
        return st;
    *is_done = false;
    struct cuda_graph *entry = cuda_graphs_find(s->graphs, key);
    s->graphs->is_first = entry == NULL;
    if (entry == NULL || entry->exec == NULL)
        return STATUS_OK;
    st = cuda_graphs_launch(s, entry, err);
    *is_done = st == STATUS_OK;
    return st;
}
