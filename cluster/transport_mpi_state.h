/* What the files of the MPI transport share. Private to cluster/transport_mpi*.c. */
#ifndef CLUSTER_TRANSPORT_MPI_STATE_H
#define CLUSTER_TRANSPORT_MPI_STATE_H

#include "cluster/message_pool.h"
#include "cluster/mpi_link.h"
#include "cluster/mpi_wait.h"

enum {
    WHOLE_BYTES = 64 << 10, /* eight rows of 2048: a hop is one message, its handling one copy */
    ANNOUNCE_BYTES = 3 * sizeof(uint64_t) /* bytes of the body, its number, bytes of rows */
};

struct peer {
    struct message_queue queue; /* behind a body that has not arrived yet */
    uint64_t n_bodies_sent, n_bodies_received;
};

struct mpi {
    struct transport base;
    struct mpi_link *link;
    struct message_pool *pool;
    struct message_pool *rows_pool; /* of second parts; NULL: this rank has none */
    struct message_node *head_node; /* what the header receive writes into */
    struct peer *peers;
    struct mpi_peer_bell *bells; /* by rank; those of other hosts ring nobody */
    struct message_queue ready;
    struct mpi_wait waiting;
    uint64_t last_step_ns; /* when a transfer last began or ended */
    bool is_event_driven;  /* every peer can end a sleep */
    bool has_own_core;     /* spinning takes nobody's time */
    bool has_failed;
};

/* Rings the bell of a rank; context is the struct mpi. */
void mpi_ring(void *context, int rank);
/* Both parts; NULL is fine. */
void mpi_node_release(struct mpi *m, struct message_node *node);

/* transport_mpi_receive.c */
enum status mpi_start_head_receive(struct mpi *m, struct err *err);
/* Takes in headers until one message is ready or none is there; ends with a test of the header
 * receive, as a sleep that follows needs (mpi_link.h). */
enum status mpi_take_heads(struct mpi *m, struct err *err);
/* A body or its rows are there; for mpi_link_test_bodies. context is the struct mpi. */
void mpi_part_received(void *context, struct message_node *node, int peer);

#endif
