/* Rows between host memory and a replica's row store, a list at a time. */
#include "worker/replica_parts.h"

static enum status check_slots(const struct replica *r, const int32_t *slots, uint32_t n,
                               struct err *err)
{
    for (uint32_t i = 0; i < n; i++)
        if (slots[i] < 0 || (uint32_t)slots[i] >= r->geometry.n_slots)
            return err_set(err, STATUS_INTERNAL, "row slot %d is outside the store of %u", slots[i],
                           r->geometry.n_slots);
    return STATUS_OK;
}

enum status replica_write_rows(struct replica *r, const int32_t *slots, const void *const *hosts,
                               uint32_t n, struct err *err)
{
    enum status st = check_slots(r, slots, n, err);
    if (st != STATUS_OK || n == 0 || r->timed != NULL) /* nobody reads a timed replica's slots */
        return st;
    return kernels_rows_from_host(r->rows, r->store.data, slots, hosts, (int)n, r->model.d_model,
                                  err);
}

enum status replica_read_rows(struct replica *r, const int32_t *slots, void *const *hosts,
                              uint32_t n, struct err *err)
{
    enum status st = check_slots(r, slots, n, err);
    if (st != STATUS_OK || n == 0)
        return st;
    if (r->timed != NULL) {
        replica_timed_read_rows(r, n, hosts);
        return STATUS_OK;
    }
    return kernels_rows_to_host(r->rows, hosts, r->store.data, slots, (int)n, r->model.d_model,
                                err);
}

enum status replica_sync_rows(struct replica *r, struct err *err)
{
    return r->timed != NULL ? STATUS_OK : kernels_stream_sync(r->rows, err);
}
