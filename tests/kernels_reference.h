/* What the kernel tests share: random data, poisoned and guarded outputs, the table of tolerances,
 * and backends: the same tests run on the CPU's levels and on a GPU.
 *
 * A result y of an operation that in exact arithmetic gives r passes when
 * |y - r| <= abs + rel * eps(dtype) * scale, where scale is what the operation adds up in magnitude
 * (for linear: sum |x| |w|) and dtype is the least exact one that takes part in rounding: f32, or
 * bf16 for values that pass through a bf16 KV pool. An output that is stored as bf16 may be off by
 * eps(bf16) * |r| more. docs/kernels.md shows the same table. */
#ifndef TESTS_KERNELS_REFERENCE_H
#define TESTS_KERNELS_REFERENCE_H

#include "kernels/kernels.h"
#include "tests/unit.h"

#include <math.h>

struct tolerance {
    const char *op;
    double abs, rel;
};

static const struct tolerance tolerances[] = {
    {"linear", 1e-30, 8},
    {"norm", 1e-30, 16},
    {"rope_tables", 0, 2},
    {"rope", 1e-30, 8},
    {"attention", 1e-30, 32},
    {"swiglu", 1e-36, 16},
    {"gate", 0, 16},
    {"attention_bf16", 0, 4},
    /* Matrix units add up without rounding to nearest; k up to 512. */
    {"linear_gpu", 1e-30, 64},
};

static inline double dtype_eps(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 0x1p-24 : dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
}

static inline void assert_close(const char *op, double got, double want, double scale,
                                enum dtype dtype)
{
    for (size_t i = 0; i < sizeof tolerances / sizeof tolerances[0]; i++) {
        if (strcmp(tolerances[i].op, op) != 0)
            continue;
        double allowed = tolerances[i].abs + tolerances[i].rel * dtype_eps(dtype) * scale;
        if (!(fabs(got - want) <= allowed))
            fail_msg("%s: got %.9g, want %.9g, allowed %.3g", op, got, want, allowed);
        return;
    }
    fail_msg("no tolerance for %s", op);
}

/* xorshift64*: the same numbers on every machine. */
static inline uint64_t random_bits(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

static inline float random_float(uint64_t *state)
{
    return (float)((double)(random_bits(state) >> 11) * 0x1p-53 * 2.0 - 1.0);
}

static inline float *random_floats(uint64_t seed, size_t n)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(&state);
    return x;
}

/* Finite binary16 bits of magnitude up to 2, subnormals included. */
static inline uint16_t random_f16(uint64_t *state)
{
    uint16_t bits = (uint16_t)random_bits(state);
    return (uint16_t)((bits & 0x8000u) | (bits & 0x7fffu) % 0x4000u);
}

/* n random elements of that dtype, starting `skew` bytes after a malloc; free `owner`. */
struct random_weight {
    unsigned char *owner, *data;
};

static inline struct random_weight random_weight(uint64_t seed, size_t n, enum dtype dtype,
                                                 size_t skew)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    struct random_weight w;
    w.owner = malloc(n * dtype_bytes(dtype) + skew + 1);
    assert_non_null(w.owner);
    w.data = w.owner + skew;
    for (size_t i = 0; i < n; i++) {
        float f = random_float(&state);
        uint16_t half = dtype == DTYPE_BF16 ? dtype_to_bf16(f) : random_f16(&state);
        if (dtype == DTYPE_F32)
            memcpy(w.data + i * 4, &f, 4);
        else
            memcpy(w.data + i * 2, &half, 2);
    }
    return w;
}

static inline double weight_at(const void *data, enum dtype dtype, size_t i)
{
    const unsigned char *p = data;
    if (dtype == DTYPE_F32) {
        float f;
        memcpy(&f, p + i * 4, 4);
        return (double)f;
    }
    uint16_t half;
    memcpy(&half, p + i * 2, 2);
    return (double)(dtype == DTYPE_BF16 ? dtype_from_bf16(half) : dtype_from_f16(half));
}

/* An output of n floats, all NaN, between two guards that nobody may touch. */
enum { GUARD_FLOATS = 64 };
static const float guard_value = 12345.678f;

