/* Takes the fields of a record out of an event's JSON. */
#include "coordinator/trace_fields.h"

#include "coordinator/trace_events.h"

#include <inttypes.h>
#include <math.h>

static void fail(struct trace_fields *f, const char *key, const char *wanted, const json_t *found)
{
    char *text = found != NULL ? json_dumps(found, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (f->status == STATUS_OK)
        f->status = err_set(&f->err, STATUS_CORRUPT, "\"%s\" must be %s; found %.60s", key, wanted,
                            found == NULL  ? "nothing"
                            : text != NULL ? text
                                           : "something else");
    free(text);
}

uint64_t trace_field_number(struct trace_fields *f, const json_t *object, const char *key,
                            uint64_t most, bool is_needed)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL && !is_needed)
        return 0;
    if (json_is_integer(value) && json_integer_value(value) >= 0 &&
        (uint64_t)json_integer_value(value) <= most)
        return (uint64_t)json_integer_value(value);
    char wanted[64];
    snprintf(wanted, sizeof wanted, "a whole number from 0 to %" PRIu64, most);
    fail(f, key, wanted, value);
    return 0;
}

const char *trace_field_string(struct trace_fields *f, const json_t *object, const char *key,
                               bool is_needed)
{
    const json_t *value = json_object_get(object, key);
    if (json_is_string(value))
        return json_string_value(value);
    if (value != NULL || is_needed)
        fail(f, key, "a string", value);
    return "";
}

/* Ids use all 64 bits; JSON's integers have a sign here. */
static uint64_t take_id(struct trace_fields *f, const json_t *args, const char *key)
{
    const json_t *value = json_object_get(args, key);
    if (!json_is_integer(value))
        fail(f, key, "a whole number", value);
    return (uint64_t)json_integer_value(value);
}

/* Microseconds with three digits behind the point are whole nanoseconds again. */
static uint64_t take_us(struct trace_fields *f, const json_t *event, const char *key)
{
    static const double most_us = 9e15;
    const json_t *value = json_object_get(event, key);
    double us = json_number_value(value);
    if (!json_is_number(value) || !(us >= 0) || us > most_us) {
        fail(f, key, "a time in microseconds", value);
        return 0;
    }
    return json_is_integer(value) ? (uint64_t)json_integer_value(value) * 1000
                                  : (uint64_t)llround(us * 1000);
}

static uint64_t take(struct trace_fields *f, const json_t *args, const char *key)
{
    return trace_field_number(f, args, key, INT64_MAX, false);
}

static uint32_t take32(struct trace_fields *f, const json_t *args, const char *key)
{
    return (uint32_t)trace_field_number(f, args, key, UINT32_MAX, false);
}

static uint16_t take16(struct trace_fields *f, const json_t *args, const char *key)
{
    return (uint16_t)trace_field_number(f, args, key, UINT16_MAX, false);
}

static void take_batch(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    const json_t *by_loop = json_object_get(args, "by_loop");
    r->n_rows = (uint32_t)trace_field_number(f, args, "rows", UINT32_MAX, true);
    if (!json_is_array(by_loop) || json_array_size(by_loop) > SEQUENCE_MAX_LOOPS)
        fail(f, "by_loop", "at most 8 numbers", by_loop);
    for (size_t i = 0; i < json_array_size(by_loop) && i < SEQUENCE_MAX_LOOPS; i++) {
        const json_t *rows = json_array_get(by_loop, i);
        json_int_t n = json_integer_value(rows);
        if (!json_is_integer(rows) || n < 0 || n > UINT16_MAX)
            fail(f, "by_loop", "numbers from 0 to 65535", rows);
        r->batch.rows_by_loop[i] = (uint16_t)n;
    }
    r->batch.n_segments = take16(f, args, "segments");
    r->batch.n_heads = take16(f, args, "heads");
    r->batch.head_ns = take32(f, args, "head_ns");
}

static void take_rows(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    r->sequence = take_id(f, args, "seq");
    r->loop = (uint8_t)trace_field_number(f, args, "loop", SEQUENCE_MAX_LOOPS, true);
    r->position = (uint32_t)trace_field_number(f, args, "pos", UINT32_MAX, true);
    r->n_rows = (uint32_t)trace_field_number(f, args, "rows", UINT32_MAX, true);
    r->peer = take16(f, args, "from");
    if (trace_field_number(f, args, "live", 1, false) != 0)
        r->flags |= TRACE_LIVE;
    if (trace_field_number(f, args, "exit", 1, false) != 0)
        r->flags |= TRACE_EXIT;
    r->rows.n_parked = take32(f, args, "parked");
    r->rows.n_revived = take32(f, args, "revived");
    r->rows.hop_ns = (int64_t)take(f, args, "hop_ns");
    r->rows.wait_ns = take(f, args, "wait_ns");
    /* The event begins with the hop; the record with the batch. */
    r->at_ns = trace_field_number(f, args, "at_ns", INT64_MAX, true);
    r->lasted_ns = trace_field_number(f, args, "ns", INT64_MAX, true);
}

static void take_pool(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    r->pool.kv_blocks_used = take32(f, args, "kv_used");
    r->pool.kv_blocks_total = take32(f, args, "kv_total");
    r->pool.parked_rows = take32(f, args, "parked");
    r->pool.ready_rows = take32(f, args, "ready");
    r->pool.n_sequences = take32(f, args, "sequences");
}

static void take_load(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    r->load.n_queued = take32(f, args, "queued");
    r->load.n_opening = take32(f, args, "opening");
    r->load.n_running = take32(f, args, "running");
    r->load.n_closing = take32(f, args, "closing");
    r->load.blocks_reserved_max = take32(f, args, "kv_reserved");
    r->load.n_blocks = take32(f, args, "kv_total");
}

