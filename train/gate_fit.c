/* Fits a gate by Adam on the binary cross entropy against labels of how much a loop still helps. */
#include "train/gate_fit.h"

#include "train/random.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW_BYTES = 64 * 1024 * 1024, BLOCK_ROWS = 256, LANES = 8 };
#define BETA1 0.9
#define BETA2 0.999
#define EPS   1e-8

void gate_fit_options_init(struct gate_fit_options *o)
{
    *o = (struct gate_fit_options){
        .objective = {.label = GATE_FUTURE, .gamma = 0.1, .sharpness = 50.0},
        .lr = 0.01,
        .steps = 400,
        .batch = 512,
    };
}

/* ---- labels and loss ------------------------------------------------------------------------ */

static double sigmoid(double z)
{
    return z >= 0 ? 1 / (1 + exp(-z)) : exp(z) / (1 + exp(z));
}

/* log(1 + exp(z)) without overflow. */
static double softplus(double z)
{
    return (z > 0 ? z : 0) + log1p(exp(-fabs(z)));
}

/* I_t of loop t (from 0). */
static double improvement(enum gate_label label, const float *ce, int n_loops, int t)
{
    if (label == GATE_PAST)
        return (double)ce[t - 1] - (double)ce[t];
    float later = ce[t + 1];
    for (int u = t + 2; label == GATE_FUTURE && u < n_loops; u++)
        later = ce[u] < later ? ce[u] : later;
    return (double)ce[t] - (double)later;
}

int gate_labels(const struct gate_objective *o, const float *ce, int n_loops, double *labels,
                int *first)
{
    *first = o->label == GATE_PAST ? 1 : 0;
    for (int t = *first; t < *first + n_loops - 1; t++)
        labels[t] = sigmoid(o->sharpness * (improvement(o->label, ce, n_loops, t) - o->gamma));
    return n_loops - 1;
}

/* In lanes, because a sum in one chain cannot be vectorised; always the same order. */
double gate_logit(const float *weight, double bias, const float *hidden, int d)
{
    double lanes[LANES] = {0}, sum = bias;
    int i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += (double)weight[i + j] * (double)hidden[i + j];
    for (; i < d; i++)
        sum += (double)weight[i] * (double)hidden[i];
    for (int j = 0; j < LANES; j++)
        sum += lanes[j];
    return sum;
}

void gate_row_loss(const struct gate_objective *o, const struct gate_row *row, int n_loops,
                   const float *weight, double bias, int d, double *loss, double *d_weight,
                   double *d_bias, uint64_t *n)
{
    double labels[GATE_MAX_LOOPS];
    int first, n_labels = gate_labels(o, row->ce, n_loops, labels, &first);
    for (int t = first; t < first + n_labels; t++) {
        const float *hidden = row->hidden + (size_t)t * (size_t)d;
        double z = gate_logit(weight, bias, hidden, d), w = labels[t];
        *loss += w * softplus(z) + (1 - w) * softplus(-z);
        if (d_weight == NULL)
            continue;
        double d_z = sigmoid(z) - (1 - w);
        for (int i = 0; i < d; i++)
            d_weight[i] += d_z * (double)hidden[i];
        *d_bias += d_z;
    }
    *n += (uint64_t)n_labels;
}

/* ---- rows in a random order ----------------------------------------------------------------- */

struct feed {
    struct gate_window window;
    uint64_t n_rows, block_rows, n_blocks;
    int *blocks, *places; /* orders: of the file's blocks, of the window's rows */
    uint64_t next_block, epoch;
    uint64_t n_held, next;
    uint64_t seed, n_windows;
};

static void feed_free(struct feed *f)
{
    gate_window_free(&f->window);
    free(f->blocks);
    free(f->places);
}

static enum status feed_create(struct feed *f, const struct gate_rows *rows,
                               const struct gate_fit_options *o, struct err *err)
{
    *f = (struct feed){.n_rows = rows->n_rows, .seed = o->seed};
    size_t bytes = o->window_bytes > 0 ? o->window_bytes : WINDOW_BYTES;
    enum status st = gate_window_create(rows, bytes, &f->window, err);
    if (st != STATUS_OK)
        return st;
    f->block_rows = BLOCK_ROWS;
    if (f->block_rows > (f->window.cap + 7) / 8)
        f->block_rows = (f->window.cap + 7) / 8;
    f->n_blocks = (f->n_rows + f->block_rows - 1) / f->block_rows;
    if (f->n_blocks > INT32_MAX || f->window.cap > INT32_MAX) {
        feed_free(f);
        return err_set(err, STATUS_INVALID, "%" PRIu64 " rows are too many", f->n_rows);
    }
    f->next_block = f->n_blocks;
    f->blocks = malloc(f->n_blocks * sizeof *f->blocks);
    f->places = malloc(f->window.cap * sizeof *f->places);
    if (f->blocks == NULL || f->places == NULL) {
        feed_free(f);
        return err_set(err, STATUS_NO_MEMORY, "no memory for the order of %" PRIu64 " rows",
                       f->n_rows);
    }
    return STATUS_OK;
}

