/* Opens a model directory as one object in which every weight the block needs has its exact shape.
 */
#include "model/checkpoint.h"

#include "model/checkpoint_files.h"
#include "model/checkpoint_hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 96, SHAPE_BYTES = 8 * 22 };

/* One tensor the block needs: its name and the shape that follows from config.json. */
struct need {
    const char *name;
    struct weight *out;
    int rank; /* 1: [cols], 2: [rows, cols] */
    int rows, cols;
    bool is_needed;
};

/* State while opening. */
struct opening {
    const struct model_config *config;
    struct checkpoint_files *files;
    uint64_t len_bytes; /* of the tensors resolved so far */
    struct err *err;
};

static void format_shape(char text[SHAPE_BYTES], const int64_t *shape, int rank)
{
    size_t used = (size_t)snprintf(text, SHAPE_BYTES, "[");
    for (int i = 0; i < rank; i++)
        used += (size_t)snprintf(text + used, SHAPE_BYTES - used, "%s%lld", i > 0 ? ", " : "",
                                 (long long)shape[i]);
    snprintf(text + used, SHAPE_BYTES - used, "]");
}

static enum status resolve(struct opening *o, const struct need *need, const char *name)
{
    if (!need->is_needed) {
        *need->out = (struct weight){0};
        return STATUS_OK;
    }
    struct checkpoint_entry *entry = checkpoint_files_find(o->files, name);
    if (entry == NULL) {
        bool is_head = strcmp(name, "lm_head.weight") == 0;
        return err_set(o->err, STATUS_NOT_FOUND, "tensor %s is missing from %s%s", name,
                       o->files->origin,
                       is_head ? "; if the model's head is its embedding, config.json must say "
                                 "\"tie_word_embeddings\": true"
                               : "");
    }
    const struct safetensors_tensor *t = entry->tensor;
    const int64_t matrix[2] = {need->rows, need->cols};
    const int64_t *expected = need->rank == 2 ? matrix : matrix + 1;
    if (t->rank != need->rank ||
        memcmp(t->shape, expected, (size_t)need->rank * sizeof *expected) != 0) {
        char want[SHAPE_BYTES], found[SHAPE_BYTES];
        format_shape(want, expected, need->rank);
        format_shape(found, t->shape, t->rank);
        return err_set(o->err, STATUS_CORRUPT, "tensor %s in %s: expected %s, found %s", name,
                       entry->path, want, found);
    }
    *need->out = (struct weight){t->data, t->dtype, need->rows, need->cols};
    entry->is_used = true;
    o->len_bytes += t->len_bytes;
    return STATUS_OK;
}

static enum status resolve_layer(struct opening *o, int i, struct layer_weights *w)
{
    const struct model_config *c = o->config;
    const int d = c->d_model, q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    const bool has_out_norms = c->has_sandwich_norms;
    const struct need needs[] = {
        {"input_layernorm", &w->norm_attention, 1, 1, d, true},
        {"input_layernorm_2", &w->norm_attention_out, 1, 1, d, has_out_norms},
        {"post_attention_layernorm", &w->norm_mlp, 1, 1, d, true},
        {"post_attention_layernorm_2", &w->norm_mlp_out, 1, 1, d, has_out_norms},
        {"self_attn.q_proj", &w->q, 2, q, d, true},
        {"self_attn.k_proj", &w->k, 2, kv, d, true},
        {"self_attn.v_proj", &w->v, 2, kv, d, true},
        {"self_attn.o_proj", &w->o, 2, d, q, true},
        {"mlp.gate_proj", &w->gate, 2, c->d_ffn, d, true},
        {"mlp.up_proj", &w->up, 2, c->d_ffn, d, true},
        {"mlp.down_proj", &w->down, 2, d, c->d_ffn, true},
    };
    enum status status = STATUS_OK;
    for (size_t k = 0; k < sizeof needs / sizeof needs[0] && status == STATUS_OK; k++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, needs[k].name);
        status = resolve(o, &needs[k], name);
    }
    return status;
}

