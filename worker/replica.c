/* A replica's life: how much fits, create and destroy. */
#include "worker/replica.h"

#include "worker/kv_sizing.h"
#include "worker/replica_parts.h"

#include <stdlib.h>
#include <string.h>

enum {
    HEAD_MAX_ROWS = 64,
    HEAD_MAX_BYTES = 16 * 1024 * 1024, /* of logits: 64 rows up to a vocabulary of 65,536 */
    MAX_BATCH_ROWS = 65536,
    CARVE_BYTES = 64
};

uint32_t replica_head_group(const struct model_config *model, uint32_t max_batch_rows)
{
    size_t n = HEAD_MAX_BYTES / ((size_t)model->vocab_size * sizeof(float));
    if (n > HEAD_MAX_ROWS)
        n = HEAD_MAX_ROWS;
    if (n > max_batch_rows)
        n = max_batch_rows;
    return n > 0 ? (uint32_t)n : 1;
}

static size_t carved_bytes(size_t n_floats)
{
    return (n_floats * sizeof(float) + CARVE_BYTES - 1) / CARVE_BYTES * CARVE_BYTES;
}

/* Activations of the block, then lambda, and head rows and logits of `group` rows. */
static enum status workspace_bytes(const struct model_config *model, enum dtype activation,
                                   uint32_t max_rows, size_t group, size_t *bytes, struct err *err)
{
    size_t block;
    enum status st = block_workspace_bytes(model, activation, max_rows, &block, err);
    if (st != STATUS_OK)
        return st;
    *bytes = block + carved_bytes(max_rows) + carved_bytes(group * (size_t)model->d_model) +
             carved_bytes(group * (size_t)model->vocab_size);
    return STATUS_OK;
}

enum status replica_plan(const struct model_config *model, const struct replica_config *config,
                         struct replica_geometry *out, struct err *err)
{
    if (config->kv_dtype != DTYPE_F32 && config->kv_dtype != DTYPE_BF16)
        return err_set(err, STATUS_UNSUPPORTED, "kv dtype %s: use f32 or bf16",
                       dtype_name(config->kv_dtype));
    if (config->block_size == 0 || config->block_size > 4096)
        return err_set(err, STATUS_INVALID, "KV block size %u is outside 1..4096",
                       config->block_size);
    if (config->max_batch_rows == 0 || config->max_batch_rows > MAX_BATCH_ROWS)
        return err_set(err, STATUS_INVALID, "batch rows %u is outside 1..%d",
                       config->max_batch_rows, MAX_BATCH_ROWS);
    uint64_t block_kv =
        (uint64_t)config->block_size * config_kv_bytes_per_position(model, config->kv_dtype);
    uint64_t block_rows = (uint64_t)config->block_size * (uint64_t)model->d_model * sizeof(float);
    uint64_t n = config->kv_bytes / (block_kv + block_rows);
    if (n == 0)
        return err_set(err, STATUS_NO_MEMORY,
                       "%llu bytes of KV memory hold no block: one of %u positions needs %llu",
                       (unsigned long long)config->kv_bytes, config->block_size,
                       (unsigned long long)(block_kv + block_rows));
    if (n > (uint64_t)INT32_MAX / config->block_size) /* slots and blocks are int32 in a batch */
        n = (uint64_t)INT32_MAX / config->block_size;
    size_t workspace;
    enum status st =
        workspace_bytes(model, DTYPE_F32, config->max_batch_rows,
                        replica_head_group(model, config->max_batch_rows), &workspace, err);
    if (st != STATUS_OK)
        return st;
    *out = (struct replica_geometry){
        .n_blocks = (uint32_t)n,
        .block_size = config->block_size,
        .n_slots = (uint32_t)n * config->block_size,
        .kv_bytes = n * block_kv,
        .row_bytes = n * block_rows,
        .workspace_bytes = workspace,
    };
    return STATUS_OK;
}

static enum status load_weights(struct replica *r, const struct checkpoint *checkpoint,
                                struct err *err)
{
    const struct model_weights *w = &checkpoint->weights;
    enum status st = block_load(&r->block, r->kernels, checkpoint, err);
    if (st == STATUS_OK)
        st = kernels_weight_load(r->kernels, &w->embed, &r->embed, err);
    if (st == STATUS_OK && w->head.data != w->embed.data)
        st = kernels_weight_load(r->kernels, &w->head, &r->head, err);
    else
        r->head = r->embed; /* tied: one copy on a backend that copies */
    if (st == STATUS_OK && w->gate.data)
        st = kernels_weight_load(r->kernels, &w->gate, &r->gate, err);
    if (st == STATUS_OK && w->gate_bias.data)
        st = kernels_weight_load(r->kernels, &w->gate_bias, &r->gate_bias, err);
    return st == STATUS_OK ? kernels_weights_ready(r->kernels, err) : st;
}

