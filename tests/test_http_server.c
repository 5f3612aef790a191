/* http_server: what a client sees on the wire, and that nothing of it is left behind. */
#include "tests/http_world.h"

static void test_http_loading_is_said_until_open(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    http_world_load(w);
    assert_int_equal(http_get(w, "/health"), 200);
    assert_int_equal(http_get(w, "/ready"), 503);
    http_wants(w, "{\"status\":\"loading\"}");
    assert_int_equal(http_get(w, "/v1/models"), 503);
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(2)), 503);
    http_wants(w, "\r\nRetry-After: 1\r\n");
    http_wants(w, "\"code\":\"loading\"");
    http_world_serve(w);
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(2)), 200);
    http_world_close(w);
}

static void test_http_answers_whole(void **state)
{
    (void)state;
    struct http_world *w = http_world_serving();
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "X-Request-Id: mine-1\r\n", GENERATES(4)), 200);
    http_wants(w, "\r\nX-Request-Id: mine-1\r\n");
    http_wants(w, "\r\nContent-Type: application/json\r\n");
    http_wants(w, "\r\nX-Carousel-Mean-Exit-Loop: 1.75");
    http_wants(w, "\"text\":\"abcd\"");
    http_wants(w, "\"finish_reason\":\"length\"");
    assert_int_equal(http_post(w, COMPLETIONS, "X-Carousel-Return-Exit-Loops: true\r\n",
                               "{\"prompt\": [[4], [0, 1]], \"n\": 2, \"max_tokens\": 3}"),
                     200);
    http_wants(w, "\r\nX-Carousel-Exit-Loops: 1,2,3,1,2,3,1,2,3,1,2,3\r\n");
    http_wants(w, "\"index\":3");
    http_wants(w, "\"total_tokens\":");
    http_wait_metric(w, "carousel_num_requests_running 0\n");
    http_world_close(w);
}

static void test_http_streams_events(void **state)
{
    (void)state;
    struct http_world *w = http_world_serving();
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "",
                               "{" PROMPT ", \"stream\": true, \"max_tokens\": 3, \"n\": 2,"
                               " \"stream_options\": {\"include_usage\": true}}"),
                     200);
    http_wants(w, "\r\nContent-Type: text/event-stream");
    http_wants(w, "\r\nTransfer-Encoding: chunked\r\n");
    http_wants(w, "\"index\":1");
    http_wants(w, "\"choices\":[],\"usage\":{");
    http_wants(w, "data: [DONE]\n\n\r\n0\r\n\r\n");
    http_world_close(w);
}

/* The end of the connection is the end of the stream, also when the client wants to keep it. */
static void test_http_1_0_streams_without_chunks(void **state)
{
    (void)state;
    struct http_world *w = http_world_serving();
    http_wait_ready(w);
    char request[512];
    snprintf(request, sizeof request,
             "POST " COMPLETIONS
             " HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %zu\r\n\r\n%s",
             sizeof STREAMS(3) - 1, STREAMS(3));
    assert_int_equal(http_ask(w, request), 200);
    assert_null(strstr(w->answer, "chunked"));
    assert_null(strstr(w->answer, "Content-Length"));
    assert_string_equal(w->answer + strlen(w->answer) - 14, "data: [DONE]\n\n");
    http_world_close(w);
}

