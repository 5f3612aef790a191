/* Batches of a stream: packed into pinned memory, sent in one copy, marked, waited for. */
#include "kernels/cuda_backend.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CUDA_PACK_ALIGN = 16 };

/* How long a waiting thread asks before it sleeps: longer than waking up costs. */
static const int64_t wait_spin_ns = 100 * 1000;

static size_t cuda_pack_room(size_t len_bytes)
{
    return (len_bytes + CUDA_PACK_ALIGN - 1) / CUDA_PACK_ALIGN * CUDA_PACK_ALIGN;
}

void *cuda_pack_take(struct cuda_pack *p, size_t len_bytes, void *device_out)
{
    size_t at = p->used_bytes;
    assert(len_bytes <= p->cap_bytes && cuda_pack_room(len_bytes) <= p->cap_bytes - at);
    p->used_bytes = at + cuda_pack_room(len_bytes);
    void *device = p->device + at;
    memcpy(device_out, &device, sizeof device);
    return p->host + at;
}

/* ---- start and end ----------------------------------------------------------------------------
 */

static size_t cuda_pack_bytes(const struct kernels_limits *l)
{
    const size_t rows = cuda_pack_room((size_t)l->n_rows * sizeof(int32_t));
    return cuda_pack_room(sizeof(struct cuda_batch)) + 4 * rows +
           cuda_pack_room((size_t)l->n_segments * sizeof(struct kernels_segment)) +
           cuda_pack_room((size_t)l->n_table * sizeof(int32_t)) +
           cuda_pack_room(cuda_attention_pack_bytes(l)) + cuda_pack_room(cuda_finish_pack_bytes(l));
}

static enum status cuda_flight_create(struct cuda_stream *s, struct cuda_flight *f, struct err *err)
{
    struct kernels *k = s->base.kernels;
    const struct kernels_limits *l = &s->base.limits;
    void *staging = NULL, *outcomes = NULL, *logits = NULL;
    /* Without BlockingSync the driver burns the core as long as it waits. */
    unsigned flags = cudaEventDisableTiming;
    if (!cuda_kernels_of(&s->base)->may_spin)
        flags |= cudaEventBlockingSync;
    enum status st =
        cuda_check(cudaEventCreateWithFlags(&f->done, flags), "creating an event", err);
    if (st == STATUS_OK)
        st = cuda_host_alloc(k, s->pack_bytes, &staging, err);
    f->staging = staging;
    if (st == STATUS_OK)
        st = cuda_host_alloc(k, (size_t)l->n_segments * sizeof *f->outcomes, &outcomes, err);
    f->outcomes = outcomes;
    if (st == STATUS_OK && l->n_wanted_logits > 0 && l->vocab_size > 0)
        st = cuda_host_alloc(k, (size_t)l->n_wanted_logits * (size_t)l->vocab_size * sizeof(float),
                             &logits, err);
    f->wanted_logits = logits;
    if (st != STATUS_OK)
        return st;
    f->wanted_place = calloc((size_t)l->n_segments, sizeof *f->wanted_place);
    if (f->wanted_place == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d live rows", (int)l->n_segments);
    return STATUS_OK;
}

static void cuda_flight_destroy(struct kernels *k, struct cuda_flight *f)
{
    cuda_host_free(k, f->staging);
    cuda_host_free(k, f->outcomes);
    cuda_host_free(k, f->wanted_logits);
    free(f->wanted_place);
    if (f->done != NULL)
        (void)cudaEventDestroy(f->done);
    memset(f, 0, sizeof *f);
}

void cuda_stream_release(struct cuda_stream *s)
{
    if (s->finish != NULL)
        cuda_finish_release(s);
    if (s->attention != NULL)
        cuda_attention_release(s);
    if (s->linear != NULL)
        cuda_linear_release(s);
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++)
        cuda_flight_destroy(s->base.kernels, &s->flights[i]);
    if (s->device_batch != NULL)
        (void)cudaFree(s->device_batch);
    s->device_batch = NULL;
}

enum status cuda_stream_reserve(struct kernels_stream *base, const struct kernels_limits *limits,
                                struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    base->limits = *limits;
    s->pack_bytes = cuda_pack_bytes(limits);
    void *device = NULL;
    st = cuda_take_memory(s->pack_bytes, "batch tables", &device, err);
    s->device_batch = device;
    for (int i = 0; st == STATUS_OK && i < KERNELS_MAX_IN_FLIGHT; i++)
        st = cuda_flight_create(s, &s->flights[i], err);
    if (st == STATUS_OK)
        st = cuda_linear_reserve(s, err);
    if (st == STATUS_OK)
        st = cuda_attention_reserve(s, err);
    if (st == STATUS_OK)
        st = cuda_finish_reserve(s, err);
    if (st != STATUS_OK)
        cuda_stream_release(s);
    return st;
}

/* ---- bind -------------------------------------------------------------------------------------
 */

/* Entries of the block table up to the last that a segment names. */
static size_t cuda_table_entries(const struct kernels_batch *batch)
{
    size_t n = 0;
    for (int i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *g = &batch->segments[i];
        size_t end = (size_t)g->first_block + (size_t)g->n_blocks;
        n = end > n ? end : n;
    }
    return n;
}

static void cuda_pack_copy(struct cuda_pack *pack, const void *from, size_t len_bytes,
                           void *device_out)
{
    if (from != NULL)
        memcpy(cuda_pack_take(pack, len_bytes, device_out), from, len_bytes);
}