/* Rows of the head at once: by groups on the host, all of a batch on a device. */
static size_t head_room(const struct replica *r)
{
    const uint32_t n = r->device != NULL ? replica_device_heads(r) : 0;
    return n > r->head_group ? n : r->head_group;
}

/* The same for the replica as it is, with the type its backend computes in. */
static enum status own_workspace_bytes(const struct replica *r, size_t *bytes, struct err *err)
{
    return workspace_bytes(&r->model, kernels_activation_dtype(r->kernels),
                           r->config.max_batch_rows, head_room(r), bytes, err);
}

/* On a device, where the weights are by now, looks how much is left for KV. */
static enum status size_pool(struct replica *r, const struct replica_config *config,
                             struct err *err)
{
    struct kernels_memory memory;
    size_t workspace;
    enum status st = kernels_device_memory(r->kernels, &memory, err);
    if (st == STATUS_OK && memory.total_bytes > 0) {
        st = own_workspace_bytes(r, &workspace, err);
        if (st != STATUS_OK)
            return st;
        const struct kv_sizing sizing = {
            .total_bytes = memory.total_bytes,
            .free_bytes = memory.free_bytes,
            .weight_bytes = config_count_parameters(&r->model) * dtype_bytes(DTYPE_BF16),
            .workspace_bytes = workspace,
            .asked_bytes = config->kv_bytes,
            .fraction = config->gpu_memory_fraction,
            .n_sharing = config->n_sharing,
        };
        st = kv_sizing_choose(&sizing, &r->config.kv_bytes, err);
    }
    return st == STATUS_OK ? replica_plan(&r->model, &r->config, &r->geometry, err) : st;
}

static enum status reserve_device(struct replica *r, struct err *err)
{
    const struct model_config *m = &r->model;
    struct replica_geometry *g = &r->geometry;
    size_t bytes;
    enum status st = own_workspace_bytes(r, &bytes, err);
    if (st != STATUS_OK)
        return st;
    g->workspace_bytes = bytes;
    st = kernels_kv_create(r->kernels, r->config.kv_dtype, (int)g->n_blocks, (int)g->block_size,
                           m->n_layers, m->n_kv_heads, m->head_dim, &r->kv, err);
    if (st == STATUS_OK)
        st = kernels_alloc(r->kernels, g->row_bytes, false, &r->store, err);
    if (st == STATUS_OK)
        st = kernels_alloc(r->kernels, g->workspace_bytes, false, &r->workspace, err);
    if (st != STATUS_OK)
        return st;
    g->kv_bytes = r->kv.memory.len_bytes;
    g->row_bytes = r->store.len_bytes;

    const enum dtype activation = kernels_activation_dtype(r->kernels);
    size_t block_bytes;
    st = block_workspace_bytes(m, activation, r->config.max_batch_rows, &block_bytes, err);
    if (st != STATUS_OK)
        return st;
    char *at = r->workspace.data;
    block_workspace_carve(m, activation, r->config.max_batch_rows, at, &r->block_workspace);
    at += block_bytes;
    r->lambda = (float *)(void *)at;
    at += carved_bytes(r->config.max_batch_rows);
    r->head_rows = at;
    at += carved_bytes(head_room(r) * (size_t)m->d_model);
    r->logits = (float *)(void *)at;
    return STATUS_OK;
}

/* What the largest batch needs of the stream: every row a segment of its own, every block of the
 * pool in the table. */
static enum status reserve_stream(struct replica *r, struct err *err)
{
    const struct model_config *m = &r->model;
    const int32_t n_rows = (int32_t)r->config.max_batch_rows;
    const struct kernels_limits limits = {
        .n_rows = n_rows,
        .n_segments = n_rows,
        .n_table = (int32_t)r->geometry.n_blocks,
        .block_size = (int32_t)r->geometry.block_size,
        .n_slots = (int32_t)r->geometry.n_slots,
        .vocab_size = m->vocab_size,
        .n_heads = m->n_heads,
        .n_kv_heads = m->n_kv_heads,
        .head_dim = m->head_dim,
        .n_wanted_logits = r->device != NULL ? (int32_t)replica_device_wanted(r) : 0,
    };
    return kernels_stream_reserve(r->compute, &limits, err);
}

