/* The signals of a server: blocked in every thread, waited for by one of its own.
 *
 * First SIGTERM, SIGINT, SIGHUP or SIGUSR1: drain. SIGUSR2, or another one but SIGUSR1 while
 * draining: abort. Once more after that: the process ends at once. SIGUSR1 may be repeated without
 * effect: it is what an mpirun in between passes on, and may be sent again until it is heard. */
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
/* on_stop comes from the thread, once for each step. */
enum status serve_signals_start(void (*on_stop)(void *user, enum serve_stop stop, int number),
                                void *user, int at_once_code, struct serve_signals **out,
                                struct err *err);
void serve_signals_stop(struct serve_signals *s); /* NULL is fine */

#endif
