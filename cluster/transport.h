/* Links between ranks: a small table of non-blocking calls.
 *
 * A rank's driver thread owns its transport object and makes all calls; only transport_wake may
 * come from other threads. Messages between a pair of ranks arrive whole and in the order they were
 * posted. A rank may send to itself. Nothing here waits except transport_wait, which has a
 * deadline.
 *
 * Who owns a buffer: transport_acquire lends one to the caller, transport_post takes it back, and
 * from then on the caller must not touch it; the transport reuses it once the send is complete. A
 * message from transport_poll belongs to the caller until transport_release. */
#ifndef CLUSTER_TRANSPORT_H
#define CLUSTER_TRANSPORT_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Limits one message, so that a peer's length can be checked before memory is taken. */
enum { TRANSPORT_MAX_MESSAGE_BYTES = 1 << 30 };

struct transport_message {
    unsigned char *bytes; /* 64-byte aligned */
    size_t len_bytes;     /* set by the sender before post; by the transport on receipt */
    size_t cap_bytes;
    int source; /* received messages: the sender's rank */
    /* The second part, of transport_add_rows or as it came; NULL and 0 without one. Device memory:
     * only the device may read and write it. */
    void *rows;
    size_t rows_bytes;
};

struct transport_counters {
    uint64_t n_messages_sent, n_bytes_sent, n_messages_received, n_bytes_received;
};

/* Where the bytes of messages lie, for a rank whose device wants them somewhere special. alloc is
 * 64-byte aligned and may be called from any thread, as may free; release is called once, after the
 * last free, and then nobody holds `context` any more. */
struct transport_memory {
    enum status (*alloc)(void *context, size_t len_bytes, void **out, struct err *err);
    void (*free)(void *context, void *bytes, size_t len_bytes);
    void (*release)(void *context);
    void *context;
};

struct transport;
struct transport_ops {
    const char *name; /* "mpi", "inproc" */
    enum status (*acquire)(struct transport *t, size_t cap_bytes, struct transport_message **out,
                           struct err *err);
    enum status (*post)(struct transport *t, int dest, struct transport_message *message,
                        struct err *err);
    enum status (*poll)(struct transport *t, struct transport_message **out, struct err *err);
    void (*release)(struct transport *t, struct transport_message *message);
    enum status (*wait)(struct transport *t, uint64_t timeout_ns, struct err *err);
    void (*wake)(struct transport *t);
    bool (*is_drained)(struct transport *t);
    void (*use_memory)(struct transport *t, const struct transport_memory *memory);
    /* Both NULL where messages have no second part. */
    void (*use_rows_memory)(struct transport *t, const struct transport_memory *memory);
    enum status (*add_rows)(struct transport *t, struct transport_message *message,
                            size_t rows_bytes, struct err *err);
    void (*destroy)(struct transport *t);
};

/* What every implementation begins with. */
struct transport {
    const struct transport_ops *ops;
    int rank, n_ranks;
    int n_local_ranks;   /* ranks on this host, this one included */
    int n_local_before;  /* of those the ones before this one */
    bool has_local_zero; /* rank 0 is on this host */
    struct transport_counters counters;
};

/* A buffer of at least cap_bytes to write a message into; give it back with post or release.
 * STATUS_NO_MEMORY, STATUS_INVALID above TRANSPORT_MAX_MESSAGE_BYTES. */
static inline enum status transport_acquire(struct transport *t, size_t cap_bytes,
                                            struct transport_message **out, struct err *err)
{
    return t->ops->acquire(t, cap_bytes, out, err);
}
/* Starts sending message->len_bytes to dest; takes the message on success AND on failure. */
static inline enum status transport_post(struct transport *t, int dest,
                                         struct transport_message *message, struct err *err)
{
    return t->ops->post(t, dest, message, err);
}
/* *out = the next message that has arrived whole, or NULL. Also moves pending sends on. */
static inline enum status transport_poll(struct transport *t, struct transport_message **out,
                                         struct err *err)
{
    return t->ops->poll(t, out, err);
}
static inline void transport_release(struct transport *t, struct transport_message *message)
{
    t->ops->release(t, message);
}
/* Returns when a message may have arrived, transport_wake was called since the last wait, or
 * timeout_ns passed; costs next to no CPU while nothing happens. May return early for no reason. */
static inline enum status transport_wait(struct transport *t, uint64_t timeout_ns, struct err *err)
{
    return t->ops->wait(t, timeout_ns, err);
}
/* Makes the current or next transport_wait return at once. Any thread. */
static inline void transport_wake(struct transport *t)
{
    t->ops->wake(t);
}
/* True when every posted message has left (its buffer is reusable). Poll until it is before
 * destroy. */
static inline bool transport_is_drained(struct transport *t)
{
    return t->ops->is_drained(t);
}
/* From now on new buffers come from there; those lent before stay what they are. Takes the memory
 * over: release is called when the last buffer is gone, in transport_destroy. Ranks of one process
 * share their buffers, and the first memory stays: any other is released at once. */
static inline void transport_use_memory(struct transport *t, const struct transport_memory *memory)
{
    t->ops->use_memory(t, memory);
}
/* Whether messages can have a second part, which travels from device memory to device memory. */
static inline bool transport_carries_rows(const struct transport *t)
{
    return t->ops->add_rows != NULL;
}
/* Second parts, sent and received, are in this memory, of which the transport takes over one: as
 * transport_use_memory. Before the first one is sent to this rank. */
static inline void transport_use_rows_memory(struct transport *t,
                                             const struct transport_memory *memory)
{
    t->ops->use_rows_memory(t, memory);
}
/* Gives an acquired message a second part of rows_bytes > 0, to be filled before post and released
 * with the message; once a message. STATUS_INVALID for too many bytes or without such memory,
 * STATUS_NO_MEMORY. */
static inline enum status transport_add_rows(struct transport *t, struct transport_message *message,
                                             size_t rows_bytes, struct err *err)
{
    return t->ops->add_rows(t, message, rows_bytes, err);
}
/* NULL is fine. For MPI this finalizes: call it once per rank, at the very end, after goodbyes. */
static inline void transport_destroy(struct transport *t)
{
    if (t != NULL)
        t->ops->destroy(t);
}

/* ---- implementations ------------------------------------------------------------------------ */

/* All roles in one process: creates n_ranks transports that reach each other through memory; each
 * is used by one thread. Destroy every one of them; the last frees what they share. */
enum status transport_inproc_create(int n_ranks, struct transport **out, struct err *err);

/* This process as a rank of an MPI job (after mpirun or srun started it). Sets the run-time knobs
 * that make idle ranks cheap (docs/transport.md), ignores SIGPIPE, initialises MPI and uses
 * point-to-point only. */
enum status transport_mpi_create(struct transport **out, struct err *err);
/* The MPI library's own version line, for doctor; borrowed static storage. */
const char *transport_mpi_version(void);
/* Whether the library says that it takes addresses of GPU memory (MPIX_Query_cuda_support); false
 * where it cannot be asked. */
bool transport_mpi_is_cuda_aware(void);

#endif
