/* What the files of `carousel gate` share. */
#ifndef CLI_GATE_H
#define CLI_GATE_H

#include "cli/gate_table.h"
#include "cli/session.h"
#include "train/gate_fit.h"

#include <stdbool.h>
#include <stdint.h>

enum gate_merge { GATE_MERGE_AUTO = 0, GATE_MERGE_COPY, GATE_MERGE_LINK, GATE_MERGE_NONE };

struct gate_options {
    const char *data, *validation, *out;
    double holdout; /* share of the texts, where there is no validation file */
    struct gate_fit_options fit;
    bool from_zero, keeps_states, chat, is_quiet, as_json;
    int max_tokens;
    int merge; /* enum gate_merge */
    const char *thresholds;
};

/* Rows of one side, and what they came from. */
struct gate_side {
    struct gate_rows rows;
    uint64_t n_texts;
    uint64_t n_given; /* rows of the texts given to the engine */
};

enum { GATE_CURVE_POINTS = 128 };
struct gate_run {
    struct session *session;
    const struct gate_options *options;
    struct gate_side train, held_out;
    uint64_t n_generated; /* texts the model continued */
    struct gate gate;
    struct gate_fit_report report;
    struct gate_table table;
    int n_curve;
    double curve_steps[GATE_CURVE_POINTS], curve_losses[GATE_CURVE_POINTS];
};

/* gate_collect.c: runs all texts through the engine; their rows lie in out/states-*.bin. */
enum status gate_collect(struct gate_run *run, struct err *err);
/* gate_write.c: out/gate.safetensors, out/gate.json, out/model. */
enum status gate_write(const struct gate_run *run, struct err *err);
/* The object of gate.json as text; the caller frees. NULL without memory. */
char *gate_format(const struct gate_run *run);

#endif
