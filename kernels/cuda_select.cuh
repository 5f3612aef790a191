/* Selection in a row of logits by one block: in descending order, ties by ascending id, find where
 * a count or a mass is reached.
 *
 * A logit becomes an integer key that orders as logits do, and the search takes 11, 11 and 10 bits
 * of it at a time: how many entries, of which mass, fall into each bin; then on into the bin where
 * the goal lies. Counts and masses are integers, so that they come out the same whatever order the
 * threads add in. Everything here is called by all threads of a block together; blockDim.x is a
 * multiple of 32 up to SELECT_MAX_THREADS. */
#ifndef KERNELS_CUDA_SELECT_CUH
#define KERNELS_CUDA_SELECT_CUH

#include "kernels/cuda_device.cuh"

enum {
    SELECT_BINS = 2048,
    SELECT_LEVELS = 3,
    SELECT_MAX_THREADS = 512,
    SELECT_LOADS = 8,
    SELECT_RUN = 16, /* threads whose sums are added by one */
    SELECT_GROUPS = SELECT_MAX_THREADS / SELECT_RUN
};

/* What lies before a place in the order. */
struct select_sum {
    uint64_t mass;
    uint32_t count;
};
/* The first place where the mass, or the count, with what lies there is >= limit. */
struct select_goal {
    uint64_t limit;
    bool by_mass;
};

struct select_shared {
    uint64_t masses[SELECT_BINS]; /* by bin, the largest keys first */
    uint64_t part_masses[SELECT_MAX_THREADS];
    uint64_t group_masses[SELECT_GROUPS];
    uint32_t counts[SELECT_BINS];
    uint32_t part_counts[SELECT_MAX_THREADS];
    uint32_t group_counts[SELECT_GROUPS];
    struct select_sum before; /* the last search's answer: what lies before, and in which bin */
    uint32_t place;
};

/* An entry's mass: exp((logit - largest) / temperature), which is 1 for the largest, times a power
 * of two that leaves room for a sum over the vocabulary. scale 0: masses are not asked for. */
struct select_weights {
    double largest, temperature, scale;
};

__device__ static inline double select_exponent(const struct select_weights *w, float logit)
{
    return ((double)logit - w->largest) / w->temperature;
}
__device__ static inline uint64_t select_mass_of(const struct select_weights *w, double exponent)
{
    return (uint64_t)(exp(exponent) * w->scale + 0.5);
}

