/* Finds what answers a request: by path and method, after the key was checked. */
#include "coordinator/http_state.h"

#include <event2/bufferevent_ssl.h>
#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A pattern that ends in {model} takes the rest of the path, which may hold slashes. */
static const struct http_route routes[] = {
    {"/v1/completions", true, false, http_request_begin_completion},
    {"/v1/chat/completions", true, false, http_request_begin_chat},
    {"/v1/models", false, false, http_page_models},
    {"/v1/models/{model}", false, false, http_page_model},
    {"/tokenize", true, false, http_page_tokenize},
    {"/detokenize", true, false, http_page_detokenize},
    {"/health", false, true, http_page_health},
    {"/ready", false, true, http_page_ready},
    {"/version", false, true, http_page_version},
    {"/metrics", false, false, http_page_metrics},
    {"/", false, true, http_page_live},
    {"/live", false, false, http_page_live_numbers},
};

static const struct http_route *find_route(const char *path, const char **rest)
{
    size_t len = strlen(path);
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        const char *pattern = routes[i].pattern, *brace = strchr(pattern, '{');
        size_t n = brace ? (size_t)(brace - pattern) : strlen(pattern);
        if (brace ? len > n && strncmp(path, pattern, n) == 0 : strcmp(path, pattern) == 0) {
            *rest = path + n;
            return &routes[i];
        }
    }
    return NULL;
}

static enum status check_key(struct http_exchange *x, struct fault *fault)
{
    const struct http_server_config *c = &x->server->config;
    if (!c->keys || (x->route && x->route->is_free))
        return STATUS_OK;
    const char *given = http_header_in(x, "Authorization");
    const char *name = NULL;
    if (given && strncasecmp(given, "Bearer ", 7) == 0) {
        given += 7 + strspn(given + 7, " ");
        name = api_keys_find(c->keys, given, strlen(given));
    }
    if (name) {
        snprintf(x->key_name, sizeof x->key_name, "%s", name);
        return STATUS_OK;
    }
    fault_set(fault, 401, "authentication_error", "invalid_api_key",
              given ? "the API key is not one of this server's"
                    : "no API key: send the header 'Authorization: Bearer KEY'");
    return fault->err.code;
}

/* JSON, or what clients say that were not told what they send. */
static bool is_json_type(const char *type)
{
    static const char *const known[] = {"application/json", "application/x-www-form-urlencoded",
                                        "text/plain"};
    if (!type || !*type)
        return true;
    size_t n = strcspn(type, "; \t");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (n == strlen(known[i]) && strncasecmp(type, known[i], n) == 0)
            return true;
    return false;
}

/* Where two lengths are given, a proxy in front may believe the other one, and what we take for the
 * next request was to it a piece of this one's body. */
static bool has_two_lengths(const struct http_exchange *x)
{
    const struct evkeyvalq *headers = evhttp_request_get_input_headers(x->request);
    const struct evkeyval *header;
    int n = 0;
    for (header = headers->tqh_first; header; header = header->next.tqe_next)
        n += strcasecmp(header->key, "Content-Length") == 0;
    return n > 1;
}

static enum status check_request(struct http_exchange *x, const char *path, struct fault *fault)
{
    enum evhttp_cmd_type method = evhttp_request_get_command(x->request);
    const char *encoding = http_header_in(x, "Transfer-Encoding");
    size_t len_bytes = evbuffer_get_length(evhttp_request_get_input_buffer(x->request));
    if (encoding && strcasecmp(encoding, "chunked") != 0) {
        /* Its body would be read as the next request. */
        http_header_out(x, "Connection", "close");
        fault_set(fault, 501, "invalid_request_error", "not_implemented",
                  "transfer encoding '%.40s' is not supported; use chunked or Content-Length",
                  encoding);
    } else if (has_two_lengths(x)) {
        http_header_out(x, "Connection", "close");
        fault_set(fault, 400, "invalid_request_error", NULL,
                  "Content-Length is there more than once; send it once");
    } else if (!x->route) {
        fault_set(fault, 404, "invalid_request_error", "not_found",
                  "no such path: %.200s; docs/http.md lists them", path);
    } else if (check_key(x, fault)) {
    } else if (x->route->is_post ? method != EVHTTP_REQ_POST
                                 : method != EVHTTP_REQ_GET && method != EVHTTP_REQ_HEAD) {
        http_header_out(x, "Allow", x->route->is_post ? "POST" : "GET, HEAD");
        fault_set(fault, 405, "invalid_request_error", "method_not_allowed", "%s takes %s only",
                  x->route->pattern, x->route->is_post ? "POST" : "GET and HEAD");
    } else if (len_bytes > x->server->config.max_body_bytes) {
        fault_set(fault, 413, "invalid_request_error", "request_too_large",
                  "the body has %zu bytes, this server takes at most %zu", len_bytes,
                  x->server->config.max_body_bytes);
    } else if (x->route->is_post && !is_json_type(http_header_in(x, "Content-Type"))) {
        fault_set(fault, 415, "invalid_request_error", "unsupported_media_type",
                  "Content-Type is '%.100s'; this server takes application/json",
                  http_header_in(x, "Content-Type"));
    } else {
        return STATUS_OK;
    }
    return fault->err.code;
}

void http_route_request(struct evhttp_request *request, void *user)
{
    struct http_server *server = user;
    struct http_peer *peer = http_peer_of(server, request);
    struct http_exchange *x = peer ? http_exchange_create(server, peer, request) : NULL;
    if (!x) { /* no memory when it came, or now */
        evhttp_connection_free(evhttp_request_get_connection(request));
        return;
    }
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
    const char *raw = uri ? evhttp_uri_get_path(uri) : NULL, *rest = "";
    size_t len = 0;
    char *path = evhttp_uridecode(raw ? raw : "", 0, &len);
    if (!path) {
        evhttp_connection_free(evhttp_request_get_connection(request));
        return;
    }
    x->route = strlen(path) == len ? find_route(path, &rest) : NULL; /* no path has a %00 */
    struct log_field fields[] = {LOG_S("request_id", x->request_id), LOG_S("path", path),
                                 LOG_S("client", x->client)};
    server_log(server->config.log, LOG_LEVEL_DEBUG, "request_begin", fields,
               sizeof fields / sizeof fields[0]);
    struct fault fault = {0};
    if (check_request(x, path, &fault))
        http_reply_fault(x, &fault, 0);
    else
        x->route->handle(x, rest);
    free(path);
}
