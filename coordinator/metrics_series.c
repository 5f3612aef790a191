/* Keeps the series of a metric: room for them, their labels, the buckets of a histogram. */
#include "coordinator/metrics_state.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

bool metrics_family_reserve(struct metrics *m, enum metric_id id, size_t cap)
{
    const struct metric *metric = &metrics_table[id];
    struct metrics_family *f = &m->families[id];
    size_t n = cap + (metric->shape == METRIC_GROWING ? 1 : 0);
    assert(f->series == NULL && n > 0);
    f->series = calloc(n, sizeof *f->series);
    if (f->series == NULL)
        return false;
    f->cap = cap;
    if (metric->type == METRIC_HISTOGRAM) {
        size_t n_counts = metric->buckets->n + 1;
        f->counts = calloc(n, n_counts * sizeof *f->counts);
        if (f->counts == NULL)
            return false;
        for (size_t i = 0; i < n; i++)
            f->series[i].counts = f->counts + i * n_counts;
    }
    if (metric->shape == METRIC_PLAIN)
        f->n = 1;
    if (metric->shape != METRIC_GROWING)
        return true;
    /* The series for what finds no place is labelled now, so that it needs no memory then. */
    f->n = cap;
    f->cap++;
    bool is_done = metrics_family_add(m, id, "other", metric->labels[1] != NULL ? "other" : NULL);
    f->n = 0;
    f->cap--;
    return is_done;
}

/* Writes the labels into m->scratch. */
static bool make_labels(struct metrics *m, const struct metric *metric, const char *const values[])
{
    struct text *t = &m->scratch;
    text_reset(t);
    t->is_broken = false;
    for (int i = 0; i < METRIC_MAX_LABELS && metric->labels[i] != NULL; i++) {
        size_t len_bytes = metric->shape == METRIC_GROWING ? strnlen(values[i], METRICS_VALUE_BYTES)
                                                           : strlen(values[i]);
        text_addf(t, i > 0 ? ",%s=\"" : "%s=\"", metric->labels[i]);
        metrics_add_escaped(t, values[i], len_bytes);
        text_adds(t, "\"");
    }
    text_add(t, "", 1);
    return !t->is_broken;
}

bool metrics_family_add(struct metrics *m, enum metric_id id, const char *first, const char *second)
{
    struct metrics_family *f = &m->families[id];
    const char *const values[METRIC_MAX_LABELS] = {first, second};
    assert(f->n < f->cap);
    if (!make_labels(m, &metrics_table[id], values))
        return false;
    char *labels = strdup(m->scratch.bytes);
    if (labels == NULL)
        return false;
    f->series[f->n++].labels = labels;
    return true;
}

struct series *metrics_family_find(struct metrics *m, enum metric_id id, const char *first,
                                   const char *second)
{
    struct metrics_family *f = &m->families[id];
    const char *const values[METRIC_MAX_LABELS] = {first, second};
    assert(metrics_table[id].shape == METRIC_GROWING);
    if (!make_labels(m, &metrics_table[id], values))
        return &f->series[f->cap];
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->series[i].labels, m->scratch.bytes) == 0)
            return &f->series[i];
    if (f->n < f->cap && metrics_family_add(m, id, first, second))
        return &f->series[f->n - 1];
    return &f->series[f->cap];
}

void metrics_families_free(struct metrics *m)
{
    for (size_t id = 0; id < METRIC_COUNT; id++) {
        struct metrics_family *f = &m->families[id];
        size_t n = f->cap + (metrics_table[id].shape == METRIC_GROWING ? 1 : 0);
        for (size_t i = 0; f->series != NULL && i < n; i++)
            free(f->series[i].labels);
        free(f->series);
        free(f->counts);
    }
    text_free(&m->scratch);
}

/* A lower bound without branches on the values: every token makes about a dozen of these. */
void series_observe(struct series *s, const struct metric_buckets *buckets, double value)
{
    static const double most = 1e9;
    const double *bounds = buckets->bounds;
    value = value >= 0 ? value : 0;
    value = value < most ? value : most;
    size_t base = 0;
    for (size_t len = buckets->n; len > 1;) {
        size_t half = len / 2;
        base += bounds[base + half - 1] < value ? half : 0;
        len -= half;
    }
    base += bounds[base] < value ? 1 : 0;
    s->counts[base]++;
    s->n++;
    s->value += value;
}
