/* Writes the trace of all ranks as a file that Perfetto opens. */
#include "coordinator/trace_chain.h"
#include "coordinator/trace_events.h"
#include "coordinator/trace_lanes.h"
#include "coordinator/trace_set.h"

#include "coordinator/json_writer.h"
#include "model/atomic_file.h"

#include <stdlib.h>

enum { PIECE_BYTES = 1 << 20 };

struct writer {
    const struct trace_set *set;
    uint64_t *first_batch_ns; /* [n_ranks]; what began before has no slice */
    struct trace_events events;
    struct atomic_file file;
};

/* ---- times ---------------------------------------------------------------------------------- */

static uint64_t first_time(const struct trace_set *set)
{
    uint64_t first = UINT64_MAX;
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        if (set->ranks[rank].n_records > 0 && set->ranks[rank].records[0].at_ns < first)
            first = set->ranks[rank].records[0].at_ns;
    return first == UINT64_MAX ? 0 : first;
}

static uint64_t hop_of(const struct trace_record *r)
{
    return r->rows.hop_ns > 0 ? (uint64_t)r->rows.hop_ns : 0;
}

/* Where a span begins in the picture: rows are there from the moment they were sent. What began
 * before the first record begins with it. */
static uint64_t begin_of(const struct writer *w, const struct trace_record *r)
{
    uint64_t since = r->at_ns - w->events.base_ns;
    if (r->kind != TRACE_ROWS)
        return r->at_ns;
    uint64_t back = r->rows.wait_ns < since ? r->rows.wait_ns : since;
    since -= back;
    back = hop_of(r) < since ? hop_of(r) : since;
    return w->events.base_ns + since - back;
}

/* ---- workers -------------------------------------------------------------------------------- */

static uint32_t n_loops_of(const struct writer *w, const struct trace_record *batch)
{
    uint32_t n = w->set->n_loops < SEQUENCE_MAX_LOOPS ? w->set->n_loops : SEQUENCE_MAX_LOOPS;
    for (uint32_t i = n; i < SEQUENCE_MAX_LOOPS; i++)
        if (batch->batch.rows_by_loop[i] > 0)
            n = i + 1;
    return n;
}

static void write_batch(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    static const char *const loop_names[SEQUENCE_MAX_LOOPS] = {
        "loop 1", "loop 2", "loop 3", "loop 4", "loop 5", "loop 6", "loop 7", "loop 8"};
    struct trace_events *e = &w->events;
    uint32_t n_loops = n_loops_of(w, r);
    trace_event_begin(e, 'X', rank, TRACE_TID_COMPUTE, r->at_ns);
    trace_event_name(e, "batch", "batch");
    trace_event_lasted(e, r->lasted_ns);
    trace_event_arg_always(e, "rows", r->n_rows);
    trace_event_arg_numbers(e, "by_loop", r->batch.rows_by_loop, n_loops);
    trace_event_arg(e, "segments", r->batch.n_segments);
    trace_event_arg(e, "heads", r->batch.n_heads);
    trace_event_arg(e, "head_ns", r->batch.head_ns);
    trace_event_end(e);
    if (r->batch.head_ns > 1 && r->batch.head_ns <= r->lasted_ns) {
        /* It ends a nanosecond before its batch: readers that round durations still nest it. */
        trace_event_begin(e, 'X', rank, TRACE_TID_COMPUTE,
                          r->at_ns + r->lasted_ns - r->batch.head_ns);
        trace_event_name(e, "view", "head");
        trace_event_lasted(e, r->batch.head_ns - 1);
        trace_event_end(e);
    }
    trace_event_begin(e, 'C', rank, TRACE_TID_COMPUTE, r->at_ns);
    trace_event_name(e, "view", "rows");
    for (uint32_t i = 0; i < n_loops; i++)
        trace_event_arg_always(e, loop_names[i], r->batch.rows_by_loop[i]);
    trace_event_end(e);
}

static void write_part(struct writer *w, uint32_t rank, const struct trace_span *span,
                       const char *name, uint64_t from_ns, uint64_t to_ns)
{
    struct trace_events *e = &w->events;
    for (int is_end = 0; is_end < 2 && from_ns < to_ns; is_end++) {
        trace_event_begin(e, is_end ? 'e' : 'b', rank, TRACE_TID_COMPUTE, is_end ? to_ns : from_ns);
        trace_event_name(e, "frame", name);
        trace_event_id(e, rank, span->group, span->lane);
        trace_event_end(e);
    }
}

