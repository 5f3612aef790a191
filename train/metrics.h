/* What one step counts, as floats: it travels at the end of the gradient. Counts add up exactly
 * up to 2^24. */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H

enum { METRICS_MAX_LEVELS = 64, METRICS_MAX_LOOPS = 8 };

struct metrics {
    float n_rows, n_sequences, n_targets;
    float loss;                         /* sum over sequences */
    float ce[METRICS_MAX_LOOPS];        /* weighted, summed over sequences */
    float exit_mass[METRICS_MAX_LOOPS]; /* p_t, likewise */
    float entropy;
    float n[METRICS_MAX_LEVELS]; /* counted targets of that level */
    float correct[METRICS_MAX_LEVELS][METRICS_MAX_LOOPS];
};
/* Floats only, so that a metrics can be added up as an array of so many. */
enum { METRICS_FLOATS = sizeof(struct metrics) / sizeof(float) };

#endif
