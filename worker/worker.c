/* One rank's loop: messages and finished batches in, the stage's decisions out, until shutdown. */
#include "worker/worker.h"

#include "cluster/host.h"
#include "worker/worker_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The loop looks around at least this often, whatever the transport's wake-ups do. */
enum { LOOK_AROUND_NS = 500 * 1000 * 1000 };

static enum status worker_send_stats(struct worker *w, const struct control_stats *request,
                                     struct err *err)
{
    uint64_t now_ns = host_now_ns();
    worker_clock(w, now_ns);
    struct control_message m = {.kind = CONTROL_STATS};
    struct control_stats *stats = &m.stats;
    stage_fill_stats(w->stage, stats);
    stats->tag = request->tag;
    stats->n_heads = w->n_heads;
    stats->n_messages_sent =
        w->transport->counters.n_messages_sent - w->counters_base.n_messages_sent;
    stats->n_bytes_sent = w->transport->counters.n_bytes_sent - w->counters_base.n_bytes_sent;
    stats->busy_ns = w->activity_ns[WORKER_COMPUTING];
    stats->idle_starved_ns = w->activity_ns[WORKER_STARVED];
    stats->idle_waiting_ns = w->activity_ns[WORKER_WAITING];
    stats->elapsed_ns = now_ns - w->counters_since_ns;
    stats->clock_ns = now_ns;
    stats->n_trace_records = w->trace != NULL ? w->trace->n_added - w->n_records_base : 0;
    if (request->reset) {
        memset(w->activity_ns, 0, sizeof w->activity_ns);
        w->counters_since_ns = now_ns;
        w->n_heads = 0;
        w->counters_base = w->transport->counters;
        w->n_records_base = w->trace != NULL ? w->trace->n_added : 0;
        stage_reset_counters(w->stage);
    }
    return worker_send_control(w, &m, err);
}

static enum status worker_take_bundle(struct worker *w, const struct transport_message *message,
                                      struct err *err)
{
    uint64_t began_ns = worker_trace_begin(w);
    struct bundle_reader reader;
    enum status status = bundle_open(&reader, message->bytes, message->len_bytes, &w->limits, err);
    if (status == STATUS_OK)
        status = bundle_join_rows(&reader, message->rows, message->rows_bytes, err);
    if (status != STATUS_OK)
        return err_wrap(err, "rank %d: message from rank %d", w->transport->rank, message->source);
    const uint32_t both = BUNDLE_DONE | BUNDLE_BUSY;
    struct stage_event mate = {.kind = STAGE_MATE, .now_ns = host_now_ns()};
    mate.mate = (uint32_t)(message->source - w->ring_first_rank);
    if ((reader.flags & both) != 0 && (mate.mate >= w->ring_size || mate.mate == w->ring_index))
        return err_set(err, STATUS_CORRUPT, "rank %d: rank %d is no mate in its ring of %u",
                       w->transport->rank, message->source, w->ring_size);
    /* In the sender's order: its batch is over, these are its rows, it has begun the next one. The
     * stage starts nothing in between. */
    if (reader.flags & BUNDLE_DONE) {
        mate.mate_flags = BUNDLE_DONE;
        status = worker_step(w, &mate, err);
    }
    bool has_frame = true;
    while (status == STATUS_OK && has_frame) {
        struct frame frame;
        status = bundle_next(&reader, &frame, &has_frame, err);
        if (status != STATUS_OK)
            return err_wrap(err, "rank %d: message from rank %d", w->transport->rank,
                            message->source);
        if (!has_frame) /* the message's bytes are used until here */
            status = worker_rows_finish(&w->rows, err);
        if (!has_frame)
            break;
        struct stage_event event = {.kind = STAGE_FRAME,
                                    .now_ns = host_now_ns(),
                                    .frame = &frame,
                                    .source_rank = (uint16_t)message->source};
        status = worker_step(w, &event, err);
    }
    if (status == STATUS_OK && (reader.flags & BUNDLE_BUSY)) {
        mate.now_ns = host_now_ns(); /* time does not go back */
        mate.mate_flags = BUNDLE_BUSY;
        mate.mate_round = reader.round;
        status = worker_step(w, &mate, err);
    }
    worker_trace_message(w, TRACE_RECEIVE, began_ns, message->source,
                         message->len_bytes + message->rows_bytes, reader.n_frames);
    return status;
}

static enum status worker_take_control(struct worker *w, const struct transport_message *message,
                                       struct err *err)
{
    struct control_message m;
    enum status status = control_decode(message->bytes, message->len_bytes, &m, err);
    if (status != STATUS_OK)
        return err_wrap(err, "rank %d: message from rank %d", w->transport->rank, message->source);
    struct stage_event event = {.now_ns = host_now_ns()};
    switch (m.kind) {
    case CONTROL_OPEN:
        event.kind = STAGE_OPEN;
        event.params = &m.open;
        event.targets = m.open_targets;
        status = worker_targets_take(w, &m, err);
        if (status == STATUS_OK)
            status = worker_step(w, &event, err);
        break;
    case CONTROL_CLOSE:
        event.kind = STAGE_CLOSE;
        event.sequence = m.sequence.sequence;
        status = worker_step(w, &event, err);
        break;
    case CONTROL_STATS_REQUEST:
        status = worker_send_stats(w, &m.stats, err);
        break;
    case CONTROL_TRACE_REQUEST:
        worker_trace_request(w, &m.trace_request);
        break;
    case CONTROL_SHUTDOWN:
        w->is_over = true;
        break;
    default:
        status = err_set(err, STATUS_CORRUPT, "rank %d: message kind %d is not for a worker",
                         w->transport->rank, (int)m.kind);
    }
    control_clear(&m);
    return status;
}

