/* Divides each host's cores, memory and GPUs among its workers. */
#include "coordinator/coordinator_state.h"

#include "kernels/kernels.h"

#include <stdio.h>
#include <string.h>

/* The length of sequence that auto mode plans for: long enough for a chat, short of the largest
 * contexts. */
enum { USEFUL_POSITIONS = 2048 };
/* When the host does not tell what is free. */
#define UNKNOWN_MEMORY_BYTES (UINT64_C(1) << 30)

static uint64_t saturating_mul(uint64_t a, uint64_t b)
{
    return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

uint64_t coordinator_auto_kv_bytes(const struct model_config *model, enum dtype kv_dtype,
                                   uint64_t memory_available_bytes, uint32_t n_local_workers,
                                   uint32_t max_running)
{
    const uint64_t context = (uint64_t)model->max_positions;
    const uint64_t useful = context < USEFUL_POSITIONS ? context : USEFUL_POSITIONS;
    /* A position at one loop is its K and V and the row that may wait or be parked there. */
    const uint64_t position_bytes =
        (uint64_t)model->n_loops *
        (config_kv_bytes_per_position(model, kv_dtype) + (uint64_t)model->d_model * sizeof(float));
    uint64_t want = saturating_mul(saturating_mul(useful, position_bytes), max_running);
    uint64_t longest = saturating_mul(context, position_bytes);
    want = longest > want ? longest : want;
    uint64_t available =
        memory_available_bytes != 0 ? memory_available_bytes : UNKNOWN_MEMORY_BYTES;
    uint64_t share = available / 4 * 3 / (n_local_workers != 0 ? n_local_workers : 1);
    return want < share ? want : share;
}

/* ---- one host ------------------------------------------------------------------------------- */

struct host_share {
    uint32_t n_workers;
    uint64_t available_bytes; /* the least its workers have seen */
    char ranks[96];           /* "1, 2, 3" */
};

static struct host_share share_of(const struct coordinator *c, const char *host)
{
    struct host_share h = {0};
    size_t at = 0;
    for (uint32_t w = 0; w < c->n_workers; w++) {
        const struct control_hello *hello = &c->peers[w].hello;
        if (strcmp(hello->host, host) != 0)
            continue;
        uint64_t available = hello->memory_available_bytes;
        if (h.n_workers == 0 || available < h.available_bytes)
            h.available_bytes = available;
        if (at + 16 < sizeof h.ranks)
            at += (size_t)snprintf(h.ranks + at, sizeof h.ranks - at, "%s%u",
                                   h.n_workers > 0 ? ", " : "", w + 1);
        else if (h.ranks[at - 1] != '.')
            at += (size_t)snprintf(h.ranks + at, sizeof h.ranks - at, " ...");
        h.n_workers++;
    }
    return h;
}

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(UINT64_C(1) << 30);
}

static bool is_on_gpu(const struct control_hello *hello)
{
    return strcmp(hello->backend, "cuda") == 0;
}

/* Workers of the job on this one's GPU. */
static uint32_t count_sharing(const struct coordinator *c, const struct control_hello *hello)
{
    uint32_t n = 0;
    for (uint32_t w = 0; w < c->n_workers && is_on_gpu(hello); w++)
        n += strcmp(c->peers[w].hello.host, hello->host) == 0 &&
             strcmp(c->peers[w].hello.device_id, hello->device_id) == 0;
    return n;
}

static enum status plan_memory(const struct coordinator *c, const struct control_hello *hello,
                               const struct host_share *share, uint64_t *kv_bytes, struct err *err)
{
    const char *host = hello->host;
    if (strcmp(hello->backend, "timed") == 0) { /* its KV memory is counted, never taken */
        *kv_bytes = c->config.kv_bytes;
        if (*kv_bytes == 0)
            *kv_bytes = coordinator_auto_kv_bytes(&c->checkpoint->config, c->config.kv_dtype,
                                                  UINT64_MAX, 1, c->config.max_running);
        return STATUS_OK;
    }
    if (is_on_gpu(hello)) { /* only the worker sees what is free there, and 0 makes it look */
        *kv_bytes = c->config.kv_bytes;
        return STATUS_OK;
    }
    if (c->config.kv_bytes == 0) {
        *kv_bytes = coordinator_auto_kv_bytes(&c->checkpoint->config, c->config.kv_dtype,
                                              share->available_bytes, share->n_workers,
                                              c->config.max_running);
        return STATUS_OK;
    }
    uint64_t need = saturating_mul(c->config.kv_bytes, share->n_workers);
    if (share->available_bytes != 0 && need > share->available_bytes)
        return err_set(
            err, STATUS_NO_MEMORY,
            "host %s (rank%s %s): %u worker%s with --kv-memory of %.3f GiB need %.3f GiB, "
            "%.3f GiB are available: give --kv-memory at most %.3f GiB or start fewer "
            "workers there",
            host, share->n_workers == 1 ? "" : "s", share->ranks, share->n_workers,
            share->n_workers == 1 ? "" : "s", gib(c->config.kv_bytes), gib(need),
            gib(share->available_bytes), gib(share->available_bytes / share->n_workers));
    *kv_bytes = c->config.kv_bytes;
    return STATUS_OK;
}

