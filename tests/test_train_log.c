/* The log of a resumed run: what it takes up, and what it must leave in place. */
#include "tests/unit.h"

#include "cli/train_log.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char recipe_json[] =
    "{'name': 'unit', 'model': {'hidden_size': 16, 'num_hidden_layers': 1,"
    " 'num_attention_heads': 2, 'head_dim': 8, 'intermediate_size': 24, 'total_ut_steps': 2},"
    " 'data': {'a': {'task': 'hop'}},"
    " 'stages': [{'steps': 200, 'batch': 8, 'lr': 3e-3, 'objective': 'uniform'}]}";

struct world {
    struct recipe recipe;
    char dir[64], path[80];
};

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    char json[sizeof recipe_json];
    struct err err = {0};
    assert_non_null(w);
    for (size_t i = 0; i < sizeof json; i++)
        json[i] = recipe_json[i] == '\'' ? '"' : recipe_json[i];
    if (recipe_parse(json, strlen(json), "unit.json", &w->recipe, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    strcpy(w->dir, "/tmp/carousel-train-log-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof w->path, "%s/log.jsonl", w->dir);
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    unlink(w->path);
    rmdir(w->dir);
    free(w);
    return 0;
}

/* Opens and closes the log as a run that goes on at step 10. */
static void resume(const struct world *w, struct train_log *log)
{
    const struct trainer_start start = {.step = 10,
                                        .resumed_from = "state-000000010.safetensors",
                                        .n_parameters = 1,
                                        .n_ranks = 1,
                                        .n_threads = 1,
                                        .isa = "portable"};
    train_log_open(log, w->path, &w->recipe, 1, &start);
    train_log_close(log);
}

static void test_train_log_keeps_the_lines_up_to_the_step(void **state)
{
    struct world *w = *state;
    struct train_log log;
    char text[4096];
    FILE *file = fopen(w->path, "w");
    assert_non_null(file);
    fputs("{\"type\":\"header\",\"step\":0}\n{\"type\":\"report\",\"step\":10}\n"
          "{\"type\":\"report\",\"step\":20}\n{\"type\":\"rep",
          file);
    assert_int_equal(fclose(file), 0);
    resume(w, &log);
    assert_int_equal(log.status, STATUS_OK);
    file = fopen(w->path, "r");
    assert_non_null(file);
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = '\0';
    fclose(file);
    assert_non_null(
        strstr(text, "\"step\":0}\n{\"type\":\"report\",\"step\":10}\n{\"type\":\"resume\""));
    assert_null(strstr(text, "20}"));
}

static void test_train_log_leaves_a_device_in_place(void **state)
{
    struct world *w = *state;
    struct train_log log;
    struct stat info;
    assert_int_equal(symlink("/dev/null", w->path), 0);
    resume(w, &log);
    assert_int_equal(log.status, STATUS_OK);
    assert_int_equal(lstat(w->path, &info), 0);
    assert_true(S_ISLNK(info.st_mode));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_train_log_keeps_the_lines_up_to_the_step, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_train_log_leaves_a_device_in_place, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
