/* serve_options: what a server is told, and what it refuses before anything is started. */
#include "cli/serve_options.h"
#include "tests/unit.h"

enum { MAX_ARGS = 12 };

static enum status read_options(struct serve_options *o, const char *const *args)
{
    char *argv[MAX_ARGS + 2] = {"serve"};
    int argc = 1;
    bool is_over;
    struct err err = {0};
    for (; args[argc - 1] != NULL; argc++)
        argv[argc] = (char *)args[argc - 1];
    enum status status = serve_options_read(o, argc, argv, &is_over, &err);
    assert_false(is_over);
    assert_int_equal(status, err.code);
    return status;
}

static void test_serve_host_is_loopback_knows_addresses(void **state)
{
    (void)state;
    static const char *const own[] = {"127.0.0.1", "127.1.2.3", "::1", "localhost"};
    static const char *const others[] = {"0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "fe80::1", ""};
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (!serve_host_is_loopback(own[i]))
            fail_msg("%s is this host's own", own[i]);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (serve_host_is_loopback(others[i]))
            fail_msg("%s is reachable from elsewhere", others[i]);
}

static void test_serve_options_defaults(void **state)
{
    (void)state;
    struct serve_options o;
    struct http_server_config config;
    assert_int_equal(read_options(&o, (const char *const[]){NULL}), STATUS_OK);
    assert_null(o.session.model);
    assert_true(o.session.is_server);
    assert_true(o.session.max_queue > (uint32_t)o.max_queue);
    assert_true(o.request.temperature == 1.0);
    assert_false(o.request.has_seed);
    assert_int_equal(o.n_names, 0);
    serve_options_http_config(&o, NULL, &config);
    assert_string_equal(config.host, "127.0.0.1");
    assert_int_equal(config.port, 8000);
    assert_int_equal(config.max_waiting, 1024);
    assert_int_equal(config.max_body_bytes, 4 << 20);
    assert_null(config.keys);
    assert_null(config.tls_cert);
    serve_options_free(&o);
}

static void test_serve_options_take_names_and_limits(void **state)
{
    (void)state;
    struct serve_options o;
    struct http_server_config config;
    assert_int_equal(read_options(&o, (const char *const[]){"dir", "--served-model-name", "a,b/c,d",
                                                            "--max-queue", "3", "--max-body", "1M",
                                                            "--port", "0", "--seed", "0", NULL}),
                     STATUS_OK);
    assert_string_equal(o.session.model, "dir");
    assert_int_equal(o.n_names, 3);
    assert_string_equal(o.name_list[0], "a");
    assert_string_equal(o.name_list[1], "b/c");
    assert_string_equal(o.name_list[2], "d");
    assert_true(o.request.has_seed); /* 0 is a seed, too */
    serve_options_http_config(&o, NULL, &config);
    assert_int_equal(config.port, 0);
    assert_int_equal(config.max_waiting, 3);
    assert_int_equal(config.max_body_bytes, 1 << 20);
    serve_options_free(&o);
}

static void test_serve_options_refuse_what_would_surprise(void **state)
{
    (void)state;
    static const char *const cases[][5] = {
        {"--host", "0.0.0.0"},
        {"--host", "10.0.0.1"},
        {"--tls-cert", "cert.pem"},
        {"--tls-key", "key.pem"},
        {"--served-model-name", ","},
        {"--served-model-name", "a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a"},
        {"--max-body", "0"},
        {"--port", "65536"},
        {"--stop", "x"}, /* a request's own */
        {"--logprobs", "2"},
        {"one", "two"},
    };
    struct serve_options o;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (read_options(&o, cases[i]) != STATUS_INVALID)
            fail_msg("%s %s is accepted", cases[i][0], cases[i][1]);
        serve_options_free(&o);
    }
    static const char *const meant[][5] = {
        {"--host", "0.0.0.0", "--insecure"},
        {"--host", "0.0.0.0", "--api-key-file", "keys"},
    };
    for (size_t i = 0; i < sizeof meant / sizeof meant[0]; i++) {
        assert_int_equal(read_options(&o, meant[i]), STATUS_OK);
        serve_options_free(&o);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_serve_host_is_loopback_knows_addresses),
        cmocka_unit_test(test_serve_options_defaults),
        cmocka_unit_test(test_serve_options_take_names_and_limits),
        cmocka_unit_test(test_serve_options_refuse_what_would_surprise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
