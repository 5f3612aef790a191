/* Batches submitted and collected: each result once, in the order of the batches. */
#include "worker/replica_parts.h"

/* Our own mistakes, found before they reach memory; the kernels check shapes and block tables. */
static enum status check_batch(const struct replica *r, const struct batch *b, struct err *err)
{
    if (b->n_rows == 0 || b->n_rows > r->config.max_batch_rows)
        return err_set(err, STATUS_INTERNAL, "a batch of %u rows, room is for 1..%u", b->n_rows,
                       r->config.max_batch_rows);
    if (b->n_segments == 0 || b->n_segments > b->n_rows)
        return err_set(err, STATUS_INTERNAL, "a batch of %u rows in %u segments", b->n_rows,
                       b->n_segments);
    for (uint32_t i = 0; i < b->n_rows; i++) {
        if (b->slots[i] < 0 || (uint32_t)b->slots[i] >= r->geometry.n_slots)
            return err_set(err, STATUS_INTERNAL, "row %u of a batch has slot %d of %u", i,
                           b->slots[i], r->geometry.n_slots);
        if (b->ids[i] < -1 || b->ids[i] >= r->model.vocab_size)
            return err_set(err, STATUS_INTERNAL, "row %u of a batch has token id %d of %d", i,
                           b->ids[i], r->model.vocab_size);
    }
    return STATUS_OK;
}

uint32_t replica_depth(const struct replica *r)
{
    return r->device != NULL ? KERNELS_MAX_IN_FLIGHT : 1;
}

/* A batch that needs the host between its operations runs when it is collected, by the compute
 * thread, which then has the stream to itself: whatever is submitted meanwhile waits likewise. So
 * the driver's thread, which submits, and the compute thread never queue at the same time. */
static bool must_wait(const struct replica *r, const struct batch *batch, uint32_t n,
                      uint32_t n_collected)
{
    if (r->device == NULL || !replica_device_takes(r, batch))
        return true;
    for (uint32_t i = n_collected; i != n; i++)
        if (r->pending[i % KERNELS_MAX_IN_FLIGHT].is_waiting)
            return true;
    return false;
}

enum status replica_submit(struct replica *r, const struct batch *batch, struct err *err)
{
    const uint32_t n = atomic_load(&r->n_submitted), n_collected = atomic_load(&r->n_collected);
    if (n - n_collected >= KERNELS_MAX_IN_FLIGHT)
        return err_set(err, STATUS_INTERNAL, "a batch is submitted while %d are in flight",
                       KERNELS_MAX_IN_FLIGHT);
    enum status st = check_batch(r, batch, err);
    if (st != STATUS_OK)
        return st;
    const bool is_waiting = must_wait(r, batch, n, n_collected);
    if (!is_waiting)
        st = replica_device_submit(r, batch, (int)(n % KERNELS_MAX_IN_FLIGHT), err);
    if (st != STATUS_OK)
        return st;
    r->pending[n % KERNELS_MAX_IN_FLIGHT] =
        (struct replica_pending){.batch = batch, .is_waiting = is_waiting};
    atomic_store(&r->n_submitted, n + 1);
    return STATUS_OK;
}

enum status replica_collect(struct replica *r, struct batch_result *result, struct err *err)
{
    const uint32_t n = atomic_load(&r->n_collected);
    if (n == atomic_load(&r->n_submitted))
        return err_set(err, STATUS_INTERNAL, "a batch is collected, but none was submitted");
    const int flight = (int)(n % KERNELS_MAX_IN_FLIGHT);
    const struct replica_pending pending = r->pending[flight];
    enum status st = STATUS_OK;
    if (r->timed != NULL) {
        replica_timed_run(r, pending.batch, result);
    } else if (r->device == NULL || !replica_device_takes(r, pending.batch)) {
        st = replica_run_on_host(r, pending.batch, result, err);
    } else {
        if (pending.is_waiting)
            st = replica_device_submit(r, pending.batch, flight, err);
        if (st == STATUS_OK)
            st = replica_device_collect(r, pending.batch, flight, result, err);
    }
    atomic_store(&r->n_collected, n + 1);
    return st;
}

enum status replica_run(struct replica *r, const struct batch *batch, struct batch_result *result,
                        struct err *err)
{
    enum status st = replica_submit(r, batch, err);
    return st == STATUS_OK ? replica_collect(r, result, err) : st;
}
