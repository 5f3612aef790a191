/* The traces of all ranks of a run, side by side, and the file they are kept in.
 *
 * The file is Chrome's trace JSON, as Perfetto and chrome://tracing open it: one event a line, so
 * that this program reads it back line by line. docs/traces.md lists events, tracks and args.
 * Times in the file are microseconds of the coordinator's clock since the first event. */
#ifndef COORDINATOR_TRACE_SET_H
#define COORDINATOR_TRACE_SET_H

#include "coordinator/trace_clock.h"
#include "proto/status.h"
#include "proto/trace.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct trace_rank {
    char host[64];
    struct trace_record *records; /* by this rank's own clock; in the order they were made */
    size_t n_records;
    uint64_t n_lost;         /* overwritten before they could be kept */
    bool is_missing;         /* the run failed before it was asked for its records */
    int64_t clock_offset_ns; /* this rank's clock less the coordinator's */
    uint64_t clock_error_ns; /* the offset is wrong by at most this */
    bool is_clock_shared;    /* one clock: offset and error are 0 exactly */
    /* How the offset was at several times, for records that are old; NULL: always the same. */
    struct trace_clock *clocks;
    size_t n_clocks;
    int64_t clock_removed_ns; /* the offset that align took out of the times; the file tells it */
};

struct trace_set {
    uint32_t n_ranks; /* the coordinator, then the workers */
    struct trace_rank *ranks;
    uint32_t n_loops, ring_size;
    bool is_simulated;
    char model[256], version[32];
};

/* Ranks without records; STATUS_NO_MEMORY. */
enum status trace_set_create(uint32_t n_ranks, struct trace_set **out, struct err *err);
void trace_set_destroy(struct trace_set *set); /* NULL is fine; frees the records */
/* Appends a copy. STATUS_NO_MEMORY. */
enum status trace_set_append(struct trace_set *set, uint32_t rank,
                             const struct trace_record *records, size_t n, struct err *err);

/* Makes one trace of many: times of all ranks become the coordinator's clock, hops lose the offset
 * of the two clocks (negative ones become 0), records of a rank are sorted by begin, and a starved
 * worker's idle time is split by what the coordinator says of it (TRACE_IDLE_KV, _DRAINING).
 * Offsets become 0 and keep their errors (with clocks: the largest of the records' times). Called
 * once, before write and report. STATUS_NO_MEMORY.
 */
enum status trace_set_align(struct trace_set *set, struct err *err);

/* Of an aligned set. STATUS_IO: the file could not be written (path is named). The file appears
 * whole or not at all (model/atomic_file.h). */
enum status trace_set_write(const struct trace_set *set, const char *path, struct err *err);
/* Reads such a file back, aligned. STATUS_NOT_FOUND, STATUS_IO, STATUS_CORRUPT (line and what was
 * found there; a trace of another program is told as such). */
enum status trace_set_read(const char *path, struct trace_set **out, struct err *err);
/* The same from memory, for tests and fuzzing. */
enum status trace_set_parse(const char *text, size_t len_bytes, const char *name,
                            struct trace_set **out, struct err *err);

#endif
