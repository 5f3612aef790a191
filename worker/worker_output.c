/* Carries out what the stage decided: copies rows, encodes messages, starts batches. */
#include "cluster/host.h"
#include "worker/worker_state.h"

#include <assert.h>
#include <string.h>

/* Top logits of a large vocabulary and hidden states are long, and a control message is bounded
 * (docs/wire.md). */
enum { OBSERVATIONS_BYTES = 4 * 1024 * 1024 };

void worker_clock(struct worker *w, uint64_t now_ns)
{
    w->activity_ns[w->activity] += now_ns - w->activity_since_ns;
    w->activity_since_ns = now_ns;
    w->activity = w->n_running > 0     ? WORKER_COMPUTING
                  : w->wake_at_ns != 0 ? WORKER_WAITING
                                       : WORKER_STARVED;
}

enum status worker_send_control(struct worker *w, const struct control_message *m, struct err *err)
{
    struct transport_message *message;
    enum status status = transport_acquire(w->transport, control_size(m), &message, err);
    if (status != STATUS_OK)
        return status;
    message->len_bytes = control_encode(m, message->bytes, message->cap_bytes);
    return transport_post(w->transport, 0, message, err);
}

enum status worker_send_observations(struct worker *w, const struct batch_result *result,
                                     struct err *err)
{
    enum status status = STATUS_OK;
    uint32_t first = 0;
    while (first < result->n_observations && status == STATUS_OK) {
        struct control_message m = {.kind = CONTROL_OBSERVATIONS};
        m.observations.items = result->observations + first;
        size_t bytes = 0;
        while (first < result->n_observations && bytes < OBSERVATIONS_BYTES) {
            const struct control_observation *o = &result->observations[first++];
            bytes += 64 + o->n_top * (size_t)10 + o->n_hidden * sizeof *o->hidden;
            m.observations.n++;
        }
        status = worker_send_control(w, &m, err);
    }
    return status;
}

/* Its rows are noted and not there yet. */
static enum status worker_encode_bundle(struct worker *w, const struct stage_output *out,
                                        const struct stage_send *send,
                                        struct transport_message **made, struct err *err)
{
    size_t need_bytes = bundle_header_bytes(), rows_bytes = 0;
    for (uint32_t i = 0; i < send->n_frames; i++) {
        const struct frame *head = &out->frames[send->first_frame + i].head;
        need_bytes += frame_bytes(head->loop, head->n_rows, head->flags, w->limits.d_model);
        if (w->is_direct)
            rows_bytes += frame_rows_bytes(head->loop, head->n_rows, w->limits.d_model);
    }
    need_bytes -= rows_bytes;
    struct transport_message *message;
    enum status status = transport_acquire(w->transport, need_bytes, &message, err);
    if (status != STATUS_OK)
        return status;
    struct bundle_writer writer;
    bundle_begin(&writer, message->bytes, message->cap_bytes, w->limits.d_model, send->flags,
                 send->round);
    if (rows_bytes > 0) {
        status = transport_add_rows(w->transport, message, rows_bytes, err);
        if (status != STATUS_OK) {
            transport_release(w->transport, message);
            return status;
        }
        bundle_set_apart(&writer, message->rows, rows_bytes);
    }
    for (uint32_t i = 0; i < send->n_frames; i++) {
        const struct stage_frame *frame = &out->frames[send->first_frame + i];
        void *ids, *rows;
        status = bundle_add(&writer, &frame->head, &ids, &rows, err);
        if (status == STATUS_OK)
            memcpy(ids, out->ids + frame->first, frame->head.n_rows * sizeof *out->ids);
        if (status == STATUS_OK && rows != NULL)
            status = worker_rows_leave(&w->rows, out->slots + frame->first, frame->head.n_rows,
                                       rows, err);
        if (status != STATUS_OK) {
            transport_release(w->transport, message);
            return status;
        }
    }
    message->len_bytes = bundle_end(&writer);
    *made = message;
    return STATUS_OK;
}

