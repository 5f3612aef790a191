/* Measures what a batch and what a row cost on this machine, before the first sequence. */
#include "worker/replica_parts.h"

#include "cluster/host.h"

#include <stdlib.h>

enum { N_REPEATS = 3, MANY_ROWS = 32 };

static uint64_t median3(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

/* One layer over n rows of one sequence, positions 0..n-1 in the first blocks of the pool, which
 * no sequence holds yet: whoever gets them later writes a position before it reads it. */
static enum status time_layer(struct replica *r, int layer, uint32_t n, uint64_t *took_ns,
                              struct err *err)
{
    const struct block_workspace *w = &r->block_workspace;
    int32_t table[MANY_ROWS], slots[MANY_ROWS] = {0}, ids[MANY_ROWS] = {0};
    uint32_t n_blocks = (n + r->geometry.block_size - 1) / r->geometry.block_size;
    for (uint32_t i = 0; i < n_blocks; i++)
        table[i] = (int32_t)i;
    const struct kernels_segment segment = {.n_rows = (int32_t)n, .n_blocks = (int32_t)n_blocks};
    const struct kernels_batch batch = {.n_rows = (int32_t)n,
                                        .n_segments = 1,
                                        .segments = &segment,
                                        .block_table = table,
                                        .slots = slots,
                                        .ids = ids};
    enum status st = kernels_bind(r->compute, &batch, &r->kv, 0, err);
    /* Rows of token 0's embedding: real values, because zeros and leftovers may run at another
     * speed. */
    if (st == STATUS_OK)
        st = kernels_load_rows(r->compute, w->h, r->store.data, &r->embed, (int)n, err);
    if (st == STATUS_OK)
        st = block_norm(&r->block, r->compute, w, (int)n, layer, err);
    if (st == STATUS_OK)
        st = block_positions(&r->block, r->compute, w, (int)n, err);
    if (st == STATUS_OK)
        st = kernels_stream_sync(r->compute, err);
    uint64_t start_ns = host_now_ns();
    if (st == STATUS_OK)
        st = block_layers(&r->block, r->compute, w, &r->kv, (int)n, layer, 1, err);
    if (st == STATUS_OK)
        st = kernels_stream_sync(r->compute, err);
    *took_ns = host_now_ns() - start_ns;
    return st;
}

/* ---- on a device ------------------------------------------------------------------------------
 *
 * Whole batches, as they will run: one layer is over before the clock has seen anything, and what a
 * row costs shows at hundreds of rows only. */

/* Before a small batch runs as it will from then on: algorithms are chosen, kernels are loaded, the
 * recording is made. */
enum { MANY_DEVICE_ROWS = 512, N_UNTIL_RECORDED = 3 };

/* A batch of one-row segments, each with a block of its own. */
struct calibrate_batch {
    struct batch b;
    struct batch_result result;
    struct sequence_params params;
};

static void free_batch(struct calibrate_batch *c)
{
    free(c->b.segments);
    free(c->b.geometry);
    free(c->b.block_table);
    free(c->b.slots);
    free(c->b.ids);
    free(c->result.outcomes);
}

static enum status make_batch(const struct replica *r, uint32_t n, struct calibrate_batch *c,
                              struct err *err)
{
    sequence_params_init(&c->params);
    c->b.block_size = (int32_t)r->geometry.block_size;
    c->b.segments = calloc(n, sizeof *c->b.segments);
    c->b.geometry = calloc(n, sizeof *c->b.geometry);
    c->b.block_table = calloc(n, sizeof *c->b.block_table);
    c->b.slots = calloc(n, sizeof *c->b.slots);
    c->b.ids = calloc(n, sizeof *c->b.ids);
    c->result.outcomes = calloc(n, sizeof *c->result.outcomes);
    if (c->b.segments == NULL || c->b.geometry == NULL || c->b.block_table == NULL ||
        c->b.slots == NULL || c->b.ids == NULL || c->result.outcomes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a batch of %u rows", n);
    for (uint32_t i = 0; i < n; i++) {
        c->b.segments[i] = (struct batch_segment){.params = &c->params, .loop = 1};
        c->b.geometry[i] = (struct kernels_segment){
            .first_row = (int32_t)i, .n_rows = 1, .first_block = (int32_t)i, .n_blocks = 1};
        c->b.block_table[i] = (int32_t)i;
        c->b.slots[i] = (int32_t)i;
        c->b.ids[i] = (int32_t)i % r->model.vocab_size;
    }
    return STATUS_OK;
}

/* The median of some runs, after n_before others. */
static enum status time_batch(struct replica *r, uint32_t n, int n_before,
                              struct calibrate_batch *c, uint64_t *took_ns, struct err *err)
{
    uint64_t ns[N_REPEATS] = {0};
    enum status st = STATUS_OK;
    c->b.n_rows = c->b.n_segments = n;
    for (int i = -n_before; i < N_REPEATS && st == STATUS_OK; i++) {
        uint64_t start_ns = host_now_ns();
        st = replica_run(r, &c->b, &c->result, err);
        if (i >= 0)
            ns[i] = host_now_ns() - start_ns;
    }
    if (st == STATUS_OK)
        *took_ns = median3(ns[0], ns[1], ns[2]);
    return st;
}

static enum status time_device(struct replica *r, uint32_t many, uint64_t *one_ns,
                               uint64_t *many_ns, struct err *err)
{
    struct calibrate_batch c = {0};
    enum status st = make_batch(r, many, &c, err);
    if (st == STATUS_OK)
        st = time_batch(r, 1, N_UNTIL_RECORDED, &c, one_ns, err);
    if (st == STATUS_OK)
        st = time_batch(r, many, 1, &c, many_ns, err);
    free_batch(&c);
    return st;
}

/* ---- both -------------------------------------------------------------------------------------
 */

/* All layers at one row and at many, on the CPU: one layer, times their number. */
static enum status time_host(struct replica *r, uint32_t many, uint64_t *one, uint64_t *all,
                             struct err *err)
{
    uint64_t one_ns[N_REPEATS], many_ns[N_REPEATS];
    enum status st = STATUS_OK;
    for (int i = 0; i < N_REPEATS && st == STATUS_OK; i++) {
        /* Other layers in turn, so that weights come from memory as in a real batch; once before
         * the clock counts, so that pages are mapped. */
        int layer = i % r->model.n_layers;
        st = time_layer(r, layer, 1, &one_ns[i], err);
        if (st == STATUS_OK)
            st = time_layer(r, layer, many, &many_ns[i], err);
        if (st == STATUS_OK)
            st = time_layer(r, layer, 1, &one_ns[i], err);
    }
    if (st != STATUS_OK)
        return st;
    const uint64_t n_layers = (uint64_t)r->model.n_layers;
    *one = median3(one_ns[0], one_ns[1], one_ns[2]) * n_layers;
    *all = median3(many_ns[0], many_ns[1], many_ns[2]) * n_layers;
    return STATUS_OK;
}

enum status replica_calibrate(struct replica *r, uint64_t *batch_ns, uint64_t *row_ns,
                              struct err *err)
{
    if (r->timed != NULL) {
        replica_timed_knee(r, batch_ns, row_ns);
        return STATUS_OK;
    }
    const bool is_device = r->device != NULL;
    uint32_t many = is_device ? MANY_DEVICE_ROWS : MANY_ROWS;
    const uint32_t bounds[] = {r->config.max_batch_rows, r->geometry.n_slots,
                               is_device ? r->geometry.n_blocks : many};
    for (int i = 0; i < 3; i++)
        many = many < bounds[i] ? many : bounds[i];
    uint64_t one, all;
    enum status st =
        is_device ? time_device(r, many, &one, &all, err) : time_host(r, many, &one, &all, err);
    if (st != STATUS_OK)
        return st;
    uint64_t row = many > 1 && all > one ? (all - one) / (many - 1) : 0;
    if (row == 0)
        row = 1;
    *row_ns = row;
    *batch_ns = one > row ? one - row : 0;
    return STATUS_OK;
}

enum status replica_fill_kv(struct replica *r, struct err *err)
{
    if (r->timed != NULL)
        return STATUS_OK;
    /* 0.0115 as F32 and as BF16 */
    enum status st = kernels_fill(r->rows, r->kv.memory.data, 0x3c, r->kv.memory.len_bytes, err);
    return st == STATUS_OK ? kernels_stream_sync(r->rows, err) : st;
}
