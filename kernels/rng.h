/* Counter-based random numbers: a value is a function of (seed, position, stream) and nothing else,
 * so a replay, another worker or another batch draws the same. */
#ifndef KERNELS_RNG_H
#define KERNELS_RNG_H

#include <stdint.h>

enum rng_stream { RNG_SAMPLE = 1, RNG_FORCED_EXIT = 2, RNG_JITTER = 3 };

/* Uniform in [0, 1), 53 bits. */
double rng_uniform(uint64_t seed, uint32_t position, enum rng_stream stream);

#endif
