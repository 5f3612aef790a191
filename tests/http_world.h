/* An HTTP server over scripted workers: engine thread, HTTP thread, and a client that writes and
 * reads bytes. */
#ifndef TESTS_HTTP_WORLD_H
#define TESTS_HTTP_WORLD_H

#include "tests/fake_worker.h"

#include "coordinator/http_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define COMPLETIONS  "/v1/completions"
#define PROMPT       "\"prompt\": [4, 0]"
#define GENERATES(n) "{" PROMPT ", \"max_tokens\": " #n "}"
#define STREAMS(n)   "{" PROMPT ", \"stream\": true, \"max_tokens\": " #n "}"

enum { HTTP_ANSWER_BYTES = 1 << 18, HTTP_PATIENCE_MS = 3000 };

struct http_world {
    struct cluster *cluster;
    struct http_server_config config;
    struct server_log log;
    struct service *service;
    struct http_server *server;
    pthread_t engine_thread, http_thread;
    atomic_bool is_over;
    bool is_joined;
    enum status ran;
    char answer[HTTP_ANSWER_BYTES]; /* of the last http_ask or http_read_all */
};

static inline void *http_world_engine(void *user)
{
    struct http_world *w = user;
    while (!atomic_load(&w->is_over))
        if (service_step(w->service, 1000000000, NULL) != STATUS_OK)
            poll(NULL, 0, 1); /* the cluster is lost: its jobs still end */
    return NULL;
}

static inline void *http_world_run(void *user)
{
    struct http_world *w = user;
    w->ran = http_server_run(w->server, NULL);
    return NULL;
}

/* The server's settings and the fakes may be changed between this and http_world_load. */
static inline void http_world_init(struct http_world *w)
{
    memset(w, 0, sizeof *w);
    w->cluster = cluster_open(1);
    w->log = (struct server_log){.fd = open("/dev/null", O_WRONLY | O_CLOEXEC)};
    w->config = (struct http_server_config){.host = "127.0.0.1", .log = &w->log};
}

