/* What only the MPI transport has, for the network benchmark. */
#ifndef CLUSTER_TRANSPORT_MPI_H
#define CLUSTER_TRANSPORT_MPI_H

#include "cluster/transport.h"

#include <stddef.h>
#include <stdint.h>

/* Ping-pong below the transport: the MPI library alone, in a tight loop that never sleeps. Two
 * ranks call it at the same time with each other as peer and the same sizes; the lower rank serves.
 * n_bytes each way, n_round_trips times; round_trip_ns [n_round_trips] may be NULL. t must come
 * from transport_mpi_create and have nothing under way. STATUS_INVALID, STATUS_NO_MEMORY,
 * STATUS_IO, STATUS_TIMEOUT when the peer is silent for 30 s. */
enum status transport_mpi_raw_ping_pong(struct transport *t, int peer, size_t n_bytes,
                                        int n_round_trips, uint64_t *round_trip_ns,
                                        struct err *err);

#endif
