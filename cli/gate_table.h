/* What a gate would do on rows with known answers, at every threshold: accuracy, loss, loops. */
#ifndef CLI_GATE_TABLE_H
#define CLI_GATE_TABLE_H

#include "train/gate_fit.h"

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

enum { GATE_TABLE_MAX_THRESHOLDS = 32 };

/* Of one gate at one threshold: means over rows, but for `exact`. */
struct gate_outcome {
    double accuracy; /* of rows: the target is the best token at the exit loop */
    double exact;    /* of texts: all rows are right */
    double ce;       /* at the exit loop */
    double mean_loops;
    uint64_t exits[GATE_MAX_LOOPS]; /* rows by exit loop */
};

struct gate_table {
    int n_loops, n_thresholds;
    float thresholds[GATE_TABLE_MAX_THRESHOLDS];
    uint64_t n_rows, n_texts;
    struct gate_outcome fixed[GATE_MAX_LOOPS]; /* all rows off after loop t */
    struct gate_outcome old_gate[GATE_TABLE_MAX_THRESHOLDS];
    struct gate_outcome new_gate[GATE_TABLE_MAX_THRESHOLDS];
};

/* Reads all rows once. n_thresholds and thresholds are set; the rest is filled. STATUS_IO,
 * STATUS_NO_MEMORY. */
enum status gate_table_fill(struct gate_table *t, const struct gate_rows *rows,
                            const struct gate *gate, struct err *err);
void gate_table_print(const struct gate_table *t, FILE *out);
/* {"rows", "texts", "loops": [...], "thresholds": [...]}; NULL without memory. */
json_t *gate_table_json(const struct gate_table *t);

#endif
