/* Sets Open MPI's knobs for cheap waiting unless the user has set them. */
#include "cluster/mpi_env.h"

#include <stdlib.h>
#include <string.h>

void mpi_env_set_defaults(void)
{
    static const char *const defaults[][2] = {
        /* Blocking calls (start-up and finalize) give their core away. */
        {"OMPI_MCA_mpi_yield_when_idle", "1"},
        /* With epoll there is one descriptor that says "traffic"; the default is poll. */
        {"OMPI_MCA_opal_event_include", "epoll"},
        /* ob1 over shared memory and TCP is what the waiting is made for. */
        {"OMPI_MCA_pml", "ob1"},
        {"OMPI_MCA_btl", "self,vader,tcp"},
        /* A row must not need a handshake: its receiver would have to wake its sender once more. */
        {"OMPI_MCA_btl_vader_eager_limit", "65792"},
    };
    for (size_t i = 0; i < sizeof defaults / sizeof defaults[0]; i++)
        setenv(defaults[i][0], defaults[i][1], 0);
}

bool mpi_env_uses_sockets(void)
{
    const char *pml = getenv("OMPI_MCA_pml");
    return pml != NULL && strcmp(pml, "ob1") == 0;
}
