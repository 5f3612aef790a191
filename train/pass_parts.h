/* What the files of a pass share: the activations of one call and who computes them.
 *
 * pass.c checks the sequences and takes the steps in order; pass_memory.c lays the arena out;
 * pass_forward.c runs the loops, pass_loss.c goes from the last norm to the loss and back,
 * pass_backward.c walks the loops in reverse; pass_fault.c looks for the place when a loss is not
 * finite.
 *
 * Letters: N rows of all sequences, R of them with targets, T open loops, d, f, H, G, D, V as in
 * kernels/grad.h. */
#ifndef TRAIN_PASS_PARTS_H
#define TRAIN_PASS_PARTS_H

#include "train/pass.h"

/* Activations of one layer at one loop. The rstd and branch arrays of the _2 norms are NULL where
 * the model has none: the branch then goes straight into the sum. */
struct pass_layer {
    const float *x; /* [N, d] what the layer reads: the layer's before, or the loop's before */
    float *y_attention, *rstd_attention;
    float *qkv;           /* [N, (H + 2 G) D], q and k rotated */
    float *attended;      /* [N, H D] */
    float *attention_lse; /* sequence after sequence, [H, n] each */
    float *branch_attention, *rstd_attention_out;
    float *middle; /* [N, d] x + attention branch */
    float *y_mlp, *rstd_mlp;
    float *gate_up; /* [N, 2 f] */
    float *swiglu;  /* [N, f] */
    float *branch_mlp, *rstd_mlp_out;
    float *out; /* [N, d] middle + MLP branch */
};

struct pass_loop {
    const float *x; /* [N, d] the last layer's out */
    float *rstd;
    float *h;         /* [N, d] normalised: for gate, head and the next loop */
    float *h_targets; /* [R, d] its rows with targets */
    float *d_h_targets;
    bool has_gradient; /* d_h_targets was filled */
    float *z;          /* [R] the gate before its sigmoid */
    float *ce;         /* [R] */
    float *p, *log_p;  /* [R] probability to exit here */
};

struct pass_target {
    int row;          /* of all N */
    int sequence, at; /* the row's place in its sequence, for messages */
    double weight;    /* of a whole sequence: 1 */
    int level;
    int first_loop; /* from 0: where its cross entropy begins to count */
};

/* What a call adds to its metrics, in double until it is complete. */
struct pass_sums {
    double loss, entropy;
    double ce[METRICS_MAX_LOOPS], exit_mass[METRICS_MAX_LOOPS];
    struct metrics counts; /* n and correct */
};

struct pass {
    const struct params *params;
    const struct grad_ops *ops;

    /* The call, a piece of its sequences at a time. */
    const struct sequence_rows *const *sequences;
    int first_sequence; /* of the call's; for messages */
    int n_sequences, n_rows, n_targets, n_loops, longest;
    struct pass_options options;
    float *grads; /* NULL: forward only, all layers share their activations */
    struct pass_sums sums;

    /* Grow to the largest call. */
    float *arena;
    size_t arena_floats;
    struct pass_layer *layers; /* [T, L] */
    int cap_layers;
    struct pass_target *targets; /* [R] */
    int32_t *target_ids, *best;  /* [R] */
    int cap_targets;
    float *rope_cos, *rope_sin; /* [n_rope, D / 2] by position */
    int n_rope;
    double rope_theta; /* they are of; stages may differ */

    /* In the arena. */
    struct pass_loop loops[METRICS_MAX_LOOPS];
    float *embedded;              /* [N, d] */
    float *cos_table, *sin_table; /* [N, D / 2] by row */
    float *attention_scratch;
    float *logits; /* [n_head_rows, V]: the head goes over R in pieces of so many rows */
    int n_head_rows;
    float *head_lse, *head_scale; /* [R] */
    float *d_z;                   /* [R] */
    float *d_h[2];                /* [N, d] of the residual stream, in turns */
    float *d_branch, *d_y;        /* [N, d] */
    float *d_wide;                /* [N, max(2 f, (H + 2 G) D)] */
    float *d_narrow;              /* [N, max(f, H D)] */
};

/* Room for the call that p describes (sequences, counts, grads); the pointers above are set. */
enum status pass_reserve_targets(struct pass *p, int n_targets, struct err *err);
enum status pass_reserve(struct pass *p, int n_positions, struct err *err);

/* Attention over qkv as pass_layer has it, both ways; the rows of one sequence come second. */
struct grad_attention pass_attention_shape(const struct pass *p);
void pass_attention_sequence(struct grad_attention *shape, const struct sequence_rows *rows);

/* All loops: h of every loop. */
void pass_forward(struct pass *p);
/* Gate and head of every loop: p->sums, and with grads the gradients of both and d_h_targets.
 * STATUS_CORRUPT when the loss is not finite. */
enum status pass_loss(struct pass *p, struct err *err);
/* Writes the message about target i's loss at loop t, which is not finite: where that began. */
enum status pass_fault(const struct pass *p, int t, int i, struct err *err);
/* From d_h_targets to the gradients of everything below. */
void pass_backward(struct pass *p);

#endif
