/* Linear layers on the CPU: cuts the outputs into blocks that the pool's threads take one by one.
 */
#include "kernels/cpu_backend.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    /* Rows that share one reading of the weights. */
    LINEAR_MAX_ROWS = 96,
};

struct linear_run {
    const struct cpu_backend *cpu;
    float *y; /* [n, y_stride]: the outputs of all weights side by side */
    size_t y_stride;
    const struct kernels_weight *const *w;
    int n_jobs, n, k;
    const float *packed[2]; /* for straight and for bf16 weights */
    int n_row_blocks, row_block;
    int n_out_blocks; /* of all jobs */
    atomic_int next;
};

static const struct cpu_linear *linear_method(const struct cpu_backend *cpu,
                                              const struct kernels_weight *w)
{
    return cpu->level->linear[w->dtype == DTYPE_BF16];
}

static int out_blocks(const struct cpu_backend *cpu, const struct kernels_weight *w)
{
    const int block = linear_method(cpu, w)->out_block;
    return (w->rows + block - 1) / block;
}

static int linear_row_block(const struct cpu_linear *method, int n, int k)
{
    const int step = method->row_step;
    size_t step_bytes = method->packed_floats(step, k) * sizeof(float);
    int most = LINEAR_MAX_ROWS / step;
    if (method->x_bytes / step_bytes < (size_t)most)
        most = (int)(method->x_bytes / step_bytes);
    most = (most < 1 ? 1 : most) * step;
    int n_blocks = (n + most - 1) / most;
    return (n + n_blocks - 1) / n_blocks;
}

/* The piece of that index: row blocks outermost, so that one block of rows stays in the cache. */
static struct cpu_linear_piece linear_piece_at(const struct linear_run *run, int index)
{
    int row = index / run->n_out_blocks * run->row_block;
    int block = index % run->n_out_blocks, job = 0;
    size_t column = 0; /* of the weight's first output */
    while (block >= out_blocks(run->cpu, run->w[job])) {
        block -= out_blocks(run->cpu, run->w[job]);
        column += (size_t)run->w[job++]->rows;
    }
    const struct kernels_weight *w = run->w[job];
    const struct cpu_linear *method = linear_method(run->cpu, w);
    const int first = block * method->out_block;
    const size_t row_block_floats = method->packed_floats(run->row_block, run->k);
    return (struct cpu_linear_piece){
        .w =
            (const unsigned char *)w->data + (size_t)first * (size_t)run->k * dtype_bytes(w->dtype),
        .dtype = w->dtype,
        .k = run->k,
        .n_out = w->rows - first < method->out_block ? w->rows - first : method->out_block,
        .n = run->n - row < run->row_block ? run->n - row : run->row_block,
        .x = run->packed[w->dtype == DTYPE_BF16] +
             (size_t)(index / run->n_out_blocks) * row_block_floats,
        .y = run->y + (size_t)row * run->y_stride + column + (size_t)first,
        .y_stride = run->y_stride,
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
        run->cpu->level->linear[piece.dtype == DTYPE_BF16]->piece(&piece);
        at = after;
    }
}

static enum status linear_pack(struct cpu_backend *cpu, struct linear_run *run, const float *x,
                               struct err *err)
{
    bool has[2] = {false, false};
    for (int j = 0; j < run->n_jobs; j++)
        has[run->w[j]->dtype == DTYPE_BF16] = true;
    size_t block_floats[2], len = 0;
    for (int order = 0; order < 2; order++) {
        block_floats[order] = cpu->level->linear[order]->packed_floats(run->row_block, run->k);
        len += has[order] ? (size_t)run->n_row_blocks * block_floats[order] : 0;
    }
    enum status st = cpu_scratch_grow(&cpu->packed, len * sizeof(float), "linear input", err);
    if (st != STATUS_OK)
        return st;
    float *at = cpu->packed.data;
    for (int order = 0; order < 2; order++) {
        run->packed[order] = at;
        if (!has[order])
            continue;
        for (int row = 0; row < run->n; row += run->row_block, at += block_floats[order]) {
            int n = run->n - row < run->row_block ? run->n - row : run->row_block;
            cpu->level->linear[order]->pack(at, x + (size_t)row * (size_t)run->k, n, run->k,
                                            order == 1 ? DTYPE_BF16 : DTYPE_F32);
        }
    }
    return STATUS_OK;
}

enum status cpu_linear(struct kernels_stream *s, void *y, enum dtype y_dtype, const void *x,
                       const struct kernels_weight *const *w, int n_jobs, int n, struct err *err)
{
    (void)y_dtype; /* F32 is the activation type, too */
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct linear_run run = {.cpu = cpu, .y = y, .w = w, .n_jobs = n_jobs, .n = n, .k = w[0]->cols};
    /* Rows are cut alike for all weights: as the first asks. */
    run.row_block = linear_row_block(linear_method(cpu, w[0]), n, run.k);
    run.n_row_blocks = (n + run.row_block - 1) / run.row_block;
    enum status st = linear_pack(cpu, &run, x, err);
    if (st != STATUS_OK)
        return st;
    size_t sums = 0;
    for (int j = 0; j < n_jobs; j++) {
        size_t need = linear_method(cpu, w[j])->scratch_floats(run.row_block);
        sums = need > sums ? need : sums;
        run.n_out_blocks += out_blocks(cpu, w[j]);
        run.y_stride += (size_t)w[j]->rows;
    }
    for (int t = 0; t < cpu->base.n_threads; t++) {
        st = cpu_scratch_grow(&cpu->threads[t], sums * sizeof(float), "linear", err);
        if (st != STATUS_OK)
            return st;
    }
    double n_weights = 0, n_bytes = 0;
    for (int j = 0; j < n_jobs; j++) {
        double size = (double)w[j]->rows * w[j]->cols;
        n_weights += size;
        n_bytes += size * (double)dtype_bytes(w[j]->dtype);
    }
    if (cpu_pool_is_worth(n_weights * n, n_bytes))
        cpu_pool_run(cpu->pool, linear_work, &run);
    else
        linear_work(&run, 0);
    return STATUS_OK;
}
