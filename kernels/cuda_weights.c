/* Weights on the device: copied from the mapped checkpoint by a few threads, converted on the way.
 *
 * A load takes device memory and queues a copy; reader threads cut the copies into pieces, fault
 * them in, convert them into pinned staging and send them, each on its own stream with two pieces
 * in turn, so that reading the file, converting and the bus all work at once. weights_ready ends
 * the readers and gives their staging back. */
#include "kernels/cpu_backend.h"
#include "kernels/cuda_backend.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
    WEIGHTS_MAX_READERS = 4, /* more do not read the page cache faster than the bus takes it */
    WEIGHTS_MIN_READERS = 2,
    WEIGHTS_WIDEN_STEP = 4096, /* elements converted at a time, on the stack */
    WEIGHTS_ALIGN = 256,
};
/* On the device. */
static const size_t weights_piece_bytes = (size_t)16 << 20;
static const size_t weights_arena_min_bytes = (size_t)16 << 20;
static const size_t weights_arena_max_bytes = (size_t)256 << 20;

/* to[i] = from[i], n elements, as bf16 (round to nearest even) or fp32. */
struct weights_copy {
    const unsigned char *from;
    unsigned char *to;
    size_t n;
    enum dtype from_dtype, to_dtype;
};

struct weights_arena {
    unsigned char *base;
    size_t len_bytes, used_bytes;
    int n_live; /* weights in it: the last that goes frees it */
};

struct weights_reader {
    struct cuda_weights *weights;
    pthread_t thread;
    cudaStream_t stream;
    unsigned char *pieces[2]; /* pinned */
    cudaEvent_t is_free[2];
    int next;
};

struct cuda_weights {
    struct cuda_kernels *kernels;
    const struct cpu_level *level; /* its widen reads every type at any alignment */
    struct weights_arena *arenas;
    int n_arenas;

    pthread_mutex_t lock; /* of what follows, while readers run */
    pthread_cond_t changed;
    struct weights_copy *copies; /* since the last weights_ready */
    size_t n_copies, cap_copies;
    size_t next_copy, next_element; /* where the next piece begins */
    bool is_closed;                 /* no more copies come */
    enum status status;             /* the first failure of a reader, until it is told */
    struct err err;

    struct weights_reader readers[WEIGHTS_MAX_READERS];
    int n_readers; /* running */
    double start_s, took_s;
    uint64_t n_bytes, done_bytes;
};

static double weights_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- readers ----------------------------------------------------------------------------------
 */

