/* Rows for fitting a gate, in a file: what every loop of a row said, hidden states included.
 *
 * They come in any order and lie in the order of their numbers, so the file does not depend on how
 * the engine ran. Memory is one row when they are put and one window when they are read. */
#ifndef TRAIN_GATE_ROWS_H
#define TRAIN_GATE_ROWS_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GATE_MAX_LOOPS = 8, GATE_PATH_BYTES = 4096 };

struct gate_row {
    uint32_t index;               /* within its text, from 0: a row with index 0 begins a text */
    uint32_t hits;                /* bit t: the target is the best token after loop t + 1 */
    float ce[GATE_MAX_LOOPS];     /* cross entropy of the target, -log p */
    float lambda[GATE_MAX_LOOPS]; /* of the gate the model came with */
    const float *hidden;          /* [n_loops, d] */
};

struct gate_rows {
    char path[GATE_PATH_BYTES];
    int fd;
    int n_loops, d;
    size_t row_bytes;
    uint64_t n_rows;    /* one more than the highest number put */
    unsigned char *row; /* scratch of one row */
};

/* Makes the file anew. One that is not kept has no name from here on: its space is free again
 * however this process ends. STATUS_IO with the path and what the system said, STATUS_NO_MEMORY. */
enum status gate_rows_create(const char *path, bool is_kept, int n_loops, int d,
                             struct gate_rows *out, struct err *err);
void gate_rows_close(struct gate_rows *r); /* a zeroed object is fine */
/* STATUS_IO; a full disk is named as one, with the bytes a row takes. */
enum status gate_rows_put(struct gate_rows *r, uint64_t number, const struct gate_row *row,
                          struct err *err);

/* Reads rows in order, a window at a time. */
struct gate_window {
    const struct gate_rows *rows;
    uint64_t first, n; /* rows held */
    uint64_t cap;
    unsigned char *bytes;
};
enum status gate_window_create(const struct gate_rows *rows, size_t max_bytes,
                               struct gate_window *out, struct err *err);
void gate_window_free(struct gate_window *w);
/* Fills the window with rows [first, first + n), n <= cap, into places [at, at + n). */
enum status gate_window_read(struct gate_window *w, uint64_t at, uint64_t first, uint64_t n,
                             struct err *err);
/* The row at a place of the window; row->hidden points into it. */
void gate_window_get(const struct gate_window *w, uint64_t at, struct gate_row *row);

#endif
