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
    struct kernels_weight qkv[3], gate_up[2]; /* each is one kernels_linear */
    struct kernels_weight o, down;
};

/* Weights of the block on a backend. */
struct block {
    struct model_config config;
    enum dtype activation;
    struct block_layer *layers; /* n_layers */
    struct kernels_weight norm;
};

/* Activations of one batch, carved from one buffer; all row-major, n <= max_rows. `void *` are of
 * the backend's activation type. */
struct block_workspace {
    float *h;      /* [n, d] the residual stream: in */
    void *y;       /* [n, d] norms of h; the last layer leaves the final norm: fp32 */
    float *branch; /* [n, d] output of attention or MLP */
    void *qkv;     /* [n, (H+2G)*D] */
    void *a;       /* [n, H*D] */
    void *gate_up; /* [n, 2f] */
    void *act;     /* [n, f] */
    float *cos_table, *sin_table; /* [n, D/2] */
};

enum status block_load(struct block *b, struct kernels *k, const struct checkpoint *checkpoint,
                       struct err *err);
void block_unload(struct block *b, struct kernels *k); /* a zeroed block is fine */

/* Bytes of a workspace for max_rows rows with activations of that type. STATUS_NO_MEMORY when the
 * product overflows. */
enum status block_workspace_bytes(const struct model_config *config, enum dtype activation,
                                  uint32_t max_rows, size_t *bytes, struct err *err);
/* Carves base, block_workspace_bytes() long, into *out. */
void block_workspace_carve(const struct model_config *config, enum dtype activation,
                           uint32_t max_rows, void *base, struct block_workspace *out);

/* All of these are about the batch bound to the stream; n is its rows, or the recorded size. */

/* Cos and sin of the batch's positions; needed before block_layers. */
enum status block_positions(const struct block *b, struct kernels_stream *s,
                            const struct block_workspace *w, int n, struct err *err);
/* w->y = norm(w->h) with the gain that layer begins with. */
enum status block_norm(const struct block *b, struct kernels_stream *s,
                       const struct block_workspace *w, int n, int layer, struct err *err);
/* Layers [first, first + n_layers) over w->h; leaves norm(w->h) in w->y, with the gain the next
 * layer begins with, or the final norm's, in fp32, after the last. w->y must hold that of layer
 * `first` before (block_norm). */
enum status block_layers(const struct block *b, struct kernels_stream *s,
                         const struct block_workspace *w, const struct kernels_kv *kv, int n,
                         int first, int n_layers, struct err *err);
/* One loop: w->h in, final_norm(h) in w->y out, fp32; K and V of all rows appended to the pool. */
enum status block_run(const struct block *b, struct kernels_stream *s,
                      const struct block_workspace *w, const struct kernels_kv *kv, int n,
                      struct err *err);

#endif
