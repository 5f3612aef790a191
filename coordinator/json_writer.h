/* JSON written as it is made, for answers that stream: no tree, no allocation but the text's.
 *
 * begin and end nest up to JSON_WRITER_MAX_DEPTH; commas and colons come by themselves. Output is
 * UTF-8 on one line without needless spaces: bytes that are no UTF-8 become U+FFFD, control
 * characters and " and \ are escaped. Numbers that are not finite become null. */
#ifndef COORDINATOR_JSON_WRITER_H
#define COORDINATOR_JSON_WRITER_H

#include "coordinator/text.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_WRITER_MAX_DEPTH = 16 };

struct json_writer {
    struct text *out; /* borrowed */
    int depth;
    bool has_item[JSON_WRITER_MAX_DEPTH + 1];
    bool is_value_due; /* a key was written */
};

void json_writer_init(struct json_writer *w, struct text *out);
/* Structure. A key is followed by one value. Misuse is an assertion. */
void json_write_begin_object(struct json_writer *w);
void json_write_end_object(struct json_writer *w);
void json_write_begin_array(struct json_writer *w);
void json_write_end_array(struct json_writer *w);
void json_write_key(struct json_writer *w, const char *key); /* ASCII, nothing to escape */
/* A key and its value at once. */
void json_write_integer_at(struct json_writer *w, const char *key, int64_t value);
void json_write_number_at(struct json_writer *w, const char *key, double value);
/* Any key, escaped as json_write_bytes does. */
void json_write_key_bytes(struct json_writer *w, const char *key, size_t len_bytes);
/* Values. */
void json_write_bytes(struct json_writer *w, const char *bytes, size_t len_bytes);
void json_write_string(struct json_writer *w, const char *string); /* NULL is null */
void json_write_integer(struct json_writer *w, int64_t value);
/* Text that reads back as the same double. */
void json_write_number(struct json_writer *w, double value);
/* Nine digits: text that reads back as the same float, not as the same double. */
void json_write_float(struct json_writer *w, float value);
void json_write_bool(struct json_writer *w, bool value);
void json_write_null(struct json_writer *w);
/* The next value is one that the caller adds to the text, as JSON. */
void json_write_made(struct json_writer *w);

/* Whether json_write_bytes would write it unchanged but for escapes. */
bool json_is_utf8(const char *bytes, size_t len_bytes);

#endif
