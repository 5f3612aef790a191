/* Brings one worker up: model, greeting, welcome, replica and stage, ready. */
#include "cluster/host.h"
#include "cluster/ring.h"
#include "worker/worker_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void copy_text(char *to, size_t cap_bytes, const char *from)
{
    snprintf(to, cap_bytes, "%s", from);
}

static enum status worker_greet(struct worker *w, enum status opened, const struct err *open_err,
                                struct err *err)
{
    struct control_message m = {.kind = CONTROL_HELLO};
    struct control_hello *hello = &m.hello;
    hello->protocol = CONTROL_PROTOCOL_VERSION;
    hello->rank = (uint32_t)w->transport->rank;
    host_name(hello->host, sizeof hello->host);
    host_boot_id(hello->boot_id, sizeof hello->boot_id);
    copy_text(hello->version, sizeof hello->version, CAROUSEL_VERSION);
    worker_device_tell(&w->device, w->config->isa, hello);
    hello->memory_available_bytes = host_memory_available_bytes();
    hello->n_cores = (uint32_t)host_n_cores();
    hello->failure = opened;
    if (opened == STATUS_OK)
        hello->fingerprint = w->checkpoint->fingerprint;
    else
        copy_text(hello->message, sizeof hello->message, open_err->message);
    return worker_send_control(w, &m, err);
}

/* Waits for the coordinator's welcome. A shutdown in its place ends the worker without an error of
 * its own: the coordinator tells the user why. */
static enum status worker_await_welcome(struct worker *w, struct control_welcome *welcome,
                                        struct err *err)
{
    uint64_t limit_ns =
        w->config->idle_timeout_ns ? w->config->idle_timeout_ns : 120ull * 1000 * 1000 * 1000;
    uint64_t deadline_ns = host_now_ns() + limit_ns;
    for (;;) {
        struct transport_message *message;
        enum status status = transport_poll(w->transport, &message, err);
        if (status != STATUS_OK)
            return status;
        if (message != NULL) {
            struct control_message m;
            status = control_decode(message->bytes, message->len_bytes, &m, err);
            transport_release(w->transport, message);
            if (status != STATUS_OK)
                return status;
            enum control_kind kind = m.kind;
            if (kind == CONTROL_WELCOME)
                *welcome = m.welcome;
            control_clear(&m);
            if (kind == CONTROL_WELCOME)
                return STATUS_OK;
            if (kind == CONTROL_SHUTDOWN) {
                w->is_over = true;
                return STATUS_OK;
            }
            return err_set(err, STATUS_CORRUPT, "rank %d: message kind %d before the welcome",
                           w->transport->rank, (int)kind);
        }
        uint64_t now_ns = host_now_ns();
        if (now_ns >= deadline_ns)
            return err_set(err, STATUS_TIMEOUT,
                           "rank %d: no word from the coordinator in %llu s; is rank 0 running?",
                           w->transport->rank, (unsigned long long)(limit_ns / 1000000000u));
        status = transport_wait(w->transport, deadline_ns - now_ns, err);
        if (status != STATUS_OK)
            return status;
    }
}

static void worker_wake(void *arg)
{
    transport_wake(arg);
}

/* Rows of more than so many are copied in several goes. */
enum { ROWS_AT_ONCE = 4096 };

