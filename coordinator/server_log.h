/* The server's log on stderr: one line an event, for people or as JSON. Any thread.
 *
 * A line is one write(2), so lines never mix. Human: "12:34:56.789 info  request_end
 * id=cmpl-... status=200"; JSON: {"time": "2026-01-01T12:34:56.789Z", "level": "info", "event":
 * "request_end", "request_id": ...}; both are UTC, and people see the key request_id as id. Values
 * that come from outside are escaped, and cut after 1024 bytes. Keys and events are the program's
 * own words: ASCII, nothing to escape. A line that cannot be written stops nothing. */
#ifndef COORDINATOR_SERVER_LOG_H
#define COORDINATOR_SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_DEBUG = 0, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

enum log_type { LOG_STRING = 1, LOG_INTEGER, LOG_NUMBER, LOG_BOOL };
struct log_field {
    const char *key;
    enum log_type type;
    const char *string; /* NULL: the field is left out */
    int64_t integer;
    double number;
};
#define LOG_S(k, v) ((struct log_field){.key = (k), .type = LOG_STRING, .string = (v)})
#define LOG_I(k, v) ((struct log_field){.key = (k), .type = LOG_INTEGER, .integer = (int64_t)(v)})
#define LOG_F(k, v) ((struct log_field){.key = (k), .type = LOG_NUMBER, .number = (v)})
#define LOG_B(k, v) ((struct log_field){.key = (k), .type = LOG_BOOL, .integer = (v) ? 1 : 0})

struct server_log {
    int fd;
    bool is_json;
    enum log_level level; /* below it nothing is written */
};

void server_log(const struct server_log *log, enum log_level level, const char *event,
                const struct log_field *fields, size_t n_fields);

#endif
