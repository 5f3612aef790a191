/* A replica against plain double arithmetic, and against itself in other batches, chunks, blocks
 * and slots. */
#include "tests/replica_world.h"

#include <pthread.h>
#include <stdatomic.h>

static double largest(const double *x, int n)
{
    double max = 0;
    for (int i = 0; i < n; i++)
        max = fabs(x[i]) > max ? fabs(x[i]) : max;
    return max;
}

static void check_against_double(const struct tiny_spec *spec, int n)
{
    static struct world w;
    static double hidden[8 * MAX_POSITIONS * 64], lambda[8 * MAX_POSITIONS],
        logits[8 * MAX_POSITIONS * 64];
    static float rows[MAX_POSITIONS * 64];
    world_open(&w, spec, DTYPE_F32, 2);
    struct sequence_state *s = add(&w, 0, n, spec->seed);
    s->params.observe_top = (uint32_t)spec->vocab + 5; /* more than there are */
    tiny_reference(w.model, s->ids, n, hidden, lambda, logits);
    double tolerance = 2e-5 * largest(logits, spec->n_loops * n * spec->vocab);
    double hidden_tolerance = 2e-5 * largest(hidden, spec->n_loops * n * spec->d);
    for (int t = 0; t < spec->n_loops; t++) {
        run(&w, &(struct piece){0, t + 1, 0, n, true}, 1);
        read_hidden(&w, 0, n, rows);
        for (int i = 0; i < n * spec->d; i++)
            assert_true(fabs(rows[i] - hidden[t * n * spec->d + i]) <= hidden_tolerance);
        assert_int_equal(w.result.n_observations, n);
        for (int p = 0; p < n; p++) {
            const struct control_observation *o = &w.result.observations[p];
            assert_int_equal(o->position, p);
            assert_int_equal(o->loop, t + 1);
            assert_int_equal(o->n_top, spec->vocab);
            assert_true(fabs(o->lambda - lambda[t * n + p]) < 2e-5);
            for (int i = 0; i < spec->vocab; i++) {
                double expected = logits[(t * n + p) * spec->vocab + o->top_ids[i]];
                assert_true(fabs(o->top_logits[i] - expected) <= tolerance);
                assert_true(i == 0 || o->top_logits[i] <= o->top_logits[i - 1]);
            }
        }
    }
    world_close(&w);
}

static void test_replica_equals_plain_double(void **state)
{
    (void)state;
    struct tiny_spec s = OURO;
    check_against_double(&s, 23);
    check_against_double(&s, 1);
    s.dtype = DTYPE_BF16;
    check_against_double(&s, 9);
    s = (struct tiny_spec){.n_layers = 1,
                           .d = 33,
                           .ffn = 17,
                           .n_heads = 4,
                           .n_kv_heads = 2,
                           .head_dim = 8,
                           .vocab = 50,
                           .n_loops = 8,
                           .seed = 3};
    check_against_double(&s, 12);
    s = (struct tiny_spec){.is_llama = true,
                           .is_tied = true,
                           .n_layers = 4,
                           .d = 32,
                           .ffn = 48,
                           .n_heads = 5,
                           .n_kv_heads = 5,
                           .head_dim = 6,
                           .vocab = 41,
                           .n_loops = 1,
                           .seed = 5};
    check_against_double(&s, 16);
}

/* Sequence 0 as in run_alone, but in chunks, with two others at other loops in between. */
static void run_mixed(struct world *w, int n, const int *chunks, float *hidden)
{
    int d = w->model->checkpoint.config.d_model, n_other = 9;
    add(w, 1, n_other, 99); /* takes blocks and slots, so that sequence 0's are others */
    add(w, 2, n_other, 98);
    add(w, 0, n, 11);
    for (int t = 1; t <= w->model->checkpoint.config.n_loops; t++) {
        for (int first = 0, c = 0; first < n; first += chunks[c], c++) {
            int len = chunks[c] < n - first ? chunks[c] : n - first;
            struct piece pieces[] = {{1, t, 0, n_other, true},
                                     {0, t, first, len, first + len == n},
                                     {2, 1, 0, n_other, false}};
            struct piece once[] = {{2, 1, 0, 1 + c % n_other, false}, {0, t, first, len, false}};
            if (first == 0)
                run(w, pieces, 3);
            else
                run(w, once, 2);
        }
        read_hidden(w, 0, n, hidden + (t - 1) * n * d);
    }
}

static void test_replica_rows_do_not_depend_on_the_batch(void **state)
{
    (void)state;
    static struct world w;
    enum { N = 30 };
    static float alone[4 * N * 24], mixed[4 * N * 24];
    const int chunks[][N] = {{N}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, N}, {3, 7, 2, N}, {29, 1}};
    struct kind kinds[] = {ON_CPU, ON_CPU, ON_GPU};
    kinds[1].kv_dtype = DTYPE_BF16;
    for (int k = 0; k < 3; k++) {
        if (!world_open_on(&w, &kinds[k], 1, NULL))
            return;
        add(&w, 0, N, 11);
        run_alone(&w, 0, N, alone);
        world_close(&w);
        for (int i = 0; i < 4; i++) {
            assert_true(world_open_on(&w, &kinds[k], 1 + i % 2, NULL));
            run_mixed(&w, N, chunks[i], mixed);
            assert_memory_equal(alone, mixed, sizeof alone);
            world_close(&w);
        }
    }
}

