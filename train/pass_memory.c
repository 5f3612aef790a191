/* Owns a pass' memory: one arena of activations that grows to the largest call. */
#include "train/pass_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT_BYTES = 64,
    CARVE_FLOATS = ALIGNMENT_BYTES / sizeof(float),
    /* 4 MiB of logits at a time stay in the caches; fewer rows than 32 would read the head's
     * weights too often. */
    HEAD_FLOATS = 1 << 20,
    HEAD_MIN_ROWS = 32
};

/* Runs twice over the same calls: without a base it counts, with one it hands out. */
struct plan {
    float *base;
    size_t used;
    bool is_too_large;
};

static float *carve(struct plan *plan, size_t rows, size_t width)
{
    size_t n;
    if (__builtin_mul_overflow(rows, width, &n) || n > SIZE_MAX / 16 ||
        plan->used > SIZE_MAX / 16) {
        plan->is_too_large = true;
        return NULL;
    }
    float *at = plan->base ? plan->base + plan->used : NULL;
    plan->used += (n + CARVE_FLOATS - 1) / CARVE_FLOATS * CARVE_FLOATS;
    return at;
}

static void plan_layer(const struct pass *p, struct plan *plan, struct pass_layer *l)
{
    const struct model_config *c = &p->params->config;
    size_t n = (size_t)p->n_rows, d = (size_t)c->d_model, f = (size_t)c->d_ffn;
    size_t heads = (size_t)c->n_heads, dim = (size_t)c->head_dim;
    *l = (struct pass_layer){0};
    l->y_attention = carve(plan, n, d);
    l->rstd_attention = carve(plan, n, 1);
    l->qkv = carve(plan, n, (heads + 2 * (size_t)c->n_kv_heads) * dim);
    l->attended = carve(plan, n, heads * dim);
    l->attention_lse = carve(plan, n, heads);
    l->middle = carve(plan, n, d);
    l->y_mlp = carve(plan, n, d);
    l->rstd_mlp = carve(plan, n, 1);
    l->gate_up = carve(plan, n, 2 * f);
    l->swiglu = carve(plan, n, f);
    l->out = carve(plan, n, d);
    if (c->has_sandwich_norms) {
        l->branch_attention = carve(plan, n, d);
        l->rstd_attention_out = carve(plan, n, 1);
        l->branch_mlp = carve(plan, n, d);
        l->rstd_mlp_out = carve(plan, n, 1);
    }
}

static void plan_loop(const struct pass *p, struct plan *plan, struct pass_loop *loop)
{
    size_t n = (size_t)p->n_rows, r = (size_t)p->n_targets, d = (size_t)p->params->config.d_model;
    *loop = (struct pass_loop){0};
    loop->rstd = carve(plan, n, 1);
    loop->h = carve(plan, n, d);
    loop->h_targets = carve(plan, r, d);
    loop->z = carve(plan, r, 1);
    loop->ce = carve(plan, r, 1);
    loop->p = carve(plan, r, 1);
    loop->log_p = carve(plan, r, 1);
    if (p->grads)
        loop->d_h_targets = carve(plan, r, d);
}

static void plan_back(struct pass *p, struct plan *plan)
{
    const struct model_config *c = &p->params->config;
    size_t n = (size_t)p->n_rows, d = (size_t)c->d_model, f = (size_t)c->d_ffn;
    size_t q = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t qkv = q + 2 * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    p->d_z = carve(plan, (size_t)p->n_targets, 1);
    p->d_h[0] = carve(plan, n, d);
    p->d_h[1] = carve(plan, n, d);
    p->d_branch = carve(plan, n, d);
    p->d_y = carve(plan, n, d);
    p->d_wide = carve(plan, n, 2 * f > qkv ? 2 * f : qkv);
    p->d_narrow = carve(plan, n, f > q ? f : q);
}

/* The chain of x: every layer reads what the one before wrote. Without a backward pass all layers
 * write to the same place, which works because a layer no longer needs its x once `middle` is
 * there; the loops' h stay apart. */