/* Listens; every completion is refused as loading. */
static inline void http_world_load(struct http_world *w)
{
    struct err err = {0};
    if (http_server_create(&w->config, &w->server, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(pthread_create(&w->http_thread, NULL, http_world_run, w), 0);
}

static inline void http_world_serve(struct http_world *w)
{
    struct err err = {0};
    static const char *const hosts[] = {"nodea"}, *const aliases[] = {"other/name"};
    const struct service_config config = {
        .stats_interval_ns = 5000000, .on_mail = http_server_on_mail, .user = w->server};
    if (cluster_start(w->cluster, &err) != STATUS_OK ||
        service_create(w->cluster->coordinator, &config, &w->service, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_int_equal(pthread_create(&w->engine_thread, NULL, http_world_engine, w), 0);
    struct http_server_engine engine = {
        .service = w->service,
        .checkpoint = w->cluster->checkpoint,
        .tokenizer = w->cluster->tokenizer,
        .model_name = "tiny",
        .model_dir = w->cluster->dir,
        .aliases = aliases,
        .n_aliases = 1,
        .intake = {.checkpoint = w->cluster->checkpoint,
                   .tokenizer = w->cluster->tokenizer,
                   .model_dir = w->cluster->dir,
                   .default_max_tokens = 16,
                   .max_choices = 64},
        .metrics = {.n_workers = 1,
                    .n_loops = 3,
                    .hosts = hosts,
                    .model = "tiny",
                    .version = CAROUSEL_VERSION},
    };
    sequence_params_init(&engine.intake.defaults);
    engine.intake.defaults.max_loops = 3;
    engine.intake.defaults.n_stop_ids = 0;
    http_server_open(w->server, &engine);
}

static inline struct http_world *http_world_open(void)
{
    struct http_world *w = malloc(sizeof *w);
    assert_non_null(w);
    http_world_init(w);
    return w;
}

static inline void http_world_join(struct http_world *w)
{
    if (w->is_joined)
        return;
    pthread_join(w->http_thread, NULL);
    w->is_joined = true;
    assert_int_equal(w->ran, STATUS_OK);
}

static inline void http_world_close(struct http_world *w)
{
    http_server_abort(w->server);
    http_world_join(w);
    if (w->service) {
        const uint64_t until_ns = host_now_ns() + FAKE_PATIENCE_NS;
        atomic_store(&w->is_over, true);
        service_wake(w->service);
        pthread_join(w->engine_thread, NULL);
        while (!service_is_idle(w->service) && host_now_ns() < until_ns)
            if (service_step(w->service, 1000000, NULL) != STATUS_OK)
                break;
    }
    http_server_destroy(w->server);
    service_destroy(w->service);
    close(w->log.fd);
    cluster_close(w->cluster);
    free(w);
}

/* ---- a client ------------------------------------------------------------------------------- */

static inline int http_connect(const struct http_world *w)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(http_server_port(w->server)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

static inline void http_send(int fd, const char *bytes)
{
    for (size_t at = 0, n = strlen(bytes); at < n;) {
        ssize_t sent = send(fd, bytes + at, n - at, MSG_NOSIGNAL);
        assert_true(sent > 0);
        at += (size_t)sent;
    }
}

/* Reads on until `until` has come (NULL: the end of the connection), into w->answer from *len on.
 * False: the connection ended, or nothing came for timeout_ms. */
static inline bool http_read(struct http_world *w, int fd, const char *until, size_t *len,
                             int timeout_ms)
{
    for (;;) {
        w->answer[*len] = '\0';
        if (until && strstr(w->answer, until))
            return true;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, timeout_ms) <= 0)
            return false;
        ssize_t n = recv(fd, w->answer + *len, sizeof w->answer - 1 - *len, 0);
        if (n <= 0)
            return until == NULL && n == 0;
        *len += (size_t)n;
    }
}

static inline void http_post_on(int fd, const char *path, const char *headers, const char *body)
{
    char head[1024];
    snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n%s\r\n",
             path, strlen(body), headers);
    http_send(fd, head);
    http_send(fd, body);
}

/* One exchange on a connection of its own. Returns the status; the answer is in w->answer. */
static inline int http_ask(struct http_world *w, const char *request)
{
    int fd = http_connect(w), status = 0;
    size_t len = 0;
    http_send(fd, request);
    if (!http_read(w, fd, NULL, &len, HTTP_PATIENCE_MS))
        fail_msg("no whole answer to %.200s: %.*s", request, (int)len, w->answer);
    close(fd);
    assert_int_equal(sscanf(w->answer, "HTTP/1.%*d %d", &status), 1);
    return status;
}

static inline int http_get(struct http_world *w, const char *path)
{
    char request[512];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
             path);
    return http_ask(w, request);
}

static inline int http_post(struct http_world *w, const char *path, const char *headers,
                            const char *body)
{
    char request[4096];
    assert_true(strlen(body) < 3072);
    snprintf(request, sizeof request,
             "POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n%s\r\n%s",
             path, strlen(body), headers, body);
    return http_ask(w, request);
}

static inline void http_wants(const struct http_world *w, const char *part)
{
    if (!strstr(w->answer, part))
        fail_msg("no '%s' in: %.2000s", part, w->answer);
}

/* Waits until a metric's line is there: what other threads have counted comes a little later. */
static inline void http_wait_metric(struct http_world *w, const char *line)
{
    const uint64_t until_ns = host_now_ns() + HTTP_PATIENCE_MS * UINT64_C(1000000);
    do {
        assert_int_equal(http_get(w, "/metrics"), 200);
        if (strstr(w->answer, line))
            return;
        poll(NULL, 0, 2);
    } while (host_now_ns() < until_ns);
    fail_msg("no '%s' in %s", line, w->answer);
}

static inline struct http_world *http_world_serving(void)
{
    struct http_world *w = http_world_open();
    http_world_load(w);
    http_world_serve(w);
    return w;
}

/* A server whose workers stop after two tokens: every longer request stays under way. */
static inline struct http_world *http_world_stuck(void)
{
    struct http_world *w = http_world_open();
    w->cluster->fakes[0].n_at_once = 2;
    w->config.request_timeout_s = 60;
    return w;
}

static inline void http_wait_ready(struct http_world *w)
{
    while (http_get(w, "/ready") != 200)
        poll(NULL, 0, 1);
}

#endif
