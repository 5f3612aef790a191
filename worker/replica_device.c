/* Batches on a device that decides exits and draws tokens itself: nothing comes to the host between
 * its first operation and its outcomes. */
#include "worker/replica_parts.h"

#include <stdlib.h>

/* Sizes that are recorded: a batch runs at the next one up, its own rows being all that count. More
 * rows than the last are so much work that launching it costs nothing beside it. */
static const uint32_t buckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
enum { N_BUCKETS = sizeof buckets / sizeof buckets[0] };

/* Logits of rows that may exit in one batch at most; a batch with more comes to the host. */
#define MAX_LOGITS_BYTES (UINT64_C(512) << 20)
/* Of those that the host draws from, in memory that is pinned, twice. */
#define MAX_WANTED_BYTES (UINT64_C(32) << 20)

struct replica_device {
    struct kernels_live *live[KERNELS_MAX_IN_FLIGHT]; /* [max_live] */
    uint32_t max_live, max_heads, max_wanted;
};

static uint32_t bucket_of(uint32_t n, uint32_t most)
{
    for (int i = 0; i < N_BUCKETS && n > 0; i++)
        if (n <= buckets[i])
            return buckets[i] < most ? buckets[i] : most;
    return n;
}

static uint32_t rows_of_logits(const struct replica *r, uint64_t most_bytes, uint32_t most_rows)
{
    uint64_t n = most_bytes / ((uint64_t)r->model.vocab_size * sizeof(float));
    if (n > most_rows)
        n = most_rows;
    return n > 0 ? (uint32_t)n : 1;
}

enum status replica_device_create(struct replica *r, struct err *err)
{
    struct replica_device *d = calloc(1, sizeof *d);
    if (d == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for batches on a device");
    r->device = d;
    d->max_live = r->config.max_batch_rows;
    if (r->config.max_sequences > 0 && r->config.max_sequences < d->max_live)
        d->max_live = r->config.max_sequences;
    d->max_heads = rows_of_logits(r, MAX_LOGITS_BYTES, d->max_live);
    d->max_wanted = rows_of_logits(r, MAX_WANTED_BYTES, d->max_live);
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++) {
        d->live[i] = calloc(d->max_live, sizeof *d->live[i]);
        if (d->live[i] == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %u live rows", d->max_live);
    }
    return STATUS_OK;
}

void replica_device_destroy(struct replica *r)
{
    for (int i = 0; r->device != NULL && i < KERNELS_MAX_IN_FLIGHT; i++)
        free(r->device->live[i]);
    free(r->device);
    r->device = NULL;
}

uint32_t replica_device_heads(const struct replica *r)
{
    return r->device->max_heads;
}

uint32_t replica_device_wanted(const struct replica *r)
{
    return r->device->max_wanted;
}

/* ---- a batch in -------------------------------------------------------------------------------
 */

static uint32_t live_position(const struct kernels_segment *g)
{
    return (uint32_t)(g->first_position + g->n_rows - 1);
}

static bool may_exit(const struct batch *b, uint32_t i)
{
    return b->segments[i].has_live && exit_rule_may_exit(b->segments[i].params, b->segments[i].loop,
                                                         live_position(&b->geometry[i]));
}

/* Only where a token may be drawn at all do its logits have to come. */
static bool wants_logits(const struct batch *b, uint32_t i)
{
    return may_exit(b, i) &&
           sampler_needs_adjusting(b->segments[i].params, live_position(&b->geometry[i]) + 1);
}

static uint32_t count_heads(const struct batch *b)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->n_segments; i++)
        n += may_exit(b, i);
    return n;
}

bool replica_device_takes(const struct replica *r, const struct batch *b)
{
    const struct replica_device *d = r->device;
    uint32_t n_live = 0, n_wanted = 0;
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct kernels_segment *g = &b->geometry[i];
        if (replica_first_observed(&b->segments[i], g) < g->first_row + g->n_rows)
            return false;
        n_live += b->segments[i].has_live;
        n_wanted += wants_logits(b, i);
    }
    return n_live <= d->max_live && n_wanted <= d->max_wanted && count_heads(b) <= d->max_heads;
}

static int32_t list_live(const struct batch *b, struct kernels_live *live)
{
    int32_t n = 0;
    for (uint32_t i = 0; i < b->n_segments; i++) {
        const struct batch_segment *segment = &b->segments[i];
        const struct kernels_segment *g = &b->geometry[i];
        if (segment->has_live)
            live[n++] = (struct kernels_live){.row = g->first_row + g->n_rows - 1,
                                              .segment = (int32_t)i,
                                              .position = live_position(g),
                                              .loop = segment->loop,
                                              .exit = segment->exit,
                                              .params = segment->params,
                                              .wants_logits = wants_logits(b, i)};
    }
    return n;
}

