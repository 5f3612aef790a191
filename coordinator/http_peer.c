/* Connections of the HTTP server: accepted up to a limit, watched until they close.
 *
 * evhttp says nothing of a connection before its first request, so the bufferevent it is made of is
 * ours: its callback argument is the connection, as soon as evhttp has put it together. */
#include "cluster/host.h"
#include "coordinator/http_state.h"

#include <errno.h>
#include <event2/bufferevent_ssl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LISTEN_BACKLOG = 512,
    SENT_AHEAD_BYTES = 65536, /* requests that a client sends before it has its answer */
    KERNEL_BYTES = 262144,
    SPARE_FDS = 256 /* beside the connections: MPI, files, the loop itself */
};

/* The first bytes of a request: from now on it has to be complete within the idle timeout. */
static void peer_received(struct evbuffer *input, const struct evbuffer_cb_info *info, void *user)
{
    (void)input;
    struct http_peer *peer = user;
    if (info->n_added == 0 || peer->exchange)
        return;
    if (!peer->reading_since_ns)
        peer->reading_since_ns = host_now_ns();
    http_receiving_add(peer, info->n_added);
}

/* All that was waiting for the socket is in it. */
static void peer_sent(struct evbuffer *output, const struct evbuffer_cb_info *info, void *user)
{
    struct http_peer *peer = user;
    if (info->n_deleted > 0 && peer->exchange && evbuffer_get_length(output) == 0)
        http_stream_count_marks(peer->exchange, host_now_ns());
}

static void peer_close(struct http_peer *peer)
{
    struct http_server *server = peer->server;
    if (peer->exchange)
        http_exchange_lose_client(peer->exchange);
    http_receiving_end(peer);
    /* A TLS connection still moves bytes after its end was told. */
    evbuffer_remove_cb(bufferevent_get_input(peer->bev), peer_received, peer);
    evbuffer_remove_cb(bufferevent_get_output(peer->bev), peer_sent, peer);
    if (peer->previous)
        peer->previous->next = peer->next;
    else
        server->peers = peer->next;
    if (peer->next)
        peer->next->previous = peer->previous;
    if (peer->fd >= 0 && (size_t)peer->fd < server->n_fds && server->peer_by_fd[peer->fd] == peer)
        server->peer_by_fd[peer->fd] = NULL;
    free(peer);
    server->n_peers--;
    if (server->n_peers < server->config.max_connections && !server->is_ending)
        evconnlistener_enable(server->listener);
}

static void peer_closed(struct evhttp_connection *connection, void *user)
{
    (void)connection;
    peer_close(user);
}

static bool remember_fd(struct http_server *server, struct http_peer *peer)
{
    size_t at = (size_t)peer->fd;
    if (at >= server->n_fds) {
        size_t n = at + 256;
        struct http_peer **grown = realloc(server->peer_by_fd, n * sizeof(struct http_peer *));
        if (!grown)
            return false;
        memset(grown + server->n_fds, 0, (n - server->n_fds) * sizeof(struct http_peer *));
        server->peer_by_fd = grown;
        server->n_fds = n;
    }
    server->peer_by_fd[at] = peer;
    return true;
}

/* A token's bytes must not wait for the last one's acknowledgement, and what a slow reader holds
 * in the kernel must not grow to megabytes before it shows. */
static void set_socket_options(evutil_socket_t fd)
{
    const int one = 1, kernel_bytes = KERNEL_BYTES;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kernel_bytes, sizeof kernel_bytes);
}

/* Runs before anything else of the loop once connections were accepted: evhttp has finished them
 * by now, and has not read from them. */
static void adopt_newcomers(evutil_socket_t fd, short what, void *user)
{
    (void)fd, (void)what;
    struct http_server *server = user;
    struct http_peer *peer;
    while ((peer = server->newcomers)) {
        server->newcomers = peer->next;
        void *connection = NULL;
        bufferevent_getcb(peer->bev, NULL, NULL, NULL, &connection);
        peer->fd = bufferevent_getfd(peer->bev);
        struct bufferevent *bev = peer->bev;
        peer->previous = NULL;
        peer->next = server->peers;
        if (server->peers)
            server->peers->previous = peer;
        server->peers = peer;
        if (!connection) { /* evhttp could not finish it */
            peer_close(peer);
        } else {
            set_socket_options(peer->fd);
            peer->connection = connection;
            /* A handshake that drips counts as the first request's. */
            peer->reading_since_ns = server->tls ? host_now_ns() : 0;
            evhttp_connection_set_closecb(connection, peer_closed, peer);
            if (peer->fd < 0 || !remember_fd(server, peer) ||
                !evbuffer_add_cb(bufferevent_get_input(bev), peer_received, peer) ||
                !evbuffer_add_cb(bufferevent_get_output(bev), peer_sent, peer))
                evhttp_connection_free(connection);
        }
        bufferevent_decref(bev);
    }
}

