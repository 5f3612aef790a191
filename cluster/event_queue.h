/* What is going to happen, in the order of its time: the clockless heart of a discrete-event
 * simulation.
 *
 * Events of the same time come out in the order they were put in, so that a run depends on nothing
 * but what was put in. */
#ifndef CLUSTER_EVENT_QUEUE_H
#define CLUSTER_EVENT_QUEUE_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct event {
    uint64_t at_ns;
    uint64_t serial;  /* set by push */
    uint32_t kind;    /* the caller's */
    uint32_t target;  /* the caller's */
    void *attachment; /* the caller's; never looked at */
};

/* A zeroed one is empty and ready. */
struct event_queue {
    struct event *heap; /* [n] a binary heap by (at_ns, serial) */
    size_t n, cap;
    uint64_t n_pushed; /* ever */
};

/* Frees the memory; attachments of events still inside are the caller's: pop them first. */
void event_queue_free(struct event_queue *q);
/* STATUS_NO_MEMORY: nothing has changed. */
enum status event_queue_push(struct event_queue *q, uint64_t at_ns, uint32_t kind, uint32_t target,
                             void *attachment, struct err *err);
/* Takes the earliest event out; false when there is none. */
bool event_queue_pop(struct event_queue *q, struct event *out);
/* When the earliest event is due; UINT64_MAX when there is none. */
uint64_t event_queue_next_ns(const struct event_queue *q);

#endif
