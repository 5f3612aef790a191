/* Reads tokens, observations and trace records, the control messages with many items, each into one
 * piece of memory. */
#include "proto/control_wire.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sums of probabilities in float may end a little past their limit. */
#define PROBABILITY_SLACK 1e-4f
#define LOGPROB_SLACK     1e-3f

/* One timing for every loop the token ran, each a number of seconds. */
static enum status read_timings(const Carousel__Token *t, struct control_token *out,
                                struct err *err)
{
    enum status st;
    if (t->n_hops != t->exit_loop || t->n_waits != t->exit_loop || t->n_computes != t->exit_loop)
        return err_set(err, STATUS_CORRUPT,
                       "%zu hops, %zu waits and %zu computes, but it ran %" PRIu32 " loops",
                       t->n_hops, t->n_waits, t->n_computes, t->exit_loop);
    for (uint32_t i = 0; i < t->exit_loop; i++) {
        if (!isfinite(t->hops[i]))
            return err_set(err, STATUS_CORRUPT, "hops[%" PRIu32 "] is %g, not a time", i,
                           t->hops[i]);
        if ((st = control_check_float("waits", t->waits[i], 0.0f, FLT_MAX, err)) ||
            (st = control_check_float("computes", t->computes[i], 0.0f, FLT_MAX, err)))
            return st;
        out->timings[i] = (struct loop_timing){t->hops[i], t->waits[i], t->computes[i]};
    }
    return STATUS_OK;
}

static enum status read_token(const Carousel__Token *t, struct control_token *out, struct err *err)
{
    enum status st;
    if ((st = control_check_sequence("sequence", t->sequence, err)) ||
        (st = control_check_id("id", t->id, err)) ||
        (st = control_check_range("exit_loop", t->exit_loop, 1, SEQUENCE_MAX_LOOPS, err)) ||
        (st = control_check_float("cdf", t->cdf, 0.0f, 1.0f + PROBABILITY_SLACK, err)) ||
        (st = control_check_float("logprob", t->logprob, -INFINITY, LOGPROB_SLACK, err)) ||
        (st = control_check_pairs("top", t->n_top_ids, t->n_top_logprobs, SEQUENCE_MAX_LOGPROBS,
                                  err)))
        return st;
    *out = (struct control_token){.sequence = t->sequence,
                                  .position = t->position,
                                  .id = t->id,
                                  .exit_loop = t->exit_loop,
                                  .cdf = t->cdf,
                                  .logprob = t->logprob,
                                  .is_last = t->is_last,
                                  .n_top = (uint32_t)t->n_top_ids};
    for (size_t i = 0; i < t->n_top_ids; i++) {
        if ((st = control_check_id("top_ids", t->top_ids[i], err)) ||
            (st = control_check_float("top_logprobs", t->top_logprobs[i], -INFINITY, LOGPROB_SLACK,
                                      err)))
            return st;
        out->top_ids[i] = t->top_ids[i];
        out->top_logprobs[i] = t->top_logprobs[i];
    }
    return read_timings(t, out, err);
}

