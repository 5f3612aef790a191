/* Walks the loops in reverse, from the gradients of the rows with targets to those of every
 * parameter below the head. */
#include "train/pass_parts.h"

#include <string.h>

/* d_qkv from d_attended, sequence by sequence; then q and k turned back. */
static void attend_back(struct pass *p, const struct pass_layer *l, float *d_qkv,
                        const float *d_attended)
{
    const struct model_config *c = &p->params->config;
    struct grad_attention shape = pass_attention_shape(p);
    size_t q_width = shape.out_stride, kv_width = (shape.stride - q_width) / 2;
    size_t row = 0;
    for (int s = 0; s < p->n_sequences; s++) {
        const struct sequence_rows *rows = p->sequences[s];
        const float *q = l->qkv + row * shape.stride;
        float *d_q = d_qkv + row * shape.stride;
        pass_attention_sequence(&shape, rows);
        if (rows->n > 0)
            p->ops->attention_back(d_q, d_q + q_width, d_q + q_width + kv_width,
                                   d_attended + row * q_width, l->attended + row * q_width,
                                   l->attention_lse + row * (size_t)c->n_heads, q, q + q_width,
                                   q + q_width + kv_width, &shape, p->attention_scratch);
        row += (size_t)rows->n;
    }
    p->ops->rope(d_qkv, shape.stride, p->cos_table, p->sin_table, p->n_rows,
                 c->n_heads + c->n_kv_heads, c->head_dim, true);
}

/* The gradient of a branch before its norm, from that of the sum it was added to. */
static const float *branch_back(struct pass *p, const float *d_sum, const float *branch,
                                const float *rstd, size_t gain)
{
    if (!branch)
        return d_sum;
    p->ops->norm_back(p->d_branch, p->grads + gain, d_sum, branch, rstd, p->params->values + gain,
                      p->n_rows, p->params->config.d_model, false);
    return p->d_branch;
}

/* d_h: the gradient of the layer's out comes in, that of its x goes out. */
static void layer_back(struct pass *p, const struct pass_layer *a, const struct params_layer *w,
                       float *d_h)
{
    const struct model_config *c = &p->params->config;
    const struct grad_ops *ops = p->ops;
    const float *values = p->params->values;
    float *grads = p->grads;
    int n = p->n_rows, d = c->d_model, f = c->d_ffn;
    int q = c->n_heads * c->head_dim, qkv = q + 2 * c->n_kv_heads * c->head_dim;

    const float *d_branch = branch_back(p, d_h, a->branch_mlp, a->rstd_mlp_out, w->norm_mlp_out);
    ops->linear_back_weight(grads + w->down, d_branch, a->swiglu, n, f, d);
    ops->linear_back_input(p->d_narrow, d_branch, values + w->down, n, f, d, false);
    ops->swiglu_back(p->d_wide, p->d_narrow, a->gate_up, n, f);
    ops->linear_back_weight(grads + w->gate_up, p->d_wide, a->y_mlp, n, d, 2 * f);
    ops->linear_back_input(p->d_y, p->d_wide, values + w->gate_up, n, d, 2 * f, false);
    ops->norm_back(d_h, grads + w->norm_mlp, p->d_y, a->middle, a->rstd_mlp, values + w->norm_mlp,
                   n, d, true);

    d_branch =
        branch_back(p, d_h, a->branch_attention, a->rstd_attention_out, w->norm_attention_out);
    ops->linear_back_weight(grads + w->o, d_branch, a->attended, n, q, d);
    ops->linear_back_input(p->d_narrow, d_branch, values + w->o, n, q, d, false);
    attend_back(p, a, p->d_wide, p->d_narrow);
    ops->linear_back_weight(grads + w->qkv, p->d_wide, a->y_attention, n, d, qkv);
    ops->linear_back_input(p->d_y, p->d_wide, values + w->qkv, n, d, qkv, false);
    ops->norm_back(d_h, grads + w->norm_attention, p->d_y, a->x, a->rstd_attention,
                   values + w->norm_attention, n, d, true);
}

static void embed_back(struct pass *p, const float *d_h)
{
    size_t d = (size_t)p->params->config.d_model, row = 0;
    float *d_table = p->grads + p->params->embed;
    for (int s = 0; s < p->n_sequences; s++)
        for (int i = 0; i < p->sequences[s]->n; i++, row++)
            p->ops->add(d_table + (size_t)p->sequences[s]->ids[i] * d, d_h + row * d, d);
}

void pass_backward(struct pass *p)
{
    const struct model_config *c = &p->params->config;
    size_t d = (size_t)c->d_model;
    float *d_h = p->d_h[0], *d_x = p->d_h[1];
    memset(d_h, 0, (size_t)p->n_rows * d * sizeof *d_h);
    for (int t = p->n_loops - 1; t >= 0; t--) {
        struct pass_loop *loop = &p->loops[t];
        for (int i = 0; i < p->n_targets && loop->has_gradient; i++)
            p->ops->add(d_h + (size_t)p->targets[i].row * d, loop->d_h_targets + (size_t)i * d, d);
        p->ops->norm_back(d_x, p->grads + p->params->norm, d_h, loop->x, loop->rstd,
                          p->params->values + p->params->norm, p->n_rows, c->d_model, false);
        for (int i = c->n_layers - 1; i >= 0; i--)
            layer_back(p, &p->layers[t * c->n_layers + i], &p->params->layers[i], d_x);
        float *used = d_h;
        d_h = d_x;
        d_x = used;
    }
    embed_back(p, d_h);
}
