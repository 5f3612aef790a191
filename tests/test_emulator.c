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

/* ---- what ends the program ---------------------------------------------------------------------
 */

/* Runs what in a child, which shall abort with a message that has both texts. */
static void dies(void (*what)(void), const char *text, const char *other)
{
    int ends[2];
    char message[2000];
    size_t len = 0;
    ssize_t n;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        what();
        _exit(0);
    }
    close(ends[1]);
    while (len < sizeof message - 1 &&
           (n = read(ends[0], message + len, sizeof message - 1 - len)) > 0)
        len += (size_t)n;
    message[len] = '\0';
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!(WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0)))
        fail_msg("did not end: \"%s\"", message);
    if (strstr(message, text) == NULL || strstr(message, other) == NULL)
        fail_msg("expected \"%s\" and \"%s\" in: %s", text, other, message);
}

static void end_before_the_barrier(void)
{
    ok(emulator_try_divergence(EMULATOR_ENDS, NULL));
}
static void meet_elsewhere(void)
{
    ok(emulator_try_divergence(EMULATOR_ELSEWHERE, NULL));
}
static void miss_a_lane(void)
{
    ok(emulator_try_divergence(EMULATOR_LANE_MISSING, NULL));
}

static void test_emulator_finds_barriers_that_not_all_threads_reach(void **state)
{
    (void)state;
    for (int o = 0; o < 2; o++) {
        emulator_set_order(orders[o]);
        dies(end_before_the_barrier, "kernel divergence", "while thread 0 has ended");
        dies(meet_elsewhere, "kernel divergence", "while thread");
        dies(miss_a_lane, "kernel divergence", "ballot");
    }
}

static unsigned char *odd_base;

static void load_unaligned(void)
{
    void *out = device_alloc(8);
    ok(emulator_try_load(out, odd_base, 4, NULL));
}
static void load_behind_the_end(void)
{
    void *out = device_alloc(8);
    ok(emulator_try_load(out, odd_base, 64, NULL));
}
static void store_behind_the_end(void)
{
    int32_t *values = device_alloc(62 * sizeof *values);
    ok(emulator_try_add(values, 64, 1, NULL));
}
static void store_behind_shared_memory(void)
{
    void *out = device_alloc(8);
    ok(emulator_try_shared(out, 17, 64, false, NULL));
}
static void pass_host_memory(void)
{
    int32_t values[64] = {0};
    ok(emulator_try_add(values, 64, 1, NULL));
}
static void read_on_the_host(void)
{
    volatile unsigned char *p = odd_base;
    exit(p[0] == 0 ? 0 : 1);
}

/* Device memory is out of the host's reach, whatever its address looks like. */
static void test_emulator_keeps_device_memory_from_the_host(void **state)
{
    (void)state;
    odd_base = device_alloc(64);
    int status;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL)
            _exit(0);
        signal(SIGSEGV, SIG_DFL);
        read_on_the_host();
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    ok(cudaFree(odd_base));
}

static void test_emulator_finds_wild_addresses(void **state)
{
    (void)state;
    emulator_set_order("forward");
    odd_base = device_alloc(64);
    dies(load_unaligned, "kernel load", "16-byte aligned");
    dies(load_behind_the_end, "kernel load", "not in one piece of device memory");
    /* The address sanitizer says it in its own words, at the very store. */
    dies(store_behind_the_end, "add", "");
    dies(store_behind_shared_memory, "shared", "");
    dies(pass_host_memory, "kernel (add<2 * 32>)", "neither device nor pinned memory");
    ok(cudaFree(odd_base));
}

/* ---- warps -------------------------------------------------------------------------------------
 */

