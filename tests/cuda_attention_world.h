/* A batch of attention on a device: random K, V and queries, a pool whose unused places are NaN,
 * the answer in double. The kernels are launched directly, not through a backend. */
#ifndef TESTS_CUDA_ATTENTION_WORLD_H
#define TESTS_CUDA_ATTENTION_WORLD_H

#include "kernels/cuda_attention.h"
#include "tests/kernels_reference.h"

#ifdef CAROUSEL_CUDA_EMULATED
#include "tests/emulator/emulator.h"
#endif

enum { WORLD_MAX_SEGMENTS = 48, WORLD_LAYERS = 2, WORLD_GUARD_ROWS = 3, WORLD_MAX_PAIRS = 4096 };

static const uint16_t world_nan = 0x7fc1, world_untouched = 0xabcd;

/* Sequence `sequence` at positions [first, first + n_rows): the same numbers in whatever batch. */
struct world_segment {
    int sequence, first, n_rows;
};

struct world {
    int n_heads, n_kv_heads, head_dim, block_size;
    int n_segments;
    struct world_segment segments[WORLD_MAX_SEGMENTS];
    /* How the batch is computed. */
    enum attention_tile tile;
    bool has_tiles;
    int max_pairs, n_blocks;
    /* Filled by world_run. */
    int n_rows;
    uint16_t *out; /* [n_rows + WORLD_GUARD_ROWS, H * D] */
};