/* Fills the window with the next blocks of this pass over the file. */
static enum status feed_fill(struct feed *f, struct err *err)
{
    if (f->next_block == f->n_blocks) {
        struct random r = random_of(f->seed, f->epoch++, 0);
        for (uint64_t i = 0; i < f->n_blocks; i++)
            f->blocks[i] = (int)i;
        random_shuffle(&r, f->blocks, (int)f->n_blocks);
        f->next_block = 0;
    }
    f->n_held = f->next = 0;
    while (f->next_block < f->n_blocks && f->n_held + f->block_rows <= f->window.cap) {
        uint64_t first = (uint64_t)f->blocks[f->next_block++] * f->block_rows;
        uint64_t n = f->n_rows - first < f->block_rows ? f->n_rows - first : f->block_rows;
        enum status st = gate_window_read(&f->window, f->n_held, first, n, err);
        if (st != STATUS_OK)
            return st;
        f->n_held += n;
    }
    struct random r = random_of(f->seed, f->n_windows++, 1);
    for (uint64_t i = 0; i < f->n_held; i++)
        f->places[i] = (int)i;
    random_shuffle(&r, f->places, (int)f->n_held);
    return STATUS_OK;
}

static enum status feed_next(struct feed *f, struct gate_row *row, struct err *err)
{
    enum status st = STATUS_OK;
    if (f->next == f->n_held)
        st = feed_fill(f, err);
    if (st == STATUS_OK)
        gate_window_get(&f->window, (uint64_t)f->places[f->next++], row);
    return st;
}

/* ---- the fit -------------------------------------------------------------------------------- */

/* Mean loss of a gate over all rows; with label_mean [n_loops], means of the labels, too. */
static enum status mean_loss(const struct gate_rows *rows, struct gate_window *w,
                             const struct gate_objective *o, const struct gate *g, double *loss,
                             double *label_mean, struct err *err)
{
    double sum = 0, labels[GATE_MAX_LOOPS];
    uint64_t n = 0;
    for (uint64_t first = 0; first < rows->n_rows; first += w->cap) {
        uint64_t held = rows->n_rows - first < w->cap ? rows->n_rows - first : w->cap;
        enum status st = gate_window_read(w, 0, first, held, err);
        if (st != STATUS_OK)
            return st;
        for (uint64_t i = 0; i < held; i++) {
            struct gate_row row;
            int begin;
            gate_window_get(w, i, &row);
            gate_row_loss(o, &row, rows->n_loops, g->weight, (double)g->bias, g->d, &sum, NULL,
                          NULL, &n);
            int n_labels = gate_labels(o, row.ce, rows->n_loops, labels, &begin);
            for (int t = begin; label_mean != NULL && t < begin + n_labels; t++)
                label_mean[t] += labels[t] / (double)rows->n_rows;
        }
    }
    *loss = sum / (double)n;
    return STATUS_OK;
}

/* Adam's state, all in double; the gate of a step is its rounding to float, as the engine has it.
 */
struct adam {
    int n; /* d + 1: the bias comes last */
    double *values, *m, *v, *gradient;
    float *weight;
};

static void adam_step(struct adam *a, double lr, uint64_t step)
{
    double c1 = 1 - pow(BETA1, (double)step), c2 = 1 - pow(BETA2, (double)step);
    for (int i = 0; i < a->n; i++) {
        double g = a->gradient[i];
        a->m[i] = BETA1 * a->m[i] + (1 - BETA1) * g;
        a->v[i] = BETA2 * a->v[i] + (1 - BETA2) * g * g;
        a->values[i] -= lr * (a->m[i] / c1) / (sqrt(a->v[i] / c2) + EPS);
    }
}

