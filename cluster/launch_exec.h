/* Becomes mpirun, but for telling what mpirun keeps to itself. */
#ifndef CLUSTER_LAUNCH_EXEC_H
#define CLUSTER_LAUNCH_EXEC_H

/* Like execvp(args[0], args): returns only on failure, with errno as the value.
 *
 * mpirun that writes into a closed pipe complains, aborts its job and sometimes crashes while it
 * does; it is silent when the disk is full, and, being told to be quiet, when a signal ends one of
 * its ranks. So the program runs as a child whose output this process copies. When the reader
 * leaves
 * (`| head`), the child gets SIGTERM, the rest of its output is dropped, and this process ends by
 * SIGPIPE as programs do. Otherwise it ends as the child did, after one line to standard error when
 * output could not be written or a signal was the end. Signals sent to this process alone are
 * passed on (a terminal reaches both), and the child gets SIGTERM should this process be killed. */
int launch_exec(char **args);

#endif
