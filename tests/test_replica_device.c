/* A replica on a device against plain double, against its own way over the host, and against itself
 * in other batches, in flight and recorded. Without a device there is nothing to test. */
#include "tests/replica_world.h"

#include "kernels/kernels.h"

enum { N = 13, D = 24, LOOPS = 4 };

static struct world w;

static double largest(const double *x, int n)
{
    double max = 0;
    for (int i = 0; i < n; i++)
        max = fabs(x[i]) > max ? fabs(x[i]) : max;
    return max;
}

/* Two layers four times over round every activation to 8 bits: what adds up stays under some of
 * them. A wrong row, position, head or gain is off by the whole. */
static void check_against_double(const struct kind *kind)
{
    static double hidden[LOOPS * N * D], lambda[LOOPS * N], logits[LOOPS * N * VOCAB];
    static float rows[N * D];
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    struct sequence_state *s = add(&w, 0, N, 5);
    tiny_reference(w.model, s->ids, N, hidden, lambda, logits);
    const double tolerance = 16 * 0x1p-8 * largest(hidden, LOOPS * N * D);
    double sum = 0, n_sum = 0;
    for (int t = 0; t < LOOPS; t++) {
        run(&w, &(struct piece){0, t + 1, 0, N, true}, 1);
        read_hidden(&w, 0, N, rows);
        for (int i = 0; i < N * D; i++) {
            const double off = fabs((double)rows[i] - hidden[t * N * D + i]);
            assert_true(off <= tolerance);
            sum += off * off;
            n_sum++;
        }
        assert_true(fabs((double)w.outcomes[0].lambda - lambda[t * N + N - 1]) < 0.05);
        assert_int_equal(w.outcomes[0].is_exit, t == LOOPS - 1);
    }
    assert_true(sqrt(sum / n_sum) <= tolerance / 4);
    world_close(&w);
}

static void test_replica_device_is_near_plain_double(void **state)
{
    (void)state;
    struct kind kind = ON_GPU;
    check_against_double(&kind);
    kind.is_deterministic = false;
    check_against_double(&kind);
}

static void same_token(const struct control_token *a, const struct control_token *b)
{
    assert_int_equal(a->id, b->id);
    assert_int_equal(a->position, b->position);
    assert_int_equal(a->exit_loop, b->exit_loop);
    assert_int_equal(a->sequence, b->sequence);
    assert_true(a->cdf == b->cdf);
    assert_true(fabsf(a->logprob - b->logprob) <= 1e-4f);
    assert_int_equal(a->n_top, b->n_top);
    for (uint32_t i = 0; i < a->n_top; i++) {
        assert_int_equal(a->top_ids[i], b->top_ids[i]);
        assert_true(fabsf(a->top_logprobs[i] - b->top_logprobs[i]) <= 1e-4f);
    }
}

static void set_params(struct sequence_params *p, int i)
{
    p->exit_mode = i % 5 == 0 ? EXIT_MODE_FULL : EXIT_MODE_EXACT;
    p->exit_threshold = 0.2f + 0.02f * (float)i;
    p->sampling.seed = (uint64_t)i;
    p->sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
    p->sampling.top_k = i % 4 == 1 ? 5 : 0;
    p->sampling.top_p = i % 4 == 3 ? 0.8f : 1.0f;
    p->sampling.min_p = i % 8 == 5 ? 0.1f : 0.0f;
    p->sampling.n_logprobs = i % 3;
    if (i % 7 == 6)
        p->sampling.frequency_penalty = 1.5f; /* the host draws */
}

/* Observed rows make a batch run over the host, which decides and draws by its own code: the device
 * must come to the same lambda, exit and token. */
static void test_replica_device_decides_as_the_host(void **state)
{
    (void)state;
    enum { SEQUENCES = 40 };
    int n_by_loop[LOOPS + 1] = {0};
    if (!world_open_on(&w, &ON_GPU, 1, NULL))
        return;
    for (int i = 0; i < SEQUENCES; i++) {
        struct batch_outcome outcomes[2];
        struct sequence_state *s = NULL;
        bool is_over = false;
        for (int t = 1; t <= LOOPS && !is_over; t++) {
            for (int is_observed = 0; is_observed < 2; is_observed++) {
                /* In turns, each with KV and slots of its own. */
                w.next_block = 100 * is_observed;
                w.next_slot = 100 * is_observed;
                const struct exit_state before = w.sequences[is_observed].exit;
                s = add(&w, is_observed, N, (uint64_t)i);
                s->params.sequence = 1;
                s->exit = t > 1 ? before : s->exit;
                set_params(&s->params, i);
                s->params.observe_top = is_observed ? 3 : 0;
                run(&w, &(struct piece){is_observed, t, 0, N, true}, 1);
                outcomes[is_observed] = w.outcomes[0];
                assert_int_equal(w.result.n_observations, is_observed ? N : 0);
            }
            assert_int_equal(outcomes[0].failure, STATUS_OK);
            assert_true(fabsf(outcomes[0].lambda - outcomes[1].lambda) <= 1e-6f);
            assert_int_equal(outcomes[0].is_exit, outcomes[1].is_exit);
            is_over = outcomes[0].is_exit;
            if (is_over) {
                outcomes[0].token.cdf = outcomes[1].token.cdf; /* of lambdas that near */
                same_token(&outcomes[0].token, &outcomes[1].token);
            }
            n_by_loop[t] += is_over;
        }
    }
    for (int t = 1; t <= LOOPS; t++)
        assert_true(n_by_loop[t] > 0);
    world_close(&w);
}

