/* The lines of a file of any size, one after another; memory is the longest line's. */
#ifndef TRAIN_TEXT_LINES_H
#define TRAIN_TEXT_LINES_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A longer line is taken for a file that is no JSONL. */
enum { TEXT_LINES_MAX_BYTES = 1 << 26 };

struct text_lines {
    const char *path; /* borrowed until close */
    int fd;
    bool is_at_end;
    uint64_t number; /* of the line handed out last, from 1 */
    char *buffer;
    size_t cap, begin, end; /* unread: buffer[begin, end) */
};

/* STATUS_NOT_FOUND, STATUS_IO (no regular file; the system's reason). */
enum status text_lines_open(const char *path, struct text_lines *out, struct err *err);
void text_lines_close(struct text_lines *l); /* also after a failed open */
/* The next line without its newline, borrowed until the next call; *line NULL at the end.
 * STATUS_CORRUPT for a line over the limit, STATUS_IO, STATUS_NO_MEMORY. */
enum status text_lines_next(struct text_lines *l, const char **line, size_t *len_bytes,
                            struct err *err);

#endif
