/* What `bench engine` measured, and how it is shown. */
#ifndef CLI_BENCH_REPORT_H
#define CLI_BENCH_REPORT_H

#include "cli/bench_workload.h"
#include "cli/session.h"
#include "coordinator/coordinator.h"
#include "kernels/kernels.h"

#include <stdbool.h>
#include <stdint.h>

/* Per-request figures, gathered from the callbacks. */
struct bench_measure;
enum status bench_measure_create(uint32_t n_requests, struct bench_measure **out, struct err *err);
void bench_measure_destroy(struct bench_measure *m);
/* Forgets the warm-up. */
void bench_measure_begin(struct bench_measure *m);
/* A token has arrived. */
void bench_measure_token(struct bench_measure *m);
/* Between these two as many requests are in flight as shall be: the rate of that time is the steady
 * one, which filling up and running empty do not lower. The first call of each counts. */
void bench_measure_begin_steady(struct bench_measure *m, uint64_t now_ns);
void bench_measure_end_steady(struct bench_measure *m, uint64_t now_ns);
void bench_measure_request(struct bench_measure *m, uint32_t index,
                           const struct completion_end *end, const int32_t *tokens,
                           const uint8_t *exits, uint32_t n_tokens);

struct bench_report {
    uint64_t began_ns, ended_ns;
    uint64_t cpu_ns;                /* of this process meanwhile; in one process, of all ranks */
    uint64_t coordinator_cpu_ns;    /* of rank 0's own thread meanwhile */
    uint32_t n_open_max;            /* sequences that were admitted at the same time, at most */
    struct control_stats *stats;    /* [n_workers] */
    struct kernels_machine machine; /* zero unless --bound */
    double trace_record_ns;         /* what a record costs at most; 0: nothing was recorded */
};
void bench_report_print(const struct bench_report *report, const struct bench_measure *m,
                        const struct session *s, const struct bench_workload *w, bool as_json);

#endif
