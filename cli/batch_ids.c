/* A hash table of custom_ids that decides which input lines still want an answer. */
#include "cli/batch_ids.h"

#include "proto/fnv.h"

#include <stdlib.h>
#include <string.h>

void batch_ids_init(struct batch_ids *ids)
{
    *ids = (struct batch_ids){0};
}

void batch_ids_clear(struct batch_ids *ids)
{
    for (size_t i = 0; i < ids->n_slots; i++)
        free(ids->slots[i]);
    free(ids->slots);
    *ids = (struct batch_ids){0};
}

static uint64_t hash_name(const char *name)
{
    uint64_t h = fnv_bytes(FNV_START, name, strlen(name));
    return h ^ h >> 29;
}

/* The slot that holds the name, or the empty one where it belongs. */
static struct batch_id **find_slot(const struct batch_ids *ids, const char *name)
{
    size_t mask = ids->n_slots - 1, at = (size_t)hash_name(name) & mask;
    while (ids->slots[at] != NULL && strcmp(ids->slots[at]->name, name) != 0)
        at = (at + 1) & mask;
    return &ids->slots[at];
}

static enum status grow(struct batch_ids *ids, struct err *err)
{
    struct batch_ids bigger = {.n_slots = ids->n_slots > 0 ? 2 * ids->n_slots : 1024, .n = ids->n};
    bigger.slots = calloc(bigger.n_slots, sizeof(struct batch_id *));
    if (bigger.slots == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a table of %zu custom_ids",
                       bigger.n_slots);
    for (size_t i = 0; i < ids->n_slots; i++)
        if (ids->slots[i] != NULL)
            *find_slot(&bigger, ids->slots[i]->name) = ids->slots[i];
    free(ids->slots);
    *ids = bigger;
    return STATUS_OK;
}

enum status batch_ids_get(struct batch_ids *ids, const char *name, struct batch_id **out,
                          struct err *err)
{
    if (4 * (ids->n + 1) > 3 * ids->n_slots) {
        enum status status = grow(ids, err);
        if (status != STATUS_OK)
            return status;
    }
    struct batch_id **slot = find_slot(ids, name);
    if (*slot == NULL) {
        size_t n = strlen(name) + 1;
        struct batch_id *id = calloc(1, sizeof *id + n);
        if (id == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for custom_id number %zu", ids->n + 1);
        memcpy(id->name, name, n);
        *slot = id;
        ids->n++;
    }
    *out = *slot;
    return STATUS_OK;
}

enum batch_verdict batch_ids_judge(struct batch_id *id, uint64_t input_hash)
{
    if (!id->is_seen) {
        id->is_seen = true;
        if (id->is_answered && id->has_hash && id->input_hash != input_hash)
            return BATCH_CHANGED;
        return id->is_answered ? BATCH_SKIP : BATCH_RUN;
    }
    id->n_repeats++;
    return id->n_repeats <= id->n_duplicates ? BATCH_SKIP : BATCH_DUPLICATE;
}
