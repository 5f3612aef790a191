/* The log of a training run: one JSON object a line, for scripts and plots (docs/cli.md).
 *
 * A resumed run goes on in the same file: lines past the step it goes on from are dropped, so the
 * log reads as if nothing had happened. */
#ifndef CLI_TRAIN_LOG_H
#define CLI_TRAIN_LOG_H

#include "proto/status.h"
#include "train/optimizer.h"
#include "train/trainer.h"

#include <stdint.h>
#include <stdio.h>

struct train_log {
    const struct recipe *recipe;
    const char *path;
    FILE *file;                            /* NULL: not open */
    double base_seconds, base_cpu_seconds; /* of the processes before, from the lines kept */
    double last_seconds;                   /* at the last report: the rate is counted from there */
    enum status status;                    /* the first failure; nothing is written after it */
    struct err err;
};

/* Opens path and writes the line of the beginning: a header, or behind the lines kept a resume
 * line. Failures stay in log->status. `path` and `recipe` are borrowed until train_log_close. */
void train_log_open(struct train_log *log, const char *path, const struct recipe *recipe,
                    uint64_t seed, const struct trainer_start *start);
void train_log_report(struct train_log *log, const struct trainer_report *report);
void train_log_saved(struct train_log *log, uint64_t step, const char *path);
/* The last line: why the process ends. `reason` is finished, stopped or an error's message. */
void train_log_end(struct train_log *log, uint64_t step, const char *reason);
void train_log_close(struct train_log *log);

#endif