/* Every array of the batch into the pack, its device address into *out. */
static void cuda_pack_batch(struct cuda_stream *s, const struct kernels_batch *batch,
                            size_t n_table, struct cuda_pack *pack, struct cuda_batch *out)
{
    const size_t n_rows = (size_t)batch->n_rows;
    out->n_rows = batch->n_rows;
    out->n_segments = batch->n_segments;
    out->n_live = batch->n_live;
    cuda_pack_copy(pack, batch->slots, n_rows * sizeof(int32_t), &out->slots);
    cuda_pack_copy(pack, batch->ids, n_rows * sizeof(int32_t), &out->ids);
    int32_t *positions = cuda_pack_take(pack, n_rows * sizeof(int32_t), &out->positions);
    int32_t *row_segments = cuda_pack_take(pack, n_rows * sizeof(int32_t), &out->row_segments);
    for (int g = 0; g < batch->n_segments; g++) {
        const struct kernels_segment *segment = &batch->segments[g];
        for (int i = 0; i < segment->n_rows; i++) {
            positions[segment->first_row + i] = segment->first_position + i;
            row_segments[segment->first_row + i] = g;
        }
    }
    cuda_pack_copy(pack, batch->segments, (size_t)batch->n_segments * sizeof *batch->segments,
                   &out->segments);
    cuda_pack_copy(pack, batch->block_table, n_table * sizeof *batch->block_table,
                   &out->block_table);
    cuda_attention_pack(s, batch, pack, out);
    cuda_finish_pack(s, batch, pack, out);
}

enum status cuda_bind(struct kernels_stream *base, const struct kernels_batch *batch,
                      const struct kernels_kv *kv, int flight, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    if (cuda_is_recording(s))
        return err_set(err, STATUS_INVALID, "bind: stream '%s' records", base->name);
    struct cuda_flight *f = &s->flights[flight];
    /* Its staging may still be read, its outcomes still be written. */
    if (atomic_load(&f->state) != CUDA_FLIGHT_FREE)
        return err_set(err, STATUS_INVALID, "bind: flight %d of stream '%s' was not waited for",
                       flight, base->name);
    int n_wanted = 0;
    for (int i = 0; i < batch->n_live; i++)
        f->wanted_place[i] = batch->live[i].wants_logits ? n_wanted++ : -1;

    struct cuda_batch packed = {.outcomes = f->outcomes, .wanted_logits = f->wanted_logits};
    struct cuda_pack pack = {
        .host = f->staging, .device = (unsigned char *)s->device_batch, .cap_bytes = s->pack_bytes};
    void *first;
    struct cuda_batch *head = cuda_pack_take(&pack, sizeof *head, &first);
    s->flight = flight;
    /* Without a pool nothing reads the table, and nobody has checked it. */
    cuda_pack_batch(s, batch, kv == NULL ? 0 : cuda_table_entries(batch), &pack, &packed);
    *head = packed;
    s->host_batch = packed;
    st = cuda_check(cudaMemcpyAsync(s->device_batch, f->staging, pack.used_bytes,
                                    cudaMemcpyHostToDevice, s->stream),
                    "sending a batch to the GPU", err);
    if (st == STATUS_OK)
        atomic_store(&f->state, CUDA_FLIGHT_BOUND);
    return st;
}

/* ---- mark and wait ----------------------------------------------------------------------------
 */

enum status cuda_mark(struct kernels_stream *base, int flight, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    struct cuda_flight *f = &s->flights[flight];
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    if (atomic_load(&f->state) != CUDA_FLIGHT_BOUND || cuda_is_recording(s))
        return err_set(err, STATUS_INVALID, "mark: flight %d of stream '%s' %s", flight, base->name,
                       cuda_is_recording(s) ? "is being recorded" : "is not the bound one");
    st = cuda_check(cudaEventRecord(f->done, s->stream), "marking the end of a batch", err);
    if (st == STATUS_OK)
        atomic_store(&f->state, CUDA_FLIGHT_MARKED);
    return st;
}

static int64_t cuda_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Touches nothing of the stream but the flight: another thread may bind and launch meanwhile. */
enum status cuda_wait(struct kernels_stream *base, int flight, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    struct cuda_flight *f = &s->flights[flight];
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    int state = atomic_load(&f->state);
    if (state == CUDA_FLIGHT_FREE)
        return STATUS_OK;
    if (state == CUDA_FLIGHT_BOUND)
        return err_set(err, STATUS_INVALID, "wait: flight %d of stream '%s' was not marked", flight,
                       base->name);
    cudaError_t code = cudaEventQuery(f->done);
    const int64_t until_ns = cuda_now_ns() + wait_spin_ns;
    while (code == cudaErrorNotReady && cuda_now_ns() < until_ns)
        code = cudaEventQuery(f->done);
    if (code == cudaErrorNotReady)
        code = cudaEventSynchronize(f->done);
    /* Some runtimes remember "not ready" as an error, and a launch of this thread would find it. */
    if (code == cudaSuccess)
        (void)cudaGetLastError();
    atomic_store(&f->state, CUDA_FLIGHT_FREE);
    return cuda_check(code, "waiting for a batch", err);
}

void cuda_flights_land(struct cuda_stream *s)
{
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++)
        atomic_store(&s->flights[i].state, CUDA_FLIGHT_FREE);
}

const struct kernels_outcome *cuda_outcomes(const struct kernels_stream *s, int flight)
{
    return ((const struct cuda_stream *)s)->flights[flight].outcomes;
}

const float *cuda_outcome_logits(const struct kernels_stream *s, int flight, int i)
{
    const struct cuda_flight *f = &((const struct cuda_stream *)s)->flights[flight];
    assert(f->wanted_place[i] >= 0);
    return f->wanted_logits + (size_t)f->wanted_place[i] * (size_t)s->limits.vocab_size;
}
