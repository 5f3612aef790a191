/* Turns the logits of one row into a token by the request's sampling parameters, reproducibly. */
#include "worker/sampler.h"

#include "kernels/rng.h"
#include "worker/sampler_parts.h"
#include "worker/select.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status sampler_create(int vocab_size, struct sampler **out, struct err *err)
{
    if (vocab_size <= 0)
        return err_set(err, STATUS_INVALID, "a sampler needs a vocabulary, got size %d",
                       vocab_size);
    size_t n = (size_t)vocab_size;
    struct sampler *s = calloc(1, sizeof *s);
    if (!s)
        goto no_memory;
    s->vocab_size = vocab_size;
    s->adjusted = malloc(n * sizeof *s->adjusted);
    s->candidates = malloc(n * sizeof *s->candidates);
    s->kept = malloc(n * sizeof *s->kept);
    s->weights = malloc(n * sizeof *s->weights);
    s->n_generated = calloc(n, sizeof *s->n_generated);
    s->is_seen = calloc(n, sizeof *s->is_seen);
    s->seen = malloc(n * sizeof *s->seen);
    if (!s->adjusted || !s->candidates || !s->kept || !s->weights || !s->n_generated ||
        !s->is_seen || !s->seen)
        goto no_memory;
    *out = s;
    return STATUS_OK;

no_memory:
    sampler_destroy(s);
    return err_set(err, STATUS_NO_MEMORY, "no memory for a sampler over %d tokens", vocab_size);
}

void sampler_destroy(struct sampler *s)
{
    if (!s)
        return;
    free(s->adjusted);
    free(s->candidates);
    free(s->kept);
    free(s->weights);
    free(s->n_generated);
    free(s->is_seen);
    free(s->seen);
    free(s);
}

enum { LANES = 16 };

/* The largest entry, ties to the smaller id; -1 when all are -inf. One maximum a lane, so that the
 * pass is as wide as the machine; then the first place that holds it. */