static enum status reserve_host(struct replica *r, struct err *err)
{
    size_t n = r->config.max_batch_rows, vocab = (size_t)r->model.vocab_size;
    r->select_ids = malloc(vocab * sizeof *r->select_ids);
    r->gate_rows = malloc(n * sizeof *r->gate_rows);
    r->gate_index = malloc(n * sizeof *r->gate_index);
    r->host_lambda = malloc(n * sizeof *r->host_lambda);
    r->head_list = malloc(n * sizeof *r->head_list);
    r->head_segment = malloc(n * sizeof *r->head_segment);
    r->host_logits = malloc(r->head_group * vocab * sizeof *r->host_logits);
    if (!r->select_ids || !r->gate_rows || !r->gate_index || !r->host_lambda || !r->head_list ||
        !r->head_segment || !r->host_logits)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a batch of %zu rows", n);
    return sampler_create(r->model.vocab_size, &r->sampler, err);
}

enum status replica_create(const struct checkpoint *checkpoint, const struct replica_config *config,
                           struct replica **out, struct err *err)
{
    enum status st = STATUS_OK;
    struct replica *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a replica");
    r->config = *config;
    r->config.backend = r->config.isa = r->config.cost_file = NULL; /* borrowed until return */
    r->model = checkpoint->config;
    r->head_group = replica_head_group(&r->model, config->max_batch_rows);

    if (config->backend != NULL && strcmp(config->backend, "timed") == 0) {
        st = replica_plan(&r->model, &r->config, &r->geometry, err);
        if (st == STATUS_OK)
            st = replica_timed_create(r, config, err);
        goto out;
    }
    struct kernels_options options = {.isa = config->isa,
                                      .n_threads = config->n_threads,
                                      .may_spin = config->may_spin,
                                      .device = config->device,
                                      .is_deterministic = config->is_deterministic};
    st = kernels_create(config->backend ? config->backend : "auto", &options, &r->kernels, err);
    if (st == STATUS_OK)
        st = kernels_stream_create(r->kernels, "compute", &r->compute, err);
    if (st == STATUS_OK)
        st = kernels_stream_create(r->kernels, "rows", &r->rows, err);
    if (st == STATUS_OK)
        st = load_weights(r, checkpoint, err);
    if (st == STATUS_OK && kernels_has_finish(r->kernels))
        st = replica_device_create(r, err);
    if (st == STATUS_OK)
        st = size_pool(r, config, err);
    if (st == STATUS_OK)
        st = reserve_device(r, err);
    if (st == STATUS_OK)
        st = reserve_stream(r, err);
    if (st == STATUS_OK)
        st = reserve_host(r, err);
out:
    if (st != STATUS_OK) {
        replica_destroy(r);
        return st;
    }
    *out = r;
    return STATUS_OK;
}

static void unload_weights(struct replica *r)
{
    if (r->head.data && r->head.data != r->embed.data)
        kernels_weight_unload(r->kernels, &r->head);
    struct kernels_weight *rest[] = {&r->embed, &r->gate, &r->gate_bias};
    for (size_t i = 0; i < sizeof rest / sizeof rest[0]; i++)
        if (rest[i]->data)
            kernels_weight_unload(r->kernels, rest[i]);
    block_unload(&r->block, r->kernels);
}

void replica_destroy(struct replica *r)
{
    if (!r)
        return;
    if (r->kernels) {
        if (r->compute)
            kernels_stream_destroy(r->compute);
        if (r->rows)
            kernels_stream_destroy(r->rows);
        kernels_free(r->kernels, &r->workspace);
        kernels_free(r->kernels, &r->store);
        kernels_kv_destroy(r->kernels, &r->kv);
        unload_weights(r);
        replica_leave_kernels(r);
    }
    replica_device_destroy(r);
    replica_timed_destroy(r);
    sampler_destroy(r->sampler);
    free(r->select_ids);
    free(r->gate_rows);
    free(r->gate_index);
    free(r->host_lambda);
    free(r->head_list);
    free(r->head_segment);
    free(r->host_logits);
    free(r->observations.items);
    free(r->observations.ids);
    free(r->observations.logits);
    free(r->observations.hidden);
    free(r);
}

const struct replica_geometry *replica_get_geometry(const struct replica *r)
{
    return &r->geometry;
}
