/* The endpoint file as a batch system reads it: JSON, whole, replaced in place. */
#include "tests/unit.h"

#include "coordinator/endpoint_file.h"

#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

static json_t *write_and_read(const char *path, const struct endpoint *endpoint)
{
    struct err err = {0};
    if (endpoint_file_write(path, endpoint, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        fail_msg("%s", error.text);
    return root;
}

static void expect_text(json_t *root, const char *key, const char *expected)
{
    assert_true(json_is_string(json_object_get(root, key)));
    assert_string_equal(json_string_value(json_object_get(root, key)), expected);
}

static void make_path(char *dir, char *path)
{
    strcpy(dir, "/tmp/carousel-endpoint-XXXXXX");
    assert_non_null(mkdtemp(dir));
    sprintf(path, "%s/endpoint.json", dir);
}

static void test_endpoint_file_has_all_fields(void **state)
{
    (void)state;
    char dir[64], path[96];
    make_path(dir, path);
    const struct endpoint loading = {"127.0.0.1", 8000, "http", "loading", "demo \"quoted\"\n"};
    json_t *root = write_and_read(path, &loading);
    assert_int_equal(json_object_size(root), 7);
    expect_text(root, "host", "127.0.0.1");
    assert_int_equal(json_integer_value(json_object_get(root, "port")), 8000);
    expect_text(root, "url", "http://127.0.0.1:8000");
    assert_int_equal(json_integer_value(json_object_get(root, "pid")), getpid());
    expect_text(root, "state", "loading");
    expect_text(root, "model", "demo \"quoted\"\n");
    expect_text(root, "version", CAROUSEL_VERSION);
    json_decref(root);

    const struct endpoint ready = {"127.0.0.1", 8000, "https", "ready", "demo"};
    root = write_and_read(path, &ready);
    expect_text(root, "state", "ready");
    expect_text(root, "url", "https://127.0.0.1:8000");
    json_decref(root);
    unlink(path);
    assert_int_equal(rmdir(dir), 0); /* no temporary file is left */
}

/* Somebody who reads while the file is replaced holds the old one, whole. */
static void test_endpoint_file_is_replaced_not_rewritten(void **state)
{
    (void)state;
    char dir[64], path[96], old[512];
    make_path(dir, path);
    const struct endpoint loading = {"h", 1, "http", "loading", "m"};
    const struct endpoint ready = {"h", 1, "http", "ready", "m"};
    json_decref(write_and_read(path, &loading));
    FILE *reader = fopen(path, "r");
    assert_non_null(reader);
    json_decref(write_and_read(path, &ready));
    old[fread(old, 1, sizeof old - 1, reader)] = '\0';
    fclose(reader);
    assert_non_null(strstr(old, "\"state\":\"loading\""));
    assert_string_equal(old + strlen(old) - 2, "}\n");
    unlink(path);
    rmdir(dir);
}

static void test_endpoint_file_hosts_that_clients_reach(void **state)
{
    (void)state;
    char dir[64], path[96], name[256] = "", url[300];
    make_path(dir, path);
    assert_int_equal(gethostname(name, sizeof name - 1), 0);
    snprintf(url, sizeof url, "http://%s:80", name);
    static const char *const wildcards[] = {"0.0.0.0", "::", ""};
    for (size_t i = 0; i < sizeof wildcards / sizeof wildcards[0]; i++) {
        const struct endpoint e = {wildcards[i], 80, "http", "ready", NULL};
        json_t *root = write_and_read(path, &e);
        expect_text(root, "host", name);
        expect_text(root, "url", url);
        assert_true(json_is_null(json_object_get(root, "model")));
        json_decref(root);
    }
    const struct endpoint six = {"::1", 65535, "http", "ready", "m"};
    json_t *root = write_and_read(path, &six);
    expect_text(root, "host", "::1");
    expect_text(root, "url", "http://[::1]:65535");
    json_decref(root);
    unlink(path);
    rmdir(dir);
}

static void test_endpoint_file_that_cannot_be_written(void **state)
{
    (void)state;
    const struct endpoint e = {"h", 1, "http", "ready", "m"};
    struct err err = {0};
    assert_int_equal(endpoint_file_write("/nonexistent/e.json", &e, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "/nonexistent/e.json"));
    assert_non_null(strstr(err.message, "No such file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endpoint_file_has_all_fields),
        cmocka_unit_test(test_endpoint_file_is_replaced_not_rewritten),
        cmocka_unit_test(test_endpoint_file_hosts_that_clients_reach),
        cmocka_unit_test(test_endpoint_file_that_cannot_be_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
