/* Every (row, position it sees) of a batch falls into exactly one item per head. */
#include "kernels/attention_plan.h"

#include <assert.h>

/* Room for four rows against all positions: a live row and a few parked ones that ride along. */
enum { PAIR_ROWS = 4 };

int32_t attention_plan_pairs(const struct kernels_limits *limits, size_t pair_bytes,
                             size_t max_bytes)
{
    size_t positions = (size_t)limits->n_table * (size_t)limits->block_size;
    size_t pieces = positions / ATTENTION_PIECE + (size_t)limits->n_segments;
    size_t room = max_bytes / pair_bytes;
    return (int32_t)(pieces * PAIR_ROWS < room ? pieces * PAIR_ROWS : room);
}

int32_t attention_plan_max_split_items(const struct attention_shape *shape, int32_t n_rows)
{
    /* An item that is one of several has a pair at least, all others a row. */
    return shape->max_pairs + n_rows;
}

int32_t attention_plan_max_tile_items(int32_t n_rows)
{
    return n_rows / ATTENTION_TILE_LEAST;
}

static bool is_tiled(const struct attention_shape *shape, const struct kernels_batch *batch,
                     const struct kernels_segment *segment)
{
    return shape->tile_rows > 0 && batch->n_rows > ATTENTION_TILE_BATCH &&
           segment->n_rows >= ATTENTION_TILE_LEAST;
}

/* Which split items are written: three rounds over the same cuts. */
enum round { ROUND_ALL_PIECES, ROUND_WHOLE_PIECES, ROUND_LAST_PIECES };

static int32_t item_write(struct cuda_attention_item *to, const struct cuda_attention_item *group,
                          int32_t piece, int32_t n_pieces, int32_t first_pair)
{
    *to = *group;
    to->first_piece = piece;
    to->n_pieces = n_pieces;
    to->first_pair = first_pair;
    return 1;
}

/* The items of one row group that belong to the round; returns how many. */
static int32_t group_write(const struct attention_shape *shape, enum round round,
                           const struct cuda_attention_item *group, int32_t *n_pairs,
                           struct cuda_attention_item *to)
{
    const int32_t pieces = attention_pieces(group->first_position + group->n_rows);
    const int64_t wanted = (int64_t)*n_pairs + (int64_t)group->n_rows * pieces;
    if (pieces == 1)
        return round == ROUND_LAST_PIECES ? item_write(to, group, 0, 1, -1) : 0;
    if (wanted > shape->max_pairs)
        return round == ROUND_ALL_PIECES ? item_write(to, group, 0, pieces, -1) : 0;
    const int32_t first_pair = *n_pairs;
    *n_pairs = (int32_t)wanted;
    if (round == ROUND_LAST_PIECES)
        return item_write(to, group, pieces - 1, 1, first_pair);
    int32_t n = 0;
    for (int32_t piece = 0; round == ROUND_WHOLE_PIECES && piece < pieces - 1; piece++)
        n += item_write(to + n, group, piece, 1, first_pair);
    return n;
}

static int32_t split_round(const struct attention_shape *shape, enum round round,
                           const struct kernels_batch *batch, struct cuda_attention_item *to)
{
    const int heads = attention_heads_shared(shape->n_heads, shape->n_kv_heads);
    const int32_t most_rows = ATTENTION_QUERIES / heads;
    int32_t n = 0, n_pairs = 0;
    for (int32_t i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *segment = &batch->segments[i];
        if (is_tiled(shape, batch, segment))
            continue;
        for (int32_t row = 0; row < segment->n_rows; row += most_rows) {
            int32_t left = segment->n_rows - row;
            const struct cuda_attention_item group = {
                .first_row = segment->first_row + row,
                .n_rows = left < most_rows ? left : most_rows,
                .first_position = segment->first_position + row,
                .first_block = segment->first_block,
            };
            n += group_write(shape, round, &group, &n_pairs, to + n);
        }
    }
    return n;
}

static int32_t last_position(const struct cuda_attention_item *item)
{
    return item->first_position + item->n_rows;
}

/* Shell's sort: a few hundred items, and no heap. Equal ones keep no order; they are as long. */
static void sort_longest_first(struct cuda_attention_item *items, int32_t n)
{
    int32_t gap = 1;
    while (gap < n / 3)
        gap = 3 * gap + 1;
    for (; gap > 0; gap /= 3)
        for (int32_t i = gap; i < n; i++) {
            const struct cuda_attention_item item = items[i];
            int32_t at = i;
            for (; at >= gap && last_position(&items[at - gap]) < last_position(&item); at -= gap)
                items[at] = items[at - gap];
            items[at] = item;
        }
}

int32_t attention_plan_split(const struct attention_shape *shape, const struct kernels_batch *batch,
                             struct cuda_attention_item *items)
{
    int32_t n = 0;
    for (enum round round = ROUND_ALL_PIECES; round <= ROUND_LAST_PIECES; round++)
        n += split_round(shape, round, batch, items + n);
    assert(n <= attention_plan_max_split_items(shape, batch->n_rows));
    return n;
}

int32_t attention_plan_tiles(const struct attention_shape *shape, const struct kernels_batch *batch,
                             struct cuda_attention_item *items)
{
    int32_t n = 0;
    for (int32_t i = 0; i < batch->n_segments; i++) {
        const struct kernels_segment *segment = &batch->segments[i];
        if (!is_tiled(shape, batch, segment))
            continue;
        for (int32_t row = 0; row < segment->n_rows; row += shape->tile_rows) {
            int32_t left = segment->n_rows - row;
            items[n++] = (struct cuda_attention_item){
                .first_row = segment->first_row + row,
                .n_rows = left < shape->tile_rows ? left : shape->tile_rows,
                .first_position = segment->first_position + row,
                .first_block = segment->first_block,
                .first_pair = -1,
            };
        }
    }
    sort_longest_first(items, n);
    assert(n <= attention_plan_max_tile_items(batch->n_rows));
    return n;
}