static void test_http_keeps_connections_and_takes_pipelines(void **state)
{
    (void)state;
    struct http_world *w = http_world_serving();
    http_wait_ready(w);
    int fd = http_connect(w);
    size_t len = 0;
    for (int i = 0; i < 3; i++) { /* one after another */
        len = 0;
        http_post_on(fd, COMPLETIONS, "", STREAMS(2));
        assert_true(http_read(w, fd, "0\r\n\r\n", &len, HTTP_PATIENCE_MS));
    }
    len = 0; /* at once: answered in order */
    http_post_on(fd, COMPLETIONS, "", STREAMS(2));
    http_send(fd, "GET /version HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\n"
                  "Host: x\r\nConnection: close\r\n\r\n");
    assert_true(http_read(w, fd, NULL, &len, HTTP_PATIENCE_MS));
    const char *done = strstr(w->answer, "[DONE]"), *version = strstr(w->answer, "\"version\"");
    assert_true(done && version && done < version);
    assert_non_null(strstr(version, "\"status\":\"ready\""));
    close(fd);
    fd = http_connect(w);
    len = 0;
    http_send(fd, "POST " COMPLETIONS " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                  "Connection: close\r\nContent-Length: 37\r\n\r\n");
    assert_true(http_read(w, fd, "100 Continue\r\n\r\n", &len, HTTP_PATIENCE_MS));
    http_send(fd, "{\"prompt\": [4, 0], \"max_tokens\": 2  }");
    assert_true(http_read(w, fd, NULL, &len, HTTP_PATIENCE_MS));
    http_wants(w, "\"text\":\"ab\"");
    close(fd);
    http_world_close(w);
}

static void test_http_refuses_what_it_does_not_serve(void **state)
{
    (void)state;
    static const struct {
        const char *request;
        int status;
        const char *part;
    } cases[] = {
        {"GET /nothing HTTP/1.0\r\n\r\n", 404, "\"code\":\"not_found\""},
        {"GET " COMPLETIONS " HTTP/1.0\r\n\r\n", 405, "\r\nAllow: POST\r\n"},
        {"DELETE /v1/models HTTP/1.0\r\n\r\n", 405, "\r\nAllow: GET, HEAD\r\n"},
        {"OPTIONS /v1/models HTTP/1.0\r\n\r\n", 405, "\"code\":\"method_not_allowed\""},
        {"BREW /v1/models HTTP/1.0\r\n\r\n", 405, "\"code\":\"method_not_allowed\""},
        {"HEAD /v1/models HTTP/1.0\r\n\r\n", 200, "Content-Length: "},
        {"GET /v1/models/other%2Fname HTTP/1.0\r\n\r\n", 200, "\"id\":\"tiny\""},
        {"GET /v1/models/gpt HTTP/1.0\r\n\r\n", 404, "\"code\":\"model_not_found\""},
        {"POST " COMPLETIONS " HTTP/1.0\r\nContent-Type: image/png\r\nContent-Length: 2\r\n\r\n{}",
         415, "\"code\":\"unsupported_media_type\""},
        {"POST " COMPLETIONS " HTTP/1.0\r\nContent-Length: 2\r\n\r\n{]", 400,
         "\"type\":\"invalid_request_error\""},
        {"POST " COMPLETIONS " HTTP/1.0\r\n\r\n", 400, "\"type\":\"invalid_request_error\""},
        {"POST " COMPLETIONS " HTTP/1.0\r\nX-Carousel-Max-Loops: two\r\nContent-Length: 2\r\n\r\n"
         "{}",
         400, "\"param\":\"X-Carousel-Max-Loops\""},
        {"POST " COMPLETIONS " HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501,
         "\"code\":\"not_implemented\""},
        /* What follows the first length is not taken for a request. */
        {"POST " COMPLETIONS " HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 40\r\n\r\n"
         "{}GET /version HTTP/1.1\r\nHost: abcdefgh\r\n\r\n",
         400, "Content-Length is there more than once"},
    };
    struct http_world *w = http_world_serving();
    http_wait_ready(w);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(http_ask(w, cases[i].request), cases[i].status);
        http_wants(w, cases[i].part);
        assert_null(strstr(w->answer, "\"version\""));
    }
    assert_int_equal(http_post(w, COMPLETIONS, "", "{\"prompt\": [1], \"model\": \"gpt\"}"), 404);
    http_wants(w, "\"param\":\"model\",\"code\":\"model_not_found\"");
    assert_int_equal(http_post(w, "/tokenize", "", "{\"prompt\": \"abcd\"}"), 200);
    http_wants(w, "{\"count\":4,\"max_model_len\":32,\"tokens\":[0,1,2,3]}");
    assert_int_equal(http_post(w, "/detokenize", "", "{\"tokens\": [4, 0, 2]}"), 200);
    http_wants(w, "{\"prompt\":\"eac\"}");
    assert_int_equal(http_post(w, "/detokenize", "", "{\"tokens\": [5]}"), 400);
    http_world_close(w);
}

static void test_http_keys_guard_all_but_probes(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    char path[256];
    struct err err = {0};
    struct api_keys *keys;
    snprintf(path, sizeof path, "%s/keys", w->cluster->dir);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "bob sesame\n", 11), 11);
    close(fd);
    if (api_keys_load(path, &keys, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    unlink(path);
    w->config.keys = keys;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    assert_int_equal(http_get(w, "/health"), 200);
    assert_int_equal(http_get(w, "/version"), 200);
    assert_int_equal(http_get(w, "/metrics"), 401);
    http_wants(w, "\r\nWWW-Authenticate: Bearer\r\n");
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(2)), 401);
    http_wants(w, "\"code\":\"invalid_api_key\"");
    assert_int_equal(http_post(w, COMPLETIONS, "Authorization: Bearer sesam\r\n", GENERATES(2)),
                     401);
    assert_int_equal(http_post(w, COMPLETIONS, "Authorization: bearer sesame\r\n", GENERATES(2)),
                     200);
    http_world_close(w);
    api_keys_free(keys);
}

