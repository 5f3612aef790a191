/* worker_rows: what messages bring is in the slots, what leaves is what came before it, in lists of
 * any length; the memory a replica lends outlives it. */
#include "tests/replica_world.h"

#include "worker/worker_rows.h"

enum { D = 24, N = 13 }; /* the tiny model's width; rows of a test */

static void fill_rows(float *rows, int n, int seed)
{
    for (int i = 0; i < n * D; i++)
        rows[i] = (float)(seed * 1000 + i);
}

/* Row i lies in slot 7 * i + 3: no two are neighbours. */
static void fill_slots(int32_t *slots, int n)
{
    for (int i = 0; i < n; i++)
        slots[i] = 7 * i + 3;
}

static void test_worker_rows_come_and_go_in_lists_of_any_length(void **state)
{
    (void)state;
    static struct world w;
    float in[N * D], out[N * D];
    int32_t slots[N];
    world_open(&w, &OURO, DTYPE_F32, 1);
    fill_slots(slots, N);
    for (uint32_t cap = 1; cap <= N + 1; cap++) {
        struct worker_rows rows;
        assert_int_equal(worker_rows_create(&rows, w.replica, D, cap, NULL), STATUS_OK);
        fill_rows(in, N, (int)cap);
        memset(out, 0xff, sizeof out);
        /* two frames in, two out */
        assert_int_equal(worker_rows_arrive(&rows, slots, 5, in, NULL), STATUS_OK);
        assert_int_equal(worker_rows_arrive(&rows, slots + 5, N - 5, in + 5 * D, NULL), STATUS_OK);
        assert_int_equal(worker_rows_leave(&rows, slots, 9, out, NULL), STATUS_OK);
        assert_int_equal(worker_rows_leave(&rows, slots + 9, N - 9, out + 9 * D, NULL), STATUS_OK);
        assert_int_equal(worker_rows_finish(&rows, NULL), STATUS_OK);
        assert_memory_equal(in, out, sizeof in);
        worker_rows_destroy(&rows);
        worker_rows_destroy(&rows);
    }
    world_close(&w);
}

/* Out of slots into memory of the device, in a message's second part, and from there into others.
 */
static void rows_take_the_direct_way(const struct kind *kind)
{
    static struct world w;
    float in[N * D], out[N * D];
    int32_t slots[N], others[N];
    struct worker_rows rows;
    struct transport_memory memory;
    void *apart = NULL;
    if (!world_open_on(&w, kind, 1, NULL))
        return;
    fill_slots(slots, N);
    for (int i = 0; i < N; i++)
        others[i] = slots[i] + 1;
    fill_rows(in, N, 5);
    memset(out, 0xff, sizeof out);
    assert_int_equal(worker_rows_create(&rows, w.replica, D, 7, NULL), STATUS_OK);
    assert_int_equal(replica_lend_memory(w.replica, REPLICA_DEVICE_MEMORY, &memory, NULL),
                     STATUS_OK);
    assert_int_equal(memory.alloc(memory.context, sizeof in, &apart, NULL), STATUS_OK);
    assert_int_equal(worker_rows_arrive(&rows, slots, N, in, NULL), STATUS_OK);
    assert_int_equal(worker_rows_leave(&rows, slots, N, apart, NULL), STATUS_OK);
    assert_int_equal(worker_rows_arrive(&rows, others, N, apart, NULL), STATUS_OK);
    assert_int_equal(worker_rows_leave(&rows, others, N, out, NULL), STATUS_OK);
    assert_int_equal(worker_rows_finish(&rows, NULL), STATUS_OK);
    assert_memory_equal(in, out, sizeof in);
    memory.free(memory.context, apart, sizeof in);
    memory.release(memory.context);
    worker_rows_destroy(&rows);
    world_close(&w);
}

static void test_worker_rows_take_the_direct_way(void **state)
{
    (void)state;
    rows_take_the_direct_way(&ON_CPU);
    rows_take_the_direct_way(&ON_GPU);
}

