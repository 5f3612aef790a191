/* The looping regulariser of arXiv 2502.17416: how alike layers k apart are, and its gradient. */
#include "train/optimizer.h"

#include <assert.h>
#include <math.h>

enum { LANES = 8 };

static const char *const NAMES[OPTIMIZER_LOOPING_GROUPS] = {"q",    "k",  "v",   "o",
                                                            "gate", "up", "down"};

const char *optimizer_looping_group(int i)
{
    return i >= 0 && i < OPTIMIZER_LOOPING_GROUPS ? NAMES[i] : NULL;
}

/* Offset and length of group g in layer `l`. */
static size_t locate(const struct params *p, int g, int l, size_t *n)
{
    const struct model_config *c = &p->config;
    const struct params_layer *layer = &p->layers[l];
    const size_t d = (size_t)c->d_model, f = (size_t)c->d_ffn * d;
    const size_t q = (size_t)c->n_heads * (size_t)c->head_dim * d;
    const size_t kv = (size_t)c->n_kv_heads * (size_t)c->head_dim * d;
    const size_t sizes[OPTIMIZER_LOOPING_GROUPS] = {q, kv, kv, q, f, f, f};
    const size_t offsets[OPTIMIZER_LOOPING_GROUPS] = {
        layer->qkv,     layer->qkv + q,     layer->qkv + q + kv, layer->o,
        layer->gate_up, layer->gate_up + f, layer->down};
    *n = sizes[g];
    return offsets[g];
}

/* In double, in one fixed order: lane i takes every eighth number. */
static double dot(const float *a, const float *b, size_t n)
{
    double lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lanes[k] += (double)a[i + k] * (double)b[i + k];
    for (size_t k = 0; i + k < n; k++)
        lanes[k] += (double)a[i + k] * (double)b[i + k];
    double sum = 0;
    for (int k = 0; k < LANES; k++)
        sum += lanes[k];
    return sum;
}

/* d_a -= scale * d cos(a, b) / d a, where d cos / d a = b / (|a| |b|) - cos a / |a|^2 */
static void pull(float *d_a, const float *a, const float *b, size_t n, double scale, double inverse,
                 double cosine_by_square)
{
    const float along = (float)(scale * inverse), back = (float)(scale * cosine_by_square);
    for (size_t i = 0; i < n; i++)
        d_a[i] += back * a[i] - along * b[i];
}

void optimizer_looping(const struct params *p, int k, float weight, float *grads, float *cosines)
{
    const int n_layers = p->config.n_layers;
    assert(k > 0 && n_layers > k && n_layers % k == 0);
    const double scale = (double)weight / OPTIMIZER_LOOPING_GROUPS / (double)(n_layers - k);
    for (int g = 0; g < OPTIMIZER_LOOPING_GROUPS; g++) {
        double sum = 0;
        /* i k + j over all blocks but the last is every layer that has one k further on. */
        for (int l = 0; l + k < n_layers; l++) {
            size_t n;
            const size_t at_a = locate(p, g, l, &n), at_b = locate(p, g, l + k, &n);
            const float *a = p->values + at_a, *b = p->values + at_b;
            const double aa = dot(a, a, n), bb = dot(b, b, n), ab = dot(a, b, n);
            if (!(aa > 0 && bb > 0))
                continue; /* a zero matrix has no direction: cosine 0, no gradient */
            const double inverse = 1 / sqrt(aa) / sqrt(bb), cosine = ab * inverse;
            sum += cosine;
            if (grads == NULL)
                continue;
            pull(grads + at_a, a, b, n, scale, inverse, cosine / aa);
            pull(grads + at_b, b, a, n, scale, inverse, cosine / bb);
        }
        if (cosines != NULL)
            cosines[g] = (float)(sum / (double)(n_layers - k));
    }
}
