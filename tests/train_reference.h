/* The loss of a LoopLM on training sequences in plain double, from the published description alone:
 * what the gradients of train/pass.h are differenced against.
 *
 * One row after another, no fused matrices: every tensor is looked up by its name in the
 * checkpoint. Slow and short on purpose. */
#ifndef TESTS_TRAIN_REFERENCE_H
#define TESTS_TRAIN_REFERENCE_H

#include "train/params.h"
#include "train/pass.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct train_reference {
    const struct params *params; /* the table; the values are these: */
    const double *values;
    double loss, entropy, ce[METRICS_MAX_LOOPS], exit_mass[METRICS_MAX_LOOPS];
    double correct[METRICS_MAX_LEVELS][METRICS_MAX_LOOPS];
};

static inline const double *reference_tensor(const struct train_reference *r, int layer,
                                             const char *name)
{
    char full[PARAMS_NAME_BYTES];
    if (layer >= 0)
        snprintf(full, sizeof full, "model.layers.%d.%s.weight", layer, name);
    else
        snprintf(full, sizeof full, "%s", name);
    const struct params_tensor *t = params_find(r->params, full);
    return t ? r->values + t->offset : NULL;
}

/* y = W x */
static inline void reference_linear(double *y, const double *x, const double *w, int cols, int rows)
{
    for (int o = 0; o < rows; o++) {
        y[o] = 0;
        for (int k = 0; k < cols; k++)
            y[o] += w[o * cols + k] * x[k];
    }
}

/* y = x gain / rms(x); gain NULL: y = x. y may be x. */
static inline void reference_norm(double *y, const double *x, const double *gain, int d, double eps)
{
    double sum = 0;
    for (int k = 0; k < d; k++)
        sum += x[k] * x[k];
    for (int k = 0; k < d; k++)
        y[k] = gain ? x[k] * gain[k] / sqrt(sum / d + eps) : x[k];
}

static inline void reference_rotate(double *x, int n_heads, int dim, int position, double theta)
{
    for (int j = 0; j < dim / 2; j++) {
        double angle = position * pow(theta, -2.0 * j / dim);
        double c = cos(angle), s = sin(angle);
        for (int h = 0; h < n_heads; h++) {
            double *a = &x[h * dim + j], *b = &x[h * dim + j + dim / 2];
            double was = *a;
            *a = was * c - *b * s;
            *b = *b * c + was * s;
        }
    }
}

/* Row i of the sequence looks at rows of q, k, v [n, heads, dim]; n is the row's own count. */
static inline void reference_attend(double *out, const double *q, const double *k, const double *v,
                                    const struct sequence_rows *s, int i,
                                    const struct model_config *c)
{
    int dim = c->head_dim, group = c->n_heads / c->n_kv_heads, kv = c->n_kv_heads * dim;
    for (int h = 0; h < c->n_heads; h++) {
        double sum = 0, *o = out + h * dim;
        memset(o, 0, (size_t)dim * sizeof *o);
        for (int j = 0; j <= i; j++) {
            if (j >= s->n_prefix && j < s->branch_start[i])
                continue;
            double score = 0;
            for (int x = 0; x < dim; x++)
                score += q[(i * c->n_heads + h) * dim + x] * k[j * kv + h / group * dim + x];
            double e = exp(score / sqrt(dim)); /* small models: no overflow to guard against */
            sum += e;
            for (int x = 0; x < dim; x++)
                o[x] += e * v[j * kv + h / group * dim + x];
        }
        for (int x = 0; x < dim; x++)
            o[x] /= sum;
    }
}

/* h [n, d] through one layer, in place. */
static inline void reference_layer(const struct train_reference *r, const struct sequence_rows *s,
                                   int layer, double *h)
{
    const struct model_config *c = &r->params->config;
    int n = s->n, d = c->d_model, f = c->d_ffn;
    int qw = c->n_heads * c->head_dim, kvw = c->n_kv_heads * c->head_dim;
    int widest = d > f ? d : f;
    widest = qw > widest ? qw : widest;
    double *q = calloc((size_t)(n * (qw + 2 * kvw) + 3 * widest), sizeof *q);
    assert(q);
    double *k = q + n * qw, *v = k + n * kvw;
    double *y = v + n * kvw, *a = y + widest, *b = a + widest;
    const double *norm_1 = reference_tensor(r, layer, "input_layernorm");
    const double *w_q = reference_tensor(r, layer, "self_attn.q_proj");
    const double *w_k = reference_tensor(r, layer, "self_attn.k_proj");
    const double *w_v = reference_tensor(r, layer, "self_attn.v_proj");
    const double *w_o = reference_tensor(r, layer, "self_attn.o_proj");
    const double *norm_2 = reference_tensor(r, layer, "input_layernorm_2");
    const double *norm_3 = reference_tensor(r, layer, "post_attention_layernorm");
    const double *w_gate = reference_tensor(r, layer, "mlp.gate_proj");
    const double *w_up = reference_tensor(r, layer, "mlp.up_proj");
    const double *w_down = reference_tensor(r, layer, "mlp.down_proj");
    const double *norm_4 = reference_tensor(r, layer, "post_attention_layernorm_2");
    for (int i = 0; i < n; i++) {
        reference_norm(y, h + i * d, norm_1, d, c->rms_norm_eps);
        reference_linear(q + i * qw, y, w_q, d, qw);
        reference_linear(k + i * kvw, y, w_k, d, kvw);
        reference_linear(v + i * kvw, y, w_v, d, kvw);
        reference_rotate(q + i * qw, c->n_heads, c->head_dim, s->positions[i], c->rope_theta);
        reference_rotate(k + i * kvw, c->n_kv_heads, c->head_dim, s->positions[i], c->rope_theta);
    }
    for (int i = 0; i < n; i++) {
        reference_attend(a, q, k, v, s, i, c);
        reference_linear(y, a, w_o, qw, d);
        reference_norm(y, y, norm_2, d, c->rms_norm_eps);
        for (int j = 0; j < d; j++)
            h[i * d + j] += y[j];
        reference_norm(y, h + i * d, norm_3, d, c->rms_norm_eps);
        reference_linear(a, y, w_gate, d, f);
        reference_linear(b, y, w_up, d, f);
        for (int j = 0; j < f; j++)
            a[j] = a[j] / (1 + exp(-a[j])) * b[j];
        reference_linear(y, a, w_down, f, d);
        reference_norm(y, y, norm_4, d, c->rms_norm_eps);
        for (int j = 0; j < d; j++)
            h[i * d + j] += y[j];
    }
    free(q);
}

