/* Attention on the GPU: its items are cut when a batch is bound, its two kernels launched per
 * layer.
 */
#include "kernels/cuda_attention.h"
#include "kernels/cuda_backend.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Partial results take no more: what has no room is computed in one go, with the same result. */
static const size_t max_pair_bytes = (size_t)128 << 20;

enum {
    MAX_BLOCKS = 4,        /* of the split kernel on a multiprocessor: more hide nothing more */
    BLOCK_OVERHEAD = 1024, /* shared memory that the system takes of every block's */
    /* Up to so many rows tiles are narrow: 1024 rows of 16 heads are 256 blocks then, two for each
     * multiprocessor of an H200, and 128 of the wide kind. */
    NARROW_ROWS = 1024,
};

struct cuda_attention {
    struct attention_shape shape;
    int head_dim;
    int n_blocks; /* of the split kernel */
    bool is_deterministic;
    void *memory; /* of these: */
    float *partials, *partial_sums;
    int32_t *counters;
};

/* A query's result against a piece: acc[D], m, l; and a counter. */
static size_t pair_bytes(const struct kernels_limits *limits)
{
    return (size_t)limits->n_heads *
           (((size_t)limits->head_dim + 2) * sizeof(float) + sizeof(int32_t));
}

/* A stream that attends to nothing has limits without heads. */
static bool is_used(const struct kernels_limits *limits)
{
    return limits->n_heads > 0 && limits->n_kv_heads > 0 && limits->head_dim > 0;
}

static struct attention_shape shape_of(const struct kernels_limits *limits)
{
    return (struct attention_shape){
        .n_heads = limits->n_heads,
        .n_kv_heads = limits->n_kv_heads,
        .max_pairs = attention_plan_pairs(limits, pair_bytes(limits), max_pair_bytes),
    };
}

size_t cuda_attention_pack_bytes(const struct kernels_limits *limits)
{
    if (!is_used(limits))
        return 0;
    const struct attention_shape shape = shape_of(limits);
    return sizeof(struct cuda_attention_item) *
           ((size_t)attention_plan_max_split_items(&shape, limits->n_rows) +
            (size_t)attention_plan_max_tile_items(limits->n_rows));
}

/* Whether the kernels are compiled for this shape and fit the device. */
static enum status check_shape(const struct cuda_kernels *k, const struct kernels_limits *limits,
                               struct err *err)
{
    const int head_dim = limits->head_dim;
    if (!cuda_attention_has_head_dim(head_dim))
        return err_set(err, STATUS_UNSUPPORTED,
                       "attention on the GPU has no kernel for head_dim %d, only for%s: use "
                       "--backend cpu",
                       head_dim, cuda_attention_head_dims);
    const size_t shared = cuda_attention_split_shared(head_dim);
    if (shared > k->shared_bytes)
        return err_set(err, STATUS_UNSUPPORTED,
                       "attention with head_dim %d needs %zu bytes of shared memory for a block, "
                       "GPU %d (sm_%d%d) has %zu: use --backend cpu",
                       head_dim, shared, k->device, k->major, k->minor, k->shared_bytes);
    return STATUS_OK;
}

/* By the rows of the bound batch; all batches of a recorded size are narrow. */
static enum attention_tile kind_of(const struct cuda_attention *a, int32_t n_rows)
{
    if (a->is_deterministic)
        return ATTENTION_TILE_DETERMINISTIC;
    return n_rows > NARROW_ROWS ? ATTENTION_TILE_WIDE : ATTENTION_TILE_NARROW;
}

static enum status prepare(struct cuda_attention *a, const struct cuda_kernels *k,
                           const struct kernels_limits *limits, struct err *err)
{
    const size_t shared = cuda_attention_split_shared(limits->head_dim);
    /* The wide kind needs as much as the narrow one, or more. */
    const enum attention_tile widest =
        k->is_deterministic ? ATTENTION_TILE_DETERMINISTIC : ATTENTION_TILE_WIDE;
    const size_t tile_shared = cuda_attention_tile_shared(limits->head_dim, widest);
    const size_t fit = k->shared_bytes / (shared + BLOCK_OVERHEAD);
    const int blocks = fit < 1 ? 1 : fit > MAX_BLOCKS ? MAX_BLOCKS : (int)fit;
    a->shape = shape_of(limits);
    a->head_dim = limits->head_dim;
    a->n_blocks = k->n_multiprocessors * blocks;
    a->is_deterministic = k->is_deterministic;
    a->shape.tile_rows =
        tile_shared <= k->shared_bytes ? cuda_attention_tile_rows(limits->head_dim, widest) : 0;
    enum status st = cuda_check(cuda_attention_split_prepare(limits->head_dim),
                                "preparing the split attention kernel", err);
    if (st == STATUS_OK && a->shape.tile_rows > 0)
        st = cuda_check(cuda_attention_tile_prepare(limits->head_dim, widest),
                        "preparing the tile attention kernel", err);
    if (st == STATUS_OK && a->shape.tile_rows > 0 && !k->is_deterministic)
        st = cuda_check(cuda_attention_tile_prepare(limits->head_dim, ATTENTION_TILE_NARROW),
                        "preparing the narrow tile attention kernel", err);
    return st;
}

