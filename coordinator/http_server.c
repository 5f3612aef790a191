/* The life of the HTTP server: created, run on one thread, opened, drained, ended from others. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TICK_MS = 250, MIN_TICK_MS = 5 };
/* What is left when a grace has passed or an abort came has that long to go out. */
#define LAST_WORDS_NS UINT64_C(2000000000)
/* How far over our limit evhttp still reads a body, so that we can say in JSON what is wrong. */
#define BODY_SLACK_BYTES ((size_t)1 << 20)

/* ---- creation ------------------------------------------------------------------------------- */

static void fill_defaults(struct http_server_config *c)
{
    c->max_body_bytes = c->max_body_bytes ? c->max_body_bytes : (size_t)4 << 20;
    c->max_header_bytes = c->max_header_bytes ? c->max_header_bytes : 32768;
    c->max_connections = c->max_connections ? c->max_connections : 1024;
    c->max_waiting = c->max_waiting ? c->max_waiting : 1024;
    c->max_waiting_tokens = c->max_waiting_tokens ? c->max_waiting_tokens : 1048576;
    c->max_unsent_bytes = c->max_unsent_bytes ? c->max_unsent_bytes : (size_t)1 << 20;
    c->request_timeout_s = c->request_timeout_s > 0 ? c->request_timeout_s : 600;
    c->idle_timeout_s = c->idle_timeout_s > 0 ? c->idle_timeout_s : 75;
    c->ping_interval_s = c->ping_interval_s > 0 ? c->ping_interval_s : 15;
}

