/* One line of a trace file at a time: an event of Chrome's trace format. */
#ifndef COORDINATOR_TRACE_EVENTS_H
#define COORDINATOR_TRACE_EVENTS_H

#include "coordinator/text.h"
#include "proto/trace.h"

#include <stdbool.h>
#include <stdint.h>

/* Tracks. */
enum { TRACE_TID_RECV = 1, TRACE_TID_COMPUTE, TRACE_TID_SEND, TRACE_TID_IDLE };
enum { TRACE_TID_REQUESTS = 1, TRACE_TID_TOKENS };

/* The names of the file's events by enum trace_idle and enum trace_blocked. */
const char *trace_idle_name(enum trace_idle why);
const char *trace_blocked_name(enum trace_blocked why);

struct trace_events {
    struct text text;
    uint64_t base_ns; /* what is 0 in the file */
    bool has_event, has_args;
};

/* An event is begun, gets name, id and duration in this order as far as it has them, then its args,
 * and is ended. Args of value 0 are left out, except in counters. */
void trace_event_begin(struct trace_events *e, char phase, uint32_t pid, uint32_t tid,
                       uint64_t at_ns);
void trace_event_name(struct trace_events *e, const char *category, const char *name);
void trace_event_id(struct trace_events *e, uint32_t pid, uint32_t group, uint32_t lane);
void trace_event_flow_id(struct trace_events *e, uint64_t sequence, uint32_t position);
void trace_event_lasted(struct trace_events *e, uint64_t lasted_ns);
void trace_event_add(struct trace_events *e, const char *plain_json); /* any other field */
void trace_event_arg(struct trace_events *e, const char *key, uint64_t value);
void trace_event_arg_always(struct trace_events *e, const char *key, int64_t value);
void trace_event_arg_float(struct trace_events *e, const char *key, float value);
void trace_event_arg_numbers(struct trace_events *e, const char *key, const uint16_t *values,
                             uint32_t n);
void trace_event_end(struct trace_events *e);

/* What all lines of the ranks' names are. */
void trace_event_metadata(struct trace_events *e, const char *what, uint32_t pid, uint32_t tid,
                          const char *name);

#endif
