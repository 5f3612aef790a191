/* Server-sent events: chunks as they come, pings while nothing comes, errors as events. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <event2/http_struct.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/* Room for the length in front of a chunk: eight digits, and what ends their line. */
static const char CHUNK_HEAD[] = "00000000\r\n";
enum { CHUNK_HEAD_BYTES = sizeof CHUNK_HEAD - 1 };

/* ---- from the engine's token to the socket --------------------------------------------------- */

/* Tokens that are in the socket now. */
void http_stream_count_marks(struct http_exchange *x, uint64_t now_ns)
{
    for (uint32_t i = 0; i < x->n_marks; i++)
        for (uint32_t k = 0; k < x->marks[i].n_tokens; k++)
            metrics_token_sent(x->server->metrics, now_ns > x->marks[i].at_ns
                                                       ? (double)(now_ns - x->marks[i].at_ns) / 1e9
                                                       : 0);
    x->n_marks = 0;
}

/* When there are too many, those of a slow reader, the newer share a time with an older. */
void http_stream_mark(struct http_exchange *x, uint64_t at_ns)
{
    if (x->n_marks == HTTP_MAX_UNSENT_MARKS) {
        x->marks[x->n_marks - 1].n_tokens++;
        return;
    }
    x->marks[x->n_marks++] = (struct http_mark){.at_ns = at_ns, .n_tokens = 1};
}

/* ---- writing -------------------------------------------------------------------------------- */

static void send_head(struct http_exchange *x)
{
    struct evhttp_request *request = x->request;
    x->is_head_sent = true;
    x->status = 200;
    http_header_out(x, "Content-Type", "text/event-stream; charset=utf-8");
    http_header_out(x, "Cache-Control", "no-cache");
    http_header_out(x, "X-Accel-Buffering", "no");
    http_header_out(x, "X-Request-Id", x->request_id);
    /* HTTP/1.0 has no chunks: the end of the connection is the end of the stream, also for a client
     * that asked to keep it (evhttp would claim Content-Length: 0). */
    if (request->major == 1 && request->minor == 0)
        evhttp_remove_header(evhttp_request_get_input_headers(request), "Connection");
    evhttp_send_reply_start(request, 200, NULL);
}

/* The server's text for the events of one write, with room for a chunk's head. */
static struct text *begin_events(struct http_server *server)
{
    text_reset(&server->events);
    text_add(&server->events, CHUNK_HEAD, CHUNK_HEAD_BYTES);
    return &server->events;
}

static bool has_events(const struct text *events)
{
    return events->len_bytes > CHUNK_HEAD_BYTES;
}

static void cut_slow_reader(struct http_exchange *x, size_t unsent_bytes)
{
    struct http_server *server = x->server;
    struct log_field fields[] = {LOG_S("request_id", x->request_id),
                                 LOG_I("unsent_bytes", unsent_bytes), LOG_S("client", x->client)};
    server_log(server->config.log, LOG_LEVEL_WARN, "slow_reader_cut", fields,
               sizeof fields / sizeof fields[0]);
    metrics_cancelled(server->metrics, "slow_reader");
    x->is_cut = true;
    evhttp_connection_free(evhttp_request_get_connection(x->request));
}

/* Writes the events. False: the client is cut off, and x may be gone.
 *
 * Where nothing waits before them the socket gets them now: by way of the loop each write would
 * wait until the events of all other streams are made, and cost two more system calls. What the
 * socket does not take, and its errors, are left to the loop. */
