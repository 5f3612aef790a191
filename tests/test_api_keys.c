/* The key file: what it may hold, what it says of bad lines, and which key is whose. */
#include "tests/unit.h"

#include "coordinator/api_keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *write_keys(char *path, const char *bytes, size_t n, mode_t mode)
{
    strcpy(path, "/tmp/carousel-keys-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, n), n);
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

static struct api_keys *load(const char *text)
{
    char path[64];
    struct api_keys *keys = NULL;
    struct err err = {0};
    enum status status = api_keys_load(write_keys(path, text, strlen(text), 0600), &keys, &err);
    unlink(path);
    if (status != STATUS_OK)
        fail_msg("%s", err.message);
    return keys;
}

static void expect_refused(const char *bytes, size_t n, enum status expected, const char *part)
{
    char path[64];
    struct api_keys *keys = NULL;
    struct err err = {0};
    enum status status = api_keys_load(write_keys(path, bytes, n, 0600), &keys, &err);
    unlink(path);
    assert_int_equal(status, expected);
    assert_null(keys);
    if (strstr(err.message, part) == NULL)
        fail_msg("no \"%s\" in: %s", part, err.message);
}

static const char *find(const struct api_keys *keys, const char *key)
{
    return api_keys_find(keys, key, strlen(key));
}

static void test_api_keys_names_and_places(void **state)
{
    (void)state;
    struct api_keys *keys = load("# clients\n\n"
                                 "sk-first\n"
                                 "  alice\tsk-alice  \r\n"
                                 "   # indented comment, caf\xc3\xa9\n"
                                 "sk-last"); /* no newline at the end */
    assert_string_equal(find(keys, "sk-first"), "key-1");
    assert_string_equal(find(keys, "sk-alice"), "alice");
    assert_string_equal(find(keys, "sk-last"), "key-3");
    api_keys_free(keys);
}

static void test_api_keys_refuses_what_is_no_key(void **state)
{
    (void)state;
    struct api_keys *keys = load("alice sk-alice\nsk-b\n");
    static const char *const wrong[] = {"",          "alice",    "sk-alic",
                                        "sk-alicf",  "tk-alice", "sk-alice ",
                                        "sk-alicee", "SK-ALICE", "alice sk-alice"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_null(find(keys, wrong[i]));
    assert_null(api_keys_find(keys, "sk-alice\0", 9));
    assert_non_null(api_keys_find(keys, "sk-alice, and more", 8)); /* the length decides */
    char longest[API_KEY_MAX_BYTES + 1];
    memset(longest, 'a', sizeof longest);
    assert_null(api_keys_find(keys, longest, sizeof longest));
    api_keys_free(keys);
}

static void test_api_keys_takes_many_and_long_ones(void **state)
{
    (void)state;
    enum { LINE_BYTES = 32 };
    char *text = calloc(API_KEYS_MAX + 20, LINE_BYTES), *at = text;
    assert_non_null(text);
    for (int i = 0; i < API_KEYS_MAX; i++)
        at += sprintf(at, "client-%d sk-%d\n", i, i * 7919);
    struct api_keys *keys = load(text);
    for (int i = 0; i < API_KEYS_MAX; i++) {
        char key[LINE_BYTES], name[LINE_BYTES];
        sprintf(key, "sk-%d", i * 7919);
        sprintf(name, "client-%d", i);
        assert_string_equal(find(keys, key), name);
    }
    api_keys_free(keys);
    strcpy(at, "one-too-many\n");
    expect_refused(text, strlen(text), STATUS_INVALID, "line 1025: more than 1024 keys");

    memset(text, 'k', API_KEY_MAX_BYTES + 1);
    text[API_KEY_MAX_BYTES] = '\0';
    keys = load(text);
    assert_string_equal(find(keys, text), "key-1");
    api_keys_free(keys);
    text[API_KEY_MAX_BYTES] = 'k';
    text[API_KEY_MAX_BYTES + 1] = '\0';
    expect_refused(text, strlen(text), STATUS_INVALID, "line 1: a key of 513 bytes; at most 512");
    free(text);
}

static void test_api_keys_says_what_is_wrong(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "has no key"},
        {"# nothing\n\n  \t\n", "has no key"},
        {"a\nb c d\n", "line 2: more than two words"},
        {"a\n\xc3\xa9t\xc3\xa9\n", "line 2: byte 0xc3 in column 1 is not printable ASCII"},
        {"ok\nwith\x07"
         "bell\n",
         "line 2: byte 0x07 in column 5"},
        {"one sk-1\ntwo sk-2\nthree sk-1\n", "line 3: the key of one again"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_refused(cases[i].text, strlen(cases[i].text), STATUS_INVALID, cases[i].part);
    expect_refused("a\0b\n", 4, STATUS_INVALID, "line 1: byte 0x00 in column 2");
}

/* What is wrong with a line must not put its key into a terminal or a log. */
static void test_api_keys_messages_show_no_key(void **state)
{
    (void)state;
    static const char *const texts[] = {"name sk-secret more\n", "sk-secret\x01\n",
                                        "sk-secret\nsk-secret\n"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char path[64];
        struct api_keys *keys = NULL;
        struct err err = {0};
        assert_int_equal(
            api_keys_load(write_keys(path, texts[i], strlen(texts[i]), 0600), &keys, &err),
            STATUS_INVALID);
        unlink(path);
        assert_null(strstr(err.message, "secret"));
    }
}

static void test_api_keys_refuses_files_that_others_can_reach(void **state)
{
    (void)state;
    static const struct {
        mode_t mode;
        enum status status;
    } cases[] = {{0600, STATUS_OK},      {0400, STATUS_OK},      {0640, STATUS_OK},
                 {0644, STATUS_INVALID}, {0604, STATUS_INVALID}, {0602, STATUS_INVALID}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[64];
        struct api_keys *keys = NULL;
        struct err err = {0};
        assert_int_equal(api_keys_load(write_keys(path, "k\n", 2, cases[i].mode), &keys, &err),
                         cases[i].status);
        unlink(path);
        if (cases[i].status != STATUS_OK)
            assert_non_null(strstr(err.message, "chmod 600"));
        api_keys_free(keys);
    }
}

static void test_api_keys_file_that_cannot_be_read(void **state)
{
    (void)state;
    struct api_keys *keys = NULL;
    struct err err = {0};
    assert_int_equal(api_keys_load("/nonexistent/keys", &keys, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "/nonexistent/keys"));
    char dir[] = "/tmp/carousel-keys-XXXXXX";
    assert_non_null(mkdtemp(dir));
    assert_int_equal(api_keys_load(dir, &keys, &err), STATUS_IO);
    rmdir(dir);
    assert_non_null(strstr(err.message, "Is a directory"));
    assert_null(keys);
    assert_int_equal(api_keys_load("/nonexistent/keys", &keys, NULL), STATUS_NOT_FOUND);
    api_keys_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_api_keys_names_and_places),
        cmocka_unit_test(test_api_keys_refuses_what_is_no_key),
        cmocka_unit_test(test_api_keys_takes_many_and_long_ones),
        cmocka_unit_test(test_api_keys_says_what_is_wrong),
        cmocka_unit_test(test_api_keys_messages_show_no_key),
        cmocka_unit_test(test_api_keys_refuses_files_that_others_can_reach),
        cmocka_unit_test(test_api_keys_file_that_cannot_be_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