static void test_emulator_warp_exchanges(void **state)
{
    (void)state;
    float in[32], out[192];
    for (int i = 0; i < 32; i++)
        in[i] = (float)((i * 37 + 11) % 64) - 31.5f;
    float sum = 0.0f, most = in[0];
    uint32_t bits = 0, ballot = 0;
    for (int i = 0; i < 32; i++) {
        sum += in[i]; /* exact: halves of small integers */
        most = fmaxf(most, in[i]);
        bits |= (uint32_t)(in[i] > 0.0f) << i;
    }
    for (int o = 0; o < N_ORDERS; o++) {
        emulator_set_order(orders[o]);
        void *device_in = to_device(in, sizeof in), *device_out = device_alloc(sizeof out);
        void *device_ballot = device_alloc(sizeof ballot);
        ok(emulator_try_warp(device_out, device_ballot, device_in, NULL));
        to_host(out, device_out, sizeof out);
        to_host(&ballot, device_ballot, sizeof ballot);
        ok(cudaFree(device_in));
        assert_int_equal(ballot, bits);
        for (int i = 0; i < 32; i++) {
            assert_true(out[i] == in[i ^ 5] && out[32 + i] == in[7]);
            assert_true(out[64 + i] == sum && out[96 + i] == most);
            assert_true(out[128 + i] == in[i < 3 ? i : i - 3]);
            assert_true(out[160 + i] == in[i > 28 ? i : i + 3]);
        }
    }
}

/* ---- bf16 and tensor cores ---------------------------------------------------------------------
 */

static float bf16_value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void test_emulator_rounds_to_bf16(void **state)
{
    (void)state;
    static const struct {
        float in;
        uint16_t out;
    } table[] = {
        {1.0f, 0x3f80},          {-2.5f, 0xc020},
        {0.0f, 0x0000},          {0x1.01p0f, 0x3f80},       /* a tie goes to the even one */
        {0x1.03p0f, 0x3f82},     {0x1.010002p0f, 0x3f81},   /* above the tie */
        {0x1.fffffep0f, 0x4000}, {0x1.fffffep127f, 0x7f80}, /* up to infinity */
        {-INFINITY, 0xff80},     {NAN, 0x7fff},
    };
    enum { N = sizeof table / sizeof table[0] };
    float in[N], back[N];
    uint16_t out[N];
    for (int i = 0; i < N; i++)
        in[i] = table[i].in;
    void *device_in = to_device(in, sizeof in), *device_out = device_alloc(sizeof out);
    void *device_back = device_alloc(sizeof back);
    ok(emulator_try_bf16(device_out, device_back, device_in, N, NULL));
    to_host(out, device_out, sizeof out);
    to_host(back, device_back, sizeof back);
    ok(cudaFree(device_in));
    for (int i = 0; i < N; i++) {
        assert_int_equal(out[i], table[i].out);
        if (isnan(in[i]))
            assert_true(isnan(back[i]));
        else
            assert_true(back[i] == bf16_value(out[i]));
    }
}

/* The fragments of emulator_warp.c are written down from the PTX ISA's tables, those of the kernel
 * (where a lane stores its four sums, which rows it gives ldmatrix) from its pictures: they meet
 * only in a product that has to be right. Every entry of A and B is told apart. */
static void test_emulator_multiplies_matrices(void **state)
{
    (void)state;
    uint16_t a[256], b[128], b_by_column[128];
    float d[128];
    for (int round = 0; round < 8; round++) {
        emulator_set_order(orders[round % N_ORDERS]);
        for (int i = 0; i < 256; i++)
            a[i] = (uint16_t)(0x3f00 + (i * 73 + round * 31) % 256 + (i % 3 == 0 ? 0x8000 : 0));
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++)
                b_by_column[16 * j + k] = b[8 * k + j] =
                    (uint16_t)(0x3e80 + (k * 8 + j) * 3 + round + (j % 2 == 0 ? 0x8000 : 0));
        bool is_by_column = round % 2 == 1;
        void *device_a = to_device(a, sizeof a);
        void *device_b = to_device(is_by_column ? b_by_column : b, sizeof b);
        void *device_d = device_alloc(sizeof d);
        ok(emulator_try_mma(device_d, device_a, device_b, is_by_column, NULL));
        to_host(d, device_d, sizeof d);
        ok(cudaFree(device_a));
        ok(cudaFree(device_b));
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 8; j++) {
                double sum = 0.0;
                for (int k = 0; k < 16; k++)
                    sum += (double)bf16_value(a[16 * i + k]) * (double)bf16_value(b[8 * k + j]);
                assert_true(fabs(sum - (double)d[8 * i + j]) <= 1e-5 * fabs(sum) + 1e-6);
            }
    }
}

/* ---- asynchronous copies, atomics, shared memory ------------------------------------------------
 */