static enum status resolve_top(struct opening *o, struct model_weights *w)
{
    const struct model_config *c = o->config;
    const int d = c->d_model;
    const struct need needs[] = {
        {"model.embed_tokens.weight", &w->embed, 2, c->vocab_size, d, true},
        {"model.norm.weight", &w->norm, 1, 1, d, true},
        {"model.early_exit_gate.weight", &w->gate, 2, 1, d, c->has_gate},
        {"model.early_exit_gate.bias", &w->gate_bias, 1, 1, 1, c->has_gate},
        {"lm_head.weight", &w->head, 2, c->vocab_size, d, !c->is_tied},
    };
    enum status status = STATUS_OK;
    for (size_t k = 0; k < sizeof needs / sizeof needs[0] && status == STATUS_OK; k++)
        status = resolve(o, &needs[k], needs[k].name);
    if (status == STATUS_OK && c->is_tied)
        w->head = w->embed;
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* A tensor nobody needs is ignored, except where ignoring it would compute another model: more
 * layers than config.json says, a bias, a norm that this architecture does not have. */
static enum status reject_ignored_arithmetic(const struct opening *o)
{
    static const char prefix[] = "model.layers.";
    for (size_t i = 0; i < o->files->n_entries; i++) {
        const struct checkpoint_entry *entry = &o->files->entries[i];
        const char *name = entry->tensor->name;
        if (entry->is_used || strncmp(name, prefix, sizeof prefix - 1) != 0)
            continue;
        const char *digits = name + sizeof prefix - 1;
        char *rest;
        long layer = strtol(digits, &rest, 10);
        if (rest != digits && layer >= o->config->n_layers && ends_with(name, "_proj.weight"))
            return err_set(o->err, STATUS_CORRUPT,
                           "tensor %s in %s: config.json says num_hidden_layers %d", name,
                           entry->path, o->config->n_layers);
        if (ends_with(name, ".bias") || ends_with(name, "norm.weight") ||
            ends_with(name, "norm_2.weight"))
            return err_set(o->err, STATUS_UNSUPPORTED,
                           "tensor %s in %s: %s has no such tensor, and leaving it out would "
                           "compute another model",
                           name, entry->path, o->config->architecture);
    }
    return STATUS_OK;
}

enum status checkpoint_open(const char *dir, int n_loops, struct checkpoint **out, struct err *err)
{
    struct checkpoint_files *files = NULL;
    struct checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to open %s", dir);
    enum status status = config_load(dir, &c->config, err);
    if (status == STATUS_OK)
        status = config_set_loops(&c->config, n_loops, err);
    if (status == STATUS_OK)
        status = checkpoint_files_open(dir, &files, err);
    if (status != STATUS_OK)
        goto out;

    c->files = files;
    c->dir = strdup(dir);
    c->weights.layers = calloc((size_t)c->config.n_layers, sizeof *c->weights.layers);
    if (c->dir == NULL || c->weights.layers == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory to open %s", dir);
        goto out;
    }
    struct opening opening = {&c->config, files, 0, err};
    status = resolve_top(&opening, &c->weights);
    for (int i = 0; i < c->config.n_layers && status == STATUS_OK; i++)
        status = resolve_layer(&opening, i, &c->weights.layers[i]);
    if (status == STATUS_OK)
        status = reject_ignored_arithmetic(&opening);
    if (status != STATUS_OK)
        goto out;
    c->len_bytes = opening.len_bytes;
    c->dtype = c->weights.layers[0].q.dtype;
    c->fingerprint = checkpoint_hash(&c->config, files);
    *out = c;
    c = NULL;
out:
    checkpoint_close(c);
    return status;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    checkpoint_files_close(checkpoint->files);
    free(checkpoint->weights.layers);
    free(checkpoint->dir);
    free(checkpoint);
}
