/* Tests train/pass.h around the gradients: loss and counts equal the double reference, calls can be
 * grouped and repeated, the engine's own block computes the same, bad input is named. */
#include "tests/pass_world.h"
#include "tests/replica_world.h"
#include "tests/train_reference.h"
#include "train/pass_parts.h"

static const struct pass_shape SHAPES[] = {
    {"sandwich, gqa", false, false, 2, 24, 40, 4, 2, 6, 29},
    {"sandwich, tied", false, true, 1, 32, 48, 2, 2, 16, 31},
    {"llama", true, false, 2, 20, 36, 5, 1, 4, 29},
};
enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0] };

static void assert_near(double found, double want, const char *what)
{
    if (!(fabs(found - want) <= 1e-5 * fabs(want) + 1e-6))
        fail_msg("%s: found %.9g, want %.9g", what, found, want);
}

/* Loss, cross entropy, exit probabilities and what counts as right. */
static void check_metrics(const struct pass_shape *shape, enum recipe_objective objective)
{
    struct params *p = pass_world_params(shape, 21);
    struct pass_world_sequences w;
    pass_world_open(&w, shape->vocab, 12, 22);
    struct pass_options o = {objective, 3, 0.2f, 0.125f, NULL};
    double *values = calloc(p->n_values, sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < p->n_values; i++)
        values[i] = p->values[i];
    struct train_reference r = reference_run(p, values, w.list, PASS_WORLD_SEQUENCES, &o);
    int n_rows = 0, n_targets = 0, at_level[METRICS_MAX_LEVELS] = {0};
    for (int s = 0; s < PASS_WORLD_SEQUENCES; s++)
        for (int i = 0; i < w.rows[s].n; i++, n_rows++) {
            n_targets += w.rows[s].targets[i] >= 0;
            if (w.rows[s].targets[i] >= 0 && w.rows[s].levels[i] >= 0)
                at_level[w.rows[s].levels[i]]++;
        }
    const struct grad_ops *levels[3];
    int n_levels = pass_world_levels(levels);
    for (int l = 0; l < n_levels; l++) {
        struct metrics m = pass_world_run(p, levels[l], w.list, PASS_WORLD_SEQUENCES, &o, NULL);
        assert_true(m.n_rows == (float)n_rows && m.n_targets == (float)n_targets);
        assert_true(m.n_sequences == PASS_WORLD_SEQUENCES);
        assert_near(m.loss, r.loss, "loss");
        assert_near(m.entropy, r.entropy, "entropy");
        for (int t = 0; t < METRICS_MAX_LOOPS; t++) {
            assert_near(m.ce[t], r.ce[t], "cross entropy");
            assert_near(m.exit_mass[t], r.exit_mass[t], "exit mass");
            for (int level = 0; level < METRICS_MAX_LEVELS; level++)
                assert_true(m.correct[level][t] == (float)r.correct[level][t]);
        }
        for (int level = 0; level < METRICS_MAX_LEVELS; level++)
            assert_true(m.n[level] == (float)at_level[level]);
    }
    free(values);
    pass_world_close(&w);
    params_destroy(p);
}

static void test_pass_metrics_equal_the_reference(void **state)
{
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        check_metrics(&SHAPES[i], RECIPE_UNIFORM);
        check_metrics(&SHAPES[i], RECIPE_LAST);
        if (!SHAPES[i].is_llama)
            check_metrics(&SHAPES[i], RECIPE_ENTROPY);
    }
}

/* A perfect memory: some counts must be right and some wrong, or the check above says little. */
static void test_pass_counts_right_answers(void **state)
{
    (void)state;
    struct params *p = pass_world_params(&SHAPES[0], 5);
    struct sequence_rows s;
    assert_int_equal(sequence_rows_create(8, &s, NULL), STATUS_OK);
    const struct sequence_rows *list[] = {&s};
    const struct grad_ops *levels[3];
    pass_world_levels(levels);
    struct pass_options o = {RECIPE_UNIFORM, 1, 0, 1, NULL};
    int n_right = 0;
    for (int id = 0; id < SHAPES[0].vocab; id++) {
        sequence_rows_clear(&s);
        assert_int_equal(sequence_rows_append(&s, 3, NULL), STATUS_OK);
        sequence_rows_target(&s, id, 1, 7);
        struct metrics m = pass_world_run(p, levels[0], list, 1, &o, NULL);
        assert_true(m.n[7] == 1);
        n_right += m.correct[7][0] == 1;
    }
    assert_int_equal(n_right, 1);
    sequence_rows_free(&s);
    params_destroy(p);
}

