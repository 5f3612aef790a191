/* Says where a loss that is not finite began. */
#include "train/optimizer.h"
#include "train/pass_parts.h"

#include <math.h>

/* The first of all rows with a value of x that is not finite; -1: none. */
static int bad_row(const struct pass *p, const float *x)
{
    size_t d = (size_t)p->params->config.d_model;
    for (size_t i = 0; i < (size_t)p->n_rows * d; i++)
        if (!isfinite(x[i]))
            return (int)(i / d);
    return -1;
}

/* In the order of computation, so that the row is the one it began at and not one that looked at
 * it. Without gradients the layers share their arrays: only the loops' results are there. */
static int first_bad_row(const struct pass *p, int last, int *loop)
{
    int n_layers = p->params->config.n_layers;
    *loop = 0;
    int row = bad_row(p, p->embedded);
    for (int t = 0; t <= last && row < 0; t++) {
        *loop = t;
        for (int i = 0; i < n_layers && row < 0 && p->grads; i++) {
            const struct pass_layer *l = &p->layers[t * n_layers + i];
            row = bad_row(p, l->middle);
            if (row < 0)
                row = bad_row(p, l->out);
        }
        if (row < 0)
            row = bad_row(p, p->loops[t].h);
    }
    return row;
}

enum status pass_fault(const struct pass *p, int t, int i, struct err *err)
{
    static const char advice[] = OPTIMIZER_ADVICE;
    int loop, row = first_bad_row(p, t, &loop), sequence = 0;
    if (row < 0) {
        bool is_gate = isfinite(p->loops[t].ce[i]);
        return err_set(err, STATUS_CORRUPT,
                       "the loss is not finite: at loop %d, sequence %d, row %d %s is %g: %s",
                       t + 1, p->targets[i].sequence, p->targets[i].at,
                       is_gate ? "the gate's logit" : "the cross entropy",
                       (double)(is_gate ? p->loops[t].z[i] : p->loops[t].ce[i]), advice);
    }
    while (row >= p->sequences[sequence]->n)
        row -= p->sequences[sequence++]->n;
    return err_set(err, STATUS_CORRUPT,
                   "the loss is not finite: at loop %d, sequence %d, row %d (id %d) the hidden "
                   "state is not: %s",
                   loop + 1, p->first_sequence + sequence, row,
                   (int)p->sequences[sequence]->ids[row], advice);
}
