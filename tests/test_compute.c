/* compute: batches run in the order they were started, each result comes once and is what the
 * replica gives alone, observations stay as long as they are read, errors come back. */
#include "tests/replica_world.h"

#include "cluster/host.h"
#include "worker/compute.h"

#include <semaphore.h>

enum { PROMPT = 12, CHUNK = 4 };

/* One segment of sequence i at loop 1. */
struct chunk {
    struct batch batch;
    struct batch_segment segment;
    struct kernels_segment geometry;
    int32_t table[MAX_BLOCKS], slots[MAX_ROWS], ids[MAX_ROWS];
};

static void chunk_make(struct world *w, struct chunk *c, int i, int first, int n)
{
    struct sequence_state *s = &w->sequences[i];
    int n_blocks = (first + n + BLOCK - 1) / BLOCK;
    c->segment = (struct batch_segment){.sequence = s->params.sequence,
                                        .params = &s->params,
                                        .loop = 1,
                                        .has_live = first + n == PROMPT,
                                        .exit = s->exit,
                                        .targets = s->targets};
    c->geometry = (struct kernels_segment){0, n, first, 0, n_blocks};
    c->batch = (struct batch){.n_rows = (uint32_t)n,
                              .n_segments = 1,
                              .segments = &c->segment,
                              .geometry = &c->geometry,
                              .block_table = c->table,
                              .slots = c->slots,
                              .ids = c->ids,
                              .pool_ids = w->pool_ids,
                              .block_size = BLOCK};
    for (int b = 0; b < n_blocks; b++)
        c->table[b] = s->blocks[0][b];
    for (int j = 0; j < n; j++) {
        int p = first + j;
        c->slots[j] = s->slots[p];
        c->ids[j] = s->ids[p];
        w->pool_ids[s->blocks[0][p / BLOCK] * BLOCK + p % BLOCK] = s->ids[p];
    }
}

static struct world world, alone;
static struct compute *compute;
static sem_t done;
static int n_woken;

static void wake(void *arg)
{
    assert_ptr_equal(arg, &world);
    __atomic_add_fetch(&n_woken, 1, __ATOMIC_SEQ_CST);
    sem_post(&done);
}

/* Two replicas of one model, with the same sequence: what the one computes through `compute`, the
 * other does at once. */
