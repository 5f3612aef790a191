/* How a simulated run is shown: the fields of `bench engine`, and what only a simulator knows. */
#ifndef CLI_SIMULATE_REPORT_H
#define CLI_SIMULATE_REPORT_H

#include "cli/simulate_why.h"
#include "cli/simulate_world.h"

#include <stdbool.h>

struct simulate_report {
    const struct simulate_config *config; /* ring_size filled in */
    const struct simulate_load *load;
    const struct simulate_result *result;
    const struct simulate_why *why; /* NULL: not asked for */
    bool with_workers;              /* a line for each worker */
};

/* Both print the same bytes for the same run. */
void simulate_report_print(const struct simulate_report *report);
void simulate_report_print_json(const struct simulate_report *report);

#endif
