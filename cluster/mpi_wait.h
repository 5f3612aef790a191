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
 * nobody else's while the socket lives and nothing is left behind after it; and where its door sign
 * can be mapped from. */
struct mpi_bell {
    uint8_t len_bytes; /* 0: has no bell */
    char name[15];
    int32_t pid, sign_fd; /* sign_fd -1: has no sign */
    uint64_t nonce;       /* on the sign, to know it by */
};

/* A page that a rank shares with the others of its host: whether ringing is of any use just now. A
 * ring is a system call of about a microsecond, as much as a small message costs; most messages
 * find their receiver awake. */
struct mpi_sign {
    uint64_t nonce;
    atomic_uint may_sleep;
};

/* Another rank's bell, as seen from here; all zero rings nobody. */
struct mpi_peer_bell {
    struct mpi_bell bell;
    const struct mpi_sign *sign; /* NULL: not mapped, ring always */
};

struct mpi_wait {
    int wake_fd;
    int bell_fd;
    int epoll_fd; /* borrowed from the MPI library; -1: none found */
    struct mpi_bell bell;
    struct mpi_sign *sign; /* this rank's; NULL: none */
    atomic_bool is_woken;
};

/* Opens eventfd and bell. A host that refuses the bell is no error: bell.len_bytes stays 0.
 * STATUS_IO. */
enum status mpi_wait_open(struct mpi_wait *w, struct err *err);
/* Looks in /proc/self/fd for the epoll descriptor that watches a TCP listener of this process; call
 * it after MPI_Init. */
void mpi_wait_find_epoll(struct mpi_wait *w);
void mpi_wait_close(struct mpi_wait *w);

/* Prepares for ringing a bell of this host; without access to its sign the bell is rung every time.
 */
void mpi_wait_attach(const struct mpi_bell *bell, struct mpi_peer_bell *out);
void mpi_wait_detach(struct mpi_peer_bell *peer);
/* Wakes the peer if it sleeps or is about to; does nothing when it has no bell. Never blocks. Call
 * it after the message has been put where the peer looks. */
void mpi_wait_ring(const struct mpi_wait *w, const struct mpi_peer_bell *peer);
/* true: peers ring from now on. Look for messages once more between this and the sleep, else one is
 * missed. */
void mpi_wait_set_may_sleep(struct mpi_wait *w, bool may_sleep);
/* Sleeps until something happens or timeout_ns have passed, and silences what rang. */
void mpi_wait_sleep(struct mpi_wait *w, uint64_t timeout_ns);
/* Any thread: the current or next sleep ends at once. */
void mpi_wait_wake(struct mpi_wait *w);
/* True when mpi_wait_wake was called since the last time this said so. */
bool mpi_wait_take_wake(struct mpi_wait *w);

#endif
