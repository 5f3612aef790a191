/* Inside the replica: what its files share. */
#ifndef WORKER_REPLICA_PARTS_H
#define WORKER_REPLICA_PARTS_H

#include "worker/block.h"
#include "worker/replica.h"
#include "worker/sampler.h"

#include <stddef.h>
#include <stdint.h>

/* Observed rows of a run; grown on demand, because only diagnostics ask for them. */
struct replica_observations {
    struct control_observation *items;
    uint32_t n, cap;
    int32_t *ids;  /* of all items, one after the other */
    float *logits; /* likewise */
    size_t n_top, cap_top;
};

struct replica {
    struct replica_config config;
    struct replica_geometry geometry;
    struct model_config model;
    struct kernels *kernels;
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
    float *head_rows;    /* [head_group, d] */
    float *logits;       /* [head_group, V] */
    uint32_t head_group; /* rows that go through the head at once */

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
};

/* Rows per pass of the head, so that logits stay within a fixed size on any vocabulary. */
uint32_t replica_head_group(const struct model_config *model, uint32_t max_batch_rows);

#endif