static void plan_all(struct pass *p, struct plan *plan)
{
    const struct model_config *c = &p->params->config;
    size_t n = (size_t)p->n_rows, r = (size_t)p->n_targets, half = (size_t)c->head_dim / 2;
    p->embedded = carve(plan, n, (size_t)c->d_model);
    p->cos_table = carve(plan, n, half);
    p->sin_table = carve(plan, n, half);
    p->attention_scratch = carve(plan, grad_attention_scratch(p->longest, c->head_dim), 1);
    int most = HEAD_FLOATS / c->vocab_size;
    most = most < HEAD_MIN_ROWS ? HEAD_MIN_ROWS : most;
    p->n_head_rows = most < p->n_targets ? most : p->n_targets;
    p->logits = carve(plan, (size_t)p->n_head_rows, (size_t)c->vocab_size);
    p->head_lse = carve(plan, r, 1);
    p->head_scale = carve(plan, r, 1);
    const float *x = p->embedded;
    for (int t = 0; t < p->n_loops; t++) {
        for (int i = 0; i < c->n_layers; i++) {
            struct pass_layer *l = &p->layers[t * c->n_layers + i];
            if (p->grads || l == p->layers)
                plan_layer(p, plan, l);
            else
                *l = p->layers[0];
            l->x = x;
            x = l->out;
        }
        struct pass_loop *loop = &p->loops[t];
        plan_loop(p, plan, loop);
        loop->x = x;
        x = loop->h;
    }
    if (p->grads)
        plan_back(p, plan);
}

/* cos, sin(position * theta^(-2j / D)) in double, once for every position seen with this theta. */
static enum status reserve_rope(struct pass *p, int n_positions, struct err *err)
{
    const struct model_config *c = &p->params->config;
    if (n_positions <= p->n_rope && p->rope_theta == c->rope_theta)
        return STATUS_OK;
    size_t half = (size_t)c->head_dim / 2, n = (size_t)n_positions;
    float *cos_table = calloc(n, half * sizeof *cos_table);
    float *sin_table = calloc(n, half * sizeof *sin_table);
    if (!cos_table || !sin_table) {
        free(cos_table);
        free(sin_table);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the rotations of %d positions",
                       n_positions);
    }
    for (size_t j = 0; j < half; j++) {
        double turn = pow(c->rope_theta, -2.0 * (double)j / c->head_dim);
        for (size_t i = 0; i < n; i++) {
            cos_table[i * half + j] = (float)cos((double)i * turn);
            sin_table[i * half + j] = (float)sin((double)i * turn);
        }
    }
    free(p->rope_cos);
    free(p->rope_sin);
    p->rope_cos = cos_table;
    p->rope_sin = sin_table;
    p->n_rope = n_positions;
    p->rope_theta = c->rope_theta;
    return STATUS_OK;
}

enum status pass_reserve_targets(struct pass *p, int n_targets, struct err *err)
{
    if (n_targets <= p->cap_targets)
        return STATUS_OK;
    size_t n = (size_t)n_targets;
    struct pass_target *targets = calloc(n, sizeof *targets);
    int32_t *ids = calloc(n, sizeof *ids), *best = calloc(n, sizeof *best);
    if (!targets || !ids || !best) {
        free(targets);
        free(ids);
        free(best);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d targets", n_targets);
    }
    free(p->targets);
    free(p->target_ids);
    free(p->best);
    p->targets = targets;
    p->target_ids = ids;
    p->best = best;
    p->cap_targets = n_targets;
    return STATUS_OK;
}

static enum status reserve_layers(struct pass *p, struct err *err)
{
    int n = p->n_loops * p->params->config.n_layers;
    if (n <= p->cap_layers)
        return STATUS_OK;
    struct pass_layer *layers = calloc((size_t)n, sizeof *layers);
    if (!layers)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of %d layers", n);
    free(p->layers);
    p->layers = layers;
    p->cap_layers = n;
    return STATUS_OK;
}

enum status pass_reserve(struct pass *p, int n_positions, struct err *err)
{
    enum status status = reserve_layers(p, err);
    if (status == STATUS_OK)
        status = reserve_rope(p, n_positions, err);
    if (status != STATUS_OK)
        return status;
    struct plan plan = {0};
    plan_all(p, &plan);
    if (plan.is_too_large || plan.used > p->arena_floats) {
        float *arena = NULL;
        if (!plan.is_too_large)
            arena = aligned_alloc(ALIGNMENT_BYTES, plan.used * sizeof *arena);
        if (!arena)
            return err_set(err, STATUS_NO_MEMORY,
                           "no memory for the activations of %d rows, %d loops of %d layers: take "
                           "fewer or shorter sequences at a time (more shards)",
                           p->n_rows, p->n_loops, p->params->config.n_layers);
        free(p->arena);
        p->arena = arena;
        p->arena_floats = plan.used;
    }
    plan = (struct plan){.base = p->arena};
    plan_all(p, &plan);
    return STATUS_OK;
}

enum status pass_create(const struct params *params, const struct grad_ops *ops, struct pass **out,
                        struct err *err)
{
    struct pass *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a pass");
    p->params = params;
    p->ops = ops;
    *out = p;
    return STATUS_OK;
}

void pass_destroy(struct pass *p)
{
    if (!p)
        return;
    free(p->arena);
    free(p->layers);
    free(p->targets);
    free(p->target_ids);
    free(p->best);
    free(p->rope_cos);
    free(p->rope_sin);
    free(p);
}
