/* replica with backend timed: geometry as the real one, batches that take the modelled time, exits
 * as the real one draws them, rows of the real size, bad cost files refused. */
#include "tests/model_files.h"
#include "tests/replica_world.h"

#include "cluster/cost_model.h"
#include "cluster/host.h"

static struct cost_model slow(double us)
{
    return (struct cost_model){.name = "slow",
                               .source = "test",
                               .backend = "cpu",
                               .block = {2, {1, 101}, {us * 1e3, us * 2e3}},
                               .head = {1, {1}, {0}},
                               .local = {1000, 0.1},
                               .remote = {1000, 0.1},
                               .ranks_per_host = 1};
}

static struct replica_config timed_config(const char *cost_file)
{
    return (struct replica_config){.backend = "timed",
                                   .cost_file = cost_file,
                                   .kv_dtype = DTYPE_F32,
                                   .kv_bytes = 8 << 20,
                                   .block_size = BLOCK,
                                   .max_batch_rows = MAX_ROWS,
                                   .max_sequences = N_SEQUENCES};
}

/* A world whose replica waits. */
static void timed_open(struct world *w, double us)
{
    char *dir = model_files_dir(), path[512];
    struct cost_model cost = slow(us);
    struct err err;
    snprintf(path, sizeof path, "%s/cost.json", dir);
    if (cost_model_save(&cost, path, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    memset(w, 0, sizeof *w);
    w->model = tiny_create(&OURO);
    struct replica_config config = timed_config(path);
    if (replica_create(&w->model->checkpoint, &config, &w->replica, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    w->pool_ids = calloc(replica_get_geometry(w->replica)->n_slots, sizeof *w->pool_ids);
    w->result.outcomes = w->outcomes;
    model_files_remove(dir); /* read once, at the start */
}

static void test_replica_timed_plans_as_the_real_one(void **state)
{
    (void)state;
    static struct world real, timed;
    world_open(&real, &OURO, DTYPE_F32, 1);
    timed_open(&timed, 1);
    const struct replica_geometry *a = replica_get_geometry(real.replica);
    const struct replica_geometry *b = replica_get_geometry(timed.replica);
    assert_int_equal(a->n_blocks, b->n_blocks);
    assert_int_equal(a->n_slots, b->n_slots);
    assert_int_equal(b->workspace_bytes, 0);
    uint64_t batch_ns, row_ns;
    assert_int_equal(replica_calibrate(timed.replica, &batch_ns, &row_ns, NULL), STATUS_OK);
    assert_int_equal(batch_ns, 990);
    assert_int_equal(row_ns, 10);
    world_close(&real);
    world_close(&timed);
}

static void test_replica_timed_exits_as_the_real_one(void **state)
{
    (void)state;
    static struct world worlds[2];
    world_open(&worlds[0], &OURO, DTYPE_F32, 1);
    timed_open(&worlds[1], 1);
    uint32_t exits[2][24];
    for (int v = 0; v < 2; v++)
        for (int i = 0; i < 24; i++) {
            struct sequence_state *s = add(&worlds[v], i, 3, 5);
            s->params.n_force_exits = 4;
            memcpy(s->params.force_exits, (float[]){0.25f, 0.25f, 0.25f, 0.25f}, 4 * sizeof(float));
            s->params.sampling.seed = 100 + (uint64_t)i;
            int loop = 0;
            do
                run(&worlds[v], &(struct piece){i, ++loop, 0, 3, true}, 1);
            while (!worlds[v].outcomes[0].is_exit);
            exits[v][i] = worlds[v].outcomes[0].token.exit_loop;
            assert_int_equal(worlds[v].outcomes[0].token.position, 3);
            assert_int_equal(worlds[v].outcomes[0].token.sequence, i + 1);
            assert_int_equal(worlds[v].result.n_heads, 1);
        }
    assert_memory_equal(exits[0], exits[1], sizeof exits[0]);
    world_close(&worlds[0]);
    world_close(&worlds[1]);
}

static void test_replica_timed_takes_the_modelled_time(void **state)
{
    (void)state;
    static struct world w;
    timed_open(&w, 3000);
    add(&w, 0, 2, 1);
    uint64_t start_ns = host_now_ns();
    for (int i = 0; i < 10; i++)
        run(&w, &(struct piece){0, 1, 0, 1, false}, 1);
    uint64_t took_ns = host_now_ns() - start_ns;
    assert_int_equal(w.result.compute_ns, 3000 * 1000);
    /* A late batch is given back by the next one, so the sum is never early by more than the last
     * one was late; there is no upper bound on a busy machine. */
    assert_true(took_ns >= 30 * 1000 * 1000);
    world_close(&w);
}

static void test_replica_timed_keeps_no_rows(void **state)
{
    (void)state;
    static struct world w;
    timed_open(&w, 1);
    add(&w, 0, 4, 1);
    float rows[4 * 24], again[4 * 24];
    memset(rows, 0, sizeof rows);
    assert_int_equal(move_rows(&w, false, w.sequences[0].slots, 4, rows, NULL), STATUS_OK);
    read_hidden(&w, 0, 4, rows);
    read_hidden(&w, 0, 4, again);
    assert_memory_equal(rows, again, sizeof rows);
    assert_memory_equal(rows, rows + 24, 24 * sizeof(float)); /* every row is the same */
    assert_true(rows[0] > 0 && rows[23] > rows[0]);
    int32_t outside = (int32_t)replica_get_geometry(w.replica)->n_slots;
    assert_int_equal(move_rows(&w, true, &outside, 1, rows, NULL), STATUS_INTERNAL);
    assert_int_equal(move_rows(&w, false, &outside, 1, rows, NULL), STATUS_INTERNAL);
    world_close(&w);
}

static void test_replica_timed_refuses_what_it_cannot_read(void **state)
{
    (void)state;
    struct tiny_model *model = tiny_create(&OURO);
    struct replica *r = NULL;
    struct err err = {0};
    struct replica_config config = timed_config(NULL);
    assert_int_equal(replica_create(&model->checkpoint, &config, &r, &err), STATUS_INVALID);
    assert_non_null(strstr(err.message, "--cost FILE"));
    config = timed_config("/nowhere/cost.json");
    assert_int_equal(replica_create(&model->checkpoint, &config, &r, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nowhere/cost.json"));
    assert_null(r);
    tiny_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replica_timed_plans_as_the_real_one),
        cmocka_unit_test(test_replica_timed_exits_as_the_real_one),
        cmocka_unit_test(test_replica_timed_takes_the_modelled_time),
        cmocka_unit_test(test_replica_timed_keeps_no_rows),
        cmocka_unit_test(test_replica_timed_refuses_what_it_cannot_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
