/* The metrics of the server, one row each: name, type, help, labels, buckets.
 *
 * docs/metrics.md shows the table, and a test compares the two. Units are base units and stand in
 * the names, counters end in _total. The label `worker` is the worker's rank, 1 .. W. */
#ifndef COORDINATOR_METRICS_TABLE_H
#define COORDINATOR_METRICS_TABLE_H

#include <stddef.h>

enum metric_type { METRIC_COUNTER = 1, METRIC_GAUGE, METRIC_HISTOGRAM };

enum { METRIC_MAX_LABELS = 2, METRIC_MAX_BOUNDS = 24 };

struct metric_buckets {
    size_t n;
    double bounds[METRIC_MAX_BOUNDS]; /* ascending, upper ends; +Inf follows by itself */
};

/* What the series of a metric are. */
enum metric_shape {
    METRIC_PLAIN = 0, /* one, without labels */
    METRIC_FIXED,     /* few, known from the start: a label with a set of values, or build_info */
    METRIC_LOOPS,     /* one per loop */
    METRIC_WORKERS,   /* one per worker */
    METRIC_WORKERS_LABEL, /* one per worker and value of a second label */
    METRIC_LOOPS_WORKERS, /* one per loop and worker */
    METRIC_GROWING        /* label values as they are first seen, a bounded number */
};

struct metric {
    const char *name; /* without the prefix, but for process_* */
    enum metric_type type;
    enum metric_shape shape;
    const char *labels[METRIC_MAX_LABELS];
    const struct metric_buckets *buckets; /* histograms only */
    const char *help;                     /* one sentence */
};

/* In the order of the exposition. */
enum metric_id {
    METRIC_BUILD_INFO = 0,
    METRIC_MODEL_INFO,
    METRIC_SERVER_STATE,
    METRIC_HTTP_REQUESTS,
    METRIC_HTTP_SECONDS,
    METRIC_HTTP_CONNECTIONS,
    METRIC_HTTP_UNSENT,
    METRIC_HTTP_RECEIVING,
    METRIC_REFUSED,
    METRIC_CANCELLED,
    METRIC_RUNNING,
    METRIC_WAITING,
    METRIC_HELD_TOKENS,
    METRIC_PROMPT_TOKENS,
    METRIC_GENERATION_TOKENS,
    METRIC_SUCCESS,
    METRIC_FAILED,
    METRIC_TTFT,
    METRIC_ITL,
    METRIC_E2E,
    METRIC_QUEUE_TIME,
    METRIC_REQUEST_PROMPT,
    METRIC_REQUEST_GENERATION,
    METRIC_TOKEN_TO_SOCKET,
    METRIC_EXITS,
    METRIC_LOOP_COMPUTE,
    METRIC_LOOP_WAIT,
    METRIC_HOP,
    METRIC_KV_USAGE,
    METRIC_SEQUENCES,
    METRIC_WORKER_UP,
    METRIC_WORKER_BUSY,
    METRIC_WORKER_IDLE,
    METRIC_BATCHES,
    METRIC_ROWS,
    METRIC_LOOP_ROWS,
    METRIC_HEAD_ROWS,
    METRIC_BATCH_ROWS,
    METRIC_BATCH_COST,
    METRIC_ROW_COST,
    METRIC_KV_BLOCKS_USED,
    METRIC_KV_BLOCKS,
    METRIC_PARKED,
    METRIC_PARKED_TOTAL,
    METRIC_REVIVED_TOTAL,
    METRIC_ROW_SLOTS_USED,
    METRIC_ROW_SLOTS,
    METRIC_WORKER_SEQUENCES,
    METRIC_MESSAGES_SENT,
    METRIC_BYTES_SENT,
    METRIC_STALE_FRAMES,
    METRIC_PROCESS_CPU,
    METRIC_PROCESS_RESIDENT,
    METRIC_PROCESS_VIRTUAL,
    METRIC_PROCESS_START,
    METRIC_PROCESS_OPEN_FDS,
    METRIC_PROCESS_MAX_FDS,
    METRIC_COUNT
};

#define METRIC_PREFIX "carousel_"

extern const struct metric metrics_table[METRIC_COUNT];

/* "counter", "gauge", "histogram". */
const char *metric_type_name(enum metric_type type);

#endif
