/* Inside `bench calibrate`: what its files share. */
#ifndef CLI_CALIBRATE_H
#define CLI_CALIBRATE_H

#include "cluster/cost_model.h"
#include "model/checkpoint.h"
#include "worker/replica.h"

#include <jansson.h>
#include <stdbool.h>

enum { CALIBRATE_N_CHECKS = 2 };

/* A real run of the engine beside what the cost model says of it. */
struct calibrate_check {
    int concurrency, n_output;
    double predicted_tpot_ms, measured_tpot_ms;
};

struct calibrate {
    const char *model; /* directory */
    const char *isa, *backend;
    const char *blocks; /* a cost file whose batches stand for the replica's, then timed; or NULL */
    const char *transport; /* "mpi" or "inproc": of the runs that measure the drivers */
    int n_threads;         /* as a worker that has this host for itself would use */
    int max_rows;
    double seconds; /* for each of the parts that repeat */
    enum dtype kv_dtype;
    const struct checkpoint *checkpoint;
    struct cost_model *cost;
    bool is_quiet;
};

/* Block, KV, head, jitter, and a row's way into and out of a message: by running batches on a
 * replica. With `blocks`, only the row's way. */
enum status calibrate_replica(const struct calibrate *c, struct err *err);

/* Links, hand-over, messages, coordinator: by running this program's other benchmarks, the last
 * three with the timed backend, where the time of a batch is known. Needs the block's costs. */
enum status calibrate_drivers(const struct calibrate *c, struct err *err);
/* Runs the engine with the real backend and compares. */
enum status calibrate_check(const struct calibrate *c, struct calibrate_check *checks,
                            struct err *err);

#endif
