/* Collects what one step wants done, with one message for each ring mate. */
#include "worker/stage_state.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/* The room behind every array is bounded in stage_memory.c; the assertions below state those
 * bounds. */

void stage_output_reset(struct stage *s)
{
    struct stage_output *o = &s->output;
    o->n_copy = 0;
    o->copy_slots = s->copy_slots;
    o->n_sends = o->n_frames = o->n_notices = o->n_tokens = 0;
    o->start = NULL;
    o->wake_at_ns = 0;
    s->n_rows_out = 0;
    for (uint32_t i = 0; i < s->config.ring_size; i++)
        s->mate_flags[i] = 0;
}

void stage_output_notice(struct stage *s, enum control_kind kind, uint64_t sequence,
                         enum status failure, const char *message)
{
    struct stage_output *o = &s->output;
    assert(o->n_notices <= s->config.max_sequences);
    struct stage_notice *notice = &o->notices[o->n_notices++];
    notice->kind = kind;
    notice->sequence = sequence;
    notice->failure = failure;
    snprintf(notice->message, sizeof notice->message, "%s", message);
}

void stage_output_token(struct stage *s, const struct control_token *token)
{
    struct stage_output *o = &s->output;
    assert(o->n_tokens < s->config.max_sequences);
    o->tokens[o->n_tokens++] = *token;
}

void stage_output_flag(struct stage *s, uint32_t mate, uint32_t flag, uint32_t round)
{
    assert(mate < s->config.ring_size && mate != s->config.ring_index);
    s->mate_flags[mate] |= flag;
    if (flag == BUNDLE_BUSY)
        s->mate_busy_rounds[mate] = round;
}

void stage_output_frame(struct stage *s, uint32_t mate, const struct frame *head)
{
    struct stage_output *o = &s->output;
    assert(mate < s->config.ring_size && mate != s->config.ring_index);
    assert(o->n_frames / 2 < s->config.max_batch_rows);
    s->unsorted_mates[o->n_frames] = mate;
    s->unsorted[o->n_frames++] = (struct stage_frame){.head = *head, .first = s->n_rows_out};
}

void stage_output_row(struct stage *s, int32_t slot, int32_t id)
{
    assert(s->n_rows_out < (uint64_t)s->config.n_slots + s->config.max_batch_rows);
    s->output.slots[s->n_rows_out] = slot;
    s->output.ids[s->n_rows_out] = id;
    s->n_rows_out++;
}

void stage_output_finish(struct stage *s)
{
    struct stage_output *o = &s->output;
    uint32_t n_mates = s->config.ring_size;
    for (uint32_t m = 0; m < n_mates; m++)
        s->mate_n_frames[m] = 0;
    for (uint32_t i = 0; i < o->n_frames; i++)
        s->mate_n_frames[s->unsorted_mates[i]]++;
    uint32_t first = 0;
    for (uint32_t m = 0; m < n_mates; m++) {
        s->mate_first_frame[m] = first;
        if (s->mate_n_frames[m] > 0 || s->mate_flags[m] != 0)
            o->sends[o->n_sends++] = (struct stage_send){
                .mate = m,
                .flags = s->mate_flags[m],
                .round = s->mate_flags[m] & BUNDLE_BUSY ? s->mate_busy_rounds[m] : 0,
                .first_frame = first,
                .n_frames = s->mate_n_frames[m]};
        first += s->mate_n_frames[m];
    }
    /* Stable: a mate gets its frames in the order of the batch. */
    for (uint32_t i = 0; i < o->n_frames; i++)
        o->frames[s->mate_first_frame[s->unsorted_mates[i]]++] = s->unsorted[i];
}
