/* JSON from files nobody has checked yet: read with a size limit, parsed strictly, shown in
 * messages.
 *
 * Strict means: the whole text is one JSON value, UTF-8, no duplicate keys (two readers could
 * otherwise see two different files), no NUL characters inside strings. */
#ifndef MODEL_JSON_INPUT_H
#define MODEL_JSON_INPUT_H

#include "proto/status.h"

#include <jansson.h>
#include <stddef.h>

enum { JSON_INPUT_SHOWN_BYTES = 72 };

/* Reads a regular file of at most max_bytes. *text is malloc'd, not NUL-terminated; the caller
 * frees. STATUS_NOT_FOUND, STATUS_IO, STATUS_CORRUPT (empty or larger than max_bytes),
 * STATUS_NO_MEMORY. */
enum status json_input_read(const char *path, size_t max_bytes, char **text, size_t *len_bytes,
                            struct err *err);

/* Parses text into an object. `origin` names the text in messages. The caller does
 * json_decref(*out). STATUS_CORRUPT when it is not strict JSON or its top is not an object,
 * STATUS_NO_MEMORY. */
enum status json_input_parse(const char *text, size_t len_bytes, const char *origin, json_t **out,
                             struct err *err);

/* The value as one printable line, cut with "..." when long. Returns shown. NULL reads "nothing".
 */
const char *json_input_show(const json_t *value, char shown[JSON_INPUT_SHOWN_BYTES]);

#endif
