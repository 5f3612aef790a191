/* Keeps rows in a file, each at the place of its number. */
#include "train/gate_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* index, hits, ce [n_loops], lambda [n_loops], hidden [n_loops, d]; native byte order, because no
 * other machine reads it. */
static size_t head_bytes(int n_loops)
{
    return 2 * sizeof(uint32_t) + 2 * (size_t)n_loops * sizeof(float);
}

enum status gate_rows_create(const char *path, bool is_kept, int n_loops, int d,
                             struct gate_rows *out, struct err *err)
{
    struct gate_rows r = {.fd = -1, .n_loops = n_loops, .d = d};
    if (n_loops < 1 || n_loops > GATE_MAX_LOOPS || d < 1)
        return err_set(err, STATUS_INTERNAL, "rows of %d loops and %d numbers", n_loops, d);
    if (strlen(path) >= sizeof r.path)
        return err_set(err, STATUS_INVALID, "the path of the spill file has %zu bytes; at most %zu",
                       strlen(path), sizeof r.path - 1);
    strcpy(r.path, path);
    r.row_bytes = head_bytes(n_loops) + (size_t)n_loops * (size_t)d * sizeof(float);
    r.row = malloc(r.row_bytes);
    if (r.row == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a row of %zu bytes", r.row_bytes);
    r.fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (r.fd < 0) {
        free(r.row);
        return err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    }
    if (!is_kept)
        unlink(path);
    *out = r;
    return STATUS_OK;
}

void gate_rows_close(struct gate_rows *r)
{
    if (r->row == NULL)
        return;
    close(r->fd);
    free(r->row);
    *r = (struct gate_rows){.fd = -1};
}

enum status gate_rows_put(struct gate_rows *r, uint64_t number, const struct gate_row *row,
                          struct err *err)
{
    size_t loops_bytes = (size_t)r->n_loops * sizeof(float);
    unsigned char *at = r->row;
    memcpy(at, &row->index, 4);
    memcpy(at + 4, &row->hits, 4);
    memcpy(at + 8, row->ce, loops_bytes);
    memcpy(at + 8 + loops_bytes, row->lambda, loops_bytes);
    memcpy(at + head_bytes(r->n_loops), row->hidden, loops_bytes * (size_t)r->d);
    for (size_t done = 0; done < r->row_bytes;) {
        ssize_t n = pwrite(r->fd, r->row + done, r->row_bytes - done,
                           (off_t)(number * r->row_bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, STATUS_IO,
                           "cannot write row %" PRIu64
                           " of %s: %s; a row takes %zu bytes there: free space, give another "
                           "--out, or fewer texts",
                           number, r->path, strerror(n < 0 ? errno : ENOSPC), r->row_bytes);
        done += (size_t)n;
    }
    if (number >= r->n_rows)
        r->n_rows = number + 1;
    return STATUS_OK;
}

enum status gate_window_create(const struct gate_rows *rows, size_t max_bytes,
                               struct gate_window *out, struct err *err)
{
    uint64_t cap = max_bytes / rows->row_bytes;
    if (cap > rows->n_rows)
        cap = rows->n_rows;
    if (cap == 0)
        cap = 1;
    unsigned char *bytes = malloc(cap * rows->row_bytes);
    if (bytes == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %" PRIu64 " rows of %zu bytes", cap,
                       rows->row_bytes);
    *out = (struct gate_window){.rows = rows, .cap = cap, .bytes = bytes};
    return STATUS_OK;
}

void gate_window_free(struct gate_window *w)
{
    free(w->bytes);
    *w = (struct gate_window){0};
}

enum status gate_window_read(struct gate_window *w, uint64_t at, uint64_t first, uint64_t n,
                             struct err *err)
{
    const struct gate_rows *r = w->rows;
    if (at + n > w->cap || first + n > r->n_rows)
        return err_set(err, STATUS_INTERNAL,
                       "rows %" PRIu64 " + %" PRIu64 " of %" PRIu64 " into a window of %" PRIu64,
                       first, n, r->n_rows, w->cap);
    size_t want = n * r->row_bytes, done = 0;
    while (done < want) {
        ssize_t got = pread(r->fd, w->bytes + at * r->row_bytes + done, want - done,
                            (off_t)(first * r->row_bytes + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set(err, STATUS_IO, "cannot read %s: %s", r->path,
                           got < 0 ? strerror(errno) : "it has become shorter");
        done += (size_t)got;
    }
    return STATUS_OK;
}

void gate_window_get(const struct gate_window *w, uint64_t at, struct gate_row *row)
{
    const struct gate_rows *r = w->rows;
    size_t loops_bytes = (size_t)r->n_loops * sizeof(float);
    const unsigned char *bytes = w->bytes + at * r->row_bytes;
    memset(row, 0, sizeof *row);
    memcpy(&row->index, bytes, 4);
    memcpy(&row->hits, bytes + 4, 4);
    memcpy(row->ce, bytes + 8, loops_bytes);
    memcpy(row->lambda, bytes + 8 + loops_bytes, loops_bytes);
    row->hidden = (const float *)(const void *)(bytes + head_bytes(r->n_loops));
}
