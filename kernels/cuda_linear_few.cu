/* Products of few rows at the speed at which weights come from memory.
 *
 * Libraries cut a product into tiles of outputs, and without cutting k a decode's narrow layers are
 * too few tiles to keep all of the chip loading. Here a block has 16 outputs and its eight warps
 * share k between them, always in the same way; many loads are under way at once in each.
 *
 * Order of an output's sum, whatever n is: warp v of 8 adds, on a tensor core, the elements
 * [32 s, 32 s + 32) of k for s = v, v + 8, ..., those of a step as two sums of 16; then the warps'
 * sums ascending. */
#include "kernels/cuda_linear_kernels.h"

#include "kernels/cuda_device.cuh"

enum {
    FEW_WARPS = 8,
    FEW_OUTPUTS = 16, /* of a block: the rows of a tensor core's tile */
    FEW_STEP = 32,    /* elements of k a warp takes at once: 16 bytes a lane of each of its rows */
    FEW_TILE = 8,     /* rows of x a tile has */
};

/* A lane's elements [at, at + 8) of its two rows of W and of its row of each tile of x; zeros past
 * the last. */
template <int TILES>
static __device__ __forceinline__ void few_load(uint4 a[2], uint4 b[TILES], const uint16_t *w_low,
                                                const uint16_t *w_high, const uint16_t *x, int n,
                                                int k, int at, int group)
{
    const uint4 zero = make_uint4(0, 0, 0, 0);
    a[0] = at < k ? cuda_load_stream((const uint4 *)(w_low + at)) : zero;
    a[1] = at < k ? cuda_load_stream((const uint4 *)(w_high + at)) : zero;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int row = t * FEW_TILE + group;
        b[t] =
            at < k && row < n ? *(const uint4 *)(x + (size_t)row * (size_t)k + (size_t)at) : zero;
    }
}

/* Lane l has of W the rows l / 4 and l / 4 + 8, of x the row l / 4, and of each the eight elements
 * of k from 8 (l % 4) on. A tensor core wants other places of k, but any will do as long as both
 * sides use the same: pair p of all lanes counts as k = 2 (l % 4) of the first or second half. */
template <int TILES, int AHEAD>
static __global__ void __launch_bounds__(FEW_WARPS * 32, 2)
    few_kernel(void *y, bool y_is_f32, const uint16_t *x, const uint16_t *w, int n, int m, int k,
               int ld)
{
    CUDA_SHARED(shared);
    float *partial = (float *)shared; /* [warp][TILES * FEW_TILE][FEW_OUTPUTS] */
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int group = lane / 4, place = lane % 4 * 8;
    const int first = (int)blockIdx.x * FEW_OUTPUTS;
    /* Outputs past the last repeat it and are not stored. */
    const int low = first + group < m ? first + group : m - 1;
    const int high = first + group + 8 < m ? first + group + 8 : m - 1;
    const uint16_t *w_low = w + (size_t)low * (size_t)k, *w_high = w + (size_t)high * (size_t)k;
    float sum[TILES][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        sum[t][0] = sum[t][1] = sum[t][2] = sum[t][3] = 0.0f;
    uint4 a[AHEAD][2], b[AHEAD][TILES];
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
        few_load<TILES>(a[s], b[s], w_low, w_high, x, n, k,
                        (warp + s * FEW_WARPS) * FEW_STEP + place, group);
    for (int from = warp * FEW_STEP; from < k; from += AHEAD * FEW_WARPS * FEW_STEP) {
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            const uint32_t one[4] = {a[s][0].x, a[s][1].x, a[s][0].y, a[s][1].y};
            const uint32_t two[4] = {a[s][0].z, a[s][1].z, a[s][0].w, a[s][1].w};
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                const uint32_t x_one[2] = {b[s][t].x, b[s][t].y}, x_two[2] = {b[s][t].z, b[s][t].w};
                cuda_mma_bf16(sum[t], one, x_one);
                cuda_mma_bf16(sum[t], two, x_two);
            }
            /* At once the step that is AHEAD further: memory never waits for a round to end. */
            few_load<TILES>(a[s], b[s], w_low, w_high, x, n, k,
                            from + (AHEAD + s) * FEW_WARPS * FEW_STEP + place, group);
        }
    }
    /* sum[0], sum[1]: output `group`, rows 2 (l % 4) and the next; sum[2], sum[3]: output + 8. */
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const int row = t * FEW_TILE + lane % 4 * 2 + c % 2;
            partial[(warp * TILES * FEW_TILE + row) * FEW_OUTPUTS + group + c / 2 * 8] = sum[t][c];
        }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < TILES * FEW_TILE * FEW_OUTPUTS; i += FEW_WARPS * 32) {
        const int row = i / FEW_OUTPUTS, output = first + i % FEW_OUTPUTS;
        if (row >= n || output >= m)
            continue;
        float total = partial[i];
#pragma unroll
        for (int v = 1; v < FEW_WARPS; v++)
            total += partial[v * TILES * FEW_TILE * FEW_OUTPUTS + i];
        const size_t at = (size_t)row * (size_t)ld + (size_t)output;
        if (y_is_f32)
            ((float *)y)[at] = total;
        else
            ((uint16_t *)y)[at] = cuda_float_to_bf16(total);
    }
}

extern "C" cudaError_t cuda_linear_few(cudaStream_t stream, void *y, bool y_is_f32, const void *x,
                                       const void *w, int n, int m, int k, int ld)
{
    const dim3 grid((unsigned)((m + FEW_OUTPUTS - 1) / FEW_OUTPUTS)), block(FEW_WARPS * 32);
    const size_t tile = FEW_WARPS * FEW_TILE * FEW_OUTPUTS * sizeof(float);
    if (n <= FEW_TILE)
        return CUDA_LAUNCH((few_kernel<1, 8>), grid, block, tile, stream, y, y_is_f32,
                           (const uint16_t *)x, (const uint16_t *)w, n, m, k, ld);
    return CUDA_LAUNCH((few_kernel<2, 4>), grid, block, 2 * tile, stream, y, y_is_f32,
                       (const uint16_t *)x, (const uint16_t *)w, n, m, k, ld);
}
