/* What a replica reports of observed sequences: which rows, against plain double arithmetic, and
 * the same bits whatever is in the batch. */
#include "tests/replica_world.h"

enum { N = 21, FIRST = 5, N_TARGETS = N - FIRST - 2, D = 24 };

static struct sequence_state *add_observed(struct world *w)
{
    struct sequence_state *s = add(w, 0, N, 11);
    s->params.observe_first = FIRST;
    s->params.n_observe_targets = N_TARGETS;
    s->params.observe_hidden = true;
    for (int i = 0; i < N_TARGETS; i++)
        s->targets[i] = s->ids[FIRST + i + 1];
    return s;
}

static double plain_logprob(const double *logits, int32_t target, bool *is_hit)
{
    double largest = logits[0], total = 0;
    *is_hit = true;
    for (int i = 0; i < VOCAB; i++) {
        largest = logits[i] > largest ? logits[i] : largest;
        *is_hit = *is_hit && (logits[i] < logits[target] || i == target);
    }
    for (int i = 0; i < VOCAB; i++)
        total += exp(logits[i] - largest);
    return logits[target] - largest - log(total);
}

static void test_replica_observes_from_the_first_row_on(void **state)
{
    (void)state;
    static struct world w;
    static double hidden[4 * N * D], lambda[4 * N], logits[4 * N * VOCAB];
    world_open(&w, &OURO, DTYPE_F32, 1);
    struct sequence_state *s = add_observed(&w);
    tiny_reference(w.model, s->ids, N, hidden, lambda, logits);
    int n_hits = 0;
    for (int t = 0; t < 4; t++) {
        /* The likeliest tokens of this loop as targets of every other position, so that there are
         * hits. */
        for (int i = 0; i < N_TARGETS; i += 2)
            for (int id = 0; id < VOCAB; id++) {
                const double *l = logits + (t * N + FIRST + i) * VOCAB;
                s->targets[i] = l[id] > l[s->targets[i]] ? id : s->targets[i];
            }
        run(&w, &(struct piece){0, t + 1, 0, N, true}, 1);
        assert_int_equal(w.result.n_observations, N - FIRST);
        for (int i = 0; i < N - FIRST; i++) {
            const struct control_observation *o = &w.result.observations[i];
            int row = t * N + FIRST + i;
            assert_int_equal(o->position, FIRST + i);
            assert_int_equal(o->loop, t + 1);
            assert_int_equal(o->n_top, 0);
            assert_true(fabs(o->lambda - lambda[row]) < 2e-5);
            assert_int_equal(o->n_hidden, D);
            for (int k = 0; k < D; k++)
                assert_true(fabs(o->hidden[k] - hidden[row * D + k]) < 1e-4);
            assert_int_equal(o->has_target, i < N_TARGETS);
            assert_true(o->has_target || o->log_norm == 0.0f);
            if (!o->has_target)
                continue;
            bool is_hit;
            double expected = plain_logprob(logits + row * VOCAB, s->targets[i], &is_hit);
            assert_true(fabs(o->logprob - expected) < 1e-4);
            double norm = logits[row * VOCAB + s->targets[i]] - expected;
            assert_true(fabs(o->log_norm - norm) < 1e-4);
            assert_int_equal(o->is_hit, is_hit);
            n_hits += is_hit;
        }
    }
    assert_in_range(n_hits, 4 * N_TARGETS / 2, 4 * N_TARGETS - 1);
    world_close(&w);
}

struct seen {
    float lambda, logprob, hidden[D];
};

static void note(const struct world *w, struct seen *seen)
{
    for (uint32_t i = 0; i < w->result.n_observations; i++) {
        const struct control_observation *o = &w->result.observations[i];
        if (o->sequence != 1)
            continue;
        struct seen *cell = &seen[(o->loop - 1) * N + o->position];
        cell->lambda = o->lambda;
        cell->logprob = o->logprob;
        memcpy(cell->hidden, o->hidden, sizeof cell->hidden);
    }
}

