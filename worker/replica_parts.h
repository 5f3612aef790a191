/* Inside the replica: what its files share. */
#ifndef WORKER_REPLICA_PARTS_H
#define WORKER_REPLICA_PARTS_H

#include "worker/block.h"
#include "worker/replica.h"
#include "worker/sampler.h"
#include "worker/sampler_parts.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Observed rows of a run; grown on demand, because only diagnostics ask for them. */
struct replica_observations {
    struct control_observation *items;
    uint32_t n;
    size_t cap;
    int32_t *ids;  /* of all items, one after the other */
    float *logits; /* likewise */
    size_t n_top, cap_ids, cap_logits;
    float *hidden; /* [n_heads, d] while has_hidden */
    size_t cap_hidden;
    bool has_hidden; /* a row of the run wants its hidden state */
};

struct replica_memory; /* replica_memory.c */
struct replica_device; /* replica_device.c */

/* A batch that was submitted. */
struct replica_pending {
    const struct batch *batch;
    bool is_waiting; /* nothing of it is queued yet: collect runs it */
};

struct replica {
    struct replica_config config;
    struct replica_geometry geometry;
    struct model_config model;
    struct kernels *kernels;
    struct replica_memory *lent;    /* the kernels' memory; NULL: nobody has it */
    struct kernels_stream *compute; /* the compute thread's */
    struct kernels_stream *rows;    /* the driver thread's */
    struct block block;
    struct kernels_weight embed, head, gate,
        gate_bias; /* gate: data NULL where the model has none */
    struct kernels_kv kv;
    struct kernels_buffer store;     /* [n_slots, d] fp32 */
    struct kernels_buffer workspace; /* everything below that lives on the device */
    struct block_workspace block_workspace;
    float *lambda;       /* [max_batch_rows] */
    void *head_rows;     /* [head_group, d] of the activation type */
    float *logits;       /* [head_group, V] */
    uint32_t head_group; /* rows that go through the head at once */

    /* Batches submitted and not collected: batch number i in pending[i % KERNELS_MAX_IN_FLIGHT].
     * The driver counts what it submits, the compute thread what it collects. */
    struct replica_pending pending[KERNELS_MAX_IN_FLIGHT];
    struct kernels_batch bound[KERNELS_MAX_IN_FLIGHT]; /* the same as the kernels take it */
    atomic_uint n_submitted, n_collected;

    /* host side of the same, compute thread only */
    struct sampler *sampler;
    int32_t *select_ids;   /* [V] heap of the observed rows' top tokens */
    int32_t *gate_rows;    /* [max_batch_rows] rows whose gate is evaluated */
    int32_t *gate_index;   /* [max_batch_rows] place of a row in gate_rows, -1 when absent */
    float *host_lambda;    /* [max_batch_rows], by place in gate_rows */
    int32_t *head_list;    /* [max_batch_rows] rows that go through the head */
    int32_t *head_segment; /* [max_batch_rows] their segments */
    float *host_logits;    /* [head_group, V] */
    struct replica_observations observations;

    struct replica_device *device; /* NULL: the host decides exits and draws */
    struct replica_timed *timed;   /* backend "timed": then nothing of the above is there */
};

/* ---- replica_run.c -------------------------------------------------------------------------- */

/* A whole batch, which nothing else on the stream may overlap. */
enum status replica_run_on_host(struct replica *r, const struct batch *batch,
                                struct batch_result *result, struct err *err);
/* Draws the token of a segment that exits; o->failure says when that cannot be. */
void replica_sample(struct replica *r, const struct batch *b, uint32_t i_segment,
                    const float *logits, struct batch_outcome *o);
/* Whose token it is, where it stands and which loop it left from. */
void replica_name_token(const struct batch *b, uint32_t i_segment, struct batch_outcome *o);

/* ---- replica_device.c: where kernels_has_finish -----------------------------------------------
 */

/* What is taken is given back by replica_device_destroy, after a failure, too. */
enum status replica_device_create(struct replica *r, struct err *err);
void replica_device_destroy(struct replica *r);
/* Rows that may go through the head in one batch, and of those the ones whose logits may come to
 * the host. */
uint32_t replica_device_heads(const struct replica *r);
uint32_t replica_device_wanted(const struct replica *r);
/* False for a batch that needs the host between its operations: with observed rows, or more exits
 * or adjusted logits than there is room for. */
bool replica_device_takes(const struct replica *r, const struct batch *b);
/* Queues all of a batch, and marks its end. */
enum status replica_device_submit(struct replica *r, const struct batch *b, int flight,
                                  struct err *err);
/* Waits for it. */
enum status replica_device_collect(struct replica *r, const struct batch *b, int flight,
                                   struct batch_result *result, struct err *err);

/* ---- replica_observe.c ---------------------------------------------------------------------- */

/* The first row of the segment that is reported; rows behind it are, too. One past the last row
 * when there is none. */
int32_t replica_first_observed(const struct batch_segment *segment,
                               const struct kernels_segment *geometry);
/* Makes room for all observations of a run before the first is written, because items point into
 * the arrays. */
enum status replica_reserve_observations(struct replica *r, const struct batch *b, uint32_t n_heads,
                                         struct err *err);
/* Notes row `row` of a segment, the `i_head`-th row of the head. False, and nothing is noted, when
 * its logits are not finite. */
bool replica_observe(struct replica *r, const struct batch *b, uint32_t i_segment, uint32_t i_head,
                     const float *logits);

/* ---- replica_timed.c ------------------------------------------------------------------------ */

/* What is taken is given back by replica_timed_destroy, after a failure, too. */
enum status replica_timed_create(struct replica *r, const struct replica_config *config,
                                 struct err *err);
void replica_timed_destroy(struct replica *r);
void replica_timed_read_rows(const struct replica *r, uint32_t n, void *const *hosts);
void replica_timed_run(struct replica *r, const struct batch *batch, struct batch_result *result);
void replica_timed_knee(const struct replica *r, uint64_t *batch_ns, uint64_t *row_ns);

/* Destroys the kernels, or leaves them to the one that has their memory. */
void replica_leave_kernels(struct replica *r);

/* Rows per pass of the head, so that logits stay within a fixed size on any vocabulary. */
uint32_t replica_head_group(const struct model_config *model, uint32_t max_batch_rows);

#endif