/* A slot that leaves and is filled again in between: the message has what was there before. */
static void test_worker_rows_keep_their_order(void **state)
{
    (void)state;
    static struct world w;
    float first[D], second[D], left[D], last[D];
    const int32_t slot = 77;
    struct worker_rows rows;
    world_open(&w, &OURO, DTYPE_F32, 1);
    assert_int_equal(worker_rows_create(&rows, w.replica, D, 100, NULL), STATUS_OK);
    fill_rows(first, 1, 1);
    fill_rows(second, 1, 2);
    assert_int_equal(worker_rows_arrive(&rows, &slot, 1, first, NULL), STATUS_OK);
    assert_int_equal(worker_rows_leave(&rows, &slot, 1, left, NULL), STATUS_OK);
    assert_int_equal(worker_rows_arrive(&rows, &slot, 1, second, NULL), STATUS_OK);
    assert_int_equal(worker_rows_leave(&rows, &slot, 1, last, NULL), STATUS_OK);
    assert_int_equal(worker_rows_finish(&rows, NULL), STATUS_OK);
    assert_int_equal(worker_rows_finish(&rows, NULL), STATUS_OK); /* nothing is noted any more */
    assert_memory_equal(left, first, sizeof left);
    assert_memory_equal(last, second, sizeof last);
    worker_rows_destroy(&rows);
    world_close(&w);
}

static void test_worker_rows_refuse_a_slot_outside_the_store(void **state)
{
    (void)state;
    static struct world w;
    float row[D] = {0};
    struct worker_rows rows;
    struct err err = {0};
    world_open(&w, &OURO, DTYPE_F32, 1);
    const int32_t slot = (int32_t)replica_get_geometry(w.replica)->n_slots;
    assert_int_equal(worker_rows_create(&rows, w.replica, D, 4, NULL), STATUS_OK);
    assert_int_equal(worker_rows_arrive(&rows, &slot, 1, row, NULL), STATUS_OK);
    assert_int_equal(worker_rows_finish(&rows, &err), STATUS_INTERNAL);
    assert_non_null(strstr(err.message, "outside the store"));
    worker_rows_destroy(&rows);
    world_close(&w);
}

static void test_replica_lends_memory_that_outlives_it(void **state)
{
    (void)state;
    static struct world w;
    struct transport_memory memory, again, device;
    void *early = NULL, *late = NULL, *rows = NULL;
    world_open(&w, &OURO, DTYPE_F32, 1);
    assert_int_equal(replica_lend_memory(w.replica, REPLICA_HOST_MEMORY, &memory, NULL), STATUS_OK);
    assert_int_equal(replica_lend_memory(w.replica, REPLICA_HOST_MEMORY, &again, NULL),
                     STATUS_INTERNAL);
    assert_int_equal(replica_lend_memory(w.replica, REPLICA_DEVICE_MEMORY, &device, NULL),
                     STATUS_OK);
    assert_int_equal(replica_lend_memory(w.replica, REPLICA_DEVICE_MEMORY, &again, NULL),
                     STATUS_INTERNAL);
    assert_int_equal(memory.alloc(memory.context, 4096, &early, NULL), STATUS_OK);
    world_close(&w);
    assert_int_equal(memory.alloc(memory.context, 1 << 16, &late, NULL), STATUS_OK);
    assert_int_equal((uintptr_t)late % 64, 0);
    memset(early, 1, 4096);
    memset(late, 2, 1 << 16);
    memory.free(memory.context, early, 4096);
    memory.free(memory.context, late, 1 << 16);
    memory.release(memory.context);
    assert_int_equal(device.alloc(device.context, 1 << 16, &rows, NULL), STATUS_OK);
    assert_int_equal((uintptr_t)rows % 64, 0);
    device.free(device.context, rows, 1 << 16);
    device.release(device.context); /* now the kernels go, as the sanitizer build checks */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worker_rows_come_and_go_in_lists_of_any_length),
        cmocka_unit_test(test_worker_rows_take_the_direct_way),
        cmocka_unit_test(test_worker_rows_keep_their_order),
        cmocka_unit_test(test_worker_rows_refuse_a_slot_outside_the_store),
        cmocka_unit_test(test_replica_lends_memory_that_outlives_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