/* Rows and blocks are given back whether the client wanted a stream or not. */
static void test_http_client_leaves(void **state)
{
    (void)state;
    struct http_world *w = http_world_stuck();
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    int stream = http_connect(w), whole = http_connect(w), waits = http_connect(w);
    size_t len = 0;
    http_post_on(stream, COMPLETIONS, "", STREAMS(5));
    assert_true(http_read(w, stream, "b\",", &len, HTTP_PATIENCE_MS));
    http_post_on(whole, COMPLETIONS, "", GENERATES(5));
    http_wait_metric(w, "carousel_num_requests_running 2\n");
    http_post_on(waits, COMPLETIONS, "", GENERATES(5)); /* two run at most */
    http_wait_metric(w, "carousel_num_requests_waiting 1\n");
    close(waits);
    http_wait_metric(w, "carousel_num_requests_waiting 0\n");
    close(stream);
    close(whole);
    http_wait_metric(w, "carousel_num_requests_running 0\n");
    http_wait_metric(w, "carousel_kv_cache_usage_ratio 0\n");
    http_wants(w, "reason=\"disconnect\"} 3");
    http_world_close(w);
}

static void test_http_pings_and_deadlines(void **state)
{
    (void)state;
    struct http_world *w = http_world_stuck();
    w->config.ping_interval_s = 0.05;
    w->config.request_timeout_s = 0.2;
    w->config.idle_timeout_s = 0.1; /* must not cut what the server is slow about */
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "", STREAMS(5)), 200);
    http_wants(w, "\n: ping\n\n");
    http_wants(w, "\"code\":\"deadline_exceeded\"");
    http_wants(w, "data: [DONE]\n\n");
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(5)), 504);
    http_wants(w, "\"type\":\"timeout_error\"");
    http_wait_metric(w, "carousel_num_requests_running 0\n");
    http_world_close(w);
}

static void test_http_drain_finishes_then_cuts(void **state)
{
    (void)state;
    struct http_world *w = http_world_stuck();
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    int stream = http_connect(w), whole = http_connect(w), late = http_connect(w);
    size_t len = 0;
    http_post_on(stream, COMPLETIONS, "", STREAMS(5));
    assert_true(http_read(w, stream, "b\",", &len, HTTP_PATIENCE_MS));
    http_post_on(whole, COMPLETIONS, "", GENERATES(5));
    http_wait_metric(w, "carousel_num_requests_running 2\n");
    http_server_drain(w->server, 0.1);
    while (http_get(w, "/ready") != 503)
        poll(NULL, 0, 1);
    http_wants(w, "{\"status\":\"draining\"}");
    len = 0;
    http_post_on(late, COMPLETIONS, "Connection: close\r\n", GENERATES(2));
    assert_true(http_read(w, late, NULL, &len, HTTP_PATIENCE_MS));
    http_wants(w, "\"code\":\"draining\"");
    len = 0;
    assert_true(http_read(w, stream, "0\r\n\r\n", &len, HTTP_PATIENCE_MS));
    http_wants(w, "data: {\"error\":");
    len = 0;
    assert_true(http_read(w, whole, "\"code\":\"draining\"", &len, HTTP_PATIENCE_MS));
    http_wants(w, "HTTP/1.1 503 ");
    http_world_join(w); /* it ends by itself */
    close(stream);
    close(whole);
    close(late);
    http_world_close(w);
}

static void test_http_lost_cluster_is_said(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    w->cluster->fakes[0].leaves_on_open = true;
    http_world_load(w);
    http_world_serve(w);
    http_wait_ready(w);
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(5)), 503);
    http_wants(w, "\"code\":\"cluster_lost\"");
    while (http_get(w, "/ready") != 503)
        poll(NULL, 0, 1);
    http_wants(w, "\"status\":\"lost\",\"message\":");
    assert_int_equal(http_post(w, COMPLETIONS, "", GENERATES(5)), 503);
    http_wants(w, "\"code\":\"cluster_lost\"");
    assert_int_equal(http_get(w, "/health"), 200);
    http_world_close(w);
}

static void test_http_taken_port_is_an_error(void **state)
{
    (void)state;
    struct http_world *w = http_world_open();
    struct http_server *second = NULL;
    struct err err = {0};
    http_world_load(w);
    w->config.port = http_server_port(w->server);
    assert_int_equal(http_server_create(&w->config, &second, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "in use"));
    w->config.tls_cert = w->config.tls_key = "/nowhere.pem";
    assert_int_equal(http_server_create(&w->config, &second, &err), STATUS_NOT_FOUND);
    http_world_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_http_loading_is_said_until_open),
        cmocka_unit_test(test_http_answers_whole),
        cmocka_unit_test(test_http_streams_events),
        cmocka_unit_test(test_http_1_0_streams_without_chunks),
        cmocka_unit_test(test_http_keeps_connections_and_takes_pipelines),
        cmocka_unit_test(test_http_refuses_what_it_does_not_serve),
        cmocka_unit_test(test_http_keys_guard_all_but_probes),
        cmocka_unit_test(test_http_client_leaves),
        cmocka_unit_test(test_http_pings_and_deadlines),
        cmocka_unit_test(test_http_drain_finishes_then_cuts),
        cmocka_unit_test(test_http_lost_cluster_is_said),
        cmocka_unit_test(test_http_taken_port_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
