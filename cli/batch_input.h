/* Lines of a file, pipe or terminal, one at a time, without ever waiting longer than asked.
 *
 * Memory is one line; a line over BATCH_INPUT_MAX_LINE is passed over and reported as too long. */
#ifndef CLI_BATCH_INPUT_H
#define CLI_BATCH_INPUT_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BATCH_INPUT_MAX_LINE = 64 << 20 };

enum batch_input_kind {
    BATCH_INPUT_LINE,
    BATCH_INPUT_TOO_LONG, /* a line, but without its bytes */
    BATCH_INPUT_LATER,    /* the writer of the pipe has not sent a whole line yet */
    BATCH_INPUT_END
};

struct batch_input {
    int fd;
    const char *name;
    size_t max_line;
    char *buffer;
    size_t cap, begin, end;
    size_t searched;  /* bytes from begin without a newline */
    uint64_t n_lines; /* lines handed out */
    bool is_ended, is_skipping;
};

/* "-" is standard input. max_line 0 = BATCH_INPUT_MAX_LINE. STATUS_NOT_FOUND, STATUS_IO. */
enum status batch_input_open(struct batch_input *in, const char *path, size_t max_line,
                             struct err *err);
void batch_input_close(struct batch_input *in);

/* The next line that is not blank, without its newline; valid until the next call. in->n_lines is
 * its number. Waits at most wait_ms. */
enum status batch_input_next(struct batch_input *in, int wait_ms, enum batch_input_kind *kind,
                             const char **line, size_t *len_bytes, struct err *err);

/* Lines that are not blank, by reading the file once; false for what can be read only once. */
bool batch_input_count(const char *path, uint64_t *n_lines);

#endif
