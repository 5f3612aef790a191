/* Rotary positions with the append to the paged KV pool, and SwiGLU: what happens to a row's
 * elements one by one. */
#include "kernels/cuda_rows.h"

#include "kernels/cuda_rows.cuh"

enum { ROPE_THREADS = 128, SWIGLU_THREADS = 256 };

/* cos[i][j] = cos(position_i * theta^(-2j / D)), sin likewise, in double; rows behind the batch get
 * the angles of position 0. */
static __global__ void rope_tables_kernel(const struct cuda_batch *batch, float *cos_table,
                                          float *sin_table, int half, double theta, int n)
{
    const size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= (size_t)n * (size_t)half)
        return;
    const int i = (int)(at / (size_t)half), j = (int)(at % (size_t)half);
    const double position = i < batch->n_rows ? (double)batch->positions[i] : 0.0;
    const double angle = position * pow(theta, -2.0 * j / (2.0 * half));
    cos_table[at] = (float)cos(angle);
    sin_table[at] = (float)sin(angle);
}

/* Where K of a row lies in the pool, and how far from there V, and from one kv head to the next. */
struct rope_place {
    uint16_t *k;
    size_t to_v, to_head;
};

static __device__ struct rope_place rope_place_of(const struct cuda_batch *batch, int row,
                                                  const struct kernels_kv *kv, int layer)
{
    const struct kernels_segment *segment = &batch->segments[batch->row_segments[row]];
    const int position = batch->positions[row];
    const size_t block =
        (size_t)batch->block_table[segment->first_block + position / kv->block_size];
    struct rope_place place;
    place.to_v = (size_t)kv->block_size * (size_t)kv->head_dim;
    place.to_head = 2 * place.to_v;
    place.k =
        (uint16_t *)kv->memory.data +
        (block * (size_t)kv->n_layers + (size_t)layer) * (size_t)kv->n_kv_heads * place.to_head +
        (size_t)(position % kv->block_size) * (size_t)kv->head_dim;
    return place;
}

/* For a head x of q or k, j < D/2: x[j] = x[j] c[j] - x[j + D/2] s[j], x[j + D/2] = x[j + D/2] c[j]
 * + x[j] s[j]; pool K = k, pool V = v. A thread takes WIDTH pairs of one head, or WIDTH elements of
 * v. */
template <int WIDTH>
static __global__ void __launch_bounds__(ROPE_THREADS)
    rope_append_kernel(const struct cuda_batch *batch, uint16_t *qkv, int n_heads,
                       const float *cos_table, const float *sin_table, struct kernels_kv kv,
                       int layer, int blocks_per_row)
{
    const int row = (int)blockIdx.x / blocks_per_row;
    if (row >= batch->n_rows)
        return;
    const int d = kv.head_dim, half = d / 2, per_head = half / WIDTH;
    const int n_rotated = (n_heads + kv.n_kv_heads) * per_head;
    const int n_copied = kv.n_kv_heads * (d / WIDTH);
    const int item = (int)(blockIdx.x % (unsigned)blocks_per_row) * ROPE_THREADS + (int)threadIdx.x;
    if (item >= n_rotated + n_copied)
        return;
    uint16_t *from = qkv + (size_t)row * (size_t)(n_heads + 2 * kv.n_kv_heads) * (size_t)d;
    const struct rope_place place = rope_place_of(batch, row, &kv, layer);
    float a[WIDTH], b[WIDTH];
    if (item >= n_rotated) {
        const int at = (item - n_rotated) * WIDTH; /* in v of all heads */
        from += (size_t)(n_heads + kv.n_kv_heads) * (size_t)d + (size_t)at;
        rows_read_half<WIDTH>(a, from);
        rows_write_half<WIDTH>(
            place.k + place.to_v + (size_t)(at / d) * place.to_head + (size_t)(at % d), a);
        return;
    }
    const int head = item / per_head, j = item % per_head * WIDTH;
    from += (size_t)head * (size_t)d + (size_t)j;
    float c[WIDTH], s[WIDTH], low[WIDTH], high[WIDTH];
    rows_read_half<WIDTH>(a, from);
    rows_read_half<WIDTH>(b, from + half);
    rows_read<WIDTH>(c, cos_table + (size_t)row * (size_t)half + j);
    rows_read<WIDTH>(s, sin_table + (size_t)row * (size_t)half + j);
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        low[w] = a[w] * c[w] - b[w] * s[w];
        high[w] = b[w] * c[w] + a[w] * s[w];
    }
    rows_write_half<WIDTH>(from, low);
    rows_write_half<WIDTH>(from + half, high);
    if (head < n_heads)
        return;
    uint16_t *k = place.k + (size_t)(head - n_heads) * place.to_head + j;
    rows_write_half<WIDTH>(k, low);
    rows_write_half<WIDTH>(k + half, high);
}

