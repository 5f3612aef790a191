/* Forms batches of decoding rows or of a prompt for one replica, runs them, and says how long they
 * took. */
#include "cli/replica_batches.h"

#include "cluster/host.h"

#include <stdlib.h>

struct replica_batches {
    struct replica *replica;
    const struct model_config *model;
    uint32_t block_size, n_blocks, max_rows, depth;
    struct sequence_params params;
    struct batch batches[KERNELS_MAX_IN_FLIGHT];
    struct batch_result result;
    uint32_t n_submitted, n_collected;
};

static void free_batch(struct batch *b)
{
    free(b->segments);
    free(b->geometry);
    free(b->block_table);
    free(b->slots);
    free(b->ids);
}

void replica_batches_destroy(struct replica_batches *b)
{
    if (b == NULL)
        return;
    free((int32_t *)(uintptr_t)b->batches[0].pool_ids);
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++)
        free_batch(&b->batches[i]);
    free(b->result.outcomes);
    free(b);
}

enum status replica_batches_create(struct replica *replica, const struct model_config *model,
                                   uint32_t max_rows, struct replica_batches **out, struct err *err)
{
    const struct replica_geometry *g = replica_get_geometry(replica);
    struct replica_batches *b = calloc(1, sizeof *b);
    if (b == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches of %u rows", max_rows);
    b->replica = replica;
    b->model = model;
    b->block_size = g->block_size;
    b->n_blocks = g->n_blocks;
    b->max_rows = max_rows;
    b->depth = replica_depth(replica);
    int32_t *pool_ids = calloc(g->n_slots, sizeof *pool_ids);
    b->result.outcomes = calloc(max_rows, sizeof *b->result.outcomes);
    bool is_whole = pool_ids != NULL && b->result.outcomes != NULL;
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++) {
        struct batch *batch = &b->batches[i];
        batch->segments = calloc(max_rows, sizeof *batch->segments);
        batch->geometry = calloc(max_rows, sizeof *batch->geometry);
        batch->block_table = calloc(g->n_blocks, sizeof *batch->block_table);
        batch->slots = calloc(max_rows, sizeof *batch->slots);
        batch->ids = calloc(max_rows, sizeof *batch->ids);
        batch->pool_ids = pool_ids;
        batch->block_size = (int32_t)g->block_size;
        is_whole = is_whole && batch->segments != NULL && batch->geometry != NULL &&
                   batch->block_table != NULL && batch->slots != NULL && batch->ids != NULL;
    }
    if (!is_whole) {
        replica_batches_destroy(b);
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches of %u rows", max_rows);
    }
    sequence_params_init(&b->params);
    b->params.sequence = b->params.prompt_tokens = b->params.max_tokens = 1;
    b->params.max_loops = (uint32_t)model->n_loops;
    *out = b;
    return STATUS_OK;
}

uint32_t replica_batches_context(const struct replica_batches *b, uint32_t n_sequences)
{
    uint64_t lanes = (uint64_t)n_sequences * (uint32_t)b->model->n_loops;
    uint64_t context = b->n_blocks / lanes * b->block_size;
    uint64_t most = (uint64_t)b->model->max_positions / b->block_size * b->block_size;
    return (uint32_t)(context < most ? context : most);
}

static enum status collect(struct replica_batches *b, struct err *err)
{
    enum status status = replica_collect(b->replica, &b->result, err);
    if (status != STATUS_OK)
        return status;
    b->n_collected++;
    for (uint32_t i = 0; i < b->result.n_segments; i++)
        if (b->result.outcomes[i].failure != STATUS_OK)
            return err_set(err, b->result.outcomes[i].failure,
                           "segment %u of a batch failed: its gate or logits are not finite", i);
    return STATUS_OK;
}

/* The batch to fill next; waits until it is free, or until all are done unless is_ahead. */
static enum status next_batch(struct replica_batches *b, bool is_ahead, struct batch **out,
                              struct err *err)
{
    uint32_t most = is_ahead && b->depth > 1 ? b->depth - 1 : 0;
    while (b->n_submitted - b->n_collected > most) {
        enum status status = collect(b, err);
        if (status != STATUS_OK)
            return status;
    }
    *out = &b->batches[b->n_submitted % KERNELS_MAX_IN_FLIGHT];
    (*out)->n_rows = (*out)->n_segments = 0;
    return STATUS_OK;
}

static enum status submit(struct replica_batches *b, const struct batch *batch, struct err *err)
{
    enum status status = replica_submit(b->replica, batch, err);
    b->n_submitted += status == STATUS_OK;
    return status;
}

/* Waits for all that is under way, after a failure too, so that nothing runs on freed batches. */
static enum status settle(struct replica_batches *b, enum status status, struct err *err)
{
    while (b->n_collected < b->n_submitted) {
        enum status last = collect(b, status == STATUS_OK ? err : NULL);
        if (status == STATUS_OK)
            status = last;
        if (last != STATUS_OK)
            b->n_collected = b->n_submitted; /* the backend is lost */
    }
    return status;
}

