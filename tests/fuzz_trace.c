/* Fuzzes trace files: whatever a file holds is refused with a message, or is a set whose records
 * are possible and in order, and of which a report can be made. */
#include "cli/trace_report.h"
#include "coordinator/trace_set.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct trace_set *set = NULL;
    struct err err = {0};
    enum status status = trace_set_parse((const char *)data, size, "fuzz", &set, &err);
    if (status != STATUS_OK) {
        require(set == NULL && err.code == status && err.message[0] != '\0');
        return 0;
    }
    for (uint32_t rank = 0; rank < set->n_ranks; rank++)
        for (size_t i = 0; i < set->ranks[rank].n_records; i++) {
            const struct trace_record *r = &set->ranks[rank].records[i];
            require(trace_record_check(r, &err) == STATUS_OK);
            require(i == 0 || r[-1].at_ns <= r->at_ns);
        }
    struct trace_report report;
    require(trace_report_make(set, &report, &err) == STATUS_OK);
    require(report.n_workers + 1 >= set->n_ranks && report.n_loops <= SEQUENCE_MAX_LOOPS);
    require(report.n_incomplete <= report.n_tokens && report.n_slow <= report.n_tokens);
    trace_report_free(&report);
    trace_set_destroy(set);
    return 0;
}
