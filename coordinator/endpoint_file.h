/* A file that tells batch systems where the server is: JSON, replaced atomically.
 *
 * {"host", "port", "url", "pid", "state", "model", "version"}; state is "loading", "ready",
 * "draining" or "stopped". */
#ifndef COORDINATOR_ENDPOINT_FILE_H
#define COORDINATOR_ENDPOINT_FILE_H

#include "proto/status.h"

#include <stdint.h>

struct endpoint {
    const char *host; /* as clients reach it: a wildcard address becomes this host's name */
    uint16_t port;
    const char *scheme; /* "http", "https" */
    const char *state;
    const char *model;
};

/* STATUS_IO names the file and why. */
enum status endpoint_file_write(const char *path, const struct endpoint *endpoint, struct err *err);

#endif