/* y[i][j] = g / (1 + exp(-g)) * x[i][f + j], g = x[i][j] */
template <int WIDTH>
static __global__ void __launch_bounds__(SWIGLU_THREADS)
    swiglu_kernel(uint16_t *y, const uint16_t *x, int n, int f)
{
    const size_t item = (size_t)blockIdx.x * SWIGLU_THREADS + threadIdx.x;
    const size_t per_row = (size_t)f / WIDTH;
    if (item >= (size_t)n * per_row)
        return;
    const size_t i = item / per_row, j = item % per_row * WIDTH;
    const uint16_t *row = x + i * 2 * (size_t)f;
    float gate[WIDTH], up[WIDTH], out[WIDTH];
    rows_read_half<WIDTH>(gate, row + j);
    rows_read_half<WIDTH>(up, row + f + j);
#pragma unroll
    for (int w = 0; w < WIDTH; w++)
        out[w] = gate[w] / (1.0f + cuda_exp(-gate[w])) * up[w];
    rows_write_half<WIDTH>(y + i * (size_t)f + j, out);
}

/* ---- launchers ----------------------------------------------------------------------------------
 */

extern "C" cudaError_t cuda_rows_rope_tables(cudaStream_t stream, const struct cuda_batch *batch,
                                             float *cos_table, float *sin_table, int head_dim,
                                             double theta, int n)
{
    const int half = head_dim / 2;
    const size_t n_angles = (size_t)n * (size_t)half;
    return CUDA_LAUNCH((rope_tables_kernel), dim3((unsigned)((n_angles + 127) / 128)), dim3(128), 0,
                       stream, batch, cos_table, sin_table, half, theta, n);
}

template <int WIDTH>
static cudaError_t launch_rope(cudaStream_t stream, const struct cuda_batch *batch, void *qkv,
                               int n_heads, const float *cos_table, const float *sin_table,
                               const struct kernels_kv *kv, int layer, int n)
{
    const int items =
        ((n_heads + kv->n_kv_heads) * (kv->head_dim / 2) + kv->n_kv_heads * kv->head_dim) / WIDTH;
    const int blocks_per_row = (items + ROPE_THREADS - 1) / ROPE_THREADS;
    return CUDA_LAUNCH((rope_append_kernel<WIDTH>), dim3((unsigned)n * (unsigned)blocks_per_row),
                       dim3(ROPE_THREADS), 0, stream, batch, (uint16_t *)qkv, n_heads, cos_table,
                       sin_table, *kv, layer, blocks_per_row);
}

extern "C" cudaError_t cuda_rows_rope_append(cudaStream_t stream, const struct cuda_batch *batch,
                                             void *qkv, int n_heads, const float *cos_table,
                                             const float *sin_table, const struct kernels_kv *kv,
                                             int layer, int n)
{
    if (rows_are_wide(qkv, kv->memory.data, kv->head_dim / 2) &&
        rows_are_wide(cos_table, sin_table, kv->head_dim / 2))
        return launch_rope<8>(stream, batch, qkv, n_heads, cos_table, sin_table, kv, layer, n);
    return launch_rope<1>(stream, batch, qkv, n_heads, cos_table, sin_table, kv, layer, n);
}

extern "C" cudaError_t cuda_rows_swiglu(cudaStream_t stream, void *y, const void *x, int n, int f)
{
    const bool is_wide = rows_are_wide(y, x, f);
    const size_t items = (size_t)n * (size_t)f / (is_wide ? 8 : 1);
    const dim3 grid((unsigned)((items + SWIGLU_THREADS - 1) / SWIGLU_THREADS));
    if (is_wide)
        return CUDA_LAUNCH((swiglu_kernel<8>), grid, dim3(SWIGLU_THREADS), 0, stream, (uint16_t *)y,
                           (const uint16_t *)x, n, f);
    return CUDA_LAUNCH((swiglu_kernel<1>), grid, dim3(SWIGLU_THREADS), 0, stream, (uint16_t *)y,
                       (const uint16_t *)x, n, f);
}
