/* emulator: kernels run on the CPU as CUDA says they do, and what they do wrong is found. */
#include "tests/unit.h"

#include "tests/emulator/emulator.h"
#include "tests/emulator/emulator_kernels.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const orders[] = {"forward", "reverse", "random:1", "random:77"};
enum { N_ORDERS = 4 };

static void ok(cudaError_t code)
{
    if (code != cudaSuccess)
        fail_msg("%s", cudaGetErrorName(code));
}

static void *device_alloc(size_t len)
{
    void *p = NULL;
    ok(cudaMalloc(&p, len));
    return p;
}

static void *to_device(const void *host, size_t len)
{
    void *p = device_alloc(len);
    ok(cudaMemcpy(p, host, len, cudaMemcpyHostToDevice));
    return p;
}

static void to_host(void *host, void *device, size_t len)
{
    ok(cudaMemcpy(host, device, len, cudaMemcpyDeviceToHost));
    ok(cudaFree(device));
}

/* ---- blocks and threads ------------------------------------------------------------------------
 */

static void test_emulator_numbers_threads_as_cuda_does(void **state)
{
    (void)state;
    const dim3 grid = {3, 2, 2}, block = {5, 3, 2};
    enum { N = 12 * 30 };
    uint32_t seen[N][6];
    for (int o = 0; o < N_ORDERS; o++) {
        emulator_set_order(orders[o]);
        void *out = device_alloc(sizeof seen);
        ok(emulator_try_indices(out, grid, block, NULL));
        to_host(seen, out, sizeof seen);
        for (uint32_t i = 0; i < N; i++) {
            uint32_t t = i % 30, b = i / 30;
            uint32_t expected[6] = {t % 5, t / 5 % 3, t / 15, b % 3, b / 3 % 2, b / 6};
            assert_memory_equal(seen[i], expected, sizeof expected);
        }
    }
}

static void reverse(int32_t *values, const char *order, bool has_barrier)
{
    enum { N = 96 };
    emulator_set_order(order);
    void *out = device_alloc(2 * N * sizeof *values);
    ok(emulator_try_reverse(out, 2, N, has_barrier, NULL));
    to_host(values, out, 2 * N * sizeof *values);
}

static void test_emulator_barriers_order_shared_memory(void **state)
{
    (void)state;
    int32_t values[192];
    for (int o = 0; o < N_ORDERS; o++) {
        reverse(values, orders[o], true);
        for (int i = 0; i < 192; i++)
            assert_int_equal(values[i], 95 - i % 96);
    }
}

/* The reason for orders: the same kernel without its barrier gives another answer in each. */
static void test_emulator_orders_show_a_missing_barrier(void **state)
{
    (void)state;
    int32_t answers[N_ORDERS][192];
    for (int o = 0; o < N_ORDERS; o++)
        reverse(answers[o], orders[o], false);
    for (int o = 1; o < N_ORDERS; o++)
        assert_memory_not_equal(answers[0], answers[o], sizeof answers[0]);
    /* What was not yet written is poison. */
    assert_int_equal(answers[0][0], -1);
    assert_int_equal(answers[0][95], 0);
    assert_int_equal(answers[1][0], 95);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_emulator_numbers_threads_as_cuda_does),
        cmocka_unit_test(test_emulator_barriers_order_shared_memory),
        cmocka_unit_test(test_emulator_orders_show_a_missing_barrier),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
