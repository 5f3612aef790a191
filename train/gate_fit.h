/* Stage II: fits a gate to the hidden states of a model that stays as it is.
 *
 * For each row the cross entropies of the known token after loops 1..T say how much another loop
 * would have helped:
 *
 *   past    I_t = CE_{t-1} - CE_t             t = 2..T    (arXiv 2510.25741, section 3.4, as
 * printed) next    I_t = CE_t - CE_{t+1}             t = 1..T-1 future  I_t = CE_t - min_{u > t}
 * CE_u     t = 1..T-1
 *
 * The label is w_t = sigmoid(k (I_t - gamma)), 1 = go on; the loss is the binary cross entropy of
 * 1 - lambda_t against w_t, lambda_t = sigmoid(w . h_t + b), mean over the labelled loops of the
 * rows. All sums are double and in one order, so a fit is a function of the rows and the options.
 */
#ifndef TRAIN_GATE_FIT_H
#define TRAIN_GATE_FIT_H

#include "train/gate_rows.h"

enum gate_label { GATE_PAST = 0, GATE_NEXT, GATE_FUTURE };

struct gate_objective {
    enum gate_label label;
    double gamma, sharpness; /* k */
};

struct gate {
    int d;
    float *weight; /* [d] */
    float bias;
};

struct gate_fit_options {
    struct gate_objective objective;
    double lr;           /* Adam, beta 0.9 and 0.999, eps 1e-8 */
    uint64_t steps;      /* 0: epochs */
    double epochs;       /* passes over the rows, where steps is 0 */
    int batch;           /* rows a step; a fit with fewer rows takes them all */
    uint64_t seed;       /* of the order of the rows */
    size_t window_bytes; /* rows in memory at once; 0: 64 MiB. Rows are shuffled in blocks over the
                            file and one by one within the window. */
    uint64_t report_every;
    void (*on_report)(void *user, uint64_t step, uint64_t n_steps, double loss); /* may be NULL */
    void *user;
};
/* future, gamma 0.1, k 50, lr 0.01, 400 steps of 512 rows. */
void gate_fit_options_init(struct gate_fit_options *o);

struct gate_fit_report {
    uint64_t n_steps;
    double first_loss, last_loss;      /* means over all rows, before and after */
    double label_mean[GATE_MAX_LOOPS]; /* of w_t; 0 where a loop has no label */
};

/* Writes w_t of loops first .. first + n - 1 (from 0) to labels + first and returns n; 0 when T is
 * 1. */
int gate_labels(const struct gate_objective *o, const float *ce, int n_loops, double *labels,
                int *first);
/* w . h + b, in double. */
double gate_logit(const float *weight, double bias, const float *hidden, int d);
/* Adds a row's summed loss to *loss, its gradients to d_weight [d] and *d_bias (may be NULL), its
 * labelled loops to *n. */
void gate_row_loss(const struct gate_objective *o, const struct gate_row *row, int n_loops,
                   const float *weight, double bias, int d, double *loss, double *d_weight,
                   double *d_bias, uint64_t *n);

/* Fits *gate, which holds where to start, to all rows. STATUS_INVALID (no rows, one loop, an
 * option out of range), STATUS_CORRUPT (the loss is not finite: at which step; try a smaller lr),
 * STATUS_IO, STATUS_NO_MEMORY; then the gate is what it was. */
enum status gate_fit(const struct gate_rows *rows, const struct gate_fit_options *options,
                     struct gate *gate, struct gate_fit_report *report, struct err *err);

#endif
