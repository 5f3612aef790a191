/* Exits and tokens on the device: what host and kernels both know of a live row, and the launches.
 *
 * C and CUDA C++. The order of one kernels_finish: gate (lambda and exit rule of every live row),
 * list (which of them exit, in the batch's order), head rows, the head's linear, then three passes
 * of the sampler. All counts are read from device memory, so that the launches of a recorded
 * sequence serve every batch. */
#ifndef KERNELS_CUDA_FINISH_H
#define KERNELS_CUDA_FINISH_H

#include "kernels/cuda_batch.h"

#include <cuda_runtime_api.h>

/* A live row as kernels read it, packed per batch by cuda_finish_pack. What needs the request's
 * parameters or the generator is decided on the host. */
struct cuda_live {
    int32_t row;
    struct exit_state exit; /* before this loop */
    float threshold;
    uint8_t is_last;       /* loop == max_loops */
    uint8_t may_exit;      /* exit_rule_may_exit */
    uint8_t is_forced;     /* the exit loop was drawn */
    int32_t wanted_place;  /* in cuda_batch.wanted_logits; -1: the device draws */
    float temperature;     /* 0 = greedy */
    float top_p;           /* 1 = off */
    int32_t top_k;         /* 0 = off */
    int32_t n_logprobs;    /* 0 .. SEQUENCE_MAX_LOGPROBS */
    double least_exponent; /* log(min_p); -inf = off */
    uint64_t uniform;      /* the draw, in units of 2^-53 */
};

/* The sampler reads a row's logits in pieces of this size, one block a piece. */
enum { CUDA_SAMPLE_CHUNK = 8192, CUDA_SAMPLE_BINS = 2048 };

/* What the sampler's passes leave about a piece of a row for each other. */
struct cuda_sample_chunk {
    uint64_t best;     /* the largest entry: its key, then the complement of its id */
    uint64_t mass;     /* of the candidates, at the row's temperature */
    uint64_t raw_mass; /* of all entries, at temperature 1 */
    uint32_t n_broken, n_finite, n_candidates;
};

/* Device memory of one stream's finish. */
struct cuda_finish_device {
    int32_t *is_exit;                 /* [n_live] */
    int32_t *heads;                   /* [n_live] the live rows that exit, in order */
    int32_t *n_heads;                 /* [1] */
    struct cuda_sample_chunk *chunks; /* [n_wave, n_chunks] */
    uint64_t *masses;                 /* [n_wave, CUDA_SAMPLE_BINS] */
    uint32_t *counts;                 /* likewise */
    int32_t n_wave;                   /* head rows that the sampler takes at a time */
    int32_t n_chunks;
};

/* Indices that travel as an argument of the launch: no copy, no place of their own. */
enum { CUDA_GATE_ROWS = 256 };
struct cuda_gate_rows {
    int32_t rows[CUDA_GATE_ROWS];
};

#ifdef __cplusplus
extern "C" {
#endif

/* lambda[i] = sigmoid(sum_j w[j] * y[row_i][j] + bias), exit rule, and the outcomes of all live
 * rows. w NULL: lambda is 0. n_blocks of them take the live rows in turns. */
cudaError_t cuda_finish_launch_gate(const struct cuda_batch *batch,
                                    const struct cuda_finish_device *f, const float *y, int d,
                                    const float *w, const float *bias, int n_blocks,
                                    cudaStream_t stream);
/* heads and n_heads from is_exit. A row beyond max_heads fails (INTERNAL): it was not foreseen. */
cudaError_t cuda_finish_launch_list(const struct cuda_batch *batch,
                                    const struct cuda_finish_device *f, int max_heads,
                                    cudaStream_t stream);
/* head_rows[i] = y[row of heads[i]] in bf16, zeros from n_heads on.      head_rows [max_heads, d]
 */
cudaError_t cuda_finish_launch_gather(const struct cuda_batch *batch,
                                      const struct cuda_finish_device *f, uint16_t *head_rows,
                                      const float *y, int d, int max_heads, cudaStream_t stream);
/* Tokens and log-probabilities of all listed rows into their outcomes, by worker/sampler.h's rules;
 * logits to the host where they are wanted.                                logits [max_heads, V] */
cudaError_t cuda_sample_launch(const struct cuda_batch *batch, const struct cuda_finish_device *f,
                               const float *logits, int vocab_size, int max_heads,
                               cudaStream_t stream);

/* ---- cuda_finish.c: the two halves of kernels_finish, before and after the head's linear -------
 */
struct cuda_stream;

/* What kernels read of a live row; wanted_place -1: its logits stay on the device. */
struct cuda_live cuda_finish_live(const struct kernels_live *live, int32_t wanted_place);
/* gate and bias NULL: lambda is 0. */
enum status cuda_finish_exits(struct cuda_stream *s, const float *y, int d, const float *gate,
                              const float *bias, int max_heads, struct err *err);
enum status cuda_finish_draw(struct cuda_stream *s, const float *logits, int max_heads,
                             struct err *err);

/* kernels_gate on n <= CUDA_GATE_ROWS rows. */
cudaError_t cuda_gate_launch(float *lambda, const float *x, const struct cuda_gate_rows *rows,
                             int n, int d, const float *w, const float *bias, cudaStream_t stream);
/* kernels_top_k */
cudaError_t cuda_top_k_launch(int32_t *ids, float *values, const float *logits, int n,
                              int vocab_size, int top, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