static int32_t argmax(const float *logits, int vocab_size)
{
    float lanes[LANES], best = -INFINITY;
    for (int j = 0; j < LANES; j++)
        lanes[j] = -INFINITY;
    int i = 0;
    for (; i + LANES <= vocab_size; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
    for (int j = 0; j < LANES; j++)
        best = lanes[j] > best ? lanes[j] : best;
    for (; i < vocab_size; i++)
        best = logits[i] > best ? logits[i] : best;
    if (best == -INFINITY)
        return -1;
    int32_t id = 0;
    while (logits[id] != best)
        id++;
    return id;
}

/* Bits, not comparisons: one branch-free pass that the compiler vectorises. NaN and +inf are the
 * patterns from 0x7f800000 up once a NaN's sign is dropped; -inf is allowed. */
static int count_broken(const float *logits, int vocab_size)
{
    int n = 0;
    for (int i = 0; i < vocab_size; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        n += (bits & 0x7fffffffu) >= 0x7f800000u && bits != 0xff800000u;
    }
    return n;
}

static void weigh(struct sampler *s, int32_t id, double *total)
{
    s->weights[id] = exp(s->weights[id]);
    *total += s->weights[id];
}

/* The k largest of n candidates, in descending order, and of these the first that reach top_p of
 * their mass. */
static int keep_top_k(struct sampler *s, struct select *heap, int k, float top_p)
{
    double total = 0, cumulative = 0;
    for (int i = 0; i < k; i++) {
        s->kept[i] = select_pop(heap);
        weigh(s, s->kept[i], &total);
    }
    for (int i = 0; top_p < 1 && i < k; i++) {
        cumulative += s->weights[s->kept[i]];
        if (cumulative >= (double)top_p * total)
            return i + 1;
    }
    return k;
}

/* The smallest prefix of the candidates, in descending order, that reaches top_p of their mass. */
static int keep_top_p(struct sampler *s, const float *logits, int n, float top_p)
{
    double total = 0, cumulative = 0;
    for (int i = 0; i < n; i++)
        weigh(s, s->candidates[i], &total);
    /* Tokens below (1 - top_p) * total / n weigh less than (1 - top_p) * total together, so the
     * prefix ends before them; half of that leaves room for rounding. It spares the heap most of a
     * vocabulary. */
    double least = 0.5 * (1 - (double)top_p) * total / n;
    int n_likely = 0;
    for (int i = 0; i < n; i++)
        if (s->weights[s->candidates[i]] >= least)
            s->candidates[n_likely++] = s->candidates[i];
    struct select heap;
    select_init_ids(&heap, logits, s->candidates, n_likely);
    int n_kept = 0;
    while (heap.n > 0 && (n_kept == 0 || cumulative < (double)top_p * total)) {
        s->kept[n_kept] = select_pop(&heap);
        cumulative += s->weights[s->kept[n_kept]];
        n_kept++;
    }
    return n_kept;
}

/* Fills `kept` in the order the draw walks it: by value where top-k or top-p cut, else by id.
 * Weights are w_i = exp((l_i - max) / temperature): the largest is 1, so min-p is w_i >= min_p. */
static int keep_candidates(struct sampler *s, const struct sampling_params *p, const float *logits,
                           float largest)
{
    double least = p->min_p > 0 ? log((double)p->min_p) : -INFINITY, total = 0;
    int n = 0;
    for (int32_t i = 0; i < s->vocab_size; i++) {
        double exponent = ((double)logits[i] - (double)largest) / (double)p->temperature;
        if (logits[i] > -INFINITY && exponent >= least) {
            s->candidates[n++] = i;
            s->weights[i] = exponent;
        }
    }
    if (p->top_k > 0 && p->top_k < n) {
        struct select heap;
        select_init_ids(&heap, logits, s->candidates, n);
        return keep_top_k(s, &heap, p->top_k, p->top_p);
    }
    if (p->top_p < 1)
        return keep_top_p(s, logits, n, p->top_p);
    memcpy(s->kept, s->candidates, (size_t)n * sizeof *s->kept);
    for (int i = 0; i < n; i++)
        weigh(s, s->kept[i], &total);
    return n;
}

static int32_t draw(struct sampler *s, const struct sequence_params *params, const float *logits,
                    int32_t largest_id, uint32_t position)
{
    const struct sampling_params *p = &params->sampling;
    int n = keep_candidates(s, p, logits, logits[largest_id]);
    double total = 0;
    for (int i = 0; i < n; i++)
        total += s->weights[s->kept[i]];
    double target = rng_uniform(p->seed, position, RNG_SAMPLE) * total;
    double cumulative = 0;
    for (int i = 0; i < n; i++) {
        cumulative += s->weights[s->kept[i]];
        if (target < cumulative)
            return s->kept[i];
    }
    return largest_id; /* rounding can leave target == total; the mode is never wrong */
}

/* logprob of token->id and the n_logprobs largest, from the raw logits. */
static void write_logprobs(struct sampler *s, const float *logits, int n_logprobs,
                           struct control_token *token)
{
    float largest = logits[argmax(logits, s->vocab_size)];
    double total = 0;
    for (int i = 0; i < s->vocab_size; i++)
        total += exp((double)logits[i] - (double)largest);
    double log_total = (double)largest + log(total);
    token->logprob = (float)((double)logits[token->id] - log_total);

    /* A sorted list of at most 20: nearly every id is turned away by one comparison with its last.
     */
    int n_wanted = n_logprobs < SEQUENCE_MAX_LOGPROBS ? n_logprobs : SEQUENCE_MAX_LOGPROBS, n = 0;
    for (int32_t id = 0; id < s->vocab_size; id++) {
        if (logits[id] == -INFINITY ||
            (n == n_wanted && !select_before(logits, id, token->top_ids[n - 1])))
            continue;
        int at = n < n_wanted ? n++ : n - 1;
        for (; at > 0 && select_before(logits, id, token->top_ids[at - 1]); at--)
            token->top_ids[at] = token->top_ids[at - 1];
        token->top_ids[at] = id;
    }
    token->n_top = (uint32_t)n;
    for (int i = 0; i < n; i++)
        token->top_logprobs[i] = (float)((double)logits[token->top_ids[i]] - log_total);
}

enum status sampler_sample(struct sampler *s, const struct sequence_params *params,
                           const float *logits, const struct sampler_history *history,
                           uint32_t position, struct control_token *token, struct err *err)
{
    const struct sampling_params *p = &params->sampling;
    int n_broken = count_broken(logits, s->vocab_size);
    if (n_broken > 0)
        return err_set(err, STATUS_CORRUPT,
                       "%d of %d logits are not finite: the weights or the hidden state are broken",
                       n_broken, s->vocab_size);
    int32_t largest_id = argmax(logits, s->vocab_size);
    if (largest_id < 0)
        return err_set(err, STATUS_CORRUPT,
                       "all %d logits are -inf: the weights or the hidden state are broken",
                       s->vocab_size);

    const float *adjusted = logits;
    if (sampler_needs_adjusting(params, position)) {
        sampler_adjust(s, params, logits, history, position);
        adjusted = s->adjusted;
        largest_id = argmax(adjusted, s->vocab_size);
        if (largest_id < 0)
            return err_set(err, STATUS_INVALID,
                           "logit_bias and min_tokens leave no token to draw at position %u; lower "
                           "min_tokens or remove stop ids",
                           position);
    }
    token->id = p->temperature > 0 ? draw(s, params, adjusted, largest_id, position) : largest_id;
    token->logprob = 0;
    token->n_top = 0;
    if (p->n_logprobs > 0)
        write_logprobs(s, logits, p->n_logprobs, token);
    return STATUS_OK;
}
