/* The sampler against a naive one that sorts the whole vocabulary, parameter by parameter. */
#include "tests/unit.h"

#include "kernels/rng.h"
#include "worker/sampler.h"

#include <math.h>

enum { VOCAB = 203, N_HISTORY = 37, BLOCK = 4 };

struct fixture {
    struct sampler *sampler;
    struct sequence_params params;
    float logits[VOCAB];
    int32_t pool_ids[64 * BLOCK], blocks[64];
    struct sampler_history history;
};

/* A small generator of its own, so that the test does not depend on what it tests. */
static double next_uniform(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(*state >> 11) / 9007199254740992.0;
}

static void fill(struct fixture *f, uint64_t seed)
{
    for (int i = 0; i < VOCAB; i++)
        f->logits[i] = (float)(8 * next_uniform(&seed) - 4);
    for (int i = 0; i < 10; i++) /* ties, some of them at the top */
        f->logits[(int)(next_uniform(&seed) * VOCAB)] = i < 4 ? 4.0f : 1.5f;
    for (int i = 0; i < 64; i++)
        f->blocks[i] = 63 - i; /* history through a block table that is not in order */
    for (int p = 0; p < 64 * BLOCK; p++)
        f->pool_ids[f->blocks[p / BLOCK] * BLOCK + p % BLOCK] = (int32_t)(next_uniform(&seed) * 40);
    f->history = (struct sampler_history){f->pool_ids, f->blocks, BLOCK, N_HISTORY};
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    struct err err;
    if (sampler_create(VOCAB, &f->sampler, &err) != STATUS_OK)
        return -1;
    sequence_params_init(&f->params);
    f->params.prompt_tokens = 20;
    f->params.max_tokens = 100;
    f->params.sampling.seed = 42;
    fill(f, 1);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    sampler_destroy(f->sampler);
    free(f);
    return 0;
}

static struct control_token sample_at(struct fixture *f, uint32_t position)
{
    struct control_token t = {0};
    struct err err;
    enum status st =
        sampler_sample(f->sampler, &f->params, f->logits, &f->history, position, &t, &err);
    if (st != STATUS_OK)
        fail_msg("%s", err.message);
    return t;
}

/* ---- the naive reference ---- */

struct entry {
    int id;
    float logit;
    double weight;
};

static int by_logit(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static void naive_adjust(const struct fixture *f, uint32_t position, float *out)
{
    const struct sampling_params *p = &f->params.sampling;
    int seen[VOCAB] = {0}, generated[VOCAB] = {0};
    memcpy(out, f->logits, sizeof f->logits);
    for (int i = 0; i < p->n_logit_bias; i++)
        out[p->bias_ids[i]] += p->biases[i];
    for (uint32_t i = 0; i < f->history.n_history; i++) {
        int id = f->pool_ids[f->blocks[i / BLOCK] * BLOCK + (int)(i % BLOCK)];
        seen[id] = 1;
        generated[id] += i >= f->params.prompt_tokens;
    }
    for (int i = 0; i < VOCAB; i++) {
        if (seen[i])
            out[i] = out[i] > 0 ? out[i] / p->repetition_penalty : out[i] * p->repetition_penalty;
        if (generated[i])
            out[i] = out[i] - p->presence_penalty - p->frequency_penalty * (float)generated[i];
    }
    if (position < f->params.prompt_tokens + f->params.min_tokens)
        for (uint32_t i = 0; i < f->params.n_stop_ids; i++)
            out[f->params.stop_ids[i]] = -INFINITY;
}

/* The distribution the parameters ask for: probability by id, 0 for a token that was cut. */
static void naive_distribution(const struct fixture *f, uint32_t position, double *probability)
{
    const struct sampling_params *p = &f->params.sampling;
    float adjusted[VOCAB];
    struct entry e[VOCAB];
    naive_adjust(f, position, adjusted);
    for (int i = 0; i < VOCAB; i++)
        e[i] = (struct entry){i, adjusted[i], 0};
    qsort(e, VOCAB, sizeof e[0], by_logit);
    int n = VOCAB;
    for (int i = 0; i < VOCAB; i++)
        e[i].weight = exp(((double)e[i].logit - e[0].logit) / p->temperature);
    while (n > 0 && (e[n - 1].weight < p->min_p || e[n - 1].logit == -INFINITY))
        n--;
    if (p->top_k > 0 && p->top_k < n)
        n = p->top_k;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++)
        total += e[i].weight;
    for (int i = 0; i < n && p->top_p < 1; i++) {
        sum += e[i].weight;
        if (sum >= (double)p->top_p * total) {
            n = i + 1;
            break;
        }
    }
    total = 0;
    for (int i = 0; i < n; i++)
        total += e[i].weight;
    memset(probability, 0, VOCAB * sizeof *probability);
    for (int i = 0; i < n; i++)
        probability[e[i].id] = e[i].weight / total;
}

