/* Fits `batch time = a + b * rows` to the recent batches by least squares with forgetting. */
#include "worker/cost.h"

/* A batch's weight halves after about 90 more: follows a machine that gets busy within a second,
 * and one odd batch moves the estimate by about a percent. */
static const double COST_KEEP = 1.0 - 1.0 / 128.0;
/* The calibration counts as this many batches of each of its two sizes. */
static const double COST_START_WEIGHT = 4.0;
/* The sizes the calibration stands for. */
static const double COST_START_FEW = 1.0, COST_START_MANY = 32.0;
/* A batch that took longer than this many times the estimate was held up by something else (a page
 * fault, another process); it counts as that long. A machine that really got slower is still
 * followed, in steps. */
static const double COST_OUTLIER = 8.0;
/* Below this share of spread the batches were all of one size, and say nothing about b. */
static const double COST_MIN_SPREAD = 1e-4;

static void cost_add(struct cost *c, double x, double y, double weight)
{
    c->weight += weight;
    c->sum_x += weight * x;
    c->sum_y += weight * y;
    c->sum_xx += weight * x * x;
    c->sum_xy += weight * x * y;
}

static void cost_solve(struct cost *c)
{
    double mean_x = c->sum_x / c->weight, mean_y = c->sum_y / c->weight;
    double spread = c->sum_xx / c->weight - mean_x * mean_x;
    double row_ns = c->row_ns;
    if (spread > COST_MIN_SPREAD * mean_x * mean_x)
        row_ns = (c->sum_xy / c->weight - mean_x * mean_y) / spread;
    if (row_ns < 0.0)
        row_ns = 0.0;
    double batch_ns = mean_y - row_ns * mean_x;
    if (batch_ns < 0.0) {
        /* A line through the origin that keeps the mean. */
        batch_ns = 0.0;
        row_ns = mean_x > 0.0 ? mean_y / mean_x : 0.0;
    }
    c->row_ns = row_ns;
    c->batch_ns = batch_ns;
}

void cost_init(struct cost *c, uint64_t batch_ns, uint64_t row_ns)
{
    double a = (double)batch_ns, b = (double)row_ns;
    *c = (struct cost){.batch_ns = a, .row_ns = b};
    cost_add(c, COST_START_FEW, a + b * COST_START_FEW, COST_START_WEIGHT);
    cost_add(c, COST_START_MANY, a + b * COST_START_MANY, COST_START_WEIGHT);
}

void cost_update(struct cost *c, uint32_t n_rows, uint64_t took_ns)
{
    if (n_rows == 0)
        return;
    double x = (double)n_rows, y = (double)took_ns;
    double limit = COST_OUTLIER * (c->batch_ns + c->row_ns * x);
    if (limit > 0.0 && y > limit)
        y = limit;
    c->weight *= COST_KEEP;
    c->sum_x *= COST_KEEP;
    c->sum_y *= COST_KEEP;
    c->sum_xx *= COST_KEEP;
    c->sum_xy *= COST_KEEP;
    cost_add(c, x, y, 1.0);
    cost_solve(c);
}
