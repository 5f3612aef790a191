/* Hands out events in the order of (time, serial), from a binary heap. */
#include "cluster/event_queue.h"

#include <stdlib.h>

enum { FIRST_CAP = 1024 };

static bool comes_before(const struct event *a, const struct event *b)
{
    return a->at_ns < b->at_ns || (a->at_ns == b->at_ns && a->serial < b->serial);
}

void event_queue_free(struct event_queue *q)
{
    free(q->heap);
    *q = (struct event_queue){0};
}

static enum status grow(struct event_queue *q, struct err *err)
{
    size_t cap = q->cap > 0 ? 2 * q->cap : FIRST_CAP;
    struct event *heap = realloc(q->heap, cap * sizeof *heap);
    if (heap == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu events under way", cap);
    q->heap = heap;
    q->cap = cap;
    return STATUS_OK;
}

enum status event_queue_push(struct event_queue *q, uint64_t at_ns, uint32_t kind, uint32_t target,
                             void *attachment, struct err *err)
{
    if (q->n == q->cap) {
        enum status status = grow(q, err);
        if (status != STATUS_OK)
            return status;
    }
    const struct event added = {at_ns, q->n_pushed++, kind, target, attachment};
    size_t at = q->n++;
    while (at > 0 && comes_before(&added, &q->heap[(at - 1) / 2])) {
        q->heap[at] = q->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    q->heap[at] = added;
    return STATUS_OK;
}

bool event_queue_pop(struct event_queue *q, struct event *out)
{
    if (q->n == 0)
        return false;
    *out = q->heap[0];
    const struct event last = q->heap[--q->n];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= q->n)
            break;
        if (child + 1 < q->n && comes_before(&q->heap[child + 1], &q->heap[child]))
            child++;
        if (!comes_before(&q->heap[child], &last))
            break;
        q->heap[at] = q->heap[child];
        at = child;
    }
    if (q->n > 0)
        q->heap[at] = last;
    return true;
}

uint64_t event_queue_next_ns(const struct event_queue *q)
{
    return q->n > 0 ? q->heap[0].at_ns : UINT64_MAX;
}
