/* Bounds what waits: choices and their prompt tokens, and bodies that have not been read yet. */
#include "coordinator/http_state.h"

#include <math.h>

enum { MAX_RETRY_AFTER_S = 60 };

void http_queue_refuse(struct http_exchange *x, const struct fault *fault, uint32_t retry_after_s,
                       const char *reason)
{
    struct log_field fields[] = {LOG_S("request_id", x->request_id), LOG_S("reason", reason),
                                 LOG_S("client", x->client)};
    metrics_refused(x->server->metrics, reason);
    server_log(x->server->config.log, LOG_LEVEL_INFO, "request_refused", fields,
               sizeof fields / sizeof fields[0]);
    http_reply_fault(x, fault, retry_after_s);
}

/* When the queue will have moved on by as much as is in it, by how fast choices end now. */
uint32_t http_queue_retry_s(const struct http_server *server)
{
    double s = ceil(server->choice_interval_s * (server->n_waiting + 1));
    return s < 1 ? 1 : s > MAX_RETRY_AFTER_S ? MAX_RETRY_AFTER_S : (uint32_t)s;
}

/* A request that alone is over a bound is taken when nothing waits: it could never be else. */
bool http_queue_has_room(struct http_exchange *x, uint32_t n_choices, uint64_t n_tokens)
{
    struct http_server *server = x->server;
    const struct http_server_config *c = &server->config;
    if (server->n_waiting == 0 || (server->n_waiting + (uint64_t)n_choices <= c->max_waiting &&
                                   server->waiting_tokens + n_tokens <= c->max_waiting_tokens))
        return true;
    struct fault fault = {0};
    fault_set(&fault, 429, "rate_limit_error", "queue_full",
              "%u choices with %llu prompt tokens are waiting already; this server queues at most "
              "%u with %llu",
              server->n_waiting, (unsigned long long)server->waiting_tokens, c->max_waiting,
              (unsigned long long)c->max_waiting_tokens);
    http_queue_refuse(x, &fault, http_queue_retry_s(server), "queue_full");
    return false;
}

/* One body is read at a time: many connections at once must not hold all of theirs. */
bool http_queue_has_intake_room(struct http_exchange *x, size_t len_bytes)
{
    const struct http_server *server = x->server;
    struct fault fault = {0};
    if ((server->intake_bytes + len_bytes) / HTTP_MAX_BODIES <= server->config.max_body_bytes)
        return true;
    fault_set(&fault, 429, "rate_limit_error", "queue_full",
              "bodies of %zu bytes are waiting to be read already; this server holds at most %d of "
              "%zu bytes",
              server->intake_bytes, HTTP_MAX_BODIES, server->config.max_body_bytes);
    http_queue_refuse(x, &fault, 1, "queue_full");
    return false;
}
