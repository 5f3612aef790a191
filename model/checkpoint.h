/* A model directory: config.json plus all tensors the block needs, mapped and resolved by name.
 *
 * Think of it as one read-only object: open it, look at `config` and `weights`, close it. The bytes
 * are those of the page cache, so ranks of one node share them. */
#ifndef MODEL_CHECKPOINT_H
#define MODEL_CHECKPOINT_H

#include "model/config.h"
#include "model/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A matrix or vector in the mapping: [rows, cols] row-major; a vector has rows = 1. */
struct weight {
    const void *data; /* NULL: this architecture has none */
    enum dtype dtype;
    int rows; /* outputs */
    int cols; /* inputs */
};

struct layer_weights {
    struct weight norm_attention;     /* input_layernorm            [1, d] */
    struct weight norm_attention_out; /* input_layernorm_2          [1, d], Ouro only */
    struct weight norm_mlp;           /* post_attention_layernorm   [1, d] */
    struct weight norm_mlp_out;       /* post_attention_layernorm_2 [1, d], Ouro only */
    struct weight q, k, v;            /* [heads * head_dim, d], [kv_heads * head_dim, d] x 2 */
    struct weight o;                  /* [d, heads * head_dim] */
    struct weight gate, up;           /* [ffn, d] */
    struct weight down;               /* [d, ffn] */
};

struct model_weights {
    struct weight embed;          /* [vocab, d] */
    struct layer_weights *layers; /* n_layers */
    struct weight norm;           /* [1, d], after every loop */
    struct weight gate;           /* [1, d], Ouro only */
    struct weight gate_bias;      /* [1, 1], Ouro only */
    struct weight head;           /* [vocab, d]; the same bytes as embed when tied */
};

struct checkpoint {
    char *dir;
    struct model_config config;
    struct model_weights weights;
    /* Equal on two ranks when they opened the same model for the same number of loops, and else
     * different but for an accident of 2^-64. 64-bit FNV-1a over every field of config (n_loops
     * included: ranks must agree on T too), then for each tensor in order of name: name, dtype,
     * shape, byte offset in its file's data, and 16 bytes of content at four places (so that two
     * fine-tunes of one shape differ). Not a cryptographic hash. */
    uint64_t fingerprint;
    uint64_t len_bytes; /* of all tensors the model uses; a tied head counts once */
    enum dtype dtype;   /* of the block's matrices (layer 0's q) */
    void *files;        /* the mappings; private */
};

/* Opens <dir>: model.safetensors, or model.safetensors.index.json and its shards. Errors name the
 * tensor and the file, what was expected and what was found; STATUS_NOT_FOUND, STATUS_CORRUPT,
 * STATUS_UNSUPPORTED, STATUS_IO, STATUS_NO_MEMORY. Tensors nobody needs are ignored
 * (rotary_emb.inv_freq is in many files). `n_loops` as in config_set_loops. */
enum status checkpoint_open(const char *dir, int n_loops, struct checkpoint **out, struct err *err);
void checkpoint_close(struct checkpoint *checkpoint); /* NULL is fine */

/* Reads every weight once and fails with STATUS_CORRUPT on the first NaN or infinity, naming
 * tensor, file and index. Runs at memory speed on n_threads threads. */
enum status checkpoint_verify_finite(const struct checkpoint *checkpoint, int n_threads,
                                     struct err *err);

#endif
