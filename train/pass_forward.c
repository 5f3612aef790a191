/* Runs the open loops over all rows: embedding, layers, final norm, and keeps what the way back
 * needs. */
#include "train/pass_parts.h"

#include <string.h>

static void embed(struct pass *p)
{
    const struct model_config *c = &p->params->config;
    size_t d = (size_t)c->d_model, half = (size_t)c->head_dim / 2, row = 0;
    const float *table = p->params->values + p->params->embed;
    for (int s = 0; s < p->n_sequences; s++) {
        const struct sequence_rows *q = p->sequences[s];
        for (int i = 0; i < q->n; i++, row++) {
            size_t at = (size_t)q->positions[i] * half;
            memcpy(p->embedded + row * d, table + (size_t)q->ids[i] * d, d * sizeof *table);
            memcpy(p->cos_table + row * half, p->rope_cos + at, half * sizeof *table);
            memcpy(p->sin_table + row * half, p->rope_sin + at, half * sizeof *table);
        }
    }
}

struct grad_attention pass_attention_shape(const struct pass *p)
{
    const struct model_config *c = &p->params->config;
    size_t q_width = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kv_width = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    return (struct grad_attention){.n_heads = c->n_heads,
                                   .n_kv_heads = c->n_kv_heads,
                                   .head_dim = c->head_dim,
                                   .stride = q_width + 2 * kv_width,
                                   .out_stride = q_width};
}

void pass_attention_sequence(struct grad_attention *shape, const struct sequence_rows *rows)
{
    shape->n = rows->n;
    shape->n_prefix = rows->n_prefix;
    shape->branch_start = rows->branch_start;
}

static void attend(struct pass *p, const struct pass_layer *l)
{
    const struct model_config *c = &p->params->config;
    struct grad_attention shape = pass_attention_shape(p);
    size_t q_width = shape.out_stride, kv_width = (shape.stride - q_width) / 2;
    size_t row = 0;
    for (int s = 0; s < p->n_sequences; s++) {
        const struct sequence_rows *rows = p->sequences[s];
        const float *q = l->qkv + row * shape.stride;
        pass_attention_sequence(&shape, rows);
        if (rows->n > 0)
            p->ops->attention(l->attended + row * q_width,
                              l->attention_lse + row * (size_t)c->n_heads, q, q + q_width,
                              q + q_width + kv_width, &shape, p->attention_scratch);
        row += (size_t)rows->n;
    }
}

/* sum = x + norm(branch), or x + branch where there is no such norm: `sum` holds the branch then.
 */
static void residual(struct pass *p, float *sum, const float *x, const float *branch, float *rstd,
                     size_t gain)
{
    int n = p->n_rows, d = p->params->config.d_model;
    if (branch)
        p->ops->norm(sum, rstd, branch, p->params->values + gain, n, d,
                     p->params->config.rms_norm_eps);
    p->ops->add(sum, x, (size_t)n * (size_t)d);
}

static void run_layer(struct pass *p, const struct pass_layer *a, const struct params_layer *w)
{
    const struct model_config *c = &p->params->config;
    const struct grad_ops *ops = p->ops;
    const float *values = p->params->values;
    int n = p->n_rows, d = c->d_model, f = c->d_ffn;
    int q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;

    ops->norm(a->y_attention, a->rstd_attention, a->x, values + w->norm_attention, n, d,
              c->rms_norm_eps);
    ops->linear(a->qkv, a->y_attention, values + w->qkv, n, d, qkv);
    /* k's heads follow q's in the row: one call turns both. */
    ops->rope(a->qkv, (size_t)qkv, p->cos_table, p->sin_table, n, c->n_heads + c->n_kv_heads,
              c->head_dim, false);
    attend(p, a);
    float *branch = a->branch_attention ? a->branch_attention : a->middle;
    ops->linear(branch, a->attended, values + w->o, n, q, d);
    residual(p, a->middle, a->x, a->branch_attention, a->rstd_attention_out, w->norm_attention_out);

    ops->norm(a->y_mlp, a->rstd_mlp, a->middle, values + w->norm_mlp, n, d, c->rms_norm_eps);
    ops->linear(a->gate_up, a->y_mlp, values + w->gate_up, n, d, 2 * f);
    ops->swiglu(a->swiglu, a->gate_up, n, f);
    branch = a->branch_mlp ? a->branch_mlp : a->out;
    ops->linear(branch, a->swiglu, values + w->down, n, f, d);
    residual(p, a->out, a->middle, a->branch_mlp, a->rstd_mlp_out, w->norm_mlp_out);
}

void pass_forward(struct pass *p)
{
    const struct model_config *c = &p->params->config;
    embed(p);
    for (int t = 0; t < p->n_loops; t++) {
        for (int i = 0; i < c->n_layers; i++)
            run_layer(p, &p->layers[t * c->n_layers + i], &p->params->layers[i]);
        struct pass_loop *loop = &p->loops[t];
        p->ops->norm(loop->h, loop->rstd, loop->x, p->params->values + p->params->norm, p->n_rows,
                     c->d_model, c->rms_norm_eps);
        size_t d = (size_t)c->d_model;
        for (int i = 0; i < p->n_targets; i++)
            memcpy(loop->h_targets + (size_t)i * d, loop->h + (size_t)p->targets[i].row * d,
                   d * sizeof *loop->h);
    }
}
