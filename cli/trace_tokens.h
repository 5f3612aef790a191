/* The part of a trace's report that follows tokens and requests. */
#ifndef CLI_TRACE_TOKENS_H
#define CLI_TRACE_TOKENS_H

#include "cli/trace_report.h"

/* Fills queue, admission, ttft, tpot, n_requests, n_tokens, n_incomplete, the loops' n_exits, and
 * what is said of the slowest. begin_ns is the first record's time. STATUS_NO_MEMORY. */
enum status trace_tokens_report(const struct trace_set *set, uint64_t begin_ns,
                                struct trace_report *out, struct err *err);

#endif