enum status cuda_attention_reserve(struct cuda_stream *s, struct err *err)
{
    const struct kernels_limits *limits = &s->base.limits;
    const struct cuda_kernels *k = cuda_kernels_of(&s->base);
    if (!is_used(limits))
        return STATUS_OK;
    enum status st = check_shape(k, limits, err);
    if (st != STATUS_OK)
        return st;
    struct cuda_attention *a = calloc(1, sizeof *a);
    if (a == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the attention's state");
    s->attention = a;
    st = prepare(a, k, limits, err);
    const size_t n = (size_t)a->shape.max_pairs * (size_t)limits->n_heads;
    const size_t len_bytes = n > 0 ? (size_t)a->shape.max_pairs * pair_bytes(limits) : 1;
    if (st == STATUS_OK)
        st = cuda_check(cudaMalloc(&a->memory, len_bytes), "taking memory for partial attention",
                        err);
    if (st == STATUS_OK)
        st = cuda_check(cudaMemsetAsync(a->memory, 0, len_bytes, s->stream),
                        "clearing partial attention", err);
    if (st != STATUS_OK) {
        cuda_attention_release(s);
        return st;
    }
    a->partials = a->memory;
    a->partial_sums = a->partials + n * (size_t)limits->head_dim;
    a->counters = (int32_t *)(a->partial_sums + n * 2);
    return STATUS_OK;
}

void cuda_attention_release(struct cuda_stream *s)
{
    struct cuda_attention *a = s->attention;
    if (a == NULL)
        return;
    if (a->memory != NULL)
        (void)cudaFree(a->memory);
    free(a);
    s->attention = NULL;
}

/* Takes room for the most items, and gives back what the plan left over. */
static int32_t
pack_items(const struct attention_shape *shape, const struct kernels_batch *batch, int32_t most,
           int32_t (*plan)(const struct attention_shape *, const struct kernels_batch *,
                           struct cuda_attention_item *),
           struct cuda_pack *pack, const struct cuda_attention_item **device_out)
{
    const size_t used_bytes = pack->used_bytes;
    struct cuda_attention_item *items =
        cuda_pack_take(pack, (size_t)most * sizeof *items, device_out);
    const int32_t n = plan(shape, batch, items);
    pack->used_bytes = used_bytes + (size_t)n * sizeof *items;
    return n;
}

void cuda_attention_pack(const struct cuda_stream *s, const struct kernels_batch *batch,
                         struct cuda_pack *pack, struct cuda_batch *out)
{
    const struct cuda_attention *a = s->attention;
    out->n_split_items = 0;
    out->n_tile_items = 0;
    if (a == NULL)
        return;
    static_assert(sizeof(struct cuda_attention_item) % 16 == 0, "the pack stays aligned");
    out->n_split_items =
        pack_items(&a->shape, batch, attention_plan_max_split_items(&a->shape, batch->n_rows),
                   attention_plan_split, pack, &out->split_items);
    struct attention_shape shape = a->shape;
    if (shape.tile_rows > 0)
        shape.tile_rows = cuda_attention_tile_rows(a->head_dim, kind_of(a, batch->n_rows));
    out->n_tile_items = pack_items(&shape, batch, attention_plan_max_tile_items(batch->n_rows),
                                   attention_plan_tiles, pack, &out->tile_items);
}

static enum status check_call(const struct cuda_attention *a, int n_heads,
                              const struct kernels_kv *kv, struct err *err)
{
    if (a == NULL)
        return err_set(err, STATUS_INVALID,
                       "attention: the stream was reserved without attention heads");
    assert(n_heads == a->shape.n_heads && kv->n_kv_heads == a->shape.n_kv_heads &&
           kv->head_dim == a->head_dim); /* the front end has looked */
    if (kv->dtype != DTYPE_BF16)
        return err_set(err, STATUS_UNSUPPORTED,
                       "attention on the GPU reads KV in bf16 only: leave out --kv-dtype");
    const double rows = 2.0 * kv->n_blocks * kv->n_layers * kv->n_kv_heads * kv->block_size;
    if (rows >= (double)UINT32_MAX)
        return err_set(err, STATUS_UNSUPPORTED,
                       "attention: the KV pool has %.0f rows of K and V, more than 32 bits count: "
                       "use a smaller one",
                       rows);
    return STATUS_OK;
}

enum status cuda_attention(struct kernels_stream *base, void *out, const void *qkv, int n_heads,
                           const struct kernels_kv *kv, int layer, int n, struct err *err)
{
    struct cuda_stream *s = cuda_stream_of(base);
    const struct cuda_attention *a = s->attention;
    enum status st = check_call(a, n_heads, kv, err);
    if (st != STATUS_OK || n == 0)
        return st;
    const struct cuda_attention_args args = {
        .out = out,
        .qkv = qkv,
        .pool = kv->memory.data,
        .batch = s->device_batch,
        .partials = a->partials,
        .partial_sums = a->partial_sums,
        .counters = a->counters,
        .n_heads = n_heads,
        .n_kv_heads = kv->n_kv_heads,
        .n_layers = kv->n_layers,
        .layer = layer,
        .blocks = cuda_attention_blocks_of(kv->block_size),
        .scale = (float)(1.4426950408889634 / sqrt((double)a->head_dim)),
    };
    st = cuda_check(cuda_attention_split(&args, a->head_dim, a->n_blocks, s->stream),
                    "launching split attention", err);
    /* A batch of more rows may have tiles. Recorded kernels run for other batches, too, so that
     * what this one has is not the question. */
    if (st == STATUS_OK && a->shape.tile_rows > 0 && n > ATTENTION_TILE_BATCH)
        st = cuda_check(cuda_attention_tile(&args, a->head_dim, kind_of(a, s->host_batch.n_rows),
                                            attention_plan_max_tile_items(n), s->stream),
                        "launching tile attention", err);
    return st;
}
