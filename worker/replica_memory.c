/* Lends a replica's kinds of memory to what outlives it: the kernels stay until all are gone. */
#include "worker/replica_parts.h"

#include <stdatomic.h>
#include <stdlib.h>

struct replica_memory {
    struct kernels *kernels;
    bool is_lent[REPLICA_MEMORY_KINDS];
    atomic_int n_users; /* the replica, and those it has lent memory to */
};

static void leave(struct replica_memory *m)
{
    if (atomic_fetch_sub(&m->n_users, 1) > 1)
        return;
    kernels_destroy(m->kernels);
    free(m);
}

static enum status host_alloc(void *context, size_t len_bytes, void **out, struct err *err)
{
    return kernels_host_alloc(((struct replica_memory *)context)->kernels, len_bytes, out, err);
}

static void host_free(void *context, void *bytes, size_t len_bytes)
{
    (void)len_bytes;
    kernels_host_free(((struct replica_memory *)context)->kernels, bytes);
}

static enum status device_alloc(void *context, size_t len_bytes, void **out, struct err *err)
{
    struct kernels_buffer buffer;
    enum status st =
        kernels_alloc(((struct replica_memory *)context)->kernels, len_bytes, false, &buffer, err);
    if (st == STATUS_OK)
        *out = buffer.data;
    return st;
}

static void device_free(void *context, void *bytes, size_t len_bytes)
{
    struct kernels_buffer buffer = {.data = bytes, .len_bytes = len_bytes};
    kernels_free(((struct replica_memory *)context)->kernels, &buffer);
}

static void lent_release(void *context)
{
    leave(context);
}

enum status replica_lend_memory(struct replica *r, enum replica_memory_kind kind,
                                struct transport_memory *out, struct err *err)
{
    if (r->kernels == NULL || (r->lent != NULL && r->lent->is_lent[kind]))
        return err_set(err, STATUS_INTERNAL, "a replica %s lends no memory",
                       r->kernels == NULL ? "without kernels" : "that has done so before");
    struct replica_memory *m = r->lent;
    if (m == NULL) {
        m = calloc(1, sizeof *m);
        if (m == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for a replica's memory");
        m->kernels = r->kernels;
        atomic_init(&m->n_users, 1);
        r->lent = m;
    }
    m->is_lent[kind] = true;
    atomic_fetch_add(&m->n_users, 1);
    *out = kind == REPLICA_HOST_MEMORY
               ? (struct transport_memory){host_alloc, host_free, lent_release, m}
               : (struct transport_memory){device_alloc, device_free, lent_release, m};
    return STATUS_OK;
}

void replica_leave_kernels(struct replica *r)
{
    if (r->lent != NULL)
        leave(r->lent);
    else
        kernels_destroy(r->kernels);
    r->lent = NULL;
    r->kernels = NULL;
}
