/* The device's sampler against worker/sampler.c: the same tokens and the same log-probabilities,
 * over random logits and parameters. On a GPU, or on the emulated one. */
#include "tests/cuda_world.h"

#include "kernels/cuda_finish.h"
#include "kernels/rng.h"
#include "worker/sampler.h"

#include <math.h>

enum { N_ROWS = 24, MAX_VOCAB = 20000, GUARD = 64, POISON = 0xa5 };

/* One launch: rows with logits and parameters of their own. */
struct fixture {
    uint64_t random;
    int vocab, n;
    struct sequence_params params[N_ROWS];
    struct kernels_live live[N_ROWS];
    float *logits; /* [N_ROWS, MAX_VOCAB], the first n * vocab in use */
    unsigned char *device;
    struct kernels_outcome *outcomes;
    float *wanted;
    cudaStream_t stream;
};

static void check(cudaError_t code)
{
    if (code != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(code));
}

/* A small generator of its own, so that the test does not depend on what it tests. */
static double next(struct fixture *f)
{
    f->random = f->random * 6364136223846793005u + 1442695040888963407u;
    return (double)(f->random >> 11) / 9007199254740992.0;
}
static int below(struct fixture *f, int n)
{
    return (int)(next(f) * n);
}

/* ---- random rows ---- */

/* Kinds of logits: bell-shaped as of a model, few values with many ties, all the same, far apart,
 * tiny ones of both signs with zeros of both signs, all in one bin. */
static void fill_logits(struct fixture *f, float *logits)
{
    int kind = below(f, 8);
    double holes = below(f, 3) == 0 ? 0.7 : 0, spread = 0.5 + 4 * next(f);
    for (int i = 0; i < f->vocab; i++) {
        double bell = next(f) + next(f) + next(f) + next(f) - 2;
        double x = kind == 0   ? floor(bell * 4) / 2
                   : kind == 1 ? 3.25
                   : kind == 2 ? bell * 1e38
                   : kind == 4 ? 3 + 0.45 * next(f)
                   : kind == 3 ? (below(f, 2) ? 1 : -1) * (below(f, 3) ? bell * 1e-40 : 0)
                               : spread * bell - 3;
        logits[i] = next(f) < holes ? -INFINITY : (float)x;
    }
    logits[below(f, f->vocab)] = 0.5f; /* at least one stays */
}

static void fill_params(struct fixture *f, int i)
{
    struct sequence_params *params = &f->params[i];
    struct sampling_params *p = &params->sampling;
    const float temperatures[] = {0, 1, 1, 0.7f, 1.3f, 0.02f, 30, (float)(0.1 + 2 * next(f))};
    const float top_ps[] = {1, 1, 0.95f, 1e-6f, 0.9999f, (float)(1e-3 + 0.998 * next(f))};
    const float min_ps[] = {0, 0, 0, 0.05f, 1, (float)next(f)};
    const int top_ks[] = {0, 0, 1, 2, 40, f->vocab, f->vocab + 5, 1 + below(f, f->vocab)};
    sequence_params_init(params);
    params->max_loops = 1;
    p->temperature = temperatures[below(f, 8)];
    p->top_p = top_ps[below(f, 6)];
    p->min_p = min_ps[below(f, 6)];
    p->top_k = top_ks[below(f, 8)];
    p->n_logprobs = below(f, 2) ? below(f, SEQUENCE_MAX_LOGPROBS + 1) : 0;
    p->seed = (uint64_t)(next(f) * 1e18);
    f->live[i] = (struct kernels_live){.row = i,
                                       .position = (uint32_t)below(f, 100000),
                                       .loop = 1,
                                       .exit = {.survival = 1},
                                       .params = params};
}

/* ---- a launch ---- */

