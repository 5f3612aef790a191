/* Gate, exit rule, the list of rows that exit, their head rows, and top-k on the device, each
 * against a plain version on the host. On a GPU, or on the emulated one. */
#include "tests/cuda_world.h"

#include "kernels/cuda_finish.h"
#include "kernels/exit_rule.h"

#include <math.h>

enum { MAX_LIVE = 700, MAX_D = 200, MAX_HEADS = 720, POISON = 0xa5, ARENA_BYTES = 1 << 21 };

struct fixture {
    uint64_t random;
    int n, d; /* live rows; twice as many rows */
    struct sequence_params params[MAX_LIVE];
    struct kernels_live live[MAX_LIVE];
    float *y; /* [2 * MAX_LIVE, MAX_D] */
    float w[MAX_D], bias;
    unsigned char *device;
    size_t used_bytes;
    struct kernels_outcome *outcomes;
    cudaStream_t stream;
};

static void check(cudaError_t code)
{
    if (code != cudaSuccess)
        fail_msg("%s", cudaGetErrorString(code));
}

static double next(struct fixture *f)
{
    f->random = f->random * 6364136223846793005u + 1442695040888963407u;
    return (double)(f->random >> 11) / 9007199254740992.0;
}
static int below(struct fixture *f, int n)
{
    return (int)(next(f) * n);
}
static float centred(struct fixture *f)
{
    return (float)(2 * next(f) - 1);
}

/* ---- device memory: arrays one behind the other, poisoned between ---- */

static void arena_clear(struct fixture *f)
{
    f->used_bytes = 0;
    check(cudaMemsetAsync(f->device, POISON, ARENA_BYTES, f->stream));
}
/* from NULL: poison. */
static void *arena_put(struct fixture *f, const void *from, size_t len_bytes)
{
    void *at = f->device + f->used_bytes;
    f->used_bytes += (len_bytes + 15) / 16 * 16 + 64;
    assert_true(f->used_bytes <= ARENA_BYTES);
    if (from != NULL && len_bytes > 0) {
        check(cudaMemcpyAsync(at, from, len_bytes, cudaMemcpyHostToDevice, f->stream));
        check(cudaStreamSynchronize(f->stream));
    }
    return at;
}
/* Copies an array back and looks at the poison behind it. */
static void arena_get(struct fixture *f, void *to, const void *from, size_t len_bytes)
{
    unsigned char guard[64];
    check(cudaMemcpyAsync(to, from, len_bytes, cudaMemcpyDeviceToHost, f->stream));
    check(cudaMemcpyAsync(guard, (const char *)from + len_bytes, sizeof guard,
                          cudaMemcpyDeviceToHost, f->stream));
    check(cudaStreamSynchronize(f->stream));
    for (size_t i = 0; i < sizeof guard; i++)
        assert_int_equal(guard[i], POISON);
}

/* ---- random live rows ---- */

static void fill_live(struct fixture *f, int n, int d)
{
    f->n = n;
    f->d = d;
    f->bias = centred(f);
    for (int j = 0; j < d; j++)
        f->w[j] = 4 * centred(f) / sqrtf((float)d);
    for (int i = 0; i < 2 * n * d; i++)
        f->y[i] = 2 * centred(f);
    for (int i = 0; i < n; i++) {
        struct sequence_params *p = &f->params[i];
        sequence_params_init(p);
        p->max_loops = 1 + (uint32_t)below(f, 6);
        p->min_loops = 1 + (uint32_t)below(f, (int)p->max_loops);
        p->exit_mode = below(f, 4) ? EXIT_MODE_EXACT : EXIT_MODE_FULL;
        p->exit_threshold = below(f, 5) ? (float)(0.05 + 0.95 * next(f)) : 1;
        p->sampling.seed = (uint64_t)below(f, 1 << 30);
        if (below(f, 4) == 0) {
            p->n_force_exits = 3;
            memcpy(p->force_exits, (const float[]){0.25f, 0.25f, 0.5f}, 3 * sizeof(float));
        }
        float survival = (float)next(f);
        f->live[i] = (struct kernels_live){.row = 2 * n - 1 - 2 * i, /* not in order, not all */
                                           .position = (uint32_t)below(f, 5000),
                                           .loop = 1 + (uint32_t)below(f, (int)p->max_loops),
                                           .exit = {.survival = survival, .cdf = 1 - survival},
                                           .params = p};
    }
}

