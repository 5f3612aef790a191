/* kernels_finish as a worker uses it: two batches in flight, recorded once and run again for
 * others, exits and tokens as the host would have decided on the same lambda and logits. */
#include "tests/cuda_world.h"

#include "worker/sampler.h"

#include <math.h>

enum { VOCAB = 61, D = 32, MAX_SEGMENTS = 6, MAX_ROWS = 18, MAX_HEADS = 8, N_BATCHES = 60 };

static const struct kernels_limits limits = {.n_rows = MAX_ROWS,
                                             .n_segments = MAX_SEGMENTS,
                                             .n_table = 8,
                                             .block_size = 16,
                                             .n_slots = 8,
                                             .vocab_size = VOCAB,
                                             .n_heads = 2,
                                             .n_kv_heads = 2,
                                             .head_dim = 16,
                                             .n_wanted_logits = MAX_SEGMENTS};

/* What a batch borrows until it has been waited for, and what comes back. */
struct flight {
    struct kernels_segment segments[MAX_SEGMENTS];
    struct sequence_params params[MAX_SEGMENTS];
    struct kernels_live live[MAX_SEGMENTS];
    struct kernels_batch batch;
    float *y, *logits; /* pinned: [MAX_ROWS, D], [MAX_HEADS, VOCAB] */
    bool is_bound;
};

struct world {
    struct kernels *k;
    struct kernels_stream *s;
    struct kernels_weight gate, bias, head;
    struct kernels_buffer y, head_rows, logits;
    float gate_values[D], bias_value, head_values[VOCAB * D]; /* bf16 all */
    struct flight flights[KERNELS_MAX_IN_FLIGHT];
    struct sampler *sampler;
    uint64_t random;
    int n_exits, n_stays, n_wanted;
};

static int below(struct world *w, int n)
{
    return (int)(cuda_world_random(&w->random) % (uint64_t)n);
}
static float centred(struct world *w)
{
    return (float)below(w, 2001) / 1000 - 1;
}
static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float rounded(float x)
{
    uint32_t bits = (uint32_t)bf16_of(x) << 16;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ---- the world ---- */

static struct kernels_weight weight_of(struct world *w, float *values, int rows, int cols)
{
    struct weight on_disk = {.data = values, .dtype = DTYPE_F32, .rows = rows, .cols = cols};
    struct kernels_weight weight = {0};
    struct err err = {0};
    for (int i = 0; i < rows * cols; i++)
        values[i] = rounded(centred(w));
    cuda_must(kernels_weight_load(w->k, &on_disk, &weight, &err), &err);
    return weight;
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct err err = {0};
    assert_non_null(w);
    w->random = 1;
    w->k = cuda_world_kernels();
    w->s = cuda_world_stream(w->k);
    cuda_must(kernels_stream_reserve(w->s, &limits, &err), &err);
    w->gate = weight_of(w, w->gate_values, 1, D);
    w->bias = weight_of(w, &w->bias_value, 1, 1);
    w->head = weight_of(w, w->head_values, VOCAB, D);
    cuda_must(kernels_weights_ready(w->k, &err), &err);
    cuda_must(kernels_alloc(w->k, MAX_ROWS * D * sizeof(float), false, &w->y, &err), &err);
    cuda_must(kernels_alloc(w->k, MAX_HEADS * D * 2, false, &w->head_rows, &err), &err);
    cuda_must(kernels_alloc(w->k, MAX_HEADS * VOCAB * sizeof(float), false, &w->logits, &err),
              &err);
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++) {
        void *y = NULL, *logits = NULL;
        cuda_must(kernels_host_alloc(w->k, MAX_ROWS * D * sizeof(float), &y, &err), &err);
        cuda_must(kernels_host_alloc(w->k, MAX_HEADS * VOCAB * sizeof(float), &logits, &err), &err);
        w->flights[i].y = y;
        w->flights[i].logits = logits;
    }
    assert_int_equal(sampler_create(VOCAB, &w->sampler, &err), STATUS_OK);
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    for (int i = 0; i < KERNELS_MAX_IN_FLIGHT; i++) {
        kernels_host_free(w->k, w->flights[i].y);
        kernels_host_free(w->k, w->flights[i].logits);
    }
    kernels_stream_destroy(w->s);
    kernels_free(w->k, &w->y);
    kernels_free(w->k, &w->head_rows);
    kernels_free(w->k, &w->logits);
    kernels_weight_unload(w->k, &w->gate);
    kernels_weight_unload(w->k, &w->bias);
    kernels_weight_unload(w->k, &w->head);
    kernels_destroy(w->k);
    sampler_destroy(w->sampler);
    free(w);
    return 0;
}

