/* Resuming: what an output file answers, what is cut off it, which input lines still run. */
#include "tests/unit.h"

#include "cli/batch_resume.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#define GOOD(id)                                                                                   \
    "{\"id\": \"batch_req_1\", \"custom_id\": \"" id "\", \"response\": {}, \"error\": null}\n"
#define BAD(id, code)                                                                              \
    "{\"id\": \"batch_req_1\", \"custom_id\": \"" id                                               \
    "\", \"response\": null, \"error\": {\"code\": \"" code "\", \"message\": \"m\"}}\n"

static struct batch_id *id_of(struct batch_ids *ids, const char *name)
{
    struct batch_id *id = NULL;
    assert_int_equal(batch_ids_get(ids, name, &id, NULL), STATUS_OK);
    return id;
}

static void test_batch_resume_takes_answers_and_bad_lines_as_final(void **state)
{
    (void)state;
    static const char text[] = GOOD("a") BAD("b", "invalid_request") BAD("c", "server_error")
        GOOD("d") BAD("d", "duplicate_custom_id");
    struct batch_ids ids;
    struct batch_resume resume = {0};
    size_t complete = 0;
    batch_ids_init(&ids);
    assert_int_equal(batch_resume_scan(text, strlen(text), "out", &ids, &resume, &complete, NULL),
                     STATUS_OK);
    assert_int_equal(complete, strlen(text));
    assert_int_equal(resume.n_lines, 5);
    assert_int_equal(resume.n_answers, 4);
    assert_int_equal(batch_ids_judge(id_of(&ids, "a")), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "b")), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "c")), BATCH_RUN); /* the engine's failure */
    assert_int_equal(batch_ids_judge(id_of(&ids, "e")), BATCH_RUN);
    /* Its second line was told to be a duplicate, a third one was not. */
    assert_int_equal(batch_ids_judge(id_of(&ids, "d")), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d")), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d")), BATCH_DUPLICATE);
    batch_ids_clear(&ids);
}

/* Killed between the error of the second line and the answer of the first one. */
static void test_batch_resume_runs_a_line_of_which_only_the_duplicate_was_told(void **state)
{
    (void)state;
    static const char text[] = BAD("d", "duplicate_custom_id");
    struct batch_ids ids;
    struct batch_resume resume = {0};
    size_t complete = 0;
    batch_ids_init(&ids);
    assert_int_equal(batch_resume_scan(text, strlen(text), "out", &ids, &resume, &complete, NULL),
                     STATUS_OK);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d")), BATCH_RUN);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d")), BATCH_SKIP);
    batch_ids_clear(&ids);
}

static void test_batch_ids_hold_many(void **state)
{
    (void)state;
    struct batch_ids ids;
    batch_ids_init(&ids);
    char name[32];
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "line-%d", i);
        assert_int_equal(batch_ids_judge(id_of(&ids, name)), BATCH_RUN);
    }
    assert_int_equal(ids.n, 5000);
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "line-%d", i);
        assert_int_equal(batch_ids_judge(id_of(&ids, name)), BATCH_DUPLICATE);
    }
    batch_ids_clear(&ids);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

static long file_bytes(const char *path)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    fclose(f);
    return n;
}

