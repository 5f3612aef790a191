/* Becomes another program, shielded from a reader of standard output that leaves early. */
#ifndef CLUSTER_LAUNCH_EXEC_H
#define CLUSTER_LAUNCH_EXEC_H

/* Like execvp(args[0], args): returns only on failure, with errno as the value.
 *
 * mpirun that writes into a closed pipe complains, aborts its job and sometimes crashes while it
 * does. So where standard output is a pipe or a socket, the program runs as a child whose output
 * this process copies. When the reader leaves (`| head`), the child gets SIGTERM, the rest of its
 * output is dropped, and this process ends by SIGPIPE as programs do. Otherwise it ends as the
 * child did. Signals sent to this process alone are passed on (a terminal reaches both), and the
 * child gets SIGTERM should this process be killed. */
int launch_exec(char **args);

#endif
