/* Runs one batch operation by operation, deciding and drawing on the host: any backend can. */
#include "worker/replica_parts.h"

#include "cluster/host.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t last_row(const struct kernels_segment *g)
{
    return g->first_row + g->n_rows - 1;
}

/* First of the rows whose gate or logits somebody reads: observed ones, and the last one where it
 * is wanted. One past the last row when there is none. */
static int32_t first_wanted(const struct batch_segment *segment, const struct kernels_segment *g,
                            bool wants_last)
{
    int32_t first = replica_first_observed(segment, g);
    return wants_last && first > last_row(g) ? last_row(g) : first;
}

/* Rows whose gate anybody reads: live rows, and all rows of observed segments. */
static int list_gates(struct replica *r, const struct batch *b)
{
    int n = 0;
    for (uint32_t i = 0; i < b->n_rows; i++)
        r->gate_index[i] = -1;
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct kernels_segment *g = &b->geometry[i];
        for (int32_t row = first_wanted(&b->segments[i], g, b->segments[i].has_live);
             row <= last_row(g); row++) {
            r->gate_index[row] = n;
            r->gate_rows[n++] = row;
        }
    }
    return n;
}

/* Rows in, one loop of the block, rows out, gates: everything until a decision needs the host. */
static enum status run_block(struct replica *r, const struct batch *b, int n_gates, struct err *err)
{
    const struct block_workspace *w = &r->block_workspace;
    struct kernels_stream *s = r->compute;
    const int n = (int)b->n_rows;
    r->bound[0] = (struct kernels_batch){.n_rows = n,
                                         .n_segments = (int32_t)b->n_segments,
                                         .segments = b->geometry,
                                         .block_table = b->block_table,
                                         .slots = b->slots,
                                         .ids = b->ids};
    enum status st = kernels_bind(s, &r->bound[0], &r->kv, 0, err);
    if (st == STATUS_OK)
        st = kernels_load_rows(s, w->h, r->store.data, &r->embed, n, err);
    if (st == STATUS_OK)
        st = block_run(&r->block, s, w, &r->kv, n, err);
    if (st == STATUS_OK)
        st = kernels_store_rows(s, r->store.data, w->y, n, r->model.d_model, err);
    if (st == STATUS_OK && n_gates > 0 && r->gate.data) {
        st = kernels_gate(s, r->lambda, w->y, r->gate_rows, n_gates, &r->gate, &r->gate_bias, err);
        if (st == STATUS_OK)
            st = kernels_download(s, r->host_lambda, r->lambda, (size_t)n_gates * sizeof(float),
                                  err);
    }
    if (st == STATUS_OK)
        st = kernels_stream_sync(s, err);
    for (int i = 0; i < n_gates && !r->gate.data; i++)
        r->host_lambda[i] = 0; /* no gate: nothing gets off before its last loop */
    return st;
}

/* Exit rule on the live rows; a segment with a non-finite gate fails alone. */
static void decide_exits(struct replica *r, const struct batch *b, struct batch_result *result)
{
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct batch_segment *segment = &b->segments[i];
        const struct kernels_segment *g = &b->geometry[i];
        struct batch_outcome *o = &result->outcomes[i];
        *o = (struct batch_outcome){.failure = STATUS_OK, .exit = segment->exit};
        for (int32_t row = replica_first_observed(segment, g); row <= last_row(g); row++)
            if (!isfinite(r->host_lambda[r->gate_index[row]]))
                o->failure = STATUS_CORRUPT;
        if (!segment->has_live)
            continue;
        o->lambda = r->host_lambda[r->gate_index[last_row(g)]];
        if (!isfinite(o->lambda))
            o->failure = STATUS_CORRUPT;
        if (o->failure != STATUS_OK)
            continue;
        uint32_t position = (uint32_t)(g->first_position + g->n_rows - 1);
        o->is_exit = exit_rule_step(segment->params, segment->loop, position, o->lambda, &o->exit);
    }
}

static uint32_t list_heads(struct replica *r, const struct batch *b,
                           const struct batch_result *result)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct kernels_segment *g = &b->geometry[i];
        if (result->outcomes[i].failure != STATUS_OK)
            continue;
        for (int32_t row = first_wanted(&b->segments[i], g, result->outcomes[i].is_exit);
             row <= last_row(g); row++) {
            r->head_list[n] = row;
            r->head_segment[n++] = (int32_t)i;
        }
    }
    return n;
}

