/* task_write_tokenizer: our own loader reads it, every symbol comes back, <s> goes in front. */
#include "tests/unit.h"

#include "model/json_input.h"
#include "model/tokenizer.h"
#include "train/task.h"

#include <sys/stat.h>
#include <unistd.h>

static void remove_dir(const char *dir)
{
    char path[256];
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
    unlink(path);
    assert_int_equal(rmdir(dir), 0); /* nothing else was left there */
}

static json_t *read_json(const char *dir, const char *name)
{
    char path[256], *text;
    size_t len;
    json_t *out;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(json_input_read(path, 1 << 20, &text, &len, NULL), STATUS_OK);
    assert_int_equal(json_input_parse(text, len, path, &out, NULL), STATUS_OK);
    free(text);
    return out;
}

static void test_task_tokenizer_brings_every_symbol_back(void **state)
{
    char dir[] = "/tmp/carousel_test_XXXXXX", path[256];
    struct tokenizer *tokenizer;
    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(task_write_tokenizer(dir, NULL), STATUS_OK);
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    struct err err = {0};
    assert_int_equal(tokenizer_load(path, &tokenizer, &err), STATUS_OK);
    assert_int_equal(tokenizer_vocab_size(tokenizer), TASK_VOCABULARY);
    assert_int_equal(tokenizer_find(tokenizer, "<s>"), TASK_BOS);
    assert_true(tokenizer_is_special(tokenizer, TASK_BOS));

    char text[TASK_VOCABULARY];
    for (int id = 1; id < TASK_VOCABULARY; id++) {
        size_t len;
        text[id - 1] = task_symbol(id);
        const char *bytes = tokenizer_token_bytes(tokenizer, id, &len);
        assert_int_equal(len, 1);
        assert_int_equal(bytes[0], task_symbol(id));
    }
    int32_t *ids;
    size_t n;
    assert_int_equal(tokenizer_encode(tokenizer, text, TASK_VOCABULARY - 1,
                                      TOKENIZER_ADD_BOS | TOKENIZER_STRICT, &ids, &n, NULL, NULL),
                     STATUS_OK);
    assert_int_equal(n, TASK_VOCABULARY);
    for (int id = 0; id < TASK_VOCABULARY; id++)
        assert_int_equal(ids[id], id);
    free(ids);
    assert_int_equal(tokenizer_encode(tokenizer, "A", 1, TOKENIZER_STRICT, &ids, &n, NULL, NULL),
                     STATUS_INVALID);
    tokenizer_free(tokenizer);
    remove_dir(dir);
}

/* model/demo/ was written by the reference library's own code. */
static void test_task_tokenizer_equals_the_demo_models(void **state)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json"};
    char dir[] = "/tmp/carousel_test_XXXXXX";
    struct stat info;
    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(task_write_tokenizer(dir, NULL), STATUS_OK);
    for (int i = 0; i < 2; i++) {
        char path[256];
        json_t *ours = read_json(dir, names[i]), *theirs = read_json("model/demo", names[i]);
        assert_true(json_equal(ours, theirs));
        json_decref(ours);
        json_decref(theirs);
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(stat(path, &info), 0);
        assert_int_equal(info.st_mode & 0777, 0644);
    }
    assert_int_equal(task_write_tokenizer(dir, NULL), STATUS_OK); /* over what is there */
    remove_dir(dir);
}

static void test_task_tokenizer_names_the_path_it_cannot_write(void **state)
{
    struct err err = {0};
    (void)state;
    assert_int_equal(task_write_tokenizer("/tmp/no_such_dir_of_carousel", &err), STATUS_IO);
    assert_string_equal(err.message, "cannot create /tmp/no_such_dir_of_carousel/tokenizer.json: "
                                     "No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_task_tokenizer_brings_every_symbol_back),
        cmocka_unit_test(test_task_tokenizer_equals_the_demo_models),
        cmocka_unit_test(test_task_tokenizer_names_the_path_it_cannot_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
