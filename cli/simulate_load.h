/* What is asked of a simulated cluster: requests, one after the other, and when each arrives.
 *
 * Request i is a function of (seed, i) exactly as in `bench engine` (cli/bench_workload.h), so that
 * the same workload runs here and there; or it is request i of a recorded trace. */
#ifndef CLI_SIMULATE_LOAD_H
#define CLI_SIMULATE_LOAD_H

#include "cli/bench_workload.h"
#include "model/config.h"
#include "proto/sequence.h"
#include "proto/status.h"

#include <stdint.h>

enum simulate_arrivals {
    ARRIVALS_CLOSED = 0, /* `concurrency` in flight: each end brings the next one */
    ARRIVALS_POISSON,    /* rate_per_s on average, whatever is in flight */
    ARRIVALS_BURST,      /* n_burst at once, every period_ns */
    ARRIVALS_REPLAY      /* as recorded */
};

/* One request of a recorded run. */
struct simulate_recorded {
    uint64_t arrived_ns; /* since the first one */
    uint32_t n_prompt, n_tokens;
    size_t first_exit; /* exits[first_exit .. + n_tokens) */
};

struct simulate_load {
    const struct bench_workload *workload; /* borrowed */
    const struct model_config *model;      /* borrowed */
    struct sequence_params base;
    enum simulate_arrivals arrivals;
    double rate_per_s;
    uint32_t n_burst;
    uint64_t period_ns;
    /* ARRIVALS_REPLAY */
    uint32_t n_recorded;
    struct simulate_recorded *recorded; /* in the order of arrival */
    uint8_t *exits;                     /* exit loop of every token */
};

/* Draws request i; *ids is malloc'd, the caller's, [out->n_prompt]. *exits: the loops its tokens
 * get off at, [out->n_output], the load's; NULL: drawn as out->params say. STATUS_NO_MEMORY. */
enum status simulate_load_draw(const struct simulate_load *load, uint32_t i,
                               struct bench_request *out, int32_t **ids, const uint8_t **exits,
                               struct err *err);
/* When request i arrives, after the phase's begin; previous_ns is that of request i - 1, and 0 for
 * the phase's first. Not for ARRIVALS_CLOSED. */
uint64_t simulate_load_arrival_ns(const struct simulate_load *load, uint32_t i, uint32_t first,
                                  uint64_t previous_ns);

/* Reads the requests of a recorded trace; simulate_load_free gives their memory back.
 * STATUS_INVALID: a trace without requests, or one of another T. Else as trace_set_read. */
enum status simulate_load_replay(struct simulate_load *load, const char *path, struct err *err);
void simulate_load_free(struct simulate_load *load);

#endif
