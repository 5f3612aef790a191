/* The way of every token: the batches in which its live row rode, loop by loop, and its arrival. */
#ifndef COORDINATOR_TRACE_CHAIN_H
#define COORDINATOR_TRACE_CHAIN_H

#include "coordinator/trace_set.h"

#include <stddef.h>
#include <stdint.h>

struct trace_step_record {
    uint64_t sequence;
    uint32_t position; /* of the token: one past the live row's */
    uint32_t rank;
    const struct trace_record *record; /* TRACE_ROWS with TRACE_LIVE, or TRACE_TOKEN; of the set */
};

/* All of an aligned set, by sequence and position; of one token the loops ascend (of one loop that
 * ran twice, the times) and its arrival comes last. *out is malloc'd and points into the set.
 * STATUS_NO_MEMORY. */
enum status trace_chain_collect(const struct trace_set *set, struct trace_step_record **out,
                                size_t *n, struct err *err);

/* How many of steps[0 .. n) are of the token of steps[0]; n >= 1. */
size_t trace_chain_length(const struct trace_step_record *steps, size_t n);

#endif
