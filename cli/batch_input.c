/* Hands out the lines of a batch input file without waiting for a slow writer. */
#include "cli/batch_input.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_BYTES = 1 << 16 };

enum status batch_input_open(struct batch_input *in, const char *path, size_t max_line,
                             struct err *err)
{
    struct batch_input opened = {.name = path,
                                 .max_line = max_line > 0 ? max_line : BATCH_INPUT_MAX_LINE};
    if (strcmp(path, "-") == 0) {
        opened.name = "standard input";
        opened.fd = dup(STDIN_FILENO);
    } else {
        opened.fd = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (opened.fd < 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "cannot read %s: %s",
                       opened.name, strerror(errno));
    struct stat st;
    if (fstat(opened.fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        close(opened.fd);
        return err_set(err, STATUS_IO, "cannot read %s: it is a directory", opened.name);
    }
    *in = opened;
    return STATUS_OK;
}

void batch_input_close(struct batch_input *in)
{
    if (in->fd >= 0)
        close(in->fd);
    free(in->buffer);
    *in = (struct batch_input){.fd = -1};
}

static bool is_blank(const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isspace((unsigned char)line[i]))
            return false;
    return true;
}

/* Takes a line out of the buffer; at the end of input also one without newline. */
static bool take_line(struct batch_input *in, const char **line, size_t *n)
{
    char *start = in->buffer + in->begin;
    size_t held = in->end - in->begin;
    const char *newline =
        held > in->searched ? memchr(start + in->searched, '\n', held - in->searched) : NULL;
    if (newline == NULL && (!in->is_ended || held == 0)) {
        in->searched = held;
        return false;
    }
    *line = start;
    *n = newline != NULL ? (size_t)(newline - start) : held;
    in->begin += newline != NULL ? *n + 1 : held;
    in->searched = 0;
    return true;
}

/* Reads once; waits at most wait_ms for the first byte. */
static enum status fill(struct batch_input *in, int wait_ms, bool *has_more, struct err *err)
{
    struct pollfd poller = {.fd = in->fd, .events = POLLIN};
    *has_more = false;
    int ready = poll(&poller, 1, wait_ms);
    if (ready == 0 || (ready < 0 && errno == EINTR))
        return STATUS_OK;
    if (in->begin > 0) {
        memmove(in->buffer, in->buffer + in->begin, in->end - in->begin);
        in->end -= in->begin;
        in->begin = 0;
    }
    if (in->end + READ_BYTES > in->cap) {
        size_t cap = 2 * in->cap + READ_BYTES;
        char *grown = realloc(in->buffer, cap);
        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %zu bytes of %s", cap, in->name);
        in->buffer = grown;
        in->cap = cap;
    }
    ssize_t n = read(in->fd, in->buffer + in->end, READ_BYTES);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return STATUS_OK;
    if (n < 0)
        return err_set(err, STATUS_IO, "cannot read %s: %s", in->name, strerror(errno));
    in->end += (size_t)n;
    in->is_ended = n == 0;
    *has_more = true;
    return STATUS_OK;
}

enum status batch_input_next(struct batch_input *in, int wait_ms, enum batch_input_kind *kind,
                             const char **line, size_t *len_bytes, struct err *err)
{
    for (;;) {
        while (take_line(in, line, len_bytes)) {
            in->n_lines++;
            bool was_skipping = in->is_skipping;
            in->is_skipping = false;
            if (was_skipping || *len_bytes > in->max_line) {
                *kind = BATCH_INPUT_TOO_LONG;
                return STATUS_OK;
            }
            if (!is_blank(*line, *len_bytes)) {
                *kind = BATCH_INPUT_LINE;
                return STATUS_OK;
            }
        }
        if (in->is_ended) {
            *kind = in->is_skipping ? BATCH_INPUT_TOO_LONG : BATCH_INPUT_END;
            in->n_lines += in->is_skipping;
            in->is_skipping = false;
            return STATUS_OK;
        }
        if (in->end - in->begin > in->max_line) {
            in->is_skipping = true;
            in->begin = in->end = in->searched = 0;
        }
        bool has_more;
        enum status status = fill(in, wait_ms, &has_more, err);
        if (status != STATUS_OK)
            return status;
        if (!has_more) {
            *kind = BATCH_INPUT_LATER;
            return STATUS_OK;
        }
    }
}

bool batch_input_count(const char *path, uint64_t *n_lines)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool is_countable = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    char *buffer = is_countable ? malloc(READ_BYTES) : NULL;
    uint64_t count = 0;
    bool has_text = false;
    ssize_t n = 0;
    while (buffer != NULL && (n = read(fd, buffer, READ_BYTES)) > 0)
        for (ssize_t i = 0; i < n; i++) {
            if (buffer[i] == '\n') {
                count += has_text;
                has_text = false;
            } else if (!isspace((unsigned char)buffer[i])) {
                has_text = true;
            }
        }
    if (fd >= 0)
        close(fd);
    bool is_counted = buffer != NULL && n == 0;
    free(buffer);
    if (is_counted)
        *n_lines = count + has_text;
    return is_counted;
}
