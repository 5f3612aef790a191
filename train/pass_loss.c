/* From the hidden states of the rows with targets to the loss, and the gradient back to them. */
#include "train/pass_parts.h"

#include <math.h>
#include <string.h>

static double softplus(double z)
{
    return (z > 0 ? z : 0) + log1p(exp(-fabs(z)));
}

/* p_t = lambda_t prod_{j<t} (1 - lambda_j), the last open loop takes what remains; through
 * logarithms, which stay finite when a probability does not fit a float. A model without a gate
 * leaves at the last loop. */
static void exit_probabilities(struct pass *p)
{
    bool has_gate = p->params->config.has_gate;
    int last = p->n_loops - 1;
    for (int i = 0; i < p->n_targets; i++) {
        double log_survival = 0;
        for (int t = 0; t < last; t++) {
            double z = p->loops[t].z[i];
            double to_stay = softplus(z); /* -log(1 - lambda) */
            double log_p = has_gate ? log_survival + z - to_stay : 0;
            p->loops[t].log_p[i] = (float)log_p;
            p->loops[t].p[i] = has_gate ? (float)exp(log_p) : 0;
            log_survival -= has_gate ? to_stay : 0;
        }
        p->loops[last].log_p[i] = (float)log_survival;
        p->loops[last].p[i] = (float)exp(log_survival);
    }
}

static void run_gate(struct pass *p)
{
    const struct params *params = p->params;
    for (int t = 0; t < p->n_loops; t++) {
        struct pass_loop *loop = &p->loops[t];
        memset(loop->z, 0, (size_t)p->n_targets * sizeof *loop->z);
        if (!params->config.has_gate)
            continue;
        p->ops->linear(loop->z, loop->h_targets, params->values + params->gate, p->n_targets,
                       params->config.d_model, 1);
        for (int i = 0; i < p->n_targets; i++)
            loop->z[i] += params->values[params->gate_bias];
    }
}

/* Share of CE_t in target i's loss. */
static double share(const struct pass *p, int t, int i)
{
    switch (p->options.objective) {
    case RECIPE_UNIFORM:
        return t < p->targets[i].first_loop ? 0 : 1.0 / (p->n_loops - p->targets[i].first_loop);
    case RECIPE_ENTROPY:
        return p->loops[t].p[i];
    case RECIPE_LAST:
        break;
    }
    return t == p->n_loops - 1;
}

/* Logits, cross entropy and their way back, a piece of rows at a time: as the probabilities to
 * exit come from the gate alone, the share of every CE is known before its logits are. */
static enum status run_head(struct pass *p, int t, struct err *err)
{
    const struct grad_ops *ops = p->ops;
    const float *head = p->params->values + p->params->head;
    struct pass_loop *loop = &p->loops[t];
    int d = p->params->config.d_model, vocab = p->params->config.vocab_size;
    loop->has_gradient = p->grads && (p->options.objective != RECIPE_LAST || t == p->n_loops - 1);
    for (int first = 0; first < p->n_targets; first += p->n_head_rows) {
        int left = p->n_targets - first;
        int n = left < p->n_head_rows ? left : p->n_head_rows;
        const int32_t *ids = p->target_ids + first;
        const float *h = loop->h_targets + (size_t)first * (size_t)d;
        ops->linear(p->logits, h, head, n, d, vocab);
        ops->cross_entropy(loop->ce + first, p->head_lse, p->best + first, p->logits, ids, n,
                           vocab);
        if (!loop->has_gradient)
            continue;
        for (int i = 0; i < n; i++)
            p->head_scale[i] =
                (float)(p->options.scale * p->targets[first + i].weight * share(p, t, first + i));
        ops->cross_entropy_back(p->logits, p->head_lse, ids, p->head_scale, n, vocab);
        ops->linear_back_input(loop->d_h_targets + (size_t)first * (size_t)d, p->logits, head, n, d,
                               vocab, false);
        ops->linear_back_weight(p->grads + p->params->head, p->logits, h, n, d, vocab);
    }
    for (int i = 0; i < p->n_targets; i++)
        if (p->targets[i].level >= 0 && p->best[i] == p->target_ids[i])
            p->sums.counts.correct[p->targets[i].level][t]++;
    for (int i = 0; i < p->n_targets; i++)
        if (!isfinite(loop->ce[i]) || !isfinite(loop->z[i]))
            return pass_fault(p, t, i, err);
    return STATUS_OK;
}

static void add_up(struct pass *p)
{
    struct pass_sums *sums = &p->sums;
    double beta = p->options.objective == RECIPE_ENTROPY ? p->options.beta : 0;
    for (int i = 0; i < p->n_targets; i++) {
        const struct pass_target *target = &p->targets[i];
        double entropy = 0, loss = 0;
        for (int t = 0; t < p->n_loops; t++) {
            const struct pass_loop *loop = &p->loops[t];
            entropy -= (double)loop->p[i] * loop->log_p[i];
            loss += share(p, t, i) * loop->ce[i];
            sums->ce[t] += target->weight * loop->ce[i];
            sums->exit_mass[t] += target->weight * loop->p[i];
        }
        sums->entropy += target->weight * entropy;
        sums->loss += target->weight * (loss - beta * entropy);
        if (target->level >= 0)
            sums->counts.n[target->level]++;
    }
}

/* With g_t = CE_t + beta log p_t (a constant more changes nothing: the p_t add up to 1) and V_t =
 * lambda_t g_t + (1 - lambda_t) V_{t+1}, V_T = g_T, what is still to come at loop t:
 * dL/dz_t = p_t (1 - lambda_t) (g_t - V_{t+1}). V is kept in `log_p`'s place of the last loop. */
static void gate_back(struct pass *p)
{
    const struct params *params = p->params;
    int d = params->config.d_model, last = p->n_loops - 1;
    double beta = p->options.beta;
    float *ahead = p->loops[last].log_p;
    for (int i = 0; i < p->n_targets; i++)
        ahead[i] = (float)(p->loops[last].ce[i] + beta * ahead[i]);
    for (int t = last - 1; t >= 0; t--) {
        struct pass_loop *loop = &p->loops[t];
        double d_bias = 0;
        for (int i = 0; i < p->n_targets; i++) {
            double lambda = 1 / (1 + exp(-(double)loop->z[i]));
            double g = loop->ce[i] + beta * loop->log_p[i];
            double d_z = p->options.scale * p->targets[i].weight * loop->p[i] * (1 - lambda) *
                         (g - ahead[i]);
            ahead[i] = (float)(lambda * g + (1 - lambda) * ahead[i]);
            p->d_z[i] = (float)d_z;
            d_bias += d_z;
        }
        p->grads[params->gate_bias] += (float)d_bias;
        p->ops->linear_back_weight(p->grads + params->gate, p->d_z, loop->h_targets, p->n_targets,
                                   d, 1);
        p->ops->linear_back_input(loop->d_h_targets, p->d_z, params->values + params->gate,
                                  p->n_targets, d, 1, true);
    }
}

enum status pass_loss(struct pass *p, struct err *err)
{
    p->sums = (struct pass_sums){0};
    run_gate(p);
    exit_probabilities(p);
    for (int t = 0; t < p->n_loops; t++) {
        enum status status = run_head(p, t, err);
        if (status != STATUS_OK)
            return status;
    }
    add_up(p);
    if (p->grads && p->options.objective == RECIPE_ENTROPY)
        gate_back(p);
    return STATUS_OK;
}
