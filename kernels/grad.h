/* Arithmetic of training on the CPU: fp32, plain functions over host arrays, one table per
 * instruction-set level (portable, avx2, avx512).
 *
 * Nothing here has threads, state or heap: a caller cuts its work into pieces and may run pieces on
 * several threads. A result depends on the shapes and the level only, never on what ran beside it.
 * Pointers may be unaligned; outputs never overlap inputs unless it is said.
 *
 * Letters as in kernels.h: n rows, d model width, f ffn width, H query heads, G kv heads, D
 * head_dim, V vocabulary. `d_x` is the gradient of the loss by x. */
#ifndef KERNELS_GRAD_H
#define KERNELS_GRAD_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Rows that see a prefix and their own branch: row i sees column j iff j <= i and (j < n_prefix or
 * j >= branch_start[i]). branch_start is 0 for rows of the prefix (docs/training.md). */
struct grad_attention {
    int n, n_heads, n_kv_heads, head_dim;
    int n_prefix;
    const int32_t *branch_start; /* [n]; NULL: plain causal */
    size_t stride;     /* floats from a row of q, k, v (and their gradients) to the next */
    size_t out_stride; /* of out and d_out */
};

struct grad_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float grad_scale;               /* gradients are multiplied by it first: clipping */
    float correction1, correction2; /* 1 - beta^step */
};

struct grad_ops {
    const char *name;

    /* y[i][o] = sum_k x[i][k] w[o][k]                             x [n, k], w [n_out, k] */
    void (*linear)(float *y, const float *x, const float *w, int n, int k, int n_out);
    /* d_x[i][k] (+)= sum_o d_y[i][o] w[o][k]; added to d_x when accumulate is set */
    void (*linear_back_input)(float *d_x, const float *d_y, const float *w, int n, int k, int n_out,
                              bool accumulate);
    /* d_w[o][k] += sum_i d_y[i][o] x[i][k] */
    void (*linear_back_weight)(float *d_w, const float *d_y, const float *x, int n, int k,
                               int n_out);

    /* y = x * rstd * gain, rstd[i] = 1 / sqrt(mean(x[i]^2) + eps)      x, y [n, d], rstd [n] */
    void (*norm)(float *y, float *rstd, const float *x, const float *gain, int n, int d, float eps);
    /* d_x (+)= ..., d_gain += ...                                 d_gain [d] */
    void (*norm_back)(float *d_x, float *d_gain, const float *d_y, const float *x,
                      const float *rstd, const float *gain, int n, int d, bool accumulate);

    /* y[i][j] = silu(a[i][j]) * a[i][f + j]                       a [n, 2 f], y [n, f] */
    void (*swiglu)(float *y, const float *a, int n, int f);
    void (*swiglu_back)(float *d_a, const float *d_y, const float *a, int n, int f);

    /* Rotates n_heads heads of every row in place (half-split as in kernels.h); inverse is the
     * backward pass.                                     x rows `stride` apart, cos, sin [n, D/2]
     */
    void (*rope)(float *x, size_t stride, const float *cos_table, const float *sin_table, int n,
                 int n_heads, int head_dim, bool inverse);

    /* out[i] = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j over visible j; lse [H, n] is the logarithm
     * of each row's denominator, kept for the backward pass. scratch: grad_attention_scratch. */
    void (*attention)(float *out, float *lse, const float *q, const float *k, const float *v,
                      const struct grad_attention *shape, float *scratch);
    /* d_q, d_k, d_v are overwritten. Probabilities are computed anew from lse. */
    void (*attention_back)(float *d_q, float *d_k, float *d_v, const float *d_out, const float *out,
                           const float *lse, const float *q, const float *k, const float *v,
                           const struct grad_attention *shape, float *scratch);

    /* ce[i] = lse[i] - logits[i][target[i]]; best[i] = argmax, ties to the smaller id.
     * logits [n, V]; targets in [0, V) */
    void (*cross_entropy)(float *ce, float *lse, int32_t *best, const float *logits,
                          const int32_t *targets, int n, int vocab_size);
    /* logits[i] becomes scale[i] * (softmax(logits[i]) - onehot(target[i])), in place */
    void (*cross_entropy_back)(float *logits, const float *lse, const int32_t *targets,
                               const float *scale, int n, int vocab_size);

    /* y += x */
    void (*add)(float *y, const float *x, size_t n);
    /* Sum of squares, accumulated in double in one fixed order. */
    double (*sum_squares)(const float *x, size_t n);
    /* Decoupled weight decay (arXiv 1711.05101): v -= lr (m' / (sqrt(v') + eps) + wd v). */
    void (*adamw)(float *values, float *m, float *v, const float *grad, size_t n,
                  const struct grad_adamw *how);
};

/* Floats of scratch that attention and attention_back need for that many rows. */
size_t grad_attention_scratch(int n_rows, int head_dim);

/* The level by name: "auto" or NULL is the best this CPU runs ("amx" means avx512 here: training
 * weights are fp32). STATUS_INVALID for an unknown name, STATUS_UNSUPPORTED for one this CPU lacks.
 */
enum status grad_find(const char *isa, const struct grad_ops **out, struct err *err);

#endif
