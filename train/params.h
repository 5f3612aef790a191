/* The trainable numbers of a LoopLM in one array, with a table that says which tensor lies where.
 *
 * The order inside a layer lets q, k, v be one matrix [(H + 2 G) D, d] and gate, up another
 * [2 f, d]. A gradient, and each of the optimiser's moments, is an array of the same length. */
#ifndef TRAIN_PARAMS_H
#define TRAIN_PARAMS_H

#include "model/checkpoint.h"
#include "model/config.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PARAMS_NAME_BYTES = 96 };

/* One tensor: its name in the checkpoint, [rows, cols] at values + offset; a vector has rows = 1 */
struct params_tensor {
    char name[PARAMS_NAME_BYTES];
    size_t offset;
    int rows, cols;
    bool is_vector; /* shape [cols] in the file: norm gains, the gate's bias */
    bool decays; /* weight decay applies: matrices of the block, embedding, head; not gains, gate */
    int layer;   /* -1: outside the layers */
};

/* Offsets of a layer's parts. The _out norms are SIZE_MAX where the model has none. */
struct params_layer {
    size_t qkv, o, gate_up, down;
    size_t norm_attention, norm_attention_out, norm_mlp, norm_mlp_out;
};

struct params {
    struct model_config config;
    size_t n_values;
    size_t n_tensors;
    struct params_tensor *tensors; /* in the order of their offsets, tiling [0, n_values) */
    struct params_layer *layers;   /* [n_layers] */
    size_t embed, norm, gate, gate_bias, head; /* head == embed when tied; gate SIZE_MAX: none */
    float *values;                             /* [n_values], 64-byte aligned */
};

/* How fresh parameters are drawn. Standard deviations; 0 means 1/sqrt(fan-in). */
struct params_init {
    float embed_std, head_std, matrix_std;
    float gain, branch_gain; /* norm gains; branch_gain those of the two _2 norms */
};
void params_init_defaults(struct params_init *init); /* 1, 0.02, 0, 1, 0.5 */

/* Lays out the table; values are zero. STATUS_NO_MEMORY. */
enum status params_create(const struct model_config *config, struct params **out, struct err *err);
void params_destroy(struct params *p); /* NULL is fine */
/* Draws every value from (seed); gate weight and bias are zero. */
void params_draw(struct params *p, const struct params_init *init, uint64_t seed);
/* Copies (and widens) a checkpoint's weights. STATUS_MISMATCH when the shapes differ. */
enum status params_load(struct params *p, const struct checkpoint *checkpoint, struct err *err);
const struct params_tensor *params_find(const struct params *p, const char *name);

#endif
