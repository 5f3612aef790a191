/* Where the numbers of the metrics lie: one array of series a metric, all of it allocated at
 * create.
 *
 * For metrics.c, which counts, and metrics_text.c, which writes. */
#ifndef COORDINATOR_METRICS_STATE_H
#define COORDINATOR_METRICS_STATE_H

#include "coordinator/metrics.h"
#include "coordinator/metrics_table.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    METRICS_MAX_GROWING = 64, /* series of a METRIC_GROWING metric; one more is for all others */
    METRICS_VALUE_BYTES = 64  /* of a label value of those; longer ones are cut */
};

struct series {
    char *labels;     /* as they are written: a="b",c="d"; NULL: none */
    double value;     /* counter, gauge; of a histogram the sum */
    uint64_t n;       /* histograms: observations */
    uint64_t *counts; /* histograms: [bounds + 1], each bucket by itself */
};

struct metrics_family {
    size_t n, cap;
    struct series *series; /* [cap]; a growing metric has one more, for what finds no place */
    uint64_t *counts;      /* of all of them */
};

struct metrics {
    struct metrics_family families[METRIC_COUNT];
    uint32_t n_workers, n_loops;
    uint32_t n_waiting, n_running;
    uint64_t n_held_tokens;
    uint64_t *last_batches, *last_rows; /* [n_workers], of the snapshot before */
    struct text scratch;                /* labels being made */
};

/* Makes room for `cap` series of a metric, and adds the one of a METRIC_PLAIN. False: no memory. */
bool metrics_family_reserve(struct metrics *m, enum metric_id id, size_t cap);
/* Gives the next of the reserved series its label values; second may be NULL. False: no memory. */
bool metrics_family_add(struct metrics *m, enum metric_id id, const char *first,
                        const char *second);
/* Of a METRIC_GROWING: the series with these label values, maybe a new one, or "other". */
struct series *metrics_family_find(struct metrics *m, enum metric_id id, const char *first,
                                   const char *second);
void metrics_families_free(struct metrics *m);
/* Adds a value to a histogram; what is below 0 or no number counts as 0. */
void series_observe(struct series *s, const struct metric_buckets *buckets, double value);

/* A label value as the text format wants it: \ " and newline escaped, bytes that are no UTF-8
 * replaced by U+FFFD. */
void metrics_add_escaped(struct text *out, const char *value, size_t len_bytes);
/* The shortest text that reads back as the same double. */
void metrics_add_number(struct text *out, double value);

/* The METRIC_PROCESS_* of this process, first to last; NAN where /proc does not say. */
enum { METRICS_N_PROCESS = METRIC_PROCESS_MAX_FDS - METRIC_PROCESS_CPU + 1 };
void metrics_read_process(double values[METRICS_N_PROCESS]);

#endif
