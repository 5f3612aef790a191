/* Keeps a and b of `batch time = a + b * rows` up to date from what batches took. Pure. */
#ifndef WORKER_COST_H
#define WORKER_COST_H

#include <stdint.h>

/* Below this a batch runs on the driver's own thread: handing it to the compute thread and being
 * woken costs tens of microseconds each way, and the driver is silent no longer than this. */
enum { COST_INLINE_BATCH_NS = 400 * 1000 };

struct cost {
    double batch_ns, row_ns;                     /* current a and b, never negative */
    double weight, sum_x, sum_y, sum_xx, sum_xy; /* exponentially forgotten moments */
};

/* Starts from a measured pair, which counts like a few batches and fades. */
void cost_init(struct cost *c, uint64_t batch_ns, uint64_t row_ns);
void cost_update(struct cost *c, uint32_t n_rows, uint64_t took_ns);

#endif