/* All rows of all messages are read from the store in one go, then the messages leave. */
static enum status worker_send_bundles(struct worker *w, const struct stage_output *out,
                                       struct err *err)
{
    uint64_t began_ns = worker_trace_begin(w);
    uint32_t n_made = 0, n_posted = 0;
    enum status status = STATUS_OK;
    for (; n_made < out->n_sends && status == STATUS_OK; n_made += status == STATUS_OK)
        status = worker_encode_bundle(w, out, &out->sends[n_made], &w->leaving[n_made], err);
    if (status == STATUS_OK)
        status = worker_rows_finish(&w->rows, err);
    for (; n_posted < n_made && status == STATUS_OK; n_posted++) {
        const struct stage_send *send = &out->sends[n_posted];
        int rank = w->ring_first_rank + (int)send->mate;
        size_t len_bytes = w->leaving[n_posted]->len_bytes + w->leaving[n_posted]->rows_bytes;
        status = transport_post(w->transport, rank, w->leaving[n_posted], err);
        worker_trace_message(w, TRACE_SEND, began_ns, rank, len_bytes, send->n_frames);
        began_ns = worker_trace_begin(w);
    }
    for (; n_posted < n_made; n_posted++)
        transport_release(w->transport, w->leaving[n_posted]);
    return status;
}

static enum status worker_send_notices(struct worker *w, const struct stage_output *out,
                                       struct err *err)
{
    for (uint32_t i = 0; i < out->n_notices; i++) {
        const struct stage_notice *notice = &out->notices[i];
        struct control_message m = {.kind = notice->kind};
        m.sequence.sequence = notice->sequence;
        m.sequence.failure = notice->failure;
        memcpy(m.sequence.message, notice->message, sizeof notice->message);
        if (notice->kind == CONTROL_CLOSED)
            worker_targets_drop(w, notice->sequence);
        enum status status = worker_send_control(w, &m, err);
        if (status != STATUS_OK)
            return status;
    }
    if (out->n_tokens == 0)
        return STATUS_OK;
    struct control_message m = {.kind = CONTROL_TOKENS};
    m.tokens.n = out->n_tokens;
    m.tokens.items = out->tokens;
    return worker_send_control(w, &m, err);
}

static enum status worker_start_batch(struct worker *w, const struct batch *batch, struct err *err)
{
    assert(w->n_running < w->n_in_flight);
    w->running[w->n_running++] = batch;
    worker_clock(w, host_now_ns());
    double expected_ns = w->cost.batch_ns + w->cost.row_ns * batch->n_rows;
    if (w->n_in_flight > 1 || expected_ns >= COST_INLINE_BATCH_NS)
        return compute_start(w->compute, batch, err);
    compute_run_here(w->compute, batch);
    return STATUS_OK;
}

enum status worker_step(struct worker *w, const struct stage_event *event, struct err *err)
{
    const struct stage_output *out;
    enum status status = stage_step(w->stage, event, &out, err);
    /* A frame that breaks the protocol fails its own sequence (by a notice in out), not this
     * worker. */
    if (status != STATUS_OK && status != STATUS_CORRUPT)
        return status;
    /* It has freed slots that rows noted here are still to go into. */
    status = status == STATUS_CORRUPT ? worker_rows_finish(&w->rows, err) : STATUS_OK;
    /* The coordinator hears of tokens before anything else is done with them: it streams them. But
     * for a device that idles meanwhile; rows go first in any case, because the batch may take
     * their slots. */
    const bool is_start_first = out->start != NULL && w->n_in_flight > 1;
    if (status == STATUS_OK && out->n_copy > 0)
        status =
            worker_rows_arrive(&w->rows, out->copy_slots, out->n_copy, event->frame->rows, err);
    if (status == STATUS_OK && !is_start_first)
        status = worker_send_notices(w, out, err);
    if (status == STATUS_OK && out->n_sends > 0)
        status = worker_send_bundles(w, out, err);
    if (status != STATUS_OK)
        return status;
    w->wake_at_ns = out->wake_at_ns;
    if (out->start != NULL)
        status = worker_start_batch(w, out->start, err);
    if (status == STATUS_OK && is_start_first)
        status = worker_send_notices(w, out, err);
    return status;
}