/* Orders as floats do; -0 is 0, and NaN lies below everything. */
__device__ static inline uint32_t select_key(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0;
    if (bits == 0x80000000u)
        bits = 0;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ static inline float select_logit(uint32_t key)
{
    uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
/* Key and id as one number, the first in order the largest. */
__device__ static inline uint64_t select_rank(uint32_t key, int32_t id)
{
    return (uint64_t)key << 32 | (0xffffffffu - (uint32_t)id);
}
__device__ static inline int32_t select_rank_id(uint64_t rank)
{
    return (int32_t)(0xffffffffu - (uint32_t)rank);
}

/* visit(i, logits[i]) for the thread's share of [first, last), neighbours on neighbouring threads.
 * Several loads are under way at a time: a row comes from the L2 cache, far from one block. */
template <typename Visit>
__device__ static inline void select_each(const float *logits, int first, int last, int thread,
                                          int n_threads, Visit visit)
{
    for (int base = first + thread; base < last; base += SELECT_LOADS * n_threads) {
        float x[SELECT_LOADS];
#pragma unroll
        for (int j = 0; j < SELECT_LOADS; j++) {
            int i = base + j * n_threads;
            x[j] = i < last ? logits[i] : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < SELECT_LOADS; j++) {
            int i = base + j * n_threads;
            if (i < last)
                visit(i, x[j]);
        }
    }
}

/* Of n entries the first at which the sum reaches the goal; those before it are added to *before.
 * The last one is not asked. masses may be NULL. */
__device__ static inline uint32_t select_walk(const uint64_t *masses, const uint32_t *counts,
                                              uint32_t n, struct select_goal goal,
                                              struct select_sum *before)
{
    uint32_t i = 0;
    for (; i + 1 < n; i++) {
        uint64_t mass = before->mass + (masses != NULL ? masses[i] : 0);
        uint32_t count = before->count + (counts != NULL ? counts[i] : 0);
        if ((goal.by_mass ? mass : count) >= goal.limit)
            break;
        before->mass = mass;
        before->count = count;
    }
    return i;
}

/* Adds part_masses and part_counts, one of each thread, up by SELECT_RUN. */
__device__ static inline void select_group(struct select_shared *s)
{
    __syncthreads();
    if (threadIdx.x < blockDim.x / SELECT_RUN) {
        uint64_t mass = 0;
        uint32_t count = 0;
        for (uint32_t i = threadIdx.x * SELECT_RUN; i < (threadIdx.x + 1) * SELECT_RUN; i++) {
            mass += s->part_masses[i];
            count += s->part_counts[i];
        }
        s->group_masses[threadIdx.x] = mass;
        s->group_counts[threadIdx.x] = count;
    }
    __syncthreads();
}

/* The thread in whose part the goal lies. Thread 0 only, after select_group. */
__device__ static inline uint32_t select_part(const struct select_shared *s,
                                              struct select_goal goal, struct select_sum *before)
{
    uint32_t first = SELECT_RUN * select_walk(s->group_masses, s->group_counts,
                                              blockDim.x / SELECT_RUN, goal, before);
    return first +
           select_walk(s->part_masses + first, s->part_counts + first, SELECT_RUN, goal, before);
}

/* The block's sum of what each thread brings; every thread gets it. */
__device__ static inline struct select_sum select_add(struct select_shared *s, uint64_t mass,
                                                      uint32_t count)
{
    s->part_masses[threadIdx.x] = mass;
    s->part_counts[threadIdx.x] = count;
    select_group(s);
    struct select_sum sum = {0, 0};
    for (uint32_t i = 0; i < blockDim.x / SELECT_RUN; i++) {
        sum.mass += s->group_masses[i];
        sum.count += s->group_counts[i];
    }
    __syncthreads(); /* before the next one's groups */
    return sum;
}

/* s->place: the bin in which the goal lies; s->before: what lies before the bin, on top of
 * `before`. */
__device__ static inline void select_bin(struct select_shared *s, struct select_goal goal,
                                         struct select_sum before)
{
    __syncthreads();
    uint32_t n = SELECT_BINS / blockDim.x, count = 0;
    uint64_t mass = 0;
    for (uint32_t i = threadIdx.x * n; i < (threadIdx.x + 1) * n; i++) {
        mass += s->masses[i];
        count += s->counts[i];
    }
    s->part_masses[threadIdx.x] = mass;
    s->part_counts[threadIdx.x] = count;
    select_group(s);
    if (threadIdx.x == 0) {
        uint32_t first = n * select_part(s, goal, &before);
        s->place = first + select_walk(s->masses + first, s->counts + first, n, goal, &before);
        s->before = before;
    }
    __syncthreads();
}

__device__ static inline void select_clear(struct select_shared *s)
{
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SELECT_BINS; i += blockDim.x) {
        s->masses[i] = 0;
        s->counts[i] = 0;
    }
    __syncthreads();
}

/* A thread's entries of one bin in a row, added at once: neighbours often share a bin. */
struct select_run {
    uint64_t mass;
    uint32_t bin, count;
};
__device__ static inline void select_flush(struct select_shared *s, struct select_run *run)
{
    if (run->count > 0)
        cuda_atomic_add(&s->counts[run->bin], run->count);
    if (run->mass > 0)
        cuda_shared_add(&s->masses[run->bin], run->mass);
    run->count = 0;
    run->mass = 0;
}
__device__ static inline void select_count(struct select_shared *s, struct select_run *run,
                                           uint32_t bin, uint64_t mass)
{
    if (bin != run->bin)
        select_flush(s, run);
    run->bin = bin;
    run->count++;
    run->mass += mass;
}

__device__ static inline uint32_t select_shift(int level)
{
    return level == 0 ? 21 : level == 1 ? 10 : 0;
}
__device__ static inline uint32_t select_mask(int level)
{
    return level < 2 ? SELECT_BINS - 1 : SELECT_BINS / 2 - 1;
}
/* The bin of the first level. */
__device__ static inline uint32_t select_first_bin(uint32_t key)
{
    return SELECT_BINS - 1 - (key >> select_shift(0));
}

/* Counts and masses of the entries whose key begins with `prefix`, by the next bits. On the last
 * level a bin is one key, and its mass one exponential. */
__device__ static inline void select_fill(struct select_shared *s, const float *logits, int n,
                                          int level, uint32_t prefix,
                                          const struct select_weights *w)
{
    uint32_t shift = select_shift(level), mask = select_mask(level);
    bool has_mass = w->scale > 0;
    struct select_run run = {0, 0, 0};
    select_clear(s);
    select_each(logits, 0, n, (int)threadIdx.x, (int)blockDim.x, [&](int, float logit) {
        uint32_t key = select_key(logit);
        if (level > 0 && key >> select_shift(level - 1) != prefix)
            return;
        uint64_t mass = has_mass && level < 2 ? select_mass_of(w, select_exponent(w, logit)) : 0;
        select_count(s, &run, mask - (key >> shift & mask), mass);
    });
    select_flush(s, &run);
    if (level < 2 || !has_mass)
        return;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SELECT_BINS; i += blockDim.x)
        if (s->counts[i] > 0) {
            float logit = select_logit(prefix << 10 | (mask - i));
            s->masses[i] = s->counts[i] * select_mass_of(w, select_exponent(w, logit));
        }
}

