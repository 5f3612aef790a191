/* The options of `carousel simulate`, checked and turned into a config and a load. */
#ifndef CLI_SIMULATE_OPTIONS_H
#define CLI_SIMULATE_OPTIONS_H

#include "cli/bench_workload.h"
#include "cli/options.h"
#include "cli/simulate_load.h"
#include "cli/simulate_world.h"

#include <stdbool.h>

struct simulate_options {
    const char *model; /* a directory with config.json; NULL: the shape */
    int shape, n_loops;
    const char *cost_file;
    int n_workers, ring_size;
    int block_size, max_batch_rows, prefill_chunk, max_sequences, n_in_flight;
    int batching, prefill, kv_dtype;
    int n_blocks;
    bool has_shape, has_blocks, has_arrivals, has_rate;
    uint64_t kv_bytes;
    double wait_ms;
    int arrivals; /* closed|poisson|burst */
    double rate, period_ms;
    int n_burst;
    uint64_t seed;
    const char *replay;
    const char *trace;
    uint64_t trace_bytes;
    bool has_trace_bytes, with_report, with_efficiency, with_workers, as_json;
    struct bench_workload workload;
};

enum { SIMULATE_N_GROUPS = 2, SIMULATE_N_SPECS = 32 };
struct simulate_specs {
    struct option_spec own[SIMULATE_N_SPECS], workload[BENCH_WORKLOAD_N_SPECS];
};
void simulate_options_init(struct simulate_options *o);
/* Fills groups[SIMULATE_N_GROUPS]; returns how many. */
size_t simulate_options_groups(struct simulate_options *o, struct simulate_specs *specs,
                               struct option_group *groups);
/* What the command line alone can get wrong. STATUS_INVALID. */
enum status simulate_options_check(struct simulate_options *o, const struct options_result *args,
                                   struct err *err);
/* Model, costs, sizes and requests; *load borrows from *o and *config, and is freed with
 * simulate_load_free. What the files and their values get wrong. */
enum status simulate_options_apply(struct simulate_options *o, struct simulate_config *config,
                                   struct simulate_load *load, struct err *err);

#endif
