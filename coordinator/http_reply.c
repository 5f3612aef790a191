/* One exchange with a client: made when a request is there, gone when its answer is.
 *
 * An evhttp_request belongs to its connection, with one exception: when the connection fails
 * before the answer is complete, evhttp takes the request off it and leaves it to us. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>

enum { STATUS_CLIENT_LEFT = 499 };

void http_random_hex(char *out, size_t n_digits)
{
    unsigned char bytes[64];
    static const char digits[] = "0123456789abcdef";
    size_t n = n_digits < 2 * sizeof bytes ? n_digits : 2 * sizeof bytes;
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        memset(bytes, 0, sizeof bytes);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[bytes[i / 2] >> (i % 2 ? 0 : 4) & 15];
    out[n] = '\0';
}

const char *http_header_in(const struct http_exchange *x, const char *name)
{
    return evhttp_find_header(evhttp_request_get_input_headers(x->request), name);
}

void http_header_out(struct http_exchange *x, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(x->request), name, value);
}

/* The client's own id when it can stand in a header and a log. */
static void choose_request_id(struct http_exchange *x)
{
    const char *given = http_header_in(x, "X-Request-Id");
    size_t n = given ? strlen(given) : 0;
    bool is_usable = n >= 1 && n < sizeof x->request_id;
    for (size_t i = 0; i < n && is_usable; i++)
        is_usable = given[i] > ' ' && given[i] <= '~';
    if (is_usable) {
        memcpy(x->request_id, given, n + 1);
        return;
    }
    memcpy(x->request_id, "req-", 4);
    http_random_hex(x->request_id + 4, 32);
}

struct http_exchange *http_exchange_create(struct http_server *server, struct http_peer *peer,
                                           struct evhttp_request *request)
{
    struct http_exchange *x = calloc(1, sizeof *x);
    if (!x)
        return NULL;
    x->server = server;
    x->peer = peer;
    x->request = request;
    x->arrived_ns = host_now_ns();
    char *address = NULL;
    ev_uint16_t port = 0;
    evhttp_connection_get_peer(evhttp_request_get_connection(request), &address, &port);
    snprintf(x->client, sizeof x->client, "%.48s:%u", address ? address : "?", port);
    choose_request_id(x);
    x->next = server->exchanges;
    if (x->next)
        x->next->previous = x;
    server->exchanges = x;
    server->n_exchanges++;
    peer->exchange = x;
    http_peer_begin_answer(peer);
    return x;
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e9 : 0;
}

static void log_end(const struct http_exchange *x)
{
    const struct answer *a = &x->answer;
    uint64_t n_prompt = 0, n_tokens = 0, n_exit_loops = 0;
    char reasons[64] = "";
    for (uint32_t i = 0; x->job && i < a->n_choices; i++) {
        const struct answer_choice *c = &a->choices[i];
        n_tokens += c->n_tokens;
        n_exit_loops += c->loops.sum_exit_loops;
        const char *name = c->has_ended ? finish_reason_name(c->reason) : "none";
        if (!strstr(reasons, name) && strlen(reasons) + strlen(name) + 2 < sizeof reasons) {
            strcat(reasons, *reasons ? "," : "");
            strcat(reasons, name);
        }
    }
    for (size_t i = 0; x->job && i < x->job->body.n_prompts; i++)
        n_prompt += x->job->body.prompts[i].n_ids;
    struct log_field fields[16] = {
        LOG_S("request_id", x->request_id),
        LOG_S("route", x->route ? x->route->pattern : "other"),
        LOG_I("status", x->status),
        LOG_F("total_ms", seconds_between(x->arrived_ns, x->sent_ns) * 1e3),
        LOG_S("client", x->client),
        LOG_S("key", *x->key_name ? x->key_name : NULL),
    };
    size_t n = 6;
    if (x->failure_code)
        fields[n++] = LOG_S("error", x->failure_code);
    if (x->job) {
        fields[n++] = LOG_S("id", x->id);
        fields[n++] = LOG_I("prompt_tokens", n_prompt);
        fields[n++] = LOG_I("tokens", n_tokens);
        fields[n++] = LOG_S("finish", reasons);
        if (x->first_token_ns)
            fields[n++] = LOG_F("ttft_ms", seconds_between(x->arrived_ns, x->first_token_ns) * 1e3);
        if (n_tokens)
            fields[n++] = LOG_F("mean_exit_loop", (double)n_exit_loops / (double)n_tokens);
    }
    /* Health checks and scrapes would drown the rest. */
    bool is_quiet = x->status < 400 && !(x->route && x->route->is_post);
    server_log(x->server->config.log, is_quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "request_end",
               fields, n);
}

static bool has_running_job(const struct http_exchange *x)
{
    return x->job && x->n_ended < x->job->n_choices;
}

