/* A checkpoint of a few hundred numbers, described as a table that a test bends before writing it.
 */
#ifndef TESTS_TINY_CHECKPOINT_H
#define TESTS_TINY_CHECKPOINT_H

#include "tests/model_files.h"

enum { TINY_MAX_TENSORS = 40, TINY_BYTES = 16384 };

struct tiny_tensor {
    char name[96];
    const char *dtype; /* as the file spells it */
    int rank, shape[2];
    int bad_element; /* its bits become bad_bits; -1: none */
    uint32_t bad_bits;
};

struct tiny_checkpoint {
    int n;
    struct tiny_tensor tensors[TINY_MAX_TENSORS];
};

static const char TINY_OURO_CONFIG[] =
    "{\"architectures\": [\"OuroForCausalLM\"], \"hidden_size\": 6, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 2,"
    " \"intermediate_size\": 10, \"vocab_size\": 5, \"rms_norm_eps\": 1e-06,"
    " \"rope_theta\": 10000.0, \"total_ut_steps\": 3, \"max_position_embeddings\": 32,"
    " \"eos_token_id\": 1, \"tie_word_embeddings\": false}";

static inline void tiny_add(struct tiny_checkpoint *m, const char *name, int rank, int rows,
                            int cols)
{
    assert_in_range(m->n, 0, TINY_MAX_TENSORS - 1);
    struct tiny_tensor *t = &m->tensors[m->n++];
    *t = (struct tiny_tensor){.dtype = "F32", .rank = rank, .bad_element = -1};
    snprintf(t->name, sizeof t->name, "%s", name);
    t->shape[0] = rank == 2 ? rows : cols;
    t->shape[1] = rank == 2 ? cols : 0;
}

/* The tensors of TINY_OURO_CONFIG, or of its Llama sibling without gate and _2 norms. */
static inline void tiny_init(struct tiny_checkpoint *m, int is_ouro)
{
    static const struct {
        const char *name;
        int rank, rows, cols, is_ouro;
    } layer[] = {
        {"input_layernorm", 1, 1, 6, 0},          {"input_layernorm_2", 1, 1, 6, 1},
        {"post_attention_layernorm", 1, 1, 6, 0}, {"post_attention_layernorm_2", 1, 1, 6, 1},
        {"self_attn.q_proj", 2, 8, 6, 0},         {"self_attn.k_proj", 2, 4, 6, 0},
        {"self_attn.v_proj", 2, 4, 6, 0},         {"self_attn.o_proj", 2, 6, 8, 0},
        {"mlp.gate_proj", 2, 10, 6, 0},           {"mlp.up_proj", 2, 10, 6, 0},
        {"mlp.down_proj", 2, 6, 10, 0},
    };
    m->n = 0;
    tiny_add(m, "model.embed_tokens.weight", 2, 5, 6);
    tiny_add(m, "model.norm.weight", 1, 1, 6);
    tiny_add(m, "lm_head.weight", 2, 5, 6);
    if (is_ouro) {
        tiny_add(m, "model.early_exit_gate.weight", 2, 1, 6);
        tiny_add(m, "model.early_exit_gate.bias", 1, 1, 1);
    }
    for (int i = 0; i < 2; i++) {
        for (size_t k = 0; k < sizeof layer / sizeof layer[0]; k++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, layer[k].name);
            if (is_ouro || !layer[k].is_ouro)
                tiny_add(m, name, layer[k].rank, layer[k].rows, layer[k].cols);
        }
    }
}

static inline struct tiny_tensor *tiny_find(struct tiny_checkpoint *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (strcmp(m->tensors[i].name, name) == 0)
            return &m->tensors[i];
    fail_msg("the tiny checkpoint has no tensor %s", name);
    return NULL;
}

static inline void tiny_remove(struct tiny_checkpoint *m, const char *name)
{
    struct tiny_tensor *t = tiny_find(m, name);
    *t = m->tensors[--m->n];
}

/* Writes tensors [from, to) as one file; every element is 0.5 in its dtype, but for bad_element. */
static inline void tiny_write_part(const struct tiny_checkpoint *m, int from, int to,
                                   const char *dir, const char *file)
{
    size_t max_bytes = 0;
    for (int i = from; i < to; i++)
        max_bytes += 4 * (size_t)m->tensors[i].shape[0] *
                     (m->tensors[i].rank == 2 ? (size_t)m->tensors[i].shape[1] : 1);
    char *header = calloc(1, TINY_BYTES), *data = calloc(1, max_bytes + 1);
    assert_true(header != NULL && data != NULL);
    size_t used = (size_t)snprintf(header, TINY_BYTES, "{"), at = 0;
    for (int i = from; i < to; i++) {
        const struct tiny_tensor *t = &m->tensors[i];
        const size_t width = strcmp(t->dtype, "F32") == 0 ? 4 : 2;
        const uint32_t half = width == 4                      ? 0x3f000000
                              : strcmp(t->dtype, "BF16") == 0 ? 0x3f00
                                                              : 0x3800;
        int count = t->shape[0] * (t->rank == 2 ? t->shape[1] : 1);
        size_t end = at + (size_t)count * width;
        assert_true(end <= max_bytes && used + 256 < TINY_BYTES);
        char shape[32];
        snprintf(shape, sizeof shape, t->rank == 2 ? "%d,%d" : "%d", t->shape[0], t->shape[1]);
        used += (size_t)snprintf(
            header + used, TINY_BYTES - used,
            "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
            i > from ? "," : "", t->name, t->dtype, shape, at, end);
        for (int k = 0; k < count; k++) {
            uint32_t bits = k == t->bad_element ? t->bad_bits : half;
            memcpy(data + at + (size_t)k * width, &bits, width); /* little-endian, as the format */
        }
        at = end;
    }
    strcat(header, "}");
    size_t len;
    unsigned char *bytes = model_files_tensors(header, at, &len);
    memcpy(bytes + len - at, data, at);
    model_files_write(dir, file, bytes, len);
    free(bytes);
    free(header);
    free(data);
}

static inline void tiny_write(const struct tiny_checkpoint *m, const char *config, const char *dir)
{
    model_files_write(dir, "config.json", config, strlen(config));
    tiny_write_part(m, 0, m->n, dir, "model.safetensors");
}

#endif