static inline float *guarded_floats(size_t n)
{
    /* Says to the compiler, too, that a test's sizes are no negative numbers. */
    if (n > ((size_t)1 << 40))
        abort();
    float *all = malloc((n + 2 * GUARD_FLOATS) * sizeof *all);
    assert_non_null(all);
    for (size_t i = 0; i < n + 2 * GUARD_FLOATS; i++)
        all[i] = i < GUARD_FLOATS || i >= n + GUARD_FLOATS ? guard_value : NAN;
    return all + GUARD_FLOATS;
}

static inline void guarded_free(float *x, size_t n)
{
    for (size_t i = 0; i < GUARD_FLOATS; i++) {
        assert_true(x[-1 - (long)i] == guard_value);
        assert_true(x[n + i] == guard_value);
    }
    free(x - GUARD_FLOATS);
}

static inline void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->message);
}

/* ---- backends ------------------------------------------------------------------------------- */

/* A backend with one stream. */
struct backend {
    struct kernels *k;
    struct kernels_stream *s;
    enum dtype activation;
    bool is_gpu;
};

static const char *const all_isas[] = {"portable", "avx2", "avx512", "amx"};
enum { N_ISAS = 4 };

/* "cuda", or a level of the CPU. False when this machine has no such device or cannot run the
 * level. A GPU adds up in one order for any batch when is_deterministic is set. */
static inline bool backend_open_as(const char *name, int n_threads, bool is_deterministic,
                                   struct backend *out)
{
    const bool is_gpu = strcmp(name, "cuda") == 0;
    const struct kernels_options options = {
        .isa = is_gpu ? NULL : name, .n_threads = n_threads, .is_deterministic = is_deterministic};
    struct err err = {0};
    enum status st = kernels_create(is_gpu ? "cuda" : "cpu", &options, &out->k, &err);
    if (st == STATUS_UNSUPPORTED) {
        static bool has_said;
        if (is_gpu && !has_said)
            print_message("not on a GPU: %s\n", err.message);
        has_said = has_said || is_gpu;
        return false;
    }
    must(st, &err);
    must(kernels_stream_create(out->k, "test", &out->s, &err), &err);
    out->activation = kernels_activation_dtype(out->k);
    out->is_gpu = is_gpu;
    return true;
}

static inline bool backend_open(const char *name, int n_threads, struct backend *out)
{
    return backend_open_as(name, n_threads, true, out);
}

static inline void backend_close(struct backend *b)
{
    kernels_stream_destroy(b->s);
    kernels_destroy(b->k);
}

/* A stream for batches within the limits. */
static inline struct kernels_stream *stream_open(const struct backend *b,
                                                 const struct kernels_limits *limits)
{
    struct kernels_stream *s;
    struct err err = {0};
    must(kernels_stream_create(b->k, "bound", &s, &err), &err);
    must(kernels_stream_reserve(s, limits, &err), &err);
    return s;
}

/* The levels of the CPU, then the GPU. */
static const char *const all_backends[] = {"portable", "avx2", "avx512", "amx", "cuda"};
enum { N_BACKENDS = 5 };

/* ---- arrays on a backend ---------------------------------------------------------------------
 *
 * Between guards, in the backend's memory: floats of fp32 or the activation type, or raw bytes. */

enum { GUARD_BYTES = 256 };

struct array {
    struct kernels_buffer buffer;
    void *data;
    size_t n;
    enum dtype dtype;
};

/* What is left of x when it is stored as that dtype. */
static inline float rounded_to(float x, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? dtype_from_bf16(dtype_to_bf16(x)) : x;
}

static inline void round_all(float *x, size_t n, enum dtype dtype)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rounded_to(x[i], dtype);
}

