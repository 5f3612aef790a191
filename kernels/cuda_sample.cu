/* Draws the tokens of a batch on the device: the rules of worker/sampler.h, one row of logits a
 * token.
 *
 * Three passes. Scan: what is the largest logit, is any broken; weigh: masses relative to it; both
 * with a block for every piece of a row, so that one row fills a device, too. Pick: a block a row
 * finds the token. Masses are integers in units of 2^-s of the largest, s = 63 - log2(V), so that
 * sums depend on no order; the host's doubles round at 2^-53 of each sum. The two agree on a token
 * unless the draw falls within such a rounding of a boundary. */
#include "kernels/cuda_finish.h"
#include "kernels/cuda_list.cuh"

#include <math.h>

static_assert((int)SELECT_BINS == (int)CUDA_SAMPLE_BINS, "bins of the first level");

struct sample_args {
    const struct cuda_batch *batch;
    struct cuda_finish_device f;
    const float *logits;
    int vocab_size, first; /* head row of blockIdx.y 0 */
    double scale;
};

/* What a block works on. */
struct sample_row {
    const struct cuda_live *live;
    struct kernels_outcome *outcome;
    const float *logits;
    struct cuda_sample_chunk *chunks;
    uint64_t *masses;
    uint32_t *counts;
};

/* What the chunks say together. */
struct sample_total {
    uint64_t best, mass, raw_mass;
    uint32_t n_broken, n_finite, n_candidates;
};

__device__ static bool row_of(const struct sample_args *a, struct sample_row *row)
{
    size_t slot = blockIdx.y;
    int head = a->first + (int)slot;
    if (head >= *a->f.n_heads)
        return false;
    int live = a->f.heads[head];
    row->live = &a->batch->live[live];
    row->outcome = &a->batch->outcomes[live];
    row->logits = a->logits + (size_t)head * (size_t)a->vocab_size;
    row->chunks = a->f.chunks + slot * (size_t)a->f.n_chunks;
    row->masses = a->f.masses + slot * SELECT_BINS;
    row->counts = a->f.counts + slot * SELECT_BINS;
    return true;
}

__device__ static bool is_minus_infinity(float x)
{
    return select_key(x) == 0x007fffffu;
}

/* NaN and +inf; -inf is allowed. */
__device__ static bool is_broken(float x)
{
    uint32_t key = select_key(x);
    return key == 0 || key == 0xff800000u;
}

/* The block's largest value, for every thread. */
__device__ static uint64_t block_max(struct select_shared *s, uint64_t value)
{
    s->part_masses[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < blockDim.x / SELECT_RUN) {
        uint64_t most = 0;
        for (uint32_t i = threadIdx.x * SELECT_RUN; i < (threadIdx.x + 1) * SELECT_RUN; i++)
            most = max(most, s->part_masses[i]);
        s->group_masses[threadIdx.x] = most;
    }
    __syncthreads();
    uint64_t most = 0;
    for (uint32_t i = 0; i < blockDim.x / SELECT_RUN; i++)
        most = max(most, s->group_masses[i]);
    __syncthreads();
    return most;
}

__device__ static void total_best(const struct sample_args *a, const struct sample_row *row,
                                  struct sample_total *t)
{
    *t = {0, 0, 0, 0, 0, 0};
    for (int i = 0; i < a->f.n_chunks; i++) {
        t->best = max(t->best, row->chunks[i].best);
        t->n_broken += row->chunks[i].n_broken;
        t->n_finite += row->chunks[i].n_finite;
    }
}

__device__ static void total_masses(const struct sample_args *a, const struct sample_row *row,
                                    struct sample_total *t)
{
    for (int i = 0; i < a->f.n_chunks; i++) {
        t->mass += row->chunks[i].mass;
        t->raw_mass += row->chunks[i].raw_mass;
        t->n_candidates += row->chunks[i].n_candidates;
    }
}

/* The bins are read where something is looked for by value. */
__device__ static bool needs_bins(const struct cuda_live *live)
{
    return live->n_logprobs > 0 || (live->temperature > 0 && (live->top_k > 0 || live->top_p < 1));
}

/* best = max over the chunk of (key, smaller id first); n_broken, n_finite. Wanted rows go to the
 * host instead. */
