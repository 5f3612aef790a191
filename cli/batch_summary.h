/* The closing words of a batch: counts, speed, exit loops, where the time of each worker went. */
#ifndef CLI_BATCH_SUMMARY_H
#define CLI_BATCH_SUMMARY_H

#include "cli/batch_run.h"
#include "proto/control.h"

#include <stdint.h>
#include <stdio.h>

/* stats: one a worker, or NULL. */
void batch_summary_print(const struct batch *b, const struct control_stats *stats,
                         uint32_t n_workers, FILE *out);
void batch_summary_print_json(const struct batch *b, const struct control_stats *stats,
                              uint32_t n_workers, FILE *out);

#endif
