/* Draws numbers that depend on (seed, step, index) and on how many were drawn before: SplitMix64.
 *
 * G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014: the
 * state walks in steps of the golden ratio, the output is a strong mix of it. */
#include "train/random.h"

#include <assert.h>
#include <math.h>

#define RANDOM_GAMMA UINT64_C(0x9E3779B97F4A7C15)

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Mixed after every word, so that (1, 2) and (2, 1) are strangers. */
struct random random_of(uint64_t seed, uint64_t step, uint64_t index)
{
    uint64_t z = mix(seed + RANDOM_GAMMA);
    z = mix(z + step * RANDOM_GAMMA + 1);
    z = mix(z + index * RANDOM_GAMMA + 2);
    return (struct random){z};
}

uint64_t random_bits(struct random *r)
{
    r->state += RANDOM_GAMMA;
    return mix(r->state);
}

double random_uniform(struct random *r)
{
    return (double)(random_bits(r) >> 11) * 0x1p-53;
}

int random_below(struct random *r, int n)
{
    assert(n >= 1);
    uint64_t range = (uint64_t)n;
    /* The largest multiple of n that fits; what lies above would favour small numbers. */
    uint64_t limit = UINT64_MAX - UINT64_MAX % range;
    uint64_t bits;
    do
        bits = random_bits(r);
    while (bits >= limit);
    return (int)(bits % range);
}

/* Box and Muller; the second number of the pair is not kept, so that the state stays one word. */
double random_normal(struct random *r)
{
    double radius = sqrt(-2 * log(1 - random_uniform(r)));
    return radius * cos(2 * 3.14159265358979323846 * random_uniform(r));
}

void random_shuffle(struct random *r, int *items, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = random_below(r, i + 1);
        int item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}