static void make_path(char path[64])
{
    strcpy(path, "/tmp/batch_resume_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

static void test_batch_resume_cuts_the_line_a_kill_left_unfinished(void **state)
{
    (void)state;
    static const char *const pieces[] = {"{", "{\"id\": \"batch_req_1\", \"custom_id\": \"b",
                                         "{\"id\": \"batch_req_1\", \"custom_id\": \"b\", "
                                         "\"response\": {}, \"error\": null}"};
    char path[64], text[512];
    make_path(path);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        struct batch_ids ids;
        struct batch_resume resume;
        struct err err = {0};
        int fd = -1;
        snprintf(text, sizeof text, "%s%s", GOOD("a"), pieces[i]);
        write_file(path, text);
        batch_ids_init(&ids);
        if (batch_resume_open(path, 0, &ids, &resume, &fd, &err) != STATUS_OK)
            fail_msg("%s", err.message);
        assert_int_equal(resume.cut_bytes, strlen(pieces[i]));
        assert_int_equal(file_bytes(path), strlen(GOOD("a")));
        assert_int_equal(batch_ids_judge(id_of(&ids, "a")), BATCH_SKIP);
        assert_int_equal(batch_ids_judge(id_of(&ids, "b")), BATCH_RUN);
        assert_int_equal(write(fd, "x", 1), 1); /* appends */
        assert_int_equal(file_bytes(path), strlen(GOOD("a")) + 1);
        close(fd);
        batch_ids_clear(&ids);
    }
    unlink(path);
}

static void test_batch_resume_leaves_a_strange_file_alone(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "my notes\n",
        "my notes",
        "{\"prompt\": \"x\"}\n",
        "{\"id\": \"batch_req_1\", \"custom",
        "{\"id\": \"batch_req_1\", \"custom_id\": 5, \"response\": {}, \"error\": null}\n",
        "{\"id\": \"batch_req_1\", \"custom_id\": \"a\", \"response\": null, \"error\": null}\n"};
    char path[64];
    make_path(path);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct batch_ids ids;
        struct batch_resume resume;
        struct err err = {0};
        int fd = -1;
        bool is_ours = i == 3;
        write_file(path, texts[i]);
        batch_ids_init(&ids);
        enum status status = batch_resume_open(path, 0, &ids, &resume, &fd, &err);
        assert_int_equal(status, is_ours ? STATUS_OK : STATUS_CORRUPT);
        assert_int_equal(file_bytes(path), is_ours ? 0 : strlen(texts[i]));
        if (!is_ours)
            assert_non_null(strstr(err.message, " line 1 is not an answer of `carousel batch`"));
        else
            close(fd);
        batch_ids_clear(&ids);
    }
    unlink(path);
}

static void test_batch_resume_refuses_a_file_that_another_run_writes(void **state)
{
    (void)state;
    char path[64];
    make_path(path);
    struct batch_ids ids;
    struct batch_resume resume;
    struct err err = {0};
    int first = -1, second = -1;
    batch_ids_init(&ids);
    assert_int_equal(batch_resume_open(path, 0, &ids, &resume, &first, &err), STATUS_OK);
    assert_int_equal(batch_resume_open(path, 0, &ids, &resume, &second, &err), STATUS_FULL);
    assert_non_null(strstr(err.message, "is being written by another run"));
    close(first);
    assert_int_equal(batch_resume_open(path, 0, &ids, &resume, &second, &err), STATUS_OK);
    close(second);
    batch_ids_clear(&ids);
    unlink(path);
}

static void test_batch_resume_says_why_a_file_cannot_be_made(void **state)
{
    (void)state;
    struct batch_ids ids;
    struct batch_resume resume;
    struct err err = {0};
    int fd = -1;
    batch_ids_init(&ids);
    assert_int_equal(batch_resume_open("/nonexistent/out.jsonl", 0, &ids, &resume, &fd, &err),
                     STATUS_IO);
    assert_string_equal(
        err.message, "cannot open /nonexistent/out.jsonl for writing: No such file or directory");
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_resume_takes_answers_and_bad_lines_as_final),
        cmocka_unit_test(test_batch_resume_runs_a_line_of_which_only_the_duplicate_was_told),
        cmocka_unit_test(test_batch_ids_hold_many),
        cmocka_unit_test(test_batch_resume_cuts_the_line_a_kill_left_unfinished),
        cmocka_unit_test(test_batch_resume_leaves_a_strange_file_alone),
        cmocka_unit_test(test_batch_resume_refuses_a_file_that_another_run_writes),
        cmocka_unit_test(test_batch_resume_says_why_a_file_cannot_be_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
