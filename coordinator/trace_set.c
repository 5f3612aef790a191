/* Keeps the records of all ranks of a run side by side. */
#include "coordinator/trace_set.h"

#include <inttypes.h>
#include <stdlib.h>

/* Room of an array of n records: a power of two, so that it need not be kept beside n. */
static size_t room_for(size_t n)
{
    size_t room = n > 0 ? 16 : 0;
    while (room < n)
        room *= 2;
    return room;
}

enum status trace_set_create(uint32_t n_ranks, struct trace_set **out, struct err *err)
{
    struct trace_set *set = calloc(1, sizeof *set);
    struct trace_rank *ranks = calloc(n_ranks > 0 ? n_ranks : 1, sizeof *ranks);
    if (set == NULL || ranks == NULL) {
        free(set);
        free(ranks);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the trace of %" PRIu32 " ranks",
                       n_ranks);
    }
    set->n_ranks = n_ranks;
    set->ranks = ranks;
    snprintf(set->version, sizeof set->version, "%s", CAROUSEL_VERSION);
    *out = set;
    return STATUS_OK;
}

void trace_set_destroy(struct trace_set *set)
{
    if (set == NULL)
        return;
    for (uint32_t i = 0; i < set->n_ranks; i++) {
        free(set->ranks[i].records);
        free(set->ranks[i].clocks);
    }
    free(set->ranks);
    free(set);
}

enum status trace_set_append(struct trace_set *set, uint32_t rank,
                             const struct trace_record *records, size_t n, struct err *err)
{
    if (rank >= set->n_ranks)
        return err_set(err, STATUS_INVALID, "a trace of rank %" PRIu32 "; there are %" PRIu32, rank,
                       set->n_ranks);
    struct trace_rank *r = &set->ranks[rank];
    if (n == 0)
        return STATUS_OK;
    size_t room =
        n > SIZE_MAX / 4 / sizeof *records - r->n_records ? 0 : room_for(r->n_records + n);
    if (room != room_for(r->n_records)) {
        struct trace_record *grown =
            room > 0 ? realloc(r->records, room * sizeof *r->records) : NULL;
        if (grown == NULL)
            return err_set(err, STATUS_NO_MEMORY,
                           "no memory for %zu trace records of rank %" PRIu32, r->n_records + n,
                           rank);
        r->records = grown;
    }
    memcpy(r->records + r->n_records, records, n * sizeof *records);
    r->n_records += n;
    return STATUS_OK;
}
