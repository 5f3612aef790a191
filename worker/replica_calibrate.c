/* Measures what a batch and what a row cost on this machine, before the first sequence. */
#include "worker/replica_parts.h"

#include "cluster/host.h"

#include <string.h>

enum { N_REPEATS = 3, MANY_ROWS = 32, FILL_BYTES = 64 * 1024 };

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

enum status replica_calibrate(struct replica *r, uint64_t *batch_ns, uint64_t *row_ns,
                              struct err *err)
{
    if (r->timed != NULL) {
        replica_timed_knee(r, batch_ns, row_ns);
        return STATUS_OK;
    }
    uint32_t many = r->config.max_batch_rows < MANY_ROWS ? r->config.max_batch_rows : MANY_ROWS;
    if (many > r->geometry.n_slots)
        many = r->geometry.n_slots;
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
    uint64_t one = median3(one_ns[0], one_ns[1], one_ns[2]);
    uint64_t all = median3(many_ns[0], many_ns[1], many_ns[2]);
    uint64_t n_layers = (uint64_t)r->model.n_layers;
    uint64_t row = many > 1 && all > one ? (all - one) * n_layers / (many - 1) : 0;
    if (row == 0)
        row = 1;
    uint64_t total = one * n_layers;
    *row_ns = row;
    *batch_ns = total > row ? total - row : 0;
    return STATUS_OK;
}

enum status replica_fill_kv(struct replica *r, struct err *err)
{
    unsigned char bytes[FILL_BYTES];
    memset(bytes, 0x3c, sizeof bytes); /* 0.0115 as F32 and as BF16 */
    size_t len = r->timed != NULL ? 0 : r->kv.memory.len_bytes;
    enum status st = STATUS_OK;
    for (size_t at = 0; at < len && st == STATUS_OK; at += sizeof bytes) {
        size_t n = len - at < sizeof bytes ? len - at : sizeof bytes;
        st = kernels_upload(r->rows, (char *)r->kv.memory.data + at, bytes, n, err);
        if (st == STATUS_OK)
            st = kernels_stream_sync(r->rows, err);
    }
    return st;
}
