/* Measured times of one kind, and what is said of them. */
#ifndef CLI_TRACE_SAMPLES_H
#define CLI_TRACE_SAMPLES_H

#include "cli/trace_report.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace_samples {
    double *at_s;
    size_t n, room;
    bool is_broken; /* an allocation failed: what there is is not all */
};

void trace_samples_add(struct trace_samples *s, uint64_t ns);
/* Sorts and frees the samples; they are empty then. STATUS_NO_MEMORY when they are broken. */
enum status trace_samples_take(struct trace_samples *s, struct trace_quantiles *out,
                               struct err *err);
void trace_samples_free(struct trace_samples *s);

#endif
