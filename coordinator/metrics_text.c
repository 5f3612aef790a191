/* Writes all metrics in Prometheus' text format 0.0.4, each family in one piece. */
#include "coordinator/metrics_state.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { NUMBER_BYTES = 32 };

void metrics_add_escaped(struct text *out, const char *value, size_t len_bytes)
{
    for (size_t i = 0; i < len_bytes;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t size = utf8proc_iterate((const utf8proc_uint8_t *)value + i,
                                                 (utf8proc_ssize_t)(len_bytes - i), &c);
        if (size <= 0)
            text_adds(out, "\xef\xbf\xbd");
        else if (c == '\\' || c == '"')
            text_addf(out, "\\%c", (char)c);
        else if (c == '\n')
            text_adds(out, "\\n");
        else
            text_add(out, value + i, (size_t)size);
        i += size > 0 ? (size_t)size : 1;
    }
}

/* The shortest text of a double that reads back the same, at most 24 characters. */
static void number_text(double value, char text[NUMBER_BYTES])
{
    if (isnan(value)) {
        strcpy(text, "NaN");
    } else if (isinf(value)) {
        strcpy(text, value > 0 ? "+Inf" : "-Inf");
    } else if (value == floor(value) && fabs(value) < 9007199254740992.0) {
        snprintf(text, NUMBER_BYTES, "%.0f", value);
    } else {
        for (int digits = 15; digits <= 17; digits++) {
            snprintf(text, NUMBER_BYTES, "%.*g", digits, value);
            if (strtod(text, NULL) == value)
                break;
        }
    }
}

void metrics_add_number(struct text *out, double value)
{
    char text[NUMBER_BYTES];
    number_text(value, text);
    text_adds(out, text);
}

/* One line of a family: name and suffix, labels with an optional le, the value follows. */
static void add_name(struct text *out, const char *name, const char *suffix, const char *labels)
{
    text_adds(out, name);
    text_adds(out, suffix);
    if (labels != NULL) {
        text_adds(out, "{");
        text_adds(out, labels);
        text_adds(out, "}");
    }
    text_adds(out, " ");
}

/* A page may have ten thousand of these, and streams wait while it is written. */
static void add_count(struct text *out, uint64_t n)
{
    char digits[20], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    text_add(out, at, (size_t)(digits + sizeof digits - at));
}

/* ends[i] is the value of the label le of bucket i. */
static void write_bucket_ends(const struct metric_buckets *buckets, char ends[][NUMBER_BYTES])
{
    for (size_t i = 0; i <= buckets->n; i++)
        number_text(i < buckets->n ? buckets->bounds[i] : INFINITY, ends[i]);
}

static void add_histogram(struct text *out, const char *name, const struct metric_buckets *buckets,
                          char ends[][NUMBER_BYTES], const struct series *s)
{
    uint64_t n = 0;
    for (size_t i = 0; i <= buckets->n; i++) {
        n += s->counts[i];
        text_adds(out, name);
        text_adds(out, "_bucket{");
        if (s->labels != NULL) {
            text_adds(out, s->labels);
            text_adds(out, ",");
        }
        text_adds(out, "le=\"");
        text_adds(out, ends[i]);
        text_adds(out, "\"} ");
        add_count(out, n);
        text_adds(out, "\n");
    }
    add_name(out, name, "_sum", s->labels);
    metrics_add_number(out, s->value);
    text_adds(out, "\n");
    add_name(out, name, "_count", s->labels);
    add_count(out, s->n);
    text_adds(out, "\n");
}

static void add_family(const struct metrics *m, enum metric_id id, const double *process,
                       struct text *out)
{
    const struct metric *metric = &metrics_table[id];
    const struct metrics_family *f = &m->families[id];
    char name[96];
    bool is_process = strncmp(metric->name, "process_", 8) == 0;
    snprintf(name, sizeof name, "%s%s", is_process ? "" : METRIC_PREFIX, metric->name);
    text_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, metric->help, name,
              metric_type_name(metric->type));
    if (is_process) {
        add_name(out, name, "", NULL);
        metrics_add_number(out, process[id - METRIC_PROCESS_CPU]);
        text_adds(out, "\n");
        return;
    }
    char ends[METRIC_MAX_BOUNDS + 1][NUMBER_BYTES];
    if (metric->type == METRIC_HISTOGRAM)
        write_bucket_ends(metric->buckets, ends);
    size_t n = f->n;
    const struct series *rest = metric->shape == METRIC_GROWING ? &f->series[f->cap] : NULL;
    bool has_rest = rest != NULL && (rest->n > 0 || rest->value > 0);
    for (size_t i = 0; i < n + (has_rest ? 1 : 0); i++) {
        const struct series *s = i < n ? &f->series[i] : rest;
        if (metric->type != METRIC_HISTOGRAM) {
            add_name(out, name, "", s->labels);
            metrics_add_number(out, s->value);
            text_adds(out, "\n");
        } else if (s->labels == NULL || s->n > 0) {
            /* Loops times workers are many: those that nothing went through are left out. */
            add_histogram(out, name, metric->buckets, ends, s);
        }
    }
}

void metrics_write(const struct metrics *m, struct text *out)
{
    double process[METRICS_N_PROCESS];
    metrics_read_process(process);
    for (int id = 0; id < METRIC_COUNT; id++)
        add_family(m, (enum metric_id)id, process, out);
}
