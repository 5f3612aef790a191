/* What a batch decides: exits, tokens, and sequences that fail alone. */
#include "tests/replica_world.h"

static void break_embed(struct tiny_model *m)
{
    tiny_set(&m->checkpoint.weights.embed, 5, 3, NAN);
}

static void check_nan(const struct kind *kind)
{
    static struct world w;
    enum { N = 11 };
    static float alone[4 * N * 24], beside[4 * N * 24];
    if (!world_open_on(&w, kind, 2, break_embed))
        return;
    struct sequence_state *good = add(&w, 0, N, 11), *bad = add(&w, 1, N, 12);
    for (int p = 0; p < N; p++) {
        good->ids[p] += good->ids[p] == 5;
        bad->ids[p] = p == 4 ? 5 : good->ids[p];
    }
    run_alone(&w, 0, N, alone);
    for (int t = 1; t <= 4; t++) {
        struct piece both[] = {{1, t, 0, N, true}, {0, t, 0, N, true}};
        run(&w, both, 2);
        assert_int_equal(w.outcomes[0].failure, STATUS_CORRUPT);
        assert_false(w.outcomes[0].is_exit);
        assert_int_equal(w.outcomes[1].failure, STATUS_OK);
        read_hidden(&w, 0, N, beside + (t - 1) * N * 24);
    }
    assert_true(w.outcomes[1].is_exit);
    assert_memory_equal(alone, beside, sizeof alone);
    memcpy(bad->ids, good->ids, sizeof bad->ids); /* a new sequence in the blocks full of NaN */
    run_alone(&w, 1, N, beside);
    assert_memory_equal(alone, beside, sizeof alone);
    world_close(&w);
}

/* A NaN in token 5's embedding fails who reads it, and nobody else: not in its batch, not later in
 * its blocks. */
static void test_replica_nan_fails_its_own_sequence(void **state)
{
    (void)state;
    check_nan(&ON_CPU);
    check_nan(&ON_GPU);
}

static void break_head(struct tiny_model *m)
{
    tiny_set(&m->checkpoint.weights.head, VOCAB - 1, 0, NAN);
}

static void test_replica_nan_in_the_head_fails_at_the_exit(void **state)
{
    (void)state;
    static struct world w;
    const struct kind *const kinds[] = {&ON_CPU, &ON_GPU};
    for (int k = 0; k < 2; k++) {
        if (!world_open_on(&w, kinds[k], 1, break_head))
            return;
        add(&w, 0, 5, 11);
        for (int t = 1; t <= 4; t++) {
            run(&w, &(struct piece){0, t, 0, 5, true}, 1);
            assert_int_equal(w.outcomes[0].failure, t < 4 ? STATUS_OK : STATUS_CORRUPT);
        }
        assert_false(w.outcomes[0].is_exit);
        world_close(&w);
    }
}

/* Every q: exit loop and token are those of the reference that computes everything. */
static void test_replica_exits_where_the_rule_says(void **state)
{
    (void)state;
    static struct world w;
    enum { N = 12 };
    static double hidden[4 * N * 24], lambda[4 * N], logits[4 * N * VOCAB];
    int n_by_loop[5] = {0};
    world_open(&w, &OURO, DTYPE_F32, 2);
    for (int i = 0; i < 60; i++) {
        w.next_block = w.next_slot = 0;
        struct sequence_state *s = add(&w, 0, N, (uint64_t)i);
        s->params.exit_mode = i % 6 ? EXIT_MODE_EXACT : EXIT_MODE_FULL;
        s->params.exit_threshold = (float)(0.15 + 0.01 * i);
        s->params.min_loops = 1 + (uint32_t)i % 2;
        tiny_reference(w.model, s->ids, N, hidden, lambda, logits);
        struct exit_state expected = {.survival = 1};
        int exit_loop = 0;
        for (int t = 1; t <= 4 && !exit_loop; t++)
            if (exit_rule_step(&s->params, (uint32_t)t, N - 1, (float)lambda[t * N - 1], &expected))
                exit_loop = t;
        for (int t = 1; t <= exit_loop; t++) {
            run(&w, &(struct piece){0, t, 0, N, true}, 1);
            assert_int_equal(w.outcomes[0].is_exit, t == exit_loop);
            assert_int_equal(w.result.n_heads, t == exit_loop);
            assert_true((w.result.head_ns > 0) == (t == exit_loop));
        }
        const struct control_token *token = &w.outcomes[0].token;
        const double *row = logits + (exit_loop * N - 1) * VOCAB;
        int best = 0;
        for (int v = 1; v < VOCAB; v++)
            best = row[v] > row[best] ? v : best;
        assert_int_equal(token->id, best);
        assert_int_equal(token->exit_loop, exit_loop);
        assert_int_equal(token->position, N);
        assert_int_equal(token->sequence, 1);
        assert_true(fabsf(token->cdf - expected.cdf) < 1e-5f);
        n_by_loop[exit_loop]++;
    }
    assert_true(n_by_loop[1] > 0 && n_by_loop[2] > 0 && n_by_loop[3] > 0 && n_by_loop[4] >= 10);
    world_close(&w);
}

