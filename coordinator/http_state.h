/* What the files of the HTTP front door share; nobody else includes it.
 *
 * A peer is an open connection, an exchange is one request on it from arrival to its last byte. An
 * exchange whose client has gone lives on without a connection until the engine has let go of its
 * job. Everything belongs to the one thread that runs http_server_run. */
#ifndef COORDINATOR_HTTP_STATE_H
#define COORDINATOR_HTTP_STATE_H

#include "coordinator/answer.h"
#include "coordinator/http_server.h"
#include "coordinator/live.h"
#include "coordinator/text.h"

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <openssl/ssl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HTTP_ID_BYTES = 48,          /* "chatcmpl-" and 32 digits */
    HTTP_REQUEST_ID_BYTES = 129, /* the client's may be that long */
    HTTP_MAX_UNSENT_MARKS = 32
};

/* Bodies that arrive or wait to be read, in units of the largest that is taken. */
enum { HTTP_MAX_BODIES = 16 };

enum http_phase { HTTP_LOADING = 0, HTTP_READY, HTTP_DRAINING, HTTP_LOST };

struct http_peer {
    struct http_peer *next, *previous; /* of all; next also among the newcomers */
    struct http_server *server;
    struct bufferevent *bev; /* borrowed; counted while the peer is a newcomer */
    evutil_socket_t fd;
    struct evhttp_connection *connection; /* NULL: a newcomer */
    bufferevent_data_cb on_write;         /* evhttp's, while an answer's end is guarded */
    bufferevent_event_cb on_event;
    struct http_exchange *exchange;    /* the request being answered; NULL: none */
    uint64_t reading_since_ns;         /* first byte of a request that is not complete, of a TLS
                                          handshake before the first one; 0: none */
    size_t received_bytes, late_bytes; /* of that request; of them after it was paused */
    bool is_paused;                    /* not read from: http_receiving.c */
};

/* What the HTTP thread knows of one choice beside its answer. */
struct http_choice {
    bool is_started, has_news;
    bool is_forgotten; /* left the queue before it was started: the client does not want it */
    uint64_t last_token_ns;
};

/* Tokens whose bytes the socket has not taken: n of them, of that time. */
struct http_mark {
    uint64_t at_ns;
    uint32_t n_tokens;
};

struct http_exchange {
    struct http_exchange *next, *previous; /* of all */
    struct http_server *server;
    struct http_peer *peer;         /* NULL: the client has gone or everything is sent */
    struct evhttp_request *request; /* NULL likewise */
    const struct http_route *route; /* NULL: no such path */
    uint64_t arrived_ns, sent_ns;   /* sent_ns: when the end was written or the client left */
    int status;                     /* as answered; 499: the client left before */
    char id[HTTP_ID_BYTES];         /* of the answer object; "" for pages */
    char request_id[HTTP_REQUEST_ID_BYTES];
    char client[64], key_name[64];
    bool is_chat, is_in_intake, is_answered, is_head_sent, wants_exit_loops;
    bool is_cut;              /* by us: the reader was too slow */
    const char *failure_code; /* static; what went wrong, for the log */

    struct service_job *job;     /* NULL: none yet */
    struct answer answer;        /* choices: [job->n_choices] */
    struct http_choice *choices; /* [job->n_choices] */
    uint32_t *news;              /* choices with something unsaid, [n_news] */
    uint32_t n_news, n_waiting, n_ended;
    bool is_on_news_list;
    struct http_exchange *next_with_news;
    uint64_t first_token_ns, last_write_ns;
    size_t largest_write_bytes; /* of a stream */
    size_t intake_bytes;        /* of its body, while that is in the intake */
    struct http_mark marks[HTTP_MAX_UNSENT_MARKS];
    uint32_t n_marks;
};

struct http_server {
    struct http_server_config config; /* with the defaults filled in */
    char fingerprint[32];
    enum http_phase phase;
    char lost_message[ERR_MESSAGE_BYTES];
    struct event_base *base;
    struct evhttp *http;
    struct evconnlistener *listener;
    SSL_CTX *tls;
    uint16_t port;
    int wake_fd;
    struct event *wake_event, *tick_event, *adopt_event;

    bool is_open;        /* engine holds, */
    int64_t opened_at_s; /* since then, unix time */
    int64_t created_at_s;
    struct http_server_engine engine;
    struct intake *intake;
    struct metrics *metrics;
    struct live *live;

    struct http_peer *peers, *newcomers;
    uint32_t n_peers; /* newcomers included */
    struct http_peer **peer_by_fd;
    size_t n_fds;
    struct http_exchange *exchanges, *with_news, **with_news_end;
    uint32_t n_exchanges;
    uint32_t n_waiting, n_running; /* choices: not started, started */
    uint64_t waiting_tokens;
    size_t receiving_bytes;   /* of requests that are not complete */
    uint32_t n_paused;        /* peers that are not read from because of them */
    size_t intake_bytes;      /* of bodies that wait to be read */
    double choice_interval_s; /* between two ends of choices, smoothed; 0: not known */
    uint64_t last_end_ns;
    struct text json, events; /* a body; what one write to a stream carries */
    struct evbuffer *scratch; /* a body on its way to evhttp */

    bool was_cut_short;
    bool is_ending;          /* run returns when everything is out, */
    bool is_closed;          /* all connections were, for that */
    uint64_t end_at_ns;      /* at the latest then */
    uint64_t drain_until_ns; /* 0: no drain */
    struct err failure;

    /* From other threads. */
    _Atomic(struct http_server_engine *) opening;
    _Atomic(bool) is_drain_asked, is_abort_asked;
    _Atomic(double) grace_s;
};

