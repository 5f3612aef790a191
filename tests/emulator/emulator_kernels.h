/* Kernels that tests/test_emulator*.c try the emulator with. */
#ifndef EMULATOR_EMULATOR_KERNELS_H
#define EMULATOR_EMULATOR_KERNELS_H

#include <cuda_runtime_api.h>

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = threadIdx and blockIdx of thread i of the grid, 6 numbers each. */
cudaError_t emulator_try_indices(uint32_t *out, dim3 grid, dim3 block, cudaStream_t stream);
/* out[block * n + t] = n - 1 - t by way of shared memory; without its barrier what is read depends
 * on the order of threads. */
cudaError_t emulator_try_reverse(int32_t *out, int n_blocks, int n, bool has_barrier,
                                 cudaStream_t stream);
/* Thread 0 comes to the barrier late, elsewhere, or never. */
enum emulator_divergence { EMULATOR_ENDS, EMULATOR_ELSEWHERE, EMULATOR_LANE_MISSING };
cudaError_t emulator_try_divergence(enum emulator_divergence how, cudaStream_t stream);
/* One warp: [0, 32) shfl_xor by 5, [32, 64) shfl of lane 7, [64, 96) sum, [96, 128) max,
 * [128, 160) up by 3, [160, 192) down by 3, of in[lane]; ballot of in[lane] > 0. */
cudaError_t emulator_try_warp(float *out, uint32_t *ballot, const float *in, cudaStream_t stream);
/* d [16, 8] = a [16, 16] b [16, 8], bf16, through shared memory, ldmatrix and mma. b comes as
 * [k][column] (transposed while it is loaded) or as [column][k]. */
cudaError_t emulator_try_mma(float *d, const uint16_t *a, const uint16_t *b, bool is_b_by_column,
                             cudaStream_t stream);
/* out[i] = in[i] for i < n, else 0, in pieces of 16 bytes by cp.async; waits when has_wait. */
cudaError_t emulator_try_copy(uint32_t *out, const uint32_t *in, int n, bool has_wait,
                              cudaStream_t stream);
cudaError_t emulator_try_atomics(int32_t *i, uint32_t *u, uint64_t *l, float *f, int n_blocks,
                                 cudaStream_t stream);
/* out[i] += add */
cudaError_t emulator_try_add(int32_t *out, int n, int32_t add, cudaStream_t stream);
/* Writes n words of shared memory of which it was given `shared_bytes`. */
cudaError_t emulator_try_shared(uint32_t *out, int n, size_t shared_bytes, bool is_allowed,
                                cudaStream_t stream);
/* Loads 16 bytes from base + offset. */
cudaError_t emulator_try_load(uint32_t *out, const unsigned char *base, int offset,
                              cudaStream_t stream);
/* out[i] = bits of cuda_float_to_bf16(in[i]), back[i] = their value. */
cudaError_t emulator_try_bf16(uint16_t *out, float *back, const float *in, int n,
                              cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
