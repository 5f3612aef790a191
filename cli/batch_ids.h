/* What is known of each custom_id: answered in the output file, seen in the input file.
 *
 * Every id of a run is held once (its bytes and 24 more): a million ids of 40 bytes take 100 MB. */
#ifndef CLI_BATCH_IDS_H
#define CLI_BATCH_IDS_H

#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct batch_id {
    uint64_t input_hash;   /* of the line that is answered */
    bool is_answered;      /* the output has its final line */
    bool has_hash;         /* older output lines have none */
    bool is_seen;          /* the input has had it */
    uint32_t n_duplicates; /* times the output says it came again */
    uint32_t n_repeats;    /* times the input has had it again */
    char name[];
};

struct batch_ids {
    struct batch_id **slots; /* open addressing; n_slots is a power of two */
    size_t n_slots, n;
};

void batch_ids_init(struct batch_ids *ids);
void batch_ids_clear(struct batch_ids *ids);
/* The entry of `name`, made when there is none. STATUS_NO_MEMORY. */
enum status batch_ids_get(struct batch_ids *ids, const char *name, struct batch_id **out,
                          struct err *err);

enum batch_verdict { BATCH_RUN, BATCH_SKIP, BATCH_DUPLICATE, BATCH_CHANGED };
/* What to do with the next input line of that id; counts it as seen. The first one runs unless it
 * is answered; each further one is a duplicate, told once over all runs. BATCH_CHANGED: the answer
 * that is there is that of another line, or of other options. */
enum batch_verdict batch_ids_judge(struct batch_id *id, uint64_t input_hash);

#endif