__global__ static void sample_scan(struct sample_args a)
{
    CUDA_SHARED(shared);
    struct select_shared *s = (struct select_shared *)shared;
    struct sample_row row;
    if (!row_of(&a, &row))
        return;
    int first = (int)blockIdx.x * CUDA_SAMPLE_CHUNK;
    int last = min(a.vocab_size, first + CUDA_SAMPLE_CHUNK);
    if (row.live->wanted_place >= 0) {
        float *to = a.batch->wanted_logits + (size_t)row.live->wanted_place * (size_t)a.vocab_size;
        select_each(row.logits, first, last, (int)threadIdx.x, (int)blockDim.x,
                    [&](int i, float logit) { to[i] = logit; });
        if (blockIdx.x == 0 && threadIdx.x == 0)
            row.outcome->has_logits = true;
        return;
    }
    uint64_t best = 0;
    uint32_t n_broken = 0, n_finite = 0;
    select_each(row.logits, first, last, (int)threadIdx.x, (int)blockDim.x,
                [&](int i, float logit) {
                    best = max(best, select_rank(select_key(logit), i));
                    n_broken += is_broken(logit);
                    n_finite += !is_minus_infinity(logit);
                });
    best = block_max(s, best);
    struct select_sum counts = select_add(s, n_broken, n_finite);
    if (threadIdx.x == 0) {
        struct cuda_sample_chunk *chunk = &row.chunks[blockIdx.x];
        chunk->best = best;
        chunk->n_broken = (uint32_t)counts.mass;
        chunk->n_finite = counts.count;
    }
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < SELECT_BINS;
         i += gridDim.x * blockDim.x) {
        row.masses[i] = 0;
        row.counts[i] = 0;
    }
}

/* Masses and number of the chunk's candidates, those that min-p leaves. By bin: how many entries,
 * candidates or not, and the candidates' masses. */
__global__ static void sample_weigh(struct sample_args a)
{
    CUDA_SHARED(shared);
    struct select_shared *s = (struct select_shared *)shared;
    struct sample_row row;
    struct sample_total total;
    if (!row_of(&a, &row))
        return;
    const struct cuda_live live = *row.live;
    bool is_drawn = live.temperature > 0, has_logprobs = live.n_logprobs > 0;
    if (live.wanted_place >= 0 || (!is_drawn && !has_logprobs))
        return;
    total_best(&a, &row, &total);
    if (total.n_broken > 0 || total.n_finite == 0)
        return;
    double largest = (double)select_logit((uint32_t)(total.best >> 32));
    const struct select_weights w = {largest, (double)live.temperature, a.scale};
    const struct select_weights raw = {largest, 1.0, a.scale};
    bool has_bins = needs_bins(&live);
    if (has_bins)
        select_clear(s);

    int first = (int)blockIdx.x * CUDA_SAMPLE_CHUNK;
    int last = min(a.vocab_size, first + CUDA_SAMPLE_CHUNK);
    uint64_t mass = 0, raw_mass = 0;
    uint32_t n_candidates = 0;
    struct select_run run = {0, 0, 0};
    select_each(row.logits, first, last, (int)threadIdx.x, (int)blockDim.x, [&](int, float logit) {
        uint64_t one = 0;
        if (is_minus_infinity(logit))
            return;
        double exponent = is_drawn ? select_exponent(&w, logit) : 0;
        bool is_candidate = is_drawn && exponent >= live.least_exponent;
        if (is_candidate) {
            one = select_mass_of(&w, exponent);
            mass += one;
            n_candidates++;
        }
        if (has_logprobs)
            raw_mass += select_mass_of(&raw, select_exponent(&raw, logit));
        if (has_bins)
            select_count(s, &run, select_first_bin(select_key(logit)), one);
    });
    select_flush(s, &run);
    struct select_sum candidates = select_add(s, mass, n_candidates);
    struct select_sum all = select_add(s, raw_mass, 0);
    if (threadIdx.x == 0) {
        struct cuda_sample_chunk *chunk = &row.chunks[blockIdx.x];
        chunk->mass = candidates.mass;
        chunk->n_candidates = candidates.count;
        chunk->raw_mass = all.mass;
    }
    for (uint32_t i = threadIdx.x; has_bins && i < SELECT_BINS; i += blockDim.x)
        if (s->counts[i] > 0) {
            cuda_atomic_add(&row.counts[i], s->counts[i]);
            cuda_atomic_add(&row.masses[i], s->masses[i]);
        }
}

/* The candidate, in order of ids, at which the mass reaches the goal: first its chunk, then the
 * thread's share of it, then itself. */