static void cut(struct http_peer *peer)
{
    evhttp_connection_free(peer->connection);
}

void http_peer_close_all(struct http_server *server)
{
    adopt_newcomers(-1, 0, server);
    while (server->peers)
        cut(server->peers);
}

/* Called by evhttp for each accepted connection. NULL makes evhttp use a plain bufferevent, which
 * has no peer: http_peer_of then finds none, and the request is not served. */
static struct bufferevent *peer_create(struct event_base *base, void *user)
{
    struct http_server *server = user;
    struct http_peer *peer = calloc(1, sizeof *peer);
    if (!peer)
        return NULL;
    if (server->tls) {
        SSL *ssl = SSL_new(server->tls);
        if (ssl)
            peer->bev = bufferevent_openssl_socket_new(base, -1, ssl, BUFFEREVENT_SSL_ACCEPTING,
                                                       BEV_OPT_CLOSE_ON_FREE);
        if (ssl && !peer->bev)
            SSL_free(ssl);
        if (peer->bev)
            bufferevent_openssl_set_allow_dirty_shutdown(peer->bev, 1);
    } else {
        peer->bev = bufferevent_socket_new(base, -1, BEV_OPT_CLOSE_ON_FREE);
    }
    if (!peer->bev) {
        free(peer);
        return NULL;
    }
    bufferevent_incref(peer->bev);
    peer->server = server;
    peer->fd = -1;
    peer->next = server->newcomers;
    server->newcomers = peer;
    server->n_peers++;
    if (server->n_peers >= server->config.max_connections)
        evconnlistener_disable(server->listener);
    event_active(server->adopt_event, 0, 0);
    return peer->bev;
}

struct http_peer *http_peer_of(struct http_server *server, struct evhttp_request *request)
{
    struct evhttp_connection *connection = evhttp_request_get_connection(request);
    evutil_socket_t fd = bufferevent_getfd(evhttp_connection_get_bufferevent(connection));
    return fd >= 0 && (size_t)fd < server->n_fds ? server->peer_by_fd[fd] : NULL;
}

static struct timeval as_timeval(double s)
{
    return (struct timeval){.tv_sec = (time_t)s,
                            .tv_usec = (suseconds_t)((s - (double)(time_t)s) * 1e6)};
}

/* evhttp stops reading once it has a request, and so would not see that the client leaves; its
 * read callback must not run before the answer is out, so it is taken off. */
void http_peer_begin_answer(struct http_peer *peer)
{
    bufferevent_data_cb on_write = NULL;
    bufferevent_event_cb on_event = NULL;
    void *connection = NULL;
    struct timeval write_timeout = as_timeval(peer->server->config.idle_timeout_s);
    peer->reading_since_ns = 0;
    http_receiving_end(peer);
    bufferevent_getcb(peer->bev, NULL, &on_write, &on_event, &connection);
    bufferevent_setcb(peer->bev, NULL, on_write, on_event, connection);
    bufferevent_setwatermark(peer->bev, EV_READ, 0, SENT_AHEAD_BYTES);
    bufferevent_set_timeouts(peer->bev, NULL, &write_timeout);
    bufferevent_enable(peer->bev, EV_READ);
}

static void guarded_write(struct bufferevent *bev, void *user)
{
    struct http_peer *peer = user;
    if (evbuffer_get_length(bufferevent_get_output(bev)) == 0)
        peer->on_write(bev, peer->connection);
}

static void guarded_event(struct bufferevent *bev, short what, void *user)
{
    struct http_peer *peer = user;
    peer->on_event(bev, what, peer->connection);
}

/* A TLS connection says that its bytes are out by a callback that runs later, and evhttp takes any
 * such callback for the end of the answer: one that was under way when the last bytes were added
 * would cut them off. evhttp sets its own callbacks again for the next request. */
void http_peer_guard_end(struct http_peer *peer)
{
    if (!peer->server->tls)
        return;
    bufferevent_getcb(peer->bev, NULL, &peer->on_write, &peer->on_event, NULL);
    bufferevent_setcb(peer->bev, NULL, guarded_write, guarded_event, peer);
}

void http_peer_end_answer(struct http_peer *peer)
{
    struct timeval idle = as_timeval(peer->server->config.idle_timeout_s);
    bufferevent_setwatermark(peer->bev, EV_READ, 0, 0);
    bufferevent_set_timeouts(peer->bev, &idle, &idle);
    bool is_next_there = evbuffer_get_length(bufferevent_get_input(peer->bev)) > 0;
    peer->reading_since_ns = is_next_there ? host_now_ns() : 0;
}