enum status control_read_tokens(const Carousel__Tokens *from, struct control_message *out,
                                struct err *err)
{
    size_t n = from->n_tokens;
    struct control_token *items = NULL;
    if (n > 0 && (items = malloc(n * sizeof *items)) == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu tokens", n);
    for (size_t i = 0; i < n; i++) {
        enum status st = read_token(from->tokens[i], &items[i], err);
        if (st != STATUS_OK) {
            free(items);
            err_wrap(err, "tokens[%zu] of %zu", i, n);
            return st;
        }
    }
    out->tokens.n = (uint32_t)n;
    out->tokens.items = items;
    return STATUS_OK;
}

/* Everything but the arrays. */
static enum status check_observation(const Carousel__Observation *o, struct err *err)
{
    enum status st;
    if ((st = control_check_sequence("sequence", o->sequence, err)) ||
        (st = control_check_range("loop", o->loop, 1, SEQUENCE_MAX_LOOPS, err)) ||
        (st = control_check_float("lambda", o->lambda, 0.0f, 1.0f, err)) ||
        (st = control_check_float("logprob", o->logprob, -INFINITY, LOGPROB_SLACK, err)) ||
        (st = control_check_float("log_norm", o->log_norm, -FLT_MAX, FLT_MAX, err)) ||
        (st = control_check_range("hidden entries", o->n_hidden, 0, INT32_MAX, err)))
        return st;
    return control_check_pairs("top", o->n_top_ids, o->n_top_logits, INT32_MAX, err);
}

/* Copies the arrays to the free places and moves these on. */
static enum status copy_top(const Carousel__Observation *o, int32_t **ids, float **logits,
                            struct err *err)
{
    enum status st;
    for (size_t i = 0; i < o->n_top_ids; i++) {
        if ((st = control_check_id("top_ids", o->top_ids[i], err)) ||
            (st = control_check_float("top_logits", o->top_logits[i], -INFINITY, INFINITY, err)))
            return st;
        *(*ids)++ = o->top_ids[i];
        *(*logits)++ = o->top_logits[i];
    }
    return STATUS_OK;
}

static enum status copy_hidden(const Carousel__Observation *o, float **hidden, struct err *err)
{
    enum status st;
    for (size_t i = 0; i < o->n_hidden; i++) {
        if ((st = control_check_float("hidden", o->hidden[i], -FLT_MAX, FLT_MAX, err)))
            return st;
        *(*hidden)++ = o->hidden[i];
    }
    return STATUS_OK;
}

enum status control_read_observations(const Carousel__Observations *from,
                                      struct control_message *out, struct err *err)
{
    size_t n = from->n_rows;
    if (n == 0)
        return STATUS_OK; /* out holds none yet, and NULL + 0 is no place for arrays */
    size_t n_top = 0, n_hidden = 0;
    enum status st = STATUS_OK;
    for (size_t i = 0; i < n; i++) {
        if ((st = check_observation(from->rows[i], err)) != STATUS_OK) {
            err_wrap(err, "observations[%zu] of %zu", i, n);
            return st;
        }
        n_top += from->rows[i]->n_top_ids;
        n_hidden += from->rows[i]->n_hidden;
    }
    /* Items, then all ids, all logits, all hidden states. The message's length bounds all counts.
     */
    struct control_observation *items = malloc(n * sizeof *items + n_top * 8 + n_hidden * 4);
    if (items == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu observations", n);
    int32_t *ids = (int32_t *)(items + n);
    float *logits = (float *)(ids + n_top);
    float *hidden = logits + n_top;
    for (size_t i = 0; i < n; i++) {
        const Carousel__Observation *o = from->rows[i];
        items[i] = (struct control_observation){.sequence = o->sequence,
                                                .position = o->position,
                                                .loop = o->loop,
                                                .lambda = o->lambda,
                                                .has_target = o->has_target,
                                                .is_hit = o->is_hit,
                                                .logprob = o->logprob,
                                                .log_norm = o->log_norm,
                                                .n_top = (uint32_t)o->n_top_ids,
                                                .n_hidden = (uint32_t)o->n_hidden,
                                                .top_ids = ids,
                                                .top_logits = logits,
                                                .hidden = hidden};
        if ((st = copy_top(o, &ids, &logits, err)) != STATUS_OK ||
            (st = copy_hidden(o, &hidden, err)) != STATUS_OK) {
            free(items);
            err_wrap(err, "observations[%zu] of %zu", i, n);
            return st;
        }
    }
    out->observations.n = (uint32_t)n;
    out->observations.items = items;
    return STATUS_OK;
}

enum status control_read_trace(const Carousel__Trace *from, struct control_message *out,
                               struct err *err)
{
    const size_t size = sizeof(struct trace_record), n = from->records.len / size;
    if (from->records.len % size != 0)
        return err_set(err, STATUS_CORRUPT,
                       "trace.records has %zu bytes, not a multiple of %zu: start all ranks from "
                       "the same build",
                       from->records.len, size);
    struct trace_record *records = NULL;
    if (n > 0 && (records = malloc(n * size)) == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %zu trace records", n);
    for (size_t i = 0; i < n; i++) {
        memcpy(&records[i], from->records.data + i * size, size);
        enum status st = trace_record_check(&records[i], err);
        if (st != STATUS_OK) {
            free(records);
            err_wrap(err, "trace.records[%zu] of %zu", i, n);
            return st;
        }
    }
    out->trace.tag = from->tag;
    out->trace.n_lost = from->n_lost;
    out->trace.is_last = from->is_last;
    out->trace.n = (uint32_t)n;
    out->trace.records = records;
    return STATUS_OK;
}
