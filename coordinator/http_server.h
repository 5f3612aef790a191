/* The front door: an OpenAI-compatible HTTP server on one thread, over evhttp.
 *
 * Create binds (a taken port fails at once, before a model is loaded); run turns the event loop in
 * the thread that calls it until the server has been told to end and every answer is out. Until
 * http_server_open is called requests get 503 loading. docs/http.md is the contract. */
#ifndef COORDINATOR_HTTP_SERVER_H
#define COORDINATOR_HTTP_SERVER_H

#include "coordinator/api_keys.h"
#include "coordinator/intake.h"
#include "coordinator/metrics.h"
#include "coordinator/server_log.h"
#include "coordinator/service.h"
#include "model/checkpoint.h"
#include "model/tokenizer.h"
#include "proto/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_server_config {
    const char *host;               /* address or name to bind */
    uint16_t port;                  /* 0: any free one */
    const char *tls_cert, *tls_key; /* PEM files; NULL: no TLS */
    const struct api_keys *keys;    /* NULL: everybody may */
    const struct server_log *log;
    size_t max_body_bytes;       /* 0 = 4 MiB */
    size_t max_header_bytes;     /* 0 = 32 KiB */
    uint32_t max_connections;    /* 0 = 1024 */
    uint32_t max_waiting;        /* choices in the queue; 0 = 1024 */
    uint64_t max_waiting_tokens; /* their prompt tokens; 0 = 1048576 */
    size_t max_unsent_bytes;     /* of one stream's reader; 0 = 1 MiB: then it is cut off */
    double request_timeout_s;    /* from arrival to the end; 0 = 600 */
    double idle_timeout_s;       /* keep-alive, and headers or body that do not come; 0 = 75 */
    double ping_interval_s;      /* `: ping` on streams that have nothing to say; 0 = 15 */
};

/* What there is to serve, once the cluster has started. Borrowed until run has returned. */
struct http_server_engine {
    struct service *service;
    const struct checkpoint *checkpoint;
    const struct tokenizer *tokenizer; /* NULL: ids only */
    const char *model_name;            /* what /v1/models says */
    const char *model_dir;
    const char *const *aliases; /* other names a request may use; [n_aliases] */
    size_t n_aliases;
    struct intake_config intake; /* on_mail and user are the server's to fill */
    struct metrics_config metrics;
    uint32_t ring_size; /* for the live page; 0: one ring of all workers */
};

struct http_server;

/* STATUS_IO: the address cannot be bound (which, why); STATUS_INVALID, STATUS_NOT_FOUND: a
 * certificate or key that cannot be used. */
enum status http_server_create(const struct http_server_config *config, struct http_server **out,
                               struct err *err);
void http_server_destroy(struct http_server *server); /* after run; NULL is fine */
uint16_t http_server_port(const struct http_server *server);
/* The thread's main. STATUS_OK when it was told to end and has. */
enum status http_server_run(struct http_server *server, struct err *err);

/* After run: requests were under way that did not get to their end. */
bool http_server_was_cut_short(const struct http_server *server);

/* From other threads, each at most once but abort; they return at once. */

/* service_config.on_mail for the service that open will hand over; user is the server. */
void http_server_on_mail(void *server);
/* Everything works now: 503 loading ends, /ready says so. *engine is copied. */
void http_server_open(struct http_server *server, const struct http_server_engine *engine);
/* Stops taking requests (503 draining), finishes what runs; after grace_s what is left ends with an
 * error event or 503; then run returns. */
void http_server_drain(struct http_server *server, double grace_s);
/* What is left ends now. */
void http_server_abort(struct http_server *server);

#endif