static void test_replica_rows_travel_between_slots(void **state)
{
    (void)state;
    static struct world w;
    enum { N = 13, D = 24 };
    float alone[4 * N * D], hidden[N * D];
    _Alignas(64) unsigned char message[4 + sizeof hidden]; /* rows lie at multiples of 4 */
    world_open(&w, &OURO, DTYPE_F32, 1);
    struct sequence_state *s = add(&w, 0, N, 11);
    run_alone(&w, 0, N, alone);
    for (int t = 1; t <= 4; t++) {
        run(&w, &(struct piece){0, t, 0, N, true}, 1);
        assert_int_equal(move_rows(&w, true, s->slots, N, message + 4, NULL), STATUS_OK);
        for (int p = 0; p < N; p++)
            s->slots[p] = 200 * t + (p % 3) * 20 + p;
        assert_int_equal(move_rows(&w, false, s->slots, N, message + 4, NULL), STATUS_OK);
        read_hidden(&w, 0, N, hidden);
        assert_memory_equal(hidden, alone + (t - 1) * N * D, sizeof hidden);
    }
    struct err err;
    int32_t outside = (int32_t)replica_get_geometry(w.replica)->n_slots;
    assert_int_equal(move_rows(&w, false, &outside, 1, message, &err), STATUS_INTERNAL);
    world_close(&w);
}

struct driver {
    struct world *w;
    atomic_bool is_over;
};

static void *compute(void *arg)
{
    struct driver *d = arg;
    for (int i = 0; i < 30; i++)
        run(d->w, &(struct piece){0, 1 + i % 4, 0, 20, true}, 1);
    atomic_store(&d->is_over, true);
    return NULL;
}

static void check_copies(const struct kind *kind)
{
    static struct world w;
    float rows[3 * 24], back[3 * 24];
    const int32_t slots[] = {100, 101, 90};
    if (!world_open_on(&w, kind, 2, NULL))
        return;
    add(&w, 0, 20, 11);
    struct driver d = {.w = &w};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, compute, &d), 0);
    for (int i = 0; i < 10 || !atomic_load(&d.is_over); i++) {
        for (int j = 0; j < 3 * 24; j++)
            rows[j] = (float)(i + j);
        assert_int_equal(move_rows(&w, false, slots, 3, rows, NULL), STATUS_OK);
        assert_int_equal(move_rows(&w, true, slots, 3, back, NULL), STATUS_OK);
        assert_memory_equal(rows, back, sizeof rows);
    }
    pthread_join(thread, NULL);
    world_close(&w);
}

static void test_replica_driver_copies_rows_while_a_batch_runs(void **state)
{
    (void)state;
    check_copies(&ON_CPU);
    check_copies(&ON_GPU);
}

static void check_calibration(const struct kind *kind)
{
    static struct world w;
    static float before[4 * 20 * 24], after[4 * 20 * 24];
    uint64_t batch_ns = 0, row_ns = 0;
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    add(&w, 0, 20, 11);
    run_alone(&w, 0, 20, before);
    assert_int_equal(replica_calibrate(w.replica, &batch_ns, &row_ns, NULL), STATUS_OK);
    assert_true(row_ns >= 1 && batch_ns < 10000000000u && row_ns < 1000000000u);
    run_alone(&w, 0, 20, after);
    assert_memory_equal(before, after, sizeof before);
    world_close(&w);
}

static void test_replica_calibrates_without_a_trace(void **state)
{
    (void)state;
    check_calibration(&ON_CPU);
    check_calibration(&ON_GPU);
}

static void test_replica_plan_divides_memory(void **state)
{
    (void)state;
    struct tiny_model *m = tiny_create(&OURO);
    struct replica_geometry g;
    struct err err;
    /* one block: 4 positions x (2 sides x 2 layers x 1 head x 10 x 2 bytes + 24 x 4 bytes) = 704 */
    struct replica_config c = {.kv_dtype = DTYPE_BF16, .block_size = 4, .max_batch_rows = 8};
    c.kv_bytes = 10 * 704 + 703;
    assert_int_equal(replica_plan(&m->checkpoint.config, &c, &g, &err), STATUS_OK);
    assert_int_equal(g.n_blocks, 10);
    assert_int_equal(g.n_slots, 40);
    assert_int_equal(g.kv_bytes + g.row_bytes, 7040);
    c.kv_bytes = 703;
    assert_int_equal(replica_plan(&m->checkpoint.config, &c, &g, &err), STATUS_NO_MEMORY);
    assert_non_null(strstr(err.message, "704"));
    c.kv_dtype = DTYPE_F16;
    assert_int_equal(replica_plan(&m->checkpoint.config, &c, &g, &err), STATUS_UNSUPPORTED);
    tiny_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_equals_plain_double),
        cmocka_unit_test(test_replica_rows_do_not_depend_on_the_batch),
        cmocka_unit_test(test_replica_rows_travel_between_slots),
        cmocka_unit_test(test_replica_driver_copies_rows_while_a_batch_runs),
        cmocka_unit_test(test_replica_calibrates_without_a_trace),
        cmocka_unit_test(test_replica_plan_divides_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
