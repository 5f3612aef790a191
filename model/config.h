/* config.json of a checkpoint: every dimension of the model, checked.
 *
 * Two architectures: OuroForCausalLM (sandwich norms, T loops, an exit gate) and LlamaForCausalLM
 * (pre-norm only, T = 1 unless the user asks for more, no gate). Nothing is hard-coded, and a value
 * this engine does not compute exactly (sliding window, rope scaling, biases) is an error. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include "model/dtype.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MODEL_MAX_LOOPS = 8, /* quality falls beyond 4; 8 is what the published study measured */
    MODEL_MAX_LAYERS = 512,
    MODEL_MAX_EOS = 8
};

struct model_config {
    char architecture[32];   /* "OuroForCausalLM" or "LlamaForCausalLM" */
    bool has_sandwich_norms; /* the two _2 norms on the branches (Ouro) */
    bool has_gate;           /* early_exit_gate exists (Ouro) */
    bool is_tied;            /* lm_head is embed_tokens */
    int n_layers;            /* L of the shared block */
    int d_model;             /* d */
    int d_ffn;               /* width of SwiGLU */
    int n_heads;             /* query heads */
    int n_kv_heads;          /* divides n_heads */
    int head_dim;            /* even; not necessarily d_model / n_heads */
    int vocab_size;
    int max_positions; /* context length */
    int n_loops;       /* T: total_ut_steps (Ouro), 1 (Llama) */
    float rms_norm_eps;
    double rope_theta;
    float exit_threshold; /* early_exit_threshold; 1 = all loops */
    int bos_id;           /* -1 when the file has none */
    int n_eos;            /* eos_token_id may be one number or a list */
    int eos_ids[MODEL_MAX_EOS];
};

/* Parses config.json text of len_bytes (need not be NUL-terminated). `origin` names the file in
 * messages. Errors: STATUS_CORRUPT (not JSON, a field of the wrong type or out of range, or
 * dimensions that do not fit each other), STATUS_UNSUPPORTED (architecture, activation, rope
 * scaling, sliding window, bias, a layer type other than full_attention). The message names the
 * field and the value found. */
enum status config_parse(const char *json, size_t len_bytes, const char *origin,
                         struct model_config *out, struct err *err);

/* Reads <dir>/config.json. STATUS_NOT_FOUND when the directory or the file is missing. */
enum status config_load(const char *dir, struct model_config *out, struct err *err);

/* Replaces T by the user's choice, 1..MODEL_MAX_LOOPS. STATUS_INVALID outside. 0 keeps the file's.
 */
enum status config_set_loops(struct model_config *config, int n_loops, struct err *err);

/* Parameters by dimensions (embedding counted once when tied). */
uint64_t config_count_parameters(const struct model_config *config);

/* Bytes of K and V of one position at ONE loop: 2 * L * n_kv_heads * head_dim * bytes. */
size_t config_kv_bytes_per_position(const struct model_config *config, enum dtype kv_dtype);

#endif
