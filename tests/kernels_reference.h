/* What the kernel tests share: random data, poisoned and guarded outputs, the table of tolerances.
 *
 * A result y of an operation that in exact arithmetic gives r passes when
 * |y - r| <= abs + rel * eps(dtype) * scale, where scale is what the operation adds up in magnitude
 * (for linear: sum |x| |w|) and dtype is the least exact one that takes part in rounding: f32, or
 * bf16 for values that pass through a bf16 KV pool. docs/kernels.md shows the same table. */
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
    {"linear", 1e-30, 8},     {"norm", 1e-30, 16},   {"rope_tables", 0, 2}, {"rope", 1e-30, 8},
    {"attention", 1e-30, 32}, {"swiglu", 1e-36, 16}, {"gate", 0, 16},
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

/* A backend with one stream. */
struct backend {
    struct kernels *k;
    struct kernels_stream *s;
};

/* False when this machine cannot run the level. */
static inline bool backend_open(const char *isa, int n_threads, struct backend *out)
{
    struct kernels_options options = {.isa = isa, .n_threads = n_threads};
    struct err err = {0};
    enum status st = kernels_create("cpu", &options, &out->k, &err);
    if (st == STATUS_UNSUPPORTED)
        return false;
    if (st != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(kernels_stream_create(out->k, "test", &out->s, &err), STATUS_OK);
    return true;
}

static inline void backend_close(struct backend *b)
{
    kernels_stream_destroy(b->s);
    kernels_destroy(b->k);
}

static inline void must(enum status st, const struct err *err)
{
    if (st != STATUS_OK)
        fail_msg("%s: %s", status_name(st), err->message);
}

static const char *const all_isas[] = {"portable", "avx2", "avx512", "amx"};
enum { N_ISAS = 4 };

#endif
