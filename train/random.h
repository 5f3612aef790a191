/* Random numbers by key: a stream is a function of (seed, step, index) and nothing else, so any
 * rank or thread draws the same for the same sequence, and a resumed run needs no saved state. */
#ifndef TRAIN_RANDOM_H
#define TRAIN_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state;
};

struct random random_of(uint64_t seed, uint64_t step, uint64_t index);
uint64_t random_bits(struct random *r);
double random_uniform(struct random *r);   /* [0, 1), 53 bits */
int random_below(struct random *r, int n); /* 0 .. n - 1, n >= 1, unbiased */
double random_normal(struct random *r);    /* mean 0, variance 1 */
void random_shuffle(struct random *r, int *items, int n);

#endif