static enum status run_steps(struct feed *feed, const struct gate_fit_options *o, struct adam *a,
                             int n_loops, uint64_t n_steps, struct err *err)
{
    int d = a->n - 1;
    uint64_t batch = (uint64_t)o->batch < feed->n_rows ? (uint64_t)o->batch : feed->n_rows;
    for (uint64_t step = 1; step <= n_steps; step++) {
        double loss = 0;
        uint64_t n = 0;
        memset(a->gradient, 0, (size_t)a->n * sizeof *a->gradient);
        for (int i = 0; i < d; i++)
            a->weight[i] = (float)a->values[i];
        for (uint64_t i = 0; i < batch; i++) {
            struct gate_row row;
            enum status st = feed_next(feed, &row, err);
            if (st != STATUS_OK)
                return st;
            gate_row_loss(&o->objective, &row, n_loops, a->weight, a->values[d], d, &loss,
                          a->gradient, &a->gradient[d], &n);
        }
        loss /= (double)n;
        for (int i = 0; i < a->n; i++)
            a->gradient[i] /= (double)n;
        if (!isfinite(loss))
            return err_set(err, STATUS_CORRUPT,
                           "the gate's loss is %g at step %" PRIu64 " of %" PRIu64
                           "; try a smaller --lr than %g",
                           loss, step, n_steps, o->lr);
        /* Constant for one half, then linearly to 0: the last steps settle. */
        double left = (double)(n_steps - step + 1) / (double)n_steps;
        adam_step(a, o->lr * (left > 0.5 ? 1.0 : 2.0 * left), step);
        if (o->on_report != NULL && o->report_every > 0 &&
            (step % o->report_every == 0 || step == n_steps))
            o->on_report(o->user, step, n_steps, loss);
    }
    return STATUS_OK;
}

static enum status check_options(const struct gate_rows *rows, const struct gate_fit_options *o,
                                 const struct gate *gate, struct err *err)
{
    if (rows->n_rows == 0)
        return err_set(err, STATUS_INVALID, "no rows to fit a gate on");
    if (rows->n_loops < 2)
        return err_set(err, STATUS_INVALID, "with one loop there is nothing to decide");
    if (gate->d != rows->d)
        return err_set(err, STATUS_INTERNAL, "a gate of %d numbers for rows of %d", gate->d,
                       rows->d);
    if (!(o->lr > 0) || !isfinite(o->lr) || !isfinite(o->objective.gamma) ||
        !(o->objective.sharpness > 0) || !isfinite(o->objective.sharpness) || o->batch < 1 ||
        (o->steps == 0 && !(o->epochs > 0)))
        return err_set(err, STATUS_INVALID,
                       "lr %g, gamma %g, sharpness %g, batch %d, steps %" PRIu64
                       ", epochs %g: all but gamma must be positive",
                       o->lr, o->objective.gamma, o->objective.sharpness, o->batch, o->steps,
                       o->epochs);
    return STATUS_OK;
}

static enum status fit(struct feed *feed, const struct gate_rows *rows,
                       const struct gate_fit_options *o, struct adam *a, struct gate *gate,
                       struct gate_fit_report *report, struct err *err)
{
    int d = gate->d;
    uint64_t batch = (uint64_t)o->batch < rows->n_rows ? (uint64_t)o->batch : rows->n_rows;
    report->n_steps = o->steps;
    if (o->steps == 0)
        report->n_steps = (uint64_t)ceil(o->epochs * (double)rows->n_rows / (double)batch);
    enum status st = mean_loss(rows, &feed->window, &o->objective, gate, &report->first_loss,
                               report->label_mean, err);
    for (int i = 0; i < d; i++)
        a->values[i] = (double)gate->weight[i];
    a->values[d] = (double)gate->bias;
    if (st == STATUS_OK)
        st = run_steps(feed, o, a, rows->n_loops, report->n_steps, err);
    if (st != STATUS_OK)
        return st;
    for (int i = 0; i < d; i++)
        a->weight[i] = (float)a->values[i];
    struct gate fitted = {.d = d, .weight = a->weight, .bias = (float)a->values[d]};
    st = mean_loss(rows, &feed->window, &o->objective, &fitted, &report->last_loss, NULL, err);
    if (st == STATUS_OK && !isfinite(report->last_loss))
        st =
            err_set(err, STATUS_CORRUPT, "the fitted gate's loss is %g; try a smaller --lr than %g",
                    report->last_loss, o->lr);
    if (st != STATUS_OK)
        return st;
    memcpy(gate->weight, a->weight, (size_t)d * sizeof *gate->weight);
    gate->bias = fitted.bias;
    return STATUS_OK;
}

enum status gate_fit(const struct gate_rows *rows, const struct gate_fit_options *options,
                     struct gate *gate, struct gate_fit_report *report, struct err *err)
{
    struct feed feed;
    struct gate_fit_report made = {0};
    enum status st = check_options(rows, options, gate, err);
    if (st != STATUS_OK || (st = feed_create(&feed, rows, options, err)) != STATUS_OK)
        return st;
    size_t n = (size_t)gate->d + 1;
    double *room = calloc(4 * n, sizeof *room);
    float *weight = malloc(n * sizeof *weight);
    if (room == NULL || weight == NULL) {
        st = err_set(err, STATUS_NO_MEMORY, "no memory to fit a gate of %d numbers", gate->d);
    } else {
        struct adam a = {(int)n, room, room + n, room + 2 * n, room + 3 * n, weight};
        st = fit(&feed, rows, options, &a, gate, &made, err);
    }
    if (st == STATUS_OK)
        *report = made;
    free(weight);
    free(room);
    feed_free(&feed);
    return st;
}