/* http_receiving.c: bytes of requests that are not complete. */
void http_receiving_add(struct http_peer *peer, size_t n_bytes);
void http_receiving_end(struct http_peer *peer); /* it is complete, or the peer goes */
bool http_receiving_is_abuse(const struct http_peer *peer);

/* http_peer.c: connections. */
enum status http_peer_listen(struct http_server *server, struct err *err);
void http_peer_close_all(struct http_server *server);
struct http_peer *http_peer_of(struct http_server *server, struct evhttp_request *request);
/* From a request's arrival to its last byte the peer may be silent, its leaving is seen at once,
 * and what it sends ahead stays bounded. */
void http_peer_begin_answer(struct http_peer *peer);
void http_peer_guard_end(struct http_peer *peer); /* after evhttp was told the last bytes */
void http_peer_end_answer(struct http_peer *peer);
void http_peer_tick(struct http_server *server, uint64_t now_ns);

/* http_route.c: from a path to what answers it. */
struct http_route {
    const char *pattern;   /* as metrics name it */
    bool is_post, is_free; /* without a key */
    void (*handle)(struct http_exchange *x, const char *rest);
};
void http_route_request(struct evhttp_request *request, void *server);

/* http_reply.c: exchanges, headers, whole answers. */
struct http_exchange *http_exchange_create(struct http_server *server, struct http_peer *peer,
                                           struct evhttp_request *request);
/* Frees it when nobody needs it any more: client, intake, engine. */
void http_exchange_release(struct http_exchange *x);
/* Frees it although the engine or the intake still has it: neither will say any more. */
void http_exchange_abandon(struct http_exchange *x);
void http_exchange_lose_client(struct http_exchange *x);
const char *http_header_in(const struct http_exchange *x, const char *name);
void http_header_out(struct http_exchange *x, const char *name, const char *value);
/* Answers with a body; "" for none. HEAD gets the headers alone. */
void http_reply(struct http_exchange *x, int status, const char *content_type, const char *body,
                size_t len_bytes);
void http_reply_json(struct http_exchange *x, int status, const struct text *json);
/* retry_after_s 0: no such header. */
void http_reply_fault(struct http_exchange *x, const struct fault *fault, uint32_t retry_after_s);
void http_watch_end(struct http_exchange *x);
/* Random lower-case hexadecimal digits. */
void http_random_hex(char *out, size_t n_digits);

/* http_request.c: completions. */
void http_request_begin_completion(struct http_exchange *x, const char *rest);
void http_request_begin_chat(struct http_exchange *x, const char *rest);
/* The request as a fault of the server's state; STATUS_OK when requests are taken. */
enum status http_request_check_phase(const struct http_server *server, struct fault *fault,
                                     uint32_t *retry_after_s);
/* Has the body read on the intake's thread: by intake_read (NULL), or by a reader that makes the
 * answer. Takes loops over. */
void http_request_order(struct http_exchange *x, char *loops,
                        void (*read)(const struct intake_config *config,
                                     struct intake_order *order));
void http_request_take_orders(struct http_server *server);
void http_request_take_deliveries(struct http_server *server);
void http_request_tick(struct http_server *server, uint64_t now_ns);
/* Ends every request that still runs with this fault; reason for metrics. */
void http_request_fail_all(struct http_server *server, const struct fault *fault,
                           const char *reason);
/* Lets go of the choices that have not started. */
void http_request_forget_waiting(struct http_exchange *x);
bool http_request_is_model(const struct http_server *server, const char *name);

/* http_queue.c: what may wait. False: the request has been refused. */
bool http_queue_has_room(struct http_exchange *x, uint32_t n_choices, uint64_t n_tokens);
bool http_queue_has_intake_room(struct http_exchange *x, size_t len_bytes);
/* When the queue will have moved on by as much as is in it. */
uint32_t http_queue_retry_s(const struct http_server *server);
/* Answers with a fault that says nothing of the request itself; reason for log and metrics. */
void http_queue_refuse(struct http_exchange *x, const struct fault *fault, uint32_t retry_after_s,
                       const char *reason);

/* http_loops.c: loop fields in headers. */
/* *json: malloc'd object or NULL when no header is there. */
enum status http_loops_read(struct http_exchange *x, char **json, struct fault *fault);
void http_loops_write(struct http_exchange *x);

/* http_stream.c: server-sent events. */
void http_stream_write_news(struct http_exchange *x);
void http_stream_ping(struct http_exchange *x, uint64_t now_ns);
void http_stream_fail(struct http_exchange *x, const struct fault *fault);
void http_stream_mark(struct http_exchange *x, uint64_t at_ns);
void http_stream_count_marks(struct http_exchange *x, uint64_t now_ns);

/* http_pages.c: everything that is not a completion. */
void http_page_models(struct http_exchange *x, const char *rest);
void http_page_model(struct http_exchange *x, const char *rest);
void http_page_health(struct http_exchange *x, const char *rest);
void http_page_ready(struct http_exchange *x, const char *rest);
void http_page_version(struct http_exchange *x, const char *rest);
void http_page_metrics(struct http_exchange *x, const char *rest);
/* "loading", "ready", "draining", "lost". */
const char *http_phase_name(enum http_phase phase);
/* http_live.c */
void http_page_live(struct http_exchange *x, const char *rest);
void http_page_live_numbers(struct http_exchange *x, const char *rest);
/* http_tokens.c */
void http_page_tokenize(struct http_exchange *x, const char *rest);
void http_page_detokenize(struct http_exchange *x, const char *rest);

/* http_server.c */
void http_server_lose(struct http_server *server, const char *message);

#endif