static size_t aligned(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* Sends live rows and logits, lists every row, samples. Device memory is one block that grows with
 * what is asked of it; each array is followed by a guard that must stay. */
static void run(struct fixture *f, int max_heads)
{
    int n_chunks = (f->vocab + CUDA_SAMPLE_CHUNK - 1) / CUDA_SAMPLE_CHUNK;
    enum { BATCH, LIVE, LOGITS, IS_EXIT, HEADS, N_HEADS, CHUNKS, MASSES, COUNTS, N_ARRAYS };
    const size_t n_wave = 7; /* waves of 7 rows, the last one not full */
    size_t n = (size_t)f->n, len[N_ARRAYS], at[N_ARRAYS], total = 0;
    len[BATCH] = sizeof(struct cuda_batch);
    len[LIVE] = n * sizeof(struct cuda_live);
    len[LOGITS] = n * (size_t)f->vocab * sizeof(float);
    len[IS_EXIT] = len[HEADS] = n * sizeof(int32_t);
    len[N_HEADS] = sizeof(int32_t);
    len[CHUNKS] = n_wave * (size_t)n_chunks * sizeof(struct cuda_sample_chunk);
    len[MASSES] = n_wave * CUDA_SAMPLE_BINS * sizeof(uint64_t);
    len[COUNTS] = n_wave * CUDA_SAMPLE_BINS * sizeof(uint32_t);
    for (int i = 0; i < N_ARRAYS; i++) {
        at[i] = total;
        total += aligned(len[i]) + GUARD;
    }
    check(cudaMalloc((void **)&f->device, total));
    unsigned char *host = malloc(total);
    assert_non_null(host);
    memset(host, POISON, total);
    unsigned char *d = f->device;
    struct cuda_batch batch = {.n_rows = f->n,
                               .n_live = f->n,
                               .live = (const void *)(d + at[LIVE]),
                               .outcomes = f->outcomes,
                               .wanted_logits = f->wanted};
    struct cuda_finish_device device = {.is_exit = (void *)(d + at[IS_EXIT]),
                                        .heads = (void *)(d + at[HEADS]),
                                        .n_heads = (void *)(d + at[N_HEADS]),
                                        .chunks = (void *)(d + at[CHUNKS]),
                                        .masses = (void *)(d + at[MASSES]),
                                        .counts = (void *)(d + at[COUNTS]),
                                        .n_wave = (int32_t)n_wave,
                                        .n_chunks = n_chunks};
    memcpy(host + at[BATCH], &batch, sizeof batch);
    int32_t n_wanted = 0;
    for (int i = 0; i < f->n; i++) {
        struct cuda_live live =
            cuda_finish_live(&f->live[i], f->live[i].wants_logits ? n_wanted++ : -1);
        memcpy(host + at[LIVE] + (size_t)i * sizeof live, &live, sizeof live);
    }
    memcpy(host + at[LOGITS], f->logits, len[LOGITS]);
    check(cudaMemcpyAsync(d, host, total, cudaMemcpyHostToDevice, f->stream));
    const struct cuda_batch *on_device = (const void *)(d + at[BATCH]);
    check(cuda_finish_launch_gate(on_device, &device, NULL, 0, NULL, NULL, 3, f->stream));
    check(cuda_finish_launch_list(on_device, &device, max_heads, f->stream));
    check(cuda_sample_launch(on_device, &device, (const void *)(d + at[LOGITS]), f->vocab,
                             max_heads, f->stream));
    check(cudaStreamSynchronize(f->stream));
    unsigned char *back = malloc(total);
    assert_non_null(back);
    check(cudaMemcpyAsync(back, d, total, cudaMemcpyDeviceToHost, f->stream));
    check(cudaStreamSynchronize(f->stream));
    for (int i = 0; i < N_ARRAYS; i++)
        for (size_t j = at[i] + len[i]; j < at[i] + aligned(len[i]) + GUARD; j++)
            assert_int_equal(back[j], POISON);
    assert_memory_equal(back, host, at[IS_EXIT]); /* what is read only */
    free(back);
    free(host);
    check(cudaFree(f->device));
    f->device = NULL;
}

static struct sampler *sampler_of(int vocab)
{
    struct sampler *sampler;
    assert_int_equal(sampler_create(vocab, &sampler, NULL), STATUS_OK);
    return sampler;
}

/* Logarithms and sums of two machines, each rounded to fp32: neighbours at most. */
static bool is_near(float a, float b)
{
    return a == b || fabsf(a - b) <= 2e-7f * fmaxf(1, fabsf(b));
}

static void assert_row(const struct fixture *f, struct sampler *sampler, int i)
{
    struct control_token want = {0};
    const struct kernels_outcome *o = &f->outcomes[i];
    const struct sampling_params *p = &f->params[i].sampling;
    const float *logits = f->logits + (size_t)i * (size_t)f->vocab;
    enum status st =
        sampler_sample(sampler, &f->params[i], logits, NULL, f->live[i].position + 1, &want, NULL);
    assert_int_equal(o->failure, st);
    assert_int_equal(o->is_exit, st == STATUS_OK);
    assert_false(o->has_logits);
    if (st != STATUS_OK)
        return;
    if (o->id != want.id)
        fail_msg("row %d of %d tokens: %d, the host draws %d; temperature %g top_k %d top_p %.9g "
                 "min_p %.9g seed %llu position %u",
                 i, f->vocab, o->id, want.id, (double)p->temperature, p->top_k, (double)p->top_p,
                 (double)p->min_p, (unsigned long long)p->seed, f->live[i].position + 1);
    assert_int_equal(o->n_top, want.n_top);
    assert_true(is_near(o->logprob, want.logprob));
    for (uint32_t j = 0; j < want.n_top; j++) {
        assert_int_equal(o->top_ids[j], want.top_ids[j]);
        assert_true(is_near(o->top_logprobs[j], want.top_logprobs[j]));
    }
}

static void assert_rows(struct fixture *f, int max_heads)
{
    struct sampler *sampler = sampler_of(f->vocab);
    memset(f->outcomes, POISON, N_ROWS * sizeof *f->outcomes);
    run(f, max_heads);
    for (int i = 0; i < f->n; i++)
        assert_row(f, sampler, i);
    sampler_destroy(sampler);
}

/* ---- tests ---- */

static void test_cuda_sample_draws_as_the_host_does(void **state)
{
    struct fixture *f = *state;
    const int vocabs[] = {1, 2, 3, 31, 49, 203, 500, 1000};
    f->random = 20;
    for (int round = 0; round < 120; round++) {
        f->vocab = vocabs[round % 8];
        f->n = round % 5 == 0 ? 1 + below(f, N_ROWS) : N_ROWS;
        for (int i = 0; i < f->n; i++) {
            fill_params(f, i);
            fill_logits(f, f->logits + (size_t)i * (size_t)f->vocab);
        }
        assert_rows(f, f->n + round % 3);
    }
}

static void test_cuda_sample_long_rows_in_pieces(void **state)
{
    struct fixture *f = *state;
    const int vocabs[] = {CUDA_SAMPLE_CHUNK, CUDA_SAMPLE_CHUNK + 1, MAX_VOCAB};
    f->random = 30;
    for (int round = 0; round < 9; round++) {
        f->vocab = vocabs[round % 3];
        f->n = 6;
        for (int i = 0; i < f->n; i++) {
            fill_params(f, i);
            fill_logits(f, f->logits + (size_t)i * (size_t)f->vocab);
        }
        assert_rows(f, f->n);
    }
}

/* Every id of a small vocabulary comes, and where all weigh the same the cuts are exact. */
static void test_cuda_sample_ties_are_cut_by_id(void **state)
{
    struct fixture *f = *state;
    int counts[8] = {0};
    f->random = 40;
    f->vocab = 8;
    f->n = N_ROWS;
    for (int round = 0; round < 24; round++) {
        for (int i = 0; i < f->n; i++) {
            fill_params(f, i);
            for (int id = 0; id < 8; id++)
                f->logits[i * 8 + id] = 1.5f;
            struct sampling_params *p = &f->params[i].sampling;
            p->temperature = 1;
            p->min_p = 0;
            p->top_k = round % 3 == 0 ? 4 : 0;
            p->top_p = round % 3 == 1 ? 0.5f : 1;
        }
        assert_rows(f, f->n);
        for (int i = 0; i < f->n; i++) {
            assert_true(round % 3 == 2 || f->outcomes[i].id < 4);
            counts[f->outcomes[i].id]++;
        }
    }
    for (int id = 0; id < 8; id++)
        assert_true(counts[id] > 0);
}

static void test_cuda_sample_broken_logits_fail_their_row_alone(void **state)
{
    struct fixture *f = *state;
    const float bad[] = {NAN, -NAN, INFINITY};
    f->random = 50;
    f->vocab = 203;
    f->n = N_ROWS;
    for (int i = 0; i < f->n; i++) {
        float *logits = f->logits + i * f->vocab;
        fill_params(f, i);
        fill_logits(f, logits);
        if (i % 5 < 3)
            logits[below(f, f->vocab)] = bad[i % 5];
        for (int id = 0; i % 5 == 3 && id < f->vocab; id++)
            logits[id] = -INFINITY;
    }
    assert_rows(f, f->n);
    for (int i = 0; i < f->n; i++)
        assert_int_equal(f->outcomes[i].failure, i % 5 < 4 ? STATUS_CORRUPT : STATUS_OK);
}

static void test_cuda_sample_wanted_logits_come_to_the_host(void **state)
{
    struct fixture *f = *state;
    int n_wanted = 0;
    f->random = 60;
    f->vocab = 1000;
    f->n = 10;
    for (int i = 0; i < f->n; i++) {
        fill_params(f, i);
        f->live[i].wants_logits = i % 3 == 1;
        fill_logits(f, f->logits + i * f->vocab);
    }
    f->logits[1 * f->vocab + 7] = NAN; /* whoever asked for them looks at them */
    memset(f->outcomes, POISON, N_ROWS * sizeof *f->outcomes);
    run(f, f->n);
    struct sampler *sampler = sampler_of(f->vocab);
    for (int i = 0; i < f->n; i++) {
        if (i % 3 != 1) {
            assert_row(f, sampler, i);
            continue;
        }
        assert_int_equal(f->outcomes[i].failure, STATUS_OK);
        assert_true(f->outcomes[i].is_exit && f->outcomes[i].has_logits);
        assert_memory_equal(f->wanted + n_wanted++ * f->vocab, f->logits + i * f->vocab,
                            (size_t)f->vocab * sizeof(float));
    }
    sampler_destroy(sampler);
}

static void test_cuda_sample_rows_that_were_not_foreseen_fail(void **state)
{
    struct fixture *f = *state;
    f->random = 70;
    f->vocab = 49;
    f->n = 9;
    for (int i = 0; i < f->n; i++) {
        fill_params(f, i);
        fill_logits(f, f->logits + i * f->vocab);
    }
    memset(f->outcomes, POISON, N_ROWS * sizeof *f->outcomes);
    run(f, 6);
    struct sampler *sampler = sampler_of(f->vocab);
    for (int i = 0; i < 6; i++)
        assert_row(f, sampler, i);
    for (int i = 6; i < f->n; i++) {
        assert_int_equal(f->outcomes[i].failure, STATUS_INTERNAL);
        assert_false(f->outcomes[i].is_exit);
    }
    sampler_destroy(sampler);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->logits = malloc(sizeof(float) * N_ROWS * MAX_VOCAB);
    assert_non_null(f->logits);
    check(cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking));
    check(cudaHostAlloc((void **)&f->outcomes, N_ROWS * sizeof *f->outcomes, cudaHostAllocDefault));
    check(cudaHostAlloc((void **)&f->wanted, sizeof(float) * N_ROWS * 1000, cudaHostAllocDefault));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    check(cudaFreeHost(f->outcomes));
    check(cudaFreeHost(f->wanted));
    check(cudaStreamDestroy(f->stream));
    free(f->logits);
    free(f);
    return 0;
}

#define WITH_FIXTURE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    if (!cuda_world_is_there("test_cuda_sample"))
        return 0;
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(test_cuda_sample_draws_as_the_host_does),
        WITH_FIXTURE(test_cuda_sample_long_rows_in_pieces),
        WITH_FIXTURE(test_cuda_sample_ties_are_cut_by_id),
        WITH_FIXTURE(test_cuda_sample_broken_logits_fail_their_row_alone),
        WITH_FIXTURE(test_cuda_sample_wanted_logits_come_to_the_host),
        WITH_FIXTURE(test_cuda_sample_rows_that_were_not_foreseen_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
