/* A binary heap of ids that hands out the largest values first, in one strict order. */
#include "worker/select.h"

#include <assert.h>
#include <math.h>

bool select_before(const float *values, int32_t a, int32_t b)
{
    float x = values[a], y = values[b];
    if (x > y)
        return true;
    if (x < y)
        return false;
    if (isnan(x) != isnan(y))
        return isnan(y);
    return a < b;
}

static void sift_down(struct select *s, int at)
{
    int32_t id = s->ids[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= s->n)
            break;
        if (child + 1 < s->n && select_before(s->values, s->ids[child + 1], s->ids[child]))
            child++;
        if (!select_before(s->values, s->ids[child], id))
            break;
        s->ids[at] = s->ids[child];
        at = child;
    }
    s->ids[at] = id;
}

void select_init_ids(struct select *s, const float *values, int32_t *ids, int n)
{
    s->values = values;
    s->ids = ids;
    s->n = n;
    for (int i = n / 2 - 1; i >= 0; i--)
        sift_down(s, i);
}

void select_init(struct select *s, const float *values, int32_t *ids, int n)
{
    for (int i = 0; i < n; i++)
        ids[i] = i;
    select_init_ids(s, values, ids, n);
}

int32_t select_pop(struct select *s)
{
    assert(s->n > 0);
    int32_t first = s->ids[0];
    s->n--;
    if (s->n > 0) {
        s->ids[0] = s->ids[s->n];
        sift_down(s, 0);
    }
    return first;
}
