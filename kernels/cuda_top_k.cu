/* The largest entries of each row in order, any number of them: kernels_top_k. */
#include "kernels/cuda_finish.h"
#include "kernels/cuda_list.cuh"

/* ids[j], values[j] = the j-th entry of logits [n] by value, ties by id, NaN last; a block a row.
 * List by list: where does it end, who is in it. */
__global__ static void top_k_rows(int32_t *ids, float *values, const float *logits, int n, int top)
{
    CUDA_SHARED(shared);
    struct select_list *list = (struct select_list *)shared;
    struct select_shared *s = &list->select;
    const struct select_weights none = {0, 1, 0};
    const float *row = logits + (size_t)blockIdx.x * (size_t)n;
    int32_t *row_ids = ids + (size_t)blockIdx.x * (size_t)top;
    float *row_values = values + (size_t)blockIdx.x * (size_t)top;
    uint64_t done = ~UINT64_C(0); /* ranks from here up are written */
    for (int first = 0; first < top; first += SELECT_BINS) {
        int n_list = min((int)SELECT_BINS, top - first);
        const struct select_goal goal = {(uint64_t)(first + n_list), false};
        struct select_cut cut = select_find(s, row, n, NULL, NULL, &none, goal);
        uint64_t least = select_rank(cut.key, select_id(s, row, n, &cut));
        select_collect(list, row, n, least, done);
        for (int i = (int)threadIdx.x; i < n_list; i += (int)blockDim.x) {
            int32_t id = select_rank_id(list->ranks[i]);
            row_ids[first + i] = id;
            row_values[first + i] = row[id];
        }
        done = least;
    }
}

extern "C" cudaError_t cuda_top_k_launch(int32_t *ids, float *values, const float *logits, int n,
                                         int vocab_size, int top, cudaStream_t stream)
{
    unsigned n_threads = vocab_size < 16384 ? 128 : SELECT_MAX_THREADS;
    return CUDA_LAUNCH(top_k_rows, dim3((unsigned)n), dim3(n_threads), sizeof(struct select_list),
                       stream, ids, values, logits, vocab_size, top);
}
