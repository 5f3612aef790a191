/* Keeps the known next tokens of observed sequences from their open until they are closed. */
#include "worker/worker_state.h"

#include <inttypes.h>
#include <stdlib.h>

struct worker_targets {
    struct worker_targets *next;
    uint64_t sequence;
    int32_t *ids;
};

enum status worker_targets_take(struct worker *w, struct control_message *open, struct err *err)
{
    int32_t vocab_size = (int32_t)w->limits.vocab_size;
    if (open->open_targets == NULL)
        return STATUS_OK;
    for (uint32_t i = 0; i < open->open.n_observe_targets; i++)
        if (open->open_targets[i] >= vocab_size)
            return err_set(err, STATUS_CORRUPT,
                           "rank %d: target %" PRIu32 " of sequence %" PRIu64 " is %" PRId32
                           "; the vocabulary has ids 0..%" PRId32,
                           w->transport->rank, i, open->open.sequence, open->open_targets[i],
                           vocab_size - 1);
    struct worker_targets *t = malloc(sizeof *t);
    if (t == NULL)
        return err_set(err, STATUS_NO_MEMORY, "rank %d: no memory for an observed sequence",
                       w->transport->rank);
    *t = (struct worker_targets){w->targets, open->open.sequence, open->open_targets};
    w->targets = t;
    open->open_targets = NULL;
    return STATUS_OK;
}

void worker_targets_drop(struct worker *w, uint64_t sequence)
{
    struct worker_targets **link = &w->targets;
    while (*link != NULL) {
        struct worker_targets *t = *link;
        if (sequence != 0 && t->sequence != sequence) {
            link = &t->next;
            continue;
        }
        *link = t->next;
        free(t->ids);
        free(t);
    }
}
