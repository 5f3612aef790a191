/* The largest entries of each row, in a total order: value descending, then id ascending, NaN last.
 */
#include "kernels/cpu_backend.h"

#include <math.h>
#include <stdatomic.h>

/* The rank order as one comparison: whether (a, i) comes before (b, j). */
static bool ranks_before(float a, int32_t i, float b, int32_t j)
{
    if (isnan(a) || isnan(b))
        return isnan(a) ? isnan(b) && i < j : true;
    return a > b || (a == b && i < j);
}

/* A heap whose root ranks last among the entries kept. */
struct top_heap {
    int32_t *ids;
    float *values;
};

static void heap_sift(struct top_heap *heap, int at, int n)
{
    const int32_t id = heap->ids[at];
    const float value = heap->values[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && ranks_before(heap->values[child], heap->ids[child],
                                          heap->values[child + 1], heap->ids[child + 1]))
            child++;
        if (!ranks_before(value, id, heap->values[child], heap->ids[child]))
            break;
        heap->values[at] = heap->values[child];
        heap->ids[at] = heap->ids[child];
        at = child;
    }
    heap->values[at] = value;
    heap->ids[at] = id;
}

static void top_k_row(int32_t *ids, float *values, const float *logits, int n, int top)
{
    struct top_heap heap = {.ids = ids, .values = values};
    for (int j = 0; j < top; j++) {
        ids[j] = j;
        values[j] = logits[j];
    }
    for (int j = top / 2 - 1; j >= 0; j--)
        heap_sift(&heap, j, top);
    for (int j = top; j < n; j++) {
        /* Ids ascend, so an equal value never displaces one that is kept; NaN never does. */
        if (!(logits[j] > values[0]) && !(isnan(values[0]) && !isnan(logits[j])))
            continue;
        values[0] = logits[j];
        ids[0] = j;
        heap_sift(&heap, 0, top);
    }
    for (int end = top - 1; end > 0; end--) {
        int32_t id = ids[0];
        float value = values[0];
        ids[0] = ids[end];
        values[0] = values[end];
        ids[end] = id;
        values[end] = value;
        heap_sift(&heap, 0, end);
    }
}

struct top_k_run {
    int32_t *ids;
    float *values;
    const float *logits;
    int n, vocab_size, top;
    atomic_int next;
};

static void top_k_work(void *context, int thread)
{
    (void)thread;
    struct top_k_run *run = context;
    for (;;) {
        int i = atomic_fetch_add_explicit(&run->next, 1, memory_order_relaxed);
        if (i >= run->n)
            return;
        size_t at = (size_t)i * (size_t)run->top;
        top_k_row(run->ids + at, run->values + at,
                  run->logits + (size_t)i * (size_t)run->vocab_size, run->vocab_size, run->top);
    }
}

enum status cpu_top_k(struct kernels_stream *s, int32_t *ids, float *values, const float *logits,
                      int n, int vocab_size, int top, struct err *err)
{
    (void)err;
    struct cpu_backend *cpu = cpu_backend_of(s);
    struct top_k_run run = {.ids = ids,
                            .values = values,
                            .logits = logits,
                            .n = n,
                            .vocab_size = vocab_size,
                            .top = top};
    if (n == 1)
        top_k_work(&run, 0);
    else
        cpu_pool_run(cpu->pool, top_k_work, &run);
    return STATUS_OK;
}