static bool send_events(struct http_exchange *x)
{
    struct http_server *server = x->server;
    struct text *events = &server->events;
    struct evbuffer *output = bufferevent_get_output(x->peer->bev);
    size_t at = CHUNK_HEAD_BYTES;
    if (x->largest_write_bytes < events->len_bytes)
        x->largest_write_bytes = events->len_bytes;
    if (!x->is_head_sent)
        send_head(x);
    if (x->request->chunked) {
        char head[CHUNK_HEAD_BYTES + 1];
        snprintf(head, sizeof head, "%08x\r\n", (unsigned)(events->len_bytes - CHUNK_HEAD_BYTES));
        text_add(events, "\r\n", 2);
        if (!events->is_broken)
            memcpy(events->bytes, head, CHUNK_HEAD_BYTES);
        at = 0;
    }
    if (events->is_broken) { /* no memory: a hole in the stream would look like text */
        evhttp_connection_free(evhttp_request_get_connection(x->request));
        return false;
    }
    x->last_write_ns = host_now_ns();
    if (!server->tls && evbuffer_get_length(output) == 0) {
        ssize_t n = send(x->peer->fd, events->bytes + at, events->len_bytes - at,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        at += n > 0 ? (size_t)n : 0;
        if (at == events->len_bytes) {
            http_stream_count_marks(x, host_now_ns());
            return true;
        }
    }
    if (evbuffer_add(output, events->bytes + at, events->len_bytes - at) != 0) {
        evhttp_connection_free(evhttp_request_get_connection(x->request));
        return false;
    }
    /* An echoed prompt with its log-probabilities is megabytes at once, for the quickest reader
     * too: only what is more than one such write has waited for him. */
    if (evbuffer_get_length(output) <= server->config.max_unsent_bytes + x->largest_write_bytes)
        return true;
    cut_slow_reader(x, evbuffer_get_length(output));
    return false;
}

/* The last words; x may be gone afterwards. */
static void finish(struct http_exchange *x)
{
    struct evhttp_request *request = x->request;
    struct http_peer *peer = x->peer;
    text_adds(&x->server->events, "data: [DONE]\n\n");
    if (!send_events(x))
        return;
    /* Else evhttp ends the exchange at once, and maybe the connection. */
    bool is_end_later =
        request->chunked || evbuffer_get_length(bufferevent_get_output(peer->bev)) > 0;
    http_watch_end(x);
    evhttp_send_reply_end(request);
    if (is_end_later)
        http_peer_guard_end(peer);
}

/* ---- events --------------------------------------------------------------------------------- */

/* All that a choice has to say; a chat's role is a chunk of its own. */
static void add_chunks(struct http_exchange *x, uint32_t choice, struct text *events)
{
    for (;;) {
        size_t len_bytes = events->len_bytes;
        text_add(events, "data: ", 6);
        if (!answer_write_chunk(&x->answer, choice, events)) {
            events->len_bytes = len_bytes;
            return;
        }
        text_add(events, "\n\n", 2);
    }
}

void http_stream_write_news(struct http_exchange *x)
{
    const bool wants_rows = body_wants_prompt_logprobs(&x->job->body);
    const bool is_over = x->n_ended == x->job->n_choices;
    struct text *events = begin_events(x->server);
    uint32_t n_kept = 0;
    for (uint32_t i = 0; i < x->n_news; i++) {
        const struct answer_choice *c = &x->answer.choices[x->news[i]];
        if (wants_rows && !c->prompt_rows && !c->has_ended) { /* its first chunk has them all */
            x->news[n_kept++] = x->news[i];
            continue;
        }
        x->choices[x->news[i]].has_news = false;
        add_chunks(x, x->news[i], events);
    }
    x->n_news = n_kept;
    if (is_over && x->job->body.fields.include_usage) {
        text_add(events, "data: ", 6);
        answer_write_usage_chunk(&x->answer, events);
        text_add(events, "\n\n", 2);
    }
    if (is_over)
        finish(x);
    else if (has_events(events) || events->is_broken)
        send_events(x);
}

void http_stream_ping(struct http_exchange *x, uint64_t now_ns)
{
    if (now_ns < x->last_write_ns ||
        (double)(now_ns - x->last_write_ns) / 1e9 < x->server->config.ping_interval_s)
        return;
    text_adds(begin_events(x->server), ": ping\n\n");
    send_events(x);
}

void http_stream_fail(struct http_exchange *x, const struct fault *fault)
{
    struct text *events = begin_events(x->server);
    x->failure_code = fault->code ? fault->code : fault->type;
    text_add(events, "data: ", 6);
    answer_write_fault(fault, events);
    text_add(events, "\n\n", 2);
    finish(x);
}
