/* Answers what a batch, a message and a row cost, from the numbers of a cost file. Pure. */
#include "cluster/cost_model.h"

#include <stdbool.h>

/* The two sizes replica_calibrate measures. */
static const double KNEE_FEW = 1.0, KNEE_MANY = 32.0;

double cost_curve_at(const struct cost_curve *c, double x)
{
    uint32_t n = c->n_points;
    if (n == 1 || x <= c->x[0])
        return c->y[0];
    uint32_t right = 1; /* the segment that holds x, or the last one */
    while (right < n - 1 && c->x[right] < x)
        right++;
    double slope = (c->y[right] - c->y[right - 1]) / (c->x[right] - c->x[right - 1]);
    return c->y[right] + slope * (x - c->x[right]);
}

double cost_model_batch_ns(const struct cost_model *m, uint32_t n_rows, double n_kv_positions,
                           uint32_t n_heads, double *head_ns)
{
    double head = n_heads > 0 ? cost_curve_at(&m->head, (double)n_heads) : 0.0;
    if (head_ns != NULL)
        *head_ns = head;
    return cost_curve_at(&m->block, (double)n_rows) + m->kv_position_ns * n_kv_positions + head;
}

void cost_model_knee(const struct cost_model *m, uint64_t *batch_ns, uint64_t *row_ns)
{
    double few = cost_curve_at(&m->block, KNEE_FEW), many = cost_curve_at(&m->block, KNEE_MANY);
    double row = (many - few) / (KNEE_MANY - KNEE_FEW);
    if (row < 1.0)
        row = 1.0; /* a knee at infinity is none */
    double batch = few - row;
    *row_ns = (uint64_t)row;
    *batch_ns = batch > 0.0 ? (uint64_t)batch : 0;
}

double cost_model_link_ns(const struct cost_model *m, uint32_t from_rank, uint32_t to_rank,
                          uint64_t n_bytes)
{
    bool is_local = from_rank / m->ranks_per_host == to_rank / m->ranks_per_host;
    const struct cost_link *link = is_local ? &m->local : &m->remote;
    return link->latency_ns + link->ns_per_byte * (double)n_bytes;
}
