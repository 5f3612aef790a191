/* Hashes an input line together with what the command line decides about its answer. */
#include "cli/batch_hash.h"

#include "proto/fnv.h"

#include <stdio.h>
#include <string.h>

uint64_t batch_hash_run(const struct request_options *o, const struct model_config *config,
                        uint64_t fingerprint, bool has_bf16_kv)
{
    /* The values as they will run: a default that is spelled out changes nothing. */
    const uint64_t numbers[] = {
        fingerprint,
        has_bf16_kv,
        o->has_max_tokens ? (uint64_t)o->max_tokens : 0,
        (uint64_t)o->min_tokens,
        o->has_exit_mode ? (uint64_t)o->exit_mode : (uint64_t)EXIT_MODE_EXACT,
        (uint64_t)o->min_loops,
        (uint64_t)o->top_k,
        o->seed,
        o->ignore_eos,
        (uint64_t)o->n_logprobs,
        o->stop_ids != NULL,
    };
    const double reals[] = {
        o->has_exit_threshold ? o->exit_threshold : (double)config->exit_threshold,
        o->temperature,
        o->top_p,
        o->min_p,
        o->repetition_penalty,
        o->presence_penalty,
        o->frequency_penalty,
    };
    uint64_t h = FNV_START;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        h = fnv_u64(h, numbers[i]);
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++)
        h = fnv_double(h, (double)(float)reals[i]);
    h = fnv_string(h, o->stop);
    return fnv_string(h, o->stop_ids);
}

uint64_t batch_hash_line(uint64_t run, const char *line, size_t len_bytes)
{
    return fnv_bytes(run, line, len_bytes);
}

void batch_hash_print(uint64_t hash, char out[BATCH_HASH_DIGITS + 1])
{
    snprintf(out, BATCH_HASH_DIGITS + 1, "%016llx", (unsigned long long)hash);
}

bool batch_hash_read(const char *text, uint64_t *out)
{
    static const char digits[] = "0123456789abcdef";
    uint64_t value = 0;
    if (strlen(text) != BATCH_HASH_DIGITS)
        return false;
    for (int i = 0; i < BATCH_HASH_DIGITS; i++) {
        const char *digit = strchr(digits, text[i]);
        if (digit == NULL)
            return false;
        value = value << 4 | (uint64_t)(digit - digits);
    }
    *out = value;
    return true;
}
