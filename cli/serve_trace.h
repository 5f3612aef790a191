/* The traces of a running server: its last seconds on demand, and all that is kept at its end.
 *
 * Records are brought together by messages, as the engine turns; a file is made by a thread of its
 * own, so that tokens go on meanwhile. One at a time: who asks during one is told so in the log. */
#ifndef CLI_SERVE_TRACE_H
#define CLI_SERVE_TRACE_H

#include "coordinator/coordinator.h"
#include "coordinator/server_log.h"

struct serve_trace;
/* path: of --trace, or NULL. Both are borrowed. STATUS_NO_MEMORY. */
enum status serve_trace_create(const struct server_log *log, const char *path,
                               struct serve_trace **out, struct err *err);
/* Waits for the file that is being written. NULL is fine. */
void serve_trace_destroy(struct serve_trace *t);

/* Any thread: the engine makes one at its next step. */
void serve_trace_want(struct serve_trace *t);
/* The engine's thread, between its steps. */
void serve_trace_step(struct serve_trace *t, struct coordinator *c);
/* The engine's thread, when its work is over: writes what --trace names, of a lost cluster with
 * what rank 0 has. What goes wrong is in the log and returned. */
enum status serve_trace_finish(struct serve_trace *t, struct coordinator *c, struct err *err);

/* Where the n-th one goes: "runs/a.json" becomes "runs/a.3.json"; without a path it is
 * "carousel-trace-PID-3.json" in the current directory. STATUS_INVALID: too long. */
enum status serve_trace_path(const char *path, long pid, unsigned n, char *out, size_t cap_bytes,
                             struct err *err);

#endif
