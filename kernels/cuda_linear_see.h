/* The kernel that tells whether two products gave the same bits: what cuda_linear.c calls and
 * cuda_linear_see.cu gives.
 *
 * C and CUDA C++; pointers are device addresses. */
#ifndef KERNELS_CUDA_LINEAR_SEE_H
#define KERNELS_CUDA_LINEAR_SEE_H

#include <cuda_runtime_api.h>

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

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
