/* One replica of the model on one backend: the shared block composed once over the kernel
 * interface, its KV pool, its row store, gate, head and sampler.
 *
 * Two threads use it: replica_collect and replica_run belong to the compute thread; replica_submit,
 * replica_write_rows and replica_read_rows to the driver, rows on slots that are not in a batch
 * that has been submitted and not collected. */
#ifndef WORKER_REPLICA_H
#define WORKER_REPLICA_H

#include "cluster/transport.h"
#include "model/checkpoint.h"
#include "proto/status.h"
#include "worker/batch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct replica_config {
    const char *backend;   /* kernels_create's name; "timed": waits instead (worker/timed.h) */
    const char *cost_file; /* of "timed" */
    uint64_t jitter_seed;  /* of "timed": other ranks, other jitter */
    const char *isa;       /* NULL = auto */
    int n_threads;         /* 0 = all cores */
    bool may_spin;
    int device;            /* GPU: its number */
    bool is_deterministic; /* GPU: bits that depend on no batch */
    enum dtype kv_dtype;   /* F32 or BF16 */
    uint64_t kv_bytes;     /* for KV pool and row store together; 0 on a GPU: by the next two */
    double gpu_memory_fraction; /* worker/kv_sizing.h */
    uint32_t n_sharing;
    uint32_t block_size; /* positions */
    uint32_t max_batch_rows;
    uint32_t max_sequences; /* at most that many segments per (loop): bounds the batch's segments */
};

struct replica_geometry {
    uint32_t n_blocks, block_size;
    uint32_t n_slots;
    uint64_t kv_bytes, row_bytes; /* really reserved */
    uint64_t workspace_bytes;
};

struct replica;

/* How many blocks and slots kv_bytes gives: one slot per position of every block, because every
 * position of an open sequence has at most one hidden state here. Pure; used by the coordinator's
 * checks, too. STATUS_NO_MEMORY when not even one block fits. */
enum status replica_plan(const struct model_config *model, const struct replica_config *config,
                         struct replica_geometry *out, struct err *err);

/* The checkpoint stays open while the replica lives. */
enum status replica_create(const struct checkpoint *checkpoint, const struct replica_config *config,
                           struct replica **out, struct err *err);
void replica_destroy(struct replica *r); /* NULL is fine */
const struct replica_geometry *replica_get_geometry(const struct replica *r);

/* Rows of d floats between slots and host memory: hosts[i] is the address (4-byte aligned) of
 * slots[i]'s row; a slot comes once in a list. All is borrowed until replica_sync_rows, and then
 * the rows are there: for a batch, for a message. */
enum status replica_write_rows(struct replica *r, const int32_t *slots, const void *const *hosts,
                               uint32_t n, struct err *err);
enum status replica_read_rows(struct replica *r, const int32_t *slots, void *const *hosts,
                              uint32_t n, struct err *err);
enum status replica_sync_rows(struct replica *r, struct err *err);

/* Memory for messages: the host's that rows travel through without a detour, or that which the
 * replica computes in. It may be used after replica_destroy, until released. Each kind once a
 * replica; STATUS_INTERNAL for a second time or a replica that computes nothing. */
enum replica_memory_kind { REPLICA_HOST_MEMORY = 0, REPLICA_DEVICE_MEMORY, REPLICA_MEMORY_KINDS };
enum status replica_lend_memory(struct replica *r, enum replica_memory_kind kind,
                                struct transport_memory *out, struct err *err);

/* Batches in flight that a driver gains from: 1 where collect computes, 2 on a device. Up to
 * KERNELS_MAX_IN_FLIGHT may be submitted and not collected in any case. */
uint32_t replica_depth(const struct replica *r);
/* Takes a batch; on a device its work is queued behind that of the batches before. The batch and
 * its arrays are borrowed until it has been collected. STATUS_INTERNAL for a batch that cannot be
 * (our own mistake), or one too many; any error means that the backend is lost. */
enum status replica_submit(struct replica *r, const struct batch *batch, struct err *err);
/* The result of the oldest batch that was submitted, which must be there; waits for it, or computes
 * it now. A batch is: load rows, the block once, final norm, store rows, gate on live and observed
 * rows, exit rule, head and sampler on exits, observations. result->outcomes has room for
 * batch->n_segments.
 *
 * A non-finite lambda or logit fails its own sequence through outcome.failure = STATUS_CORRUPT
 * (weights or hidden state are broken), never the batch; a request whose parameters leave nothing
 * to draw has STATUS_INVALID. A failed segment has is_exit false and no token. Where the host
 * draws, every logit row comes to it: the sampler's one pass finds what an argmax on the device
 * would not, a single NaN among them. An error return means the backend is lost, or there is no
 * memory for observations. */
enum status replica_collect(struct replica *r, struct batch_result *result, struct err *err);
/* Both, for callers that want one batch. Nothing may be submitted. */
enum status replica_run(struct replica *r, const struct batch *batch, struct batch_result *result,
                        struct err *err);

/* a and b of `a + b * rows`: from one layer at 1 row and at 32 rows, times the layers; on a device
 * from whole batches of 1 row and of up to 512. Well under a second on any model; before the first
 * sequence, whose KV and rows it may write over. */
enum status replica_calibrate(struct replica *r, uint64_t *batch_ns, uint64_t *row_ns,
                              struct err *err);
/* Writes small values over the whole KV pool, so that reading it is reading memory: pages nobody
 * has written may all be one. For measurements, before the first sequence. */
enum status replica_fill_kv(struct replica *r, struct err *err);

#endif
