/* Lays out all arrays of a stage in one piece of memory. */
#include "worker/stage_state.h"

#include <stdalign.h>
#include <stdint.h>

struct layout {
    unsigned char *base; /* NULL: only count */
    size_t at;           /* SIZE_MAX once it has overflowed */
};

static void *layout_array(struct layout *l, size_t n, size_t item_bytes)
{
    size_t bytes, padded, end;
    size_t align = alignof(max_align_t);
    if (l->at == SIZE_MAX || __builtin_mul_overflow(n, item_bytes, &bytes) ||
        __builtin_add_overflow(bytes, align - 1, &padded) ||
        __builtin_add_overflow(l->at, padded / align * align, &end)) {
        l->at = SIZE_MAX;
        return NULL;
    }
    void *array = l->base != NULL ? l->base + l->at : NULL;
    l->at = end;
    return array;
}

/* The bounds of the batch and of the output:
 *   segments      each has at least one row, and a lane has at most one in a batch: <=
 * max_batch_rows
 *   block_table   the lanes of a batch are distinct and so are their blocks: <= n_blocks
 *   frames        a finished segment makes at most two (the next loop's, loop 1's): <= 2 *
 * max_batch_rows
 *   rows          a slot leaves in one frame, and a frame of loop 1 has one row: <=
 * n_slots + max_batch_rows copy_slots    rows of one frame, each in a slot of its own: <= n_slots
 *   tokens        one for each live row, one live row a sequence: <= max_sequences
 *   notices       a finished batch closes or fails each sequence at most once, any other event
 * answers one sequence, and forming a batch fails each sequence at most once: <= max_sequences + 1
 *   sends         one a mate: <= ring_size */
size_t stage_memory_place(struct stage *s, unsigned char *base)
{
    struct layout l = {.base = base, .at = 0};
    const struct stage_config *c = &s->config;
    size_t max_rows = c->max_batch_rows;
    layout_array(&l, 1, sizeof *s);
#define PLACE(pointer, n) ((pointer) = layout_array(&l, (n), sizeof *(pointer)))
    PLACE(s->slots.next, c->n_slots);
    PLACE(s->slot_ids, c->n_slots);
    PLACE(s->arrivals, c->trace != NULL ? c->n_slots : 0);
    if (c->trace == NULL)
        s->arrivals = NULL;
    PLACE(s->kv.pool.next, c->n_blocks);
    size_t n_pool_ids;
    if (__builtin_mul_overflow((size_t)c->n_blocks, (size_t)c->block_size, &n_pool_ids))
        return SIZE_MAX;
    PLACE(s->kv.ids, n_pool_ids);
    PLACE(s->sequences, c->max_sequences);
    PLACE(s->buckets, s->n_buckets);
    for (uint32_t i = 0; i < c->n_in_flight; i++) {
        struct stage_flight *f = &s->flights[i];
        PLACE(f->batch.segments, max_rows);
        PLACE(f->batch.geometry, max_rows);
        PLACE(f->batch.slots, max_rows);
        PLACE(f->batch.ids, max_rows);
        PLACE(f->batch.block_table, c->n_blocks);
        PLACE(f->lanes, max_rows);
        PLACE(f->may_feed, c->ring_size);
    }
    PLACE(s->mates, c->ring_size);
    PLACE(s->mate_rounds, c->ring_size);
    PLACE(s->is_announced, c->ring_size);
    PLACE(s->mate_flags, c->ring_size);
    PLACE(s->mate_busy_rounds, c->ring_size);
    PLACE(s->mate_first_frame, c->ring_size);
    PLACE(s->mate_n_frames, c->ring_size);
    PLACE(s->copy_slots, c->n_slots);
    PLACE(s->unsorted, 2 * max_rows);
    PLACE(s->unsorted_mates, 2 * max_rows);
    PLACE(s->output.sends, c->ring_size);
    PLACE(s->output.frames, 2 * max_rows);
    PLACE(s->output.slots, (size_t)c->n_slots + max_rows);
    PLACE(s->output.ids, (size_t)c->n_slots + max_rows);
    PLACE(s->output.notices, (size_t)c->max_sequences + 1);
    PLACE(s->output.tokens, c->max_sequences);
#undef PLACE
    return l.at;
}
