/* Launchers of the kernels that measure a device; asynchronous, on the stream named. */
#ifndef KERNELS_CUDA_MEASURE_H
#define KERNELS_CUDA_MEASURE_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A kernel that does nothing. */
cudaError_t cuda_measure_nothing(cudaStream_t stream);
/* Reads len_bytes (a multiple of 16) once; writes to sink[0] if the bits sum to what they cannot,
 * so that the reads are not optimized away. */
cudaError_t cuda_measure_read(const void *data, size_t len_bytes, float *sink,
                              int n_multiprocessors, cudaStream_t stream);
/* to = from, len_bytes a multiple of 16. */
cudaError_t cuda_measure_copy(void *to, const void *from, size_t len_bytes, int n_multiprocessors,
                              cudaStream_t stream);
/* n random bf16 in (-1, 1). */
cudaError_t cuda_measure_random(uint16_t *out, size_t n, uint32_t seed, int n_multiprocessors,
                                cudaStream_t stream);
/* n_steps dependent chains of fp32 fused multiply-adds in every thread; *n_flops is what all of
 * them do together. sink as in read. */
cudaError_t cuda_measure_fma(int n_steps, float *sink, int n_multiprocessors, cudaStream_t stream,
                             double *n_flops);

#ifdef __cplusplus
}
#endif

#endif
