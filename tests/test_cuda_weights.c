/* Weights on the CUDA backend: the checkpoint's values in the device's types, all or an error. */
#include "tests/cuda_world.h"

#include <sys/mman.h>
#include <unistd.h>

/* A weight of random values (finite, of all sizes) that begins at an odd address, as tensors in a
 * file do. */
struct source {
    unsigned char *memory;
    struct weight weight;
};

static struct source source_create(int rows, int cols, enum dtype dtype, uint64_t seed)
{
    const size_t n = (size_t)rows * (size_t)cols;
    struct source s = {.memory = malloc(n * dtype_bytes(dtype) + 1)};
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)cuda_world_random(&seed);
        if (dtype == DTYPE_F32 && (bits & 0x7f800000u) == 0x7f800000u)
            bits ^= 0x40000000u;
        if (dtype == DTYPE_F16 && (bits & 0x7c00u) == 0x7c00u)
            bits ^= 0x4000u;
        if (dtype == DTYPE_BF16 && (bits & 0x7f80u) == 0x7f80u)
            bits ^= 0x4000u;
        memcpy(s.memory + 1 + i * dtype_bytes(dtype), &bits, dtype_bytes(dtype));
    }
    s.weight = (struct weight){.data = s.memory + 1, .dtype = dtype, .rows = rows, .cols = cols};
    return s;
}

static float source_at(const struct weight *w, size_t i)
{
    const unsigned char *at = (const unsigned char *)w->data + i * dtype_bytes(w->dtype);
    uint16_t half;
    float f;
    memcpy(&half, at, sizeof half);
    memcpy(&f, at, w->dtype == DTYPE_F32 ? sizeof f : sizeof half);
    return w->dtype == DTYPE_F32    ? f
           : w->dtype == DTYPE_BF16 ? dtype_from_bf16(half)
                                    : dtype_from_f16(half);
}

static void expect_weight(struct kernels *k, const struct kernels_weight *got,
                          const struct weight *want)
{
    struct kernels_stream *s = cuda_world_stream(k);
    struct err err = {0};
    const size_t n = (size_t)want->rows * (size_t)want->cols;
    assert_int_equal(got->rows, want->rows);
    assert_int_equal(got->cols, want->cols);
    assert_int_equal(got->dtype, want->rows == 1 ? DTYPE_F32 : DTYPE_BF16);
    unsigned char *data = malloc(n * dtype_bytes(got->dtype));
    cuda_must(kernels_download(s, data, got->data, n * dtype_bytes(got->dtype), &err), &err);
    cuda_must(kernels_stream_sync(s, &err), &err);
    for (size_t i = 0; i < n; i++) {
        float f = source_at(want, i);
        uint16_t half = dtype_to_bf16(f);
        if (memcmp(data + i * dtype_bytes(got->dtype),
                   got->dtype == DTYPE_F32 ? (void *)&f : (void *)&half,
                   dtype_bytes(got->dtype)) != 0)
            fail_msg("element %zu of [%d, %d] %s differs from %g", i, want->rows, want->cols,
                     dtype_name(want->dtype), (double)f);
    }
    free(data);
    kernels_stream_destroy(s);
}

static void test_cuda_weights_have_the_devices_types(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    enum { N = 15 };
    struct source sources[N];
    struct kernels_weight weights[N] = {0};
    for (int i = 0; i < N; i++) {
        /* Sizes below, at and above the steps of the conversion. */
        const int cols[] = {1, 3, 4095, 4096, 10001};
        sources[i] =
            source_create(i < 6 ? 1 : 2 + i, cols[i % 5], (enum dtype)(i % 3), (uint64_t)(100 + i));
        cuda_must(kernels_weight_load(k, &sources[i].weight, &weights[i], &err), &err);
    }
    cuda_must(kernels_weights_ready(k, &err), &err);
    for (int i = 0; i < N; i++) {
        expect_weight(k, &weights[i], &sources[i].weight);
        assert_int_equal((uintptr_t)weights[i].data % 256, 0);
    }
    for (int i = 0; i < N; i++) {
        kernels_weight_unload(k, &weights[i]);
        free(sources[i].memory);
    }
    kernels_destroy(k);
}