static void write_rows(struct writer *w, uint32_t rank, const struct trace_record *r,
                       const struct trace_span *span)
{
    struct trace_events *e = &w->events;
    uint64_t arrived_ns = begin_of(w, r) + hop_of(r), end_ns = r->at_ns + r->lasted_ns;
    char name[16];
    snprintf(name, sizeof name, "loop %u", r->loop);
    if (arrived_ns > r->at_ns)
        arrived_ns = r->at_ns;
    trace_event_begin(e, 'b', rank, TRACE_TID_COMPUTE, span->from_ns);
    trace_event_name(e, "frame", name);
    trace_event_id(e, rank, span->group, span->lane);
    trace_event_arg_always(e, "seq", (int64_t)r->sequence);
    trace_event_arg_always(e, "loop", r->loop);
    trace_event_arg_always(e, "pos", r->position);
    trace_event_arg_always(e, "rows", r->n_rows);
    trace_event_arg(e, "live", (r->flags & TRACE_LIVE) != 0);
    trace_event_arg(e, "exit", (r->flags & TRACE_EXIT) != 0);
    trace_event_arg(e, "parked", r->rows.n_parked);
    trace_event_arg(e, "revived", r->rows.n_revived);
    trace_event_arg_always(e, "from", r->peer);
    trace_event_arg(e, "hop_ns", hop_of(r));
    trace_event_arg(e, "wait_ns", r->rows.wait_ns);
    trace_event_arg_always(e, "at_ns", (int64_t)(r->at_ns - e->base_ns));
    trace_event_arg_always(e, "ns", (int64_t)r->lasted_ns);
    trace_event_end(e);
    write_part(w, rank, span, "receive", span->from_ns, arrived_ns);
    write_part(w, rank, span, "wait", arrived_ns, r->at_ns);
    write_part(w, rank, span, "compute", r->at_ns, end_ns);
    trace_event_begin(e, 'e', rank, TRACE_TID_COMPUTE, end_ns);
    trace_event_name(e, "frame", name);
    trace_event_id(e, rank, span->group, span->lane);
    trace_event_end(e);
}

static void write_pool(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    struct trace_events *e = &w->events;
    trace_event_begin(e, 'C', rank, TRACE_TID_COMPUTE, r->at_ns);
    trace_event_name(e, "pool", "pool");
    trace_event_arg_always(e, "kv_used", r->pool.kv_blocks_used);
    trace_event_arg_always(e, "kv_total", r->pool.kv_blocks_total);
    trace_event_arg_always(e, "parked", r->pool.parked_rows);
    trace_event_arg_always(e, "ready", r->pool.ready_rows);
    trace_event_arg_always(e, "sequences", r->pool.n_sequences);
    trace_event_end(e);
}

static void write_idle(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    trace_event_begin(&w->events, 'X', rank, TRACE_TID_IDLE, r->at_ns);
    trace_event_name(&w->events, "idle", trace_idle_name((enum trace_idle)r->flags));
    trace_event_lasted(&w->events, r->lasted_ns);
    trace_event_end(&w->events);
}

static void write_message(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    struct trace_events *e = &w->events;
    bool is_receive = r->kind == TRACE_RECEIVE;
    trace_event_begin(e, 'X', rank, is_receive ? TRACE_TID_RECV : TRACE_TID_SEND, r->at_ns);
    trace_event_name(e, is_receive ? "receive" : "send", is_receive ? "receive" : "send");
    trace_event_lasted(e, r->lasted_ns);
    trace_event_arg_always(e, is_receive ? "from" : "to", r->peer);
    trace_event_arg(e, "bytes", r->message.n_bytes);
    trace_event_arg(e, "frames", r->message.n_frames);
    trace_event_end(e);
}

/* ---- the coordinator ------------------------------------------------------------------------ */

