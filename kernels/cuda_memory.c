/* Memory of the CUDA backend: the device's own, pinned memory of the host, and copies between. */
#include "kernels/cuda_backend.h"

#include <string.h>

/* Long enough that a copy runs at the bus's rate, short enough that two cost little. */
static const size_t staging_piece_bytes = (size_t)4 << 20;

enum status cuda_take_memory(size_t len_bytes, const char *what, void **out, struct err *err)
{
    void *data = NULL;
    cudaError_t code = cudaMalloc(&data, len_bytes);
    if (code == cudaErrorMemoryAllocation) {
        size_t n_free = 0, n_total = 0;
        (void)cudaGetLastError();
        if (cudaMemGetInfo(&n_free, &n_total) != cudaSuccess)
            (void)cudaGetLastError();
        return err_set(err, STATUS_NO_MEMORY,
                       "the GPU has no room for %zu bytes of %s: %zu of %zu bytes are free; lower "
                       "--gpu-memory-fraction or what else runs there",
                       len_bytes, what, n_free, n_total);
    }
    enum status st = cuda_check(code, "taking memory of the GPU", err);
    if (st == STATUS_OK)
        *out = data;
    return st;
}

enum status cuda_alloc(struct kernels *base, size_t len_bytes, bool zero,
                       struct kernels_buffer *out, struct err *err)
{
    struct cuda_kernels *k = (struct cuda_kernels *)base;
    void *data = NULL;
    enum status st = cuda_use(k, err);
    if (st == STATUS_OK)
        st = cuda_take_memory(len_bytes, "a buffer", &data, err);
    if (st != STATUS_OK)
        return st;
    if (zero) {
        /* Waited for here, because the streams that will use it wait for no other. */
        st = cuda_check(cudaMemsetAsync(data, 0, len_bytes, k->service), "zeroing memory", err);
        if (st == STATUS_OK)
            st = cuda_check(cudaStreamSynchronize(k->service), "zeroing memory", err);
    }
    if (st != STATUS_OK) {
        (void)cudaFree(data);
        return st;
    }
    *out = (struct kernels_buffer){.data = data, .len_bytes = len_bytes};
    return STATUS_OK;
}

void cuda_free(struct kernels *base, struct kernels_buffer *buffer)
{
    (void)cuda_use((struct cuda_kernels *)base, NULL);
    (void)cudaFree(buffer->data);
}

enum status cuda_host_alloc(struct kernels *base, size_t len_bytes, void **out, struct err *err)
{
    enum status st = cuda_use((struct cuda_kernels *)base, err);
    if (st != STATUS_OK)
        return st;
    void *host = NULL;
    /* Not write-combining: the host reads what comes back here. */
    cudaError_t code = cudaHostAlloc(&host, len_bytes, cudaHostAllocPortable);
    if (code == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return err_set(err, STATUS_NO_MEMORY,
                       "the system has no room for %zu bytes of pinned memory; see free and the "
                       "limit on locked memory of a container",
                       len_bytes);
    }
    st = cuda_check(code, "taking pinned memory", err);
    if (st == STATUS_OK)
        *out = host;
    return st;
}

void cuda_host_free(struct kernels *base, void *host)
{
    (void)cuda_use((struct cuda_kernels *)base, NULL);
    if (host != NULL)
        (void)cudaFreeHost(host);
}

enum status cuda_device_memory(struct kernels *base, struct kernels_memory *out, struct err *err)
{
    size_t n_free = 0, n_total = 0;
    enum status st = cuda_use((struct cuda_kernels *)base, err);
    if (st == STATUS_OK)
        st = cuda_check(cudaMemGetInfo(&n_free, &n_total), "asking for free memory", err);
    if (st == STATUS_OK)
        *out = (struct kernels_memory){.total_bytes = n_total, .free_bytes = n_free};
    return st;
}

/* ---- copies -----------------------------------------------------------------------------------
 */

enum status cuda_staging_create(struct cuda_stream *s, struct err *err)
{
    enum status st = STATUS_OK;
    for (int i = 0; st == STATUS_OK && i < CUDA_STAGING_PIECES; i++) {
        void *host = NULL;
        st = cuda_host_alloc(s->base.kernels, staging_piece_bytes, &host, err);
        s->staging.pieces[i] = host;
        if (st == STATUS_OK)
            st =
                cuda_check(cudaEventCreateWithFlags(&s->staging.is_free[i], cudaEventDisableTiming),
                           "creating an event", err);
    }
    return st;
}

