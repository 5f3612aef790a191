/* One loop of the model: L layers and the final norm over a batch of rows, in one order of
 * operations. */
#include "worker/block.h"

#include <stdlib.h>

enum { CARVE_BYTES = 64 }; /* every array starts on a cache line */

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
    *b = (struct block){.config = *c, .activation = kernels_activation_dtype(k)};
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
        const struct weight *const qkv[] = {&from->q, &from->k, &from->v};
        const struct weight *const gate_up[] = {&from->gate, &from->up};
        if (status == STATUS_OK)
            status = kernels_weight_load_joined(k, qkv, 3, to->qkv, err);
        load(k, &from->o, &to->o, &status, err);
        if (status == STATUS_OK)
            status = kernels_weight_load_joined(k, gate_up, 2, to->gate_up, err);
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
                                        &l->qkv[0],
                                        &l->qkv[1],
                                        &l->qkv[2],
                                        &l->o,
                                        &l->gate_up[0],
                                        &l->gate_up[1],
                                        &l->down};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++)
            unload(k, all[j]);
    }
    unload(k, &b->norm);
    free(b->layers);
    b->layers = NULL;
}

/* Bytes of a row of each array of the workspace, in the order of struct block_workspace. */
enum { N_ARRAYS = 9 };
static void row_bytes_of(const struct model_config *c, enum dtype activation,
                         size_t row_bytes[N_ARRAYS])
{
    const size_t d = (size_t)c->d_model, f = (size_t)c->d_ffn, half = (size_t)c->head_dim / 2;
    const size_t q = (size_t)c->n_heads * (size_t)c->head_dim;
    const size_t kv = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    const size_t wide = sizeof(float), narrow = dtype_bytes(activation);
    const size_t bytes[N_ARRAYS] = {d * wide,   d * wide,       d * wide,   (q + 2 * kv) * narrow,
                                    q * narrow, 2 * f * narrow, f * narrow, half * wide,
                                    half * wide};
    for (int i = 0; i < N_ARRAYS; i++)
        row_bytes[i] = bytes[i];
}

static size_t rounded(size_t len_bytes)
{
    return (len_bytes + CARVE_BYTES - 1) / CARVE_BYTES * CARVE_BYTES;
}

enum status block_workspace_bytes(const struct model_config *config, enum dtype activation,
                                  uint32_t max_rows, size_t *bytes, struct err *err)
{
    size_t row_bytes[N_ARRAYS], total = 0;
    row_bytes_of(config, activation, row_bytes);
    for (int i = 0; i < N_ARRAYS; i++) {
        size_t n;
        if (__builtin_mul_overflow(row_bytes[i], (size_t)max_rows, &n) ||
            n > SIZE_MAX - CARVE_BYTES || __builtin_add_overflow(total, rounded(n), &total))
            return err_set(err, STATUS_NO_MEMORY,
                           "a batch of %u rows needs more memory than can be addressed", max_rows);
    }
    *bytes = total;
    return STATUS_OK;
}

void block_workspace_carve(const struct model_config *config, enum dtype activation,
                           uint32_t max_rows, void *base, struct block_workspace *out)
{
    size_t row_bytes[N_ARRAYS];
    void *at[N_ARRAYS];
    unsigned char *next = base;
    row_bytes_of(config, activation, row_bytes);
    for (int i = 0; i < N_ARRAYS; i++) {
        at[i] = next;
        next += rounded(row_bytes[i] * max_rows);
    }
    *out = (struct block_workspace){.h = at[0],
                                    .y = at[1],
                                    .branch = at[2],
                                    .qkv = at[3],
                                    .a = at[4],
                                    .gate_up = at[5],
                                    .act = at[6],
                                    .cos_table = at[7],
                                    .sin_table = at[8]};
}

enum status block_positions(const struct block *b, struct kernels_stream *s,
                            const struct block_workspace *w, int n, struct err *err)
{
    return kernels_rope_tables(s, w->cos_table, w->sin_table, b->config.head_dim,
                               b->config.rope_theta, n, err);
}

