/* A random model in memory, and what it computes in plain double: for tests of everything above the
 * kernels.
 *
 * tiny_create fills a struct checkpoint without files; tiny_reference recomputes all loops of all
 * positions from the published description, with no KV cache and no batches. */
#ifndef TESTS_TINY_MODEL_H
#define TESTS_TINY_MODEL_H

#include "model/checkpoint.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct tiny_spec {
    bool is_llama, is_tied;
    int n_layers, d, ffn, n_heads, n_kv_heads, head_dim, vocab, n_loops;
    enum dtype dtype;
    uint64_t seed;
};

struct tiny_model {
    struct checkpoint checkpoint;
    void *owned[512];
    int n_owned;
    uint64_t random;
};

static inline double tiny_uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) / 9007199254740992.0 * 2 - 1;
}

static inline double tiny_get(const struct weight *w, int row, int col)
{
    size_t at = (size_t)row * (size_t)w->cols + (size_t)col;
    if (w->dtype == DTYPE_F32)
        return ((const float *)w->data)[at];
    return dtype_from_bf16(((const uint16_t *)w->data)[at]);
}

static inline void tiny_set(const struct weight *w, int row, int col, float value)
{
    size_t at = (size_t)row * (size_t)w->cols + (size_t)col;
    if (w->dtype == DTYPE_F32)
        ((float *)(uintptr_t)w->data)[at] = value;
    else
        ((uint16_t *)(uintptr_t)w->data)[at] = dtype_to_bf16(value);
}

/* Uniform in mean +- spread. */
static inline void tiny_fill(struct tiny_model *m, struct weight *w, enum dtype dtype, int rows,
                             int cols, double mean, double spread)
{
    void *data = calloc((size_t)rows * (size_t)cols, dtype_bytes(dtype));
    assert(data && m->n_owned < 512);
    m->owned[m->n_owned++] = data;
    *w = (struct weight){data, dtype, rows, cols};
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++)
            tiny_set(w, i, j, (float)(mean + spread * tiny_uniform(&m->random)));
}

static inline struct tiny_model *tiny_create(const struct tiny_spec *s)
{
    struct tiny_model *m = calloc(1, sizeof *m);
    assert(m);
    m->random = s->seed;
    struct model_config *c = &m->checkpoint.config;
    *c = (struct model_config){.has_sandwich_norms = !s->is_llama,
                               .has_gate = !s->is_llama,
                               .is_tied = s->is_tied,
                               .n_layers = s->n_layers,
                               .d_model = s->d,
                               .d_ffn = s->ffn,
                               .n_heads = s->n_heads,
                               .n_kv_heads = s->n_kv_heads,
                               .head_dim = s->head_dim,
                               .vocab_size = s->vocab,
                               .max_positions = 512,
                               .n_loops = s->n_loops,
                               .rms_norm_eps = 1e-6f,
                               .rope_theta = 10000,
                               .exit_threshold = 1,
                               .bos_id = -1};
    strcpy(c->architecture, s->is_llama ? "LlamaForCausalLM" : "OuroForCausalLM");
    m->checkpoint.dtype = s->dtype;
    struct model_weights *w = &m->checkpoint.weights;
    w->layers = calloc((size_t)s->n_layers, sizeof *w->layers);
    assert(w->layers);
    int q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
    double in_d = sqrt(3.0 / s->d), in_q = sqrt(3.0 / q), in_f = sqrt(3.0 / s->ffn);
    tiny_fill(m, &w->embed, s->dtype, s->vocab, s->d, 0, 1.7);
    for (int i = 0; i < s->n_layers; i++) {
        struct layer_weights *l = &w->layers[i];
        tiny_fill(m, &l->norm_attention, s->dtype, 1, s->d, 1, 0.2);
        tiny_fill(m, &l->norm_mlp, s->dtype, 1, s->d, 1, 0.2);
        if (!s->is_llama) {
            tiny_fill(m, &l->norm_attention_out, s->dtype, 1, s->d, 0.5, 0.1);
            tiny_fill(m, &l->norm_mlp_out, s->dtype, 1, s->d, 0.5, 0.1);
        }
        tiny_fill(m, &l->q, s->dtype, q, s->d, 0, in_d);
        tiny_fill(m, &l->k, s->dtype, kv, s->d, 0, in_d);
        tiny_fill(m, &l->v, s->dtype, kv, s->d, 0, in_d);
        tiny_fill(m, &l->o, s->dtype, s->d, q, 0, in_q);
        tiny_fill(m, &l->gate, s->dtype, s->ffn, s->d, 0, in_d);
        tiny_fill(m, &l->up, s->dtype, s->ffn, s->d, 0, in_d);
        tiny_fill(m, &l->down, s->dtype, s->d, s->ffn, 0, in_f);
    }
    tiny_fill(m, &w->norm, s->dtype, 1, s->d, 1, 0.2);
    if (!s->is_llama) {
        tiny_fill(m, &w->gate, s->dtype, 1, s->d, 0, 2 * in_d);
        tiny_fill(m, &w->gate_bias, s->dtype, 1, 1, -0.5, 0.1);
    }
    if (s->is_tied)
        w->head = w->embed;
    else
        tiny_fill(m, &w->head, s->dtype, s->vocab, s->d, 0, in_d);
    return m;
}

static inline void tiny_destroy(struct tiny_model *m)
{
    for (int i = 0; i < m->n_owned; i++)
        free(m->owned[i]);
    free(m->checkpoint.weights.layers);
    free(m);
}

/* ---- the same in double ---- */

