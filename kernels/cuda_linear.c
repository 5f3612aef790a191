/* Linear layers on the GPU: which products of cuBLASLt make up a call, on which rows.
 *
 * Fast: a product of n rows uses the algorithm of n's bucket, timed at the bucket's first use.
 *
 * Deterministic: all products of a weight use one algorithm, chosen for 64 rows. Rows go in slices
 * of 64, the last one filled up in a scratch of our own; 64 << j rows go at once where the same
 * algorithm was seen to give the same bits as slices do. So an output element is the same sum in
 * the same order for any n and any place of its row (docs/gpu.md). */
#include "kernels/cuda_linear_kernels.h"

#include "kernels/cuda_backend.h"
#include "kernels/cuda_plan.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    LINEAR_SLICE = 64,
    LINEAR_ENOUGH = 1 << 17,  /* outputs: see linear_can_compare */
    LINEAR_MAX_DOUBLINGS = 6, /* of a slice: 4096 rows at once gain nothing over 2048 */
    /* The scratch of a slice holds at least these, so that growing it is for unheard-of models. */
    LINEAR_SCRATCH_INPUTS = 65536,
    LINEAR_SCRATCH_OUTPUTS = 65536,
};

struct cuda_linear {
    struct cuda_plans *plans;
    pthread_mutex_t lock; /* plans serve one thread at a time; streams may have several */
};

/* A slice's rows with what fills them up; recorded graphs keep addresses, so none is freed before
 * the stream is. */
struct linear_scratch {
    void *x, *y;
    size_t x_bytes, y_bytes;
    struct linear_scratch *next;
};

struct cuda_linear_stream {
    struct cuda_plan_place place;
    struct cuda_linear_seen *seen; /* device: of the wide product and of its slices */
    struct linear_scratch *scratch;
};

/* ---- objects ------------------------------------------------------------------------------------
 */