/* All loops of one sequence: hidden [T, n, d]. */
static inline void reference_hidden(const struct train_reference *r, const struct sequence_rows *s,
                                    int n_loops, double *hidden)
{
    const struct model_config *c = &r->params->config;
    int d = c->d_model;
    for (int t = 0; t < n_loops; t++) {
        double *h = hidden + t * s->n * d;
        for (int i = 0; i < s->n; i++)
            memcpy(h + i * d,
                   t > 0 ? h - s->n * d + i * d
                         : reference_tensor(r, -1, "model.embed_tokens.weight") + s->ids[i] * d,
                   (size_t)d * sizeof *h);
        for (int layer = 0; layer < c->n_layers; layer++)
            reference_layer(r, s, layer, h);
        for (int i = 0; i < s->n; i++)
            reference_norm(h + i * d, h + i * d, reference_tensor(r, -1, "model.norm.weight"), d,
                           c->rms_norm_eps);
    }
}

/* Cross entropy of one hidden state against a target; *is_right: the target scores highest. */
static inline double reference_ce(const struct train_reference *r, const double *h, int target,
                                  bool *is_right)
{
    const struct model_config *c = &r->params->config;
    const double *head =
        reference_tensor(r, -1, c->is_tied ? "model.embed_tokens.weight" : "lm_head.weight");
    double *logits = calloc((size_t)c->vocab_size, sizeof *logits), sum = 0;
    assert(logits);
    reference_linear(logits, h, head, c->d_model, c->vocab_size);
    *is_right = true;
    for (int i = 0; i < c->vocab_size; i++) {
        sum += exp(logits[i] - logits[target]);
        *is_right = *is_right && logits[i] <= logits[target];
    }
    free(logits);
    return log(sum);
}

static inline void reference_sequence(struct train_reference *r, const struct sequence_rows *s,
                                      const struct pass_options *o)
{
    const struct model_config *c = &r->params->config;
    const double *gate = reference_tensor(r, -1, "model.early_exit_gate.weight");
    const double *bias = reference_tensor(r, -1, "model.early_exit_gate.bias");
    int d = c->d_model;
    double weights = 0;
    for (int i = 0; i < s->n; i++)
        weights += s->targets[i] >= 0 ? s->weights[i] : 0;
    if (weights == 0)
        return;
    double *hidden = calloc((size_t)(o->n_loops * s->n * d), sizeof *hidden);
    assert(hidden);
    reference_hidden(r, s, o->n_loops, hidden);
    for (int i = 0; i < s->n; i++) {
        if (s->targets[i] < 0)
            continue;
        double left = 1, w = s->weights[i] / weights;
        for (int t = 0; t < o->n_loops; t++) {
            const double *h = hidden + (t * s->n + i) * d;
            double lambda = 0, p = left, z = 0;
            if (t < o->n_loops - 1) {
                if (gate)
                    reference_linear(&z, h, gate, d, 1);
                lambda = gate ? 1 / (1 + exp(-(z + bias[0]))) : 0;
                p = left * lambda;
                left *= 1 - lambda;
            }
            bool is_right;
            double ce = reference_ce(r, h, s->targets[i], &is_right);
            double entropy = p > 0 ? -p * log(p) : 0;
            r->ce[t] += w * ce;
            r->exit_mass[t] += w * p;
            r->entropy += w * entropy;
            /* Loops before a level's first do not count; the others share the weight. */
            int begin = o->first_loops && s->levels[i] >= 0 ? o->first_loops[s->levels[i]] : 1;
            begin = begin < o->n_loops ? begin : o->n_loops;
            if (o->objective == RECIPE_UNIFORM)
                r->loss += t + 1 >= begin ? w * ce / (o->n_loops - begin + 1) : 0;
            else if (o->objective == RECIPE_ENTROPY)
                r->loss += w * (p * ce - (double)o->beta * entropy);
            else if (t == o->n_loops - 1)
                r->loss += w * ce;
            if (s->levels[i] >= 0)
                r->correct[s->levels[i]][t] += is_right;
        }
    }
    free(hidden);
}

/* Sums over the sequences, not scaled. */
static inline struct train_reference reference_run(const struct params *p, const double *values,
                                                   const struct sequence_rows *const *sequences,
                                                   int n, const struct pass_options *o)
{
    struct train_reference r = {.params = p, .values = values};
    for (int s = 0; s < n; s++)
        reference_sequence(&r, sequences[s], o);
    return r;
}

#endif