__device__ static int32_t draw_by_id(struct select_shared *s, const struct sample_args *a,
                                     const struct sample_row *row, const struct select_weights *w,
                                     struct select_goal goal)
{
    struct select_sum before = {0, 0};
    int chunk = 0;
    for (; chunk + 1 < a->f.n_chunks; chunk++) {
        if (before.mass + row->chunks[chunk].mass >= goal.limit)
            break;
        before.mass += row->chunks[chunk].mass;
    }
    int first = chunk * CUDA_SAMPLE_CHUNK;
    int last = min(a->vocab_size, first + CUDA_SAMPLE_CHUNK);
    int each = CUDA_SAMPLE_CHUNK / (int)blockDim.x;
    int from = min(last, first + (int)threadIdx.x * each), to = min(last, from + each);
    uint64_t mass = 0;
    for (int i = from; i < to; i++) {
        double exponent = select_exponent(w, row->logits[i]);
        mass += exponent >= row->live->least_exponent ? select_mass_of(w, exponent) : 0;
    }
    s->part_masses[threadIdx.x] = mass;
    s->part_counts[threadIdx.x] = 0;
    select_group(s);
    if (threadIdx.x == 0) {
        int id = first + (int)select_part(s, goal, &before) * each;
        for (; id + 1 < last; id++) {
            double exponent = select_exponent(w, row->logits[id]);
            before.mass += exponent >= row->live->least_exponent ? select_mass_of(w, exponent) : 0;
            if (before.mass >= goal.limit)
                break;
        }
        s->place = (uint32_t)id;
    }
    __syncthreads();
    return (int32_t)s->place;
}

/* The mass up to where the goal lies, among a list's entries; s->place is its entry. */
__device__ static uint64_t mass_to(struct select_shared *s, struct select_goal goal)
{
    select_bin(s, goal, {0, 0});
    return s->before.mass + s->masses[s->place];
}

__device__ static struct select_goal top_p_goal(const struct cuda_live *live, uint64_t mass)
{
    uint64_t limit = (uint64_t)ceil((double)live->top_p * (double)mass);
    return {limit > 0 ? limit : 1, true};
}

/* The first entry whose mass, with those before it, is more than u * mass. */
__device__ static struct select_goal draw_goal(const struct cuda_live *live, uint64_t mass)
{
    return {(uint64_t)((unsigned __int128)live->uniform * mass >> 53) + 1, true};
}

/* Candidates are the first n_candidates of the order. Top-k cuts them by count, top-p what is left
 * by mass, and the draw goes by value. In the list of the first entries where that is short enough
 * to be one, else in the row. */
__device__ static int32_t draw_by_value(struct select_list *list, const struct sample_args *a,
                                        const struct sample_row *row, bool cuts_k, uint64_t mass,
                                        const struct select_weights *w)
{
    struct select_shared *s = &list->select;
    const struct cuda_live *live = row->live;
    const float *logits = row->logits;
    const struct select_goal top_k = {(uint64_t)live->top_k, false};
    int n = a->vocab_size;
    uint32_t n_list = select_first(list, logits, n, row->masses, row->counts,
                                   cuts_k ? top_k : top_p_goal(live, mass));
    if (n_list > 0) {
        select_weigh_list(list, n_list, w);
        mass = cuts_k ? mass_to(s, top_k) : mass;
        mass = live->top_p < 1 ? mass_to(s, top_p_goal(live, mass)) : mass;
        select_bin(s, draw_goal(live, mass), {0, 0});
        return select_rank_id(list->ranks[s->place]);
    }
    struct select_cut cut;
    if (cuts_k) {
        cut = select_find(s, logits, n, row->masses, row->counts, w, top_k);
        mass = select_cut_mass(&cut);
    }
    if (live->top_p < 1) {
        cut = select_find(s, logits, n, row->masses, row->counts, w, top_p_goal(live, mass));
        mass = select_cut_mass(&cut);
    }
    cut = select_find(s, logits, n, row->masses, row->counts, w, draw_goal(live, mass));
    return select_id(s, logits, n, &cut);
}

