/* Moves the parameters along a clipped gradient, or leaves everything as it was and says why. */
#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };

static float *make_zeros(size_t n)
{
    size_t bytes = (n * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    float *out = aligned_alloc(ALIGNMENT, bytes > 0 ? bytes : ALIGNMENT);
    if (out != NULL)
        memset(out, 0, bytes);
    return out;
}

enum status optimizer_create(const struct params *p, struct optimizer *out, struct err *err)
{
    struct optimizer o = {.m = make_zeros(p->n_values), .v = make_zeros(p->n_values)};
    if (o.m == NULL || o.v == NULL) {
        optimizer_free(&o);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the moments of %zu parameters",
                       p->n_values);
    }
    *out = o;
    return STATUS_OK;
}

void optimizer_free(struct optimizer *o)
{
    free(o->m);
    free(o->v);
    *o = (struct optimizer){0};
}

void optimizer_reset(struct optimizer *o, const struct params *p)
{
    o->step = 0;
    memset(o->m, 0, p->n_values * sizeof(float));
    memset(o->v, 0, p->n_values * sizeof(float));
}

static enum status fail_not_finite(const struct params *p, const float *grads, struct err *err)
{
    static const char advice[] = "the training has diverged: " OPTIMIZER_ADVICE;
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        const size_t n = (size_t)t->rows * (size_t)t->cols;
        for (size_t k = 0; k < n; k++)
            if (!isfinite(grads[t->offset + k]))
                return err_set(err, STATUS_CORRUPT,
                               "the gradient of %s is %g at row %zu, column %zu; %s", t->name,
                               (double)grads[t->offset + k], k / (size_t)t->cols,
                               k % (size_t)t->cols, advice);
    }
    return err_set(err, STATUS_CORRUPT, "the norm of the gradient is above what fp32 holds; %s",
                   advice);
}

enum status optimizer_step(struct optimizer *o, struct params *p, const float *grads,
                           const struct grad_ops *ops, const struct recipe *r, float lr,
                           float *norm, struct err *err)
{
    const float found = (float)sqrt(ops->sum_squares(grads, p->n_values));
    if (!isfinite(found))
        return fail_not_finite(p, grads, err);
    const double step = (double)(o->step + 1);
    struct grad_adamw how = {
        .lr = lr,
        .beta1 = r->beta1,
        .beta2 = r->beta2,
        .eps = r->eps,
        .grad_scale = r->clip > 0 && found > r->clip ? r->clip / found : 1,
        .correction1 = (float)(1 - pow((double)r->beta1, step)),
        .correction2 = (float)(1 - pow((double)r->beta2, step)),
    };
    /* Neighbours with the same weight decay are one piece. */
    for (size_t i = 0; i < p->n_tensors;) {
        const bool decays = p->tensors[i].decays;
        const size_t begin = p->tensors[i].offset;
        while (i < p->n_tensors && p->tensors[i].decays == decays)
            i++;
        const size_t end = i < p->n_tensors ? p->tensors[i].offset : p->n_values;
        how.weight_decay = decays ? r->weight_decay : 0;
        ops->adamw(p->values + begin, o->m + begin, o->v + begin, grads + begin, end - begin, &how);
    }
    o->step++;
    *norm = found;
    return STATUS_OK;
}
