/* The CUDA backend's object: finds the device, says what is missing, fills kernels.c's table. */
#include "kernels/cuda_backend.h"
#include "kernels/cuda_measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CUDA_LEAST_MAJOR = 8 }; /* bf16 on the tensor cores, cp.async */

enum status cuda_check(cudaError_t code, const char *what, struct err *err)
{
    if (code == cudaSuccess)
        return STATUS_OK;
    /* The runtime remembers it per thread; the next launch must not be blamed for it. */
    (void)cudaGetLastError();
    return err_set(err, code == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_INTERNAL,
                   "%s: %s (%s)", what, cudaGetErrorString(code), cudaGetErrorName(code));
}

enum status cuda_use(const struct cuda_kernels *k, struct err *err)
{
    int current = -1;
    if (cudaGetDevice(&current) == cudaSuccess && current == k->device)
        return STATUS_OK;
    return cuda_check(cudaSetDevice(k->device), "choosing the GPU in a thread", err);
}

/* ---- what is here -----------------------------------------------------------------------------
 */

int kernels_cuda_devices(void)
{
    int n = 0, n_usable = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    for (int i = 0; i < n; i++) {
        int major = 0;
        if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i) == cudaSuccess &&
            major >= CUDA_LEAST_MAJOR)
            n_usable++;
    }
    return n_usable;
}

static enum status cuda_count_devices(int *n, struct err *err)
{
    int driver = 0;
    cudaError_t code = cudaGetDeviceCount(n);
    if (code == cudaSuccess && *n > 0)
        return STATUS_OK;
    (void)cudaGetLastError();
    if (cudaDriverGetVersion(&driver) != cudaSuccess)
        (void)cudaGetLastError();
    if (code == cudaErrorInsufficientDriver && driver == 0)
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend 'cuda': no NVIDIA driver was found (libcuda.so.1); install it, or "
                       "use --backend cpu");
    if (code == cudaErrorInsufficientDriver)
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend 'cuda': the NVIDIA driver goes up to CUDA %d.%d, this build needs "
                       "%d.%d; update the driver, or use --backend cpu",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    if (code == cudaSuccess || code == cudaErrorNoDevice) {
        const char *visible = getenv("CUDA_VISIBLE_DEVICES");
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend 'cuda': the driver shows no GPU (CUDA_VISIBLE_DEVICES is %s%.64s%s)"
                       "; use --backend cpu",
                       visible == NULL ? "not set" : "'", visible == NULL ? "" : visible,
                       visible == NULL ? "" : "'");
    }
    return err_set(err, STATUS_UNSUPPORTED,
                   "backend 'cuda': the NVIDIA driver does not start: %s (%s); use --backend cpu",
                   cudaGetErrorString(code), cudaGetErrorName(code));
}

/* Fills what the device says of itself. */
static enum status cuda_read_device(struct cuda_kernels *k, struct err *err)
{
    int shared_bytes = 0;
    const struct {
        enum cudaDeviceAttr attribute;
        int *value;
    } asked[] = {
        {cudaDevAttrComputeCapabilityMajor, &k->major},
        {cudaDevAttrComputeCapabilityMinor, &k->minor},
        {cudaDevAttrMultiProcessorCount, &k->n_multiprocessors},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes},
    };
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        cudaError_t code = cudaDeviceGetAttribute(asked[i].value, asked[i].attribute, k->device);
        enum status st = cuda_check(code, "asking what the GPU can do", err);
        if (st != STATUS_OK)
            return st;
    }
    k->shared_bytes = (size_t)shared_bytes;
    if (k->major < CUDA_LEAST_MAJOR)
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend 'cuda': GPU %d has compute capability %d.%d, and 8.0 (Ampere) or "
                       "newer is needed; use another --device, or --backend cpu",
                       k->device, k->major, k->minor);
    snprintf(k->base.isa, sizeof k->base.isa, "sm_%d%d", k->major, k->minor);
    return STATUS_OK;
}

/* A build holds machine code for some chips and portable code for newer ones; a kernel that runs
 * shows that this chip is one of them. */
static enum status cuda_try_kernel(const struct cuda_kernels *k, struct err *err)
{
    cudaError_t code = cuda_measure_nothing(k->service);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(k->service);
    if (code == cudaErrorNoKernelImageForDevice) {
        (void)cudaGetLastError();
        return err_set(err, STATUS_UNSUPPORTED,
                       "backend 'cuda': this build has no code for GPU %d (%s): %s; build it with "
                       "a CUDA toolkit that knows the chip, or use --backend cpu",
                       k->device, k->base.isa, cudaGetErrorString(code));
    }
    return cuda_check(code, "trying a kernel", err);
}

/* ---- the object -------------------------------------------------------------------------------
 */

static void cuda_destroy(struct kernels *base)
{
    struct cuda_kernels *k = (struct cuda_kernels *)base;
    (void)cuda_use(k, NULL);
    if (k->weights != NULL)
        cuda_weights_destroy(k);
    if (k->linear != NULL)
        cuda_linear_destroy(k);
    if (k->service != NULL)
        (void)cudaStreamDestroy(k->service);
    free(k);
}

