/* Every call into the MPI library, behind types of our own: start, non-blocking sends and receives,
 * end.
 *
 * Four kinds of message: whole ones and announcements arrive at the one header receive, from any
 * source; bodies, and rows in device memory, are received one by one from a known source. A
 * function that fails has written the message with the library's own words, and the link is of no
 * further use. One thread at a time. */
#ifndef CLUSTER_MPI_LINK_H
#define CLUSTER_MPI_LINK_H

#include "cluster/message_pool.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mpi_link_kind {
    MPI_LINK_WHOLE = 1,
    MPI_LINK_ANNOUNCEMENT = 2,
    MPI_LINK_BODY = 3,
    MPI_LINK_ROWS = 5
};

struct mpi_link;

/* Initialises MPI. STATUS_INVALID when this process has done so before, STATUS_UNSUPPORTED when the
 * library can't be called from a thread that is not main's, STATUS_NO_MEMORY, STATUS_IO. */
enum status mpi_link_open(struct mpi_link **out, struct err *err);
int mpi_link_rank(const struct mpi_link *link);
int mpi_link_n_ranks(const struct mpi_link *link);
/* The ranks of this host. */
struct mpi_link_host {
    int n;         /* how many, this one included */
    int n_before;  /* of those before this one */
    bool has_zero; /* rank 0 is one of them */
};
/* Start-up only, all ranks together: ranks of one host show each other card [card_bytes]. cards
 * [n_ranks][card_bytes]: those of other hosts stay as they are. */
enum status mpi_link_meet_host(struct mpi_link *link, const void *card, size_t card_bytes,
                               void *cards, struct mpi_link_host *host, struct err *err);
/* NULL is fine. is_clean: nothing is under way and nothing has failed, so MPI_Finalize (which waits
 * for all ranks) is safe. Without it the library may use lent buffers until the process ends. True
 * when finalize was done. */
bool mpi_link_close(struct mpi_link *link, bool is_clean);

/* Starts a send of bytes [n]; node is what mpi_link_test_sends gives back when it is done. */
enum status mpi_link_send(struct mpi_link *link, enum mpi_link_kind kind, int dest,
                          const void *bytes, size_t n, struct message_node *node, struct err *err);
/* Starts the receive of a body or of rows into bytes [n], for which mpi_link_test_bodies gives node
 * back. */
enum status mpi_link_receive(struct mpi_link *link, enum mpi_link_kind kind, int source,
                             void *bytes, size_t n, struct message_node *node, struct err *err);
/* Starts the header receive into bytes [cap]; at most one at a time. */
enum status mpi_link_receive_head(struct mpi_link *link, void *bytes, size_t cap, struct err *err);

/* What is told about a send or a body that has completed. `completed` must not start anything. */
struct mpi_link_listener {
    void (*completed)(void *context, struct message_node *node, int peer);
    void *context;
};
enum status mpi_link_test_sends(struct mpi_link *link, const struct mpi_link_listener *listener,
                                struct err *err);
enum status mpi_link_test_bodies(struct mpi_link *link, const struct mpi_link_listener *listener,
                                 struct err *err);
struct mpi_link_head {
    bool has_arrived;
    enum mpi_link_kind kind;
    int source;
    size_t len_bytes;
};
/* Must be the last call before a sleep: MPI_Test looks again after it has made progress,
 * MPI_Testsome does not (0 wake-ups lost, against up to one in ten). */
enum status mpi_link_test_head(struct mpi_link *link, struct mpi_link_head *out, struct err *err);
bool mpi_link_is_head_receive_pending(const struct mpi_link *link);

int mpi_link_n_sends(const struct mpi_link *link);
int mpi_link_n_bodies(const struct mpi_link *link);
/* Calls visit with the peer of every send and body under way. */
void mpi_link_visit_peers(const struct mpi_link *link, void (*visit)(void *context, int peer),
                          void *context);

/* The benchmark's floor: n_bytes there and back, nothing but MPI in a loop that never sleeps;
 * is_first sends first. yields: give the core away between tests. STATUS_TIMEOUT when the peer is
 * silent for 30 s. */
enum status mpi_link_raw_round_trip(struct mpi_link *link, int peer, bool is_first, bool yields,
                                    void *bytes, size_t n_bytes, struct err *err);

#endif
