/* Records messages taken in and sent, and sends the coordinator what has been recorded, piece by
 * piece. */
#include "cluster/host.h"
#include "worker/worker_state.h"

#include <stdlib.h>

/* A message of that many stays below 1 MiB, whose buffer the transport would otherwise double. */
enum { PIECE_RECORDS = 16000 };
/* And no turn looks at more than that many: with a window most of a large buffer may not count, and
 * the driver has other things to do. */
enum { LOOK_RECORDS = 16 * PIECE_RECORDS };

enum status worker_trace_create(struct worker *w, struct err *err)
{
    if (w->config->trace_bytes == 0)
        return STATUS_OK;
    enum status status = trace_create(w->config->trace_bytes, &w->trace, err);
    if (status != STATUS_OK)
        return status;
    /* Taken now, because later nobody could be told that there is no memory for it. */
    w->trace_answer.piece = calloc(PIECE_RECORDS, sizeof *w->trace_answer.piece);
    if (w->trace_answer.piece == NULL)
        return err_set(err, STATUS_NO_MEMORY,
                       "no memory to send trace records: give --trace-buffer 0");
    return STATUS_OK;
}

void worker_trace_destroy(struct worker *w)
{
    trace_destroy(w->trace);
    free(w->trace_answer.piece);
}

uint64_t worker_trace_begin(const struct worker *w)
{
    return w->trace != NULL ? host_now_ns() : 0;
}

void worker_trace_message(struct worker *w, enum trace_kind kind, uint64_t began_ns, int peer,
                          size_t n_bytes, uint32_t n_frames)
{
    if (w->trace == NULL)
        return;
    struct trace_record *r = trace_add(w->trace, kind, began_ns);
    r->lasted_ns = host_now_ns() - began_ns;
    r->peer = (uint16_t)peer;
    r->message.n_bytes = n_bytes;
    r->message.n_frames = n_frames;
}

void worker_trace_request(struct worker *w, const struct control_trace_request *request)
{
    struct worker_trace_answer *a = &w->trace_answer;
    a->is_open = true; /* one that was still open is over: who asks again has given it up */
    a->tag = request->tag;
    a->since_ns = a->next = a->end = 0;
    if (w->trace == NULL)
        return;
    uint64_t now_ns = host_now_ns();
    stage_flush_idle(w->stage, now_ns);
    if (request->window_ns != 0 && request->window_ns < now_ns)
        a->since_ns = now_ns - request->window_ns;
    a->end = w->trace->n_added;
    a->is_window_whole = trace_n_lost(w->trace, a->since_ns) == 0;
}

/* Takes the next records of the answer into its piece; returns how many. */
static uint32_t take_piece(const struct trace *t, struct worker_trace_answer *a, uint64_t n_lost)
{
    uint32_t n = 0;
    if (a->next < n_lost)
        a->next = n_lost; /* overwritten, some of them since the question came */
    uint64_t until = a->end - a->next < LOOK_RECORDS ? a->end : a->next + LOOK_RECORDS;
    while (a->next < until && n < PIECE_RECORDS) {
        const struct trace_record *r = &t->records[a->next++ & t->mask];
        if (r->at_ns + r->lasted_ns >= a->since_ns)
            a->piece[n++] = *r;
    }
    return n;
}

enum status worker_trace_answer(struct worker *w, struct err *err)
{
    struct worker_trace_answer *a = &w->trace_answer;
    const struct trace *t = w->trace;
    struct control_message m = {.kind = CONTROL_TRACE};
    m.trace.tag = a->tag;
    m.trace.records = a->piece;
    if (t != NULL) {
        uint64_t n_lost = trace_n_lost(t, 0);
        m.trace.n_lost = a->is_window_whole ? 0 : n_lost;
        m.trace.n = take_piece(t, a, n_lost);
    }
    a->is_open = a->next < a->end;
    m.trace.is_last = !a->is_open;
    return worker_send_control(w, &m, err);
}