/* A request that drips in slower than the idle timeout holds a connection no longer than that. */
void http_peer_tick(struct http_server *server, uint64_t now_ns)
{
    uint64_t unsent_bytes = 0, limit_ns = (uint64_t)(server->config.idle_timeout_s * 1e9);
    struct http_peer *next;
    for (struct http_peer *peer = server->peers; peer; peer = next) {
        next = peer->next;
        unsent_bytes += evbuffer_get_length(bufferevent_get_output(peer->bev));
        bool is_late = peer->reading_since_ns && !peer->exchange &&
                       now_ns - peer->reading_since_ns >= limit_ns;
        if (is_late || http_receiving_is_abuse(peer))
            cut(peer);
    }
    if (server->n_peers < server->config.max_connections && !server->is_ending)
        evconnlistener_enable(server->listener);
    metrics_set_connections(server->metrics, server->n_peers, unsent_bytes,
                            server->receiving_bytes);
}

/* Out of descriptors: accepting again at once would only spin; the next tick tries again. */
static void accept_failed(struct evconnlistener *listener, void *user)
{
    (void)user;
    evconnlistener_disable(listener);
}

static enum status load_tls(struct http_server *server, struct err *err)
{
    const struct http_server_config *c = &server->config;
    char why[160] = "";
    const char *file = c->tls_cert;
    ERR_clear_error();
    server->tls = SSL_CTX_new(TLS_server_method());
    if (!server->tls)
        return err_set(err, STATUS_NO_MEMORY, "no memory for TLS");
    SSL_CTX_set_min_proto_version(server->tls, TLS1_2_VERSION);
    SSL_CTX_set_options(server->tls, SSL_OP_NO_RENEGOTIATION);
    bool is_ok = SSL_CTX_use_certificate_chain_file(server->tls, c->tls_cert) == 1;
    if (is_ok) {
        file = c->tls_key;
        is_ok = SSL_CTX_use_PrivateKey_file(server->tls, c->tls_key, SSL_FILETYPE_PEM) == 1 &&
                SSL_CTX_check_private_key(server->tls) == 1;
    }
    if (is_ok)
        return STATUS_OK;
    ERR_error_string_n(ERR_peek_last_error(), why, sizeof why);
    ERR_clear_error();
    if (access(file, R_OK) != 0)
        return err_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: %s", file,
                       strerror(errno));
    return err_set(err, STATUS_INVALID, "%s: not a PEM %s that fits: %s", file,
                   file == c->tls_cert ? "certificate" : "key", why);
}

static int bind_any(const struct http_server_config *c, const char **why)
{
    char service[16];
    snprintf(service, sizeof service, "%u", c->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int code = getaddrinfo(c->host, service, &hints, &list), fd = -1;
    *why = code ? gai_strerror(code) : "no address";
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
        int one = 1;
        fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
        if (fd >= 0)
            setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (fd < 0 || bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
            *why = strerror(errno);
            if (fd >= 0)
                close(fd);
            fd = -1;
        }
    }
    if (list)
        freeaddrinfo(list);
    return fd;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage address;
    socklen_t len = sizeof address;
    char service[16] = "0";
    if (getsockname(fd, (struct sockaddr *)&address, &len) == 0)
        getnameinfo((struct sockaddr *)&address, len, NULL, 0, service, sizeof service,
                    NI_NUMERICSERV);
    return (uint16_t)atoi(service);
}

static void raise_fd_limit(uint32_t n_connections)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)n_connections + SPARE_FDS;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = limit.rlim_max < wanted ? limit.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

enum status http_peer_listen(struct http_server *server, struct err *err)
{
    const struct http_server_config *c = &server->config;
    if (c->tls_cert) {
        enum status status = load_tls(server, err);
        if (status)
            return status;
    }
    raise_fd_limit(c->max_connections);
    const char *why;
    int fd = bind_any(c, &why);
    if (fd < 0)
        return err_set(err, STATUS_IO, "cannot listen on %s port %u: %s; is another server there?",
                       c->host, c->port, why);
    server->port = port_of(fd);
    server->adopt_event = event_new(server->base, -1, 0, adopt_newcomers, server);
    server->listener = evconnlistener_new(server->base, NULL, NULL,
                                          LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
    if (!server->listener)
        close(fd);
    if (!server->adopt_event || !server->listener ||
        !evhttp_bind_listener(server->http, server->listener)) {
        if (server->listener)
            evconnlistener_free(server->listener);
        server->listener = NULL;
        return err_set(err, STATUS_NO_MEMORY, "no memory for a listening socket");
    }
    event_priority_set(server->adopt_event, 0); /* before all others */
    evhttp_set_bevcb(server->http, peer_create, server);
    evconnlistener_set_error_cb(server->listener, accept_failed);
    return STATUS_OK;
}