static int setup(void **state)
{
    (void)state;
    struct err err;
    struct world *both[] = {&world, &alone};
    for (int i = 0; i < 2; i++) {
        world_open(both[i], &OURO, DTYPE_F32, 1);
        add(both[i], 0, PROMPT, 3);
    }
    sem_init(&done, 0, 0);
    n_woken = 0;
    if (compute_create(world.replica, MAX_ROWS, wake, &world, &compute, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    compute_destroy(compute);
    sem_destroy(&done);
    world_close(&world);
    world_close(&alone);
    return 0;
}

static void observe(struct world *w)
{
    struct sequence_state *s = &w->sequences[0];
    s->params.n_observe_targets = PROMPT - 1;
    for (int p = 0; p < PROMPT; p++)
        s->targets[p] = p;
}

static void start(const struct chunk *c)
{
    struct err err;
    if (compute_start(compute, &c->batch, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static const struct batch_result *take(void)
{
    const struct batch_result *result;
    struct err err;
    if (compute_take(compute, &result, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return result;
}

static void run_alone_chunk(int first, int n, struct batch_result *result)
{
    static struct chunk c;
    chunk_make(&alone, &c, 0, first, n);
    struct err err;
    if (replica_run(alone.replica, &c.batch, result, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_compute_results_come_in_order_and_once(void **state)
{
    (void)state;
    static struct chunk chunks[3];
    uint64_t began_ns = host_now_ns(), sum_ns = 0;
    for (int i = 0; i < 3; i++)
        chunk_make(&world, &chunks[i], 0, i * CHUNK, CHUNK);
    assert_null(take());
    start(&chunks[0]);
    start(&chunks[1]);
    for (int i = 0; i < 3; i++) {
        sem_wait(&done);
        const struct batch_result *result = take();
        assert_non_null(result);
        assert_true(result->compute_ns > 0);
        sum_ns += result->compute_ns;
        run_alone_chunk(i * CHUNK, CHUNK, &alone.result);
        assert_int_equal(result->n_segments, 1);
        assert_int_equal(result->outcomes[0].failure, STATUS_OK);
        /* The last chunk has the live row: its gate saw the K/V of all. */
        assert_true(result->outcomes[0].lambda == alone.outcomes[0].lambda);
        assert_true((result->outcomes[0].lambda != 0.0f) == (i == 2));
        if (i == 0)
            start(&chunks[2]);
    }
    assert_null(take());
    assert_true(sum_ns <= host_now_ns() - began_ns); /* one after the other */
    float rows[2][PROMPT * 24];
    read_hidden(&world, 0, PROMPT, rows[0]);
    read_hidden(&alone, 0, PROMPT, rows[1]);
    assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
}

static void test_compute_runs_here_and_there(void **state)
{
    (void)state;
    static struct chunk chunks[3];
    for (int i = 0; i < 3; i++)
        chunk_make(&world, &chunks[i], 0, i * CHUNK, CHUNK);
    compute_run_here(compute, &chunks[0].batch);
    assert_non_null(take());
    assert_null(take());
    start(&chunks[1]);
    sem_wait(&done);
    assert_non_null(take());
    compute_run_here(compute, &chunks[2].batch);
    const struct batch_result *result = take();
    assert_non_null(result);
    for (int i = 0; i < 3; i++)
        run_alone_chunk(i * CHUNK, CHUNK, &alone.result);
    assert_true(result->outcomes[0].lambda == alone.outcomes[0].lambda);
    assert_int_equal(n_woken, 1);
}

/* Observations lie in the replica: the next batch does not touch them while they are read. */
static void test_compute_observations_stay_until_the_next_take(void **state)
{
    (void)state;
    static struct chunk chunks[2];
    observe(&world);
    observe(&alone);
    for (int i = 0; i < 2; i++)
        chunk_make(&world, &chunks[i], 0, i * CHUNK, CHUNK);
    start(&chunks[0]);
    start(&chunks[1]);
    for (int i = 0; i < 2; i++) {
        sem_wait(&done);
        const struct batch_result *result = take();
        assert_non_null(result);
        run_alone_chunk(i * CHUNK, CHUNK, &alone.result);
        assert_int_equal(result->n_observations, CHUNK);
        uint64_t until_ns = host_now_ns() + 2000000;
        do {
            for (int j = 0; j < CHUNK; j++) {
                assert_int_equal(result->observations[j].position, i * CHUNK + j);
                assert_true(result->observations[j].lambda == alone.result.observations[j].lambda);
            }
            assert_int_equal(__atomic_load_n(&n_woken, __ATOMIC_SEQ_CST), i + 1);
        } while (host_now_ns() < until_ns);
        assert_null(take());
    }
}

static void test_compute_a_batch_that_cannot_be_is_an_error(void **state)
{
    (void)state;
    static struct chunk c;
    chunk_make(&world, &c, 0, 0, CHUNK);
    c.ids[0] = VOCAB;
    struct err err = {0};
    assert_int_equal(compute_start(compute, &c.batch, &err), STATUS_INTERNAL);
    assert_string_equal(err.message, "row 0 of a batch has token id 37 of 37");
    assert_null(take());
    compute_run_here(compute, &c.batch);
    const struct batch_result *result;
    assert_int_equal(compute_take(compute, &result, &err), STATUS_INTERNAL);
    assert_null(result);
}

/* What was started is computed, and nobody asks for it. */
static void test_compute_ends_with_batches_that_run(void **state)
{
    (void)state;
    static struct chunk chunks[2];
    observe(&world);
    for (int i = 0; i < 2; i++) {
        chunk_make(&world, &chunks[i], 0, i * CHUNK, CHUNK);
        start(&chunks[i]);
    }
    sem_wait(&done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_compute_results_come_in_order_and_once, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_compute_runs_here_and_there, setup, teardown),
        cmocka_unit_test_setup_teardown(test_compute_observations_stay_until_the_next_take, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_compute_a_batch_that_cannot_be_is_an_error, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_compute_ends_with_batches_that_run, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
