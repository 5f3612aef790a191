/* `carousel bench kernels`: the kernels beside what the machine can do. */
#ifndef CLI_BENCH_KERNELS_H
#define CLI_BENCH_KERNELS_H

/* Prints to stdout; returns the exit code: 0, 1 on failure, 2 on wrong usage. */
int cli_bench_kernels(int argc, char **argv);

#endif