/* What rows need on their way; messages lie where a GPU reaches them. */
static enum status worker_prepare_rows(struct worker *w, struct err *err)
{
    struct transport_memory memory;
    enum status status =
        worker_rows_create(&w->rows, w->replica, w->limits.d_model, ROWS_AT_ONCE, err);
    if (status != STATUS_OK)
        return status;
    w->leaving = calloc(w->ring_size, sizeof(struct transport_message *));
    if (w->leaving == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for messages to %u ranks", w->ring_size);
    if (!w->device.is_gpu)
        return STATUS_OK;
    status = replica_lend_memory(w->replica, &memory, err);
    if (status == STATUS_OK)
        transport_use_memory(w->transport, &memory);
    return status;
}

/* Rows of a batch at most, and of one prompt in it. A GPU needs hundreds of rows to be busy with
 * products, and does that many in a few milliseconds; on a CPU a batch this large would keep
 * everybody else waiting for a token. */
enum { CPU_BATCH_ROWS = 256, CPU_CHUNK = 64, GPU_BATCH_ROWS = 1024, GPU_CHUNK = 512 };

static uint32_t max_batch_rows(const struct worker *w)
{
    uint32_t by_backend = w->device.is_gpu ? GPU_BATCH_ROWS : CPU_BATCH_ROWS;
    return w->config->max_batch_rows > 0 ? w->config->max_batch_rows : by_backend;
}

static uint32_t prefill_chunk(const struct worker *w)
{
    uint32_t by_backend = w->device.is_gpu ? GPU_CHUNK : CPU_CHUNK;
    return w->config->prefill_chunk > 0 ? w->config->prefill_chunk : by_backend;
}

static enum status worker_build_stage(struct worker *w, uint64_t batch_ns, uint64_t row_ns,
                                      struct err *err)
{
    const struct model_config *model = &w->checkpoint->config;
    const struct worker_config *config = w->config;
    const struct replica_geometry *geometry = replica_get_geometry(w->replica);
    enum status status = worker_trace_create(w, err);
    if (status != STATUS_OK)
        return status;
    w->n_in_flight = config->n_in_flight > 0 ? config->n_in_flight : replica_depth(w->replica);
    struct stage_config stage = {
        .ring_size = w->ring_size,
        .ring_index = w->ring_index,
        .n_loops = (uint32_t)model->n_loops,
        .max_positions = (uint32_t)model->max_positions,
        .n_blocks = geometry->n_blocks,
        .block_size = geometry->block_size,
        .n_slots = geometry->n_slots,
        .max_sequences = config->max_sequences,
        .max_batch_rows = max_batch_rows(w),
        .prefill_chunk = prefill_chunk(w),
        .n_in_flight = w->n_in_flight,
        .batching = config->batching,
        .wait_deadline_ns = config->wait_deadline_ns,
        .batch_ns = batch_ns,
        .row_ns = row_ns,
        .rank = (uint16_t)w->transport->rank,
        .trace = w->trace,
    };
    return stage_create(&stage, &w->stage, err);
}

static enum status worker_build(struct worker *w, const struct control_welcome *welcome,
                                struct control_ready *ready, struct err *err)
{
    const struct worker_config *config = w->config;
    struct replica_config replica = {
        .backend = w->device.backend,
        .device = w->device.number,
        .is_deterministic = welcome->is_deterministic,
        .gpu_memory_fraction = config->gpu_memory_fraction,
        .n_sharing = welcome->n_sharing,
        .cost_file = config->cost_file,
        .jitter_seed = (uint64_t)w->transport->rank,
        .isa = w->device.is_gpu ? NULL : welcome->isa,
        .n_threads = (int)welcome->n_threads,
        .may_spin = welcome->may_spin,
        .kv_dtype = config->kv_dtype,
        .kv_bytes = welcome->kv_bytes,
        .block_size = config->block_size,
        .max_batch_rows = max_batch_rows(w),
        .max_sequences = config->max_sequences,
    };
    if (config->kv_dtype_auto)
        replica.kv_dtype =
            w->checkpoint->dtype == DTYPE_F32 && !w->device.is_gpu ? DTYPE_F32 : DTYPE_BF16;
    enum status status = replica_create(w->checkpoint, &replica, &w->replica, err);
    if (status != STATUS_OK)
        return status;
    status = worker_prepare_rows(w, err);
    if (status != STATUS_OK)
        return status;
    uint64_t batch_ns, row_ns;
    status = replica_calibrate(w->replica, &batch_ns, &row_ns, err);
    if (status != STATUS_OK)
        return status;
    cost_init(&w->cost, batch_ns, row_ns);

    status = worker_build_stage(w, batch_ns, row_ns, err);
    if (status != STATUS_OK)
        return status;
    /* A batch has at most one segment a row. */
    status =
        compute_create(w->replica, max_batch_rows(w), worker_wake, w->transport, &w->compute, err);
    if (status != STATUS_OK)
        return status;
    const struct replica_geometry *geometry = replica_get_geometry(w->replica);
    *ready = (struct control_ready){
        .n_kv_blocks = geometry->n_blocks,
        .block_size = geometry->block_size,
        .n_row_slots = geometry->n_slots,
        .batch_ns = batch_ns,
        .row_ns = row_ns,
    };
    return STATUS_OK;
}

enum status worker_start(struct worker *w, struct err *err)
{
    struct err open_err = {0};
    enum status opened = worker_device_choose(w->config, w->transport, &w->device, &open_err);
    if (opened == STATUS_OK)
        opened =
            checkpoint_open(w->config->model_dir, w->config->n_loops, &w->checkpoint, &open_err);
    enum status status = worker_greet(w, opened, &open_err, err);
    if (status != STATUS_OK)
        return status;
    struct control_welcome welcome = {0};
    status = worker_await_welcome(w, &welcome, err);
    if (status != STATUS_OK || w->is_over)
        return status;
    if (opened != STATUS_OK) {
        if (err != NULL)
            *err = open_err;
        return opened;
    }
    const struct model_config *model = &w->checkpoint->config;
    int n_workers = w->transport->n_ranks - 1;
    int index = w->transport->rank - 1;
    w->ring_size = w->config->ring_size ? w->config->ring_size
                                        : (uint32_t)ring_default_size(n_workers, model->n_loops);
    w->ring_index = (uint32_t)index % w->ring_size;
    w->ring_first_rank = 1 + index - (int)w->ring_index;
    w->limits = (struct frame_limits){
        .d_model = (uint32_t)model->d_model,
        .n_loops = (uint32_t)model->n_loops,
        .max_positions = (uint32_t)model->max_positions,
        .vocab_size = (uint32_t)model->vocab_size,
    };
    struct control_message m = {.kind = CONTROL_READY};
    struct err build_err = {0};
    enum status built = worker_build(w, &welcome, &m.ready, &build_err);
    if (built != STATUS_OK) {
        m.ready = (struct control_ready){.failure = built};
        copy_text(m.ready.message, sizeof m.ready.message, build_err.message);
    }
    status = worker_send_control(w, &m, err);
    if (status == STATUS_OK && built != STATUS_OK) {
        if (err != NULL)
            *err = build_err;
        return built;
    }
    return status;
}
