/* Checks a sequence's parameters against the model before anything is computed with them. */
#include "proto/sequence.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* The range of a logit bias, as in the OpenAI API: +-100 bans or forces a token in practice. */
#define LOGIT_BIAS_LIMIT 100.0f
/* A distribution typed with a few digits ("0.33,0.33,0.33") is meant to sum to 1. */
#define DISTRIBUTION_SLACK 0.02f

void sequence_params_init(struct sequence_params *p)
{
    memset(p, 0, sizeof *p);
    p->exit_mode = EXIT_MODE_FULL;
    p->exit_threshold = 1.0f;
    p->min_loops = 1;
    p->prefill = PREFILL_EAGER;
    p->sampling.top_p = 1.0f;
    p->sampling.repetition_penalty = 1.0f;
}

/* low <= value <= high, with the bounds in the message; NaN is outside. */
static enum status check_float(const char *name, float value, float low, float high,
                               struct err *err)
{
    if (value >= low && value <= high)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s is %g; allowed is [%g, %g]", name, (double)value,
                   (double)low, (double)high);
}

/* 0 < value <= high */
static enum status check_positive(const char *name, float value, float high, struct err *err)
{
    if (value > 0.0f && value <= high)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s is %g; allowed is (0, %g]", name, (double)value,
                   (double)high);
}

static enum status check_integer(const char *name, int64_t value, int64_t low, int64_t high,
                                 struct err *err)
{
    if (value >= low && value <= high)
        return STATUS_OK;
    return err_set(err, STATUS_INVALID, "%s is %" PRId64 "; allowed is %" PRId64 "..%" PRId64, name,
                   value, low, high);
}

/* Each of n ids lies in the vocabulary. */
static enum status check_ids(const char *name, const int32_t *ids, uint32_t n, uint32_t vocab_size,
                             struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= vocab_size)
            return err_set(err, STATUS_INVALID,
                           "%s[%" PRIu32 "] is %" PRId32 "; allowed is 0..%" PRId64, name, i,
                           ids[i], (int64_t)vocab_size - 1);
    }
    return STATUS_OK;
}

static enum status check_lengths(const struct sequence_params *p, uint32_t max_positions,
                                 struct err *err)
{
    enum status st;
    if (p->sequence == 0)
        return err_set(err, STATUS_INVALID, "sequence is 0; ids start at 1");
    if ((st = check_integer("prompt_tokens", p->prompt_tokens, 1, max_positions, err)) ||
        (st = check_integer("max_tokens", p->max_tokens, 1, UINT32_MAX, err)) ||
        (st = check_integer("min_tokens", p->min_tokens, 0, p->max_tokens, err)))
        return st;
    uint64_t total = (uint64_t)p->prompt_tokens + p->max_tokens;
    if (total > max_positions)
        return err_set(err, STATUS_INVALID,
                       "prompt_tokens %" PRIu32 " + max_tokens %" PRIu32 " = %" PRIu64
                       "; the model has %" PRIu32 " positions: shorten the prompt or ask for fewer "
                       "tokens",
                       p->prompt_tokens, p->max_tokens, total, max_positions);
    return STATUS_OK;
}

static enum status check_force_exits(const struct sequence_params *p, struct err *err)
{
    enum status st = check_integer("n_force_exits", p->n_force_exits, 0, p->max_loops, err);
    if (st != STATUS_OK || p->n_force_exits == 0)
        return st;
    float sum = 0.0f;
    for (uint32_t i = 0; i < p->n_force_exits; i++) {
        if ((st = check_float("force_exits", p->force_exits[i], 0.0f, 1.0f, err)))
            return st;
        sum += p->force_exits[i];
    }
    if (fabsf(sum - 1.0f) > DISTRIBUTION_SLACK)
        return err_set(err, STATUS_INVALID, "force_exits sum to %g; a distribution sums to 1",
                       (double)sum);
    return STATUS_OK;
}

