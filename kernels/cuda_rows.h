/* Launchers of the row-wise kernels: what cuda_rows.c calls and cuda_rows.cu gives.
 *
 * C and CUDA C++. All pointers are device addresses unless said otherwise. Each launcher names its
 * stream and returns what the launch gave. `void *` outputs are bf16 unless is_f32. A row's result
 * depends on that row and on d alone: not on n, not on the grid, not on the row's place. */
#ifndef KERNELS_CUDA_ROWS_H
#define KERNELS_CUDA_ROWS_H

#include "kernels/cuda_batch.h"

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    /* Lists of this many rows travel as arguments of a launch (4 KiB at most), so that they need no
     * copy of their own and no memory that must outlive the call. */
    CUDA_ROWS_MAX_LISTED = 256,
    CUDA_ROWS_MAX_GATHERED = 512,
    /* Norms keep a row in registers: 512 threads of 32 numbers. */
    CUDA_ROWS_MAX_NORM = 16384,
};

/* host[i]: the device's address of host memory for d floats of slots[i]. */
struct cuda_rows_list {
    float *host[CUDA_ROWS_MAX_LISTED];
    int32_t slots[CUDA_ROWS_MAX_LISTED];
};
struct cuda_rows_chosen {
    int32_t rows[CUDA_ROWS_MAX_GATHERED];
};

cudaError_t cuda_rows_load(cudaStream_t stream, const struct cuda_batch *batch, float *x,
                           const float *store, const void *embed, bool embed_is_f32, int n, int d);
cudaError_t cuda_rows_store(cudaStream_t stream, const struct cuda_batch *batch, float *store,
                            const float *x, int n, int d);
cudaError_t cuda_rows_gather(cudaStream_t stream, void *y, const float *x,
                             const struct cuda_rows_chosen *chosen, int n_selected, int d);
cudaError_t cuda_rows_copy_out(cudaStream_t stream, const struct cuda_rows_list *list,
                               const float *store, int n, int d);
cudaError_t cuda_rows_copy_in(cudaStream_t stream, const struct cuda_rows_list *list, float *store,
                              int n, int d);
cudaError_t cuda_rows_norm(cudaStream_t stream, void *y, bool is_f32, const float *x,
                           const float *gain, int n, int d, float eps);
/* gain_branch NULL: h += branch; y NULL: no second norm. */
cudaError_t cuda_rows_residual(cudaStream_t stream, float *h, const float *branch,
                               const float *gain_branch, void *y, bool is_f32,
                               const float *gain_next, int n, int d, float eps);
cudaError_t cuda_rows_rope_tables(cudaStream_t stream, const struct cuda_batch *batch,
                                  float *cos_table, float *sin_table, int head_dim, double theta,
                                  int n);
cudaError_t cuda_rows_rope_append(cudaStream_t stream, const struct cuda_batch *batch, void *qkv,
                                  int n_heads, const float *cos_table, const float *sin_table,
                                  const struct kernels_kv *kv, int layer, int n);
cudaError_t cuda_rows_swiglu(cudaStream_t stream, void *y, const void *x, int n, int f);

#ifdef __cplusplus
}
#endif

#endif
