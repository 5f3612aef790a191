/* Every task against scripts/check_tasks.py, which solves prompts from their text alone. */
#include "tests/task_rows.h"

#include <sys/wait.h>
#include <unistd.h>

static void write_line(FILE *file, const struct task *t, const char *prompt, const char *answer,
                       int level, const char *split)
{
    fprintf(file,
            "{\"prompt\": \"%s\", \"answer\": \"%s\", \"task\": \"%s\", \"level\": %d, "
            "\"split\": \"%s\"}\n",
            prompt, answer, t->name, level, split);
}

/* The checker's exit code. */
static int check(const char *path)
{
    char command[256];
    snprintf(command, sizeof command, "/usr/bin/python3 scripts/check_tasks.py %s", path);
    int code = system(command);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

/* Every counted target of the sequence as a prompt of its own. */
static void write_sequence(FILE *file, const struct task *t, const struct sequence_rows *s)
{
    for (int i = 0; i < s->n; i++) {
        char prompt[TASK_PROMPT_BYTES], answer[TASK_ANSWER_BYTES];
        int n = 0;
        if (s->levels[i] < 0 ||
            (i > 0 && s->targets[i - 1] == s->ids[i] && s->ids[i] >= 29 && s->ids[i] <= 38 &&
             s->levels[i - 1] == s->levels[i] && s->branch_start[i - 1] == s->branch_start[i]))
            continue; /* the second digit of an answer is no question of its own */
        task_rows_prompt(s, i, prompt);
        for (int j = i; j < s->n && s->targets[j] != TASK_EOS; j++) {
            answer[n++] = task_symbol(s->targets[j]);
            if (task_symbol(s->ids[i]) == '>')
                break;
        }
        answer[n] = '\0';
        write_line(file, t, prompt, answer, s->levels[i], "train");
    }
}

static void write_problems(FILE *file, const struct task *t, const int *knobs, uint64_t seed)
{
    static const char *const splits[] = {"train", "validation", "test"};
    for (int split = TASK_TRAIN; split <= TASK_TEST; split++)
        for (int level = -1; level < t->n_levels(knobs); level++) {
            struct random r = random_of(seed, (uint64_t)split, (uint64_t)(level + 1));
            struct task_problem p;
            struct err err = {0};
            enum status status = t->problem(knobs, (enum task_split)split, level, &r, &p, &err);
            /* The smallest settings may have no context of a small split; the message says so. */
            if (status != STATUS_OK) {
                assert_non_null(strstr(err.message, "leave too few"));
                break;
            }
            if (level >= 0)
                assert_int_equal(p.level, level);
            write_line(file, t, p.prompt, p.answer, p.level, splits[split]);
        }
}

static void solve(const char *name)
{
    const struct task *t = task_find(name);
    char path[] = "/tmp/carousel_test_XXXXXX";
    int fd = mkstemp(path), knobs[TASK_MAX_KNOBS];
    FILE *file = fdopen(fd, "w");
    assert_non_null(file);
    for (uint64_t seed = 0; seed < 14; seed++) {
        struct sequence_rows s;
        struct random r = random_of(seed, 99, 0);
        task_knobs_init(t, knobs);
        for (int k = 0; k < t->n_knobs && seed >= 7; k++) /* anything that is allowed */
            knobs[k] = t->knobs[k].min + random_below(&r, t->knobs[k].max - t->knobs[k].min + 1);
        write_problems(file, t, knobs, seed);
        assert_int_equal(sequence_rows_create(t->max_rows(knobs), &s, NULL), STATUS_OK);
        assert_int_equal(t->train(knobs, &r, 0, &s, NULL), STATUS_OK);
        write_sequence(file, t, &s);
        sequence_rows_free(&s);
    }
    assert_int_equal(fclose(file), 0);
    assert_int_equal(check(path), 0);
    unlink(path);
}

static void test_task_hop_is_solved_from_its_text(void **state)
{
    (void)state;
    solve("hop");
}

static void test_task_chain_is_solved_from_its_text(void **state)
{
    (void)state;
    solve("chain");
}

static void test_task_addition_is_solved_from_its_text(void **state)
{
    (void)state;
    solve("addition");
}

static void test_task_phop_is_solved_from_its_text(void **state)
{
    (void)state;
    solve("phop");
}

static void test_task_igsm_is_solved_from_its_text(void **state)
{
    (void)state;
    solve("igsm");
}

/* The checker itself: one wrong answer, level or split in a file is found. */
static void test_task_checker_finds_what_is_wrong(void **state)
{
    static const struct {
        const char *line;
        int code;
    } cases[] = {
        {"{\"prompt\":\"a>b b>c c>a;a>\",\"answer\":\"b\",\"task\":\"hop\",\"level\":0}", 0},
        {"{\"prompt\":\"a>b b>c c>a;a>\",\"answer\":\"c\",\"task\":\"hop\",\"level\":0}", 1},
        {"{\"prompt\":\"a>b b>c c>a;a>\",\"answer\":\"b\",\"task\":\"hop\",\"level\":2}", 1},
        {"{\"prompt\":\"a>b b>a c>c;a>\",\"answer\":\"b\",\"task\":\"hop\",\"level\":0}", 1},
        {"{\"prompt\":\"a=3 b=a-7;b?\",\"answer\":\"6\",\"task\":\"chain\",\"level\":1}", 0},
        {"{\"prompt\":\"b=a-7 a=3;b?\",\"answer\":\"6\",\"task\":\"chain\",\"level\":1}", 1},
        {"{\"prompt\":\"b=a*c a=3 c=a+a;b?\",\"answer\":\"4\",\"task\":\"igsm\",\"level\":2}", 0},
        {"{\"prompt\":\"b=a*b a=3;b?\",\"answer\":\"0\",\"task\":\"igsm\",\"level\":1}", 1},
        {"{\"prompt\":\"999+001=\",\"answer\":\"1000\",\"task\":\"addition\",\"level\":2}", 0},
        {"{\"prompt\":\"999+001=\",\"answer\":\"100\",\"task\":\"addition\",\"level\":2}", 1},
        {"{\"prompt\":\"abcab;>\",\"answer\":\"c\",\"task\":\"phop\",\"level\":1}", 0},
        {"{\"prompt\":\"abcab;>>\",\"answer\":\"c\",\"task\":\"phop\",\"level\":2}", 1},
        {"{\"prompt\":\"a>b b>c c>a;a>\",\"answer\":\"b\",\"task\":\"hop\",\"split\":\"test\"}", 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[] = "/tmp/carousel_test_XXXXXX";
        FILE *file = fdopen(mkstemp(path), "w");
        assert_non_null(file);
        fprintf(file, "%s\n", cases[i].line);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(check(path), cases[i].code);
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_task_hop_is_solved_from_its_text),
        cmocka_unit_test(test_task_chain_is_solved_from_its_text),
        cmocka_unit_test(test_task_addition_is_solved_from_its_text),
        cmocka_unit_test(test_task_phop_is_solved_from_its_text),
        cmocka_unit_test(test_task_igsm_is_solved_from_its_text),
        cmocka_unit_test(test_task_checker_finds_what_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
