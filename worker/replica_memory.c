/* Lends a replica's kind of host memory to what outlives it: the kernels stay until both are gone.
 */
#include "worker/replica_parts.h"

#include <stdatomic.h>
#include <stdlib.h>

struct replica_memory {
    struct kernels *kernels;
    atomic_int n_users; /* the replica, and the one it has lent the memory to */
};

static void leave(struct replica_memory *m)
{
    if (atomic_fetch_sub(&m->n_users, 1) > 1)
        return;
    kernels_destroy(m->kernels);
    free(m);
}

static enum status lent_alloc(void *context, size_t len_bytes, void **out, struct err *err)
{
    return kernels_host_alloc(((struct replica_memory *)context)->kernels, len_bytes, out, err);
}

static void lent_free(void *context, void *bytes)
{
    kernels_host_free(((struct replica_memory *)context)->kernels, bytes);
}

static void lent_release(void *context)
{
    leave(context);
}

enum status replica_lend_memory(struct replica *r, struct transport_memory *out, struct err *err)
{
    if (r->kernels == NULL || r->lent != NULL)
        return err_set(err, STATUS_INTERNAL, "a replica %s lends no memory",
                       r->kernels == NULL ? "without kernels" : "that has done so before");
    struct replica_memory *m = malloc(sizeof *m);
    if (m == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a replica's memory");
    m->kernels = r->kernels;
    atomic_init(&m->n_users, 2);
    r->lent = m;
    *out = (struct transport_memory){lent_alloc, lent_free, lent_release, m};
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