/* ---- a batch ---- */

static void fill(struct world *w, struct flight *f, int n_segments)
{
    int32_t row = 0, n_live = 0;
    for (int g = 0; g < n_segments; g++) {
        int32_t n_rows = 1 + below(w, 3), first_position = below(w, 1000);
        f->segments[g] = (struct kernels_segment){
            .first_row = row, .n_rows = n_rows, .first_position = first_position};
        row += n_rows;
        struct sequence_params *p = &f->params[g];
        sequence_params_init(p);
        p->max_loops = 4;
        p->exit_mode = EXIT_MODE_EXACT;
        p->exit_threshold = 0.5f;
        p->sampling.temperature = (float)below(w, 3) / 2;
        p->sampling.top_k = below(w, 2) ? 1 + below(w, 20) : 0;
        p->sampling.top_p = below(w, 2) ? 0.9f : 1;
        p->sampling.n_logprobs = below(w, 4);
        p->sampling.seed = (uint64_t)below(w, 1 << 30);
        if (below(w, 4) == 0)
            continue;
        float cdf = (float)below(w, 500) / 1000;
        f->live[n_live++] =
            (struct kernels_live){.row = row - 1,
                                  .segment = g,
                                  .position = (uint32_t)(first_position + n_rows - 1),
                                  .loop = 1 + (uint32_t)below(w, 4),
                                  .exit = {.survival = 1 - cdf, .cdf = cdf},
                                  .params = p,
                                  .wants_logits = below(w, 4) == 0};
    }
    for (int i = 0; i < row * D; i++)
        f->y[i] = 2 * centred(w);
    f->batch = (struct kernels_batch){.n_rows = row,
                                      .n_segments = n_segments,
                                      .segments = f->segments,
                                      .n_live = n_live,
                                      .live = f->live};
}

/* Rows in, finish (recorded the first time it comes with this key), logits out. */
static void send(struct world *w, struct flight *f, int flight, uint64_t key)
{
    struct err err = {0};
    struct kernels_finish finish = {.y = w->y.data,
                                    .gate = &w->gate,
                                    .bias = &w->bias,
                                    .head = &w->head,
                                    .head_rows = w->head_rows.data,
                                    .logits = w->logits.data,
                                    .max_heads = MAX_HEADS};
    bool is_done = false;
    cuda_must(kernels_bind(w->s, &f->batch, NULL, flight, &err), &err);
    cuda_must(kernels_upload(w->s, w->y.data, f->y, MAX_ROWS * D * sizeof(float), &err), &err);
    if (key != 0)
        cuda_must(kernels_replay(w->s, key, &is_done, &err), &err);
    if (!is_done && key != 0)
        cuda_must(kernels_record_begin(w->s, &err), &err);
    if (!is_done)
        cuda_must(kernels_finish(w->s, &finish, &err), &err);
    if (!is_done && key != 0)
        cuda_must(kernels_record_end(w->s, key, &err), &err);
    cuda_must(
        kernels_download(w->s, f->logits, w->logits.data, MAX_HEADS * VOCAB * sizeof(float), &err),
        &err);
    cuda_must(kernels_mark(w->s, flight, &err), &err);
    f->is_bound = true;
}

static void assert_token(struct world *w, const struct kernels_live *live,
                         const struct kernels_outcome *o, const float *logits)
{
    struct control_token want = {0};
    struct err err = {0};
    cuda_must(
        sampler_sample(w->sampler, live->params, logits, NULL, live->position + 1, &want, &err),
        &err);
    assert_int_equal(o->id, want.id);
    assert_true(fabsf(o->logprob - want.logprob) < 1e-5f);
    assert_int_equal(o->n_top, want.n_top);
    for (uint32_t i = 0; i < want.n_top; i++)
        assert_int_equal(o->top_ids[i], want.top_ids[i]);
}