static void test_emulator_copies_arrive_at_the_wait(void **state)
{
    (void)state;
    uint32_t in[256], out[256];
    for (int i = 0; i < 256; i++)
        in[i] = (uint32_t)i + 1;
    for (int has_wait = 0; has_wait < 2; has_wait++) {
        void *device_in = to_device(in, sizeof in), *device_out = device_alloc(sizeof out);
        ok(emulator_try_copy(device_out, device_in, 200, has_wait == 1, NULL));
        to_host(out, device_out, sizeof out);
        ok(cudaFree(device_in));
        for (int i = 0; i < 256; i++) {
            uint32_t expected = i < 200 ? in[i] : 0;
            assert_int_equal(out[i], has_wait == 0 && i < 128 ? UINT32_MAX : expected);
        }
    }
}

static void test_emulator_atomics_count(void **state)
{
    (void)state;
    for (int o = 0; o < N_ORDERS; o++) {
        emulator_set_order(orders[o]);
        int32_t i = -5;
        uint32_t u = 3;
        uint64_t l = 1;
        float f = 0.25f;
        void *device_i = to_device(&i, sizeof i), *device_u = to_device(&u, sizeof u);
        void *device_l = to_device(&l, sizeof l), *device_f = to_device(&f, sizeof f);
        ok(emulator_try_atomics(device_i, device_u, device_l, device_f, 3, NULL));
        to_host(&i, device_i, sizeof i);
        to_host(&u, device_u, sizeof u);
        to_host(&l, device_l, sizeof l);
        to_host(&f, device_f, sizeof f);
        assert_int_equal(i, 63 * 64 / 2);
        assert_int_equal(u, 3 + 3 * 64);
        const uint64_t wide = ((uint64_t)(63 * 64 / 2) << 32) + 64 * (uint64_t)0xc0000001u;
        assert_true(l == 1 + ((uint64_t)3 * 64 << 33) + 3 * wide && f == 0.25f + 96.0f);
    }
}

static void test_emulator_limits_launches_as_the_chip_does(void **state)
{
    (void)state;
    uint32_t *out = device_alloc(64), host[2];
    /* 48 KB at once, more when asked for, 227 KB at most; every block begins with poison. */
    ok(emulator_try_shared(out, 16, 49152, false, NULL));
    assert_int_equal(emulator_try_shared(out, 16, 49153, false, NULL), cudaErrorInvalidValue);
    ok(emulator_try_shared(out, 58112, 232448, true, NULL));
    assert_int_equal(emulator_try_shared(out, 16, 232449, true, NULL), cudaErrorInvalidValue);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    ok(cudaMemcpy(host, out, sizeof host, cudaMemcpyDeviceToHost));
    assert_int_equal(host[0], UINT32_MAX);
    assert_int_equal(host[1], 58111);
    const dim3 one = {1, 1, 1}, large = {32, 33, 1}, none = {0, 1, 1};
    assert_int_equal(emulator_try_indices(out, one, large, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(emulator_try_indices(out, none, one, NULL), cudaErrorInvalidConfiguration);
    assert_int_equal(cudaGetLastError(), cudaSuccess); /* a launch has told it already */
    ok(cudaFree(out));
    assert_int_equal(emulator_n_live(), 0);
}

int main(void)
{
    emulator_set_lazy(false);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_emulator_numbers_threads_as_cuda_does),
        cmocka_unit_test(test_emulator_barriers_order_shared_memory),
        cmocka_unit_test(test_emulator_orders_show_a_missing_barrier),
        cmocka_unit_test(test_emulator_finds_barriers_that_not_all_threads_reach),
        cmocka_unit_test(test_emulator_finds_wild_addresses),
        cmocka_unit_test(test_emulator_keeps_device_memory_from_the_host),
        cmocka_unit_test(test_emulator_warp_exchanges),
        cmocka_unit_test(test_emulator_rounds_to_bf16),
        cmocka_unit_test(test_emulator_multiplies_matrices),
        cmocka_unit_test(test_emulator_copies_arrive_at_the_wait),
        cmocka_unit_test(test_emulator_atomics_count),
        cmocka_unit_test(test_emulator_limits_launches_as_the_chip_does),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
