/* Rows between messages and the replica's store, many at a time: a device copies a list in one go.
 *
 * Rows are noted here and copied by worker_rows_finish; the messages they lie in stay until then.
 * Both directions keep their order: what leaves is read after what has come in before it. */
#ifndef WORKER_WORKER_ROWS_H
#define WORKER_WORKER_ROWS_H

#include "worker/replica.h"

#include <stdint.h>

struct worker_rows {
    struct replica *replica;
    uint32_t d_model;
    uint32_t n, cap;
    bool is_leaving; /* the rows noted are: from slots into messages */
    int32_t *slots;  /* [cap] */
    void **hosts;    /* [cap] */
};

/* STATUS_NO_MEMORY. Whatever was taken is given back by destroy, after a failure, too. */
enum status worker_rows_create(struct worker_rows *rows, struct replica *replica, uint32_t d_model,
                               uint32_t cap, struct err *err);
void worker_rows_destroy(struct worker_rows *rows); /* all zero is fine */

/* n rows of d floats at `bytes`, one behind the other: into the slots, out of them. A full list is
 * copied before it is gone on with. */
enum status worker_rows_arrive(struct worker_rows *rows, const int32_t *slots, uint32_t n,
                               const void *bytes, struct err *err);
enum status worker_rows_leave(struct worker_rows *rows, const int32_t *slots, uint32_t n,
                              void *bytes, struct err *err);
/* Copies what is noted. From then on slots and messages may be used for anything else. */
enum status worker_rows_finish(struct worker_rows *rows, struct err *err);

#endif
