/* Resuming: what an output file answers, what is cut off it, which input lines still run. */
#include "tests/unit.h"

#include "cli/batch_hash.h"
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
    assert_int_equal(batch_ids_judge(id_of(&ids, "a"), 1), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "b"), 1), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "c"), 1), BATCH_RUN); /* the engine's failure */
    assert_int_equal(batch_ids_judge(id_of(&ids, "e"), 1), BATCH_RUN);
    /* Its second line was told to be a duplicate, a third one was not. */
    assert_int_equal(batch_ids_judge(id_of(&ids, "d"), 1), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d"), 1), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d"), 1), BATCH_DUPLICATE);
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
    assert_int_equal(batch_ids_judge(id_of(&ids, "d"), 1), BATCH_RUN);
    assert_int_equal(batch_ids_judge(id_of(&ids, "d"), 1), BATCH_SKIP);
    batch_ids_clear(&ids);
}

#define HASHED(id, hash)                                                                           \
    "{\"id\": \"batch_req_1\", \"custom_id\": \"" id "\", \"input_hash\": \"" hash                 \
    "\", \"response\": {}, \"error\": null}\n"

static void test_batch_resume_tells_an_answer_to_another_line(void **state)
{
    (void)state;
    static const char text[] = HASHED("a", "00000000000000ab") HASHED("b", "ffffffffffffffff") GOOD(
        "old") "{\"id\":\"batch_req_2\",\"custom_id\":\"nul\",\"input_hash\":\"00000000000000ab\","
               "\"response\":{\"body\":\"\\u0000\"},\"error\":null}\n";
    struct batch_ids ids;
    struct batch_resume resume = {0};
    size_t complete = 0;
    batch_ids_init(&ids);
    assert_int_equal(batch_resume_scan(text, strlen(text), "out", &ids, &resume, &complete, NULL),
                     STATUS_OK);
    assert_int_equal(batch_ids_judge(id_of(&ids, "a"), 0xab), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "b"), 0xab), BATCH_CHANGED);
    assert_int_equal(batch_ids_judge(id_of(&ids, "old"), 0xab), BATCH_SKIP);
    assert_int_equal(batch_ids_judge(id_of(&ids, "nul"), 0xab), BATCH_SKIP);
    /* The second line of an id is a duplicate, whatever it holds. */
    assert_int_equal(batch_ids_judge(id_of(&ids, "a"), 0xac), BATCH_DUPLICATE);
    batch_ids_clear(&ids);
}

static uint64_t hash_of(const struct request_options *o)
{
    const struct model_config config = {.exit_threshold = 0.5f};
    return batch_hash_run(o, &config, 7, false);
}

static void test_batch_hash_follows_what_decides_the_answer(void **state)
{
    (void)state;
    struct request_options plain, others[12];
    request_options_init(&plain);
    for (int i = 0; i < 12; i++)
        others[i] = plain;
    others[0].has_max_tokens = true, others[0].max_tokens = 128;
    others[1].min_tokens = 1;
    others[2].has_exit_mode = true, others[2].exit_mode = EXIT_MODE_FULL;
    others[3].has_exit_threshold = true, others[3].exit_threshold = 0.25;
    others[4].min_loops = 2;
    others[5].temperature = 0.5;
    others[6].top_p = 0.5;
    others[7].top_k = 5;
    others[8].seed = 1;
    others[9].stop = "a";
    others[10].stop_ids = "1";
    others[11].n_logprobs = 1;
    for (int i = 0; i < 12; i++) {
        assert_true(hash_of(&others[i]) != hash_of(&plain));
        for (int j = 0; j < i; j++)
            assert_true(hash_of(&others[i]) != hash_of(&others[j]));
    }
    const struct model_config config = {.exit_threshold = 0.5f};
    assert_true(batch_hash_run(&plain, &config, 8, false) != hash_of(&plain));
    assert_true(batch_hash_run(&plain, &config, 7, true) != hash_of(&plain));
    /* Spelled-out defaults are the same request. */
    struct request_options spelled = plain;
    spelled.has_exit_threshold = true, spelled.exit_threshold = 0.5;
    spelled.has_exit_mode = true, spelled.exit_mode = EXIT_MODE_EXACT;
    assert_true(hash_of(&spelled) == hash_of(&plain));
    assert_true(batch_hash_line(1, "ab", 2) != batch_hash_line(1, "ab ", 3));
}

static void test_batch_hash_comes_back_from_its_digits(void **state)
{
    (void)state;
    static const char *const wrong[] = {"", "00000000000000a", "00000000000000abc",
                                        "00000000000000AB", "0x000000000000ab"};
    const uint64_t hashes[] = {0, 0xab, UINT64_C(0x0123456789abcdef), UINT64_MAX};
    for (size_t i = 0; i < sizeof hashes / sizeof hashes[0]; i++) {
        char digits[BATCH_HASH_DIGITS + 1];
        uint64_t back = 1;
        batch_hash_print(hashes[i], digits);
        assert_true(batch_hash_read(digits, &back));
        assert_true(back == hashes[i]);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        uint64_t untouched = 5;
        assert_false(batch_hash_read(wrong[i], &untouched));
        assert_int_equal(untouched, 5);
    }
}

static void test_batch_ids_hold_many(void **state)
{
    (void)state;
    struct batch_ids ids;
    batch_ids_init(&ids);
    char name[32];
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "line-%d", i);
        assert_int_equal(batch_ids_judge(id_of(&ids, name), 1), BATCH_RUN);
    }
    assert_int_equal(ids.n, 5000);
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "line-%d", i);
        assert_int_equal(batch_ids_judge(id_of(&ids, name), 1), BATCH_DUPLICATE);
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
        assert_int_equal(batch_ids_judge(id_of(&ids, "a"), 1), BATCH_SKIP);
        assert_int_equal(batch_ids_judge(id_of(&ids, "b"), 1), BATCH_RUN);
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
        "{\"id\":\"batch_re",
        "{\"id\": \"batch_req_1\", \"custom_id\": 5, \"response\": {}, \"error\": null}\n",
        "{\"id\": \"batch_req_1\", \"custom_id\": \"a\", \"response\": null, \"error\": null}\n",
        HASHED("a", "12")};
    char path[64];
    make_path(path);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct batch_ids ids;
        struct batch_resume resume;
        struct err err = {0};
        int fd = -1;
        bool is_ours = i == 3 || i == 4;
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
        cmocka_unit_test(test_batch_resume_tells_an_answer_to_another_line),
        cmocka_unit_test(test_batch_hash_follows_what_decides_the_answer),
        cmocka_unit_test(test_batch_hash_comes_back_from_its_digits),
        cmocka_unit_test(test_batch_ids_hold_many),
        cmocka_unit_test(test_batch_resume_cuts_the_line_a_kill_left_unfinished),
        cmocka_unit_test(test_batch_resume_leaves_a_strange_file_alone),
        cmocka_unit_test(test_batch_resume_refuses_a_file_that_another_run_writes),
        cmocka_unit_test(test_batch_resume_says_why_a_file_cannot_be_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