static void check_observations(const struct kind *kind)
{
    static struct world w;
    static struct seen alone[4 * N], mixed[4 * N];
    static float rows[N * D];
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    add_observed(&w);
    for (int t = 1; t <= 4; t++) {
        run(&w, &(struct piece){0, t, 0, N, true}, 1);
        note(&w, alone);
        /* Hidden states as they are kept, whatever the head reads. */
        read_hidden(&w, 0, N, rows);
        for (int i = FIRST; i < N; i++)
            assert_memory_equal(alone[(t - 1) * N + i].hidden, rows + i * D, D * sizeof *rows);
    }
    world_close(&w);
    assert_true(world_open_on(&w, kind, 2, NULL));
    add(&w, 1, 9, 99)->params.observe_top = 3; /* observed in another way */
    add(&w, 2, 7, 98);                         /* and not at all */
    add_observed(&w);
    for (int t = 1; t <= 4; t++) {
        run(&w, (struct piece[]){{1, t, 0, 9, true}, {0, t, 0, 7, false}, {2, t, 0, 7, true}}, 3);
        note(&w, mixed);
        run(&w, (struct piece[]){{2, 1, 0, 5, false}, {0, t, 7, N - 7, true}}, 2);
        note(&w, mixed);
    }
    assert_memory_equal(alone, mixed, sizeof alone);
    world_close(&w);
}

static void test_replica_observations_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    check_observations(&ON_CPU);
    check_observations(&ON_GPU);
}

/* Without observers nothing goes through the head before an exit. */
static void test_replica_runs_no_head_below_the_first_row(void **state)
{
    (void)state;
    static struct world w;
    world_open(&w, &OURO, DTYPE_F32, 1);
    add_observed(&w);
    run(&w, &(struct piece){0, 1, 0, FIRST, false}, 1);
    assert_int_equal(w.result.n_heads, 0);
    assert_int_equal(w.result.n_observations, 0);
    run(&w, &(struct piece){0, 1, FIRST, 1, false}, 1);
    assert_int_equal(w.result.n_heads, 1);
    assert_int_equal(w.result.n_observations, 1);
    world_close(&w);
}

/* Another sequence's exit goes through the head while no observed row does: there is no room for
 * hidden states then, and none is needed. */
static void test_replica_keeps_no_hidden_states_of_others(void **state)
{
    (void)state;
    static struct world w;
    world_open(&w, &OURO, DTYPE_F32, 1);
    add_observed(&w);
    add(&w, 1, 9, 99)->params.max_loops = 1;
    run(&w, (struct piece[]){{0, 1, 0, FIRST, false}, {1, 1, 0, 9, true}}, 2);
    assert_int_equal(w.result.n_heads, 1);
    assert_int_equal(w.result.n_observations, 0);
    world_close(&w);
}

/* A broken row ends its sequence and is not reported: a NaN is no legal word on the wire. */
static void test_replica_does_not_report_a_broken_row(void **state)
{
    (void)state;
    static struct world w;
    world_open(&w, &OURO, DTYPE_F32, 1);
    tiny_set(&w.model->checkpoint.weights.head, 3, 2, NAN);
    add_observed(&w);
    run(&w, &(struct piece){0, 1, 0, N, true}, 1);
    assert_int_equal(w.result.n_observations, 2); /* those without a target ask nothing of it */
    assert_int_equal(w.outcomes[0].failure, STATUS_CORRUPT);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_observes_from_the_first_row_on),
        cmocka_unit_test(test_replica_observations_do_not_depend_on_the_batch),
        cmocka_unit_test(test_replica_runs_no_head_below_the_first_row),
        cmocka_unit_test(test_replica_keeps_no_hidden_states_of_others),
        cmocka_unit_test(test_replica_does_not_report_a_broken_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
