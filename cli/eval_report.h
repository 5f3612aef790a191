/* What `carousel eval` prints: tables for people, one JSON object for scripts. */
#ifndef CLI_EVAL_REPORT_H
#define CLI_EVAL_REPORT_H

#include "cli/eval_score.h"

#include <stdio.h>

void eval_report_tables(const struct eval_score *score, FILE *out);
/* The same numbers as one JSON object; model, split and seed say what was asked. STATUS_NO_MEMORY.
 */
enum status eval_report_json(const struct eval_score *score, const char *model, const char *split,
                             uint64_t seed, FILE *out, struct err *err);

#endif
