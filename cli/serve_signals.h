/* The signals of a server: blocked in every thread, waited for by one of its own.
 *
 * First SIGTERM, SIGINT, SIGHUP or SIGUSR1: drain. SIGURG, or another one but SIGUSR1 while
 * draining: abort. Once more after that: the process ends at once. SIGUSR1 and SIGURG may be
 * repeated without effect: they are what an mpirun in between passes on, and may be sent again
 * until they are heard. SIGURG is the one of those that mpirun passes on which does nothing to a
 * process that has not asked for it. SIGUSR2 ends nothing: it asks for a trace. */
#ifndef CLI_SERVE_SIGNALS_H
#define CLI_SERVE_SIGNALS_H

#include "proto/status.h"

enum serve_stop { SERVE_STOP_NONE = 0, SERVE_STOP_DRAIN, SERVE_STOP_ABORT };

/* For a rank that ends when the coordinator says so: what is sent to all processes of a job, by a
 * batch system or a terminal, does not end it. */
void serve_signals_ignore(void);

/* Blocks them in this thread and those it starts from now on. */
void serve_signals_block(void);

struct serve_signals;
/* on_stop comes from the thread, once for each step; on_trace, too, for each SIGUSR2. */
enum status serve_signals_start(void (*on_stop)(void *user, enum serve_stop stop, int number),
                                void (*on_trace)(void *user), void *user, int at_once_code,
                                struct serve_signals **out, struct err *err);
void serve_signals_stop(struct serve_signals *s); /* NULL is fine */

#endif