/* The first level's bins as somebody has counted them. */
__device__ static inline void select_load(struct select_shared *s, const uint64_t *masses,
                                          const uint32_t *counts)
{
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < SELECT_BINS; i += blockDim.x) {
        s->masses[i] = masses[i];
        s->counts[i] = counts[i];
    }
}

/* A place in the order: the `rank`-th, from 1 on, of the entries with this key. */
struct select_cut {
    struct select_sum before; /* entries with a larger key */
    uint64_t mass_each;       /* of an entry with this key */
    uint32_t key, rank;
};

/* Where the goal is reached. It must lie within the row. `masses` and `counts` are the first
 * level's bins; NULL: they are counted here. */
__device__ static inline struct select_cut
select_find(struct select_shared *s, const float *logits, int n, const uint64_t *masses,
            const uint32_t *counts, const struct select_weights *w, struct select_goal goal)
{
    struct select_cut cut = {{0, 0}, 0, 0, 0};
    for (int level = 0; level < SELECT_LEVELS; level++) {
        if (level == 0 && counts != NULL)
            select_load(s, masses, counts);
        else
            select_fill(s, logits, n, level, cut.key, w);
        select_bin(s, goal, cut.before);
        cut.before = s->before;
        cut.key = cut.key << (level < 2 ? 11 : 10) | (select_mask(level) - s->place);
    }
    if (w->scale > 0)
        cut.mass_each = select_mass_of(w, select_exponent(w, select_logit(cut.key)));
    if (!goal.by_mass)
        cut.rank = (uint32_t)goal.limit - cut.before.count;
    else
        cut.rank = (uint32_t)((goal.limit - cut.before.mass + cut.mass_each - 1) / cut.mass_each);
    return cut;
}

/* The mass of everything up to a cut. */
__device__ static inline uint64_t select_cut_mass(const struct select_cut *cut)
{
    return cut->before.mass + cut->rank * cut->mass_each;
}

/* The id of a cut: first in which warp's piece of the row it lies, then in which thread's. */
__device__ static inline int32_t select_id(struct select_shared *s, const float *logits, int n,
                                           const struct select_cut *cut)
{
    int n_warps = (int)blockDim.x / 32, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int piece = (n + n_warps - 1) / n_warps, end = min(n, (warp + 1) * piece);
    const struct select_goal goal = {cut->rank, false};
    uint32_t count = 0;
    __syncthreads();
    select_each(logits, warp * piece, end, lane, 32,
                [&](int, float logit) { count += select_key(logit) == cut->key; });
    s->part_counts[threadIdx.x] = count;
    s->part_masses[threadIdx.x] = 0;
    select_group(s);
    if (threadIdx.x == 0) {
        struct select_sum before = {0, 0};
        s->place = select_part(s, goal, &before) / 32;
        before.count = 0; /* parts of a warp are interleaved: up to its piece again */
        for (uint32_t i = 0; i < s->place * 32 / SELECT_RUN; i++)
            before.count += s->group_counts[i];
        s->before = before;
    }
    __syncthreads();

    int first = (int)s->place * piece, last = min(n, first + piece);
    int each = (piece + (int)blockDim.x - 1) / (int)blockDim.x;
    int from = min(last, first + (int)threadIdx.x * each), to = min(last, from + each);
    count = 0;
    for (int i = from; i < to; i++)
        count += select_key(logits[i]) == cut->key;
    s->part_counts[threadIdx.x] = count;
    select_group(s);
    if (threadIdx.x == 0) {
        struct select_sum before = s->before;
        int id = first + (int)select_part(s, goal, &before) * each;
        for (; id + 1 < last; id++) {
            before.count += select_key(logits[id]) == cut->key;
            if (before.count >= goal.limit)
                break;
        }
        s->place = (uint32_t)id;
    }
    __syncthreads();
    return (int32_t)s->place;
}

#endif