void http_exchange_abandon(struct http_exchange *x)
{
    x->is_in_intake = false;
    if (has_running_job(x)) {
        x->job = NULL; /* stays the engine's */
        x->answer.body = NULL;
    }
    http_exchange_release(x);
}

void http_exchange_release(struct http_exchange *x)
{
    struct http_server *server = x->server;
    if (x->request || x->is_in_intake || has_running_job(x))
        return;
    metrics_http_answer(server->metrics, x->route ? x->route->pattern : "other", x->status,
                        seconds_between(x->arrived_ns, x->sent_ns));
    log_end(x);
    if (x->is_on_news_list) {
        struct http_exchange **at = &server->with_news;
        while (*at != x)
            at = &(*at)->next_with_news;
        *at = x->next_with_news;
        if (!*at)
            server->with_news_end = at;
    }
    if (x->previous)
        x->previous->next = x->next;
    else
        server->exchanges = x->next;
    if (x->next)
        x->next->previous = x->previous;
    server->n_exchanges--;
    for (uint32_t i = 0; i < x->answer.n_choices; i++)
        answer_choice_free(&x->answer.choices[i]);
    free(x->answer.choices);
    free(x->choices);
    free(x->news);
    service_job_free(x->job);
    free(x);
}

/* The connection is going down, or has. */
void http_exchange_lose_client(struct http_exchange *x)
{
    struct http_server *server = x->server;
    struct evhttp_request *request = x->request;
    x->peer->exchange = NULL;
    x->peer = NULL;
    x->request = NULL;
    if (!x->sent_ns)
        x->sent_ns = host_now_ns();
    /* Taken off its connection: ours to free. Else it goes with the connection. */
    if (!evhttp_request_get_connection(request))
        evhttp_request_free(request);
    bool is_cut_short = !x->is_answered;
    x->is_answered = true;
    if (is_cut_short) {
        x->status = STATUS_CLIENT_LEFT;
        if (has_running_job(x)) {
            http_request_forget_waiting(x);
            service_cancel(server->engine.service, x->job);
            if (!x->is_cut)
                metrics_cancelled(server->metrics, "disconnect");
        }
    }
    http_exchange_release(x);
}

/* The last byte is written: the connection is about to take its next request, or to close. */
static void answer_is_out(struct evhttp_request *request, void *user)
{
    (void)request;
    struct http_exchange *x = user;
    x->sent_ns = host_now_ns();
    http_stream_count_marks(x, x->sent_ns);
    http_peer_end_answer(x->peer);
    x->peer->exchange = NULL;
    x->peer = NULL;
    x->request = NULL;
    http_exchange_release(x);
}

void http_watch_end(struct http_exchange *x)
{
    x->is_answered = true;
    x->last_write_ns = host_now_ns();
    evhttp_request_set_on_complete_cb(x->request, answer_is_out, x);
}

void http_reply(struct http_exchange *x, int status, const char *content_type, const char *body,
                size_t len_bytes)
{
    struct evbuffer *out = x->server->scratch;
    char length[24];
    x->status = status;
    http_header_out(x, "X-Request-Id", x->request_id);
    if (x->server->phase == HTTP_DRAINING) /* another server takes what comes next */
        http_header_out(x, "Connection", "close");
    if (content_type)
        http_header_out(x, "Content-Type", content_type);
    snprintf(length, sizeof length, "%zu", len_bytes);
    http_header_out(x, "Content-Length", length);
    if (evhttp_request_get_command(x->request) != EVHTTP_REQ_HEAD &&
        evbuffer_add(out, body, len_bytes) != 0) {
        evbuffer_drain(out, evbuffer_get_length(out));
        evhttp_connection_free(evhttp_request_get_connection(x->request));
        return;
    }
    http_watch_end(x);
    /* evhttp knows the other phrases. */
    evhttp_send_reply(x->request, status, status == 429 ? "Too Many Requests" : NULL, out);
    http_peer_guard_end(x->peer);
}

void http_reply_json(struct http_exchange *x, int status, const struct text *json)
{
    static const char no_memory[] =
        "{\"error\":{\"message\":\"no memory for the answer\",\"type\":\"server_error\","
        "\"param\":null,\"code\":null}}";
    if (json->is_broken)
        http_reply(x, 500, "application/json", no_memory, sizeof no_memory - 1);
    else
        http_reply(x, status, "application/json", json->bytes, json->len_bytes);
}

void http_reply_fault(struct http_exchange *x, const struct fault *fault, uint32_t retry_after_s)
{
    struct text *json = &x->server->json;
    x->failure_code = fault->code ? fault->code : fault->type;
    text_reset(json);
    answer_write_fault(fault, json);
    if (retry_after_s) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%u", retry_after_s);
        http_header_out(x, "Retry-After", seconds);
    }
    if (fault->http_status == 401)
        http_header_out(x, "WWW-Authenticate", "Bearer");
    http_reply_json(x, fault->http_status, json);
}
