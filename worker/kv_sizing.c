/* Decides how much of a GPU's memory a worker's KV pool and row store get. */
#include "worker/kv_sizing.h"

/* A context is some 500 MiB on a large GPU; the rest is for cuBLAS, staging and recorded batches.
 */
#define RESERVE_BYTES (UINT64_C(768) << 20)
/* A small GPU has fewer multiprocessors, and its context is smaller, too. */
enum { RESERVE_PART = 64 };

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(UINT64_C(1) << 30);
}

static uint64_t less(uint64_t a, uint64_t b)
{
    return a > b ? a - b : 0;
}

uint64_t kv_sizing_reserve_bytes(uint64_t total_bytes)
{
    uint64_t part = total_bytes / RESERVE_PART;
    return part < RESERVE_BYTES ? part : RESERVE_BYTES;
}

static enum status choose_asked(const struct kv_sizing *s, uint64_t to_come, uint64_t *kv_bytes,
                                struct err *err)
{
    if (s->asked_bytes > less(s->free_bytes, to_come))
        return err_set(err, STATUS_NO_MEMORY,
                       "--kv-memory of %.3f GiB and %.3f GiB of workspace do not fit on the GPU: "
                       "%.3f of its %.3f GiB are free; give --kv-memory at most %.3f GiB",
                       gib(s->asked_bytes), gib(to_come), gib(s->free_bytes), gib(s->total_bytes),
                       gib(less(s->free_bytes, to_come)));
    *kv_bytes = s->asked_bytes;
    return STATUS_OK;
}

enum status kv_sizing_choose(const struct kv_sizing *s, uint64_t *kv_bytes, struct err *err)
{
    const uint64_t reserve = kv_sizing_reserve_bytes(s->total_bytes);
    const uint64_t to_come = s->workspace_bytes + reserve;
    if (s->asked_bytes != 0)
        return choose_asked(s, to_come, kv_bytes, err);
    const uint32_t n_sharing = s->n_sharing != 0 ? s->n_sharing : 1;
    const double fraction = s->fraction > 0 ? s->fraction : KV_SIZING_SHARE / n_sharing;
    const uint64_t allowed = (uint64_t)(fraction * (double)s->total_bytes);
    uint64_t left = less(allowed, s->weight_bytes + to_come);
    const uint64_t is_free = less(s->free_bytes, to_come);
    if (left == 0)
        return err_set(err, STATUS_NO_MEMORY,
                       "%.3g of a GPU of %.3f GiB (%u worker%s on it) leave nothing for KV beside "
                       "%.3f GiB of weights and %.3f GiB of workspace; give a larger "
                       "--gpu-memory-fraction, or start fewer workers there",
                       fraction, gib(s->total_bytes), n_sharing, n_sharing == 1 ? "" : "s",
                       gib(s->weight_bytes), gib(to_come));
    if (is_free == 0)
        return err_set(err, STATUS_NO_MEMORY,
                       "no memory for KV is left on the GPU: %.3f of its %.3f GiB are free, the "
                       "workspace needs %.3f; is another program using it?",
                       gib(s->free_bytes), gib(s->total_bytes), gib(to_come));
    *kv_bytes = left < is_free ? left : is_free;
    return STATUS_OK;
}
