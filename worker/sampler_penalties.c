/* Logit bias, penalties over the history, and the stop-id mask. */
#include "worker/sampler_parts.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static bool has_penalties(const struct sampling_params *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

/* Stop ids count as masked while fewer than min_tokens tokens were generated. */
static bool has_mask(const struct sequence_params *params, uint32_t position)
{
    return params->n_stop_ids > 0 &&
           (uint64_t)position < (uint64_t)params->prompt_tokens + params->min_tokens;
}

bool sampler_needs_adjusting(const struct sequence_params *params, uint32_t position)
{
    return params->sampling.n_logit_bias > 0 || has_penalties(&params->sampling) ||
           has_mask(params, position);
}

/* Walks the history once and then only the distinct ids in it, so a penalty costs O(history). */
static void apply_penalties(struct sampler *s, const struct sequence_params *params,
                            const struct sampler_history *history)
{
    const struct sampling_params *p = &params->sampling;
    int n_seen = 0;
    assert(history);
    for (uint32_t at = 0; at < history->n_history; at++) {
        uint32_t block_size = (uint32_t)history->block_size;
        size_t block = (size_t)history->blocks[at / block_size];
        int32_t id = history->pool_ids[block * block_size + at % block_size];
        assert(id >= 0 && id < s->vocab_size);
        if (!s->is_seen[id]) {
            s->is_seen[id] = 1;
            s->seen[n_seen++] = id;
        }
        if (at >= params->prompt_tokens)
            s->n_generated[id]++;
    }
    for (int i = 0; i < n_seen; i++) {
        int32_t id = s->seen[i];
        float logit = s->adjusted[id];
        logit = logit > 0 ? logit / p->repetition_penalty : logit * p->repetition_penalty;
        if (s->n_generated[id] > 0) {
            logit -= p->presence_penalty;
            logit -= p->frequency_penalty * (float)s->n_generated[id];
        }
        s->adjusted[id] = logit;
        s->is_seen[id] = 0;
        s->n_generated[id] = 0;
    }
}

void sampler_adjust(struct sampler *s, const struct sequence_params *params, const float *logits,
                    const struct sampler_history *history, uint32_t position)
{
    const struct sampling_params *p = &params->sampling;
    memcpy(s->adjusted, logits, (size_t)s->vocab_size * sizeof *logits);
    for (int32_t i = 0; i < p->n_logit_bias; i++) {
        assert(p->bias_ids[i] >= 0 && p->bias_ids[i] < s->vocab_size);
        s->adjusted[p->bias_ids[i]] += p->biases[i];
    }
    if (has_penalties(p))
        apply_penalties(s, params, history);
    if (has_mask(params, position))
        for (uint32_t i = 0; i < params->n_stop_ids; i++)
            if (params->stop_ids[i] >= 0 && params->stop_ids[i] < s->vocab_size)
                s->adjusted[params->stop_ids[i]] = -INFINITY;
}
