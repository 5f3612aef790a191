/* The synthetic requests of `bench engine`: request i is a function of (seed, i), whatever runs
 * beside it. */
#ifndef CLI_BENCH_WORKLOAD_H
#define CLI_BENCH_WORKLOAD_H

#include "cli/options.h"
#include "model/config.h"
#include "proto/sequence.h"

#include <stdbool.h>
#include <stdint.h>

struct bench_workload {
    int n_requests, n_warmup, concurrency;
    const char *prompt_range, *output_range; /* "32" or "8-64" */
    int prompt_min, prompt_max, output_min, output_max;
    uint64_t seed;
    bool is_mixed; /* thresholds, temperatures, seeds and lengths differ from request to request */
    double cancel_fraction;
    const char *force_exits_text;
    float force_exits[SEQUENCE_MAX_LOOPS];
    size_t n_force_exits;
};

enum { BENCH_WORKLOAD_N_SPECS = 10 };
void bench_workload_init(struct bench_workload *w);
struct option_group bench_workload_group(struct bench_workload *w, struct option_spec *specs);
/* Reads the ranges and the distribution: what the command line alone can get wrong. STATUS_INVALID.
 */
enum status bench_workload_parse(struct bench_workload *w, struct err *err);
/* Does it fit the model? STATUS_INVALID. */
enum status bench_workload_check(const struct bench_workload *w, const struct model_config *config,
                                 struct err *err);

struct bench_request {
    uint32_t n_prompt, n_output;
    uint32_t cancel_at; /* cancelled when that many tokens have come; UINT32_MAX = not at all */
    struct sequence_params params; /* base changed where the workload is mixed */
};
/* Draws request i; ids has room for prompt_max. `base` has what all requests share. */
void bench_workload_draw(const struct bench_workload *w, uint32_t i,
                         const struct model_config *config, const struct sequence_params *base,
                         struct bench_request *out, int32_t *ids);

#endif
