/* Another program's whole output, within a deadline. */
#ifndef CLI_CHILD_H
#define CLI_CHILD_H

#include "proto/status.h"

enum { CHILD_OUTPUT_BYTES = 65536 };

struct child {
    int code;                     /* exit code, or 128 + the signal that ended it */
    char out[CHILD_OUTPUT_BYTES]; /* what it wrote, with a 0 at the end; the rest is dropped */
    char errors[1024];
};

/* Runs args[0] (searched on PATH; args ends with NULL) without standard input and without variables
 * whose names begin with `without` (NULL: with all). An exit code other than 0 is no failure of
 * this function. STATUS_NOT_FOUND: there is no such program; STATUS_TIMEOUT: it was killed after
 * timeout_s; STATUS_IO, STATUS_NO_MEMORY. */
enum status child_run(const char *const *args, const char *without, double timeout_s,
                      struct child *out, struct err *err);

#endif
