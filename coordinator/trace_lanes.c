/* Spreads spans over as many lanes as overlap at most. */
#include "coordinator/trace_lanes.h"

#include <stdlib.h>

struct order {
    uint64_t from_ns;
    uint32_t group;
    size_t index;
};

static int compare(const void *left, const void *right)
{
    const struct order *a = left, *b = right;
    if (a->group != b->group)
        return a->group < b->group ? -1 : 1;
    if (a->from_ns != b->from_ns)
        return a->from_ns < b->from_ns ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

struct lane {
    uint64_t free_ns;
    uint32_t number;
};

static void sift_down(struct lane *heap, size_t n, size_t at)
{
    for (;;) {
        size_t least = at, left = 2 * at + 1;
        for (size_t child = left; child < left + 2 && child < n; child++)
            if (heap[child].free_ns < heap[least].free_ns)
                least = child;
        if (least == at)
            return;
        struct lane swapped = heap[at];
        heap[at] = heap[least];
        heap[least] = swapped;
        at = least;
    }
}

static void sift_up(struct lane *heap, size_t at)
{
    for (; at > 0 && heap[at].free_ns < heap[(at - 1) / 2].free_ns; at = (at - 1) / 2) {
        struct lane swapped = heap[at];
        heap[at] = heap[(at - 1) / 2];
        heap[(at - 1) / 2] = swapped;
    }
}

enum status trace_lanes_assign(struct trace_span *spans, size_t n, uint32_t n_groups,
                               struct err *err)
{
    struct order *order = malloc((n + 1) * sizeof *order);
    struct lane *heap = malloc((n + 1) * sizeof *heap); /* by when they become free */
    if (order == NULL || heap == NULL) {
        free(order);
        free(heap);
        return err_set(err, STATUS_NO_MEMORY, "no memory to lay out %zu spans", n);
    }
    for (size_t i = 0; i < n; i++)
        order[i] = (struct order){spans[i].from_ns, spans[i].group, i};
    qsort(order, n, sizeof *order, compare);
    size_t at = 0;
    for (uint32_t group = 0; group < n_groups; group++) {
        size_t n_lanes = 0;
        for (; at < n && order[at].group == group; at++) {
            struct trace_span *span = &spans[order[at].index];
            if (n_lanes > 0 && heap[0].free_ns <= span->from_ns) {
                span->lane = heap[0].number;
                heap[0].free_ns = span->to_ns;
                sift_down(heap, n_lanes, 0);
            } else {
                span->lane = (uint32_t)n_lanes;
                heap[n_lanes] = (struct lane){span->to_ns, (uint32_t)n_lanes};
                sift_up(heap, n_lanes++);
            }
        }
    }
    free(order);
    free(heap);
    return STATUS_OK;
}
