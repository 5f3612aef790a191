/* One pass over a few sequences: checked, forward, loss, backward, counted. */
#include "train/pass_parts.h"

#include <math.h>

/* Sequences run together up to so many rows: more do not make the products faster, and their
 * activations no longer fit the caches between forward and backward (d = 64: 800 rows at once take
 * a fifth longer than pieces of 200). */
enum { PIECE_ROWS = 256 };

static enum status check_options(const struct pass *p, const struct pass_options *o,
                                 struct err *err)
{
    if (o->n_loops < 1 || o->n_loops > METRICS_MAX_LOOPS)
        return err_set(err, STATUS_INVALID, "%d open loops: 1 to %d can be trained", o->n_loops,
                       METRICS_MAX_LOOPS);
    if (o->objective == RECIPE_ENTROPY && !p->params->config.has_gate)
        return err_set(err, STATUS_INVALID,
                       "the entropy objective needs an exit gate, which %s has not: use uniform or "
                       "last",
                       p->params->config.architecture);
    return STATUS_OK;
}

/* Row i of sequence s. */
static enum status check_row(const struct pass *p, const struct sequence_rows *q, int s, int i,
                             struct err *err)
{
    const struct model_config *c = &p->params->config;
    if (q->ids[i] < 0 || q->ids[i] >= c->vocab_size)
        return err_set(
            err, STATUS_INVALID,
            "sequence %d, row %d: id %d is outside the model's %d tokens: data and model "
            "need the same tokenizer",
            s, i, (int)q->ids[i], c->vocab_size);
    if (q->targets[i] < -1 || q->targets[i] >= c->vocab_size)
        return err_set(err, STATUS_INVALID,
                       "sequence %d, row %d: target %d is outside the model's %d tokens: data and "
                       "model need the same tokenizer",
                       s, i, (int)q->targets[i], c->vocab_size);
    if (q->positions[i] < 0 || q->positions[i] >= c->max_positions)
        return err_set(err, STATUS_INVALID,
                       "sequence %d, row %d: position %d, but the model has %d: shorten the "
                       "sequences or raise max_position_embeddings",
                       s, i, (int)q->positions[i], c->max_positions);
    if (q->targets[i] >= 0 && (!isfinite(q->weights[i]) || q->weights[i] < 0))
        return err_set(err, STATUS_INVALID, "sequence %d, row %d: a target of weight %g", s, i,
                       (double)q->weights[i]);
    if (q->levels[i] >= METRICS_MAX_LEVELS)
        return err_set(err, STATUS_INVALID, "sequence %d, row %d: level %d of at most %d", s, i,
                       q->levels[i], METRICS_MAX_LEVELS);
    return STATUS_OK;
}

/* Counts rows and targets, and how many positions there are. */
static enum status check_sequences(struct pass *p, int *n_positions, struct err *err)
{
    p->n_rows = p->n_targets = p->longest = 0;
    *n_positions = 1;
    for (int s = 0; s < p->n_sequences; s++) {
        const struct sequence_rows *q = p->sequences[s];
        if (__builtin_add_overflow(p->n_rows, q->n, &p->n_rows))
            return err_set(err, STATUS_INVALID, "more rows than can be counted in one pass");
        p->longest = q->n > p->longest ? q->n : p->longest;
        for (int i = 0; i < q->n; i++) {
            enum status status = check_row(p, q, p->first_sequence + s, i, err);
            if (status != STATUS_OK)
                return status;
            p->n_targets += q->targets[i] >= 0;
            *n_positions = q->positions[i] >= *n_positions ? q->positions[i] + 1 : *n_positions;
        }
    }
    return STATUS_OK;
}

/* From 0; the last open loop for a level that would need more. */
static int first_loop(const struct pass *p, int level)
{
    if (p->options.first_loops == NULL || level < 0)
        return 0;
    int first = p->options.first_loops[level] - 1;
    return first < p->n_loops ? first : p->n_loops - 1;
}

static enum status collect_targets(struct pass *p, struct err *err)
{
    enum status status = pass_reserve_targets(p, p->n_targets, err);
    if (status != STATUS_OK)
        return status;
    int row = 0, n = 0;
    for (int s = 0; s < p->n_sequences; s++) {
        const struct sequence_rows *q = p->sequences[s];
        double sum = 0;
        int first = n;
        for (int i = 0; i < q->n; i++, row++) {
            if (q->targets[i] < 0)
                continue;
            sum += q->weights[i];
            p->target_ids[n] = q->targets[i];
            p->targets[n++] = (struct pass_target){.row = row,
                                                   .sequence = p->first_sequence + s,
                                                   .at = i,
                                                   .weight = q->weights[i],
                                                   .level = q->levels[i],
                                                   .first_loop = first_loop(p, q->levels[i])};
        }
        if (n > first && sum <= 0)
            return err_set(err, STATUS_INVALID, "sequence %d: all %d targets have weight 0",
                           p->first_sequence + s, n - first);
        for (int i = first; i < n; i++)
            p->targets[i].weight /= sum;
    }
    return STATUS_OK;
}

static void add_metrics(const struct pass *p, struct metrics *m)
{
    const struct pass_sums *sums = &p->sums;
    m->n_rows += (float)p->n_rows;
    m->n_sequences += (float)p->n_sequences;
    m->n_targets += (float)p->n_targets;
    m->loss += (float)sums->loss;
    m->entropy += (float)sums->entropy;
    for (int t = 0; t < p->n_loops; t++) {
        m->ce[t] += (float)sums->ce[t];
        m->exit_mass[t] += (float)sums->exit_mass[t];
    }
    for (int level = 0; level < METRICS_MAX_LEVELS; level++) {
        m->n[level] += sums->counts.n[level];
        for (int t = 0; t < p->n_loops; t++)
            m->correct[level][t] += sums->counts.correct[level][t];
    }
}

/* Forward, loss and backward of the sequences in p; metrics take them on success. */
static enum status run_piece(struct pass *p, struct metrics *metrics, struct err *err)
{
    int n_positions;
    p->sums = (struct pass_sums){0};
    enum status status = check_sequences(p, &n_positions, err);
    if (status == STATUS_OK)
        status = collect_targets(p, err);
    if (status == STATUS_OK && p->n_targets > 0) {
        status = pass_reserve(p, n_positions, err);
        if (status == STATUS_OK) {
            pass_forward(p);
            status = pass_loss(p, err);
        }
        if (status == STATUS_OK && p->grads)
            pass_backward(p);
    }
    if (status == STATUS_OK)
        add_metrics(p, metrics);
    return status;
}

/* How many of n sequences are taken together: at least one. */
static int piece_length(const struct sequence_rows *const *sequences, int n)
{
    int n_rows = sequences[0]->n, taken = 1;
    while (taken < n && sequences[taken]->n <= PIECE_ROWS - n_rows)
        n_rows += sequences[taken++]->n;
    return taken;
}

enum status pass_run(struct pass *p, const struct sequence_rows *const *sequences, int n,
                     const struct pass_options *options, float *grads, struct metrics *metrics,
                     struct err *err)
{
    struct metrics sum = *metrics;
    enum status status = check_options(p, options, err);
    p->options = *options;
    p->n_loops = options->n_loops;
    p->grads = grads;
    for (int first = 0; first < n && status == STATUS_OK; first += p->n_sequences) {
        p->first_sequence = first;
        p->sequences = sequences + first;
        p->n_sequences = piece_length(sequences + first, n - first);
        status = run_piece(p, &sum, err);
    }
    if (status == STATUS_OK)
        *metrics = sum;
    return status;
}
