/* The ring buffer of trace records, and what a record from elsewhere must be like. */
#include "proto/trace.h"

#include <inttypes.h>
#include <stdlib.h>

enum status trace_create(uint64_t n_bytes, struct trace **out, struct err *err)
{
    uint64_t n = 1;
    while (n * sizeof(struct trace_record) < n_bytes && n < UINT64_C(1) << 40)
        n *= 2;
    struct trace *t = malloc(sizeof *t);
    /* Zeroed pages are the kernel's until they are written: a short run touches few of them. */
    struct trace_record *records = calloc(n, sizeof *records);
    if (t == NULL || records == NULL) {
        free(t);
        free(records);
        return err_set(err, STATUS_NO_MEMORY,
                       "no memory for %" PRIu64 " trace records of %zu bytes: lower --trace-buffer",
                       n, sizeof *records);
    }
    *t = (struct trace){.mask = n - 1, .records = records};
    *out = t;
    return STATUS_OK;
}

void trace_destroy(struct trace *t)
{
    if (t == NULL)
        return;
    free(t->records);
    free(t);
}

uint64_t trace_n_lost(const struct trace *t, uint64_t since_ns)
{
    uint64_t n_over = t->n_added > t->mask + 1 ? t->n_added - t->mask - 1 : 0;
    bool is_whole = since_ns != 0 && n_over > 0 && t->records[n_over & t->mask].at_ns < since_ns;
    return is_whole ? 0 : n_over;
}

size_t trace_copy(const struct trace *t, uint64_t since_ns, struct trace_record *out, size_t cap,
                  uint64_t *n_lost)
{
    uint64_t room = t->mask + 1;
    uint64_t n_there = t->n_added < room ? t->n_added : room;
    uint64_t first = t->n_added - n_there;
    if (n_lost != NULL)
        *n_lost = trace_n_lost(t, since_ns);
    size_t n_wanted = 0;
    for (uint64_t i = first; i < t->n_added; i++) {
        const struct trace_record *r = &t->records[i & t->mask];
        n_wanted += r->at_ns + r->lasted_ns >= since_ns;
    }
    size_t n_skip = n_wanted > cap ? n_wanted - cap : 0, n = 0;
    for (uint64_t i = first; i < t->n_added; i++) {
        const struct trace_record *r = &t->records[i & t->mask];
        if (r->at_ns + r->lasted_ns < since_ns)
            continue;
        if (n_skip > 0)
            n_skip--;
        else
            out[n++] = *r;
    }
    return n;
}

static enum status check_up_to(const char *what, uint64_t value, uint64_t most, struct err *err)
{
    if (value <= most)
        return STATUS_OK;
    return err_set(err, STATUS_CORRUPT, "a trace record has %s %" PRIu64 "; at most %" PRIu64, what,
                   value, most);
}

enum status trace_record_check(const struct trace_record *r, struct err *err)
{
    if (r->kind == 0)
        return err_set(err, STATUS_CORRUPT, "a trace record has kind 0; kinds start at 1");
    enum status st = check_up_to("kind", r->kind, TRACE_KINDS - 1, err);
    if (st == STATUS_OK)
        st = check_up_to("loop", r->loop, SEQUENCE_MAX_LOOPS, err);
    if (st == STATUS_OK && (r->kind == TRACE_ROWS || r->kind == TRACE_TOKEN) && r->loop == 0)
        st = err_set(err, STATUS_CORRUPT, "a trace record of kind %d has no loop", r->kind);
    if (st == STATUS_OK && r->kind == TRACE_IDLE)
        st = check_up_to("an idle reason of", r->flags, TRACE_IDLE_REASONS - 1, err);
    if (st == STATUS_OK && r->kind == TRACE_BLOCKED)
        st = check_up_to("a reason of", r->flags, TRACE_BLOCKED_SEQUENCES, err);
    /* Ends are added up without a look at overflow later, and a file keeps signed numbers. */
    if (st == STATUS_OK && (r->kind == TRACE_RECEIVE || r->kind == TRACE_SEND))
        st = check_up_to("bytes of", r->message.n_bytes, INT64_MAX, err);
    if (st == STATUS_OK)
        st = check_up_to("a length of", r->lasted_ns, INT64_MAX, err);
    if (st == STATUS_OK && r->at_ns + r->lasted_ns < r->at_ns)
        st = err_set(err, STATUS_CORRUPT, "a trace record ends after the end of time");
    return st;
}
