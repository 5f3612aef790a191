/* The front end's batches: what a stream is told once and all its operations rely on is checked
 * here. */
#include "kernels/kernels.h"
#include "kernels/kernels_ops.h"

#include <assert.h>

enum status kernels_stream_reserve(struct kernels_stream *s, const struct kernels_limits *limits,
                                   struct err *err)
{
    if (limits->n_rows < 1 || limits->n_segments < 1 || limits->n_segments > limits->n_rows ||
        limits->n_table < 0 || limits->block_size < 1 || limits->n_slots < 0 ||
        limits->vocab_size < 0 || limits->n_wanted_logits < 0)
        return err_set(err, STATUS_INVALID,
                       "stream '%s': batches of %d rows in %d segments over %d blocks of %d "
                       "positions, %d slots, vocabulary %d, %d logits wanted",
                       s->name, (int)limits->n_rows, (int)limits->n_segments, (int)limits->n_table,
                       (int)limits->block_size, (int)limits->n_slots, (int)limits->vocab_size,
                       (int)limits->n_wanted_logits);
    if (limits->n_heads < 1 || limits->n_kv_heads < 1 ||
        limits->n_heads % limits->n_kv_heads != 0 || limits->head_dim < 1 ||
        limits->head_dim % 2 != 0)
        return err_set(err, STATUS_INVALID,
                       "stream '%s': %d query heads over %d kv heads, head_dim %d", s->name,
                       (int)limits->n_heads, (int)limits->n_kv_heads, (int)limits->head_dim);
    if (s->limits.n_rows > 0)
        return err_set(err, STATUS_INVALID, "stream '%s' is reserved already", s->name);
    s->limits = *limits;
    enum status st = s->kernels->ops->stream_reserve(s, limits, err);
    if (st != STATUS_OK)
        s->limits = (struct kernels_limits){0};
    return st;
}

/* ---- checks -----------------------------------------------------------------------------------
 */

/* The blocks of a segment hold its positions and exist. */
static enum status check_blocks(const struct kernels_limits *limits,
                                const struct kernels_batch *batch, int i,
                                const struct kernels_kv *kv, struct err *err)
{
    const struct kernels_segment *g = &batch->segments[i];
    const int64_t end = (int64_t)g->first_position + g->n_rows;
    if (g->first_block < 0 || g->n_blocks < 0 || (int64_t)g->n_blocks * kv->block_size < end)
        return err_set(err, STATUS_INVALID,
                       "bind: segment %d has %d blocks of %d positions from entry %d, but %lld "
                       "positions",
                       i, (int)g->n_blocks, kv->block_size, (int)g->first_block, (long long)end);
    if ((int64_t)g->first_block + g->n_blocks > limits->n_table)
        return err_set(
            err, STATUS_INVALID,
            "bind: segment %d has %d blocks from entry %d, but tables of %d are reserved", i,
            (int)g->n_blocks, (int)g->first_block, (int)limits->n_table);
    for (int b = 0; b < g->n_blocks; b++) {
        int32_t block = batch->block_table[g->first_block + b];
        if (block < 0 || block >= kv->n_blocks)
            return err_set(err, STATUS_INVALID, "bind: segment %d names KV block %d of %d", i,
                           (int)block, kv->n_blocks);
    }
    return STATUS_OK;
}

/* Segments cover the rows in order. */
static enum status check_segments(const struct kernels_limits *limits,
                                  const struct kernels_batch *batch, const struct kernels_kv *kv,
                                  struct err *err)
{
    int row = 0;
    for (int i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *g = &batch->segments[i];
        if (g->first_row != row || g->n_rows <= 0 || g->n_rows > batch->n_rows - row ||
            g->first_position < 0 || g->first_position > INT32_MAX - g->n_rows)
            return err_set(err, STATUS_INVALID,
                           "bind: segment %d has rows [%d, +%d) and first position %d; row %d of "
                           "%d comes next",
                           i, (int)g->first_row, (int)g->n_rows, (int)g->first_position, row,
                           (int)batch->n_rows);
        row += g->n_rows;
        enum status st = kv != NULL ? check_blocks(limits, batch, i, kv, err) : STATUS_OK;
        if (st != STATUS_OK)
            return st;
    }
    if (row != batch->n_rows)
        return err_set(err, STATUS_INVALID, "bind: segments cover %d of %d rows", row,
                       (int)batch->n_rows);
    return STATUS_OK;
}

/* Every row has a slot to come from and go to; ids, where there are any, are of the vocabulary. */
static enum status check_rows(const struct kernels_limits *limits,
                              const struct kernels_batch *batch, struct err *err)
{
    for (int i = 0; batch->slots != NULL && i < batch->n_rows; i++)
        if (batch->slots[i] < 0 || batch->slots[i] >= limits->n_slots)
            return err_set(err, STATUS_INVALID, "bind: slot %d of row %d, but there are %d",
                           (int)batch->slots[i], i, (int)limits->n_slots);
    for (int i = 0; batch->ids != NULL && i < batch->n_rows; i++) {
        if (batch->ids[i] < -1 || batch->ids[i] >= limits->vocab_size)
            return err_set(err, STATUS_INVALID, "bind: id %d of row %d, but the vocabulary is %d",
                           (int)batch->ids[i], i, (int)limits->vocab_size);
        if (batch->ids[i] < 0 && batch->slots == NULL)
            return err_set(err, STATUS_INVALID, "bind: row %d has neither an id nor a slot", i);
    }
    return STATUS_OK;
}

