/* Inside the sampler: its scratch, and the steps that change logits before a token is chosen. */
#ifndef WORKER_SAMPLER_PARTS_H
#define WORKER_SAMPLER_PARTS_H

#include "worker/sampler.h"

#include <stdbool.h>
#include <stdint.h>

struct sampler {
    int vocab_size;
    float *adjusted;       /* [V] logits after bias, penalties and mask */
    int32_t *candidates;   /* [V] ids that passed min-p; a heap while selecting */
    int32_t *kept;         /* [V] ids the draw chooses from */
    double *weights;       /* [V] by id: unnormalised probability of a kept token */
    uint32_t *n_generated; /* [V] by id: occurrences among generated tokens; zero between calls */
    unsigned char
        *is_seen;  /* [V] by id: occurs in prompt or generated tokens; zero between calls */
    int32_t *seen; /* [V] the ids with is_seen set */
};

/* Whether bias, penalties or the stop-id mask change anything for the token at `position`. */
bool sampler_needs_adjusting(const struct sequence_params *params, uint32_t position);

/* s->adjusted = logits with bias, penalties and the stop-id mask applied, in that order, in fp32.
 */
void sampler_adjust(struct sampler *s, const struct sequence_params *params, const float *logits,
                    const struct sampler_history *history, uint32_t position);

#endif
