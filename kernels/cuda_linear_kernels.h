/* Kernels of our own beside cuBLASLt's: a product of few rows, and whether two products gave the
 * same bits.
 *
 * C and CUDA C++; pointers are device addresses. */
#ifndef KERNELS_CUDA_LINEAR_KERNELS_H
#define KERNELS_CUDA_LINEAR_KERNELS_H

#include <cuda_runtime_api.h>

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of x that cuda_linear_few takes. */
enum { CUDA_LINEAR_FEW = 16 };

/* y [n, m] = x [n, k] . w [m, k]^T in bf16 with fp32 sums, y fp32 or bf16 with rows ld elements
 * apart; n <= CUDA_LINEAR_FEW, k % 8 == 0, x and w 16-byte aligned. It reads w once at the speed of
 * memory. An output is the same sum in the same order for any n. */
cudaError_t cuda_linear_few(cudaStream_t stream, void *y, bool y_is_f32, const void *x,
                            const void *w, int n, int m, int k, int ld);

/* Of a matrix: a sum over all elements that changes when one of them, or its place, does (but for
 * one chance in 2^64), and how many are neither zero nor without a value. Integers: the order of
 * additions does not matter. */
struct cuda_linear_seen {
    uint64_t sum, n_plain;
};

/* Adds y [n, m], rows ld elements apart, fp32 or bf16, to *seen. */
cudaError_t cuda_linear_see(cudaStream_t stream, const void *y, bool is_f32, int n, int m, int ld,
                            struct cuda_linear_seen *seen);

#ifdef __cplusplus
}
#endif

#endif