/* Live rows are last rows of their segments, in order, one a segment. */
static enum status check_live(const struct kernels_limits *limits,
                              const struct kernels_batch *batch, struct err *err)
{
    if (batch->n_live < 0 || batch->n_live > batch->n_segments)
        return err_set(err, STATUS_INVALID, "bind: %d live rows of %d segments", (int)batch->n_live,
                       (int)batch->n_segments);
    int n_wanted = 0, before = -1;
    for (int i = 0; i < batch->n_live; i++) {
        const struct kernels_live *l = &batch->live[i];
        if (l->segment <= before || l->segment >= batch->n_segments || l->params == NULL)
            return err_set(err, STATUS_INVALID,
                           "bind: live row %d is of segment %d of %d, after segment %d%s", i,
                           (int)l->segment, (int)batch->n_segments, before,
                           l->params == NULL ? ", without parameters" : "");
        const struct kernels_segment *g = &batch->segments[l->segment];
        if (l->row != g->first_row + g->n_rows - 1 || l->loop < 1 ||
            l->position != (uint32_t)(g->first_position + g->n_rows - 1))
            return err_set(
                err, STATUS_INVALID,
                "bind: live row %d is row %d, position %u, loop %u; segment %d ends with "
                "row %d, position %d",
                i, (int)l->row, l->position, l->loop, (int)l->segment,
                (int)(g->first_row + g->n_rows - 1), (int)(g->first_position + g->n_rows - 1));
        before = l->segment;
        n_wanted += l->wants_logits;
    }
    if (n_wanted > limits->n_wanted_logits)
        return err_set(err, STATUS_INVALID, "bind: logits of %d rows are wanted, %d are reserved",
                       n_wanted, (int)limits->n_wanted_logits);
    return STATUS_OK;
}

static enum status check_flight(const char *what, int flight, struct err *err)
{
    if (flight >= 0 && flight < KERNELS_MAX_IN_FLIGHT)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s: flight %d of %d", what, flight, KERNELS_MAX_IN_FLIGHT);
}

/* ---- the batch of a stream --------------------------------------------------------------------
 */

enum status kernels_bind(struct kernels_stream *s, const struct kernels_batch *batch,
                         const struct kernels_kv *kv, int flight, struct err *err)
{
    const struct kernels_limits *limits = &s->limits;
    enum status st = check_flight("bind", flight, err);
    if (st != STATUS_OK)
        return st;
    if (limits->n_rows == 0)
        return err_set(err, STATUS_INVALID, "bind: stream '%s' is not reserved", s->name);
    if (batch->n_rows < 0 || batch->n_rows > limits->n_rows || batch->n_segments < 0 ||
        batch->n_segments > limits->n_segments)
        return err_set(err, STATUS_INVALID,
                       "bind: %d rows in %d segments, but %d in %d are reserved",
                       (int)batch->n_rows, (int)batch->n_segments, (int)limits->n_rows,
                       (int)limits->n_segments);
    if (kv != NULL && (kv->block_size != limits->block_size || kv->head_dim != limits->head_dim ||
                       kv->n_kv_heads != limits->n_kv_heads))
        return err_set(err, STATUS_INVALID,
                       "bind: a KV pool of %d positions a block, %d kv heads of %d; reserved were "
                       "%d, %d, %d",
                       kv->block_size, kv->n_kv_heads, kv->head_dim, (int)limits->block_size,
                       (int)limits->n_kv_heads, (int)limits->head_dim);
    st = check_segments(limits, batch, kv, err);
    if (st == STATUS_OK)
        st = check_rows(limits, batch, err);
    if (st == STATUS_OK)
        st = check_live(limits, batch, err);
    if (st == STATUS_OK)
        st = s->kernels->ops->bind(s, batch, kv, flight, err);
    if (st != STATUS_OK)
        return st;
    s->batch = batch;
    s->kv = kv;
    return STATUS_OK;
}

enum status kernels_mark(struct kernels_stream *s, int flight, struct err *err)
{
    enum status st = check_flight("mark", flight, err);
    return st == STATUS_OK ? s->kernels->ops->mark(s, flight, err) : st;
}

enum status kernels_wait(struct kernels_stream *s, int flight, struct err *err)
{
    enum status st = check_flight("wait", flight, err);
    return st == STATUS_OK ? s->kernels->ops->wait(s, flight, err) : st;
}

const struct kernels_outcome *kernels_outcomes(const struct kernels_stream *s, int flight)
{
    assert(s->kernels->ops->finish != NULL);
    return s->kernels->ops->outcomes(s, flight);
}

const float *kernels_outcome_logits(const struct kernels_stream *s, int flight, int i)
{
    assert(s->kernels->ops->finish != NULL);
    return s->kernels->ops->outcome_logits(s, flight, i);
}

/* ---- recording --------------------------------------------------------------------------------
 */

enum status kernels_record_begin(struct kernels_stream *s, struct err *err)
{
    return s->kernels->ops->record_begin(s, err);
}

enum status kernels_record_end(struct kernels_stream *s, uint64_t key, struct err *err)
{
    return s->kernels->ops->record_end(s, key, err);
}

enum status kernels_replay(struct kernels_stream *s, uint64_t key, bool *is_done, struct err *err)
{
    *is_done = false;
    return s->kernels->ops->replay(s, key, is_done, err);
}
