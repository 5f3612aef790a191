/* What the lens saw: lambda, cdf and the best tokens of every position at every loop. */
#ifndef CLI_LENS_H
#define CLI_LENS_H

#include "cli/terminal.h"
#include "model/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct lens_cell {
    bool is_seen;
    float lambda, cdf;
    uint32_t n_top;
    int32_t *top_ids;
    float *top_logits;
};

struct lens {
    const char *model_name;
    const struct tokenizer *tokenizer; /* NULL: ids are shown */
    const int32_t *ids;
    uint32_t n_positions, n_loops;
    float exit_threshold;
    bool is_threshold_assumed; /* neither the user nor the checkpoint gave one below 1 */
    struct lens_cell *cells;   /* [n_positions][n_loops] */
    uint32_t *exit_loops;      /* [n_positions] where the row would get off at exit_threshold */
};

/* ---- lens_exits.c --------------------------------------------------------------------------- */

const struct lens_cell *lens_cell_at(const struct lens *l, uint32_t position, uint32_t loop);

/* Fills cdf and exit_loops from the lambdas, in the engine's own arithmetic. */
void lens_decide_exits(struct lens *l);

/* ---- lens_print.c --------------------------------------------------------------------------- */

/* The token as it is shown in a cell of `width` columns: control characters made visible, cut,
 * padded. Returns its length in bytes. Pure. */
size_t lens_show_token(const struct tokenizer *tokenizer, int32_t id, int width, bool has_utf8,
                       char *out, size_t cap_bytes);
/* Positions from first on, at most t->columns wide. */
void lens_print_table(const struct lens *l, uint32_t first, const struct terminal *t, FILE *out);
/* One object, floats with 9 digits (exact). */
void lens_print_json(const struct lens *l, FILE *out);

#endif
