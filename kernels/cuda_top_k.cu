/* The largest entries of each row in order, any number of them: kernels_top_k. */
#include "kernels/cuda_finish.h"
#include "kernels/cuda_select.cuh"

/* So many entries are put in order at a time, in shared memory. */
enum { TOP_K_GROUP = 512 };

struct top_k_shared {
    struct select_shared select;
    uint64_t ranks[TOP_K_GROUP];
};

/* ids[j], values[j] = the j-th entry of logits [n] by value, ties by id, NaN last; a block a row.
 * Group by group: where does it end, who lies in it, in which order. */
__global__ static void top_k_rows(int32_t *ids, float *values, const float *logits, int n, int top)
{
    CUDA_SHARED(shared);
    struct top_k_shared *t = (struct top_k_shared *)shared;
    struct select_shared *s = &t->select;
    const struct select_weights none = {0, 1, 0};
    const float *row = logits + (size_t)blockIdx.x * (size_t)n;
    int32_t *row_ids = ids + (size_t)blockIdx.x * (size_t)top;
    float *row_values = values + (size_t)blockIdx.x * (size_t)top;
    uint64_t done = ~UINT64_C(0); /* ranks from here up are written */
    for (int first = 0; first < top; first += TOP_K_GROUP) {
        int n_group = min(TOP_K_GROUP, top - first);
        const struct select_goal goal = {(uint64_t)(first + n_group), false};
        struct select_cut cut = select_find(s, row, n, NULL, NULL, &none, goal);
        uint64_t least = select_rank(cut.key, select_id(s, row, n, &cut));
        __syncthreads();
        if (threadIdx.x == 0)
            s->place = 0;
        __syncthreads();
        select_each(row, 0, n, (int)threadIdx.x, (int)blockDim.x, [&](int i, float logit) {
            uint64_t rank = select_rank(select_key(logit), i);
            if (rank >= least && rank < done)
                t->ranks[cuda_atomic_add(&s->place, 1u)] = rank;
        });
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n_group; i += (int)blockDim.x) {
            int32_t id = select_rank_id(t->ranks[i]);
            int place = first;
            for (int j = 0; j < n_group; j++)
                place += t->ranks[j] > t->ranks[i];
            row_ids[place] = id;
            row_values[place] = row[id];
        }
        __syncthreads();
        done = least;
    }
}

extern "C" cudaError_t cuda_top_k_launch(int32_t *ids, float *values, const float *logits, int n,
                                         int vocab_size, int top, cudaStream_t stream)
{
    unsigned n_threads = vocab_size < 16384 ? 128 : SELECT_MAX_THREADS;
    return CUDA_LAUNCH(top_k_rows, dim3((unsigned)n), dim3(n_threads), sizeof(struct top_k_shared),
                       stream, ids, values, logits, vocab_size, top);
}
