/* One loop of the model: L layers and the final norm over a batch of rows, in one order of
 * operations. */
#include "worker/block.h"

#include <stdlib.h>

enum { CARVE_FLOATS = 16 }; /* 64 bytes: every array starts on a cache line */

static enum status load(struct kernels *k, const struct weight *from, struct kernels_weight *to,
                        enum status *status, struct err *err)
{
    if (*status == STATUS_OK && from->data)
        *status = kernels_weight_load(k, from, to, err);
    return *status;
}

enum status block_load(struct block *b, struct kernels *k, const struct checkpoint *checkpoint,
                       struct err *err)
{
    const struct model_config *c = &checkpoint->config;
    enum status status = STATUS_OK;
    *b = (struct block){.config = *c};
    b->layers = calloc((size_t)c->n_layers, sizeof *b->layers);
    if (!b->layers)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of %d layers", c->n_layers);
    for (int i = 0; i < c->n_layers && status == STATUS_OK; i++) {
        const struct layer_weights *from = &checkpoint->weights.layers[i];
        struct block_layer *to = &b->layers[i];
        load(k, &from->norm_attention, &to->norm_attention, &status, err);
        load(k, &from->norm_attention_out, &to->norm_attention_out, &status, err);
        load(k, &from->norm_mlp, &to->norm_mlp, &status, err);
        load(k, &from->norm_mlp_out, &to->norm_mlp_out, &status, err);
        load(k, &from->q, &to->q, &status, err);
        load(k, &from->k, &to->k, &status, err);
        load(k, &from->v, &to->v, &status, err);
        load(k, &from->o, &to->o, &status, err);
        load(k, &from->gate, &to->gate, &status, err);
        load(k, &from->up, &to->up, &status, err);
        load(k, &from->down, &to->down, &status, err);
    }
    load(k, &checkpoint->weights.norm, &b->norm, &status, err);
    if (status != STATUS_OK)
        block_unload(b, k);
    return status;
}

static void unload(struct kernels *k, struct kernels_weight *w)
{
    if (w->data)
        kernels_weight_unload(k, w);
}

void block_unload(struct block *b, struct kernels *k)
{
    for (int i = 0; b->layers && i < b->config.n_layers; i++) {
        struct block_layer *l = &b->layers[i];
        struct kernels_weight *all[] = {&l->norm_attention,
                                        &l->norm_attention_out,
                                        &l->norm_mlp,
                                        &l->norm_mlp_out,
                                        &l->q,
                                        &l->k,
                                        &l->v,
                                        &l->o,
                                        &l->gate,
                                        &l->up,
                                        &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++)
            unload(k, all[j]);
    }
    unload(k, &b->norm);
    free(b->layers);
    b->layers = NULL;
}

/* Width of each array of the workspace, in the order of struct block_workspace. */
enum { N_ARRAYS = 11 };
static void widths_of(const struct model_config *c, size_t widths[N_ARRAYS])
{
    size_t d = (size_t)c->d_model, f = (size_t)c->d_ffn, half = (size_t)c->head_dim / 2;
    size_t q = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kv = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    const size_t w[N_ARRAYS] = {d, d, d, q, q, kv, kv, f, f, half, half};
    for (int i = 0; i < N_ARRAYS; i++)
        widths[i] = w[i];
}

static size_t rounded_floats(size_t n)
{
    return (n + CARVE_FLOATS - 1) / CARVE_FLOATS * CARVE_FLOATS;
}

enum status block_workspace_bytes(const struct model_config *config, uint32_t max_rows,
                                  size_t *bytes, struct err *err)
{
    size_t widths[N_ARRAYS], total = 0;
    widths_of(config, widths);
    for (int i = 0; i < N_ARRAYS; i++) {
        size_t n;
        if (__builtin_mul_overflow(widths[i], (size_t)max_rows, &n) ||
            n > SIZE_MAX / sizeof(float) - CARVE_FLOATS ||
            __builtin_add_overflow(total, rounded_floats(n) * sizeof(float), &total))
            return err_set(err, STATUS_NO_MEMORY,
                           "a batch of %u rows needs more memory than can be addressed", max_rows);
    }
    *bytes = total;
    return STATUS_OK;
}

void block_workspace_carve(const struct model_config *config, uint32_t max_rows, void *base,
                           struct block_workspace *out)
{
    size_t widths[N_ARRAYS];
    widths_of(config, widths);
    float **arrays[N_ARRAYS] = {&out->h,  &out->y,         &out->branch,   &out->q,
                                &out->a,  &out->k,         &out->v,        &out->gate,
                                &out->up, &out->cos_table, &out->sin_table};
    float *at = base;
    for (int i = 0; i < N_ARRAYS; i++) {
        *arrays[i] = at;
        at += rounded_floats(widths[i] * max_rows);
    }
}