/* Draws at many positions: every token must be allowed, every likely one must come, and chi-square
 * over the likely ones must be what chance gives (mean n-1, deviation sqrt(2 (n-1)); 5 of them are
 * never by chance). */
static void assert_draws_match(struct fixture *f)
{
    enum { N_DRAWS = 20000 };
    static int counts[VOCAB];
    double probability[VOCAB], chi2 = 0, rest = 1;
    int n_cells = 0, n_rest = N_DRAWS;
    memset(counts, 0, sizeof counts);
    naive_distribution(f, 1000, probability);
    for (uint32_t i = 0; i < N_DRAWS; i++) {
        int32_t id = sample_at(f, 1000 + i).id;
        assert_true(probability[id] > 0);
        counts[id]++;
    }
    for (int i = 0; i < VOCAB; i++) {
        double expected = probability[i] * N_DRAWS;
        if (expected < 10)
            continue;
        chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
        rest -= probability[i];
        n_rest -= counts[i];
        n_cells++;
    }
    if (rest * N_DRAWS >= 10) {
        chi2 += (n_rest - rest * N_DRAWS) * (n_rest - rest * N_DRAWS) / (rest * N_DRAWS);
        n_cells++;
    }
    assert_true(n_cells >= 1);
    double mean = n_cells - 1;
    if (chi2 > mean + 5 * sqrt(2 * mean) + 1e-6)
        fail_msg("chi-square %.1f over %d cells", chi2, n_cells);
}

/* ---- tests ---- */

static void test_sampler_greedy_takes_the_first_of_the_largest(void **state)
{
    struct fixture *f = *state;
    for (uint64_t seed = 1; seed < 50; seed++) {
        fill(f, seed);
        int best = 0;
        for (int i = 1; i < VOCAB; i++)
            if (f->logits[i] > f->logits[best])
                best = i;
        assert_int_equal(sample_at(f, 50).id, best);
    }
}

static void test_sampler_greedy_applies_bias_penalties_and_mask(void **state)
{
    struct fixture *f = *state;
    struct sampling_params *p = &f->params.sampling;
    int n_changed = 0;
    for (uint64_t seed = 1; seed < 200; seed++) {
        fill(f, seed);
        p->repetition_penalty = seed % 2 ? 1.3f : 1;
        p->presence_penalty = seed % 3 ? 0.7f : 0;
        p->frequency_penalty = seed % 5 ? -0.4f : 0;
        p->n_logit_bias = (int32_t)(seed % 4);
        for (int i = 0; i < p->n_logit_bias; i++) {
            p->bias_ids[i] = (int32_t)((seed * 31 + (uint64_t)i * 7) % VOCAB);
            p->biases[i] = (float)(i % 2 ? 4.5 : -100);
        }
        f->params.min_tokens = seed % 7 ? 30 : 0;
        f->params.n_stop_ids = 2;
        f->params.stop_ids[0] = sample_at(f, 1000).id; /* what would come if nothing was masked */
        f->params.stop_ids[1] = 3;
        float adjusted[VOCAB];
        naive_adjust(f, 45, adjusted);
        int best = 0;
        for (int i = 1; i < VOCAB; i++)
            if (adjusted[i] > adjusted[best])
                best = i;
        n_changed += f->logits[best] < 4.0f;
        assert_int_equal(sample_at(f, 45).id, best);
    }
    assert_true(n_changed > 10); /* the parameters really moved the choice */
}

