/* The algorithm of cuBLASLt for a product of one shape, chosen once and kept.
 *
 * A product is y [n, m] = x [n, k] . w [m, k]^T in bf16 with fp32 sums, rows of y `ld` elements
 * apart. No algorithm may split k: the order in which a split sum is put together depends on how
 * many tiles there are, so on n, and with atomics on chance. */
#ifndef KERNELS_CUDA_PLAN_H
#define KERNELS_CUDA_PLAN_H

#include "kernels/cuda_library.h"

#include <stdbool.h>
#include <stdint.h>

/* Hopper's algorithms ask for up to this much workspace. */
static const size_t cuda_plan_workspace_bytes = (size_t)32 << 20;

enum { CUDA_PLAN_MAX_CANDIDATES = 8 };

struct cuda_plan_shape {
    int32_t m, k;
    int32_t n; /* rows for which the algorithm is chosen; it also serves fewer */
    int32_t ld;
    bool y_is_f32;
    uint8_t align_y, align_x, align_w; /* bytes, a power of two, 16 at most */
};

struct cuda_plan {
    struct cuda_plan_shape shape;
    cublasLtMatrixLayout_t y, x, w;
    int32_t n_laid_out; /* rows that the layouts of x and y say now */
    cublasLtMatmulAlgo_t candidates[CUDA_PLAN_MAX_CANDIDATES];
    int n_candidates;
    bool has_few; /* cuda_linear_few, our own kernel, is a candidate, too: number n_candidates */
    int chosen;
    bool is_timed;
    /* Bit j: whether 64 << j rows in one product have been compared with slices of 64 rows, and
     * whether the bits were the same (deterministic mode). */
    uint32_t compared, same;
    struct cuda_plan *next; /* of the table's chain */
};

struct cuda_plans;

/* What a product runs on. The workspace is of cuda_plan_workspace_bytes at least and of this stream
 * alone; all of its flush_bytes are overwritten before a timed run, so that weights come from
 * memory, as they will. */
struct cuda_plan_place {
    cudaStream_t stream;
    void *workspace;
    size_t flush_bytes;
};
struct cuda_product {
    void *y;
    const void *x, *w;
    int32_t n;
};

/* Opens the library. One a device and process; calls come from one thread at a time. */
enum status cuda_plans_create(struct cuda_plans **out, struct err *err);
void cuda_plans_destroy(struct cuda_plans *plans); /* NULL is fine */

/* The plan of a shape, made at its first use: candidates in the order of cuBLASLt's heuristics, the
 * first chosen, unless so few rows are asked for that reading the weights is all that counts: then
 * our own kernel. UNSUPPORTED, with the shape, when there is none. Touches no stream. */
enum status cuda_plan_find(struct cuda_plans *plans, const struct cuda_plan_shape *shape,
                           struct cuda_plan **out, struct err *err);
/* Runs all candidates and chooses the fastest, once; waits for the stream, which must not be
 * recording. y holds the product afterwards. */
enum status cuda_plan_time(struct cuda_plans *plans, struct cuda_plan *plan,
                           const struct cuda_plan_place *place, const struct cuda_product *product,
                           struct err *err);
/* Whether the chosen algorithm can do n rows, and what it needs fits the workspace. */
bool cuda_plan_accepts(struct cuda_plans *plans, struct cuda_plan *plan, int32_t n);
enum status cuda_plan_run(struct cuda_plans *plans, struct cuda_plan *plan,
                          const struct cuda_plan_place *place, const struct cuda_product *product,
                          struct err *err);

#endif
