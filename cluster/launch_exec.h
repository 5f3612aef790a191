/* Becomes mpirun, but for telling what mpirun keeps to itself. */
#ifndef CLUSTER_LAUNCH_EXEC_H
#define CLUSTER_LAUNCH_EXEC_H

#include <stdbool.h>

/* Like execvp(args[0], args): returns only on failure, with errno as the value.
 *
 * mpirun that writes into a closed pipe complains, aborts its job and sometimes crashes while it
 * does; it is silent when the disk is full, and, being told to be quiet, when a signal ends one of
 * its ranks. So the program runs as a child whose output this process copies. When the reader
 * leaves
 * (`| head`), the child gets SIGTERM, the rest of its output is dropped, and this process ends by
 * SIGPIPE as programs do. Otherwise it ends as the child did, after one line to standard error when
 * output could not be written or a signal was the end. Signals sent to this process alone are
 * passed on (a terminal reaches both), and the child gets SIGTERM should this process be killed.
 *
 * With is_server the child is mpirun around a server that ends its work before it goes. mpirun
 * answers SIGTERM by killing its ranks one second later, so it must not get one: it is in a process
 * group of its own, which a terminal's Ctrl-C does not reach, reads nothing, and gets SIGUSR1
 * (which it passes on to the ranks) for the first SIGTERM, SIGINT, SIGHUP or SIGUSR1, again every
 * second until it ends, because one that comes before the ranks are there is lost; SIGURG likewise
 * for the second; SIGTERM for the third. SIGUSR2 (a trace is wanted) is passed on and ends nothing.
 * A reader that leaves costs output only. */
int launch_exec(char **args, bool is_server);

#endif
