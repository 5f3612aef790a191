/* Hashes what two ranks must agree on before they may exchange hidden states. */
#include "model/checkpoint_hash.h"

#include "proto/fnv.h"

#include <string.h>

enum { N_SAMPLES = 4, SAMPLE_BYTES = 16 };

/* Field by field: the struct's padding is not part of the model. */
static uint64_t hash_config(uint64_t h, const struct model_config *c)
{
    const int numbers[] = {c->has_sandwich_norms,
                           c->has_gate,
                           c->is_tied,
                           c->n_layers,
                           c->d_model,
                           c->d_ffn,
                           c->n_heads,
                           c->n_kv_heads,
                           c->head_dim,
                           c->n_loops,
                           c->vocab_size,
                           c->max_positions,
                           c->bos_id,
                           c->n_eos};
    h = fnv_string(h, c->architecture);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        h = fnv_u64(h, (uint64_t)(int64_t)numbers[i]);
    for (int i = 0; i < c->n_eos; i++)
        h = fnv_u64(h, (uint64_t)c->eos_ids[i]);
    h = fnv_double(h, (double)c->rms_norm_eps);
    h = fnv_double(h, c->rope_theta);
    return fnv_double(h, (double)c->exit_threshold);
}

/* A fine-tune changes nearly every weight, so a few bytes at four places of each tensor tell two
 * of the same shape apart; more would touch more pages of a cold file. */
static uint64_t hash_sample(uint64_t h, const struct safetensors_tensor *t)
{
    if (t->len_bytes <= N_SAMPLES * SAMPLE_BYTES)
        return fnv_bytes(h, t->data, t->len_bytes);
    size_t last = t->len_bytes - SAMPLE_BYTES;
    for (size_t i = 0; i < N_SAMPLES; i++)
        h = fnv_bytes(h, (const unsigned char *)t->data + last / (N_SAMPLES - 1) * i,
                       SAMPLE_BYTES);
    return h;
}

uint64_t checkpoint_hash(const struct model_config *config, const struct checkpoint_files *files)
{
    uint64_t h = hash_config(FNV_START, config);
    /* On a cold file read-ahead around each sample would fetch most of the model: seconds instead
     * of milliseconds for who only wants to look at it. */
    for (size_t i = 0; i < files->n_files; i++)
        safetensors_expect_scattered(files->files[i], true);
    h = fnv_u64(h, files->n_entries);
    for (size_t i = 0; i < files->n_entries; i++) {
        const struct checkpoint_entry *entry = &files->entries[i];
        const struct safetensors_tensor *t = entry->tensor;
        h = fnv_string(h, t->name);
        h = fnv_string(h, dtype_name(t->dtype));
        h = fnv_u64(h, (uint64_t)t->rank);
        for (int k = 0; k < t->rank; k++)
            h = fnv_u64(h, (uint64_t)t->shape[k]);
        h = fnv_u64(h, (uint64_t)((const char *)t->data - (const char *)entry->file_start));
        h = hash_sample(h, t);
    }
    for (size_t i = 0; i < files->n_files; i++)
        safetensors_expect_scattered(files->files[i], false);
    return h;
}
