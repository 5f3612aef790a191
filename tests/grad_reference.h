/* What the tests of the training kernels share: the levels of this machine, the table of
 * tolerances, central differences.
 *
 * A result y of an operation that in exact arithmetic gives r passes when |y - r| <= abs + rel *
 * 2^-24 * scale, where scale is what the operation adds up in magnitude. docs/kernels.md shows the
 * same table. */
#ifndef TESTS_GRAD_REFERENCE_H
#define TESTS_GRAD_REFERENCE_H

#include "kernels/grad.h"
#include "tests/kernels_reference.h"

struct grad_tolerance {
    const char *op;
    double abs, rel;
};

static const struct grad_tolerance grad_tolerances[] = {
    {"linear", 1e-30, 16},        {"norm", 1e-30, 16},
    {"norm_back", 1e-9, 32},      {"swiglu", 1e-30, 16},
    {"swiglu_back", 1e-9, 32},    {"rope", 1e-30, 8},
    {"attention", 1e-9, 32},      {"attention_back", 1e-9, 64},
    {"cross_entropy", 1e-30, 16}, {"cross_entropy_back", 1e-9, 32},
    {"adamw", 1e-30, 16},
};

static inline void grad_close(const char *op, double got, double want, double scale)
{
    for (size_t i = 0; i < sizeof grad_tolerances / sizeof grad_tolerances[0]; i++) {
        if (strcmp(grad_tolerances[i].op, op) != 0)
            continue;
        double allowed = grad_tolerances[i].abs + grad_tolerances[i].rel * 0x1p-24 * scale;
        if (!(fabs(got - want) <= allowed))
            fail_msg("%s: got %.9g, want %.9g, allowed %.3g", op, got, want, allowed);
        return;
    }
    fail_msg("no tolerance for %s", op);
}

/* The i-th level, NULL when this machine cannot run it. */
static inline const struct grad_ops *grad_level(int i)
{
    static const char *const names[] = {"portable", "avx2", "avx512"};
    const struct grad_ops *ops = NULL;
    struct err err = {0};
    enum status st = grad_find(names[i], &ops, &err);
    if (st == STATUS_UNSUPPORTED)
        return NULL;
    must(st, &err);
    assert_string_equal(ops->name, names[i]);
    return ops;
}
enum { N_GRAD_LEVEL_NAMES = 3 };

static inline double *widened(const float *x, size_t n)
{
    double *y = malloc((n + 1) * sizeof *y);
    assert_non_null(y);
    for (size_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

/* d loss / d *value by central differences; *value is put back. The loss is double, so what is left
 * out, h^2 / 6 of the third derivative, is about 1e-10 for values near 1. */
static inline double central_difference(double (*loss)(void *context), void *context, double *value)
{
    const double h = 1e-5, at = *value;
    *value = at + h;
    double above = loss(context);
    *value = at - h;
    double below = loss(context);
    *value = at;
    return (above - below) / (2 * h);
}

#endif