enum status block_positions(const struct block *b, struct kernels_stream *s,
                            const struct block_workspace *w, const struct kernels_batch *batch,
                            struct err *err)
{
    return kernels_rope_tables(s, w->cos_table, w->sin_table, batch, b->config.head_dim,
                               b->config.rope_theta, err);
}

static const struct kernels_weight *or_null(const struct kernels_weight *w)
{
    return w->data ? w : NULL;
}

/* y = norm(h) in; h += norm2(attention(y)), y = norm3(h) out. */
static enum status attention_branch(const struct block *b, struct kernels_stream *s,
                                    const struct block_workspace *w,
                                    const struct kernels_batch *batch, const struct kernels_kv *kv,
                                    int layer, struct err *err)
{
    const struct model_config *c = &b->config;
    const struct block_layer *l = &b->layers[layer];
    int n = batch->n_rows;
    float *const qkv[] = {w->q, w->k, w->v};
    const struct kernels_weight *const qkv_weights[] = {&l->q, &l->k, &l->v};
    const struct kernels_weight *const o_weight[] = {&l->o};
    enum status st = kernels_linear(s, qkv, w->y, qkv_weights, 3, n, err);
    if (st == STATUS_OK)
        st = kernels_rope_append(s, w->q, w->k, w->v, c->n_heads, w->cos_table, w->sin_table, batch,
                                 kv, layer, err);
    if (st == STATUS_OK)
        st = kernels_attention(s, w->a, w->q, c->n_heads, batch, kv, layer, err);
    if (st == STATUS_OK)
        st = kernels_linear(s, &w->branch, w->a, o_weight, 1, n, err);
    if (st == STATUS_OK)
        st = kernels_residual_norm(s, w->h, w->branch, or_null(&l->norm_attention_out), w->y,
                                   &l->norm_mlp, n, c->d_model, c->rms_norm_eps, err);
    return st;
}

/* y = norm3(h) in; h += norm4(mlp(y)), y = norm(h; gain_next) out. */
static enum status mlp_branch(const struct block *b, struct kernels_stream *s,
                              const struct block_workspace *w, int n, int layer,
                              const struct kernels_weight *gain_next, struct err *err)
{
    const struct model_config *c = &b->config;
    const struct block_layer *l = &b->layers[layer];
    float *const gate_up[] = {w->gate, w->up};
    const struct kernels_weight *const gate_up_weights[] = {&l->gate, &l->up};
    const struct kernels_weight *const down_weight[] = {&l->down};
    enum status st = kernels_linear(s, gate_up, w->y, gate_up_weights, 2, n, err);
    if (st == STATUS_OK)
        st = kernels_swiglu(s, w->gate, w->gate, w->up, n, c->d_ffn, err);
    if (st == STATUS_OK)
        st = kernels_linear(s, &w->branch, w->gate, down_weight, 1, n, err);
    if (st == STATUS_OK)
        st = kernels_residual_norm(s, w->h, w->branch, or_null(&l->norm_mlp_out), w->y, gain_next,
                                   n, c->d_model, c->rms_norm_eps, err);
    return st;
}

enum status block_layers(const struct block *b, struct kernels_stream *s,
                         const struct block_workspace *w, const struct kernels_batch *batch,
                         const struct kernels_kv *kv, int first, int n, struct err *err)
{
    enum status st = STATUS_OK;
    for (int i = first; i < first + n && st == STATUS_OK; i++) {
        bool is_last = i + 1 == b->config.n_layers;
        st = attention_branch(b, s, w, batch, kv, i, err);
        if (st == STATUS_OK)
            st = mlp_branch(b, s, w, batch->n_rows, i,
                            is_last ? &b->norm : &b->layers[i + 1].norm_attention, err);
    }
    return st;
}

enum status block_run(const struct block *b, struct kernels_stream *s,
                      const struct block_workspace *w, const struct kernels_batch *batch,
                      const struct kernels_kv *kv, struct err *err)
{
    enum status st = block_positions(b, s, w, batch, err);
    if (st == STATUS_OK)
        st = kernels_rms_norm(s, w->y, w->h, &b->layers[0].norm_attention, batch->n_rows,
                              b->config.rms_norm_eps, err);
    if (st == STATUS_OK)
        st = block_layers(b, s, w, batch, kv, 0, b->config.n_layers, err);
    return st;
}
