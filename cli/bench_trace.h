/* `carousel bench trace`, and the measurement behind it: what a trace record costs here. */
#ifndef CLI_BENCH_TRACE_H
#define CLI_BENCH_TRACE_H

#include "proto/status.h"

#include <stdint.h>

/* Medians. Cold: the caches are full of other things, as between two batches. */
struct bench_trace_figures {
    uint64_t n_records;    /* that the buffer holds */
    double hot_ns;         /* a record of one segment's rows, in a buffer that stays in the cache */
    double cold_ns;        /* the same, in one that does not */
    double message_ns;     /* a record of a message, cold: the clock is read twice */
    double copy_ns;        /* a record of a full buffer that is copied */
    double copy_window_ns; /* of a full buffer of which the last tenth is copied */
};

/* With a buffer of n_bytes, 64 MiB at most, in about a tenth of a second. STATUS_NO_MEMORY. */
enum status bench_trace_measure(uint64_t n_bytes, struct bench_trace_figures *out, struct err *err);

/* argv[0] is "trace"; returns the exit code. */
int cli_bench_trace(int argc, char **argv);

#endif