/* Gradients and metrics add up over calls; a forward alone counts the same, bit for bit. */
static void test_pass_calls_can_be_grouped(void **state)
{
    (void)state;
    struct params *p = pass_world_params(&SHAPES[0], 31);
    struct pass_world_sequences w;
    pass_world_open(&w, SHAPES[0].vocab, 9, 32);
    /* More rows than a pass takes at a time. */
    enum { N = 10 * PASS_WORLD_SEQUENCES };
    const struct sequence_rows *list[N];
    for (int i = 0; i < N; i++)
        list[i] = w.list[i % PASS_WORLD_SEQUENCES];
    struct pass_options o = {RECIPE_ENTROPY, 4, 0.1f, 0.5f, NULL};
    const struct grad_ops *levels[3];
    int n_levels = pass_world_levels(levels);
    float *together = calloc(p->n_values, sizeof *together);
    float *apart = calloc(p->n_values, sizeof *apart);
    assert_true(together && apart);
    for (int l = 0; l < n_levels; l++) {
        struct err err;
        memset(together, 0, p->n_values * sizeof *together);
        memset(apart, 0, p->n_values * sizeof *apart);
        struct metrics all = pass_world_run(p, levels[l], list, N, &o, together);
        struct metrics forward = pass_world_run(p, levels[l], list, N, &o, NULL);
        assert_memory_equal(&all, &forward, sizeof all);
        struct metrics sum = {0};
        struct pass *pass;
        assert_int_equal(pass_create(p, levels[l], &pass, &err), STATUS_OK);
        for (int s = N - 1; s >= 0; s--) /* the largest last: memory grows */
            assert_int_equal(pass_run(pass, &list[s], 1, &o, apart, &sum, &err), STATUS_OK);
        pass_destroy(pass);
        assert_near(sum.loss, all.loss, "loss");
        assert_true(memcmp(sum.n, all.n, sizeof sum.n) == 0);
        assert_true(memcmp(sum.correct, all.correct, sizeof sum.correct) == 0);
        double norm = pass_world_norm(together, p->n_values);
        for (size_t i = 0; i < p->n_values; i++)
            apart[i] -= together[i];
        assert_true(norm > 0.1 && pass_world_norm(apart, p->n_values) < 1e-5 * norm);
    }
    free(together);
    free(apart);
    pass_world_close(&w);
    params_destroy(p);
}

/* The same call on a pass that has seen others gives the same bits. */
static void test_pass_keeps_nothing_between_calls(void **state)
{
    (void)state;
    struct params *p = pass_world_params(&SHAPES[1], 41);
    struct pass_world_sequences w, other;
    pass_world_open(&w, SHAPES[1].vocab, 9, 42);
    pass_world_open(&other, SHAPES[1].vocab, 20, 43);
    struct pass_options o = {RECIPE_ENTROPY, 3, 0.1f, 0.5f, NULL};
    struct pass_options deep = {RECIPE_LAST, 8, 0, 1, NULL};
    const struct grad_ops *levels[3];
    int n_levels = pass_world_levels(levels);
    float *first = calloc(3 * p->n_values, sizeof *first);
    assert_non_null(first);
    float *again = first + p->n_values, *waste = again + p->n_values;
    struct metrics m[2], ignored = {0};
    memset(m, 0, sizeof m);
    struct pass *pass;
    struct err err;
    const struct grad_ops *ops = levels[n_levels - 1];
    assert_int_equal(pass_create(p, ops, &pass, &err), STATUS_OK);
    assert_int_equal(pass_run(pass, w.list, 2, &o, first, &m[0], &err), STATUS_OK);
    assert_int_equal(pass_run(pass, other.list, 4, &deep, waste, &ignored, &err), STATUS_OK);
    /* Another rotary base, as a later stage may have; then the first one again. */
    p->config.rope_theta = 500;
    struct metrics turned = {0};
    assert_int_equal(pass_run(pass, w.list, 2, &o, NULL, &turned, &err), STATUS_OK);
    struct metrics fresh = pass_world_run(p, ops, w.list, 2, &o, NULL);
    assert_memory_equal(&turned, &fresh, sizeof fresh);
    assert_true(turned.loss != m[0].loss);
    p->config.rope_theta = 10000;
    assert_int_equal(pass_run(pass, w.list, 2, &o, again, &m[1], &err), STATUS_OK);
    assert_memory_equal(first, again, p->n_values * sizeof *first);
    assert_memory_equal(&m[0], &m[1], sizeof m[0]);
    pass_destroy(pass);
    pass_destroy(NULL);
    free(first);
    pass_world_close(&w);
    pass_world_close(&other);
    params_destroy(p);
}