/* The next piece of the next copy; waits for one. False: there is nothing more to do. */
static bool weights_take_piece(struct cuda_weights *w, struct weights_copy *piece)
{
    pthread_mutex_lock(&w->lock);
    while (w->next_copy == w->n_copies && !w->is_closed && w->status == STATUS_OK)
        pthread_cond_wait(&w->changed, &w->lock);
    bool is_there = w->next_copy < w->n_copies && w->status == STATUS_OK;
    if (is_there) {
        *piece = w->copies[w->next_copy];
        const size_t most = weights_piece_bytes / dtype_bytes(piece->to_dtype);
        const size_t left = piece->n - w->next_element;
        piece->from += w->next_element * dtype_bytes(piece->from_dtype);
        piece->to += w->next_element * dtype_bytes(piece->to_dtype);
        piece->n = left < most ? left : most;
        w->next_element += piece->n;
        if (piece->n == left) {
            w->next_copy++;
            w->next_element = 0;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return is_there;
}

/* Maps the piece's pages in one call, which costs a fraction of a fault each. A hint: where the
 * system does not know it, the pages fault in one by one. */
static void weights_populate(const unsigned char *from, size_t len_bytes)
{
#ifdef MADV_POPULATE_READ
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (uintptr_t)from / page * page;
    (void)madvise((void *)first, (uintptr_t)from + len_bytes - first, MADV_POPULATE_READ);
#else
    (void)from;
    (void)len_bytes;
#endif
}

static void weights_convert(const struct cuda_weights *w, const struct weights_copy *piece,
                            unsigned char *to)
{
    if (piece->from_dtype == piece->to_dtype) {
        memcpy(to, piece->from, piece->n * dtype_bytes(piece->to_dtype));
        return;
    }
    if (piece->to_dtype == DTYPE_F32) {
        w->level->widen((float *)(void *)to, piece->from, piece->from_dtype, piece->n);
        return;
    }
    float wide[WEIGHTS_WIDEN_STEP];
    uint16_t *narrow = (uint16_t *)(void *)to;
    for (size_t at = 0; at < piece->n; at += WEIGHTS_WIDEN_STEP) {
        size_t n = piece->n - at < WEIGHTS_WIDEN_STEP ? piece->n - at : WEIGHTS_WIDEN_STEP;
        w->level->widen(wide, piece->from + at * dtype_bytes(piece->from_dtype), piece->from_dtype,
                        n);
        for (size_t i = 0; i < n; i++)
            narrow[at + i] = dtype_to_bf16(wide[i]);
    }
}

static enum status weights_reader_open(struct weights_reader *r, struct err *err)
{
    struct kernels *k = &r->weights->kernels->base;
    enum status st = cuda_use(r->weights->kernels, err);
    if (st == STATUS_OK)
        st = cuda_check(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking),
                        "creating a stream", err);
    for (int i = 0; st == STATUS_OK && i < 2; i++) {
        void *host = NULL;
        st = cuda_host_alloc(k, weights_piece_bytes, &host, err);
        r->pieces[i] = host;
        if (st == STATUS_OK)
            st = cuda_check(cudaEventCreateWithFlags(&r->is_free[i], cudaEventDisableTiming |
                                                                         cudaEventBlockingSync),
                            "creating an event", err);
    }
    return st;
}

static void weights_reader_close(struct weights_reader *r)
{
    for (int i = 0; i < 2; i++) {
        if (r->is_free[i] != NULL)
            (void)cudaEventDestroy(r->is_free[i]);
        if (r->pieces[i] != NULL)
            (void)cudaFreeHost(r->pieces[i]);
        r->is_free[i] = NULL;
        r->pieces[i] = NULL;
    }
    if (r->stream != NULL)
        (void)cudaStreamDestroy(r->stream);
    r->stream = NULL;
}

static enum status weights_send_piece(struct weights_reader *r, const struct weights_copy *piece,
                                      struct err *err)
{
    const int i = r->next;
    r->next = 1 - i;
    weights_populate(piece->from, piece->n * dtype_bytes(piece->from_dtype));
    enum status st = cuda_check(cudaEventSynchronize(r->is_free[i]), "waiting for a copy", err);
    if (st != STATUS_OK)
        return st;
    weights_convert(r->weights, piece, r->pieces[i]);
    st =
        cuda_check(cudaMemcpyAsync(piece->to, r->pieces[i], piece->n * dtype_bytes(piece->to_dtype),
                                   cudaMemcpyHostToDevice, r->stream),
                   "copying weights to the GPU", err);
    return st == STATUS_OK
               ? cuda_check(cudaEventRecord(r->is_free[i], r->stream), "recording an event", err)
               : st;
}

static void *weights_reader_run(void *context)
{
    struct weights_reader *r = context;
    struct cuda_weights *w = r->weights;
    struct err err = {.code = STATUS_OK};
    struct weights_copy piece;
    uint64_t n_bytes = 0;
    enum status st = weights_reader_open(r, &err);
    while (st == STATUS_OK && weights_take_piece(w, &piece)) {
        st = weights_send_piece(r, &piece, &err);
        n_bytes += piece.n * dtype_bytes(piece.to_dtype);
    }
    if (r->stream != NULL) {
        struct err late = {.code = STATUS_OK};
        enum status synced =
            cuda_check(cudaStreamSynchronize(r->stream), "copying weights to the GPU", &late);
        if (st == STATUS_OK && synced != STATUS_OK) {
            st = synced;
            err = late;
        }
    }
    weights_reader_close(r);
    pthread_mutex_lock(&w->lock);
    w->done_bytes += n_bytes;
    if (st != STATUS_OK && w->status == STATUS_OK) {
        w->status = st;
        w->err = err;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static enum status weights_start(struct cuda_weights *w, struct err *err)
{
    if (w->n_readers > 0)
        return STATUS_OK;
    cpu_set_t cores;
    int n = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
    n = n < WEIGHTS_MIN_READERS ? WEIGHTS_MIN_READERS : n;
    n = n > WEIGHTS_MAX_READERS ? WEIGHTS_MAX_READERS : n;
    w->is_closed = false;
    w->next_copy = w->next_element = 0;
    w->done_bytes = 0;
    w->start_s = weights_now_s();
    for (int i = 0; i < n; i++) {
        w->readers[i] = (struct weights_reader){.weights = w};
        /* One is enough to make progress. */
        if (pthread_create(&w->readers[i].thread, NULL, weights_reader_run, &w->readers[i]) != 0)
            break;
        w->n_readers++;
    }
    return w->n_readers > 0
               ? STATUS_OK
               : err_set(err, STATUS_NO_MEMORY, "the system starts no thread to read weights with");
}

/* Ends the readers when they have done what is queued. */
static void weights_settle(struct cuda_weights *w)
{
    if (w->n_readers == 0)
        return;
    pthread_mutex_lock(&w->lock);
    w->is_closed = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    for (int i = 0; i < w->n_readers; i++)
        pthread_join(w->readers[i].thread, NULL);
    w->n_readers = 0;
    w->n_copies = 0;
    w->n_bytes = w->done_bytes;
    w->took_s = weights_now_s() - w->start_s;
}

/* ---- memory -----------------------------------------------------------------------------------
 */

/* One more arena, of room at least. Arenas grow with what is loaded: few calls for a large model,
 * little waste for a small one. */
static enum status weights_grow(struct cuda_weights *w, size_t room, struct err *err)
{
    struct weights_arena *grown = realloc(w->arenas, ((size_t)w->n_arenas + 1) * sizeof *grown);
    if (grown == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of weights");
    w->arenas = grown;
    size_t want = w->n_arenas == 0 ? weights_arena_min_bytes : 2 * grown[w->n_arenas - 1].len_bytes;
    want = want > weights_arena_max_bytes ? weights_arena_max_bytes : want;
    want = want < room ? room : want;
    void *base = NULL;
    enum status st = cuda_take_memory(want, "weights", &base, err);
    if (st == STATUS_NO_MEMORY && want > room) {
        want = room;
        st = cuda_take_memory(want, "weights", &base, err);
    }
    if (st == STATUS_OK)
        grown[w->n_arenas++] = (struct weights_arena){.base = base, .len_bytes = want};
    return st;
}

/* A place of len_bytes on the device, in the first arena that has one. */
static enum status weights_place(struct cuda_weights *w, size_t len_bytes, int n_weights,
                                 unsigned char **out, struct err *err)
{
    const size_t room = (len_bytes + WEIGHTS_ALIGN - 1) / WEIGHTS_ALIGN * WEIGHTS_ALIGN;
    struct weights_arena *place = NULL;
    for (int i = 0; i < w->n_arenas && place == NULL; i++)
        if (w->arenas[i].len_bytes - w->arenas[i].used_bytes >= room)
            place = &w->arenas[i];
    if (place == NULL) {
        enum status st = weights_grow(w, room, err);
        if (st != STATUS_OK)
            return st;
        place = &w->arenas[w->n_arenas - 1];
    }
    *out = place->base + place->used_bytes;
    place->used_bytes += room;
    place->n_live += n_weights;
    return STATUS_OK;
}

static void weights_leave(struct cuda_weights *w, const void *data)
{
    for (int i = 0; i < w->n_arenas; i++) {
        struct weights_arena *a = &w->arenas[i];
        const unsigned char *at = data;
        if (at < a->base || at >= a->base + a->len_bytes)
            continue;
        if (--a->n_live == 0) {
            (void)cudaFree(a->base);
            *a = w->arenas[--w->n_arenas];
        }
        return;
    }
}

/* ---- loads ------------------------------------------------------------------------------------
 */

enum status cuda_weights_create(struct cuda_kernels *k, struct err *err)
{
    struct cuda_weights *w = calloc(1, sizeof *w);
    if (w == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of weights");
    enum status st = cpu_level_find("auto", &w->level, err);
    if (st != STATUS_OK) {
        free(w);
        return st;
    }
    w->kernels = k;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    k->weights = w;
    return STATUS_OK;
}

void cuda_weights_destroy(struct cuda_kernels *k)
{
    struct cuda_weights *w = k->weights;
    weights_settle(w);
    for (int i = 0; i < w->n_arenas; i++)
        (void)cudaFree(w->arenas[i].base);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w->arenas);
    free(w->copies);
    free(w);
    k->weights = NULL;
}

/* Room for n more copies; called before any is queued, so that all or none are. */
static enum status weights_expect(struct cuda_weights *w, int n, struct err *err)
{
    enum status st = STATUS_OK;
    pthread_mutex_lock(&w->lock);
    if (w->n_copies + (size_t)n > w->cap_copies) {
        size_t cap = 2 * (w->n_copies + (size_t)n);
        struct weights_copy *grown = realloc(w->copies, cap * sizeof *grown);
        if (grown == NULL) {
            st = err_set(err, STATUS_NO_MEMORY, "no memory for a list of weights");
        } else {
            w->copies = grown;
            w->cap_copies = cap;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return st;
}

static void weights_queue(struct cuda_weights *w, const struct weights_copy *copy)
{
    pthread_mutex_lock(&w->lock);
    w->copies[w->n_copies++] = *copy;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

/* n weights of to_dtype, back to back. */
static enum status weights_load(struct cuda_weights *w, const struct weight *const *from, int n,
                                enum dtype to_dtype, struct kernels_weight *out, struct err *err)
{
    size_t len_bytes = 0;
    for (int i = 0; i < n; i++)
        len_bytes += (size_t)from[i]->rows * (size_t)from[i]->cols * dtype_bytes(to_dtype);
    unsigned char *to = NULL;
    enum status st = cuda_use(w->kernels, err);
    if (st == STATUS_OK)
        st = weights_start(w, err);
    if (st == STATUS_OK)
        st = weights_expect(w, n, err);
    if (st == STATUS_OK)
        st = weights_place(w, len_bytes, n, &to, err);
    for (int i = 0; st == STATUS_OK && i < n; i++) {
        const struct weights_copy copy = {.from = from[i]->data,
                                          .to = to,
                                          .n = (size_t)from[i]->rows * (size_t)from[i]->cols,
                                          .from_dtype = from[i]->dtype,
                                          .to_dtype = to_dtype};
        weights_queue(w, &copy);
        out[i] = (struct kernels_weight){
            .data = to, .dtype = to_dtype, .rows = from[i]->rows, .cols = from[i]->cols};
        to += copy.n * dtype_bytes(to_dtype);
    }
    return st;
}

/* A tied head is the embedding once more: one copy serves both. */
static bool weights_share(struct cuda_weights *w, const struct weight *from,
                          struct kernels_weight *out)
{
    bool is_shared = false;
    pthread_mutex_lock(&w->lock);
    for (size_t i = 0; i < w->n_copies && !is_shared; i++) {
        const struct weights_copy *c = &w->copies[i];
        is_shared = c->from == from->data && c->n == (size_t)from->rows * (size_t)from->cols &&
                    c->from_dtype == from->dtype && c->to_dtype == DTYPE_BF16;
        if (is_shared)
            *out = (struct kernels_weight){
                .data = c->to, .dtype = DTYPE_BF16, .rows = from->rows, .cols = from->cols};
    }
    pthread_mutex_unlock(&w->lock);
    return is_shared;
}

enum status cuda_weight_load(struct kernels *k, const struct weight *from,
                             struct kernels_weight *out, struct err *err)
{
    struct cuda_weights *w = ((struct cuda_kernels *)k)->weights;
    if (from->rows == 1)
        return weights_load(w, &from, 1, DTYPE_F32, out, err);
    if (w->n_readers == 0 || !weights_share(w, from, out))
        return weights_load(w, &from, 1, DTYPE_BF16, out, err);
    for (int i = 0; i < w->n_arenas; i++) {
        const unsigned char *at = out->data;
        if (at >= w->arenas[i].base && at < w->arenas[i].base + w->arenas[i].len_bytes)
            w->arenas[i].n_live++;
    }
    return STATUS_OK;
}

enum status cuda_weight_load_joined(struct kernels *k, const struct weight *const *from, int n,
                                    struct kernels_weight *out, struct err *err)
{
    return weights_load(((struct cuda_kernels *)k)->weights, from, n, DTYPE_BF16, out, err);
}

enum status cuda_weights_ready(struct kernels *k, struct err *err)
{
    struct cuda_weights *w = ((struct cuda_kernels *)k)->weights;
    weights_settle(w);
    enum status st = w->status;
    w->status = STATUS_OK;
    if (st != STATUS_OK && err != NULL)
        *err = w->err;
    return st;
}

void cuda_weight_unload(struct kernels *k, struct kernels_weight *weight)
{
    struct cuda_weights *w = ((struct cuda_kernels *)k)->weights;
    (void)cuda_use(w->kernels, NULL);
    /* A copy into it may be under way. */
    weights_settle(w);
    weights_leave(w, weight->data);
}

void cuda_weights_pace(const struct cuda_kernels *k, uint64_t *len_bytes, double *seconds)
{
    *len_bytes = k->weights->n_bytes;
    *seconds = k->weights->took_s;
}
