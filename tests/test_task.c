/* task: the registry, the alphabet, and splits that no seed makes overlap. */
#include "tests/task_rows.h"

/* Sequences as a trainer would draw them; the seed is in messages through random_of. */
enum { N_SEEDS = 4, N_CONTEXTS = 250 };

static void test_task_symbols_are_the_documented_49(void **state)
{
    (void)state;
    assert_int_equal(task_symbol_id('\n'), 1);
    assert_int_equal(task_symbol_id(' '), 2);
    assert_int_equal(task_symbol_id('a'), 3);
    assert_int_equal(task_symbol_id('z'), 28);
    assert_int_equal(task_symbol_id('0'), 29);
    assert_int_equal(task_symbol_id('9'), 38);
    const char *rest = "=>;+-*?,.:";
    for (int i = 0; rest[i] != '\0'; i++)
        assert_int_equal(task_symbol_id(rest[i]), 39 + i);
    for (int id = 1; id < TASK_VOCABULARY; id++)
        assert_int_equal(task_symbol_id(task_symbol(id)), id);
    const char outside[] = {'\0', 'A', '_', '/', '\t', '\x7f', (char)0xc3};
    for (size_t i = 0; i < sizeof outside; i++)
        assert_int_equal(task_symbol_id(outside[i]), -1);
    assert_int_equal(task_symbol(0), '\0');
    assert_int_equal(task_symbol(-1), '\0');
    assert_int_equal(task_symbol(TASK_VOCABULARY), '\0');
}

static void test_task_find_knows_five_tasks(void **state)
{
    static const char *const names[] = {"hop", "chain", "addition", "phop", "igsm"};
    (void)state;
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(task_at(i)->name, names[i]);
        assert_ptr_equal(task_find(names[i]), task_at(i));
    }
    assert_null(task_at(5));
    assert_null(task_find("Hop"));
    assert_null(task_find(""));
}

static void test_task_knobs_are_found_by_name_and_start_in_range(void **state)
{
    (void)state;
    for (size_t i = 0; task_at(i) != NULL; i++) {
        const struct task *t = task_at(i);
        int knobs[TASK_MAX_KNOBS];
        task_knobs_init(t, knobs);
        assert_in_range(t->n_knobs, 1, TASK_MAX_KNOBS);
        for (int k = 0; k < t->n_knobs; k++) {
            assert_int_equal(task_knob_find(t, t->knobs[k].name), k);
            assert_int_equal(knobs[k], t->knobs[k].initial);
            assert_true(t->knobs[k].min <= knobs[k] && knobs[k] <= t->knobs[k].max);
            assert_true(strlen(t->knobs[k].help) > 0);
        }
        assert_in_range(t->n_levels(knobs), 1, TASK_MAX_LEVELS);
        assert_int_equal(task_knob_find(t, "no_such_knob"), -1);
    }
}

static void test_task_split_gives_a_64th_to_validation_and_to_test(void **state)
{
    int n[3] = {0, 0, 0};
    (void)state;
    for (int i = 0; i < 64000; i++) {
        char context[32];
        int len = snprintf(context, sizeof context, "a>%d;", i);
        n[task_split_of(context, (size_t)len)]++;
    }
    assert_in_range(n[TASK_VALIDATION], 850, 1150); /* 1000 +- 5 standard deviations of 31 */
    assert_in_range(n[TASK_TEST], 850, 1150);
    assert_int_equal(n[TASK_TRAIN], 64000 - n[TASK_VALIDATION] - n[TASK_TEST]);
}

/* What a prompt's queries share: up to the last ; or = that is not inside a definition. */
static size_t context_length(const char *prompt)
{
    const char *end = strrchr(prompt, ';');
    return end != NULL ? (size_t)(end - prompt) + 1 : strlen(prompt);
}