static void test_sampler_penalties_leave_no_trace_in_the_next_call(void **state)
{
    struct fixture *f = *state;
    int32_t before = sample_at(f, 50).id;
    f->params.sampling.frequency_penalty = 2;
    f->params.sampling.repetition_penalty = 2;
    int32_t first = sample_at(f, 50).id;
    assert_int_equal(sample_at(f, 50).id, first);
    f->params.sampling.frequency_penalty = 0;
    f->params.sampling.repetition_penalty = 1;
    assert_int_equal(sample_at(f, 50).id, before);
}

static void test_sampler_temperature(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 3; i++) {
        f->params.sampling.temperature = (float[]){0.3f, 1.0f, 1.7f}[i];
        assert_draws_match(f);
    }
}

static void test_sampler_top_k_keeps_exactly_k_with_ties(void **state)
{
    struct fixture *f = *state;
    f->params.sampling.temperature = 2;
    for (int i = 0; i < 4; i++) {
        f->params.sampling.top_k = (int[]){1, 3, 10, VOCAB + 5}[i];
        assert_draws_match(f);
    }
}

static void test_sampler_top_p(void **state)
{
    struct fixture *f = *state;
    f->params.sampling.temperature = 1;
    for (int i = 0; i < 4; i++) {
        f->params.sampling.top_p = (float[]){1e-6f, 0.3f, 0.9f, 0.999f}[i];
        assert_draws_match(f);
    }
}

static void test_sampler_min_p(void **state)
{
    struct fixture *f = *state;
    f->params.sampling.temperature = 1.5f;
    for (int i = 0; i < 3; i++) {
        f->params.sampling.min_p = (float[]){0.05f, 0.4f, 1.0f}[i];
        assert_draws_match(f);
    }
}

static void test_sampler_all_parameters_together(void **state)
{
    struct fixture *f = *state;
    struct sampling_params *p = &f->params.sampling;
    p->temperature = 1.2f;
    p->top_k = 30;
    p->top_p = 0.8f;
    p->min_p = 0.1f;
    p->repetition_penalty = 1.2f;
    p->presence_penalty = 0.3f;
    p->frequency_penalty = 0.2f;
    p->n_logit_bias = 1;
    p->bias_ids[0] = 77;
    p->biases[0] = 3;
    assert_draws_match(f);
}

static void test_sampler_draws_depend_on_seed_and_position_only(void **state)
{
    struct fixture *f = *state;
    struct sampler *other;
    f->params.sampling.temperature = 1;
    int n_seed = 0, n_position = 0;
    assert_int_equal(sampler_create(VOCAB, &other, NULL), STATUS_OK);
    for (uint32_t i = 0; i < 200; i++) {
        struct control_token a = sample_at(f, 100 + i), b = {0};
        assert_int_equal(sampler_sample(other, &f->params, f->logits, NULL, 100 + i, &b, NULL),
                         STATUS_OK);
        assert_int_equal(a.id, b.id);
        n_position += a.id != sample_at(f, 300 + i).id;
        f->params.sampling.seed = 43;
        n_seed += a.id != sample_at(f, 100 + i).id;
        f->params.sampling.seed = 42;
    }
    sampler_destroy(other);
    assert_true(n_seed > 100 && n_position > 100);
}