/* log-probability of id, and the n_logprobs largest in order, from the raw logits. */
__device__ static void write_logprobs(struct select_list *list, const struct sample_args *a,
                                      const struct sample_row *row,
                                      const struct sample_total *total, double largest, int32_t id)
{
    struct select_shared *s = &list->select;
    const float *logits = row->logits;
    double log_total = largest + log((double)total->raw_mass / a->scale);
    uint32_t n = min((uint32_t)row->live->n_logprobs, total->n_finite);
    const struct select_goal goal = {n, false};
    if (select_first(list, logits, a->vocab_size, row->masses, row->counts, goal) == 0) {
        const struct select_weights none = {0, 1, 0};
        struct select_cut cut =
            select_find(s, logits, a->vocab_size, row->masses, row->counts, &none, goal);
        int32_t last = select_id(s, logits, a->vocab_size, &cut);
        select_collect(list, logits, a->vocab_size, select_rank(cut.key, last), ~UINT64_C(0));
    }
    if (threadIdx.x < n) {
        int32_t top_id = select_rank_id(list->ranks[threadIdx.x]);
        row->outcome->top_ids[threadIdx.x] = top_id;
        row->outcome->top_logprobs[threadIdx.x] = (float)((double)logits[top_id] - log_total);
    }
    if (threadIdx.x == 0) {
        row->outcome->logprob = (float)((double)logits[id] - log_total);
        row->outcome->n_top = n;
    }
}

__global__ static void sample_pick(struct sample_args a)
{
    CUDA_SHARED(shared);
    struct select_list *list = (struct select_list *)shared;
    struct sample_row row;
    struct sample_total total;
    if (!row_of(&a, &row) || row.live->wanted_place >= 0)
        return;
    total_best(&a, &row, &total);
    if (total.n_broken > 0 || total.n_finite == 0) {
        if (threadIdx.x == 0) {
            row.outcome->failure = STATUS_CORRUPT;
            row.outcome->is_exit = false;
        }
        return;
    }
    if (row.live->temperature > 0 || row.live->n_logprobs > 0)
        total_masses(&a, &row, &total); /* else nobody has weighed */
    double largest = (double)select_logit((uint32_t)(total.best >> 32));
    const struct select_weights w = {largest, (double)row.live->temperature, a.scale};
    int32_t id = select_rank_id(total.best);
    bool cuts_k = row.live->top_k > 0 && (uint32_t)row.live->top_k < total.n_candidates;
    if (row.live->temperature > 0 && (cuts_k || row.live->top_p < 1))
        id = draw_by_value(list, &a, &row, cuts_k, total.mass, &w);
    else if (row.live->temperature > 0)
        id = draw_by_id(&list->select, &a, &row, &w, draw_goal(row.live, total.mass));
    if (row.live->n_logprobs > 0)
        write_logprobs(list, &a, &row, &total, largest, id);
    if (threadIdx.x == 0)
        row.outcome->id = id;
}

/* 2^s: V entries of mass 1 at most stay below 2^63. */
static double mass_scale(int vocab_size)
{
    int bits = 0;
    while ((1 << bits) < vocab_size && bits < 30)
        bits++;
    return (double)(UINT64_C(1) << (63 - bits));
}

extern "C" cudaError_t cuda_sample_launch(const struct cuda_batch *batch,
                                          const struct cuda_finish_device *f, const float *logits,
                                          int vocab_size, int max_heads, cudaStream_t stream)
{
    /* Few threads where a row is short: most of their time is barriers. */
    bool is_short = vocab_size < 2 * CUDA_SAMPLE_CHUNK;
    dim3 piece_threads(is_short ? 128 : 256), row_threads(is_short ? 128 : SELECT_MAX_THREADS);
    cudaError_t code = cudaSuccess;
    for (int first = 0; first < max_heads && code == cudaSuccess; first += f->n_wave) {
        unsigned n = (unsigned)(max_heads - first < f->n_wave ? max_heads - first : f->n_wave);
        const struct sample_args args = {batch,      *f,    logits,
                                         vocab_size, first, mass_scale(vocab_size)};
        dim3 pieces((unsigned)f->n_chunks, n), rows(1, n);
        code = CUDA_LAUNCH(sample_scan, pieces, piece_threads, sizeof(struct select_shared), stream,
                           args);
        if (code == cudaSuccess)
            code = CUDA_LAUNCH(sample_weigh, pieces, piece_threads, sizeof(struct select_shared),
                               stream, args);
        if (code == cudaSuccess)
            code = CUDA_LAUNCH(sample_pick, rows, row_threads, sizeof(struct select_list), stream,
                               args);
    }
    return code;
}
