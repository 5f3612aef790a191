/* Linear layers on the CPU: cuts the outputs into blocks that the pool's threads take one by one.
 */
#include "kernels/cpu_backend.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    /* Rows that share one reading of the weights: their packed x must stay in L2. */
    LINEAR_X_BYTES = 1024 * 1024,
    LINEAR_MAX_ROWS = 96,
};

struct linear_run {
    const struct cpu_backend *cpu;
    float *const *y;
    const struct kernels_weight *const *w;
    int n_jobs, n, k;
    const float *packed[2]; /* for straight and for bf16 weights */
    int n_row_blocks, row_block;
    int n_out_blocks; /* of all jobs */
    atomic_int next;
};

static int out_blocks(const struct kernels_weight *w)
{
    return (w->rows + CPU_OUT_BLOCK - 1) / CPU_OUT_BLOCK;
}

static int linear_row_block(int n, int k)
{
    size_t fit = LINEAR_X_BYTES / (cpu_packed_len(k) * sizeof(float));
    int most = fit > LINEAR_MAX_ROWS ? LINEAR_MAX_ROWS : (int)fit;
    most = most / CPU_TILE_ROWS * CPU_TILE_ROWS;
    if (most < CPU_TILE_ROWS)
        most = CPU_TILE_ROWS;
    int n_blocks = (n + most - 1) / most;
    return (n + n_blocks - 1) / n_blocks;
}

/* The piece of that index: row blocks outermost, so that one block of rows stays in the cache. */
static struct cpu_linear_piece linear_piece_at(const struct linear_run *run, int index)
{
    int row = index / run->n_out_blocks * run->row_block;
    int block = index % run->n_out_blocks, job = 0;
    while (block >= out_blocks(run->w[job]))
        block -= out_blocks(run->w[job++]);
    const struct kernels_weight *w = run->w[job];
    const int first = block * CPU_OUT_BLOCK;
    const size_t stride = cpu_packed_len(run->k);
    return (struct cpu_linear_piece){
        .w =
            (const unsigned char *)w->data + (size_t)first * (size_t)run->k * dtype_bytes(w->dtype),
        .dtype = w->dtype,
        .k = run->k,
        .n_out = w->rows - first < CPU_OUT_BLOCK ? w->rows - first : CPU_OUT_BLOCK,
        .n = run->n - row < run->row_block ? run->n - row : run->row_block,
        .x = run->packed[w->dtype == DTYPE_BF16] + (size_t)row * stride,
        .y = run->y[job] + (size_t)row * (size_t)w->rows + first,
        .y_stride = (size_t)w->rows,
    };
}

static void linear_work(void *context, int thread)
{
    struct linear_run *run = context;
    const int n_pieces = run->n_row_blocks * run->n_out_blocks;
    int at = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
    while (at < n_pieces) {
        /* The next piece is taken before this one is done, so that its weights can be fetched. */
        int after = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        struct cpu_linear_piece piece = linear_piece_at(run, at);
        if (after < n_pieces)
            piece.next = linear_piece_at(run, after).w;
        piece.sums = run->cpu->threads[thread].data;
        run->cpu->level->linear_piece(&piece);
        at = after;
    }
}

static enum status linear_pack(struct cpu_backend *cpu, struct linear_run *run, const float *x,
                               struct err *err)
{
    const size_t stride = cpu_packed_len(run->k);
    const size_t area = (size_t)run->n * stride;
    bool has[2] = {false, false};
    for (int j = 0; j < run->n_jobs; j++)
        has[run->w[j]->dtype == DTYPE_BF16] = true;
    enum status st = cpu_scratch_grow(
        &cpu->packed, (size_t)(has[0] + has[1]) * area * sizeof(float), "linear input", err);
    if (st != STATUS_OK)
        return st;
    float *at = cpu->packed.data;
    for (int order = 0; order < 2; order++) {
        run->packed[order] = at;
        if (!has[order])
            continue;
        for (int row = 0; row < run->n; row += run->row_block) {
            int n = run->n - row < run->row_block ? run->n - row : run->row_block;
            cpu->level->linear_pack(at + (size_t)row * stride, x + (size_t)row * (size_t)run->k, n,
                                    run->k, order == 1 ? DTYPE_BF16 : DTYPE_F32);
        }
        at += area;
    }
    return STATUS_OK;
}

enum status cpu_linear(struct kernels_stream *s, float *const *y, const float *x,
                       const struct kernels_weight *const *w, int n_jobs, int n, struct err *err)
{
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct linear_run run = {.cpu = cpu, .y = y, .w = w, .n_jobs = n_jobs, .n = n, .k = w[0]->cols};
    run.row_block = linear_row_block(n, run.k);
    enum status st = linear_pack(cpu, &run, x, err);
    if (st != STATUS_OK)
        return st;
    run.n_row_blocks = (n + run.row_block - 1) / run.row_block;
    for (int j = 0; j < n_jobs; j++)
        run.n_out_blocks += out_blocks(w[j]);
    const size_t sums = (size_t)run.row_block * CPU_OUT_BLOCK * (size_t)cpu->level->lanes;
    for (int t = 0; t < cpu->base.n_threads; t++) {
        st = cpu_scratch_grow(&cpu->threads[t], sums * sizeof(float), "linear", err);
        if (st != STATUS_OK)
            return st;
    }
    cpu_pool_run(cpu->pool, linear_work, &run);
    return STATUS_OK;
}