/* Spans of requests, and of the server as a whole. */
static void write_request(struct writer *w, uint32_t rank, const struct trace_record *r,
                          const struct trace_span *span)
{
    struct trace_events *e = &w->events;
    static const char *const categories[TRACE_KINDS] = {
        [TRACE_QUEUE] = "queue",     [TRACE_ADMISSION] = "admission", [TRACE_SEQUENCE] = "sequence",
        [TRACE_BLOCKED] = "blocked", [TRACE_DRAINING] = "draining",
    };
    const char *category = categories[r->kind];
    const char *name =
        r->kind == TRACE_BLOCKED ? trace_blocked_name((enum trace_blocked)r->flags) : category;
    bool is_of_request = r->kind != TRACE_BLOCKED && r->kind != TRACE_DRAINING;
    if (r->kind == TRACE_QUEUE) {
        trace_event_begin(e, 'i', rank, TRACE_TID_REQUESTS, r->at_ns);
        trace_event_name(e, "view", "arrival");
        trace_event_add(e, "\"s\":\"t\"");
        trace_event_end(e);
    }
    trace_event_begin(e, 'b', rank, TRACE_TID_REQUESTS, r->at_ns);
    trace_event_name(e, category, name);
    trace_event_id(e, rank, span->group, span->lane);
    if (is_of_request) {
        trace_event_arg_always(e, "request", (int64_t)r->request.request);
        trace_event_arg_always(e, "seq", (int64_t)r->sequence);
    }
    if (r->kind == TRACE_QUEUE || r->kind == TRACE_SEQUENCE)
        trace_event_arg_always(e, r->kind == TRACE_QUEUE ? "rows" : "tokens", r->n_rows);
    if (r->kind == TRACE_ADMISSION)
        trace_event_arg_always(e, "to", r->peer);
    if (r->kind == TRACE_SEQUENCE)
        trace_event_arg(e, "finish", r->flags);
    trace_event_arg_always(e, "ns", (int64_t)r->lasted_ns);
    trace_event_end(e);
    trace_event_begin(e, 'e', rank, TRACE_TID_REQUESTS, r->at_ns + r->lasted_ns);
    trace_event_name(e, category, name);
    trace_event_id(e, rank, span->group, span->lane);
    trace_event_end(e);
}

static void write_token(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    struct trace_events *e = &w->events;
    trace_event_begin(e, 'i', rank, TRACE_TID_TOKENS, r->at_ns);
    trace_event_name(e, "token", "token");
    trace_event_add(e, "\"s\":\"t\"");
    trace_event_arg_always(e, "seq", (int64_t)r->sequence);
    trace_event_arg_always(e, "pos", r->position);
    trace_event_arg_always(e, "loop", r->loop);
    trace_event_arg_always(e, "from", r->peer);
    trace_event_arg_always(e, "token", r->token.id);
    trace_event_arg_float(e, "cdf", r->token.cdf);
    trace_event_end(e);
}

static void write_load(struct writer *w, uint32_t rank, const struct trace_record *r)
{
    struct trace_events *e = &w->events;
    trace_event_begin(e, 'C', rank, TRACE_TID_REQUESTS, r->at_ns);
    trace_event_name(e, "load", "load");
    trace_event_arg_always(e, "queued", r->load.n_queued);
    trace_event_arg_always(e, "opening", r->load.n_opening);
    trace_event_arg_always(e, "running", r->load.n_running);
    trace_event_arg_always(e, "closing", r->load.n_closing);
    trace_event_arg_always(e, "kv_reserved", r->load.blocks_reserved_max);
    trace_event_arg_always(e, "kv_total", r->load.n_blocks);
    trace_event_end(e);
}

/* ---- the whole ------------------------------------------------------------------------------ */

static enum status flush(struct writer *w, struct err *err)
{
    struct text *text = &w->events.text;
    if (text->is_broken)
        return err_set(err, STATUS_NO_MEMORY, "no memory to write a trace");
    w->file.n_wanted = w->file.n_written + text->len_bytes;
    enum status status = atomic_file_append(&w->file, text->bytes, text->len_bytes, err);
    text_reset(text);
    return status;
}

static void write_record(struct writer *w, uint32_t rank, const struct trace_record *r,
                         const struct trace_span *span)
{
    switch ((enum trace_kind)r->kind) {
    case TRACE_BATCH:
        write_batch(w, rank, r);
        break;
    case TRACE_ROWS:
        write_rows(w, rank, r, span);
        break;
    case TRACE_POOL:
        write_pool(w, rank, r);
        break;
    case TRACE_IDLE:
        write_idle(w, rank, r);
        break;
    case TRACE_RECEIVE:
    case TRACE_SEND:
        write_message(w, rank, r);
        break;
    case TRACE_QUEUE:
    case TRACE_ADMISSION:
    case TRACE_SEQUENCE:
    case TRACE_BLOCKED:
    case TRACE_DRAINING:
        write_request(w, rank, r, span);
        break;
    case TRACE_TOKEN:
        write_token(w, rank, r);
        break;
    case TRACE_LOAD:
        write_load(w, rank, r);
        break;
    case TRACE_KINDS:
        break;
    }
}