struct result {
    int32_t heads[MAX_LIVE], n_heads;
    uint16_t head_rows[MAX_HEADS * 8];
};

/* Gate, exit rule, list, and with max_heads * d small enough the head rows. */
static void run(struct fixture *f, bool has_gate, int max_heads, struct result *r)
{
    static struct cuda_live live[MAX_LIVE];
    size_t n = (size_t)f->n, n_rows_bytes = (size_t)max_heads * (size_t)f->d * sizeof(uint16_t);
    arena_clear(f);
    for (int i = 0; i < f->n; i++)
        live[i] = cuda_finish_live(&f->live[i], -1);
    struct cuda_batch batch = {.n_rows = 2 * f->n,
                               .n_live = f->n,
                               .live = arena_put(f, live, n * sizeof *live),
                               .outcomes = f->outcomes};
    struct cuda_finish_device device = {.is_exit = arena_put(f, NULL, n * sizeof(int32_t)),
                                        .heads = arena_put(f, NULL, n * sizeof(int32_t)),
                                        .n_heads = arena_put(f, NULL, sizeof(int32_t))};
    const struct cuda_batch *on_device = arena_put(f, &batch, sizeof batch);
    const float *y = arena_put(f, f->y, 2 * n * (size_t)f->d * sizeof(float));
    const float *w = arena_put(f, f->w, (size_t)f->d * sizeof(float));
    const float *bias = arena_put(f, &f->bias, sizeof f->bias);
    uint16_t *head_rows = arena_put(f, NULL, n_rows_bytes);
    memset(f->outcomes, POISON, (MAX_LIVE + 1) * sizeof *f->outcomes);
    check(cuda_finish_launch_gate(on_device, &device, y, f->d, has_gate ? w : NULL,
                                  has_gate ? bias : NULL, 1 + below(f, 300), f->stream));
    check(cuda_finish_launch_list(on_device, &device, max_heads, f->stream));
    if (max_heads > 0)
        check(cuda_finish_launch_gather(on_device, &device, head_rows, y, f->d, max_heads,
                                        f->stream));
    arena_get(f, &r->n_heads, device.n_heads, sizeof r->n_heads);
    assert_in_range(r->n_heads, 0, f->n);
    if (r->n_heads > 0) {
        check(cudaMemcpyAsync(r->heads, device.heads, (size_t)r->n_heads * sizeof(int32_t),
                              cudaMemcpyDeviceToHost, f->stream));
        check(cudaStreamSynchronize(f->stream));
    }
    if (n_rows_bytes > 0 && n_rows_bytes <= sizeof r->head_rows)
        arena_get(f, r->head_rows, head_rows, n_rows_bytes);
    const unsigned char *behind = (const void *)&f->outcomes[f->n];
    for (size_t i = 0; i < sizeof *f->outcomes; i++)
        assert_int_equal(behind[i], POISON);
}

/* lambda in double, the sum's rounding allowed for; then the exit rule's bits. */
static void assert_live(const struct fixture *f, int i)
{
    const struct kernels_live *live = &f->live[i];
    const struct kernels_outcome *o = &f->outcomes[i];
    const float *y = f->y + (size_t)live->row * (size_t)f->d;
    double sum = (double)f->bias, size = fabs((double)f->bias);
    for (int j = 0; j < f->d; j++) {
        sum += (double)f->w[j] * (double)y[j];
        size += fabs((double)f->w[j] * (double)y[j]);
    }
    assert_true(fabs((double)o->lambda - 1 / (1 + exp(-sum))) <= 1e-7 + 1e-6 * size);
    struct exit_state want = live->exit;
    bool exits = exit_rule_step(live->params, live->loop, live->position, o->lambda, &want);
    assert_int_equal(o->failure, STATUS_OK);
    assert_memory_equal(&o->exit, &want, sizeof want);
    assert_int_equal(o->is_exit, exits);
    assert_false(o->has_logits);
}

static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* ---- tests ---- */

