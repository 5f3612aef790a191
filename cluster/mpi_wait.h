/* How a rank sleeps until a message may have arrived, without knowing MPI.
 *
 * Three things end the sleep: the eventfd (transport_wake from another thread), the bell (a
 * datagram socket that ranks of this host ring after they have put a message into shared memory),
 * and the MPI library's own epoll descriptor (traffic from other hosts). Only mpi_wait_wake may
 * come from other threads. */
#ifndef CLUSTER_MPI_WAIT_H
#define CLUSTER_MPI_WAIT_H

#include "proto/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Where a rank's bell hangs: a name in the abstract namespace that the kernel has chosen, so it is
 * nobody else's while the socket lives and nothing is left behind after it. */
struct mpi_bell {
    uint8_t len_bytes; /* 0: has no bell */
    char name[15];
};

struct mpi_wait {
    int wake_fd;
    int bell_fd;
    int epoll_fd; /* borrowed from the MPI library; -1: none found */
    struct mpi_bell bell;
    atomic_bool is_woken;
};

/* Opens eventfd and bell. A host that refuses the bell is no error: bell.len_bytes stays 0.
 * STATUS_IO. */
enum status mpi_wait_open(struct mpi_wait *w, struct err *err);
/* Looks in /proc/self/fd for the epoll descriptor that watches a TCP listener of this process; call
 * it after MPI_Init. */
void mpi_wait_find_epoll(struct mpi_wait *w);
void mpi_wait_close(struct mpi_wait *w);

/* Wakes the rank that owns the bell; does nothing when it has none. Never blocks. */
void mpi_wait_ring(const struct mpi_wait *w, const struct mpi_bell *bell);
/* Sleeps until something happens or timeout_ns have passed, and silences what rang. */
void mpi_wait_sleep(struct mpi_wait *w, uint64_t timeout_ns);
/* Any thread: the current or next sleep ends at once. */
void mpi_wait_wake(struct mpi_wait *w);
/* True when mpi_wait_wake was called since the last time this said so. */
bool mpi_wait_take_wake(struct mpi_wait *w);

#endif
