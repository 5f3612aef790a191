/* AdamW over all parameters, with clipping by the global norm, and the looping regulariser. */
#ifndef TRAIN_OPTIMIZER_H
#define TRAIN_OPTIMIZER_H

#include "kernels/grad.h"
#include "train/params.h"
#include "train/recipe.h"

/* What to do about a loss or gradient that is not finite: the same run would come to it again. */
#define OPTIMIZER_ADVICE                                                                           \
    "start a new run from an earlier state (--init-from STATE) with a lower learning rate or a "   \
    "smaller clip"

struct optimizer {
    uint64_t step; /* taken since the moments were zero */
    float *m, *v;  /* [n_values] */
};

enum status optimizer_create(const struct params *p, struct optimizer *out, struct err *err);
void optimizer_free(struct optimizer *o);
void optimizer_reset(struct optimizer *o, const struct params *p); /* moments and step to 0 */
/* One step; *norm is the gradient's norm before clipping. STATUS_CORRUPT when it is not finite:
 * nothing has changed then. */
enum status optimizer_step(struct optimizer *o, struct params *p, const float *grads,
                           const struct grad_ops *ops, const struct recipe *r, float lr,
                           float *norm, struct err *err);

/* The looping regulariser of arXiv 2502.17416 (section 5): adds the gradient of
 * weight * mean_G (1 - R_G(k)), R_G(k) = 1/(L-k) sum_{i=0}^{L/k-2} sum_{j<k}
 * cos(theta_G^(ik+j), theta_G^((i+1)k+j)), G over q, k, v, o, gate, up, down, to grads.
 * cosines [7] receives R_G (may be NULL; grads too). L must be a multiple of k, L > k. */
enum { OPTIMIZER_LOOPING_GROUPS = 7 };
void optimizer_looping(const struct params *p, int k, float weight, float *grads, float *cosines);
const char *optimizer_looping_group(int i);

#endif
