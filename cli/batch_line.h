/* One line of a batch input file: who it is, and the request body it carries.
 *
 * Two shapes are read: the OpenAI batch line {"custom_id", "method", "url", "body"} and the plain
 * line {"prompt": ...} with the body's fields beside it. Pure: bytes in, struct out; docs/cli.md
 * lists the fields, coordinator/body.h reads them. */
#ifndef CLI_BATCH_LINE_H
#define CLI_BATCH_LINE_H

#include "coordinator/body.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

enum { BATCH_MAX_CUSTOM_ID_BYTES = 512 };

struct batch_line {
    char custom_id[BATCH_MAX_CUSTOM_ID_BYTES + 1];
    struct body body;
};

/* Reads one line (without its newline); line_number is 1-based. On failure only out->custom_id is
 * set: the line's own where it has a usable one, else "line-N". STATUS_CORRUPT: not JSON;
 * STATUS_INVALID, STATUS_UNSUPPORTED: a field; STATUS_NO_MEMORY. */
enum status batch_line_parse(const char *text, size_t len_bytes, uint64_t line_number,
                             struct batch_line *out, struct fault *fault);
void batch_line_clear(struct batch_line *line); /* a zeroed line is fine */

#endif
