/* What work costs: seconds of a batch as a function of its rows and their KV length, of a message
 * as a function of its bytes. From a JSON file that `carousel bench calibrate` measures, or that
 * was put together from published figures (cluster/costs/).
 *
 * The simulator and the timed backend ask the same model. Pure but for reading the file. Times are
 * nanoseconds as double. docs/simulator.md has the file's fields. */
#ifndef CLUSTER_COST_MODEL_H
#define CLUSTER_COST_MODEL_H

#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

enum { COST_MODEL_MAX_POINTS = 32 };

/* The largest jitter: above it a batch could take no time. */
#define COST_MODEL_MAX_JITTER 0.25

/* y over x, linear between the points; beyond the last one its last slope goes on, before the first
 * one y stays. */
struct cost_curve {
    uint32_t n_points; /* >= 1; x ascending */
    double x[COST_MODEL_MAX_POINTS], y[COST_MODEL_MAX_POINTS];
};

struct cost_link {
    double latency_ns;  /* post to arrival of an empty message */
    double ns_per_byte; /* 1 / bandwidth */
};

struct cost_model {
    char name[128], source[512]; /* for people: machine, model, command or publication */
    char backend[16];            /* "cpu", "cuda" */
    struct cost_curve block; /* one loop of the block over x rows, no KV: weights and arithmetic */
    double kv_position_ns;   /* a row reads the KV of one earlier position, all layers */
    struct cost_curve head;  /* final head and sampler over x rows that get off; 0 rows cost 0 */
    /* Stage, hand-over to the compute thread and back, per batch: a driver's time, not part of
     * cost_model_batch_ns. The timed backend spends it for real; a simulator adds it. */
    double batch_overhead_ns;
    /* Driver threads. */
    double worker_message_ns, worker_row_ns; /* a message; a row in one, in or out */
    double coordinator_request_ns, coordinator_token_ns;
    struct cost_link local, remote; /* between ranks of one host; of two */
    uint32_t ranks_per_host;        /* 1: every rank has its own; rank r is on host r / this */
    double jitter;                  /* relative standard deviation of a batch's time; 0: none */
};

/* STATUS_NOT_FOUND, STATUS_CORRUPT: file, field, what was found, what is accepted. */
enum status cost_model_load(const char *path, struct cost_model *out, struct err *err);
enum status cost_model_parse(const char *text, size_t len_bytes, const char *name,
                             struct cost_model *out, struct err *err);
/* STATUS_IO. */
enum status cost_model_save(const struct cost_model *m, const char *path, struct err *err);

double cost_curve_at(const struct cost_curve *c, double x);
/* A batch of n_rows whose rows read n_kv_positions positions of KV together, n_heads of them going
 * through the head. *head_ns (may be NULL) is the head's part. Without jitter. */
double cost_model_batch_ns(const struct cost_model *m, uint32_t n_rows, double n_kv_positions,
                           uint32_t n_heads, double *head_ns);
/* a and b of the knee rule: the line through 1 and 32 rows, as a worker measures it at start. */
void cost_model_knee(const struct cost_model *m, uint64_t *batch_ns, uint64_t *row_ns);
/* Post to arrival. */
double cost_model_link_ns(const struct cost_model *m, uint32_t from_rank, uint32_t to_rank,
                          uint64_t n_bytes);

#endif
