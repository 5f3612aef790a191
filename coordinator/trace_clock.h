/* How far one clock is ahead of another over a run, from comparisons that are each wrong by a known
 * amount.
 *
 * Two clocks drift apart, by at most TRACE_CLOCK_DRIFT: 50 us a second, five times what two
 * crystals do of which one is corrected by NTP. So a comparison bounds the offset at every time,
 * the more loosely the further away. Of many comparisons those are kept that bound it best at their
 * own time; when there is no room for all, the old ones become fewer than the new ones. */
#ifndef COORDINATOR_TRACE_CLOCK_H
#define COORDINATOR_TRACE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define TRACE_CLOCK_DRIFT 50e-6

struct trace_clock {
    uint64_t at_ns;    /* by the coordinator's clock */
    int64_t offset_ns; /* the other clock less the coordinator's, then */
    uint64_t error_ns; /* the offset is wrong by at most this, then */
};

/* Adds one to points[*n], ascending by time, unless the others say more; takes away those that say
 * less than it. cap >= 3. */
void trace_clock_add(struct trace_clock *points, size_t *n, size_t cap, struct trace_clock point);

/* The offset at a time, on the straight line between the comparisons before and after; *error_ns
 * (may be NULL) bounds it. n >= 1. Times in order stay in order when their offset is taken off:
 * neighbours differ by less than half the time between them. */
int64_t trace_clock_offset(const struct trace_clock *points, size_t n, uint64_t at_ns,
                           uint64_t *error_ns);

#endif
