/* The record that an event of a trace file stands for. */
#ifndef COORDINATOR_TRACE_FIELDS_H
#define COORDINATOR_TRACE_FIELDS_H

#include "proto/trace.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* A field of a JSON object; the first thing wrong is kept in *err and turns status. */
struct trace_fields {
    enum status status;
    struct err err; /* without the line */
};

/* A whole number 0 .. most; 0 when it is not there and not needed. */
uint64_t trace_field_number(struct trace_fields *f, const json_t *object, const char *key,
                            uint64_t most, bool is_needed);
/* "" when it is not there and not needed; borrowed from the object. */
const char *trace_field_string(struct trace_fields *f, const json_t *object, const char *key,
                               bool is_needed);

/* Whether the event stands for a record at all (others are for the eye), and which, its times
 * since the file's begin. STATUS_CORRUPT: fields, or an event that this program does not write. */
bool trace_fields_record(struct trace_fields *f, const json_t *event, struct trace_record *out,
                         uint32_t *rank);

#endif
