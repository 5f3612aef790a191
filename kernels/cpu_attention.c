/* Attention on the CPU: cuts a batch into pieces of (segment, kv head, a few queries) for the pool.
 */
#include "kernels/cpu_backend.h"

#include <stdatomic.h>

size_t cpu_attention_scratch_floats(int head_dim, int n_positions)
{
    const size_t d = cpu_packed_len(head_dim), n = CPU_TILE_ROWS;
    const size_t widest = CPU_GROUP_MAX / 2;
    size_t positions = ((size_t)n_positions + CPU_OUT_BLOCK - 1) / CPU_OUT_BLOCK * CPU_OUT_BLOCK;
    return 2 * n * d + CPU_OUT_BLOCK * d + n * CPU_OUT_BLOCK * widest + n * positions;
}

size_t cpu_kv_bytes(enum dtype dtype, int n_blocks, int block_size, int n_layers, int n_kv_heads,
                    int head_dim)
{
    /* [block][layer][kv head]{K [block_size][head_dim], V [block_size][head_dim]} */
    return (size_t)n_blocks * (size_t)n_layers * (size_t)n_kv_heads * 2 * (size_t)block_size *
           (size_t)head_dim * dtype_bytes(dtype);
}

struct attention_run {
    const struct cpu_backend *cpu;
    float *out;       /* [n, H*D] */
    const float *qkv; /* [n, (H + 2G) * D] */
    int n_heads;
    const struct kernels_batch *batch;
    const struct kernels_kv *kv;
    int layer;
    int n_pieces;
    atomic_int next;
};

/* Query tiles of one segment and kv head: its rows times the query heads of the group. */
static int segment_tiles(const struct attention_run *run, const struct kernels_segment *segment)
{
    int group = run->n_heads / run->kv->n_kv_heads;
    return (int)(((long)segment->n_rows * group + CPU_TILE_ROWS - 1) / CPU_TILE_ROWS);
}

static void attention_piece_run(const struct attention_run *run,
                                const struct kernels_segment *segment, int kv_head, int tile,
                                float *scratch)
{
    const struct kernels_kv *kv = run->kv;
    const int group = run->n_heads / kv->n_kv_heads;
    const int n_tiles = segment_tiles(run, segment);
    const long n_queries = (long)segment->n_rows * group;
    const int first = (int)(n_queries * tile / n_tiles);
    const int end = (int)(n_queries * (tile + 1) / n_tiles);
    const size_t out_row = (size_t)run->n_heads * (size_t)kv->head_dim;
    const size_t qkv_row = out_row + 2 * (size_t)kv->n_kv_heads * (size_t)kv->head_dim;
    const size_t half = (size_t)kv->block_size * (size_t)kv->head_dim * dtype_bytes(kv->dtype);
    const float *q[CPU_TILE_ROWS];
    float *out[CPU_TILE_ROWS];
    int32_t n_visible[CPU_TILE_ROWS];
    for (int i = first; i < end; i++) {
        int row = i / group, head = kv_head * group + i % group;
        const size_t at = (size_t)(segment->first_row + row);
        const size_t column = (size_t)head * (size_t)kv->head_dim;
        q[i - first] = run->qkv + at * qkv_row + column;
        out[i - first] = run->out + at * out_row + column;
        n_visible[i - first] = segment->first_position + row + 1;
    }
    const struct cpu_attention_piece piece = {
        .dtype = kv->dtype,
        .head_dim = kv->head_dim,
        .n_queries = end - first,
        .q = q,
        .out = out,
        .n_visible = n_visible,
        .block_table = run->batch->block_table + segment->first_block,
        .k_base = (const unsigned char *)kv->memory.data +
                  ((size_t)run->layer * (size_t)kv->n_kv_heads + (size_t)kv_head) * 2 * half,
        .block_stride_bytes = (size_t)kv->n_layers * (size_t)kv->n_kv_heads * 2 * half,
        .v_offset_bytes = half,
        .block_size = kv->block_size,
        .scratch = scratch,
    };
    run->cpu->level->attention_piece(&piece);
}

static void attention_work(void *context, int thread)
{
    struct attention_run *run = context;
    float *scratch = run->cpu->threads[thread].data;
    int segment = 0, before = 0; /* pieces of the segments before */
    for (;;) {
        int at = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (at >= run->n_pieces)
            return;
        const struct kernels_segment *segments = run->batch->segments;
        int tiles = segment_tiles(run, &segments[segment]);
        while (at - before >= tiles * run->kv->n_kv_heads) {
            before += tiles * run->kv->n_kv_heads;
            tiles = segment_tiles(run, &segments[++segment]);
        }
        attention_piece_run(run, &segments[segment], (at - before) / tiles, (at - before) % tiles,
                            scratch);
    }
}

enum status cpu_attention(struct kernels_stream *s, void *out, const void *qkv, int n_heads,
                          const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    (void)n;
    const struct kernels_batch *batch = s->batch;
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct attention_run run = {.cpu = cpu,
                                .out = out,
                                .qkv = qkv,
                                .n_heads = n_heads,
                                .batch = batch,
                                .kv = kv,
                                .layer = layer};
    int longest = 0;
    double n_products = 0, n_positions_all = 0;
    for (int i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *segment = &batch->segments[i];
        int n_positions = segment->first_position + segment->n_rows;
        longest = n_positions > longest ? n_positions : longest;
        n_products += (double)segment->n_rows * n_positions;
        n_positions_all += n_positions;
        run.n_pieces += segment_tiles(&run, segment) * kv->n_kv_heads;
    }
    const size_t floats = cpu_attention_scratch_floats(kv->head_dim, longest);
    for (int t = 0; t < cpu->base.n_threads; t++) {
        enum status st =
            cpu_scratch_grow(&cpu->threads[t], floats * sizeof(float), "attention", err);
        if (st != STATUS_OK)
            return st;
    }
    /* Two products and 2 * D elements of K and V for each position. */
    if (cpu_pool_is_worth(2 * n_products * n_heads * kv->head_dim,
                          2 * n_positions_all * kv->n_kv_heads * kv->head_dim *
                              (double)dtype_bytes(kv->dtype)))
        cpu_pool_run(cpu->pool, attention_work, &run);
    else
        attention_work(&run, 0);
    return STATUS_OK;
}
