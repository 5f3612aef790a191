/* `carousel bench net`: what a hop costs on this machine. */
#ifndef CLI_BENCH_NET_H
#define CLI_BENCH_NET_H

/* Starts two ranks through mpirun unless this process is a rank already or
 * --transport inproc is given. Returns the exit code: 0, 1 (failed; message on stderr) or 2
 * (usage). */
int cli_bench_net(int argc, char **argv);

#endif