static inline uint16_t world_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float world_float(uint16_t b)
{
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Element j of what (q 0, k 1, v 2) at a position of a sequence, for a head. */
static inline uint16_t world_value(int what, int sequence, int position, int head, int j)
{
    uint64_t state = ((uint64_t)(sequence * 3 + what + 1) << 40) ^ ((uint64_t)position << 20) ^
                     ((uint64_t)head << 12) ^ (uint64_t)(j + 1);
    state *= 0x9e3779b97f4a7c15ull;
    state ^= state >> 29;
    (void)random_bits(&state);
    float f = random_float(&state);
    return world_bf16(what == 0 ? 4.0f * f : f); /* so that the softmax is not flat */
}

static inline void world_ok(cudaError_t code, const char *what)
{
    if (code != cudaSuccess)
        fail_msg("%s: %s", what, cudaGetErrorString(code));
}
#define WORLD_OK(call) world_ok(call, #call)

/* The host's bytes on the device. */
static inline void *world_to_device(const void *host, size_t len_bytes, cudaStream_t stream)
{
    void *device = NULL;
    WORLD_OK(cudaMalloc(&device, len_bytes + 16));
    WORLD_OK(cudaMemcpyAsync(device, host, len_bytes, cudaMemcpyHostToDevice, stream));
    return device;
}

static inline size_t world_pool_row(const struct world *w, int32_t block, int layer, int kv_head,
                                    int inside)
{
    size_t head =
        ((size_t)block * WORLD_LAYERS + (size_t)layer) * (size_t)w->n_kv_heads + (size_t)kv_head;
    return head * 2 * (size_t)w->block_size + (size_t)inside;
}

/* The batch on the host, with what it points to. */
struct world_batch {
    struct kernels_segment segments[WORLD_MAX_SEGMENTS];
    struct kernels_batch batch;
    int32_t *table;
    int n_table;
    uint16_t *qkv, *pool;
    size_t qkv_bytes, pool_bytes;
};

static inline void world_fill_pool(const struct world *w, struct world_batch *b)
{
    const size_t d = (size_t)w->head_dim;
    for (int s = 0; s < w->n_segments; s++) {
        const struct world_segment *g = &w->segments[s];
        for (int p = 0; p < g->first + g->n_rows; p++)
            for (int h = 0; h < w->n_kv_heads; h++) {
                int32_t block = b->table[b->segments[s].first_block + p / w->block_size];
                size_t row = world_pool_row(w, block, 1, h, p % w->block_size);
                for (int j = 0; j < w->head_dim; j++) {
                    b->pool[row * d + (size_t)j] = world_value(1, g->sequence, p, h, j);
                    b->pool[(row + (size_t)w->block_size) * d + (size_t)j] =
                        world_value(2, g->sequence, p, h, j);
                }
            }
    }
}

static inline void world_batch_make(const struct world *w, uint64_t seed, struct world_batch *b)
{
    const size_t stride = (size_t)(w->n_heads + 2 * w->n_kv_heads) * (size_t)w->head_dim;
    memset(b, 0, sizeof *b);
    int32_t n_rows = 0;
    for (int s = 0; s < w->n_segments; s++) {
        const struct world_segment *g = &w->segments[s];
        int n_blocks = (g->first + g->n_rows - 1) / w->block_size + 1;
        b->segments[s] = (struct kernels_segment){.first_row = n_rows,
                                                  .n_rows = g->n_rows,
                                                  .first_position = g->first,
                                                  .first_block = b->n_table,
                                                  .n_blocks = n_blocks};
        n_rows += g->n_rows;
        b->n_table += n_blocks;
    }
    /* Blocks in no order, with one that nobody has at each end. */
    b->table = malloc((size_t)b->n_table * sizeof *b->table);
    for (int i = 0; i < b->n_table; i++)
        b->table[i] = i + 1;
    for (int i = b->n_table - 1; i > 0; i--) {
        int j = (int)(random_bits(&seed) % (uint64_t)(i + 1));
        int32_t t = b->table[i];
        b->table[i] = b->table[j];
        b->table[j] = t;
    }
    b->pool_bytes = world_pool_row(w, b->n_table + 2, 0, 0, 0) * (size_t)w->head_dim * 2;
    b->pool = malloc(b->pool_bytes);
    for (size_t i = 0; i < b->pool_bytes / 2; i++)
        b->pool[i] = world_nan;
    world_fill_pool(w, b);
    b->qkv_bytes = (size_t)(n_rows + WORLD_GUARD_ROWS) * stride * 2;
    b->qkv = malloc(b->qkv_bytes);
    for (size_t i = 0; i < b->qkv_bytes / 2; i++)
        b->qkv[i] = world_nan;
    for (int s = 0, row = 0; s < w->n_segments; s++)
        for (int i = 0; i < w->segments[s].n_rows; i++, row++)
            for (int h = 0; h < w->n_heads; h++)
                for (int j = 0; j < w->head_dim; j++)
                    b->qkv[(size_t)row * stride + (size_t)(h * w->head_dim + j)] =
                        world_value(0, w->segments[s].sequence, w->segments[s].first + i, h, j);
    b->batch = (struct kernels_batch){.n_rows = n_rows,
                                      .n_segments = w->n_segments,
                                      .segments = b->segments,
                                      .block_table = b->table};
}

static inline void world_batch_free(struct world_batch *b)
{
    free(b->table);
    free(b->qkv);
    free(b->pool);
}

/* Twice on the same scratch, so that what the first launch leaves behind is part of the test: out
 * is untouched again before the second. */
static inline void world_launch(const struct world *w, const struct cuda_attention_args *args,
                                int max_items, size_t out_bytes, cudaStream_t stream)
{
    WORLD_OK(cuda_attention_split_prepare(w->head_dim));
    for (int i = 0; i < 2; i++) {
        WORLD_OK(cudaMemcpyAsync(args->out, w->out, out_bytes, cudaMemcpyHostToDevice, stream));
        WORLD_OK(cuda_attention_split(args, w->head_dim, w->n_blocks, stream));
        if (!w->has_tiles)
            continue;
        WORLD_OK(cuda_attention_tile_prepare(w->head_dim, w->tile));
        WORLD_OK(cuda_attention_tile(args, w->head_dim, w->tile, max_items, stream));
    }
}

/* Computes the batch; w->out is the caller's to free. */
static inline void world_run(struct world *w, uint64_t seed)
{
    struct world_batch b;
    world_batch_make(w, seed, &b);
    const int32_t n_rows = b.batch.n_rows;
    const struct attention_shape shape = {
        .n_heads = w->n_heads,
        .n_kv_heads = w->n_kv_heads,
        .tile_rows = w->has_tiles ? cuda_attention_tile_rows(w->head_dim, w->tile) : 0,
        .max_pairs = w->max_pairs};
    const int32_t most = attention_plan_max_split_items(&shape, n_rows);
    struct cuda_attention_item *split = malloc((size_t)most * sizeof *split);
    struct cuda_attention_item *tile =
        malloc((size_t)(attention_plan_max_tile_items(n_rows) + 1) * sizeof *tile);
    const int32_t n_split = attention_plan_split(&shape, &b.batch, split);
    const int32_t n_tile = attention_plan_tiles(&shape, &b.batch, tile);

    cudaStream_t stream = NULL;
    WORLD_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const size_t heads = (size_t)w->n_heads, d = (size_t)w->head_dim;
    const size_t out_len = (size_t)(n_rows + WORLD_GUARD_ROWS) * heads * d;
    w->n_rows = n_rows;
    w->out = malloc(out_len * sizeof *w->out);
    for (size_t i = 0; i < out_len; i++)
        w->out[i] = world_untouched;
    const size_t n_pairs = (size_t)w->max_pairs * heads;
    float *poison = malloc((n_pairs * (d + 2) + 1) * sizeof *poison);
    memset(poison, 0xff, (n_pairs * (d + 2) + 1) * sizeof *poison);
    int32_t *zeros = calloc(n_pairs + 1, sizeof *zeros);
    struct cuda_batch batch = {
        .n_rows = n_rows,
        .n_segments = w->n_segments,
        .n_split_items = n_split,
        .n_tile_items = n_tile,
        .block_table = world_to_device(b.table, (size_t)b.n_table * sizeof *b.table, stream),
        .split_items = world_to_device(split, (size_t)n_split * sizeof *split, stream),
        .tile_items = world_to_device(tile, (size_t)n_tile * sizeof *tile, stream)};
    struct cuda_attention_args args = {
        .out = world_to_device(w->out, out_len * sizeof *w->out, stream),
        .qkv = world_to_device(b.qkv, b.qkv_bytes, stream),
        .pool = world_to_device(b.pool, b.pool_bytes, stream),
        .batch = world_to_device(&batch, sizeof batch, stream),
        .partials = world_to_device(poison, n_pairs * d * sizeof *poison, stream),
        .partial_sums = world_to_device(poison, n_pairs * 2 * sizeof *poison, stream),
        .counters = world_to_device(zeros, n_pairs * sizeof *zeros, stream),
        .n_heads = w->n_heads,
        .n_kv_heads = w->n_kv_heads,
        .n_layers = WORLD_LAYERS,
        .layer = 1,
        .blocks = cuda_attention_blocks_of(w->block_size),
        .scale = (float)(1.4426950408889634 / sqrt((double)d))};
    world_launch(w, &args, attention_plan_max_tile_items(n_rows) + 1, out_len * sizeof *w->out,
                 stream);
    WORLD_OK(cudaMemcpyAsync(w->out, args.out, out_len * sizeof *w->out, cudaMemcpyDeviceToHost,
                             stream));
    WORLD_OK(cudaStreamSynchronize(stream));
    void *device[] = {(void *)batch.block_table, (void *)batch.split_items,
                      (void *)batch.tile_items,  args.out,
                      (void *)args.qkv,          (void *)args.pool,
                      (void *)args.batch,        args.partials,
                      args.partial_sums,         args.counters};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; i++)
        WORLD_OK(cudaFree(device[i]));
    WORLD_OK(cudaStreamDestroy(stream));
    free(split);
    free(tile);
    free(poison);
    free(zeros);
    world_batch_free(&b);
}

#endif
