/* Reads a file line by line through one buffer that grows to the longest line. */
#include "train/text_lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FIRST_BYTES = 1 << 16 };

enum status text_lines_open(const char *path, struct text_lines *out, struct err *err)
{
    struct stat info;
    *out = (struct text_lines){.path = path, .fd = -1};
    /* O_NONBLOCK: opening a pipe nobody writes to would wait for ever. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return err_set(err, STATUS_NOT_FOUND, "%s does not exist", path);
    if (fd < 0)
        return err_set(err, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return err_set(err, STATUS_IO, "%s is not a regular file", path);
    }
    out->fd = fd;
    return STATUS_OK;
}

void text_lines_close(struct text_lines *l)
{
    if (l->fd >= 0)
        close(l->fd);
    free(l->buffer);
    *l = (struct text_lines){.fd = -1};
}

/* Room behind the unread bytes: moved to the front, or into a larger buffer. */
static enum status make_room(struct text_lines *l, struct err *err)
{
    if (l->begin > 0) {
        memmove(l->buffer, l->buffer + l->begin, l->end - l->begin);
        l->end -= l->begin;
        l->begin = 0;
    }
    if (l->end < l->cap)
        return STATUS_OK;
    if (l->cap >= TEXT_LINES_MAX_BYTES)
        return err_set(
            err, STATUS_CORRUPT,
            "%s:%llu: the line has more than %d bytes; expected JSON objects, one a line", l->path,
            (unsigned long long)l->number + 1, (int)TEXT_LINES_MAX_BYTES);
    size_t cap = l->cap == 0 ? FIRST_BYTES : 2 * l->cap;
    char *buffer = realloc(l->buffer, cap);
    if (buffer == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s:%llu: no memory for a line of %zu bytes", l->path,
                       (unsigned long long)l->number + 1, cap);
    l->buffer = buffer;
    l->cap = cap;
    return STATUS_OK;
}

static enum status read_more(struct text_lines *l, struct err *err)
{
    enum status status = make_room(l, err);
    ssize_t n = 0;
    if (status != STATUS_OK)
        return status;
    do
        n = read(l->fd, l->buffer + l->end, l->cap - l->end);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_set(err, STATUS_IO, "cannot read %s: %s", l->path, strerror(errno));
    l->end += (size_t)n;
    l->is_at_end = n == 0;
    return STATUS_OK;
}

enum status text_lines_next(struct text_lines *l, const char **line, size_t *len_bytes,
                            struct err *err)
{
    size_t seen = 0; /* of the unread bytes: known to hold no newline */
    const char *newline = NULL;
    while (newline == NULL && !(l->is_at_end && l->begin + seen == l->end)) {
        if (l->begin + seen < l->end)
            newline = memchr(l->buffer + l->begin + seen, '\n', l->end - l->begin - seen);
        if (newline != NULL)
            break;
        seen = l->end - l->begin;
        enum status status = l->is_at_end ? STATUS_OK : read_more(l, err);
        if (status != STATUS_OK)
            return status;
    }
    if (newline == NULL && l->begin == l->end) {
        *line = NULL;
        *len_bytes = 0;
        return STATUS_OK;
    }
    *line = l->buffer + l->begin;
    *len_bytes = newline != NULL ? (size_t)(newline - *line) : l->end - l->begin;
    l->begin += *len_bytes + (newline != NULL);
    l->number++;
    return STATUS_OK;
}