static void check_many_exits(const struct kind *kind)
{
    static struct world w;
    enum { N_EXITS = 70 };
    int32_t ids[N_EXITS];
    struct piece pieces[N_EXITS];
    int n_different = 0;
    if (!world_open_on(&w, kind, 2, NULL))
        return;
    for (int i = 0; i < N_EXITS; i++) {
        struct sequence_params *p = &add(&w, i, 1, (uint64_t)i)->params;
        p->max_loops = 1;
        p->sampling.temperature = i % 2 ? 1 : 0;
        p->sampling.seed = (uint64_t)i;
        p->sampling.n_logprobs = i % 3;
        pieces[i] = (struct piece){i, 1, 0, 1, true};
        run(&w, &pieces[i], 1);
        assert_true(w.outcomes[0].is_exit);
        ids[i] = w.outcomes[0].token.id;
        w.sequences[i].exit = (struct exit_state){.survival = 1};
    }
    run(&w, pieces, N_EXITS);
    assert_int_equal(w.result.n_heads, N_EXITS);
    for (int i = 0; i < N_EXITS; i++) {
        assert_int_equal(w.outcomes[i].token.id, ids[i]);
        assert_int_equal(w.outcomes[i].token.n_top, i % 3);
        n_different += ids[i] != ids[0];
    }
    assert_true(n_different > 10);
    world_close(&w);
}

/* More exits than one pass of the head takes; half of them sampled. */
static void test_replica_many_exits_equal_single_ones(void **state)
{
    (void)state;
    check_many_exits(&ON_CPU);
    check_many_exits(&ON_GPU);
}

static void check_history(const struct kind *kind, int n_seeds)
{
    static struct world w;
    enum { N = 9 };
    const struct piece pieces[] = {{1, 1, 0, N, false}, {0, 1, 0, N, true}};
    int n_changed = 0;
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    for (uint64_t seed = 0; seed < (uint64_t)n_seeds; seed++) {
        w.next_block = w.next_slot = 0;
        struct sequence_state *s = add(&w, 0, N, seed);
        add(&w, 1, N, seed + 1000);
        s->params.max_loops = 1;
        s->params.observe_top = VOCAB;
        s->params.prompt_tokens = 1; /* all but the first count as generated */
        s->params.sampling.frequency_penalty = 2;
        s->params.sampling.presence_penalty = 2;
        run(&w, pieces, 2);
        const struct control_observation *o = &w.result.observations[N - 1];
        float best = -INFINITY;
        int32_t expected = -1;
        for (uint32_t i = 0; i < o->n_top; i++) {
            int n = 0;
            for (int p = 1; p < N; p++)
                n += o->top_ids[i] == s->ids[p];
            float adjusted = o->top_logits[i] - (n > 0 ? 2.0f : 0.0f) - 2.0f * (float)n;
            if (adjusted > best) {
                best = adjusted;
                expected = o->top_ids[i];
            }
        }
        assert_int_equal(w.outcomes[1].token.id, expected);
        n_changed += expected != o->top_ids[0];
        /* Unobserved a device keeps the batch, and lends the host these logits only. */
        s->params.observe_top = 0;
        s->exit = (struct exit_state){.survival = 1};
        run(&w, pieces, 2);
        assert_int_equal(w.outcomes[1].token.id, expected);
    }
    assert_true(n_changed * 12 >= n_seeds);
    world_close(&w);
}

/* Penalties read the sequence's own tokens through its own blocks, beside another history in the
 * batch. */
static void test_replica_history_reaches_the_sampler(void **state)
{
    (void)state;
    check_history(&ON_CPU, 60);
    check_history(&ON_GPU, 24);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_nan_fails_its_own_sequence),
        cmocka_unit_test(test_replica_nan_in_the_head_fails_at_the_exit),
        cmocka_unit_test(test_replica_exits_where_the_rule_says),
        cmocka_unit_test(test_replica_many_exits_equal_single_ones),
        cmocka_unit_test(test_replica_history_reaches_the_sampler),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
