/* Makes all ranks begin alike: rank 0's choices, its values, one recipe. */
#include "train/trainer_private.h"

#include "cluster/host.h"

#include <stdlib.h>
#include <string.h>

/* A message of the transport is bounded, and a rank should not hold a second copy of all values. */
#define NS_PER_S UINT64_C(1000000000)
enum { SHARE_CHUNK_BYTES = 1 << 26, HOST_BYTES = 64 };

struct trainer_plan {
    uint64_t fingerprint, seed, stop_after, n_values;
    char isa[16];
};

static enum status where(const struct trainer *t, struct err *err)
{
    char host[HOST_BYTES];
    host_name(host, sizeof host);
    return err_wrap(err, "rank %d on %s", t->rank, host);
}

static int shards_for(int n_ranks)
{
    int n = 1;
    while (n < n_ranks)
        n *= 2;
    return n;
}

enum status trainer_connect(struct trainer *t, struct err *err)
{
    /* Additions give the same bits at every level, so any will do for the sums. */
    const struct grad_ops *any;
    enum status status = grad_find(NULL, &any, err);
    if (status != STATUS_OK)
        return status;
    t->n_floats = t->params->n_values + METRICS_FLOATS + 1;
    status =
        reduce_create(t->options->transport, any, t->recipe->shards, t->n_floats, &t->reduce, err);
    if (status == STATUS_OK && t->options->silence_limit_s > 0)
        reduce_set_deadline(t->reduce, (uint64_t)t->options->silence_limit_s * NS_PER_S);
    t->first_shard = reduce_first_shard(t->recipe->shards, t->n_ranks, t->rank);
    t->end_shard = reduce_first_shard(t->recipe->shards, t->n_ranks, t->rank + 1);
    return status;
}

enum status trainer_agree(struct trainer *t, struct err *err)
{
    const struct trainer_options *o = t->options;
    struct trainer_plan plan = {.fingerprint = t->fingerprint,
                                .seed = o->seed,
                                .stop_after = o->stop_after,
                                .n_values = t->params->n_values};
    enum status status = t->rank == 0 ? grad_find(o->isa, &t->ops, err) : STATUS_OK;
    if (status != STATUS_OK)
        return status;
    if (t->rank == 0)
        strncpy(plan.isa, t->ops->name, sizeof plan.isa - 1);
    struct trainer_plan theirs = plan;
    status = reduce_broadcast(t->reduce, &theirs, sizeof theirs, err);
    if (status != STATUS_OK)
        return status;
    if (theirs.fingerprint != plan.fingerprint || theirs.n_values != plan.n_values) {
        err_set(err, STATUS_MISMATCH,
                "another recipe or text than rank 0's (fingerprint %016llx, rank 0 has %016llx): "
                "copy the same files to every host",
                (unsigned long long)plan.fingerprint, (unsigned long long)theirs.fingerprint);
        return where(t, err);
    }
    t->seed = theirs.seed;
    t->stop_after = theirs.stop_after;
    theirs.isa[sizeof theirs.isa - 1] = '\0';
    if (t->rank > 0 && grad_find(theirs.isa, &t->ops, err) != STATUS_OK)
        return where(t, err);
    return STATUS_OK;
}

static enum status share_floats(struct trainer *t, float *values, struct err *err)
{
    unsigned char *bytes = (unsigned char *)values;
    size_t n_bytes = t->params->n_values * sizeof *values;
    for (size_t at = 0; at < n_bytes; at += SHARE_CHUNK_BYTES) {
        size_t n = n_bytes - at < SHARE_CHUNK_BYTES ? n_bytes - at : SHARE_CHUNK_BYTES;
        enum status status = reduce_broadcast(t->reduce, bytes + at, n, err);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

enum status trainer_share(struct trainer *t, struct err *err)
{
    struct {
        struct curriculum_state state;
        uint64_t optimizer_step;
    } head;
    memset(&head, 0, sizeof head);
    head.state = t->state;
    head.optimizer_step = t->optimizer.step;
    enum status status = reduce_broadcast(t->reduce, &head, sizeof head, err);
    if (status == STATUS_OK)
        status = share_floats(t, t->params->values, err);
    if (status == STATUS_OK && head.optimizer_step > 0)
        status = share_floats(t, t->optimizer.m, err);
    if (status == STATUS_OK && head.optimizer_step > 0)
        status = share_floats(t, t->optimizer.v, err);
    if (status != STATUS_OK)
        return status;
    t->state = head.state;
    t->optimizer.step = head.optimizer_step;
    return STATUS_OK;
}

void trainer_decline(struct transport *transport, const struct err *why)
{
    const struct grad_ops *ops;
    struct reduce *reduce;
    if (grad_find(NULL, &ops, NULL) != STATUS_OK ||
        reduce_create(transport, ops, shards_for(transport->n_ranks), 1, &reduce, NULL) !=
            STATUS_OK)
        return;
    reduce_fail(reduce, why);
    reduce_destroy(reduce);
}