/* The whole of a batch at n rows, of which up to n_heads go through the head. */
static enum status queue_work(struct replica *r, int n, int n_heads, bool has_live, struct err *err)
{
    const struct block_workspace *w = &r->block_workspace;
    struct kernels_stream *s = r->compute;
    enum status st = kernels_load_rows(s, w->h, r->store.data, &r->embed, n, err);
    if (st == STATUS_OK)
        st = block_run(&r->block, s, w, &r->kv, n, err);
    if (st == STATUS_OK)
        st = kernels_store_rows(s, r->store.data, w->y, n, r->model.d_model, err);
    if (st != STATUS_OK || !has_live)
        return st;
    const struct kernels_finish finish = {.y = w->y,
                                          .gate = r->gate.data != NULL ? &r->gate : NULL,
                                          .bias = r->gate_bias.data != NULL ? &r->gate_bias : NULL,
                                          .head = &r->head,
                                          .head_rows = r->head_rows,
                                          .logits = r->logits,
                                          .max_heads = n_heads};
    return kernels_finish(s, &finish, err);
}

/* The backend runs the first batch of a key as it is: it tries then which of its algorithms is the
 * fastest for it, which it cannot while operations are recorded. The next one is recorded. */
static enum status queue_recorded(struct replica *r, uint32_t n, uint32_t n_heads, bool has_live,
                                  struct err *err)
{
    const uint64_t key = (uint64_t)n << 32 | (uint64_t)has_live << 31 | n_heads;
    bool is_done = false;
    enum status st = kernels_replay(r->compute, key, &is_done, err);
    if (st != STATUS_OK || is_done)
        return st;
    st = kernels_record_begin(r->compute, err);
    if (st == STATUS_OK)
        st = queue_work(r, (int)n, (int)n_heads, has_live, err);
    return st == STATUS_OK ? kernels_record_end(r->compute, key, err) : st;
}

enum status replica_device_submit(struct replica *r, const struct batch *b, int flight,
                                  struct err *err)
{
    struct replica_device *d = r->device;
    struct kernels_batch *bound = &r->bound[flight];
    *bound = (struct kernels_batch){.n_rows = (int32_t)b->n_rows,
                                    .n_segments = (int32_t)b->n_segments,
                                    .segments = b->geometry,
                                    .block_table = b->block_table,
                                    .slots = b->slots,
                                    .ids = b->ids,
                                    .n_live = list_live(b, d->live[flight]),
                                    .live = d->live[flight]};
    const bool has_live = bound->n_live > 0;
    const uint32_t n_heads = count_heads(b);
    enum status st = kernels_bind(r->compute, bound, &r->kv, flight, err);
    if (st != STATUS_OK)
        return st;
    if (b->n_rows <= buckets[N_BUCKETS - 1])
        st = queue_recorded(r, bucket_of(b->n_rows, r->config.max_batch_rows),
                            bucket_of(n_heads, d->max_heads), has_live, err);
    else
        st = queue_work(r, (int)b->n_rows, (int)n_heads, has_live, err);
    return st == STATUS_OK ? kernels_mark(r->compute, flight, err) : st;
}

/* ---- its outcomes -----------------------------------------------------------------------------
 */

static void take_token(const struct kernels_outcome *from, struct batch_outcome *o)
{
    o->token.id = from->id;
    o->token.logprob = from->logprob;
    o->token.n_top = from->n_top;
    for (uint32_t i = 0; i < from->n_top; i++) {
        o->token.top_ids[i] = from->top_ids[i];
        o->token.top_logprobs[i] = from->top_logprobs[i];
    }
}

enum status replica_device_collect(struct replica *r, const struct batch *b, int flight,
                                   struct batch_result *result, struct err *err)
{
    enum status st = kernels_wait(r->compute, flight, err);
    if (st != STATUS_OK)
        return st;
    for (uint32_t i = 0; i < b->n_segments; i++)
        result->outcomes[i] = (struct batch_outcome){.exit = b->segments[i].exit};
    const struct kernels_batch *bound = &r->bound[flight];
    const struct kernels_outcome *outcomes = kernels_outcomes(r->compute, flight);
    result->n_segments = b->n_segments;
    result->n_heads = 0;
    result->head_ns = 0; /* the device does not say what part of its time that was */
    result->n_observations = 0;
    result->observations = NULL;
    for (int32_t i = 0; i < bound->n_live; i++) {
        const uint32_t i_segment = (uint32_t)bound->live[i].segment;
        struct batch_outcome *o = &result->outcomes[i_segment];
        o->lambda = outcomes[i].lambda;
        o->failure = outcomes[i].failure;
        if (o->failure != STATUS_OK)
            continue;
        o->exit = outcomes[i].exit;
        o->is_exit = outcomes[i].is_exit;
        result->n_heads += o->is_exit;
        if (!o->is_exit)
            continue;
        if (outcomes[i].has_logits)
            replica_sample(r, b, i_segment, kernels_outcome_logits(r->compute, flight, i), o);
        else
            take_token(&outcomes[i], o);
        replica_name_token(b, i_segment, o);
        o->is_exit = o->failure == STATUS_OK;
    }
    return STATUS_OK;
}
