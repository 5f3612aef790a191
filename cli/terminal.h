/* What the user's screen can show, also when the user sits behind mpirun's pipes.
 *
 * launch_mpirun says through CAROUSEL_TTY_OUT, CAROUSEL_TTY_ERR and CAROUSEL_COLUMNS what a rank
 * cannot ask the kernel. */
#ifndef CLI_TERMINAL_H
#define CLI_TERMINAL_H

#include <stdbool.h>

struct terminal {
    bool is_terminal;
    bool has_colour; /* a terminal, NO_COLOR not set, TERM not dumb */
    bool has_utf8;   /* the locale does not name another character set */
    int columns;     /* 80 when unknown */
};

/* fd: STDOUT_FILENO or STDERR_FILENO. */
void terminal_look(int fd, struct terminal *out);

#endif