static enum status write_rank(struct writer *w, uint32_t rank, struct err *err)
{
    const struct trace_rank *r = &w->set->ranks[rank];
    struct trace_span *spans = malloc((r->n_records + 1) * sizeof *spans);
    if (spans == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to write %zu trace records", r->n_records);
    /* Loops and kinds are the groups: every one is a track of its own. */
    for (size_t i = 0; i < r->n_records; i++) {
        const struct trace_record *a = &r->records[i];
        spans[i] = (struct trace_span){
            .from_ns = begin_of(w, a),
            .to_ns = a->at_ns + a->lasted_ns,
            .group = a->kind == TRACE_ROWS ? a->loop : (uint32_t)SEQUENCE_MAX_LOOPS + a->kind};
    }
    enum status status =
        trace_lanes_assign(spans, r->n_records, SEQUENCE_MAX_LOOPS + TRACE_KINDS, err);
    for (size_t i = 0; i < r->n_records && status == STATUS_OK; i++) {
        write_record(w, rank, &r->records[i], &spans[i]);
        if (w->events.text.len_bytes >= PIECE_BYTES)
            status = flush(w, err);
    }
    free(spans);
    return status;
}

static void write_names(struct writer *w)
{
    static const char *const worker[] = {"recv", "compute", "send", "idle"};
    static const char *const coordinator[] = {"requests", "tokens"};
    for (uint32_t rank = 0; rank < w->set->n_ranks; rank++) {
        char name[96];
        const char *host = w->set->ranks[rank].host;
        if (rank == 0)
            snprintf(name, sizeof name, "coordinator");
        else
            snprintf(name, sizeof name, host[0] != '\0' ? "worker %u (%s)" : "worker %u", rank,
                     host);
        trace_event_metadata(&w->events, "process_name", rank, 1, name);
        for (uint32_t i = 0; i < (rank == 0 ? 2 : 4); i++)
            trace_event_metadata(&w->events, "thread_name", rank, i + 1,
                                 rank == 0 ? coordinator[i] : worker[i]);
    }
}

/* An arrow end, in the slice that was begun last on its track. */
static void write_arrow(struct writer *w, char phase, const struct trace_step_record *step)
{
    bool is_token = step->record->kind == TRACE_TOKEN;
    struct trace_events *e = &w->events;
    /* A nanosecond into its batch: it belongs to no slice that ends where this one begins. */
    uint64_t at_ns = step->record->at_ns + (step->record->lasted_ns > 1);
    trace_event_begin(e, phase, step->rank, is_token ? TRACE_TID_TOKENS : TRACE_TID_COMPUTE, at_ns);
    trace_event_name(e, "flow", "token");
    trace_event_flow_id(e, step->sequence, step->position);
    if (phase == 'f')
        trace_event_add(e, "\"bp\":\"e\"");
    trace_event_end(e);
}

/* The arrows of one token, from batch to batch and to its arrival. Steps that go back in time (of
 * clocks that are off), those whose batch was overwritten, and ways without an arrival have none.
 */
static void write_arrows(struct writer *w, const struct trace_step_record *steps, size_t n)
{
    const struct trace_step_record *last = NULL;
    if (n < 2 || steps[n - 1].record->kind != TRACE_TOKEN)
        return;
    uint64_t end_ns = steps[n - 1].record->at_ns;
    for (size_t i = 0; i + 1 < n && steps[i].record->kind == TRACE_ROWS; i++) {
        uint64_t at_ns = steps[i].record->at_ns;
        if (at_ns + 1 >= end_ns || (last != NULL && at_ns <= last->record->at_ns) ||
            at_ns < w->first_batch_ns[steps[i].rank])
            continue;
        write_arrow(w, last == NULL ? 's' : 't', &steps[i]);
        last = &steps[i];
    }
    if (last != NULL)
        write_arrow(w, 'f', &steps[n - 1]);
}

/* A batch is recorded before its rows: of the oldest one a ring buffer may have kept only these. */
static enum status find_first_batches(struct writer *w, struct err *err)
{
    w->first_batch_ns = malloc((w->set->n_ranks + 1) * sizeof *w->first_batch_ns);
    if (w->first_batch_ns == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to write the trace of %u ranks",
                       w->set->n_ranks);
    for (uint32_t rank = 0; rank < w->set->n_ranks; rank++) {
        const struct trace_rank *r = &w->set->ranks[rank];
        size_t i = 0;
        while (i < r->n_records && r->records[i].kind != TRACE_BATCH)
            i++;
        w->first_batch_ns[rank] = i < r->n_records ? r->records[i].at_ns : UINT64_MAX;
    }
    return STATUS_OK;
}

static enum status write_all_arrows(struct writer *w, struct err *err)
{
    struct trace_step_record *steps;
    size_t n, length;
    enum status status = find_first_batches(w, err);
    if (status == STATUS_OK)
        status = trace_chain_collect(w->set, &steps, &n, err);
    if (status != STATUS_OK)
        return status;
    for (size_t i = 0; i < n && status == STATUS_OK; i += length) {
        length = trace_chain_length(steps + i, n - i);
        write_arrows(w, steps + i, length);
        if (w->events.text.len_bytes >= PIECE_BYTES)
            status = flush(w, err);
    }
    free(steps);
    return status;
}

static void write_ranks(struct json_writer *json, const struct trace_set *set)
{
    json_write_begin_array(json);
    for (uint32_t rank = 0; rank < set->n_ranks; rank++) {
        const struct trace_rank *r = &set->ranks[rank];
        json_write_begin_object(json);
        json_write_key(json, "host");
        json_write_string(json, r->host);
        json_write_key(json, "records");
        json_write_integer(json, (int64_t)r->n_records);
        json_write_key(json, "lost");
        json_write_integer(json, (int64_t)r->n_lost);
        json_write_key(json, "missing");
        json_write_bool(json, r->is_missing);
        json_write_key(json, "clock_offset_ns");
        json_write_integer(json, r->clock_removed_ns);
        json_write_key(json, "clock_error_ns");
        json_write_integer(json, (int64_t)r->clock_error_ns);
        json_write_key(json, "clock_shared");
        json_write_bool(json, r->is_clock_shared);
        json_write_end_object(json);
    }
    json_write_end_array(json);
}

static void write_end(struct writer *w)
{
    const struct trace_set *set = w->set;
    struct json_writer json;
    text_adds(&w->events.text, "\n],\"displayTimeUnit\":\"ms\",\"otherData\":");
    json_writer_init(&json, &w->events.text);
    json_write_begin_object(&json);
    json_write_key(&json, "program");
    json_write_string(&json, "carousel");
    json_write_key(&json, "version");
    json_write_string(&json, set->version);
    json_write_key(&json, "model");
    json_write_string(&json, set->model);
    json_write_key(&json, "loops");
    json_write_integer(&json, set->n_loops);
    json_write_key(&json, "ring_size");
    json_write_integer(&json, set->ring_size);
    json_write_key(&json, "simulated");
    json_write_bool(&json, set->is_simulated);
    json_write_key(&json, "begin_ns");
    json_write_integer(&json, (int64_t)w->events.base_ns);
    json_write_key(&json, "ranks");
    write_ranks(&json, set);
    json_write_end_object(&json);
    text_adds(&w->events.text, "}\n");
}

enum status trace_set_write(const struct trace_set *set, const char *path, struct err *err)
{
    struct writer w = {.set = set, .events.base_ns = first_time(set)};
    enum status status = atomic_file_create(&w.file, path, 0, err);
    if (status != STATUS_OK)
        return status;
    text_adds(&w.events.text, "{\"traceEvents\":[\n");
    write_names(&w);
    for (uint32_t rank = 0; rank < set->n_ranks && status == STATUS_OK; rank++)
        status = write_rank(&w, rank, err);
    if (status == STATUS_OK)
        status = write_all_arrows(&w, err);
    if (status == STATUS_OK) {
        write_end(&w);
        status = flush(&w, err);
    }
    if (status == STATUS_OK)
        status = atomic_file_commit(&w.file, err);
    atomic_file_discard(&w.file);
    text_free(&w.events.text);
    free(w.first_batch_ns);
    return status;
}
