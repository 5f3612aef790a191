/* Writes events of Chrome's trace format, one a line. */
#include "coordinator/trace_events.h"

#include "coordinator/json_writer.h"

#include <math.h>

const char *trace_idle_name(enum trace_idle why)
{
    static const char *const names[TRACE_IDLE_REASONS] = {"starved", "peer", "kv", "draining"};
    return names[why];
}

const char *trace_blocked_name(enum trace_blocked why)
{
    return why == TRACE_BLOCKED_KV ? "blocked: kv" : "blocked: sequences";
}

static void put_unsigned(struct text *t, uint64_t value)
{
    char digits[20], *at = digits + sizeof digits;
    do {
        *--at = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    text_add(t, at, (size_t)(digits + sizeof digits - at));
}

/* Microseconds with the nanoseconds behind the point: no digit is lost. */
static void put_us(struct text *t, uint64_t ns)
{
    put_unsigned(t, ns / 1000);
    unsigned rest = (unsigned)(ns % 1000);
    const char point[4] = {'.', (char)('0' + rest / 100), (char)('0' + rest / 10 % 10),
                           (char)('0' + rest % 10)};
    if (rest > 0)
        text_add(t, point, 4);
}

void trace_event_begin(struct trace_events *e, char phase, uint32_t pid, uint32_t tid,
                       uint64_t at_ns)
{
    text_adds(&e->text, e->has_event ? ",\n{\"ph\":\"" : "{\"ph\":\"");
    text_add(&e->text, &phase, 1);
    text_adds(&e->text, "\",\"pid\":");
    put_unsigned(&e->text, pid);
    text_adds(&e->text, ",\"tid\":");
    put_unsigned(&e->text, tid);
    text_adds(&e->text, ",\"ts\":");
    put_us(&e->text, at_ns > e->base_ns ? at_ns - e->base_ns : 0);
    e->has_event = true;
    e->has_args = false;
}

void trace_event_name(struct trace_events *e, const char *category, const char *name)
{
    text_adds(&e->text, ",\"cat\":\"");
    text_adds(&e->text, category);
    text_adds(&e->text, "\",\"name\":\"");
    text_adds(&e->text, name);
    text_adds(&e->text, "\"");
}

void trace_event_id(struct trace_events *e, uint32_t pid, uint32_t group, uint32_t lane)
{
    text_adds(&e->text, ",\"id\":\"");
    put_unsigned(&e->text, pid);
    text_adds(&e->text, ".");
    put_unsigned(&e->text, group);
    text_adds(&e->text, ".");
    put_unsigned(&e->text, lane);
    text_adds(&e->text, "\"");
}

void trace_event_flow_id(struct trace_events *e, uint64_t sequence, uint32_t position)
{
    text_addf(&e->text, ",\"id\":\"0x%llx\"", (unsigned long long)(sequence << 32 | position));
}

void trace_event_lasted(struct trace_events *e, uint64_t lasted_ns)
{
    text_adds(&e->text, ",\"dur\":");
    put_us(&e->text, lasted_ns);
}

void trace_event_add(struct trace_events *e, const char *plain_json)
{
    text_adds(&e->text, ",");
    text_adds(&e->text, plain_json);
}

static void put_key(struct trace_events *e, const char *key)
{
    text_adds(&e->text, e->has_args ? ",\"" : ",\"args\":{\"");
    text_adds(&e->text, key);
    text_adds(&e->text, "\":");
    e->has_args = true;
}

void trace_event_arg(struct trace_events *e, const char *key, uint64_t value)
{
    if (value == 0)
        return;
    put_key(e, key);
    put_unsigned(&e->text, value);
}

void trace_event_arg_always(struct trace_events *e, const char *key, int64_t value)
{
    put_key(e, key);
    if (value < 0)
        text_adds(&e->text, "-");
    put_unsigned(&e->text, value < 0 ? -(uint64_t)value : (uint64_t)value);
}

void trace_event_arg_float(struct trace_events *e, const char *key, float value)
{
    if (!isfinite(value))
        return;
    put_key(e, key);
    struct json_writer json;
    json_writer_init(&json, &e->text);
    json_write_float(&json, value);
}

void trace_event_arg_numbers(struct trace_events *e, const char *key, const uint16_t *values,
                             uint32_t n)
{
    put_key(e, key);
    for (uint32_t i = 0; i < n; i++) {
        text_adds(&e->text, i == 0 ? "[" : ",");
        put_unsigned(&e->text, values[i]);
    }
    text_adds(&e->text, n == 0 ? "[]" : "]");
}

void trace_event_end(struct trace_events *e)
{
    text_adds(&e->text, e->has_args ? "}}" : "}");
}

void trace_event_metadata(struct trace_events *e, const char *what, uint32_t pid, uint32_t tid,
                          const char *name)
{
    struct json_writer json;
    text_adds(&e->text, e->has_event ? ",\n" : "");
    e->has_event = true;
    json_writer_init(&json, &e->text);
    json_write_begin_object(&json);
    json_write_key(&json, "ph");
    json_write_string(&json, "M");
    json_write_key(&json, "pid");
    json_write_integer(&json, pid);
    json_write_key(&json, "tid");
    json_write_integer(&json, tid);
    json_write_key(&json, "name");
    json_write_string(&json, what);
    json_write_key(&json, "args");
    json_write_begin_object(&json);
    json_write_key(&json, "name");
    json_write_string(&json, name);
    json_write_end_object(&json);
    json_write_end_object(&json);
}
