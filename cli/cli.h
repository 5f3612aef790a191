/* The subcommands: each takes its own argv (argv[0] is its name) and returns the exit code.
 *
 * program_argv is the whole command line, for subcommands that start mpirun with it. Exit codes: 0,
 * 1 for failures, 2 for wrong usage. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include "proto/status.h"

enum { CLI_OK = 0, CLI_FAILURE = 1, CLI_USAGE = 2 };

int cli_generate(int argc, char **argv, char **program_argv);
int cli_serve(int argc, char **argv, char **program_argv);
int cli_batch(int argc, char **argv, char **program_argv);
int cli_lens(int argc, char **argv, char **program_argv);
int cli_train(int argc, char **argv, char **program_argv);
int cli_eval(int argc, char **argv, char **program_argv);
int cli_bench(int argc, char **argv, char **program_argv);
int cli_bench_engine(int argc, char **argv, char **program_argv);
int cli_trace(int argc, char **argv, char **program_argv);
int cli_info(int argc, char **argv, char **program_argv);
int cli_gate(int argc, char **argv, char **program_argv);
int cli_simulate(int argc, char **argv, char **program_argv);
int cli_slurm(int argc, char **argv, char **program_argv);
int cli_doctor(int argc, char **argv, char **program_argv);

/* Prints "carousel NAME: message" to stderr and returns the exit code. */
int cli_fail(const char *name, const struct err *err);
int cli_fail_usage(const char *name, const struct err *err);

#endif
