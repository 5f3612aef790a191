/* Lays out, draws and loads the trainable numbers of a LoopLM. */
#include "train/params.h"

#include "train/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LAYER_TENSORS = 11,
    TOP_TENSORS = 5, /* embedding, norm, gate, its bias, head */
    ALIGNMENT_BYTES = 64
};

/* The step no training sequence has, so that no sequence shares a stream with a tensor. */
#define PARAMS_DRAW_STEP UINT64_MAX

enum kind { MATRIX, GAIN, GATE };

/* Appends a tensor to the table; returns where it lies. */
static size_t put(struct params *p, int layer, const char *name, int rows, int cols, enum kind kind)
{
    struct params_tensor *t = &p->tensors[p->n_tensors++];
    size_t at = p->n_values;
    *t = (struct params_tensor){.offset = at,
                                .rows = rows,
                                .cols = cols,
                                .is_vector = kind == GAIN,
                                .decays = kind == MATRIX,
                                .layer = layer};
    if (layer >= 0)
        snprintf(t->name, sizeof t->name, "model.layers.%d.%s", layer, name);
    else
        snprintf(t->name, sizeof t->name, "%s", name);
    p->n_values += (size_t)rows * (size_t)cols;
    return at;
}

static void put_layer(struct params *p, int i)
{
    const struct model_config *c = &p->config;
    int d = c->d_model, f = c->d_ffn, q = c->n_heads * c->head_dim,
        kv = c->n_kv_heads * c->head_dim;
    struct params_layer *l = &p->layers[i];
    l->norm_attention_out = l->norm_mlp_out = SIZE_MAX;
    l->norm_attention = put(p, i, "input_layernorm.weight", 1, d, GAIN);
    l->qkv = put(p, i, "self_attn.q_proj.weight", q, d, MATRIX);
    put(p, i, "self_attn.k_proj.weight", kv, d, MATRIX);
    put(p, i, "self_attn.v_proj.weight", kv, d, MATRIX);
    l->o = put(p, i, "self_attn.o_proj.weight", d, q, MATRIX);
    if (c->has_sandwich_norms)
        l->norm_attention_out = put(p, i, "input_layernorm_2.weight", 1, d, GAIN);
    l->norm_mlp = put(p, i, "post_attention_layernorm.weight", 1, d, GAIN);
    l->gate_up = put(p, i, "mlp.gate_proj.weight", f, d, MATRIX);
    put(p, i, "mlp.up_proj.weight", f, d, MATRIX);
    l->down = put(p, i, "mlp.down_proj.weight", d, f, MATRIX);
    if (c->has_sandwich_norms)
        l->norm_mlp_out = put(p, i, "post_attention_layernorm_2.weight", 1, d, GAIN);
}

/* The gate's bias comes last: it is the one size that is no multiple of the vector width. */
static void put_all(struct params *p)
{
    const struct model_config *c = &p->config;
    p->embed = put(p, -1, "model.embed_tokens.weight", c->vocab_size, c->d_model, MATRIX);
    for (int i = 0; i < c->n_layers; i++)
        put_layer(p, i);
    p->norm = put(p, -1, "model.norm.weight", 1, c->d_model, GAIN);
    p->head = p->embed;
    if (!c->is_tied)
        p->head = put(p, -1, "lm_head.weight", c->vocab_size, c->d_model, MATRIX);
    p->gate = p->gate_bias = SIZE_MAX;
    if (c->has_gate) {
        p->gate = put(p, -1, "model.early_exit_gate.weight", 1, c->d_model, GATE);
        p->gate_bias = put(p, -1, "model.early_exit_gate.bias", 1, 1, GATE);
        p->tensors[p->n_tensors - 1].is_vector = true;
    }
}

enum status params_create(const struct model_config *config, struct params **out, struct err *err)
{
    uint64_t expected = config_count_parameters(config);
    if (expected > SIZE_MAX / sizeof(float) / 2)
        return err_set(err, STATUS_NO_MEMORY, "a model of %llu parameters cannot be addressed",
                       (unsigned long long)expected);
    struct params *p = calloc(1, sizeof *p);
    if (!p)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of parameters");
    p->config = *config;
    size_t n_layers = (size_t)config->n_layers;
    p->layers = calloc(n_layers, sizeof *p->layers);
    p->tensors = calloc(n_layers * LAYER_TENSORS + TOP_TENSORS, sizeof *p->tensors);
    if (p->layers && p->tensors) {
        put_all(p);
        size_t bytes =
            (p->n_values * sizeof(float) + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
        p->values = aligned_alloc(ALIGNMENT_BYTES, bytes);
        if (p->values)
            memset(p->values, 0, bytes);
    }
    if (!p->values) {
        params_destroy(p);
        return err_set(err, STATUS_NO_MEMORY, "no memory for %llu parameters",
                       (unsigned long long)expected);
    }
    *out = p;
    return STATUS_OK;
}

void params_destroy(struct params *p)
{
    if (!p)
        return;
    free(p->tensors);
    free(p->layers);
    free(p->values);
    free(p);
}

void params_init_defaults(struct params_init *init)
{
    *init = (struct params_init){
        .embed_std = 1, .head_std = 0.02f, .matrix_std = 0, .gain = 1, .branch_gain = 0.5f};
}

static bool is_branch_gain(const struct params *p, const struct params_tensor *t)
{
    return t->layer >= 0 && (t->offset == p->layers[t->layer].norm_attention_out ||
                             t->offset == p->layers[t->layer].norm_mlp_out);
}

/* A tied head is the embedding and drawn as one. */
void params_draw(struct params *p, const struct params_init *init, uint64_t seed)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        float *values = p->values + t->offset;
        size_t n = (size_t)t->rows * (size_t)t->cols;
        if (t->decays) {
            double std = init->matrix_std;
            if (t->layer < 0)
                std = t->offset == p->embed ? init->embed_std : init->head_std;
            if (std == 0)
                std = 1 / sqrt(t->cols);
            struct random r = random_of(seed, PARAMS_DRAW_STEP, i);
            for (size_t j = 0; j < n; j++)
                values[j] = (float)(std * random_normal(&r));
        } else {
            float value = init->gain;
            if (is_branch_gain(p, t))
                value = init->branch_gain;
            else if (t->offset == p->gate || t->offset == p->gate_bias)
                value = 0;
            for (size_t j = 0; j < n; j++)
                values[j] = value;
        }
    }
}

