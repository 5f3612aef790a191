/* How far a long run is: a bar on a terminal, a plain line every few seconds elsewhere. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include "cli/terminal.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct progress_facts {
    uint64_t n_done;    /* answered, those of earlier runs included */
    uint64_t n_skipped; /* of them, by earlier runs */
    uint64_t n_total;   /* 0 = unknown */
    uint64_t n_errors;
    uint64_t n_tokens;
    uint64_t sum_exit_loops;
    double elapsed_s;
};

/* Both write one line without newline, terminated, and return its length. The bar takes at most
 * `columns` characters on the screen. Pure. */
size_t progress_format_bar(const struct progress_facts *f, const struct terminal *t, char *out,
                           size_t cap_bytes);
size_t progress_format_line(const struct progress_facts *f, char *out, size_t cap_bytes);
/* Seconds until done, < 0 when nothing can be said. Pure. */
double progress_eta_s(const struct progress_facts *f);
/* "0:07", "1:02:03". Pure. */
void progress_format_time(double seconds, char *out, size_t cap_bytes);

struct progress {
    struct terminal terminal;
    const char *name; /* begins the plain lines */
    bool is_quiet;
    bool is_shown; /* a bar stands on the screen */
    uint64_t next_ns;
};

/* Writes to stderr. Call update as often as you like: it looks at the clock. */
void progress_init(struct progress *p, const char *name, bool is_quiet);
void progress_update(struct progress *p, const struct progress_facts *f, uint64_t now_ns);
/* Takes the bar off the screen. */
void progress_clear(struct progress *p);

#endif
