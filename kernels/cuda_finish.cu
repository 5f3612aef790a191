/* Gate, exit rule, the list of rows that exit, and their rows for the head. */
#include "kernels/cuda_device.cuh"
#include "kernels/cuda_finish.h"
#include "kernels/exit_step.h"

/* A block per row: its sum has one order for a given d, whatever else is computed. */
enum { GATE_THREADS = 128, LIST_THREADS = 256, GATHER_THREADS = 256, WARP = 32 };

/* sigmoid(sum_j w[j] * x[j] + bias): thread t adds j = t, t + 128, ...; then lanes as a butterfly,
 * then warps in order. Valid on thread 0. `sums` is shared, one a warp. */
__device__ static float gate_row(const float *x, const float *w, const float *bias, int d,
                                 float *sums)
{
    float sum = 0.0f;
    for (int j = (int)threadIdx.x; j < d; j += GATE_THREADS)
        sum = cuda_add_rn(sum, cuda_mul_rn(w[j], x[j]));
    sum = cuda_warp_sum(sum);
    if (threadIdx.x % WARP == 0)
        sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    float lambda = 0.0f;
    if (threadIdx.x == 0) {
        float total = sums[0];
        for (int i = 1; i < GATE_THREADS / WARP; i++)
            total += sums[i];
        lambda = (float)(1.0 / (1.0 + exp(-((double)total + (double)bias[0]))));
    }
    __syncthreads(); /* before the next row's sums */
    return lambda;
}

/* NaN and infinities, by their bits. */
__device__ static bool is_finite(float x)
{
    return fabsf(x) <= 3.402823466e38f;
}

__device__ static void finish_live(const struct cuda_live *live, float lambda,
                                   struct kernels_outcome *outcome, int32_t *is_exit)
{
    struct exit_state state = live->exit;
    bool is_failed = !is_finite(lambda), exits = false;
    if (!is_failed) {
        const struct exit_step step = {live->is_last != 0, live->may_exit != 0,
                                       live->is_forced != 0, live->threshold};
        exits = exit_step_take(&step, lambda, &state);
    }
    outcome->failure = is_failed ? STATUS_CORRUPT : STATUS_OK;
    outcome->lambda = lambda;
    outcome->exit = state;
    outcome->is_exit = exits;
    outcome->has_logits = false;
    outcome->id = -1;
    outcome->logprob = 0.0f;
    outcome->n_top = 0;
    *is_exit = exits;
}

__global__ static void finish_gate(const struct cuda_batch *batch, int32_t *is_exit, const float *y,
                                   int d, const float *w, const float *bias)
{
    CUDA_SHARED(shared);
    float *sums = (float *)shared;
    for (int i = (int)blockIdx.x; i < batch->n_live; i += (int)gridDim.x) {
        const struct cuda_live *live = &batch->live[i];
        float lambda = 0.0f;
        if (w != NULL)
            lambda = gate_row(y + (size_t)live->row * (size_t)d, w, bias, d, sums);
        if (threadIdx.x == 0)
            finish_live(live, lambda, &batch->outcomes[i], &is_exit[i]);
    }
}

__global__ static void gate_rows(float *lambda, const float *x, struct cuda_gate_rows rows, int d,
                                 const float *w, const float *bias)
{
    CUDA_SHARED(shared);
    int i = (int)blockIdx.x;
    float value = gate_row(x + (size_t)rows.rows[i] * (size_t)d, w, bias, d, (float *)shared);
    if (threadIdx.x == 0)
        lambda[i] = value;
}

/* heads[k] = the k-th i with is_exit[i]. One block, so that the order is the batch's. */
__global__ static void finish_list(const struct cuda_batch *batch, const int32_t *is_exit,
                                   int32_t *heads, int32_t *n_heads, int max_heads)
{
    CUDA_SHARED(shared);
    uint32_t *warp_counts = (uint32_t *)shared;
    int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, n = 0;
    for (int first = 0; first < batch->n_live; first += LIST_THREADS) {
        int i = first + (int)threadIdx.x;
        bool exits = i < batch->n_live && is_exit[i] != 0;
        uint32_t set = cuda_ballot(exits);
        if (lane == 0)
            warp_counts[warp] = (uint32_t)__popc(set);
        __syncthreads();
        int place = n + __popc(set & ((UINT32_C(1) << lane) - 1));
        for (int j = 0; j < LIST_THREADS / WARP; j++) {
            place += j < warp ? (int)warp_counts[j] : 0;
            n += (int)warp_counts[j];
        }
        if (exits && place < max_heads) {
            heads[place] = i;
        } else if (exits) {
            batch->outcomes[i].failure = STATUS_INTERNAL;
            batch->outcomes[i].is_exit = false;
        }
        __syncthreads(); /* before the next counts */
    }
    if (threadIdx.x == 0)
        *n_heads = n < max_heads ? n : max_heads;
}

/* head_rows[i][j] = bf16(y[row of heads[i]][j]); rows without a head are zeros. */
__global__ static void finish_gather(const struct cuda_batch *batch, const int32_t *heads,
                                     const int32_t *n_heads, uint16_t *head_rows, const float *y,
                                     int d)
{
    int i = (int)blockIdx.x;
    bool is_there = i < *n_heads;
    const float *from = is_there ? y + (size_t)batch->live[heads[i]].row * (size_t)d : NULL;
    uint16_t *to = head_rows + (size_t)i * (size_t)d;
    for (int j = (int)threadIdx.x; j < d; j += GATHER_THREADS)
        to[j] = is_there ? cuda_float_to_bf16(from[j]) : (uint16_t)0;
}

extern "C" cudaError_t cuda_finish_launch_gate(const struct cuda_batch *batch,
                                               const struct cuda_finish_device *f, const float *y,
                                               int d, const float *w, const float *bias,
                                               int n_blocks, cudaStream_t stream)
{
    return CUDA_LAUNCH(finish_gate, dim3((unsigned)n_blocks), dim3(GATE_THREADS),
                       GATE_THREADS / WARP * sizeof(float), stream, batch, f->is_exit, y, d, w,
                       bias);
}

extern "C" cudaError_t cuda_finish_launch_list(const struct cuda_batch *batch,
                                               const struct cuda_finish_device *f, int max_heads,
                                               cudaStream_t stream)
{
    return CUDA_LAUNCH(finish_list, dim3(1), dim3(LIST_THREADS),
                       LIST_THREADS / WARP * sizeof(uint32_t), stream, batch, f->is_exit, f->heads,
                       f->n_heads, max_heads);
}

extern "C" cudaError_t cuda_finish_launch_gather(const struct cuda_batch *batch,
                                                 const struct cuda_finish_device *f,
                                                 uint16_t *head_rows, const float *y, int d,
                                                 int max_heads, cudaStream_t stream)
{
    return CUDA_LAUNCH(finish_gather, dim3((unsigned)max_heads), dim3(GATHER_THREADS), 0, stream,
                       batch, f->heads, f->n_heads, head_rows, y, d);
}

extern "C" cudaError_t cuda_gate_launch(float *lambda, const float *x,
                                        const struct cuda_gate_rows *rows, int n, int d,
                                        const float *w, const float *bias, cudaStream_t stream)
{
    return CUDA_LAUNCH(gate_rows, dim3((unsigned)n), dim3(GATE_THREADS),
                       GATE_THREADS / WARP * sizeof(float), stream, lambda, x, *rows, d, w, bias);
}
