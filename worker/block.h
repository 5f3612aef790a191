/* The shared block, composed once over the kernel interface: L layers and the final norm.
 *
 * It knows shapes and the order of operations; where weights and activations live is the backend's
 * business. One loop of a LoopLM is one block_run (arXiv 2510.25741, section 3). */
#ifndef WORKER_BLOCK_H
#define WORKER_BLOCK_H

#include "kernels/kernels.h"
#include "model/checkpoint.h"
#include "proto/status.h"

#include <stddef.h>
#include <stdint.h>

struct block_layer {
    struct kernels_weight norm_attention,
        norm_attention_out; /* the _out norms: data NULL in pre-norm models */
    struct kernels_weight norm_mlp, norm_mlp_out;
    struct kernels_weight q, k, v, o, gate, up, down;
};

/* Weights of the block on a backend. */
struct block {
    struct model_config config;
    struct block_layer *layers; /* n_layers */
    struct kernels_weight norm;
};

/* Activations of one batch, carved from one buffer; all row-major fp32, n <= max_rows. */
struct block_workspace {
    float *h;                     /* [n, d] the residual stream: in */
    float *y;                     /* [n, d] norms of h; after a run the final norm: out */
    float *branch;                /* [n, d] output of attention or MLP */
    float *q, *a;                 /* [n, H*D] */
    float *k, *v;                 /* [n, G*D] */
    float *gate, *up;             /* [n, f] */
    float *cos_table, *sin_table; /* [n, D/2] */
};

enum status block_load(struct block *b, struct kernels *k, const struct checkpoint *checkpoint,
                       struct err *err);
void block_unload(struct block *b, struct kernels *k); /* a zeroed block is fine */

/* Bytes of a workspace for max_rows rows. STATUS_NO_MEMORY when the product overflows. */
enum status block_workspace_bytes(const struct model_config *config, uint32_t max_rows,
                                  size_t *bytes, struct err *err);
/* Carves base, block_workspace_bytes() long, into *out. */
void block_workspace_carve(const struct model_config *config, uint32_t max_rows, void *base,
                           struct block_workspace *out);

/* Cos and sin of the batch's positions; needed before block_layers. */
enum status block_positions(const struct block *b, struct kernels_stream *s,
                            const struct block_workspace *w, const struct kernels_batch *batch,
                            struct err *err);
/* Layers [first, first + n) over w->h; leaves norm(w->h) in w->y, with the gain the next layer
 * begins with, or the final norm's after the last. w->y must hold that of layer `first` before. */
enum status block_layers(const struct block *b, struct kernels_stream *s,
                         const struct block_workspace *w, const struct kernels_batch *batch,
                         const struct kernels_kv *kv, int first, int n, struct err *err);
/* One loop: w->h in, final_norm(h) in w->y out; K and V of all rows appended to the pool. */
enum status block_run(const struct block *b, struct kernels_stream *s,
                      const struct block_workspace *w, const struct kernels_batch *batch,
                      const struct kernels_kv *kv, struct err *err);

#endif