/* ---- from a checkpoint ---- */

static float widened(const struct weight *w, size_t i)
{
    switch (w->dtype) {
    case DTYPE_F32: {
        float value; /* the file's data need not be aligned */
        memcpy(&value, (const char *)w->data + i * sizeof value, sizeof value);
        return value;
    }
    case DTYPE_BF16:
    case DTYPE_F16:
        break;
    }
    uint16_t bits;
    memcpy(&bits, (const char *)w->data + i * sizeof bits, sizeof bits);
    return w->dtype == DTYPE_BF16 ? dtype_from_bf16(bits) : dtype_from_f16(bits);
}

/* Where a layer's weights lie in the checkpoint, in the order of put_layer. */
static int layer_sources(const struct layer_weights *l, const struct weight **out)
{
    const struct weight *all[LAYER_TENSORS] = {
        &l->norm_attention, &l->q,    &l->k,  &l->v,    &l->o,           &l->norm_attention_out,
        &l->norm_mlp,       &l->gate, &l->up, &l->down, &l->norm_mlp_out};
    int n = 0;
    for (int i = 0; i < LAYER_TENSORS; i++)
        if (all[i]->data)
            out[n++] = all[i];
    return n;
}

/* The checkpoint's weights in the order of the table; `out` has room for all there can be. */
static size_t list_sources(const struct params *p, const struct checkpoint *checkpoint,
                           const struct weight **out)
{
    const struct model_weights *w = &checkpoint->weights;
    size_t n = 0;
    out[n++] = &w->embed;
    for (int i = 0; i < checkpoint->config.n_layers; i++)
        n += (size_t)layer_sources(&w->layers[i], out + n);
    out[n++] = &w->norm;
    if (!p->config.is_tied)
        out[n++] = &w->head;
    if (checkpoint->config.has_gate) {
        out[n++] = &w->gate;
        out[n++] = &w->gate_bias;
    }
    return n;
}

static enum status check_config(const struct params *p, const struct checkpoint *checkpoint,
                                struct err *err)
{
    const struct model_config *a = &p->config, *b = &checkpoint->config;
    const struct {
        const char *name;
        int want, found;
    } fields[] = {
        {"num_hidden_layers", a->n_layers, b->n_layers},
        {"hidden_size", a->d_model, b->d_model},
        {"intermediate_size", a->d_ffn, b->d_ffn},
        {"num_attention_heads", a->n_heads, b->n_heads},
        {"num_key_value_heads", a->n_kv_heads, b->n_kv_heads},
        {"head_dim", a->head_dim, b->head_dim},
        {"vocab_size", a->vocab_size, b->vocab_size},
        {"norms on the branches (0: no, 1: yes)", a->has_sandwich_norms, b->has_sandwich_norms},
        {"exit gate (0: no, 1: yes)", a->has_gate, b->has_gate},
    };
    const char *dir = checkpoint->dir ? checkpoint->dir : "the checkpoint";
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (fields[i].want != fields[i].found)
            return err_set(err, STATUS_MISMATCH,
                           "%s has %s %d, the model to train %d: give the recipe's model the "
                           "checkpoint's dimensions, or start from another checkpoint",
                           dir, fields[i].name, fields[i].found, fields[i].want);
    if (a->is_tied && !b->is_tied)
        return err_set(err, STATUS_MISMATCH,
                       "%s has an lm_head of its own, the model to train uses its embedding as "
                       "head: set \"tie_word_embeddings\": false",
                       dir);
    return STATUS_OK;
}

enum status params_load(struct params *p, const struct checkpoint *checkpoint, struct err *err)
{
    enum status status = check_config(p, checkpoint, err);
    if (status != STATUS_OK)
        return status;
    const struct weight **sources = calloc(p->n_tensors, sizeof(const struct weight *));
    if (!sources)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of %zu tensors", p->n_tensors);
    size_t n = list_sources(p, checkpoint, sources);
    /* Equal fields make equal lists: nothing below can go wrong half-way. */
    for (size_t i = 0; i < n; i++) {
        const struct params_tensor *t = &p->tensors[i];
        for (size_t j = 0; j < (size_t)t->rows * (size_t)t->cols; j++)
            p->values[t->offset + j] = widened(sources[i], j);
    }
    free(sources);
    return STATUS_OK;
}

const struct params_tensor *params_find(const struct params *p, const char *name)
{
    for (size_t i = 0; i < p->n_tensors; i++)
        if (strcmp(p->tensors[i].name, name) == 0)
            return &p->tensors[i];
    return NULL;
}
