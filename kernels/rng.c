/* Draws numbers that depend on (seed, position, stream) only: Philox4x32-10, a counter-based
 * generator.
 *
 * J. Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The seed is the key,
 * the counter is (position, stream, 0, 0). */
#include "kernels/rng.h"

/* The paper's multipliers and the steps of the key (golden ratio, sqrt(3) - 1). */
#define PHILOX_M0 UINT32_C(0xD2511F53)
#define PHILOX_M1 UINT32_C(0xCD9E8D57)
#define PHILOX_W0 UINT32_C(0x9E3779B9)
#define PHILOX_W1 UINT32_C(0xBB67AE85)
enum { PHILOX_ROUNDS = 10 };

double rng_uniform(uint64_t seed, uint32_t position, enum rng_stream stream)
{
    uint32_t c[4] = {position, (uint32_t)stream, 0, 0};
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c[0];
        uint64_t p1 = (uint64_t)PHILOX_M1 * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k0, (uint32_t)p1,
                            (uint32_t)(p0 >> 32) ^ c[3] ^ k1, (uint32_t)p0};
        for (int i = 0; i < 4; i++)
            c[i] = next[i];
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    uint64_t bits = ((uint64_t)c[1] << 32) | c[0];
    return (double)(bits >> 11) * 0x1p-53;
}