static const struct kernels_weight *or_null(const struct kernels_weight *w)
{
    return w->data ? w : NULL;
}

/* y = norm(h) in; h += norm2(attention(y)), y = norm3(h) out. */
static enum status attention_branch(const struct block *b, struct kernels_stream *s,
                                    const struct block_workspace *w, const struct kernels_kv *kv,
                                    int n, int layer, struct err *err)
{
    const struct model_config *c = &b->config;
    const struct block_layer *l = &b->layers[layer];
    const struct kernels_weight *const qkv[] = {&l->qkv[0], &l->qkv[1], &l->qkv[2]};
    const struct kernels_weight *const o[] = {&l->o};
    enum status st = kernels_linear(s, w->qkv, b->activation, w->y, qkv, 3, n, err);
    if (st == STATUS_OK)
        st = kernels_rope_append(s, w->qkv, c->n_heads, w->cos_table, w->sin_table, kv, layer, n,
                                 err);
    if (st == STATUS_OK)
        st = kernels_attention(s, w->a, w->qkv, c->n_heads, kv, layer, n, err);
    if (st == STATUS_OK)
        st = kernels_linear(s, w->branch, DTYPE_F32, w->a, o, 1, n, err);
    if (st == STATUS_OK)
        st =
            kernels_residual_norm(s, w->h, w->branch, or_null(&l->norm_attention_out), w->y,
                                  b->activation, &l->norm_mlp, n, c->d_model, c->rms_norm_eps, err);
    return st;
}

/* y = norm3(h) in; h += norm4(mlp(y)), y = norm(h) of the next layer or the final norm out. */
static enum status mlp_branch(const struct block *b, struct kernels_stream *s,
                              const struct block_workspace *w, int n, int layer, struct err *err)
{
    const struct model_config *c = &b->config;
    const struct block_layer *l = &b->layers[layer];
    const bool is_last = layer + 1 == c->n_layers;
    const struct kernels_weight *const gate_up[] = {&l->gate_up[0], &l->gate_up[1]};
    const struct kernels_weight *const down[] = {&l->down};
    enum status st = kernels_linear(s, w->gate_up, b->activation, w->y, gate_up, 2, n, err);
    if (st == STATUS_OK)
        st = kernels_swiglu(s, w->act, w->gate_up, n, c->d_ffn, err);
    if (st == STATUS_OK)
        st = kernels_linear(s, w->branch, DTYPE_F32, w->act, down, 1, n, err);
    if (st == STATUS_OK)
        st = kernels_residual_norm(s, w->h, w->branch, or_null(&l->norm_mlp_out), w->y,
                                   is_last ? DTYPE_F32 : b->activation,
                                   is_last ? &b->norm : &b->layers[layer + 1].norm_attention, n,
                                   c->d_model, c->rms_norm_eps, err);
    return st;
}

enum status block_norm(const struct block *b, struct kernels_stream *s,
                       const struct block_workspace *w, int n, int layer, struct err *err)
{
    return kernels_rms_norm(s, w->y, b->activation, w->h, &b->layers[layer].norm_attention, n,
                            b->config.rms_norm_eps, err);
}

enum status block_layers(const struct block *b, struct kernels_stream *s,
                         const struct block_workspace *w, const struct kernels_kv *kv, int n,
                         int first, int n_layers, struct err *err)
{
    enum status st = STATUS_OK;
    for (int i = first; i < first + n_layers && st == STATUS_OK; i++) {
        st = attention_branch(b, s, w, kv, n, i, err);
        if (st == STATUS_OK)
            st = mlp_branch(b, s, w, n, i, err);
    }
    return st;
}

enum status block_run(const struct block *b, struct kernels_stream *s,
                      const struct block_workspace *w, const struct kernels_kv *kv, int n,
                      struct err *err)
{
    enum status st = block_positions(b, s, w, n, err);
    if (st == STATUS_OK)
        st = block_norm(b, s, w, n, 0, err);
    if (st == STATUS_OK)
        st = block_layers(b, s, w, kv, n, 0, b->config.n_layers, err);
    return st;
}