static void take_token(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    const json_t *id = json_object_get(args, "token");
    json_int_t value = json_integer_value(id);
    if (!json_is_integer(id) || value < INT32_MIN || value > INT32_MAX)
        fail(f, "token", "a token id", id);
    r->sequence = take_id(f, args, "seq");
    r->position = (uint32_t)trace_field_number(f, args, "pos", UINT32_MAX, true);
    r->loop = (uint8_t)trace_field_number(f, args, "loop", SEQUENCE_MAX_LOOPS, true);
    r->peer = take16(f, args, "from");
    r->token.id = (int32_t)value;
    double cdf = json_number_value(json_object_get(args, "cdf"));
    if (!(fabs(cdf) <= 2))
        fail(f, "cdf", "a number up to 1", json_object_get(args, "cdf"));
    else
        r->token.cdf = (float)cdf;
}

static void take_request(struct trace_fields *f, const json_t *args, struct trace_record *r)
{
    r->lasted_ns = trace_field_number(f, args, "ns", INT64_MAX, true);
    if (r->kind == TRACE_BLOCKED || r->kind == TRACE_DRAINING)
        return;
    r->request.request = take_id(f, args, "request");
    r->sequence = take_id(f, args, "seq");
    r->n_rows = take32(f, args, r->kind == TRACE_SEQUENCE ? "tokens" : "rows");
    r->peer = take16(f, args, "to");
    r->flags = take16(f, args, "finish");
}

/* A reason is the event's name. */
static uint16_t find_reason(struct trace_fields *f, const json_t *event, enum trace_kind kind)
{
    const char *name = trace_field_string(f, event, "name", true);
    for (int i = 0; kind == TRACE_IDLE && i < TRACE_IDLE_REASONS; i++)
        if (strcmp(name, trace_idle_name((enum trace_idle)i)) == 0)
            return (uint16_t)i;
    for (int i = 0; kind == TRACE_BLOCKED && i <= TRACE_BLOCKED_SEQUENCES; i++)
        if (strcmp(name, trace_blocked_name((enum trace_blocked)i)) == 0)
            return (uint16_t)i;
    fail(f, "name", "a reason", json_object_get(event, "name"));
    return 0;
}

static enum trace_kind find_kind(const char *category)
{
    static const char *const categories[TRACE_KINDS] = {
        [TRACE_BATCH] = "batch",       [TRACE_ROWS] = "frame",
        [TRACE_POOL] = "pool",         [TRACE_IDLE] = "idle",
        [TRACE_RECEIVE] = "receive",   [TRACE_SEND] = "send",
        [TRACE_QUEUE] = "queue",       [TRACE_ADMISSION] = "admission",
        [TRACE_SEQUENCE] = "sequence", [TRACE_TOKEN] = "token",
        [TRACE_LOAD] = "load",         [TRACE_BLOCKED] = "blocked",
        [TRACE_DRAINING] = "draining",
    };
    for (int kind = 1; kind < TRACE_KINDS; kind++)
        if (strcmp(category, categories[kind]) == 0)
            return (enum trace_kind)kind;
    return TRACE_KINDS;
}

static void take_kind(struct trace_fields *f, const json_t *event, const json_t *args,
                      struct trace_record *r)
{
    switch ((enum trace_kind)r->kind) {
    case TRACE_BATCH:
        take_batch(f, args, r);
        break;
    case TRACE_ROWS:
        take_rows(f, args, r);
        break;
    case TRACE_POOL:
        take_pool(f, args, r);
        break;
    case TRACE_RECEIVE:
    case TRACE_SEND:
        r->peer = take16(f, args, r->kind == TRACE_RECEIVE ? "from" : "to");
        r->message.n_bytes = take(f, args, "bytes");
        r->message.n_frames = take32(f, args, "frames");
        break;
    case TRACE_TOKEN:
        take_token(f, args, r);
        break;
    case TRACE_LOAD:
        take_load(f, args, r);
        break;
    case TRACE_IDLE:
        r->flags = find_reason(f, event, TRACE_IDLE);
        break;
    case TRACE_BLOCKED:
        r->flags = find_reason(f, event, TRACE_BLOCKED);
        take_request(f, args, r);
        break;
    case TRACE_QUEUE:
    case TRACE_ADMISSION:
    case TRACE_SEQUENCE:
    case TRACE_DRAINING:
        take_request(f, args, r);
        break;
    case TRACE_KINDS:
        break;
    }
}

bool trace_fields_record(struct trace_fields *f, const json_t *event, struct trace_record *out,
                         uint32_t *rank)
{
    const char *phase = trace_field_string(f, event, "ph", true);
    const char *category = trace_field_string(f, event, "cat", true);
    const json_t *args = json_object_get(event, "args");
    struct trace_record r = {.kind = (uint8_t)find_kind(category)};
    if (f->status != STATUS_OK || strcmp(category, "view") == 0 || strcmp(category, "flow") == 0)
        return false;
    if (r.kind == TRACE_KINDS) {
        f->status =
            err_set(&f->err, STATUS_CORRUPT,
                    "an event of category \"%.40s\": this is a trace of another program", category);
        return false;
    }
    /* Ends of spans, and their parts. */
    if (strcmp(phase, "e") == 0 || (r.kind == TRACE_ROWS && args == NULL))
        return false;
    *rank = (uint32_t)trace_field_number(f, event, "pid", UINT16_MAX, true);
    r.at_ns = take_us(f, event, "ts");
    if (strcmp(phase, "X") == 0)
        r.lasted_ns = take_us(f, event, "dur");
    take_kind(f, event, args, &r);
    if (f->status == STATUS_OK)
        f->status = trace_record_check(&r, &f->err);
    if (f->status == STATUS_OK)
        *out = r;
    return f->status == STATUS_OK;
}