/* x NULL: all NaN. */
static inline struct array array_put(const struct backend *b, const float *x, size_t n,
                                     enum dtype dtype)
{
    struct array a = {.n = n, .dtype = dtype};
    struct err err = {0};
    const size_t len = n * dtype_bytes(dtype) + 2 * GUARD_BYTES;
    must(kernels_alloc(b->k, len, false, &a.buffer, &err), &err);
    a.data = (unsigned char *)a.buffer.data + GUARD_BYTES;
    unsigned char *host = malloc(len);
    assert_non_null(host);
    memset(host, 0x5a, len);
    float *wide = (float *)(void *)(host + GUARD_BYTES);
    uint16_t *half = (uint16_t *)(void *)(host + GUARD_BYTES);
    for (size_t i = 0; i < n; i++) {
        const float f = x == NULL ? NAN : x[i];
        if (dtype == DTYPE_F32)
            wide[i] = f;
        else
            half[i] = dtype_to_bf16(f);
    }
    must(kernels_upload(b->s, a.buffer.data, host, len, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
    free(host);
    return a;
}

static inline struct array array_output(const struct backend *b, size_t n, enum dtype dtype)
{
    return array_put(b, NULL, n, dtype);
}

/* Its n values, to be freed, after a sync; nobody may have touched the guards. */
static inline float *array_get(const struct backend *b, const struct array *a)
{
    struct err err = {0};
    const size_t bytes = a->n * dtype_bytes(a->dtype), len = bytes + 2 * GUARD_BYTES;
    unsigned char *host = malloc(len);
    float *x = malloc((a->n + 1) * sizeof *x);
    assert_true(host != NULL && x != NULL);
    must(kernels_download(b->s, host, a->buffer.data, len, &err), &err);
    must(kernels_stream_sync(b->s, &err), &err);
    unsigned char guard[GUARD_BYTES];
    memset(guard, 0x5a, sizeof guard);
    assert_memory_equal(host, guard, sizeof guard);
    assert_memory_equal(host + GUARD_BYTES + bytes, guard, sizeof guard);
    if (a->dtype == DTYPE_F32)
        memcpy(x, host + GUARD_BYTES, bytes);
    for (size_t i = 0; i < a->n && a->dtype != DTYPE_F32; i++)
        x[i] = (float)weight_at(host + GUARD_BYTES, a->dtype, i);
    free(host);
    return x;
}

static inline void array_free(const struct backend *b, struct array *a)
{
    kernels_free(b->k, &a->buffer);
}

/* Its values, and the array is gone. */
static inline float *array_take(const struct backend *b, struct array *a)
{
    float *x = array_get(b, a);
    array_free(b, a);
    return x;
}

/* A weight of random elements as the backend holds it; `value` is what it then counts as. A GPU
 * keeps matrices in bf16 and vectors in fp32. */
struct test_weight {
    struct random_weight owned;
    struct weight source;
    struct kernels_weight w;
    bool is_rounded;
};

static inline struct test_weight test_weight_make(const struct backend *b, uint64_t seed, int rows,
                                                  int cols, enum dtype dtype, size_t skew)
{
    struct test_weight t = {.owned = random_weight(seed, (size_t)rows * (size_t)cols, dtype, skew)};
    t.source = (struct weight){.data = t.owned.data, .dtype = dtype, .rows = rows, .cols = cols};
    t.is_rounded = b->is_gpu && rows > 1;
    return t;
}

static inline void test_weight_load(const struct backend *b, struct test_weight *t)
{
    struct err err = {0};
    must(kernels_weight_load(b->k, &t->source, &t->w, &err), &err);
    must(kernels_weights_ready(b->k, &err), &err);
}

static inline struct test_weight test_weight_open(const struct backend *b, uint64_t seed, int rows,
                                                  int cols, enum dtype dtype, size_t skew)
{
    struct test_weight t = test_weight_make(b, seed, rows, cols, dtype, skew);
    test_weight_load(b, &t);
    return t;
}

static inline double test_weight_at(const struct test_weight *t, size_t i)
{
    double value = weight_at(t->owned.data, t->source.dtype, i);
    return t->is_rounded ? (double)rounded_to((float)value, DTYPE_BF16) : value;
}

static inline void test_weight_close(const struct backend *b, struct test_weight *t)
{
    kernels_weight_unload(b->k, &t->w);
    free(t->owned.owner);
}

/* |got - want| for an output of that dtype, what is left of want when it is stored. */
static inline void assert_stored(const char *op, double got, double want, double scale,
                                 enum dtype out)
{
    if (out == DTYPE_BF16 && fabs(got - want) <= dtype_eps(DTYPE_BF16) * fabs(want))
        return;
    assert_close(op, got, want, scale, DTYPE_F32);
}

#endif