static enum status check_depth(const struct sequence_params *p, uint32_t n_loops, struct err *err)
{
    enum status st;
    uint32_t deepest = n_loops < SEQUENCE_MAX_LOOPS ? n_loops : SEQUENCE_MAX_LOOPS;
    if ((st = check_integer("exit_mode", (int64_t)p->exit_mode, EXIT_MODE_FULL, EXIT_MODE_EXACT,
                            err)) ||
        (st = check_positive("exit_threshold", p->exit_threshold, 1.0f, err)) ||
        (st = check_integer("max_loops", p->max_loops, 1, deepest, err)) ||
        (st = check_integer("min_loops", p->min_loops, 1, p->max_loops, err)) ||
        (st = check_integer("prefill", (int64_t)p->prefill, PREFILL_EAGER, PREFILL_LAZY, err)))
        return st;
    return check_force_exits(p, err);
}

static enum status check_observation(const struct sequence_params *p, uint32_t vocab_size,
                                     struct err *err)
{
    enum status st;
    if ((st = check_integer("observe_top", p->observe_top, 0, vocab_size, err)) ||
        (st = check_integer("observe_first", p->observe_first, 0, (int64_t)p->prompt_tokens - 1,
                            err)) ||
        (st = check_integer("n_observe_targets", p->n_observe_targets, 0,
                            (int64_t)p->prompt_tokens - p->observe_first, err)))
        return st;
    if (p->observe_hidden && !sequence_is_observed(p))
        return err_set(err, STATUS_INVALID,
                       "observe_hidden is set; it needs observe_top or n_observe_targets > 0");
    return STATUS_OK;
}

static enum status check_sampling(const struct sampling_params *s, uint32_t vocab_size,
                                  struct err *err)
{
    enum status st;
    if ((st = check_float("temperature", s->temperature, 0.0f, 100.0f, err)) ||
        (st = check_integer("top_k", s->top_k, 0, INT32_MAX, err)) ||
        (st = check_positive("top_p", s->top_p, 1.0f, err)) ||
        (st = check_float("min_p", s->min_p, 0.0f, 1.0f, err)) ||
        (st = check_positive("repetition_penalty", s->repetition_penalty, 100.0f, err)) ||
        (st = check_float("presence_penalty", s->presence_penalty, -2.0f, 2.0f, err)) ||
        (st = check_float("frequency_penalty", s->frequency_penalty, -2.0f, 2.0f, err)) ||
        (st = check_integer("n_logprobs", s->n_logprobs, 0, SEQUENCE_MAX_LOGPROBS, err)) ||
        (st = check_integer("n_logit_bias", s->n_logit_bias, 0, SEQUENCE_MAX_LOGIT_BIAS, err)))
        return st;
    st = check_ids("logit_bias id", s->bias_ids, (uint32_t)s->n_logit_bias, vocab_size, err);
    for (int32_t i = 0; st == STATUS_OK && i < s->n_logit_bias; i++)
        st = check_float("logit_bias", s->biases[i], -LOGIT_BIAS_LIMIT, LOGIT_BIAS_LIMIT, err);
    return st;
}

enum status sequence_params_check(const struct sequence_params *p, uint32_t n_loops,
                                  uint32_t vocab_size, uint32_t max_positions, struct err *err)
{
    enum status st;
    if ((st = check_lengths(p, max_positions, err)) || (st = check_depth(p, n_loops, err)) ||
        (st = check_integer("n_stop_ids", p->n_stop_ids, 0, SEQUENCE_MAX_STOP_IDS, err)) ||
        (st = check_ids("stop_ids", p->stop_ids, p->n_stop_ids, vocab_size, err)) ||
        (st = check_observation(p, vocab_size, err)))
        return st;
    return check_sampling(&p->sampling, vocab_size, err);
}

bool sequence_is_observed(const struct sequence_params *p)
{
    return p->observe_top > 0 || p->n_observe_targets > 0;
}

bool sequence_is_stop_id(const int32_t *stop_ids, uint32_t n, int32_t id)
{
    for (uint32_t i = 0; i < n; i++)
        if (stop_ids[i] == id)
            return true;
    return false;
}
