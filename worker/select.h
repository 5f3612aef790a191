/* The largest entries of a row in order: value descending, ties to the smaller id, NaN last.
 *
 * A heap of ids over borrowed values: building it is O(n), each pop O(log n), so the first few of a
 * vocabulary cost little more than one pass. Pure. */
#ifndef WORKER_SELECT_H
#define WORKER_SELECT_H

#include <stdbool.h>
#include <stdint.h>

struct select {
    const float *values; /* borrowed; indexed by id */
    int32_t *ids;        /* the heap; the caller's room */
    int n;
};

/* Whether id a comes before id b. */
bool select_before(const float *values, int32_t a, int32_t b);

/* Starts from all ids [0, n); `ids` has room for n. */
void select_init(struct select *s, const float *values, int32_t *ids, int n);
/* Starts from the n ids the caller has put into `ids`. */
void select_init_ids(struct select *s, const float *values, int32_t *ids, int n);
/* Takes the first; n must be > 0. */
int32_t select_pop(struct select *s);

#endif