/* Hidden states, gate and logits of every loop, against a replica with the same weights. */
static void check_engine(const struct tiny_spec *spec, int n)
{
    static struct world w;
    world_open(&w, spec, DTYPE_F32, 1);
    struct sequence_state *s = add(&w, 0, n, spec->seed);
    s->params.observe_top = (uint32_t)spec->vocab;
    struct params *p;
    struct pass *pass;
    struct err err;
    struct sequence_rows rows;
    assert_int_equal(params_create(&w.model->checkpoint.config, &p, &err), STATUS_OK);
    assert_int_equal(params_load(p, &w.model->checkpoint, &err), STATUS_OK);
    assert_int_equal(sequence_rows_create(n, &rows, &err), STATUS_OK);
    for (int i = 0; i < n; i++) {
        assert_int_equal(sequence_rows_append(&rows, s->ids[i], &err), STATUS_OK);
        sequence_rows_target(&rows, 0, 1, -1);
    }
    const struct sequence_rows *list[] = {&rows};
    const struct grad_ops *ops;
    assert_int_equal(grad_find("auto", &ops, &err), STATUS_OK);
    assert_int_equal(pass_create(p, ops, &pass, &err), STATUS_OK);
    float *hidden = calloc((size_t)(n * spec->d), sizeof *hidden);
    assert_non_null(hidden);
    for (int t = 0; t < spec->n_loops; t++) {
        struct pass_options o = {RECIPE_LAST, t + 1, 0, 1, NULL};
        struct metrics m = {0};
        /* Without gradients the last loop's logits stay as they were computed. */
        assert_int_equal(pass_run(pass, list, 1, &o, NULL, &m, &err), STATUS_OK);
        run(&w, &(struct piece){0, t + 1, 0, n, true}, 1);
        read_hidden(&w, 0, n, hidden);
        const struct pass_loop *loop = &pass->loops[t];
        double norm = pass_world_norm(hidden, (size_t)(n * spec->d));
        for (int i = 0; i < n * spec->d; i++)
            hidden[i] -= loop->h[i];
        assert_true(norm > 1 && pass_world_norm(hidden, (size_t)(n * spec->d)) < 1e-5 * norm);
        assert_int_equal(w.result.n_observations, n);
        for (int i = 0; i < n; i++) {
            const struct control_observation *seen = &w.result.observations[i];
            if (!spec->is_llama)
                assert_near(1 / (1 + exp(-(double)loop->z[i])), seen->lambda, "lambda");
            for (int j = 0; j < spec->vocab; j++) {
                double found = pass->logits[i * spec->vocab + seen->top_ids[j]];
                assert_true(fabs(found - seen->top_logits[j]) < 1e-5 * norm);
            }
        }
    }
    free(hidden);
    pass_destroy(pass);
    sequence_rows_free(&rows);
    params_destroy(p);
    world_close(&w);
}

static void test_pass_computes_what_the_engine_does(void **state)
{
    (void)state;
    check_engine(&OURO, 23);
    struct tiny_spec llama = {.is_llama = true,
                              .is_tied = true,
                              .n_layers = 3,
                              .d = 32,
                              .ffn = 48,
                              .n_heads = 4,
                              .n_kv_heads = 2,
                              .head_dim = 8,
                              .vocab = 40,
                              .n_loops = 2,
                              .seed = 9};
    check_engine(&llama, 17);
}

/* ---- what is refused ---- */

/* One fault in one call. */
struct refusal {
    const char *what, *word; /* the word must be in the message */
    enum status status;
    void (*break_it)(struct params *p, struct sequence_rows *rows, struct pass_options *o);
};

