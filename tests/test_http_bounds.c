/* http_server: what nobody can make grow or wait without end. */
#include "tests/http_world.h"

static void test_http_refuses_large_bodies(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    w->config.max_body_bytes = 1000;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    char *body = malloc(2001);
    memset(body, ' ', 2000);
    body[2000] = '\0';
    assert_int_equal(http_post(w, COMPLETIONS, "", body), 413);
    http_wants(w, "\"code\":\"request_too_large\"");
    free(body);
    int fd = http_connect(w); /* far over the limit: evhttp says so itself */
    size_t len = 0, n_body = (size_t)2 << 20;
    char head[256];
    body = malloc(n_body + 1);
    memset(body, ' ', n_body);
    body[n_body] = '\0';
    snprintf(head, sizeof head, "POST " COMPLETIONS " HTTP/1.1\r\nContent-Length: %zu\r\n\r\n",
             n_body);
    http_send(fd, head);
    http_send(fd, body);
    assert_true(http_read(w, fd, NULL, &len, HTTP_PATIENCE_MS));
    http_wants(w, "HTTP/1.1 413 ");
    free(body);
    close(fd);
    http_world_close(w);
}

enum { LONG_TEXT_BYTES = 1 << 19 };

/* Asks for the tokens of a long text: twice its bytes, more than the sockets' buffers hold; nothing
 * of the answer is read. */
static int ask_for_much(struct http_world *w)
{
    const size_t n = LONG_TEXT_BYTES;
    char head[128], *body = malloc(n + 32);
    int fd = http_connect(w), buffer_bytes = 32768;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer_bytes, sizeof buffer_bytes);
    strcpy(body, "{\"prompt\":\"");
    memset(body + 11, 'a', n);
    strcpy(body + 11 + n, "\"}");
    snprintf(head, sizeof head, "POST /tokenize HTTP/1.1\r\nContent-Length: %zu\r\n\r\n",
             strlen(body));
    http_send(fd, head);
    http_send(fd, body);
    free(body);
    return fd;
}

static void test_http_whole_answers_do_not_wait_for_ever(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    w->config.request_timeout_s = 1.5; /* time to make the answer in a sanitizer build */
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    int fd = ask_for_much(w);
    size_t len = 0, total = 0;
    assert_true(http_read(w, fd, "\"tokens\":[", &len, HTTP_PATIENCE_MS));
    total = len;
    const uint64_t until_ns = host_now_ns() + UINT64_C(2100000000);
    while (host_now_ns() < until_ns) /* it reads nothing, and others are served */
        assert_int_equal(http_get(w, "/health"), 200);
    for (ssize_t n = 1; n > 0; total += n > 0 ? (size_t)n : 0)
        n = recv(fd, w->answer, sizeof w->answer, 0);
    assert_true(total < 2 * LONG_TEXT_BYTES); /* "0," for each token */
    close(fd);
    http_world_close(w);
}

/* What one write holds is no fault of the reader's: he could not have read it before. */
static void test_http_large_events_are_not_slow_readers(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    w->config.max_unsent_bytes = 300; /* the head fits in, the head and an event do not */
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "", STREAMS(1)), 200);
    http_wants(w, "data: [DONE]");
    http_world_close(w);
}

static void test_http_bodies_that_wait_are_bounded(void **state)
{
    (void)state;
    enum { N = 40 };
    struct http_world *w = http_world_open();
    w->config.max_body_bytes = 200000;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    char *body = malloc(150001);
    int fds[N], n_refused = 0, n_answered = 0;
    size_t at = (size_t)sprintf(body, "{\"prompt\":\"");
    memset(body + at, 'a', 150000 - at);
    strcpy(body + 150000 - 2, "\"}");
    for (int i = 0; i < N; i++)
        fds[i] = http_connect(w);
    for (int i = 0; i < N; i++)
        http_post_on(fds[i], "/tokenize", "Connection: close\r\n", body);
    for (int i = 0; i < N; i++) {
        size_t len = 0;
        assert_true(http_read(w, fds[i], " ", &len, HTTP_PATIENCE_MS));
        n_refused += strncmp(w->answer, "HTTP/1.1 429 ", 13) == 0;
        n_answered += strncmp(w->answer, "HTTP/1.1 200 ", 13) == 0;
        close(fds[i]);
    }
    assert_int_equal(n_refused + n_answered, N);
    assert_true(n_refused > 0 && n_answered > 0);
    free(body);
    http_world_close(w);
}

