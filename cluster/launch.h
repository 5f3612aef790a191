/* How a process becomes a rank: by itself, under mpirun, or under srun. */
#ifndef CLUSTER_LAUNCH_H
#define CLUSTER_LAUNCH_H

#include "proto/status.h"

#include <stdbool.h>

/* True when a launcher has started this process as one of several ranks. The rule, on the
 * environment: CAROUSEL_LAUNCHED and OMPI_COMM_WORLD_SIZE set   yes: launch_mpirun did it
 *   OMPI_COMM_WORLD_SIZE > 1                         yes: Open MPI's mpirun
 *   PMI_RANK and PMI_SIZE > 1                        yes: srun --mpi=pmi2, Hydra
 *   PMIX_RANK or PMI_RANK, with SLURM_PROCID and SLURM_STEP_NUM_TASKS > 1   yes: srun --mpi=pmix
 *   anything else                                    no
 * So a shell inside sbatch or salloc is no rank, nor is a step of one task, nor tasks that srun
 * started without a PMI (those could not find each other). */
bool launch_is_rank(void);
/* The rule by itself: get(context, name) is the variable's value or NULL. */
bool launch_is_rank_in(const char *(*get)(const void *context, const char *name),
                       const void *context);

/* This process's rank by the launcher's environment, before MPI is up; 0 when it is no rank. What
 * every rank would say alike (usage errors, help) is said by rank 0. */
int launch_rank(void);

/* Runs `mpirun -n n_ranks <this program> argv[1..]` on this host in place of this process
 * (launch_exec.h says how), with the settings small hosts need (root allowed, oversubscription
 * allowed, no binding, loopback only). Rank 0 reads the user's stdin; mpirun's exit code is that of
 * the first rank that ends with other than 0. The ranks' environment gets CAROUSEL_LAUNCHED=1 and,
 * because they write into mpirun's pipes, CAROUSEL_TTY_OUT=1 and CAROUSEL_TTY_ERR=1 where the
 * user's stdout and stderr are terminals, with CAROUSEL_COLUMNS. Returns only on failure:
 * STATUS_INVALID below one rank, STATUS_NOT_FOUND when there is no mpirun on PATH (the message says
 * what to install), STATUS_IO.
 */
enum status launch_mpirun(int n_ranks, char **argv, struct err *err);
/* The same for ranks that end their work before they go: signals to this process, and a terminal's
 * Ctrl-C, reach them as SIGUSR1 (drain), SIGURG (abort) and SIGUSR2 (a trace). They have no stdin.
 */
enum status launch_mpirun_server(int n_ranks, char **argv, struct err *err);

#endif