static void wait_and_assert(struct world *w, struct flight *f, int flight)
{
    struct err err = {0};
    if (!f->is_bound)
        return;
    cuda_must(kernels_wait(w->s, flight, &err), &err);
    f->is_bound = false;
    const struct kernels_outcome *outcomes = kernels_outcomes(w->s, flight);
    int n_heads = 0;
    for (int i = 0; i < f->batch.n_live; i++) {
        const struct kernels_live *live = &f->live[i];
        const struct kernels_outcome *o = &outcomes[i];
        const float *y = f->y + live->row * D;
        double sum = (double)w->bias_value;
        for (int j = 0; j < D; j++)
            sum += (double)w->gate_values[j] * (double)y[j];
        assert_true(fabs((double)o->lambda - 1 / (1 + exp(-sum))) < 1e-5);
        struct exit_state want = live->exit;
        assert_int_equal(o->failure, STATUS_OK);
        assert_int_equal(
            o->is_exit, exit_rule_step(live->params, live->loop, live->position, o->lambda, &want));
        assert_memory_equal(&o->exit, &want, sizeof want);
        w->n_stays += !o->is_exit;
        if (!o->is_exit)
            continue;
        const float *logits = f->logits + n_heads++ * VOCAB;
        for (int id = 0; id < VOCAB; id++) {
            double x = 0;
            for (int j = 0; j < D; j++)
                x += (double)rounded(y[j]) * (double)w->head_values[id * D + j];
            assert_true(fabs(x - (double)logits[id]) < 1e-4);
        }
        assert_int_equal(o->has_logits, live->wants_logits);
        w->n_wanted += o->has_logits;
        w->n_exits += !o->has_logits;
        if (o->has_logits)
            assert_memory_equal(kernels_outcome_logits(w->s, flight, i), logits,
                                VOCAB * sizeof(float));
        else
            assert_token(w, live, o, logits);
    }
}

static void run(struct world *w, bool is_recorded)
{
    for (int i = 0; i < N_BATCHES; i++) {
        int flight = i % KERNELS_MAX_IN_FLIGHT;
        struct flight *f = &w->flights[flight];
        wait_and_assert(w, f, flight);
        fill(w, f, 1 + below(w, MAX_SEGMENTS));
        send(w, f, flight, is_recorded ? 7 : 0);
    }
    for (int flight = 0; flight < KERNELS_MAX_IN_FLIGHT; flight++)
        wait_and_assert(w, &w->flights[flight], flight);
    assert_true(w->n_exits > 20 && w->n_stays > 20 && w->n_wanted > 5);
}

/* ---- tests ---- */

static void test_cuda_tokens_two_batches_in_flight(void **state)
{
    run(*state, false);
}

static void test_cuda_tokens_recorded_once_for_all_batches(void **state)
{
    run(*state, true);
}

/* More rows than one launch takes: every row has the lambda it has alone. */
static void test_cuda_tokens_gate_of_many_rows(void **state)
{
    struct world *w = *state;
    enum { N = 600 };
    static float lambda[N];
    static int32_t rows[N];
    struct err err = {0};
    struct kernels_buffer out = {0};
    float *y = w->flights[0].y;
    for (int i = 0; i < MAX_ROWS * D; i++)
        y[i] = 2 * centred(w);
    for (int i = 0; i < N; i++)
        rows[i] = below(w, MAX_ROWS);
    cuda_must(kernels_alloc(w->k, sizeof lambda, false, &out, &err), &err);
    cuda_must(kernels_upload(w->s, w->y.data, y, MAX_ROWS * D * sizeof(float), &err), &err);
    cuda_must(kernels_gate(w->s, out.data, w->y.data, rows, N, &w->gate, &w->bias, &err), &err);
    cuda_must(kernels_download(w->s, lambda, out.data, sizeof lambda, &err), &err);
    cuda_must(kernels_stream_sync(w->s, &err), &err);
    for (int i = 0; i < N; i++) {
        double sum = (double)w->bias_value;
        for (int j = 0; j < D; j++)
            sum += (double)w->gate_values[j] * (double)y[rows[i] * D + j];
        assert_true(fabs((double)lambda[i] - 1 / (1 + exp(-sum))) < 1e-5);
        for (int j = 0; j < i; j++)
            assert_true(rows[i] != rows[j] || lambda[i] == lambda[j]);
    }
    kernels_free(w->k, &out);
}

static void test_cuda_tokens_a_head_of_another_size_is_refused(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct kernels_weight head = w->head;
    head.rows = VOCAB - 1;
    struct kernels_finish finish = {.y = w->y.data, .head = &head};
    fill(w, &w->flights[0], 1);
    cuda_must(kernels_bind(w->s, &w->flights[0].batch, NULL, 0, &err), &err);
    cuda_must_fail(kernels_finish(w->s, &finish, &err), STATUS_INVALID, &err, "60");
    cuda_must(kernels_stream_sync(w->s, &err), &err);
}

#define WITH_WORLD(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    if (!cuda_world_is_there("test_cuda_tokens"))
        return 0;
    const struct CMUnitTest tests[] = {
        WITH_WORLD(test_cuda_tokens_two_batches_in_flight),
        WITH_WORLD(test_cuda_tokens_recorded_once_for_all_batches),
        WITH_WORLD(test_cuda_tokens_gate_of_many_rows),
        WITH_WORLD(test_cuda_tokens_a_head_of_another_size_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
