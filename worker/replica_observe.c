/* Reports what each loop says at the rows of observed sequences. */
#include "worker/replica_parts.h"
#include "worker/select.h"

#include <math.h>
#include <stdlib.h>

int32_t replica_first_observed(const struct batch_segment *segment,
                               const struct kernels_segment *geometry)
{
    int64_t skipped = (int64_t)segment->params->observe_first - geometry->first_position;
    if (!sequence_is_observed(segment->params) || skipped > geometry->n_rows)
        skipped = geometry->n_rows;
    return geometry->first_row + (int32_t)(skipped > 0 ? skipped : 0);
}

static uint32_t n_observed_top(const struct replica *r, const struct batch_segment *segment)
{
    uint32_t vocab = (uint32_t)r->model.vocab_size, top = segment->params->observe_top;
    return top < vocab ? top : vocab;
}

/* `array` with room for n entries of size_bytes at least; itself, and *is_lost, without memory. */
static void *grow(void *array, size_t *cap, size_t n, size_t size_bytes, bool *is_lost)
{
    if (n <= *cap)
        return array;
    void *grown = realloc(array, n * size_bytes);
    if (grown == NULL) {
        *is_lost = true;
        return array;
    }
    *cap = n;
    return grown;
}

enum status replica_reserve_observations(struct replica *r, const struct batch *b, uint32_t n_heads,
                                         struct err *err)
{
    struct replica_observations *o = &r->observations;
    size_t n = 0, n_top = 0, n_hidden = 0;
    o->n = 0;
    o->n_top = 0;
    o->has_hidden = false;
    for (uint32_t i = 0; i < n_heads; i++) {
        int32_t i_segment = r->head_segment[i];
        const struct batch_segment *segment = &b->segments[i_segment];
        if (r->head_list[i] < replica_first_observed(segment, &b->geometry[i_segment]))
            continue; /* an exit that nobody observes */
        n++;
        n_top += n_observed_top(r, segment);
        o->has_hidden = o->has_hidden || segment->params->observe_hidden;
    }
    if (o->has_hidden)
        n_hidden = n_heads * (size_t)r->model.d_model;
    bool is_lost = false;
    o->items = grow(o->items, &o->cap, n, sizeof *o->items, &is_lost);
    o->ids = grow(o->ids, &o->cap_ids, n_top, sizeof *o->ids, &is_lost);
    o->logits = grow(o->logits, &o->cap_logits, n_top, sizeof *o->logits, &is_lost);
    o->hidden = grow(o->hidden, &o->cap_hidden, n_hidden, sizeof *o->hidden, &is_lost);
    if (!is_lost)
        return STATUS_OK;
    return err_set(err, STATUS_NO_MEMORY,
                   "no memory for %zu observed rows with %zu top tokens and %zu hidden numbers; "
                   "observe fewer",
                   n, n_top, n_hidden);
}

/* Log-probability of the target, the row's normaliser, and whether it is the largest, ties to the
 * smaller id. False when a logit is not finite. */
static bool judge(const float *logits, int vocab_size, int32_t target,
                  struct control_observation *item)
{
    int32_t best = 0;
    for (int32_t id = 1; id < vocab_size; id++)
        if (logits[id] > logits[best])
            best = id;
    double total = 0;
    for (int32_t id = 0; id < vocab_size; id++)
        total += exp((double)logits[id] - (double)logits[best]);
    if (!isfinite(logits[best]) || !isfinite(total))
        return false;
    item->has_target = true;
    item->is_hit = best == target;
    double log_norm = (double)logits[best] + log(total);
    item->logprob = (float)((double)logits[target] - log_norm);
    item->log_norm = (float)log_norm;
    return true;
}

bool replica_observe(struct replica *r, const struct batch *b, uint32_t i_segment, uint32_t i_head,
                     const float *logits)
{
    const struct batch_segment *segment = &b->segments[i_segment];
    const struct sequence_params *params = segment->params;
    const struct kernels_segment *g = &b->geometry[i_segment];
    struct replica_observations *o = &r->observations;
    int32_t row = r->head_list[i_head];
    struct control_observation item = {
        .sequence = segment->sequence,
        .position = (uint32_t)(g->first_position + row - g->first_row),
        .loop = segment->loop,
        .lambda = r->host_lambda[r->gate_index[row]],
        .n_top = n_observed_top(r, segment),
        .top_ids = o->ids + o->n_top,
        .top_logits = o->logits + o->n_top,
    };
    if (params->observe_hidden) {
        item.n_hidden = (uint32_t)r->model.d_model;
        item.hidden = o->hidden + i_head * (size_t)r->model.d_model;
    }
    uint32_t i_target = item.position - params->observe_first;
    if (i_target < params->n_observe_targets &&
        !judge(logits, r->model.vocab_size, segment->targets[i_target], &item))
        return false;
    if (item.n_top > 0) {
        struct select heap;
        select_init(&heap, logits, r->select_ids, r->model.vocab_size);
        for (uint32_t i = 0; i < item.n_top; i++) {
            int32_t id = select_pop(&heap);
            o->ids[o->n_top + i] = id;
            o->logits[o->n_top + i] = logits[id];
        }
        if (!isfinite(item.top_logits[0]))
            return false;
    }
    o->n_top += item.n_top;
    o->items[o->n++] = item;
    return true;
}