static void test_cuda_finish_exit_rule_bit_for_bit(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    const int sizes[] = {1, 5, 32, 257, MAX_LIVE}, ds[] = {MAX_D, 1, 129, 64, 7};
    f->random = 1;
    for (int round = 0; round < 10; round++) {
        fill_live(f, sizes[round % 5], ds[round % 5]);
        run(f, true, f->n, &r);
        /* Again with thresholds at, or next to, the cdf that came out. */
        for (int i = 0; i < f->n && round % 2 == 1; i++) {
            float cdf = f->outcomes[i].exit.cdf;
            const float edges[] = {cdf, nextafterf(cdf, 2), nextafterf(cdf, 0)};
            f->params[i].exit_threshold = edges[below(f, 3)];
        }
        run(f, true, f->n, &r);
        int n_exits = 0;
        for (int i = 0; i < f->n; i++) {
            assert_live(f, i);
            if (f->outcomes[i].is_exit)
                assert_int_equal(r.heads[n_exits++], i); /* in the batch's order */
        }
        assert_int_equal(r.n_heads, n_exits);
    }
}

static void test_cuda_finish_without_a_gate_lambda_is_zero(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    f->random = 2;
    fill_live(f, 40, 16);
    run(f, false, f->n, &r);
    for (int i = 0; i < f->n; i++) {
        struct exit_state want = f->live[i].exit;
        const struct kernels_live *live = &f->live[i];
        assert_true(f->outcomes[i].lambda == 0);
        assert_int_equal(f->outcomes[i].is_exit,
                         exit_rule_step(live->params, live->loop, live->position, 0, &want));
        assert_memory_equal(&f->outcomes[i].exit, &want, sizeof want);
    }
}

static void test_cuda_finish_a_broken_gate_fails_its_row_alone(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    f->random = 3;
    fill_live(f, 60, 20);
    for (int j = 0; j < f->d; j++)
        f->w[j] = 1; /* opposite infinities below make a NaN */
    for (int i = 0; i < f->n; i += 3) {
        float *y = f->y + f->live[i].row * f->d;
        y[3] = bad[i / 3 % 3];
        y[17] = -y[3];
    }
    run(f, true, f->n, &r);
    for (int i = 0; i < f->n; i++) {
        if (i % 3 != 0) {
            assert_live(f, i);
            continue;
        }
        assert_int_equal(f->outcomes[i].failure, STATUS_CORRUPT);
        assert_false(f->outcomes[i].is_exit);
        assert_memory_equal(&f->outcomes[i].exit, &f->live[i].exit, sizeof f->live[i].exit);
    }
    for (int i = 0; i < r.n_heads; i++)
        assert_true(r.heads[i] % 3 != 0);
}

static void test_cuda_finish_head_rows_are_the_exits_then_zeros(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    f->random = 4;
    for (int round = 0; round < 4; round++) {
        fill_live(f, round == 3 ? MAX_LIVE : 50, 7);
        int max_heads = f->n + round * 6;
        run(f, true, max_heads, &r);
        assert_in_range(r.n_heads, 1, f->n - 1);
        for (int i = 0; i < max_heads; i++)
            for (int j = 0; j < f->d; j++) {
                uint16_t want = 0;
                if (i < r.n_heads)
                    want = bf16_of(f->y[f->live[r.heads[i]].row * f->d + j]);
                assert_int_equal(r.head_rows[i * f->d + j], want);
            }
    }
}

static void test_cuda_finish_exits_that_were_not_foreseen_fail(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    f->random = 5;
    for (int max_heads = 0; max_heads <= 20; max_heads += 4) {
        int n_exits = 0;
        fill_live(f, 300, 4);
        run(f, true, max_heads, &r);
        for (int i = 0; i < f->n; i++) {
            const struct kernels_live *live = &f->live[i];
            const struct kernels_outcome *o = &f->outcomes[i];
            struct exit_state exit = live->exit;
            if (!exit_rule_step(live->params, live->loop, live->position, o->lambda, &exit))
                continue;
            assert_int_equal(o->failure, n_exits < max_heads ? STATUS_OK : STATUS_INTERNAL);
            assert_int_equal(o->is_exit, n_exits < max_heads);
            if (n_exits < max_heads)
                assert_int_equal(r.heads[n_exits], i);
            n_exits++;
        }
        assert_true(n_exits > max_heads);
        assert_int_equal(r.n_heads, max_heads);
    }
}

