/* Keeps the comparisons of two clocks that bound their offset best. */
#include "coordinator/trace_clock.h"

#include <stdbool.h>
#include <string.h>

static uint64_t distance(uint64_t a, uint64_t b)
{
    return a > b ? a - b : b - a;
}

static double error_at(const struct trace_clock *p, uint64_t at_ns)
{
    return (double)p->error_ns + (double)distance(p->at_ns, at_ns) * TRACE_CLOCK_DRIFT;
}

/* Both clocks advance alike, but for drift: offsets that differ by more than half the time between
 * two comparisons would turn time back, and come from comparisons of the same moment. */
static bool is_steep(const struct trace_clock *a, const struct trace_clock *b)
{
    double change = (double)a->offset_ns - (double)b->offset_ns;
    return (change < 0.0 ? -change : change) * 2.0 >= (double)distance(a->at_ns, b->at_ns);
}

/* Whether `better` makes `p` useless. */
static bool is_beaten(const struct trace_clock *p, const struct trace_clock *better)
{
    return error_at(better, p->at_ns) <= (double)p->error_ns ||
           (is_steep(p, better) && better->error_ns <= p->error_ns);
}

static void remove_at(struct trace_clock *points, size_t *n, size_t at)
{
    memmove(points + at, points + at + 1, (--*n - at) * sizeof *points);
}

/* Takes away the one whose neighbours are nearest to each other, for its age; returns which. */
static size_t thin(struct trace_clock *points, size_t *n)
{
    const uint64_t now_ns = points[*n - 1].at_ns;
    size_t worst = 1;
    double least = 0.0;
    for (size_t i = 1; i + 1 < *n; i++) {
        double gap = (double)(points[i + 1].at_ns - points[i - 1].at_ns);
        double share = gap / (1e9 + (double)(now_ns - points[i].at_ns));
        if (i == 1 || share < least) {
            least = share;
            worst = i;
        }
    }
    remove_at(points, n, worst);
    return worst;
}

/* Whether one of its neighbours, were it at `at`, makes it useless. */
static bool is_useless(const struct trace_clock *points, size_t n, size_t at,
                       const struct trace_clock *point)
{
    return (at > 0 && is_beaten(point, &points[at - 1])) ||
           (at < n && is_beaten(point, &points[at]));
}

void trace_clock_add(struct trace_clock *points, size_t *n, size_t cap, struct trace_clock point)
{
    size_t at = *n;
    while (at > 0 && points[at - 1].at_ns > point.at_ns)
        at--;
    if (is_useless(points, *n, at, &point))
        return;
    while (at < *n && is_beaten(&points[at], &point))
        remove_at(points, n, at);
    while (at > 0 && is_beaten(&points[at - 1], &point))
        remove_at(points, n, --at);
    if (is_useless(points, *n, at, &point)) /* to those behind the ones that are gone */
        return;
    if (*n == cap && thin(points, n) < at)
        at--;
    memmove(points + at + 1, points + at, (*n - at) * sizeof *points);
    points[at] = point;
    ++*n;
}

int64_t trace_clock_offset(const struct trace_clock *points, size_t n, uint64_t at_ns,
                           uint64_t *error_ns)
{
    size_t after = 0, end = n;
    while (after < end) {
        size_t middle = after + (end - after) / 2;
        if (points[middle].at_ns <= at_ns)
            after = middle + 1;
        else
            end = middle;
    }
    const struct trace_clock *a = &points[after > 0 ? after - 1 : 0];
    const struct trace_clock *b = &points[after < n ? after : n - 1];
    double share = 0.0;
    if (a != b)
        share = (double)(at_ns - a->at_ns) / (double)(b->at_ns - a->at_ns);
    if (error_ns != NULL)
        *error_ns = (uint64_t)((1.0 - share) * error_at(a, at_ns) + share * error_at(b, at_ns)) + 1;
    /* Far clocks have offsets that a double does not hold; the change of one does. */
    return a->offset_ns + (int64_t)(share * (double)(b->offset_ns - a->offset_ns));
}
