/* What the files that write the page of a trace share; others call trace_page_write of
 * cli/trace_report.h. */
#ifndef CLI_TRACE_PAGE_H
#define CLI_TRACE_PAGE_H

#include "cli/trace_report.h"
#include "coordinator/text.h"

/* The numbers that the page's script draws, one JSON object of at most some MB whatever the trace's
 * length: trace_page.html says what is in it. No '<' is in it, so that it may stand in HTML.
 * STATUS_NO_MEMORY. (trace_page_data.c) */
enum status trace_page_add_data(const struct trace_report *r, const struct trace_set *set,
                                struct text *out, struct err *err);
/* The same report as tables, for readers without scripts. (trace_page_tables.c) */
void trace_page_add_tables(const struct trace_report *r, const struct trace_set *set,
                           struct text *out);
/* Text as HTML wants it. */
void trace_page_add_escaped(struct text *out, const char *text);

struct json_writer;
struct trace_page_span {
    uint64_t begin_ns, end_ns; /* of the whole trace */
    uint64_t interest_ns;      /* around which a long trace keeps its batches one by one */
};
/* Where time goes on every worker, drawn from left to right. (trace_page_timeline.c) */
enum status trace_page_write_timeline(const struct trace_set *set,
                                      const struct trace_page_span *span, struct json_writer *w,
                                      struct err *err);
/* The ways of some sequences from worker to worker, those of the slowest tokens first, and how
 * times are distributed. (trace_page_paths.c) */
enum status trace_page_write_paths(const struct trace_report *r, const struct trace_set *set,
                                   uint64_t begin_ns, struct json_writer *w, struct err *err);

#endif
