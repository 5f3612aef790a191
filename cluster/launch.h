/* How a process becomes a rank: by itself, under mpirun, or under srun. */
#ifndef CLUSTER_LAUNCH_H
#define CLUSTER_LAUNCH_H

#include "proto/status.h"

#include <stdbool.h>

/* True when a launcher (mpirun, srun with PMIx/PMI2) has started this process as one of several ranks. */
bool launch_is_rank(void);

/* Replaces this process by `mpirun -n n_ranks <this program> argv[1..]`, on this host, with the settings small hosts need (root allowed,
 * oversubscription allowed, no binding, loopback only). Returns only on failure: STATUS_NOT_FOUND when there is no
 * mpirun on PATH (the message says what to install), STATUS_IO. */
enum status launch_mpirun(int n_ranks, char **argv, struct err *err);

#endif
