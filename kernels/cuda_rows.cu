/* Moving rows between the store, the embedding, the residual stream and host memory. */
#include "kernels/cuda_rows.h"

#include "kernels/cuda_rows.cuh"

/* x[i][j] = ids[i] >= 0 ? embed[ids[i]][j] : store[slots[i]][j]; rows behind the batch become zero,
 * so that what is computed from them stays finite. */
template <int WIDTH>
static __global__ void load_kernel(const struct cuda_batch *batch, float *x, const float *store,
                                   const void *embed, bool embed_is_f32, int d)
{
    const int i = (int)blockIdx.x;
    const bool is_row = i < batch->n_rows;
    const int id = is_row ? batch->ids[i] : -1;
    const size_t from = is_row ? (size_t)(id >= 0 ? id : batch->slots[i]) * (size_t)d : 0;
    float *to = x + (size_t)i * (size_t)d;
    for (int j = (int)threadIdx.x * WIDTH; j < d; j += (int)blockDim.x * WIDTH) {
        float v[WIDTH];
        if (!is_row)
            rows_zero<WIDTH>(v);
        else if (id < 0)
            rows_read<WIDTH>(v, store + from + j);
        else if (embed_is_f32)
            rows_read<WIDTH>(v, (const float *)embed + from + j);
        else
            rows_read_half<WIDTH>(v, (const uint16_t *)embed + from + j);
        rows_write<WIDTH>(to + j, v);
    }
}

/* store[slots[i]][j] = x[i][j] for the rows of the batch */
template <int WIDTH>
static __global__ void store_kernel(const struct cuda_batch *batch, float *store, const float *x,
                                    int d)
{
    const int i = (int)blockIdx.x;
    if (i >= batch->n_rows)
        return;
    float *to = store + (size_t)batch->slots[i] * (size_t)d;
    const float *from = x + (size_t)i * (size_t)d;
    for (int j = (int)threadIdx.x * WIDTH; j < d; j += (int)blockDim.x * WIDTH) {
        float v[WIDTH];
        rows_read<WIDTH>(v, from + j);
        rows_write<WIDTH>(to + j, v);
    }
}

/* y[i][j] = bf16(x[rows[i]][j]) */
template <int WIDTH>
static __global__ void gather_kernel(uint16_t *y, const float *x, struct cuda_rows_chosen chosen,
                                     int d)
{
    const int i = (int)blockIdx.x;
    const float *from = x + (size_t)chosen.rows[i] * (size_t)d;
    uint16_t *to = y + (size_t)i * (size_t)d;
    for (int j = (int)threadIdx.x * WIDTH; j < d; j += (int)blockDim.x * WIDTH) {
        float v[WIDTH];
        rows_read<WIDTH>(v, from + j);
        rows_write_half<WIDTH>(to + j, v);
    }
}

/* host[i][j] = store[slots[i]][j], or the other way. A message's rows lie at any multiple of four
 * bytes, so each row decides for itself whether it moves in wide pieces. */
static __global__ void list_kernel(struct cuda_rows_list list, float *store, bool is_out, int d)
{
    float *host = list.host[blockIdx.x];
    float *row = store + (size_t)list.slots[blockIdx.x] * (size_t)d;
    float *to = is_out ? host : row;
    const float *from = is_out ? row : host;
    const int n_wide = rows_are_wide(to, from, d) ? d / 4 : 0;
    for (int j = (int)threadIdx.x; j < n_wide; j += (int)blockDim.x)
        ((uint4 *)to)[j] = ((const uint4 *)from)[j];
    for (int j = n_wide * 4 + (int)threadIdx.x; j < d; j += (int)blockDim.x)
        to[j] = from[j];
}

/* ---- launchers ----------------------------------------------------------------------------------
 */

extern "C" cudaError_t cuda_rows_load(cudaStream_t stream, const struct cuda_batch *batch, float *x,
                                      const float *store, const void *embed, bool embed_is_f32,
                                      int n, int d)
{
    if (rows_are_wide(x, store, d) && rows_are_wide(embed, NULL, d))
        return CUDA_LAUNCH((load_kernel<8>), dim3(n), dim3(rows_threads(d, 8)), 0, stream, batch, x,
                           store, embed, embed_is_f32, d);
    return CUDA_LAUNCH((load_kernel<1>), dim3(n), dim3(rows_threads(d, 1)), 0, stream, batch, x,
                       store, embed, embed_is_f32, d);
}

extern "C" cudaError_t cuda_rows_store(cudaStream_t stream, const struct cuda_batch *batch,
                                       float *store, const float *x, int n, int d)
{
    if (rows_are_wide(store, x, d))
        return CUDA_LAUNCH((store_kernel<4>), dim3(n), dim3(rows_threads(d, 4)), 0, stream, batch,
                           store, x, d);
    return CUDA_LAUNCH((store_kernel<1>), dim3(n), dim3(rows_threads(d, 1)), 0, stream, batch,
                       store, x, d);
}

extern "C" cudaError_t cuda_rows_gather(cudaStream_t stream, void *y, const float *x,
                                        const struct cuda_rows_chosen *chosen, int n_selected,
                                        int d)
{
    if (rows_are_wide(y, x, d))
        return CUDA_LAUNCH((gather_kernel<8>), dim3(n_selected), dim3(rows_threads(d, 8)), 0,
                           stream, (uint16_t *)y, x, *chosen, d);
    return CUDA_LAUNCH((gather_kernel<1>), dim3(n_selected), dim3(rows_threads(d, 1)), 0, stream,
                       (uint16_t *)y, x, *chosen, d);
}

extern "C" cudaError_t cuda_rows_copy_out(cudaStream_t stream, const struct cuda_rows_list *list,
                                          const float *store, int n, int d)
{
    return CUDA_LAUNCH((list_kernel), dim3(n), dim3(rows_threads(d, 4)), 0, stream, *list,
                       (float *)store, true, d);
}

extern "C" cudaError_t cuda_rows_copy_in(cudaStream_t stream, const struct cuda_rows_list *list,
                                         float *store, int n, int d)
{
    return CUDA_LAUNCH((list_kernel), dim3(n), dim3(rows_threads(d, 4)), 0, stream, *list, store,
                       false, d);
}
