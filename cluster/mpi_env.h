/* The settings of Open MPI that make idle ranks cheap; set before MPI_Init, the user's own values
 * stay. */
#ifndef CLUSTER_MPI_ENV_H
#define CLUSTER_MPI_ENV_H

#include <stdbool.h>

/* Sets the defaults that docs/transport.md lists. Changes the environment: call it before other
 * threads start. */
void mpi_env_set_defaults(void);
/* True when remote messages travel over TCP sockets, which an epoll descriptor can watch; false
 * when the user has chosen another point-to-point layer (UCX, libfabric). */
bool mpi_env_uses_sockets(void);

#endif