static void test_http_queue_is_bounded(void **state)
{
    (void)state;
    struct http_world *w = http_world_stuck();
    w->config.max_waiting = 1;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    int fds[3];
    for (int i = 0; i < 3; i++) {
        fds[i] = http_connect(w);
        http_post_on(fds[i], COMPLETIONS, "", GENERATES(5));
        http_wait_metric(w, i < 2 ? i ? "carousel_num_requests_running 2\n"
                                      : "carousel_num_requests_running 1\n"
                                  : "carousel_num_requests_waiting 1\n");
    }
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(5)), 429);
    http_wants(w, "\r\nRetry-After: 1\r\n");
    http_wants(w, "\"code\":\"queue_full\"");
    close(fds[0]); /* the one that waits moves up, and there is room again */
    http_wait_metric(w, "carousel_num_requests_waiting 0\n");
    assert_int_equal(http_post(w, COMPLETIONS, "", "{" PROMPT ", \"max_tokens\": 5, \"n\": -1}"),
                     400);
    close(fds[1]);
    close(fds[2]);
    http_world_close(w);
}

static void test_http_connections_are_bounded(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    w->config.max_connections = 2;
    w->config.idle_timeout_s = 0.3;
    http_world_load(w);
    int a = http_connect(w), b = http_connect(w), c = http_connect(w);
    size_t len = 0;
    http_send(a, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_true(http_read(w, a, "loading", &len, HTTP_PATIENCE_MS));
    len = 0;
    http_send(c, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_false(http_read(w, c, "loading", &len, 50)); /* waits to be accepted */
    assert_int_equal(len, 0);
    close(a);
    assert_true(http_read(w, c, "loading", &len, HTTP_PATIENCE_MS));
    /* b drips: each byte is in time, the request as a whole is not. */
    const char *drip = "GET /health HTTP/1.1\r\nHost: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    bool is_cut = false;
    for (size_t i = 0; drip[i] && !is_cut; i++) {
        is_cut = send(b, drip + i, 1, MSG_NOSIGNAL) < 0;
        struct pollfd p = {.fd = b, .events = POLLIN};
        is_cut = is_cut || poll(&p, 1, 20) > 0;
    }
    assert_true(is_cut);
    close(b);
    close(c);
    http_world_close(w);
}

/* The gauge of bytes that were read of requests that are not complete. */
static double receiving_bytes(struct http_world *w)
{
    static const char name[] = "\ncarousel_http_receiving_bytes ";
    assert_int_equal(http_get(w, "/metrics"), 200);
    const char *at = strstr(w->answer, name);
    assert_non_null(at);
    return atof(at + sizeof name - 1);
}

static void test_http_bodies_that_arrive_are_bounded(void **state)
{
    (void)state;
    enum { N = 40, BODY = 19000, PIECE = 1000, PIECES = 15, ALLOWED = 16 * 20000 };
    static const char begin[] = "{\"prompt\":\"ab\",\"max_tokens\":2,\"x\":\"";
    struct http_world *w = http_world_open();
    w->config.max_body_bytes = ALLOWED / 16;
    w->config.max_header_bytes = 256;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    char *body = malloc(BODY + 1), head[160];
    int fds[N];
    snprintf(body, BODY + 1, "%s%*s\"}", begin, (int)(BODY - strlen(begin) - 2), "");
    snprintf(head, sizeof head, "POST " COMPLETIONS " HTTP/1.1\r\nContent-Length: %d\r\n\r\n",
             BODY);
    for (int i = 0; i < N; i++) {
        fds[i] = http_connect(w);
        http_send(fds[i], head);
    }
    for (int k = 0; k < PIECES; k++) {
        for (int i = 0; i < N; i++)
            assert_int_equal(send(fds[i], body + k * PIECE, PIECE, MSG_NOSIGNAL), PIECE);
        poll(NULL, 0, 5); /* what comes in one read is there at once */
    }
    poll(NULL, 0, 600);               /* told at a tick */
    double held = receiving_bytes(w); /* small requests pass */
    if (held < ALLOWED || held > ALLOWED * 1.5)
        fail_msg("%.0f bytes of %d are held", held, N * PIECE * PIECES);
    for (int i = 0; i < N; i++)
        http_send(fds[i], body + PIECES * PIECE);
    free(body);
    int n_answered = 0;
    for (int i = 0; i < N; i++) { /* nobody has waited in vain; all at once are too many to read */
        size_t len = 0;
        assert_true(http_read(w, fds[i], "\r\n\r\n{", &len, HTTP_PATIENCE_MS));
        bool is_refused = strncmp(w->answer, "HTTP/1.1 429 ", 13) == 0;
        n_answered += strncmp(w->answer, "HTTP/1.1 200 ", 13) == 0;
        assert_true(is_refused || strncmp(w->answer, "HTTP/1.1 200 ", 13) == 0);
        close(fds[i]);
    }
    assert_true(n_answered >= 16);
    while (receiving_bytes(w) > 200) /* the asking one is among them */
        poll(NULL, 0, 5);
    http_world_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_whole_answers_do_not_wait_for_ever),
        cmocka_unit_test(test_http_large_events_are_not_slow_readers),
        cmocka_unit_test(test_http_bodies_that_wait_are_bounded),
        cmocka_unit_test(test_http_bodies_that_arrive_are_bounded),
        cmocka_unit_test(test_http_queue_is_bounded),
        cmocka_unit_test(test_http_connections_are_bounded),
        cmocka_unit_test(test_http_refuses_large_bodies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