/* Longer than a piece of the staging: several readers send parts of one matrix. */
static void test_cuda_weights_longer_than_a_piece(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source large[2] = {source_create(1100, 8191, DTYPE_BF16, 1),
                              source_create(1100, 8191, DTYPE_F32, 2)};
    struct kernels_weight weights[2] = {0};
    for (int i = 0; i < 2; i++)
        cuda_must(kernels_weight_load(k, &large[i].weight, &weights[i], &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    uint64_t len_bytes = 0;
    double seconds = 0.0;
    cuda_weights_pace((struct cuda_kernels *)k, &len_bytes, &seconds);
    assert_int_equal(len_bytes, 2ull * 1100 * 8191 * 2);
    assert_true(seconds > 0.0);
    for (int i = 0; i < 2; i++) {
        expect_weight(k, &weights[i], &large[i].weight);
        free(large[i].memory);
        kernels_weight_unload(k, &weights[i]);
    }
    kernels_destroy(k);
}

static void test_cuda_weights_joined_lie_back_to_back(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source q = source_create(48, 24, DTYPE_BF16, 3),
                  key = source_create(16, 24, DTYPE_F32, 4),
                  v = source_create(16, 24, DTYPE_F16, 5);
    const struct weight *joined[] = {&q.weight, &key.weight, &v.weight};
    struct kernels_weight weights[3] = {0};
    cuda_must(kernels_weight_load_joined(k, joined, 3, weights, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    const unsigned char *at = weights[0].data;
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(weights[i].data, at);
        at += (size_t)weights[i].rows * (size_t)weights[i].cols * 2;
        expect_weight(k, &weights[i], joined[i]);
    }
    for (int i = 0; i < 3; i++)
        kernels_weight_unload(k, &weights[i]);
    free(q.memory);
    free(key.memory);
    free(v.memory);
    kernels_destroy(k);
}

/* A tied head costs nothing more, and outlives the embedding it shares. */
static void test_cuda_weights_tied_are_shared(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source embed = source_create(100, 30, DTYPE_F32, 6);
    struct kernels_weight first = {0}, second = {0};
    cuda_must(kernels_weight_load(k, &embed.weight, &first, &err), &err);
    cuda_must(kernels_weight_load(k, &embed.weight, &second, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    assert_ptr_equal(first.data, second.data);
    kernels_weight_unload(k, &first);
    expect_weight(k, &second, &embed.weight);
    kernels_weight_unload(k, &second);
    /* Once all is over, the same bytes are a new weight: another checkpoint may lie there. */
    struct source other = source_create(100, 30, DTYPE_F32, 7);
    memcpy(embed.memory, other.memory, 1 + 100 * 30 * 4);
    cuda_must(kernels_weight_load(k, &embed.weight, &first, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    expect_weight(k, &first, &other.weight);
    kernels_weight_unload(k, &first);
    free(embed.memory);
    free(other.memory);
    kernels_destroy(k);
}

/* From a mapped file, as a checkpoint's. */
static void test_cuda_weights_from_a_mapped_file(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source source = source_create(700, 1024, DTYPE_BF16, 8);
    char path[] = "/tmp/carousel_weights_XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    const size_t len = 700 * 1024 * 2;
    assert_int_equal(write(file, source.memory, len + 1), (ssize_t)len + 1);
    unsigned char *mapped = mmap(NULL, len + 1, PROT_READ, MAP_SHARED, file, 0);
    assert_true(mapped != MAP_FAILED);
    struct weight weight = source.weight;
    weight.data = mapped + 1;
    struct kernels_weight got = {0};
    cuda_must(kernels_weight_load(k, &weight, &got, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    munmap(mapped, len + 1);
    close(file);
    unlink(path);
    expect_weight(k, &got, &source.weight);
    kernels_weight_unload(k, &got);
    free(source.memory);
    kernels_destroy(k);
}

/* Ready without loads, loads after ready, unloads before ready. */
static void test_cuda_weights_in_any_order(void **state)
{
    (void)state;
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source a = source_create(2000, 512, DTYPE_F32, 9),
                  b = source_create(3, 5, DTYPE_F32, 10);
    struct kernels_weight wa = {0}, wb = {0};
    cuda_must(kernels_weights_ready(k, &err), &err);
    cuda_must(kernels_weight_load(k, &a.weight, &wa, &err), &err);
    kernels_weight_unload(k, &wa);
    assert_null(wa.data);
    cuda_must(kernels_weight_load(k, &b.weight, &wb, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    expect_weight(k, &wb, &b.weight);
    cuda_must(kernels_weight_load(k, &a.weight, &wa, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    expect_weight(k, &wa, &a.weight);
    expect_weight(k, &wb, &b.weight);
    kernels_weight_unload(k, &wb);
    kernels_weight_unload(k, &wa);
    /* A backend that ends in the middle of a load. */
    cuda_must(kernels_weight_load(k, &a.weight, &wa, &err), &err);
    kernels_destroy(k);
    free(a.memory);
    free(b.memory);
}

#ifdef CAROUSEL_CUDA_EMULATED

static void test_cuda_weights_that_do_not_fit(void **state)
{
    (void)state;
    emulator_set_memory((size_t)24 << 20);
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source small = source_create(1000, 1000, DTYPE_BF16, 11);
    struct source large = small; /* in name: it is never read */
    large.weight.rows = 10 * 1000;
    struct kernels_weight got = {0}, none[2] = {0};
    const struct weight *joined[] = {&small.weight, &large.weight};
    cuda_must(kernels_weight_load(k, &small.weight, &got, &err), &err);
    cuda_must_fail(kernels_weight_load(k, &large.weight, &none[0], &err), STATUS_NO_MEMORY, &err,
                   "no room for");
    cuda_must_fail(kernels_weight_load_joined(k, joined, 2, none, &err), STATUS_NO_MEMORY, &err,
                   "no room for");
    assert_null(none[0].data);
    assert_null(none[1].data);
    cuda_must(kernels_weights_ready(k, &err), &err);
    expect_weight(k, &got, &small.weight);
    kernels_weight_unload(k, &got);
    kernels_destroy(k);
    free(small.memory);
    emulator_set_memory((size_t)2 << 30);
}

/* A copy that fails on the device is told once, by ready. */
static void test_cuda_weights_failed_copy_is_told(void **state)
{
    (void)state;
    int n_before = emulator_n_live();
    struct kernels *k = cuda_world_kernels();
    struct err err = {0};
    struct source a = source_create(300, 100, DTYPE_F32, 13);
    struct kernels_weight got = {0};
    emulator_fail_run(cudaErrorIllegalAddress);
    cuda_must(kernels_weight_load(k, &a.weight, &got, &err), &err);
    cuda_must_fail(kernels_weights_ready(k, &err), STATUS_INTERNAL, &err,
                   "cudaErrorIllegalAddress");
    emulator_revive();
    kernels_weight_unload(k, &got);
    cuda_must(kernels_weight_load(k, &a.weight, &got, &err), &err);
    cuda_must(kernels_weights_ready(k, &err), &err);
    expect_weight(k, &got, &a.weight);
    kernels_weight_unload(k, &got);
    kernels_destroy(k);
    free(a.memory);
    assert_int_equal(emulator_n_live(), n_before);
}

static enum status load_two(void *context, struct err *err)
{
    const struct source *sources = context;
    struct kernels *k = NULL;
    struct kernels_weight got[2] = {0};
    enum status st = kernels_create("cuda", NULL, &k, err);
    if (st != STATUS_OK)
        return st;
    for (int i = 0; st == STATUS_OK && i < 2; i++)
        st = kernels_weight_load(k, &sources[i].weight, &got[i], err);
    if (st == STATUS_OK)
        st = kernels_weights_ready(k, err);
    for (int i = 0; i < 2; i++)
        kernels_weight_unload(k, &got[i]);
    kernels_destroy(k);
    return st;
}

static void test_cuda_weights_survive_any_failing_call(void **state)
{
    (void)state;
    struct source sources[2] = {source_create(30, 20, DTYPE_F32, 14),
                                source_create(1, 20, DTYPE_BF16, 15)};
    cuda_world_fail_each(load_two, sources, 10);
    free(sources[0].memory);
    free(sources[1].memory);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_weights_have_the_devices_types),
        cmocka_unit_test(test_cuda_weights_longer_than_a_piece),
        cmocka_unit_test(test_cuda_weights_joined_lie_back_to_back),
        cmocka_unit_test(test_cuda_weights_tied_are_shared),
        cmocka_unit_test(test_cuda_weights_from_a_mapped_file),
        cmocka_unit_test(test_cuda_weights_in_any_order),
#ifdef CAROUSEL_CUDA_EMULATED
        cmocka_unit_test(test_cuda_weights_that_do_not_fit),
        cmocka_unit_test(test_cuda_weights_failed_copy_is_told),
        cmocka_unit_test(test_cuda_weights_survive_any_failing_call),
#endif
    };
    return cuda_world_is_there("test_cuda_weights") ? cmocka_run_group_tests(tests, NULL, NULL) : 0;
}