/* kernels_gate gives the finish's bits, wherever a row stands. */
static void test_cuda_gate_has_the_bits_of_the_finish(void **state)
{
    struct fixture *f = *state;
    static struct result r;
    static float lambda[MAX_LIVE];
    f->random = 6;
    fill_live(f, 300, MAX_D);
    run(f, true, f->n, &r);
    arena_clear(f);
    const float *y = arena_put(f, f->y, 2 * (size_t)f->n * (size_t)f->d * sizeof(float));
    const float *w = arena_put(f, f->w, (size_t)f->d * sizeof(float));
    const float *bias = arena_put(f, &f->bias, sizeof f->bias);
    float *out = arena_put(f, NULL, (size_t)f->n * sizeof(float));
    for (int first = 0; first < f->n; first += CUDA_GATE_ROWS) {
        struct cuda_gate_rows rows = {{0}};
        int n = f->n - first < CUDA_GATE_ROWS ? f->n - first : CUDA_GATE_ROWS;
        for (int i = 0; i < n; i++)
            rows.rows[i] = f->live[f->n - 1 - first - i].row;
        check(cuda_gate_launch(out + first, y, &rows, n, f->d, w, bias, f->stream));
    }
    arena_get(f, lambda, out, (size_t)f->n * sizeof(float));
    for (int i = 0; i < f->n; i++)
        assert_memory_equal(&lambda[i], &f->outcomes[f->n - 1 - i].lambda, sizeof(float));
}

/* Whether (a, i) comes before (b, j). */
static bool is_before(float a, int i, float b, int j)
{
    if (isnan(a) || isnan(b))
        return isnan(a) && isnan(b) ? i < j : isnan(b);
    return a > b || (a == b && i < j);
}

static void test_cuda_top_k_orders_ties_and_nan(void **state)
{
    struct fixture *f = *state;
    static float logits[3 * 1300], values[3 * 1300];
    static int32_t ids[3 * 1300];
    static const struct {
        int vocab, top, n;
    } table[] = {{1, 1, 2},     {5, 5, 3},   {49, 1, 3},   {49, 20, 3},
                 {300, 300, 2}, {700, 3, 1}, {1300, 1, 2}, {1300, 1300, 2}};
    const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f, 1.0f};
    f->random = 7;
    for (size_t c = 0; c < sizeof table / sizeof table[0]; c++) {
        int vocab = table[c].vocab, top = table[c].top, n = table[c].n;
        for (int i = 0; i < n * vocab; i++)
            logits[i] = below(f, 3) ? odd[below(f, 8)] : 3 * centred(f);
        size_t n_out = (size_t)n * (size_t)top;
        arena_clear(f);
        const float *in = arena_put(f, logits, (size_t)n * (size_t)vocab * sizeof(float));
        int32_t *ids_out = arena_put(f, NULL, n_out * sizeof(int32_t));
        float *values_out = arena_put(f, NULL, n_out * sizeof(float));
        check(cuda_top_k_launch(ids_out, values_out, in, n, vocab, top, f->stream));
        arena_get(f, ids, ids_out, n_out * sizeof(int32_t));
        arena_get(f, values, values_out, n_out * sizeof(float));
        for (int row = 0; row < n; row++)
            for (int id = 0; id < vocab; id++) {
                const float *x = logits + row * vocab;
                int place = 0;
                for (int j = 0; j < vocab; j++)
                    place += is_before(x[j], j, x[id], id);
                if (place >= top)
                    continue;
                assert_int_equal(ids[row * top + place], id);
                assert_memory_equal(&values[row * top + place], &x[id], sizeof(float));
            }
    }
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->y = malloc(sizeof(float) * 2 * MAX_LIVE * MAX_D);
    assert_non_null(f->y);
    check(cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking));
    check(cudaMalloc((void **)&f->device, ARENA_BYTES));
    check(cudaHostAlloc((void **)&f->outcomes, (MAX_LIVE + 1) * sizeof *f->outcomes,
                        cudaHostAllocDefault));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    check(cudaFree(f->device));
    check(cudaFreeHost(f->outcomes));
    check(cudaStreamDestroy(f->stream));
    free(f->y);
    free(f);
    return 0;
}

#define WITH_FIXTURE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    if (!cuda_world_is_there("test_cuda_finish"))
        return 0;
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(test_cuda_finish_exit_rule_bit_for_bit),
        WITH_FIXTURE(test_cuda_finish_without_a_gate_lambda_is_zero),
        WITH_FIXTURE(test_cuda_finish_a_broken_gate_fails_its_row_alone),
        WITH_FIXTURE(test_cuda_finish_head_rows_are_the_exits_then_zeros),
        WITH_FIXTURE(test_cuda_finish_exits_that_were_not_foreseen_fail),
        WITH_FIXTURE(test_cuda_gate_has_the_bits_of_the_finish),
        WITH_FIXTURE(test_cuda_top_k_orders_ties_and_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