/* There is no least of two kinds of GPU to agree on. */
static enum status check_gpu(const struct coordinator *c, uint32_t worker, struct err *err)
{
    const struct control_hello *h = &c->peers[worker].hello, *first = &c->peers[0].hello;
    if (strcmp(h->isa, first->isa) == 0 && strcmp(h->device_name, first->device_name) == 0)
        return STATUS_OK;
    return err_set(err, STATUS_MISMATCH,
                   "rank %u on %s computes on a %s (%s), rank 1 on %s on a %s (%s): results are "
                   "the same only on one kind of GPU; choose hosts that have it, or --device",
                   worker + 1, h->host, h->device_name, h->isa, first->host, first->device_name,
                   first->isa);
}

/* Results are bit-identical within one instruction set, so all use the least. */
static enum status plan_isa(const struct coordinator *c, const char **out, struct err *err)
{
    const char *isa = c->peers[0].hello.isa;
    for (uint32_t w = 0; w < c->n_workers; w++) {
        const struct control_hello *h = &c->peers[w].hello;
        if (strcmp(h->backend, c->peers[0].hello.backend) != 0)
            return err_set(err, STATUS_MISMATCH,
                           "rank %u on %s computes with backend %s, rank 1 on %s with %s: results "
                           "are the same only within one, choose it with --backend",
                           w + 1, h->host, h->backend, c->peers[0].hello.host,
                           c->peers[0].hello.backend);
        if (is_on_gpu(h)) {
            enum status st = check_gpu(c, w, err);
            if (st != STATUS_OK)
                return st;
            continue;
        }
        if (strcmp(h->isa, isa) == 0)
            continue;
        isa = kernels_cpu_lesser_isa(isa, h->isa);
        if (isa == NULL)
            return err_set(err, STATUS_MISMATCH,
                           "rank %u on %s reports instruction set '%s', rank 1 '%s'; this build "
                           "does not know both: run the same build everywhere",
                           w + 1, h->host, h->isa, c->peers[0].hello.isa);
    }
    *out = isa;
    return STATUS_OK;
}

/* One worker without it, and rows travel in the bundles: all senders do the same. */
static bool are_direct(const struct coordinator *c)
{
    for (uint32_t w = 0; w < c->n_workers; w++)
        if (!c->peers[w].hello.is_direct)
            return false;
    return true;
}

enum status coordinator_plan(const struct coordinator *c, struct control_welcome *welcomes,
                             struct err *err)
{
    const char *isa = NULL;
    enum status st = plan_isa(c, &isa, err);
    for (uint32_t w = 0; w < c->n_workers && st == STATUS_OK; w++) {
        const struct control_hello *h = &c->peers[w].hello;
        const struct host_share share = share_of(c, h->host);
        uint32_t n_cores = h->n_cores != 0 ? h->n_cores : 1;
        uint32_t n_threads = c->config.n_threads;
        if (n_threads == 0)
            n_threads = n_cores / share.n_workers != 0 ? n_cores / share.n_workers : 1;
        struct control_welcome *welcome = &welcomes[w];
        memset(welcome, 0, sizeof *welcome);
        snprintf(welcome->isa, sizeof welcome->isa, "%s", isa);
        welcome->n_threads = n_threads;
        /* A spinning thread must not take the core of one that works. Rank 0 needs a core for
         * microseconds a token, so none is kept for it. With a GPU one thread waits for it and one
         * gives it work, whatever --threads says. */
        const uint64_t n_busy = is_on_gpu(h) ? 2 : n_threads;
        welcome->may_spin = share.n_workers * n_busy <= n_cores;
        welcome->is_deterministic = c->config.is_deterministic;
        welcome->is_direct = are_direct(c);
        welcome->n_sharing = count_sharing(c, h);
        st = plan_memory(c, h, &share, &welcome->kv_bytes, err);
    }
    return st;
}