static void wake(struct http_server *server)
{
    uint64_t one = 1;
    while (write(server->wake_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void on_wake(evutil_socket_t fd, short what, void *user);
static void on_tick(evutil_socket_t fd, short what, void *user);

static struct timeval tick_interval(const struct http_server_config *c)
{
    double s =
        c->ping_interval_s < c->request_timeout_s ? c->ping_interval_s : c->request_timeout_s;
    s = s < c->idle_timeout_s ? s : c->idle_timeout_s;
    double ms = s * 1e3 / 8;
    ms = ms > MAX_TICK_MS ? MAX_TICK_MS : ms < MIN_TICK_MS ? MIN_TICK_MS : ms;
    return (struct timeval){.tv_usec = (suseconds_t)(ms * 1e3)};
}

static bool make_loop(struct http_server *server)
{
    server->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    server->base = event_base_new();
    if (server->wake_fd < 0 || !server->base || event_base_priority_init(server->base, 2) != 0)
        return false;
    struct timeval tick = tick_interval(&server->config);
    server->http = evhttp_new(server->base);
    server->scratch = evbuffer_new();
    server->wake_event =
        event_new(server->base, server->wake_fd, EV_READ | EV_PERSIST, on_wake, server);
    server->tick_event = event_new(server->base, -1, EV_PERSIST, on_tick, server);
    return server->http && server->scratch && server->wake_event && server->tick_event &&
           event_add(server->wake_event, NULL) == 0 && event_add(server->tick_event, &tick) == 0;
}

enum status http_server_create(const struct http_server_config *config, struct http_server **out,
                               struct err *err)
{
    const struct metrics_config no_workers = {.version = CAROUSEL_VERSION};
    struct http_server *server = calloc(1, sizeof *server);
    if (!server)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the HTTP server");
    server->config = *config;
    server->wake_fd = -1;
    server->with_news_end = &server->with_news;
    fill_defaults(&server->config);
    const struct http_server_config *c = &server->config;
    server->created_at_s = (int64_t)time(NULL);
    enum status status = metrics_create(&no_workers, &server->metrics, err);
    if (!status)
        status = live_create(host_now_ns(), &server->live, err);
    if (!status && !make_loop(server))
        status = err_set(err, STATUS_NO_MEMORY, "the HTTP server's loop cannot be made: %s",
                         strerror(errno));
    if (!status)
        status = http_peer_listen(server, err);
    if (status) {
        http_server_destroy(server);
        return status;
    }
    evhttp_set_allowed_methods(server->http, UINT16_MAX); /* we answer all of them */
    evhttp_set_max_headers_size(server->http, (ev_ssize_t)c->max_header_bytes);
    evhttp_set_max_body_size(server->http, (ev_ssize_t)(c->max_body_bytes + BODY_SLACK_BYTES));
    evhttp_set_flags(server->http, EVHTTP_SERVER_LINGERING_CLOSE);
    evhttp_set_default_content_type(server->http, NULL);
    struct timeval idle = {
        .tv_sec = (time_t)c->idle_timeout_s,
        .tv_usec = (suseconds_t)((c->idle_timeout_s - (double)(time_t)c->idle_timeout_s) * 1e6)};
    evhttp_set_timeout_tv(server->http, &idle);
    evhttp_set_gencb(server->http, http_route_request, server);
    *out = server;
    return STATUS_OK;
}

void http_server_destroy(struct http_server *server)
{
    if (!server)
        return;
    intake_destroy(server->intake); /* its thread ends before what it wakes */
    while (server->exchanges)
        http_exchange_abandon(server->exchanges);
    if (server->http)
        evhttp_free(server->http); /* with connections and listener */
    struct event *events[] = {server->wake_event, server->tick_event, server->adopt_event};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            event_free(events[i]);
    if (server->scratch)
        evbuffer_free(server->scratch);
    if (server->base)
        event_base_free(server->base);
    if (server->wake_fd >= 0)
        close(server->wake_fd);
    SSL_CTX_free(server->tls);
    metrics_destroy(server->metrics);
    live_destroy(server->live);
    text_free(&server->json);
    text_free(&server->events);
    free(atomic_load(&server->opening));
    free(server->peer_by_fd);
    free(server);
}

uint16_t http_server_port(const struct http_server *server)
{
    return server->port;
}

bool http_server_was_cut_short(const struct http_server *server)
{
    return server->was_cut_short;
}

/* ---- other threads -------------------------------------------------------------------------- */

void http_server_on_mail(void *server)
{
    wake(server);
}

void http_server_open(struct http_server *server, const struct http_server_engine *engine)
{
    struct http_server_engine *copy = malloc(sizeof *copy);
    if (copy)
        *copy = *engine;
    else
        atomic_store(&server->is_abort_asked, true);
    free(atomic_exchange(&server->opening, copy));
    wake(server);
}

void http_server_drain(struct http_server *server, double grace_s)
{
    atomic_store(&server->grace_s, grace_s);
    atomic_store(&server->is_drain_asked, true);
    wake(server);
}

void http_server_abort(struct http_server *server)
{
    atomic_store(&server->is_abort_asked, true);
    wake(server);
}

/* ---- the thread ----------------------------------------------------------------------------- */

static void set_phase(struct http_server *server, enum http_phase phase)
{
    static const enum metrics_state states[] = {METRICS_LOADING, METRICS_READY, METRICS_DRAINING,
                                                METRICS_LOST};
    server->phase = phase;
    metrics_set_state(server->metrics, states[phase]);
}

void http_server_lose(struct http_server *server, const char *message)
{
    struct fault fault = {0};
    uint32_t retry_after_s;
    snprintf(server->lost_message, sizeof server->lost_message, "%s", message);
    set_phase(server, HTTP_LOST);
    struct log_field fields[] = {LOG_S("message", server->lost_message)};
    server_log(server->config.log, LOG_LEVEL_ERROR, "cluster_lost", fields, 1);
    http_request_check_phase(server, &fault, &retry_after_s);
    http_request_fail_all(server, &fault, "cluster_lost");
}

static enum status open_engine(struct http_server *server, struct http_server_engine *engine,
                               struct err *err)
{
    struct metrics *metrics;
    server->engine = *engine;
    free(engine);
    engine = &server->engine;
    enum status status = metrics_create(&engine->metrics, &metrics, err);
    if (status)
        return status;
    metrics_destroy(server->metrics);
    server->metrics = metrics;
    const struct live_cluster cluster = {.n_workers = engine->metrics.n_workers,
                                         .n_loops = engine->metrics.n_loops,
                                         .ring_size = engine->ring_size,
                                         .hosts = engine->metrics.hosts};
    status = live_set_cluster(server->live, &cluster, err);
    if (status)
        return status;
    engine->intake.on_mail = http_server_on_mail;
    engine->intake.user = server;
    status = intake_create(&engine->intake, &server->intake, err);
    if (status)
        return status;
    snprintf(server->fingerprint, sizeof server->fingerprint, "fp_%016llx",
             (unsigned long long)engine->checkpoint->fingerprint);
    server->opened_at_s = (int64_t)time(NULL);
    server->is_open = true;
    set_phase(server, server->drain_until_ns ? HTTP_DRAINING : HTTP_READY);
    return STATUS_OK;
}

/* Ends the loop as soon as nothing is left to say, and soon in any case. */
static void begin_ending(struct http_server *server)
{
    if (server->is_ending)
        return;
    server->is_ending = true;
    server->end_at_ns = host_now_ns() + LAST_WORDS_NS;
    evconnlistener_disable(server->listener);
}

static void cut_short(struct http_server *server)
{
    struct fault fault = {0};
    server->was_cut_short = server->n_exchanges > 0;
    fault_set(&fault, 503, "server_error", "draining",
              "the server has been stopped before this request was done");
    http_request_fail_all(server, &fault, "shutdown");
    begin_ending(server);
}

static void check_end(struct http_server *server)
{
    uint64_t now_ns = host_now_ns();
    if (server->drain_until_ns && !server->is_ending) {
        if (server->n_exchanges == 0)
            begin_ending(server);
        else if (now_ns >= server->drain_until_ns)
            cut_short(server);
    }
    if (!server->is_ending)
        return;
    if (now_ns >= server->end_at_ns && !server->is_closed) {
        /* Clients that do not read their last words; the engine still has to let go of its jobs. */
        server->is_closed = true;
        server->end_at_ns = now_ns + LAST_WORDS_NS;
        http_peer_close_all(server);
    }
    if (server->n_exchanges == 0 || now_ns >= server->end_at_ns)
        event_base_loopbreak(server->base);
}

static void on_wake(evutil_socket_t fd, short what, void *user)
{
    (void)what;
    struct http_server *server = user;
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
    struct http_server_engine *engine = atomic_exchange(&server->opening, NULL);
    if (engine && open_engine(server, engine, &server->failure)) {
        event_base_loopbreak(server->base);
        return;
    }
    if (server->is_open) {
        http_request_take_orders(server);
        http_request_take_deliveries(server);
    }
    if (atomic_load(&server->is_drain_asked) && !server->drain_until_ns) {
        double grace_s = atomic_load(&server->grace_s);
        server->drain_until_ns = host_now_ns() + (uint64_t)(grace_s > 0 ? grace_s * 1e9 : 0);
        if (server->phase != HTTP_LOST)
            set_phase(server, HTTP_DRAINING);
    }
    if (atomic_load(&server->is_abort_asked) && !server->is_ending) {
        if (server->phase != HTTP_LOST)
            set_phase(server, HTTP_DRAINING);
        cut_short(server);
    }
    check_end(server);
}

static void on_tick(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct http_server *server = user;
    uint64_t now_ns = host_now_ns();
    http_request_tick(server, now_ns);
    http_peer_tick(server, now_ns);
    check_end(server);
}

enum status http_server_run(struct http_server *server, struct err *err)
{
    /* A client that has gone shows as an error of the write to it, not as a signal. */
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, NULL);
    event_base_loop(server->base, EVLOOP_NO_EXIT_ON_EMPTY);
    server->is_ending = true;
    http_peer_close_all(server); /* while the service still lives */
    if (server->failure.code)
        return err_set(err, server->failure.code, "%s", server->failure.message);
    return STATUS_OK;
}