/* ---- in flight ------------------------------------------------------------------------------ */

/* One loop-1 batch of the first n tokens of four sequences, from `first` on. */
static int four_pieces(int first, int n, struct piece *pieces)
{
    for (int i = 0; i < 4; i++)
        pieces[i] = (struct piece){first + i, 1, 0, n, true};
    return 4;
}

static void add_sequences(void)
{
    for (int i = 0; i < 12; i++) {
        struct sequence_state *s = add(&w, i, N, 50 + (uint64_t)i);
        set_params(&s->params, i);
        s->params.max_loops = 1;
    }
}

/* Batches of sequences 0-3, 4-7 and 8-11, the second one observed where that is asked for: two are
 * always in flight. */
static void run_three(bool is_observed, struct batch_outcome *outcomes)
{
    static struct stored_batch stored[3];
    struct piece pieces[3][4];
    struct err err = {0};
    add_sequences();
    for (int i = 4; i < 8; i++)
        w.sequences[i].params.observe_top = is_observed ? 2 : 0;
    for (int i = 0; i < 3; i++)
        fill(&w, pieces[i], four_pieces(4 * i, N - i, pieces[i]), &stored[i]);
    submit(&w, &stored[0]);
    submit(&w, &stored[1]);
    assert_int_equal(replica_submit(w.replica, &stored[2].b, &err), STATUS_INTERNAL);
    collect(&w, pieces[0], 4);
    memcpy(outcomes, w.outcomes, 4 * sizeof *outcomes);
    submit(&w, &stored[2]);
    for (int i = 1; i < 3; i++) {
        collect(&w, pieces[i], 4);
        memcpy(outcomes + 4 * i, w.outcomes, 4 * sizeof *outcomes);
    }
    assert_int_equal(replica_collect(w.replica, &w.result, &err), STATUS_INTERNAL);
}

static void check_in_flight(const struct kind *kind, bool is_observed)
{
    struct batch_outcome together[12], alone[12];
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    assert_int_equal(replica_depth(w.replica), strcmp(kind->backend, "cuda") == 0 ? 2 : 1);
    run_three(is_observed, together);
    static float rows[12][N * D], again[N * D];
    for (int i = 0; i < 12; i++)
        read_hidden(&w, i, N - i / 4, rows[i]);
    world_close(&w);
    assert_true(world_open_on(&w, kind, 1, NULL));
    add_sequences();
    for (int i = 0; i < 12; i++) {
        run(&w, &(struct piece){i, 1, 0, N - i / 4, true}, 1);
        alone[i] = w.outcomes[0];
        read_hidden(&w, i, N - i / 4, again);
        assert_memory_equal(again, rows[i], (size_t)(N - i / 4) * D * sizeof(float));
        assert_true(alone[i].is_exit && together[i].is_exit);
        assert_true(alone[i].lambda == together[i].lambda);
        same_token(&together[i].token, &alone[i].token);
    }
    world_close(&w);
}

static void test_replica_batches_in_flight_equal_single_ones(void **state)
{
    (void)state;
    check_in_flight(&ON_CPU, false);
    check_in_flight(&ON_CPU, true);
    check_in_flight(&ON_GPU, false);
    check_in_flight(&ON_GPU, true);
}

/* ---- recorded sizes ------------------------------------------------------------------------- */

/* Batches of 1 .. 80 rows one after the other: the first of each size runs at a size of its own or
 * a larger one, the second is recorded there, and those behind repeat it with other sequences. Then
 * one that is too large to be recorded. */
static void test_replica_recorded_batches_equal_single_ones(void **state)
{
    (void)state;
    static const int sizes[] = {1, 3, 4, 2, 20, 24, 80, 70, 80, 5, 22, 1, 1};
    static struct batch_outcome alone[N_SEQUENCES];
    struct piece pieces[N_SEQUENCES];
    if (!world_open_on(&w, &ON_GPU, 1, NULL))
        return;
    for (int i = 0; i < N_SEQUENCES; i++) {
        set_params(&add(&w, i, 3, 200 + (uint64_t)i)->params, i);
        w.sequences[i].params.max_loops = 1;
        run(&w, &(struct piece){i, 1, 0, 3, true}, 1);
        alone[i] = w.outcomes[0];
    }
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        const int first = (int)k % (N_SEQUENCES - sizes[k] + 1);
        for (int i = 0; i < sizes[k]; i++) {
            pieces[i] = (struct piece){first + i, 1, 2, 1, true};
            w.sequences[first + i].exit = (struct exit_state){.survival = 1};
        }
        run(&w, pieces, sizes[k]);
        for (int i = 0; i < sizes[k]; i++) {
            assert_true(w.outcomes[i].lambda == alone[first + i].lambda);
            same_token(&w.outcomes[i].token, &alone[first + i].token);
        }
    }
    for (int i = 0; i < N_SEQUENCES; i++) {
        pieces[i] = (struct piece){i, 1, 0, 3 + (i < 40), true};
        w.sequences[i].exit = (struct exit_state){.survival = 1};
        if (i < 40) /* a fourth token, so that there are 280 rows */
            w.sequences[i].slots[3] = w.next_slot++;
    }
    run(&w, pieces, N_SEQUENCES);
    for (int i = 40; i < N_SEQUENCES; i++)
        same_token(&w.outcomes[i].token, &alone[i].token);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_device_is_near_plain_double),
        cmocka_unit_test(test_replica_device_decides_as_the_host),
        cmocka_unit_test(test_replica_batches_in_flight_equal_single_ones),
        cmocka_unit_test(test_replica_recorded_batches_equal_single_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
