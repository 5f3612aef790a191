/* Draws what a batch would give and computes how long it would take, from a cost model. Pure. */
#include "worker/timed.h"

#include "kernels/exit_rule.h"
#include "kernels/rng.h"

#include <math.h>

/* Uniform draws that make one of nearly normal shape. */
enum { JITTER_DRAWS = 4 };

/* 1 on average, with the model's relative standard deviation: a sum of uniform draws, whose mean
 * and spread are exact and which stays within 3.5 deviations, so that no batch takes no time. */
static double next_jitter(struct timed *t)
{
    uint64_t n = t->n_batches++;
    if (t->cost->jitter <= 0.0)
        return 1.0;
    uint64_t first = n * JITTER_DRAWS;
    uint64_t seed = t->jitter_seed ^ (first >> 32);
    double sum = 0.0;
    for (uint32_t i = 0; i < JITTER_DRAWS; i++)
        sum += rng_uniform(seed, (uint32_t)first + i, RNG_JITTER);
    return 1.0 + t->cost->jitter * (sum - 0.5 * JITTER_DRAWS) * sqrt(12.0 / JITTER_DRAWS);
}

/* The gate's value that makes the exit rule's cdf what the exits are drawn from; 0 where nothing
 * is. */
static float forced_lambda(const struct sequence_params *p, uint32_t loop)
{
    float left = 1.0f;
    if (loop > p->n_force_exits)
        return 0.0f;
    for (uint32_t i = 0; i + 1 < loop; i++)
        left -= p->force_exits[i];
    float lambda = left > 0.0f ? p->force_exits[loop - 1] / left : 1.0f;
    return lambda < 1.0f ? lambda : 1.0f;
}

/* Whether the live row at `position` gets off at segment's loop. */
static bool decide_exit(struct timed *t, const struct batch_segment *s, uint32_t position,
                        struct batch_outcome *o)
{
    const struct sequence_params *p = s->params;
    uint32_t known = t->exit_loop != NULL ? t->exit_loop(t->user, s->sequence, position) : 0;
    if (known == 0) {
        o->lambda = forced_lambda(p, s->loop);
        return exit_rule_step(p, s->loop, position, o->lambda, &o->exit);
    }
    bool is_exit = s->loop >= known || s->loop >= p->max_loops;
    o->lambda = is_exit ? 1.0f : 0.0f;
    exit_rule_step(p, s->loop, position, o->lambda, &o->exit);
    return is_exit;
}

/* A function of (seed, position), and never one that ends the sequence early. */
static int32_t draw_id(const struct timed *t, const struct sequence_params *p, uint32_t position)
{
    double u = rng_uniform(p->sampling.seed, position, RNG_SAMPLE);
    uint32_t id = (uint32_t)(u * (double)t->vocab_size);
    for (uint32_t i = 0; i < p->n_stop_ids; i++) { /* so many neighbours are enough */
        if (!sequence_is_stop_id(p->stop_ids, p->n_stop_ids, (int32_t)id))
            break;
        id = (id + 1) % t->vocab_size;
    }
    return (int32_t)id;
}

static void fill_token(const struct timed *t, const struct batch_segment *s, uint32_t position,
                       const struct batch_outcome *o, struct control_token *token)
{
    float logprob = -logf((float)t->vocab_size);
    *token = (struct control_token){
        .sequence = s->sequence,
        .position = position,
        .id = draw_id(t, s->params, position),
        .exit_loop = s->loop,
        .cdf = o->exit.cdf,
        .logprob = logprob,
    };
    for (int32_t i = 0; i < s->params->sampling.n_logprobs; i++) {
        if ((uint32_t)i >= t->vocab_size || i >= SEQUENCE_MAX_LOGPROBS)
            break;
        token->top_ids[i] = (int32_t)(((uint32_t)token->id + (uint32_t)i) % t->vocab_size);
        token->top_logprobs[i] = logprob;
        token->n_top++;
    }
}

void timed_run(struct timed *t, const struct batch *batch, struct batch_result *result)
{
    double n_kv_positions = 0.0;
    uint32_t n_heads = 0;
    for (uint32_t i = 0; i < batch->n_segments; i++) {
        const struct batch_segment *s = &batch->segments[i];
        const struct kernels_segment *g = &batch->geometry[i];
        double n = (double)g->n_rows, first = (double)g->first_position;
        n_kv_positions += n * first + n * (n + 1.0) / 2.0; /* a row reads its own position, too */
        struct batch_outcome *o = &result->outcomes[i];
        *o = (struct batch_outcome){.failure = STATUS_OK, .exit = s->exit};
        if (sequence_is_observed(s->params))
            o->failure = STATUS_INVALID;
        if (!s->has_live || o->failure != STATUS_OK)
            continue;
        uint32_t position = (uint32_t)(g->first_position + g->n_rows - 1);
        o->is_exit = decide_exit(t, s, position, o);
        if (!o->is_exit)
            continue;
        fill_token(t, s, position + 1, o, &o->token);
        n_heads++;
    }
    double head_ns, jitter = next_jitter(t);
    double batch_ns =
        cost_model_batch_ns(t->cost, batch->n_rows, n_kv_positions, n_heads, &head_ns);
    result->n_segments = batch->n_segments;
    result->n_heads = n_heads;
    result->compute_ns = (uint64_t)(batch_ns * jitter);
    result->head_ns = (uint64_t)(head_ns * jitter);
    result->n_observations = 0;
    result->observations = NULL;
}