static void test_sampler_min_tokens_masks_until_then(void **state)
{
    struct fixture *f = *state;
    f->params.sampling.temperature = 1;
    f->params.min_tokens = 10; /* positions 20..29 */
    f->params.n_stop_ids = 1;
    f->logits[5] = 20; /* all but certain */
    f->params.stop_ids[0] = 5;
    for (uint32_t p = 20; p < 30; p++)
        assert_int_not_equal(sample_at(f, p).id, 5);
    assert_int_equal(sample_at(f, 30).id, 5);
}

static void test_sampler_logprobs_are_of_the_raw_logits(void **state)
{
    struct fixture *f = *state;
    struct sampling_params *p = &f->params.sampling;
    p->n_logprobs = 7;
    p->temperature = 0.5f;
    p->n_logit_bias = 1;
    p->bias_ids[0] = 11;
    p->biases[0] = 50;
    struct entry e[VOCAB];
    double total = 0;
    for (int i = 0; i < VOCAB; i++) {
        e[i] = (struct entry){i, f->logits[i], 0};
        total += exp((double)f->logits[i]);
    }
    qsort(e, VOCAB, sizeof e[0], by_logit);
    struct control_token t = sample_at(f, 60);
    assert_int_equal(t.id, 11);
    assert_true(fabs(t.logprob - (f->logits[11] - log(total))) < 1e-5);
    assert_int_equal(t.n_top, 7);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(t.top_ids[i], e[i].id);
        assert_true(fabs(t.top_logprobs[i] - (e[i].logit - log(total))) < 1e-5);
    }
    p->n_logprobs = 0;
    t = sample_at(f, 60);
    assert_int_equal(t.n_top, 0);
    assert_true(t.logprob == 0);
}

static void test_sampler_refuses_broken_logits(void **state)
{
    struct fixture *f = *state;
    const float bad[] = {NAN, -NAN, INFINITY};
    struct control_token t = {.id = 99};
    struct err err;
    for (int i = 0; i < 3; i++) {
        fill(f, 3);
        f->logits[100] = bad[i];
        assert_int_equal(
            sampler_sample(f->sampler, &f->params, f->logits, &f->history, 50, &t, &err),
            STATUS_CORRUPT);
        assert_non_null(strstr(err.message, "1 of 203 logits"));
    }
    for (int i = 0; i < VOCAB; i++)
        f->logits[i] = -INFINITY;
    assert_int_equal(sampler_sample(f->sampler, &f->params, f->logits, &f->history, 50, &t, &err),
                     STATUS_CORRUPT);
    assert_int_equal(t.id, 99);
    f->logits[9] = -2; /* one is enough */
    f->params.sampling.temperature = 1;
    assert_int_equal(sample_at(f, 50).id, 9);
    f->params.n_stop_ids = 1;
    f->params.stop_ids[0] = 9;
    f->params.min_tokens = 100;
    assert_int_equal(sampler_sample(f->sampler, &f->params, f->logits, &f->history, 50, &t, &err),
                     STATUS_INVALID);
}

#define WITH_FIXTURE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(test_sampler_greedy_takes_the_first_of_the_largest),
        WITH_FIXTURE(test_sampler_greedy_applies_bias_penalties_and_mask),
        WITH_FIXTURE(test_sampler_penalties_leave_no_trace_in_the_next_call),
        WITH_FIXTURE(test_sampler_temperature),
        WITH_FIXTURE(test_sampler_top_k_keeps_exactly_k_with_ties),
        WITH_FIXTURE(test_sampler_top_p),
        WITH_FIXTURE(test_sampler_min_p),
        WITH_FIXTURE(test_sampler_all_parameters_together),
        WITH_FIXTURE(test_sampler_draws_depend_on_seed_and_position_only),
        WITH_FIXTURE(test_sampler_min_tokens_masks_until_then),
        WITH_FIXTURE(test_sampler_logprobs_are_of_the_raw_logits),
        WITH_FIXTURE(test_sampler_refuses_broken_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