static void cuda_stream_destroy(struct kernels_stream *base)
{
    struct cuda_stream *s = cuda_stream_of(base);
    (void)cuda_use(cuda_kernels_of(base), NULL);
    if (s->graphs != NULL)
        cuda_graphs_abandon(s);
    if (s->stream != NULL)
        (void)cudaStreamSynchronize(s->stream);
    cuda_stream_release(s);
    if (s->graphs != NULL)
        cuda_graphs_destroy(s);
    cuda_staging_destroy(s);
    if (s->stream != NULL)
        (void)cudaStreamDestroy(s->stream);
    free(s);
}

static enum status cuda_stream_create(struct kernels *k, const char *name,
                                      struct kernels_stream **out, struct err *err)
{
    enum status st = cuda_use((struct cuda_kernels *)k, err);
    if (st != STATUS_OK)
        return st;
    struct cuda_stream *s = calloc(1, sizeof *s);
    if (s == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for stream '%s'", name);
    s->base.kernels = k;
    snprintf(s->base.name, sizeof s->base.name, "%s", name);
    /* Non-blocking: it waits for nothing that a library does on the default stream. */
    st = cuda_check(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking),
                    "creating a stream", err);
    if (st == STATUS_OK)
        st = cuda_staging_create(s, err);
    if (st == STATUS_OK)
        st = cuda_graphs_create(s, err);
    if (st != STATUS_OK) {
        cuda_stream_destroy(&s->base);
        return st;
    }
    *out = &s->base;
    return STATUS_OK;
}

static enum status cuda_stream_sync(struct kernels_stream *base, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_use(cuda_kernels_of(base), err);
    if (st != STATUS_OK)
        return st;
    /* An operation that failed between begin and end leaves the recording open. */
    cuda_graphs_abandon(s);
    st = cuda_check(cudaStreamSynchronize(s->stream), "waiting for a stream", err);
    cuda_flights_land(s);
    return st;
}

/* Rows travel from threads that bind no batch. */
static enum status cuda_rows_leave(struct kernels_stream *s, void *const *host, const float *store,
                                   const int32_t *slots, int n, int d, struct err *err)
{
    enum status st = cuda_use(cuda_kernels_of(s), err);
    return st == STATUS_OK ? cuda_rows_to_host(s, host, store, slots, n, d, err) : st;
}

static enum status cuda_rows_arrive(struct kernels_stream *s, float *store, const int32_t *slots,
                                    const void *const *host, int n, int d, struct err *err)
{
    enum status st = cuda_use(cuda_kernels_of(s), err);
    return st == STATUS_OK ? cuda_rows_from_host(s, store, slots, host, n, d, err) : st;
}

static const struct kernels_ops cuda_ops = {
    .name = "cuda",
    .destroy = cuda_destroy,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_sync = cuda_stream_sync,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .fill = cuda_fill,
    .weight_load = cuda_weight_load,
    .weight_unload = cuda_weight_unload,
    .weight_load_joined = cuda_weight_load_joined,
    .weights_ready = cuda_weights_ready,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .device_memory = cuda_device_memory,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .replay = cuda_replay,
    .kv_bytes = cuda_kv_bytes,
    .stream_reserve = cuda_stream_reserve,
    .bind = cuda_bind,
    .mark = cuda_mark,
    .wait = cuda_wait,
    .load_rows = cuda_load_rows,
    .store_rows = cuda_store_rows,
    .gather_rows = cuda_gather_rows,
    .rows_to_host = cuda_rows_leave,
    .rows_from_host = cuda_rows_arrive,
    .linear = cuda_linear,
    .rms_norm = cuda_rms_norm,
    .residual_norm = cuda_residual_norm,
    .rope_tables = cuda_rope_tables,
    .rope_append = cuda_rope_append,
    .attention = cuda_attention,
    .swiglu = cuda_swiglu,
    .gate = cuda_gate,
    .top_k = cuda_top_k,
    .finish = cuda_finish,
    .outcomes = cuda_outcomes,
    .outcome_logits = cuda_outcome_logits,
    .measure = cuda_measure,
};

enum status kernels_cuda_create(const struct kernels_options *options, struct kernels **out,
                                struct err *err)
{
    int n_devices = 0;
    enum status st = cuda_count_devices(&n_devices, err);
    if (st != STATUS_OK)
        return st;
    if (options->device < 0 || options->device >= n_devices)
        return err_set(err, STATUS_INVALID,
                       "--device %d: the driver shows %d GPU%s, numbered from 0 "
                       "(CUDA_VISIBLE_DEVICES applies)",
                       options->device, n_devices, n_devices == 1 ? "" : "s");
    struct cuda_kernels *k = calloc(1, sizeof *k);
    if (k == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the CUDA backend");
    k->base.ops = &cuda_ops;
    k->base.activation = DTYPE_BF16;
    k->base.n_threads = 1;
    k->device = options->device;
    k->is_deterministic = options->is_deterministic;
    k->may_spin = options->may_spin;
    st = cuda_read_device(k, err);
    if (st == STATUS_OK)
        st = cuda_check(cudaSetDevice(k->device), "opening the GPU", err);
    if (st == STATUS_OK)
        st = cuda_check(cudaStreamCreateWithFlags(&k->service, cudaStreamNonBlocking),
                        "creating a stream", err);
    if (st == STATUS_OK)
        st = cuda_try_kernel(k, err);
    if (st == STATUS_OK)
        st = cuda_linear_create(k, err);
    if (st == STATUS_OK)
        st = cuda_weights_create(k, err);
    if (st != STATUS_OK) {
        cuda_destroy(&k->base);
        return st;
    }
    *out = &k->base;
    return STATUS_OK;
}
