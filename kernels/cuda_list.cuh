/* The first entries of a row's order as a sorted list in shared memory, where they are few enough:
 * one pass over the row, and the rest is looked up there. Called by a whole block, as all of
 * cuda_select.cuh. */
#ifndef KERNELS_CUDA_LIST_CUH
#define KERNELS_CUDA_LIST_CUH

#include "kernels/cuda_select.cuh"

/* As many entries as bins: a sorted list is searched as bins of one entry each. */
struct select_list {
    struct select_shared select;
    uint64_t ranks[SELECT_BINS]; /* the first in order first */
};

/* Largest first; n a power of two. Bitonic: after round k, runs of k are sorted, every other one
 * the other way round. */
__device__ static inline void select_sort(uint64_t *ranks, uint32_t n)
{
    for (uint32_t k = 2; k <= n; k *= 2)
        for (uint32_t j = k / 2; j > 0; j /= 2) {
            for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
                if ((i & j) != 0)
                    continue; /* its partner does both */
                uint64_t a = ranks[i], b = ranks[i + j];
                bool is_falling = (i & k) == 0;
                if ((a < b) == is_falling) {
                    ranks[i] = b;
                    ranks[i + j] = a;
                }
            }
            __syncthreads();
        }
}

/* Lists the entries with least <= rank < below, SELECT_BINS at most, in order. */
__device__ static inline uint32_t select_collect(struct select_list *list, const float *logits,
                                                 int n, uint64_t least, uint64_t below)
{
    struct select_shared *s = &list->select;
    __syncthreads();
    if (threadIdx.x == 0)
        s->place = 0;
    __syncthreads();
    select_each(logits, 0, n, (int)threadIdx.x, (int)blockDim.x, [&](int i, float logit) {
        uint64_t rank = select_rank(select_key(logit), i);
        if (rank >= least && rank < below)
            list->ranks[cuda_atomic_add(&s->place, 1u)] = rank;
    });
    __syncthreads();
    uint32_t n_list = s->place, n_sorted = 1;
    while (n_sorted < n_list)
        n_sorted *= 2;
    for (uint32_t i = n_list + threadIdx.x; i < n_sorted; i += blockDim.x)
        list->ranks[i] = 0; /* below every entry */
    __syncthreads();
    select_sort(list->ranks, n_sorted);
    return n_list;
}

/* Lists all entries of the first level's bins up to the one where the goal lies; 0, and no list,
 * when those are too many. */
__device__ static inline uint32_t select_first(struct select_list *list, const float *logits, int n,
                                               const uint64_t *masses, const uint32_t *counts,
                                               struct select_goal goal)
{
    struct select_shared *s = &list->select;
    select_load(s, masses, counts);
    select_bin(s, goal, {0, 0});
    uint32_t bin = s->place;
    if (s->before.count + s->counts[bin] > SELECT_BINS)
        return 0;
    uint64_t least = select_rank((SELECT_BINS - 1 - bin) << select_shift(0), -1);
    return select_collect(list, logits, n, least, ~UINT64_C(0));
}

/* The list's entries take the place of the bins. */
__device__ static inline void select_weigh_list(struct select_list *list, uint32_t n_list,
                                                const struct select_weights *w)
{
    struct select_shared *s = &list->select;
    select_clear(s);
    for (uint32_t i = threadIdx.x; i < n_list; i += blockDim.x) {
        float logit = select_logit((uint32_t)(list->ranks[i] >> 32));
        s->masses[i] = select_mass_of(w, select_exponent(w, logit));
        s->counts[i] = 1;
    }
}

#endif