static inline void tiny_linear(double *y, const double *x, const struct weight *w, int n)
{
    for (int i = 0; i < n; i++)
        for (int o = 0; o < w->rows; o++) {
            double sum = 0;
            for (int k = 0; k < w->cols; k++)
                sum += x[i * w->cols + k] * tiny_get(w, o, k);
            y[i * w->rows + o] = sum;
        }
}

static inline void tiny_norm(double *y, const double *x, const struct weight *gain, int n,
                             double eps)
{
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < gain->cols; k++)
            sum += x[i * gain->cols + k] * x[i * gain->cols + k];
        for (int k = 0; k < gain->cols; k++)
            y[i * gain->cols + k] =
                x[i * gain->cols + k] * tiny_get(gain, 0, k) / sqrt(sum / gain->cols + eps);
    }
}

static inline void tiny_rotate(double *x, int n, int n_heads, int head_dim, double theta)
{
    for (int i = 0; i < n * n_heads; i++)
        for (int j = 0; j < head_dim / 2; j++) {
            double angle = i / n_heads * pow(theta, -2.0 * j / head_dim);
            double *a = x + i * head_dim + j, *b = a + head_dim / 2;
            double x1 = *a, x2 = *b;
            *a = x1 * cos(angle) - x2 * sin(angle);
            *b = x2 * cos(angle) + x1 * sin(angle);
        }
}

static inline void tiny_attend(double *out, const double *q, const double *k, const double *v,
                               int n, const struct model_config *c)
{
    int dim = c->head_dim, group = c->n_heads / c->n_kv_heads;
    double *score = calloc((size_t)n, sizeof *score);
    assert(score);
    for (int i = 0; i < n; i++)
        for (int h = 0; h < c->n_heads; h++) {
            double max = -INFINITY, sum = 0;
            double *o = out + (i * c->n_heads + h) * dim;
            for (int j = 0; j <= i; j++) {
                score[j] = 0;
                for (int x = 0; x < dim; x++)
                    score[j] += q[(i * c->n_heads + h) * dim + x] *
                                k[(j * c->n_kv_heads + h / group) * dim + x] / sqrt(dim);
                max = score[j] > max ? score[j] : max;
            }
            memset(o, 0, (size_t)dim * sizeof *o);
            for (int j = 0; j <= i; j++)
                sum += score[j] = exp(score[j] - max);
            for (int j = 0; j <= i; j++)
                for (int x = 0; x < dim; x++)
                    o[x] += score[j] / sum * v[(j * c->n_kv_heads + h / group) * dim + x];
        }
    free(score);
}

/* h += norm(branch), or h += branch where the architecture has no such norm. */
static inline void tiny_residual(double *h, double *branch, const struct weight *gain, int n, int d,
                                 double eps)
{
    if (gain->data)
        tiny_norm(branch, branch, gain, n, eps);
    for (int i = 0; i < n * d; i++)
        h[i] += branch[i];
}

/* hidden [T, n, d], lambda [T, n], logits [T, n, V]. */
static inline void tiny_reference(const struct tiny_model *m, const int32_t *ids, int n,
                                  double *hidden, double *lambda, double *logits)
{
    const struct model_config *c = &m->checkpoint.config;
    const struct model_weights *w = &m->checkpoint.weights;
    int d = c->d_model, nq = c->n_heads * c->head_dim;
    int widest = nq > c->d_ffn ? nq : c->d_ffn;
    widest = widest > d ? widest : d;
    double *buffers = calloc((size_t)(n * widest) * 6, sizeof *buffers);
    assert(buffers);
    double *h = buffers, *y = h + n * widest, *q = y + n * widest, *k = q + n * widest,
           *v = k + n * widest, *a = v + n * widest;
    for (int i = 0; i < n * d; i++)
        h[i] = tiny_get(&w->embed, ids[i / d], i % d);
    for (int t = 0; t < c->n_loops; t++) {
        for (int layer = 0; layer < c->n_layers; layer++) {
            const struct layer_weights *l = &w->layers[layer];
            tiny_norm(y, h, &l->norm_attention, n, c->rms_norm_eps);
            tiny_linear(q, y, &l->q, n);
            tiny_linear(k, y, &l->k, n);
            tiny_linear(v, y, &l->v, n);
            tiny_rotate(q, n, c->n_heads, c->head_dim, c->rope_theta);
            tiny_rotate(k, n, c->n_kv_heads, c->head_dim, c->rope_theta);
            tiny_attend(a, q, k, v, n, c);
            tiny_linear(y, a, &l->o, n);
            tiny_residual(h, y, &l->norm_attention_out, n, d, c->rms_norm_eps);
            tiny_norm(y, h, &l->norm_mlp, n, c->rms_norm_eps);
            tiny_linear(q, y, &l->gate, n);
            tiny_linear(k, y, &l->up, n);
            for (int i = 0; i < n * c->d_ffn; i++)
                q[i] = q[i] / (1 + exp(-q[i])) * k[i];
            tiny_linear(y, q, &l->down, n);
            tiny_residual(h, y, &l->norm_mlp_out, n, d, c->rms_norm_eps);
        }
        tiny_norm(h, h, &w->norm, n, c->rms_norm_eps);
        memcpy(hidden + t * n * d, h, (size_t)(n * d) * sizeof *h);
        tiny_linear(logits + t * n * c->vocab_size, h, &w->head, n);
        memset(lambda + t * n, 0, (size_t)n * sizeof *lambda);
        if (w->gate.data)
            tiny_linear(lambda + t * n, h, &w->gate, n);
        for (int i = 0; i < n && w->gate.data; i++)
            lambda[t * n + i] = 1 / (1 + exp(-lambda[t * n + i] - tiny_get(&w->gate_bias, 0, 0)));
    }
    free(buffers);
}

#endif