void replica_name_token(const struct batch *b, uint32_t i_segment, struct batch_outcome *o)
{
    const struct kernels_segment *g = &b->geometry[i_segment];
    o->token.sequence = b->segments[i_segment].sequence;
    o->token.position = (uint32_t)(g->first_position + g->n_rows);
    o->token.exit_loop = b->segments[i_segment].loop;
    o->token.cdf = o->exit.cdf;
}

void replica_sample(struct replica *r, const struct batch *b, uint32_t i_segment,
                    const float *logits, struct batch_outcome *o)
{
    const struct batch_segment *segment = &b->segments[i_segment];
    const struct kernels_segment *g = &b->geometry[i_segment];
    uint32_t position = (uint32_t)(g->first_position + g->n_rows);
    struct sampler_history history = {.pool_ids = b->pool_ids,
                                      .blocks = b->block_table + g->first_block,
                                      .block_size = b->block_size,
                                      .n_history = position};
    o->failure =
        sampler_sample(r->sampler, segment->params, logits, &history, position, &o->token, NULL);
}

/* Hidden states of rows [first, first + n) of the head, as they were before they were rounded for
 * it. */
static enum status download_hidden(struct replica *r, uint32_t first, uint32_t n, struct err *err)
{
    const size_t d = (size_t)r->model.d_model;
    const float *y = r->block_workspace.y;
    enum status st = STATUS_OK;
    for (uint32_t i = first; i < first + n && st == STATUS_OK; i++)
        st = kernels_download(r->compute, r->observations.hidden + i * d,
                              y + (size_t)r->head_list[i] * d, d * sizeof(float), err);
    return st;
}

static enum status run_heads(struct replica *r, const struct batch *b, uint32_t n_heads,
                             struct batch_result *result, struct err *err)
{
    struct kernels_stream *s = r->compute;
    size_t vocab = (size_t)r->model.vocab_size;
    const struct kernels_weight *const head[] = {&r->head};
    enum status st = STATUS_OK;
    for (uint32_t first = 0; first < n_heads && st == STATUS_OK; first += r->head_group) {
        uint32_t n = n_heads - first < r->head_group ? n_heads - first : r->head_group;
        st = kernels_gather_rows(s, r->head_rows, r->block_workspace.y, r->head_list + first,
                                 (int)n, r->model.d_model, err);
        if (st == STATUS_OK)
            st = kernels_linear(s, r->logits, DTYPE_F32, r->head_rows, head, 1, (int)n, err);
        if (st == STATUS_OK)
            st = kernels_download(s, r->host_logits, r->logits, n * vocab * sizeof(float), err);
        if (st == STATUS_OK && r->observations.has_hidden)
            st = download_hidden(r, first, n, err);
        if (st == STATUS_OK)
            st = kernels_stream_sync(s, err);
        for (uint32_t i = 0; i < n && st == STATUS_OK; i++) {
            uint32_t segment = (uint32_t)r->head_segment[first + i];
            int32_t row = r->head_list[first + i];
            struct batch_outcome *o = &result->outcomes[segment];
            const float *logits = r->host_logits + i * vocab;
            bool is_observed =
                row >= replica_first_observed(&b->segments[segment], &b->geometry[segment]);
            if (is_observed && !replica_observe(r, b, segment, first + i, logits))
                o->failure = STATUS_CORRUPT;
            if (o->failure == STATUS_OK && o->is_exit && row == last_row(&b->geometry[segment])) {
                replica_sample(r, b, segment, logits, o);
                replica_name_token(b, segment, o);
            }
        }
    }
    return st;
}

enum status replica_run_on_host(struct replica *r, const struct batch *batch,
                                struct batch_result *result, struct err *err)
{
    enum status st = run_block(r, batch, list_gates(r, batch), err);
    if (st != STATUS_OK)
        return st;
    decide_exits(r, batch, result);
    uint64_t decided_ns = host_now_ns();
    uint32_t n_heads = list_heads(r, batch, result);
    st = replica_reserve_observations(r, batch, n_heads, err);
    if (st == STATUS_OK)
        st = run_heads(r, batch, n_heads, result, err);
    if (st != STATUS_OK)
        return st;
    for (uint32_t i = 0; i < batch->n_segments; i++) /* a failed sequence draws nothing */
        if (result->outcomes[i].failure != STATUS_OK)
            result->outcomes[i].is_exit = false;
    result->n_segments = batch->n_segments;
    result->n_heads = n_heads;
    result->head_ns = n_heads > 0 ? host_now_ns() - decided_ns : 0;
    result->n_observations = r->observations.n;
    result->observations = r->observations.items;
    return STATUS_OK;
}