enum status cuda_linear_create(struct cuda_kernels *k, struct err *err)
{
    struct cuda_linear *linear = calloc(1, sizeof *linear);
    if (linear == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the linear layers");
    enum status st = cuda_plans_create(&linear->plans, err);
    if (st != STATUS_OK) {
        free(linear);
        return st;
    }
    pthread_mutex_init(&linear->lock, NULL);
    k->linear = linear;
    return STATUS_OK;
}

void cuda_linear_destroy(struct cuda_kernels *k)
{
    if (k->linear == NULL)
        return;
    cuda_plans_destroy(k->linear->plans);
    pthread_mutex_destroy(&k->linear->lock);
    free(k->linear);
    k->linear = NULL;
}

static enum status linear_scratch_add(struct cuda_linear_stream *linear, size_t x_bytes,
                                      size_t y_bytes, struct err *err)
{
    struct linear_scratch *scratch = calloc(1, sizeof *scratch);
    if (scratch == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the scratch of a slice");
    enum status st = cuda_check(cudaMalloc(&scratch->x, x_bytes), "a slice's inputs", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaMalloc(&scratch->y, y_bytes), "a slice's outputs", err);
    /* Rows that fill up reach no other row; zeros keep their sums finite. */
    if (st == STATUS_OK)
        st = cuda_check(cudaMemsetAsync(scratch->x, 0, x_bytes, linear->place.stream),
                        "a slice's inputs", err);
    if (st != STATUS_OK) {
        cudaFree(scratch->x);
        cudaFree(scratch->y);
        free(scratch);
        return st;
    }
    scratch->x_bytes = x_bytes;
    scratch->y_bytes = y_bytes;
    scratch->next = linear->scratch;
    linear->scratch = scratch;
    return STATUS_OK;
}

enum status cuda_linear_reserve(struct cuda_stream *s, struct err *err)
{
    if (s->linear != NULL)
        return STATUS_OK;
    struct cuda_kernels *k = cuda_kernels_of(&s->base);
    struct cuda_linear_stream *linear = calloc(1, sizeof *linear);
    if (linear == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the stream's linear layers");
    s->linear = linear;
    int l2_bytes = 0;
    enum status st = cuda_check(
        cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, k->device), "cache size", err);
    linear->place.stream = s->stream;
    linear->place.flush_bytes = (size_t)l2_bytes + (size_t)l2_bytes / 4;
    const size_t bytes = linear->place.flush_bytes > cuda_plan_workspace_bytes
                             ? linear->place.flush_bytes
                             : cuda_plan_workspace_bytes;
    if (st == STATUS_OK)
        st =
            cuda_check(cudaMalloc(&linear->place.workspace, bytes), "the products' workspace", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaMalloc((void **)&linear->seen, 2 * sizeof *linear->seen),
                        "the products' comparison", err);
    if (st == STATUS_OK && k->is_deterministic) {
        const int vocab_size = s->base.limits.vocab_size;
        const int outputs =
            vocab_size > LINEAR_SCRATCH_OUTPUTS ? vocab_size : LINEAR_SCRATCH_OUTPUTS;
        st = linear_scratch_add(linear, sizeof(uint16_t) * LINEAR_SLICE * LINEAR_SCRATCH_INPUTS,
                                sizeof(float) * LINEAR_SLICE * (size_t)outputs, err);
    }
    if (st != STATUS_OK)
        cuda_linear_release(s);
    return st;
}

void cuda_linear_release(struct cuda_stream *s)
{
    struct cuda_linear_stream *linear = s->linear;
    if (linear == NULL)
        return;
    for (struct linear_scratch *scratch = linear->scratch, *next; scratch != NULL; scratch = next) {
        next = scratch->next;
        cudaFree(scratch->x);
        cudaFree(scratch->y);
        free(scratch);
    }
    cudaFree(linear->seen);
    cudaFree(linear->place.workspace);
    free(linear);
    s->linear = NULL;
}

/* ---- products -----------------------------------------------------------------------------------
 */

/* One call of kernels_linear. */
struct linear_call {
    struct cuda_plans *plans;
    struct cuda_linear_stream *linear;
    bool is_recording; /* then nothing may be timed, compared or waited for */
    bool y_is_f32;
    int32_t k, ld;
    size_t y_element;
};

static uint8_t linear_alignment(const void *p)
{
    uint8_t bytes = 1;
    while (bytes < 16 && (uintptr_t)p % (2u * bytes) == 0)
        bytes = (uint8_t)(2 * bytes);
    return bytes;
}

static enum status linear_plan(const struct linear_call *call, const struct cuda_product *product,
                               int32_t m, int32_t n, struct cuda_plan **out, struct err *err)
{
    const struct cuda_plan_shape shape = {.m = m,
                                          .k = call->k,
                                          .n = n,
                                          .ld = call->ld,
                                          .y_is_f32 = call->y_is_f32,
                                          .align_y = linear_alignment(product->y),
                                          .align_x = linear_alignment(product->x),
                                          .align_w = linear_alignment(product->w)};
    return cuda_plan_find(call->plans, &shape, out, err);
}

/* The sizes at which batches are recorded, then steps of 256. */
static int32_t linear_bucket(int32_t n)
{
    static const int32_t buckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
    for (size_t i = 0; i < sizeof buckets / sizeof buckets[0]; i++)
        if (n <= buckets[i])
            return buckets[i];
    return n > INT32_MAX - 255 ? n : (n + 255) / 256 * 256;
}

static enum status linear_fast(const struct linear_call *call, const struct cuda_product *product,
                               int32_t m, struct err *err)
{
    const struct cuda_plan_place *place = &call->linear->place;
    struct cuda_plan *plan = NULL;
    enum status st = linear_plan(call, product, m, linear_bucket(product->n), &plan, err);
    if (st != STATUS_OK)
        return st;
    if (!plan->is_timed && !call->is_recording)
        return cuda_plan_time(call->plans, plan, place, product, err);
    if (cuda_plan_run(call->plans, plan, place, product, err) == STATUS_OK)
        return STATUS_OK;
    /* The bucket's algorithm does not do this n: one for exactly n. */
    st = linear_plan(call, product, m, product->n, &plan, err);
    return st == STATUS_OK ? cuda_plan_run(call->plans, plan, place, product, err) : st;
}

/* ---- one order of additions ---------------------------------------------------------------------
 */

static struct cuda_product linear_rows_of(const struct linear_call *call,
                                          const struct cuda_product *product, int32_t first,
                                          int32_t n)
{
    return (struct cuda_product){
        .y = (char *)product->y + (size_t)first * (size_t)call->ld * call->y_element,
        .x = (const uint16_t *)product->x + (size_t)first * (size_t)call->k,
        .w = product->w,
        .n = n};
}

static enum status linear_see(const struct linear_call *call, struct cuda_plan *plan,
                              const struct cuda_product *product, struct cuda_linear_seen *seen,
                              struct err *err)
{
    return cuda_check(cuda_linear_see(call->linear->place.stream, product->y, call->y_is_f32,
                                      product->n, plan->shape.m, call->ld, seen),
                      "comparing products", err);
}

/* Two orders of addition nearly always agree once they are rounded to bf16: with k inputs one
 * output in about 2^16 / sqrt(k) differs. Few outputs that agree say nothing; then slices it is,
 * which at such a size cost little. */
static bool linear_can_compare(const struct linear_call *call, const struct cuda_plan *plan,
                               int32_t n)
{
    return call->y_is_f32 || (int64_t)n * plan->shape.m >= LINEAR_ENOUGH;
}

/* Runs the product at once and in slices; the slices' outputs stay. */
static enum status linear_compare(const struct linear_call *call, struct cuda_plan *plan,
                                  const struct cuda_product *product, uint32_t bit, struct err *err)
{
    const struct cuda_plan_place *place = &call->linear->place;
    struct cuda_linear_seen *at = call->linear->seen, seen[2];
    if (!cuda_plan_accepts(call->plans, plan, product->n)) {
        plan->compared |= bit;
        return STATUS_OK;
    }
    enum status st =
        cuda_check(cudaMemsetAsync(at, 0, sizeof seen, place->stream), "comparing products", err);
    if (st == STATUS_OK)
        st = cuda_plan_run(call->plans, plan, place, product, err);
    if (st == STATUS_OK)
        st = linear_see(call, plan, product, &at[0], err);
    for (int32_t first = 0; first < product->n && st == STATUS_OK; first += LINEAR_SLICE) {
        const struct cuda_product slice = linear_rows_of(call, product, first, LINEAR_SLICE);
        st = cuda_plan_run(call->plans, plan, place, &slice, err);
    }
    if (st == STATUS_OK)
        st = linear_see(call, plan, product, &at[1], err);
    if (st == STATUS_OK)
        st = cuda_check(
            cudaMemcpyAsync(seen, at, sizeof seen, cudaMemcpyDeviceToHost, place->stream),
            "comparing products", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaStreamSynchronize(place->stream), "comparing products", err);
    if (st != STATUS_OK)
        return st;
    /* Zeros and NaN would agree in any order: such a batch decides nothing. */
    const uint64_t n_outputs = (uint64_t)product->n * (uint64_t)plan->shape.m;
    if (seen[1].n_plain < n_outputs / 2)
        return STATUS_OK;
    plan->compared |= bit;
    if (seen[0].sum == seen[1].sum && seen[0].n_plain == seen[1].n_plain)
        plan->same |= bit;
    return STATUS_OK;
}

/* A whole number of slices, as many at once as give the same bits. */
static enum status linear_slices(const struct linear_call *call, const struct cuda_product *product,
                                 int32_t m, struct err *err)
{
    struct cuda_plan *plan = NULL;
    enum status st = linear_plan(call, product, m, LINEAR_SLICE, &plan, err);
    for (int32_t first = 0; first < product->n && st == STATUS_OK;) {
        int doublings = LINEAR_MAX_DOUBLINGS;
        while (LINEAR_SLICE << doublings > product->n - first)
            doublings--;
        for (; doublings > 0; doublings--) {
            const uint32_t bit = 1u << doublings;
            const struct cuda_product wide =
                linear_rows_of(call, product, first, LINEAR_SLICE << doublings);
            if ((plan->compared & bit) == 0 && !call->is_recording &&
                linear_can_compare(call, plan, wide.n))
                st = linear_compare(call, plan, &wide, bit, err);
            if (st != STATUS_OK)
                return st;
            if ((plan->same & bit) != 0)
                break;
        }
        const struct cuda_product piece =
            linear_rows_of(call, product, first, LINEAR_SLICE << doublings);
        st = cuda_plan_run(call->plans, plan, &call->linear->place, &piece, err);
        first += piece.n;
    }
    return st;
}

/* ---- calls --------------------------------------------------------------------------------------
 */

/* All weights' products over n rows; those back to back in memory are one. */
static enum status linear_jobs(const struct linear_call *call, void *y, const void *x, int32_t n,
                               bool is_sliced, const struct kernels_weight *const *w, int n_jobs,
                               struct err *err)
{
    enum status st = STATUS_OK;
    int32_t at = 0;
    for (int j = 0; j < n_jobs && st == STATUS_OK;) {
        const uint16_t *first = w[j]->data, *end = first;
        int32_t m = 0;
        for (; j < n_jobs && w[j]->data == end; j++) {
            m += w[j]->rows;
            end += (size_t)w[j]->rows * (size_t)call->k;
        }
        const struct cuda_product product = {
            .y = (char *)y + (size_t)at * call->y_element, .x = x, .w = first, .n = n};
        st =
            is_sliced ? linear_slices(call, &product, m, err) : linear_fast(call, &product, m, err);
        at += m;
    }
    return st;
}

static enum status linear_scratch_for(const struct linear_call *call, struct err *err)
{
    struct linear_scratch *scratch = call->linear->scratch;
    const size_t x_bytes = LINEAR_SLICE * (size_t)call->k * sizeof(uint16_t);
    const size_t y_bytes = LINEAR_SLICE * (size_t)call->ld * call->y_element;
    if (scratch != NULL && scratch->x_bytes >= x_bytes && scratch->y_bytes >= y_bytes)
        return STATUS_OK;
    if (call->is_recording)
        return err_set(err, STATUS_INVALID,
                       "linear: [%d] to [%d] needs a larger scratch, which cannot be taken while "
                       "operations are recorded: run it once before",
                       (int)call->k, (int)call->ld);
    return linear_scratch_add(call->linear, x_bytes, y_bytes, err);
}

/* Up to a slice of rows through the scratch, filled up to a slice. */
static enum status linear_last(const struct linear_call *call, void *y, const void *x, int32_t n,
                               const struct kernels_weight *const *w, int n_jobs, struct err *err)
{
    enum status st = linear_scratch_for(call, err);
    if (st != STATUS_OK)
        return st;
    const struct linear_scratch *scratch = call->linear->scratch;
    const cudaStream_t stream = call->linear->place.stream;
    const size_t x_bytes = (size_t)n * (size_t)call->k * sizeof(uint16_t);
    const size_t y_bytes = (size_t)n * (size_t)call->ld * call->y_element;
    st = cuda_check(cudaMemcpyAsync(scratch->x, x, x_bytes, cudaMemcpyDeviceToDevice, stream),
                    "a slice's inputs", err);
    if (st == STATUS_OK)
        st = linear_jobs(call, scratch->y, scratch->x, LINEAR_SLICE, true, w, n_jobs, err);
    if (st == STATUS_OK)
        st = cuda_check(cudaMemcpyAsync(y, scratch->y, y_bytes, cudaMemcpyDeviceToDevice, stream),
                        "a slice's outputs", err);
    return st;
}

/* Whole slices where they lie, unless their addresses would ask for another algorithm than the
 * scratch's; what is left through the scratch. */
static enum status linear_deterministic(const struct linear_call *call, void *y, const void *x,
                                        int32_t n, const struct kernels_weight *const *w,
                                        int n_jobs, struct err *err)
{
    const bool is_aligned = linear_alignment(x) == 16 && linear_alignment(y) == 16;
    const int32_t whole = is_aligned ? n / LINEAR_SLICE * LINEAR_SLICE : 0;
    enum status st = STATUS_OK;
    if (whole > 0)
        st = linear_jobs(call, y, x, whole, true, w, n_jobs, err);
    for (int32_t at = whole; at < n && st == STATUS_OK; at += LINEAR_SLICE)
        st = linear_last(call, (char *)y + (size_t)at * (size_t)call->ld * call->y_element,
                         (const uint16_t *)x + (size_t)at * (size_t)call->k,
                         n - at < LINEAR_SLICE ? n - at : LINEAR_SLICE, w, n_jobs, err);
    return st;
}

static enum status linear_begin(struct cuda_stream *s, enum dtype y_dtype, struct linear_call *out,
                                struct err *err)
{
    if (y_dtype != DTYPE_F32 && y_dtype != DTYPE_BF16)
        return err_set(err, STATUS_INVALID, "linear: outputs of %s; use f32 or bf16",
                       dtype_name(y_dtype));
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    enum status st = cuda_use(cuda_kernels_of(&s->base), err);
    if (st == STATUS_OK)
        st = cuda_check(cudaStreamIsCapturing(s->stream, &capture), "the stream's state", err);
    if (st == STATUS_OK && s->linear == NULL && capture == cudaStreamCaptureStatusNone)
        st = cuda_linear_reserve(s, err);
    if (st != STATUS_OK)
        return st;
    if (s->linear == NULL)
        return err_set(err, STATUS_INVALID,
                       "linear: stream '%s' records, but has no workspace: reserve it before",
                       s->base.name);
    *out = (struct linear_call){.plans = cuda_kernels_of(&s->base)->linear->plans,
                                .linear = s->linear,
                                .is_recording = capture != cudaStreamCaptureStatusNone,
                                .y_is_f32 = y_dtype == DTYPE_F32,
                                .y_element = dtype_bytes(y_dtype)};
    return STATUS_OK;
}

enum status cuda_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                        const struct kernels_weight *const *w, int n_jobs, int n, struct err *err)
{
    struct cuda_kernels *k = cuda_kernels_of(s);
    int64_t n_outputs = 0;
    for (int j = 0; j < n_jobs; j++) {
        if (w[j]->dtype != DTYPE_BF16)
            return err_set(err, STATUS_INVALID,
                           "linear: weight %d [%d, %d] is %s; matrices on the device are bf16", j,
                           w[j]->rows, w[j]->cols, dtype_name(w[j]->dtype));
        n_outputs += w[j]->rows;
    }
    if (n_outputs > INT32_MAX)
        return err_set(err, STATUS_INVALID, "linear: %lld outputs a row", (long long)n_outputs);
    pthread_mutex_lock(&k->linear->lock);
    struct linear_call call;
    enum status st = linear_begin(cuda_stream_of(s), y_dtype, &call, err);
    if (st == STATUS_OK) {
        call.k = w[0]->cols;
        call.ld = (int32_t)n_outputs;
        st = k->is_deterministic ? linear_deterministic(&call, y, x, n, w, n_jobs, err)
                                 : linear_jobs(&call, y, x, n, false, w, n_jobs, err);
    }
    pthread_mutex_unlock(&k->linear->lock);
    return st;
}

enum status cuda_linear_square(struct cuda_stream *s, void *c, const void *a, const void *b,
                               int size, int repeats, struct err *err)
{
    struct cuda_kernels *k = cuda_kernels_of(&s->base);
    pthread_mutex_lock(&k->linear->lock);
    struct linear_call call;
    enum status st = linear_begin(s, DTYPE_BF16, &call, err);
    if (st == STATUS_OK) {
        call.k = size;
        call.ld = size;
        const struct cuda_product product = {.y = c, .x = a, .w = b, .n = size};
        for (int i = 0; i < repeats && st == STATUS_OK; i++)
            st = linear_fast(&call, &product, size, err);
    }
    pthread_mutex_unlock(&k->linear->lock);
    return st;
}