static enum status worker_take_message(struct worker *w, struct transport_message *message,
                                       struct err *err)
{
    int kind;
    enum status status = message_kind(message->bytes, message->len_bytes, &kind, err);
    if (status != STATUS_OK)
        err_wrap(err, "rank %d: message from rank %d", w->transport->rank, message->source);
    else if (kind == MESSAGE_BUNDLE)
        status = worker_take_bundle(w, message, err);
    else
        status = worker_take_control(w, message, err);
    transport_release(w->transport, message);
    return status;
}

/* Gives the oldest batch to the stage when it has finished; *did_work says whether there was one.
 */
static enum status worker_take_result(struct worker *w, bool *did_work, struct err *err)
{
    const struct batch_result *result;
    enum status status = compute_take(w->compute, &result, err);
    if (status != STATUS_OK || result == NULL)
        return status;
    *did_work = true;
    cost_update(&w->cost, w->running[0]->n_rows, result->compute_ns);
    w->n_heads += result->n_heads;
    status = worker_send_observations(w, result, err);
    if (status != STATUS_OK)
        return status;
    w->running[0] = w->running[1];
    w->n_running--;
    uint64_t now_ns = host_now_ns();
    worker_clock(w, now_ns);
    struct stage_event cost = {.kind = STAGE_COST,
                               .now_ns = now_ns,
                               .batch_ns = (uint64_t)w->cost.batch_ns,
                               .row_ns = (uint64_t)w->cost.row_ns};
    status = worker_step(w, &cost, err);
    if (status != STATUS_OK)
        return status;
    struct stage_event done = {.kind = STAGE_BATCH_DONE, .now_ns = now_ns, .result = result};
    return worker_step(w, &done, err);
}

/* Takes in all that has arrived, without starting a batch in between: it goes into the next one
 * together. */
static enum status worker_take_messages(struct worker *w, bool *did_work, struct err *err)
{
    for (;;) {
        struct transport_message *message;
        enum status status = transport_poll(w->transport, &message, err);
        if (status != STATUS_OK || message == NULL)
            return status;
        *did_work = true;
        status = worker_take_message(w, message, err);
        if (status != STATUS_OK || w->is_over)
            return status;
    }
}

static enum status worker_loop(struct worker *w, struct err *err)
{
    while (!w->is_over) {
        bool did_work = false, has_result = false;
        enum status status = worker_take_messages(w, &did_work, err);
        if (status == STATUS_OK && w->n_running > 0)
            status = worker_take_result(w, &has_result, err);
        uint64_t now_ns = host_now_ns();
        bool is_due = w->wake_at_ns != 0 && now_ns >= w->wake_at_ns;
        if (status == STATUS_OK && !has_result && (did_work || is_due)) {
            struct stage_event time = {.kind = STAGE_TIME, .now_ns = now_ns};
            status = worker_step(w, &time, err);
        }
        if (status != STATUS_OK)
            return status;
        worker_clock(w, host_now_ns());
        /* A piece a turn: a long answer never silences the driver. */
        bool is_telling = w->trace_answer.is_open && !w->is_over;
        if (is_telling && (status = worker_trace_answer(w, err)) != STATUS_OK)
            return status;
        if (did_work || has_result || is_due || is_telling || w->is_over)
            continue;
        uint64_t timeout_ns = LOOK_AROUND_NS;
        if (w->wake_at_ns != 0 && w->wake_at_ns - now_ns < timeout_ns)
            timeout_ns = w->wake_at_ns - now_ns;
        status = transport_wait(w->transport, timeout_ns, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

/* The last words: goodbye after an orderly end, the reason after a failure. */
static void worker_leave(struct worker *w, enum status status, const struct err *err)
{
    struct control_message m = {.kind = CONTROL_GOODBYE};
    if (status == STATUS_OK) {
        m.goodbye_rank = (uint32_t)w->transport->rank;
    } else {
        m.kind = CONTROL_SHUTDOWN;
        m.shutdown.failure = status;
        snprintf(m.shutdown.message, sizeof m.shutdown.message, "%s",
                 err != NULL ? err->message : status_name(status));
    }
    if (worker_send_control(w, &m, NULL) != STATUS_OK)
        return;
    uint64_t deadline_ns = host_now_ns() + 2ull * 1000 * 1000 * 1000;
    while (!transport_is_drained(w->transport) && host_now_ns() < deadline_ns) {
        struct transport_message *message;
        if (transport_poll(w->transport, &message, NULL) != STATUS_OK)
            return;
        if (message != NULL)
            transport_release(w->transport, message);
        else
            transport_wait(w->transport, 1000 * 1000, NULL);
    }
}

enum status worker_run(struct transport *transport, const struct worker_config *config,
                       struct err *err)
{
    struct worker w = {.transport = transport, .config = config};
    w.activity_since_ns = w.counters_since_ns = host_now_ns();
    struct err own = {0};
    if (err == NULL)
        err = &own;
    enum status status = worker_start(&w, err);
    w.activity_since_ns = host_now_ns();
    if (status == STATUS_OK && !w.is_over)
        status = worker_loop(&w, err);
    worker_leave(&w, status, err);
    worker_rows_destroy(&w.rows);
    free(w.leaving);
    compute_destroy(w.compute);
    stage_destroy(w.stage);
    worker_trace_destroy(&w);
    worker_targets_drop(&w, 0);
    replica_destroy(w.replica);
    checkpoint_close(w.checkpoint);
    return status;
}