static void break_id(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)o;
    rows->ids[4] = p->config.vocab_size;
}
static void break_negative_id(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)p, (void)o;
    rows->ids[4] = -1;
}
static void break_target(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)o;
    rows->targets[4] = p->config.vocab_size;
}
static void break_position(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)o;
    rows->positions[4] = p->config.max_positions;
}
static void break_weight(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)p, (void)o;
    rows->weights[4] = -1;
}
static void break_weights(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)p, (void)o;
    memset(rows->weights, 0, (size_t)rows->n * sizeof *rows->weights);
}
static void break_level(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)p, (void)o;
    rows->levels[4] = METRICS_MAX_LEVELS;
}
static void break_loops(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)p, (void)rows;
    o->n_loops = METRICS_MAX_LOOPS + 1;
}
static void break_gate(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)rows, (void)o;
    p->config.has_gate = false;
}
static void break_embedding(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)rows, (void)o;
    p->values[p->embed + 9 * (size_t)p->config.d_model] = NAN; /* only row 4 has id 9 */
}
static void break_gate_value(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)rows, (void)o;
    p->values[p->gate_bias] = INFINITY;
}
static void break_head(struct params *p, struct sequence_rows *rows, struct pass_options *o)
{
    (void)rows, (void)o;
    p->values[p->head] = -INFINITY;
}

static void test_pass_names_what_is_wrong(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {"id", "sequence 59, row 4: id 29", STATUS_INVALID, break_id},
        {"negative id", "id -1", STATUS_INVALID, break_negative_id},
        {"target", "row 4: target 29", STATUS_INVALID, break_target},
        {"position", "position 128", STATUS_INVALID, break_position},
        {"weight", "row 4: a target of weight -1", STATUS_INVALID, break_weight},
        {"all weights", "sequence 59: all 6 targets", STATUS_INVALID, break_weights},
        {"level", "level 64", STATUS_INVALID, break_level},
        {"loops", "9 open loops", STATUS_INVALID, break_loops},
        {"no gate", "gate", STATUS_INVALID, break_gate},
        {"nan", "loop 1, sequence 59, row 4 (id 9) the hidden", STATUS_CORRUPT, break_embedding},
        {"gate's bias", "loop 1, sequence 0, row 0 the gate's logit is inf", STATUS_CORRUPT,
         break_gate_value},
        {"head", "loop 1, sequence 0, row 0 the cross entropy is", STATUS_CORRUPT, break_head},
    };
    const struct grad_ops *levels[3];
    int n_levels = pass_world_levels(levels);
    for (size_t i = 0; i < (sizeof refusals / sizeof refusals[0]) * (size_t)n_levels; i++) {
        const struct refusal *f = &refusals[i / (size_t)n_levels];
        struct params *p = pass_world_params(&SHAPES[0], 51);
        struct sequence_rows rows[2];
        const struct sequence_rows *list[60]; /* several pieces; the last one is broken */
        for (int s = 0; s < 60; s++)
            list[s] = &rows[s == 59];
        for (int s = 0; s < 2; s++) {
            assert_int_equal(sequence_rows_create(6, &rows[s], NULL), STATUS_OK);
            for (int j = 0; j < 6; j++) {
                assert_int_equal(sequence_rows_append(&rows[s], s == 1 && j == 4 ? 9 : j, NULL),
                                 STATUS_OK);
                sequence_rows_target(&rows[s], 2, 1, 0);
            }
        }
        struct pass_options o = {RECIPE_ENTROPY, 2, 0.1f, 1, NULL};
        struct metrics m = {0}, zero = {0};
        struct err err;
        struct pass *pass;
        float *grads = calloc(p->n_values, sizeof *grads);
        assert_non_null(grads);
        assert_int_equal(pass_create(p, levels[i % (size_t)n_levels], &pass, &err), STATUS_OK);
        f->break_it(p, &rows[1], &o);
        enum status status = pass_run(pass, list, 60, &o, grads, &m, &err);
        if (status != f->status || !strstr(err.message, f->word))
            fail_msg("%s: %s: %s", f->what, status_name(status), err.message);
        assert_memory_equal(&m, &zero, sizeof m);
        free(grads);
        pass_destroy(pass);
        sequence_rows_free(&rows[0]);
        sequence_rows_free(&rows[1]);
        params_destroy(p);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass_metrics_equal_the_reference),
        cmocka_unit_test(test_pass_counts_right_answers),
        cmocka_unit_test(test_pass_calls_can_be_grouped),
        cmocka_unit_test(test_pass_keeps_nothing_between_calls),
        cmocka_unit_test(test_pass_computes_what_the_engine_does),
        cmocka_unit_test(test_pass_names_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
