/* Server-sent events: chunks as they come, pings while nothing comes, errors as events. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <event2/http_struct.h>
#include <string.h>

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

static void all_is_sent(struct evhttp_connection *connection, void *user)
{
    (void)connection;
    http_stream_count_marks(user, host_now_ns());
}

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

/* Writes what is in scratch. A reader that lets too much pile up is cut off: x may be gone. */
static void send_scratch(struct http_exchange *x)
{
    struct http_server *server = x->server;
    struct evhttp_connection *connection = evhttp_request_get_connection(x->request);
    x->last_write_ns = host_now_ns();
    evhttp_send_reply_chunk_with_cb(x->request, server->scratch, all_is_sent, x);
    size_t unsent_bytes = evbuffer_get_length(bufferevent_get_output(x->peer->bev));
    if (unsent_bytes <= server->config.max_unsent_bytes)
        return;
    struct log_field fields[] = {LOG_S("request_id", x->request_id),
                                 LOG_I("unsent_bytes", unsent_bytes), LOG_S("client", x->client)};
    server_log(server->config.log, LOG_LEVEL_WARN, "slow_reader_cut", fields,
               sizeof fields / sizeof fields[0]);
    metrics_cancelled(server->metrics, "slow_reader");
    x->is_cut = true;
    evhttp_connection_free(connection);
}

static bool add_event(struct http_server *server, const struct text *json)
{
    return !json->is_broken && evbuffer_add(server->scratch, "data: ", 6) == 0 &&
           evbuffer_add(server->scratch, json->bytes, json->len_bytes) == 0 &&
           evbuffer_add(server->scratch, "\n\n", 2) == 0;
}

/* The last words; x may be gone afterwards. */
static void finish(struct http_exchange *x)
{
    static const char done[] = "data: [DONE]\n\n";
    struct http_server *server = x->server;
    struct evhttp_request *request = x->request;
    evbuffer_add(server->scratch, done, sizeof done - 1);
    x->last_write_ns = host_now_ns();
    http_watch_end(x);
    evhttp_send_reply_chunk_with_cb(request, server->scratch, NULL, NULL);
    evhttp_send_reply_end(request);
}

void http_stream_write_news(struct http_exchange *x)
{
    struct http_server *server = x->server;
    const bool wants_rows = body_wants_prompt_logprobs(&x->job->body);
    bool is_good = true;
    uint32_t n_kept = 0;
    evbuffer_drain(server->scratch, evbuffer_get_length(server->scratch));
    for (uint32_t i = 0; i < x->n_news; i++) {
        const struct answer_choice *c = &x->answer.choices[x->news[i]];
        if (wants_rows && !c->prompt_rows && !c->has_ended) { /* its first chunk has them all */
            x->news[n_kept++] = x->news[i];
            continue;
        }
        x->choices[x->news[i]].has_news = false;
        text_reset(&server->json);
        while (answer_write_chunk(&x->answer, x->news[i], &server->json)) {
            is_good = add_event(server, &server->json) && is_good;
            text_reset(&server->json);
        }
    }
    x->n_news = n_kept;
    bool is_over = x->n_ended == x->job->n_choices;
    if (is_over && x->job->body.fields.include_usage) {
        text_reset(&server->json);
        answer_write_usage_chunk(&x->answer, &server->json);
        is_good = add_event(server, &server->json) && is_good;
    }
    if (!is_good) { /* no memory: a hole in the stream would look like text */
        evhttp_connection_free(evhttp_request_get_connection(x->request));
        return;
    }
    if (!x->is_head_sent && (is_over || evbuffer_get_length(server->scratch)))
        send_head(x);
    if (is_over)
        finish(x);
    else if (evbuffer_get_length(server->scratch))
        send_scratch(x);
}

void http_stream_ping(struct http_exchange *x, uint64_t now_ns)
{
    static const char ping[] = ": ping\n\n";
    struct http_server *server = x->server;
    if (now_ns < x->last_write_ns ||
        (double)(now_ns - x->last_write_ns) / 1e9 < server->config.ping_interval_s)
        return;
    if (!x->is_head_sent)
        send_head(x);
    evbuffer_drain(server->scratch, evbuffer_get_length(server->scratch));
    evbuffer_add(server->scratch, ping, sizeof ping - 1);
    send_scratch(x);
}

void http_stream_fail(struct http_exchange *x, const struct fault *fault)
{
    struct http_server *server = x->server;
    evbuffer_drain(server->scratch, evbuffer_get_length(server->scratch));
    text_reset(&server->json);
    answer_write_fault(fault, &server->json);
    x->failure_code = fault->code ? fault->code : fault->type;
    if (!add_event(server, &server->json)) {
        evhttp_connection_free(evhttp_request_get_connection(x->request));
        return;
    }
    finish(x);
}
