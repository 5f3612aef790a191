/* Gathers the rows of many frames into one copy between messages and the replica's store. */
#include "worker/worker_rows.h"

#include <stdlib.h>

enum status worker_rows_create(struct worker_rows *rows, struct replica *replica, uint32_t d_model,
                               uint32_t cap, struct err *err)
{
    *rows = (struct worker_rows){.replica = replica, .d_model = d_model, .cap = cap};
    rows->slots = malloc(cap * sizeof *rows->slots);
    rows->hosts = malloc(cap * sizeof *rows->hosts);
    if (rows->slots == NULL || rows->hosts == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a list of %u rows", cap);
    return STATUS_OK;
}

void worker_rows_destroy(struct worker_rows *rows)
{
    free(rows->slots);
    free(rows->hosts);
    *rows = (struct worker_rows){0};
}

enum status worker_rows_finish(struct worker_rows *rows, struct err *err)
{
    uint32_t n = rows->n;
    if (n == 0)
        return STATUS_OK;
    rows->n = 0;
    enum status status = rows->is_leaving
                             ? replica_read_rows(rows->replica, rows->slots, rows->hosts, n, err)
                             : replica_write_rows(rows->replica, rows->slots,
                                                  (const void *const *)rows->hosts, n, err);
    return status == STATUS_OK ? replica_sync_rows(rows->replica, err) : status;
}

static enum status rows_add(struct worker_rows *rows, bool is_leaving, const int32_t *slots,
                            uint32_t n, char *bytes, struct err *err)
{
    size_t row_bytes = (size_t)rows->d_model * sizeof(float);
    enum status status = STATUS_OK;
    if (rows->is_leaving != is_leaving)
        status = worker_rows_finish(rows, err);
    rows->is_leaving = is_leaving;
    for (uint32_t i = 0; i < n && status == STATUS_OK; i++) {
        if (rows->n == rows->cap && (status = worker_rows_finish(rows, err)) != STATUS_OK)
            break;
        rows->slots[rows->n] = slots[i];
        rows->hosts[rows->n++] = bytes + i * row_bytes;
    }
    return status;
}

enum status worker_rows_arrive(struct worker_rows *rows, const int32_t *slots, uint32_t n,
                               const void *bytes, struct err *err)
{
    /* Both directions share one list of addresses; those of arriving rows are only read. */
    return rows_add(rows, false, slots, n, (char *)(uintptr_t)bytes, err);
}

enum status worker_rows_leave(struct worker_rows *rows, const int32_t *slots, uint32_t n,
                              void *bytes, struct err *err)
{
    return rows_add(rows, true, slots, n, bytes, err);
}