static int compare_hashes(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Not the splitting hash: djb2, so that the test would see a context in two splits even if the
 * generators asked for the wrong one. */
static uint64_t hash_of(const char *text, size_t len)
{
    uint64_t h = 5381;
    for (size_t i = 0; i < len; i++)
        h = h * 33 + (unsigned char)text[i];
    return h;
}

static void test_task_training_and_held_out_contexts_are_disjoint(void **state)
{
    enum { N = N_SEEDS * N_CONTEXTS };
    static uint64_t seen[3][N];
    /* A few hundred to a few thousand contexts, which chance alone meets again and again. */
    static const int small[][TASK_MAX_KNOBS] = {
        {4, 5, 3, 2}, {2, 1, 1, 3}, {2, 2}, {9, 3, 3, 2}, {2, 1, 1, 2}};
    (void)state;
    for (size_t i = 0; task_at(i) != NULL; i++) {
        const struct task *t = task_at(i);
        int knobs[TASK_MAX_KNOBS], n = 0;
        char prompt[TASK_PROMPT_BYTES];
        struct sequence_rows s;
        memcpy(knobs, small[i], sizeof knobs);
        assert_int_equal(sequence_rows_create(t->max_rows(knobs), &s, NULL), STATUS_OK);
        for (uint64_t seed = 0; seed < N_SEEDS; seed++)
            for (uint64_t c = 0; c < N_CONTEXTS; c++, n++) {
                struct random r = random_of(seed, 7, c);
                struct task_problem p;
                assert_int_equal(t->train(knobs, &r, 0, &s, NULL), STATUS_OK);
                task_rows_prompt(&s, s.n - 1, prompt);
                if (strcmp(t->name, "addition") == 0)
                    *(strchr(prompt, '=') + 1) = '\0';
                seen[TASK_TRAIN][n] = hash_of(prompt, context_length(prompt));
                assert_int_equal(task_split_of(prompt, context_length(prompt)), TASK_TRAIN);
                for (int split = TASK_VALIDATION; split <= TASK_TEST; split++) {
                    assert_int_equal(t->problem(knobs, (enum task_split)split, -1, &r, &p, NULL),
                                     STATUS_OK);
                    seen[split][n] = hash_of(p.prompt, context_length(p.prompt));
                }
            }
        sequence_rows_free(&s);
        qsort(seen[TASK_TRAIN], N, sizeof seen[0][0], compare_hashes);
        for (int split = TASK_VALIDATION; split <= TASK_TEST; split++)
            for (int k = 0; k < N; k++)
                assert_null(bsearch(&seen[split][k], seen[TASK_TRAIN], N, sizeof seen[0][0],
                                    compare_hashes));
        qsort(seen[TASK_TEST], N, sizeof seen[0][0], compare_hashes);
        for (int k = 0; k < N; k++)
            assert_null(bsearch(&seen[TASK_VALIDATION][k], seen[TASK_TEST], N, sizeof seen[0][0],
                                compare_hashes));
    }
}

static void test_task_same_stream_gives_the_same_sequence_and_problem(void **state)
{
    (void)state;
    for (size_t i = 0; task_at(i) != NULL; i++) {
        const struct task *t = task_at(i);
        int knobs[TASK_MAX_KNOBS];
        struct sequence_rows a, b;
        struct task_problem p, q;
        task_knobs_init(t, knobs);
        assert_int_equal(sequence_rows_create(t->max_rows(knobs), &a, NULL), STATUS_OK);
        assert_int_equal(sequence_rows_create(t->max_rows(knobs), &b, NULL), STATUS_OK);
        struct random r = random_of(3, 1, 4), again = r;
        assert_int_equal(t->train(knobs, &r, 5, &a, NULL), STATUS_OK);
        assert_int_equal(t->train(knobs, &again, 5, &b, NULL), STATUS_OK);
        assert_int_equal(a.n, b.n);
        assert_memory_equal(a.ids, b.ids, (size_t)a.n * sizeof *a.ids);
        assert_memory_equal(a.targets, b.targets, (size_t)a.n * sizeof *a.targets);
        assert_memory_equal(a.levels, b.levels, (size_t)a.n * sizeof *a.levels);
        assert_int_equal(t->problem(knobs, TASK_TEST, -1, &r, &p, NULL), STATUS_OK);
        assert_int_equal(t->problem(knobs, TASK_TEST, -1, &again, &q, NULL), STATUS_OK);
        assert_string_equal(p.prompt, q.prompt);
        assert_string_equal(p.answer, q.answer);
        sequence_rows_free(&a);
        sequence_rows_free(&b);
    }
}

/* Every knob at both ends: what max_rows promises holds, levels are all reached and named. */
static void check_setting(const struct task *t, const int *knobs, uint64_t setting)
{
    struct sequence_rows s;
    int n = t->n_levels(knobs);
    assert_in_range(n, 1, TASK_MAX_LEVELS);
    assert_int_equal(sequence_rows_create(t->max_rows(knobs), &s, NULL), STATUS_OK);
    for (uint64_t k = 0; k < 6; k++) {
        struct random r = random_of(11, setting, k);
        assert_int_equal(t->train(knobs, &r, 9, &s, NULL), STATUS_OK);
        task_rows_check(&s, t->max_rows(knobs), 9, n);
    }
    sequence_rows_free(&s);
}

static void test_task_sequences_keep_their_promises_at_the_ends_of_all_knobs(void **state)
{
    (void)state;
    for (size_t i = 0; task_at(i) != NULL; i++) {
        const struct task *t = task_at(i);
        for (unsigned mask = 0; mask < 1u << t->n_knobs; mask++) {
            int knobs[TASK_MAX_KNOBS];
            for (int k = 0; k < t->n_knobs; k++)
                knobs[k] = mask >> k & 1 ? t->knobs[k].max : t->knobs[k].min;
            check_setting(t, knobs, mask);
        }
    }
}

static void test_task_problem_refuses_a_level_it_does_not_have(void **state)
{
    struct err err = {0};
    struct task_problem p = {.level = 77};
    struct random r = random_of(0, 0, 0);
    int knobs[TASK_MAX_KNOBS];
    (void)state;
    task_knobs_init(task_find("hop"), knobs);
    assert_int_equal(task_find("hop")->problem(knobs, TASK_TEST, 4, &r, &p, &err), STATUS_INVALID);
    assert_string_equal(err.message,
                        "task hop has levels 0 to 3 under these knobs, not 4 (-1 mixes them)");
    assert_int_equal(p.level, 77);
    assert_int_equal(task_find("hop")->problem(knobs, TASK_TEST, -2, &r, &p, NULL), STATUS_INVALID);
}

/* Two numbers of one digit: a hundred contexts, none of which falls into one of the small splits.
 */
static void test_task_says_when_knobs_leave_a_split_empty(void **state)
{
    const struct task *t = task_find("addition");
    struct task_problem p;
    int knobs[TASK_MAX_KNOBS] = {2, 1}, n_of[3] = {0, 0, 0}, n_empty = 0;
    (void)state;
    for (int i = 0; i < 100; i++) {
        char context[8];
        int len = snprintf(context, sizeof context, "%d+%d=", i / 10, i % 10);
        n_of[task_split_of(context, (size_t)len)]++;
    }
    for (int split = TASK_TRAIN; split <= TASK_TEST; split++) {
        struct err err = {0};
        struct random r = random_of(5, 0, 0);
        enum status status = t->problem(knobs, (enum task_split)split, 0, &r, &p, &err);
        assert_int_equal(status, n_of[split] > 0 ? STATUS_OK : STATUS_INVALID);
        if (status != STATUS_OK)
            assert_non_null(strstr(err.message, "raise digits"));
        n_empty += n_of[split] == 0;
    }
    assert_true(n_empty > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_task_symbols_are_the_documented_49),
        cmocka_unit_test(test_task_find_knows_five_tasks),
        cmocka_unit_test(test_task_knobs_are_found_by_name_and_start_in_range),
        cmocka_unit_test(test_task_split_gives_a_64th_to_validation_and_to_test),
        cmocka_unit_test(test_task_training_and_held_out_contexts_are_disjoint),
        cmocka_unit_test(test_task_same_stream_gives_the_same_sequence_and_problem),
        cmocka_unit_test(test_task_sequences_keep_their_promises_at_the_ends_of_all_knobs),
        cmocka_unit_test(test_task_problem_refuses_a_level_it_does_not_have),
        cmocka_unit_test(test_task_says_when_knobs_leave_a_split_empty),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
