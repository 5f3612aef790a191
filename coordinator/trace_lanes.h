/* Spans that overlap, spread over lanes in which none do. */
#ifndef COORDINATOR_TRACE_LANES_H
#define COORDINATOR_TRACE_LANES_H

#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

struct trace_span {
    uint64_t from_ns, to_ns; /* from <= to */
    uint32_t group, lane;    /* in: below n_groups; out */
};

/* Gives every span the lane of its group that became free first, or a new one; lanes count from 0
 * in every group. One span may begin when the one before it in its lane ends. STATUS_NO_MEMORY. */
enum status trace_lanes_assign(struct trace_span *spans, size_t n, uint32_t n_groups,
                               struct err *err);

#endif