void cuda_staging_destroy(struct cuda_stream *s)
{
    for (int i = 0; i < CUDA_STAGING_PIECES; i++) {
        if (s->staging.is_free[i] != NULL)
            (void)cudaEventDestroy(s->staging.is_free[i]);
        if (s->staging.pieces[i] != NULL)
            (void)cudaFreeHost(s->staging.pieces[i]);
    }
    s->staging = (struct cuda_staging){0};
}

/* Whether the device reaches the host memory itself. */
static bool cuda_is_pinned(const void *host, size_t len_bytes)
{
    const unsigned char *ends[] = {host, (const unsigned char *)host + len_bytes - 1};
    for (int i = 0; i < 2; i++) {
        struct cudaPointerAttributes found;
        if (cudaPointerGetAttributes(&found, ends[i]) != cudaSuccess) {
            (void)cudaGetLastError();
            return false;
        }
        if (found.type != cudaMemoryTypeHost)
            return false;
    }
    return true;
}

static enum status cuda_copy_begin(struct cuda_stream *s, const char *what, struct err *err)
{
    enum status st = cuda_use(cuda_kernels_of(&s->base), err);
    if (st == STATUS_OK && cuda_is_recording(s))
        st = err_set(err, STATUS_INVALID, "%s on stream '%s' while it records", what, s->base.name);
    return st;
}

enum status cuda_upload(struct kernels_stream *base, void *device, const void *host,
                        size_t len_bytes, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_copy_begin(s, "upload", err);
    if (st != STATUS_OK)
        return st;
    if (cuda_is_pinned(host, len_bytes))
        return cuda_check(
            cudaMemcpyAsync(device, host, len_bytes, cudaMemcpyHostToDevice, s->stream),
            "copying to the GPU", err);
    for (size_t at = 0; st == STATUS_OK && at < len_bytes;) {
        size_t n = len_bytes - at;
        n = n < staging_piece_bytes ? n : staging_piece_bytes;
        int i = s->staging.next;
        st = cuda_check(cudaEventSynchronize(s->staging.is_free[i]), "waiting for a copy", err);
        if (st != STATUS_OK)
            break;
        memcpy(s->staging.pieces[i], (const unsigned char *)host + at, n);
        st = cuda_check(cudaMemcpyAsync((unsigned char *)device + at, s->staging.pieces[i], n,
                                        cudaMemcpyHostToDevice, s->stream),
                        "copying to the GPU", err);
        if (st == STATUS_OK)
            st = cuda_check(cudaEventRecord(s->staging.is_free[i], s->stream), "recording an event",
                            err);
        s->staging.next = (i + 1) % CUDA_STAGING_PIECES;
        at += n;
    }
    return st;
}

/* The piece that was copied last but one reaches the host while the last is under way. */
enum status cuda_download(struct kernels_stream *base, void *host, const void *device,
                          size_t len_bytes, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_copy_begin(s, "download", err);
    if (st != STATUS_OK)
        return st;
    if (cuda_is_pinned(host, len_bytes))
        return cuda_check(
            cudaMemcpyAsync(host, device, len_bytes, cudaMemcpyDeviceToHost, s->stream),
            "copying from the GPU", err);
    const size_t piece = staging_piece_bytes;
    const size_t n_pieces = len_bytes / piece + (len_bytes % piece != 0);
    for (size_t p = 0; st == STATUS_OK && p <= n_pieces; p++) {
        if (p < n_pieces) {
            size_t n = p + 1 < n_pieces ? piece : len_bytes - p * piece;
            size_t i = p % CUDA_STAGING_PIECES;
            st = cuda_check(cudaMemcpyAsync(s->staging.pieces[i],
                                            (const unsigned char *)device + p * piece, n,
                                            cudaMemcpyDeviceToHost, s->stream),
                            "copying from the GPU", err);
            if (st == STATUS_OK)
                st = cuda_check(cudaEventRecord(s->staging.is_free[i], s->stream),
                                "recording an event", err);
        }
        if (st == STATUS_OK && p > 0) {
            size_t n = p < n_pieces ? piece : len_bytes - (p - 1) * piece;
            size_t i = (p - 1) % CUDA_STAGING_PIECES;
            st = cuda_check(cudaEventSynchronize(s->staging.is_free[i]), "waiting for a copy", err);
            if (st == STATUS_OK)
                memcpy((unsigned char *)host + (p - 1) * piece, s->staging.pieces[i], n);
        }
    }
    return st;
}

enum status cuda_fill(struct kernels_stream *base, void *device, unsigned char value,
                      size_t len_bytes, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    enum status st = cuda_copy_begin(s, "fill", err);
    return st == STATUS_OK ? cuda_check(cudaMemsetAsync(device, value, len_bytes, s->stream),
                                        "filling memory", err)
                           : st;
}