/* Appends n rows from `position` on of the `lane`-th (sequence, loop), whose blocks follow each
 * other in an order as scattered as that of a pool in use. */
static void add_segment(struct replica_batches *b, struct batch *batch, uint32_t lane,
                        uint32_t n_lane_blocks, uint32_t loop, uint32_t position, uint32_t n,
                        uint32_t first_slot, bool has_live)
{
    uint32_t i = batch->n_segments++;
    uint32_t n_blocks = (position + n + b->block_size - 1) / b->block_size;
    uint32_t first_block =
        i == 0 ? 0
               : (uint32_t)(batch->geometry[i - 1].first_block + batch->geometry[i - 1].n_blocks);
    batch->segments[i] = (struct batch_segment){.sequence = lane + 1,
                                                .params = &b->params,
                                                .loop = loop,
                                                .has_live = has_live,
                                                .exit = {.survival = 1}};
    batch->geometry[i] = (struct kernels_segment){.first_row = (int32_t)batch->n_rows,
                                                  .n_rows = (int32_t)n,
                                                  .first_position = (int32_t)position,
                                                  .first_block = (int32_t)first_block,
                                                  .n_blocks = (int32_t)n_blocks};
    for (uint32_t j = 0; j < n_blocks; j++)
        batch->block_table[first_block + j] = (int32_t)(lane * n_lane_blocks + (n_blocks - 1 - j));
    for (uint32_t j = 0; j < n; j++) {
        uint32_t row = batch->n_rows + j;
        batch->slots[row] = (int32_t)(first_slot + j);
        batch->ids[row] =
            loop == 1 ? (int32_t)((first_slot + j) % (uint32_t)b->model->vocab_size) : -1;
    }
    batch->n_rows += n;
}

static enum status check_fit(const struct replica_batches *b, uint32_t rows, uint64_t blocks,
                             struct err *err)
{
    if (rows == 0 || rows > b->max_rows)
        return err_set(err, STATUS_INVALID, "a batch of %u rows; the replica takes 1 to %u", rows,
                       b->max_rows);
    if (blocks > b->n_blocks)
        return err_set(err, STATUS_NO_MEMORY,
                       "%llu KV blocks of %u positions are needed and %u are there; give more KV "
                       "memory, or fewer sequences or positions",
                       (unsigned long long)blocks, b->block_size, b->n_blocks);
    return STATUS_OK;
}

enum status replica_batches_decode(struct replica_batches *b, uint32_t n_sequences,
                                   uint32_t context, bool is_ahead, double *ns, struct err *err)
{
    uint32_t n_loops = (uint32_t)b->model->n_loops;
    uint32_t n_lane_blocks = (context + b->block_size - 1) / b->block_size;
    enum status status =
        check_fit(b, n_sequences, (uint64_t)n_lane_blocks * n_sequences * n_loops, err);
    uint64_t began_ns = host_now_ns();
    for (uint32_t loop = 1; loop <= n_loops && status == STATUS_OK; loop++) {
        struct batch *batch;
        status = next_batch(b, is_ahead, &batch, err);
        for (uint32_t i = 0; i < n_sequences && status == STATUS_OK; i++)
            add_segment(b, batch, i * n_loops + loop - 1, n_lane_blocks, loop, context - 1, 1, i,
                        true);
        if (status == STATUS_OK)
            status = submit(b, batch, err);
    }
    status = settle(b, status, err);
    *ns = (double)(host_now_ns() - began_ns);
    return status;
}

enum status replica_batches_prefill(struct replica_batches *b, uint32_t n_tokens, uint32_t chunk,
                                    bool is_ahead, double *ns, struct err *err)
{
    uint32_t n_loops = (uint32_t)b->model->n_loops;
    uint32_t n_lane_blocks = (n_tokens + b->block_size - 1) / b->block_size;
    enum status status = check_fit(b, chunk, (uint64_t)n_lane_blocks * n_loops, err);
    uint64_t began_ns = host_now_ns();
    for (uint32_t first = 0; first < n_tokens; first += chunk) {
        uint32_t n = n_tokens - first < chunk ? n_tokens - first : chunk;
        for (uint32_t loop = 1; loop <= n_loops && status == STATUS_OK; loop++) {
            struct batch *batch;
            status = next_batch(b, is_ahead, &batch, err);
            if (status != STATUS_OK)
                break;
            add_segment(b, batch, loop - 1, n_lane_blocks, loop, first, n, first,
                        first + n == n_tokens);
            status = submit(b, batch, err);
        }
    }
    status = settle(b, status, err);
    *ns = (double)(host_now_ns() - began_ns);
    return status;
}
