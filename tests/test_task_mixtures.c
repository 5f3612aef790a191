/* The tasks' mixtures: what is drawn how often, and what the knobs close off. Bounds are five
 * standard deviations wide; streams are fixed, so a run that passes passes always. */
#include "tests/task_rows.h"

#include <math.h>

enum { N = 3000 };

struct fixture {
    const struct task *task;
    int knobs[TASK_MAX_KNOBS];
    struct sequence_rows s;
    char context[TASK_PROMPT_BYTES];
};

static void set(struct fixture *f, const char *knob, int value)
{
    int i = task_knob_find(f->task, knob);
    assert_true(i >= 0);
    f->knobs[i] = value;
}

static void begin(struct fixture *f, const char *name)
{
    f->task = task_find(name);
    task_knobs_init(f->task, f->knobs);
    assert_int_equal(sequence_rows_create(1024, &f->s, NULL), STATUS_OK);
}

static void draw(struct fixture *f, uint64_t index)
{
    struct random r = random_of(21, 0, index);
    assert_int_equal(f->task->train(f->knobs, &r, 0, &f->s, NULL), STATUS_OK);
    assert_true(f->s.n <= f->task->max_rows(f->knobs));
    task_rows_prompt(&f->s, f->s.n_prefix - 1, f->context);
}

static void assert_share(int n, int of, double share)
{
    double deviation = 5 * sqrt(share * (1 - share) / of);
    if (fabs((double)n / of - share) > deviation)
        fail_msg("%d of %d, expected a share of %.4f +- %.4f", n, of, share, deviation);
}

/* Rows of the branch that begins at i. */
static int branch_rows(const struct sequence_rows *s, int i)
{
    int n = 0;
    while (i + n < s->n && s->branch_start[i + n] == i)
        n++;
    return n;
}

static void test_task_hop_draws_pairs_uniformly_and_the_most_hops_half_of_the_time(void **state)
{
    struct fixture f;
    int n_pairs[9] = {0}, n_most = 0, n_one = 0, n_branches = 0;
    (void)state;
    begin(&f, "hop");
    for (uint64_t k = 0; k < N; k++) {
        draw(&f, k);
        assert_int_equal(f.s.n_prefix % 4, 1);
        int pairs = f.s.n_prefix / 4, most = pairs > 4 ? 4 : pairs - 1, in_this = 0;
        n_pairs[pairs]++;
        for (int i = f.s.n_prefix; i < f.s.n; i += branch_rows(&f.s, i), in_this++) {
            int hops = branch_rows(&f.s, i) - 2;
            assert_in_range(hops, 1, most);
            if (most == 4) {
                n_branches++;
                n_most += hops == 4;
                n_one += hops == 1;
            }
            assert_int_equal(f.s.targets[i], -1); /* the letter asked for predicts nothing */
            for (int p = 1; p <= hops; p++)
                assert_int_equal(f.s.levels[i + p], p - 1);
        }
        assert_int_equal(in_this, 12);
    }
    for (int pairs = 3; pairs <= 8; pairs++)
        assert_share(n_pairs[pairs], N, 1.0 / 6);
    assert_share(n_most, n_branches, 0.5 + 0.125);
    assert_share(n_one, n_branches, 0.125);
    sequence_rows_free(&f.s);
}

static void test_task_hop_knobs_close_letters_pairs_and_hops(void **state)
{
    struct fixture f;
    int n_of[26] = {0}, n_letters = 0;
    (void)state;
    begin(&f, "hop");
    set(&f, "letters", 10);
    set(&f, "max_hops", 1);
    set(&f, "max_pairs", 5);
    set(&f, "branches", 3);
    assert_int_equal(f.task->n_levels(f.knobs), 1);
    assert_int_equal(f.task->max_rows(f.knobs), 1 + 4 * 5 + 3 * 3);
    for (uint64_t k = 0; k < N; k++) {
        draw(&f, k);
        assert_in_range(f.s.n_prefix, 13, 21);
        assert_int_equal(f.s.n, f.s.n_prefix + 9);
        for (const char *c = f.context; *c != '\0'; c += 4, n_letters++)
            n_of[*c - 'a']++;
    }
    for (int i = 0; i < 26; i++)
        assert_share(n_of[i], n_letters, i < 10 ? 0.1 : 0.0);
    sequence_rows_free(&f.s);
}

static void test_task_chain_grows_from_the_variable_before(void **state)
{
    struct fixture f;
    int n_definitions[7] = {0}, n_second = 0, n_second_rooted = 0, n_third = 0, n_third_before = 0;
    (void)state;
    begin(&f, "chain");
    for (uint64_t k = 0; k < N; k++) {
        int n = 1;
        draw(&f, k);
        for (const char *c = f.context; *c != '\0'; c++)
            n += *c == ' ';
        n_definitions[n]++;
        assert_int_equal(f.s.n - f.s.n_prefix, 3 * n); /* every variable is asked for */
        /* f=9 w=f+3 or f=9 w=1: the first has no parent, the second one with probability 4/5. */
        assert_true(f.context[2] >= '0' && f.context[2] <= '9');
        n_second++;
        n_second_rooted += f.context[6] >= '0' && f.context[6] <= '9';
        const char *third = n > 2 ? strchr(strchr(f.context, ' ') + 1, ' ') + 1 : NULL;
        if (third != NULL && third[2] >= 'a') {
            n_third++;
            n_third_before += third[2] == f.context[4];
        }
    }
    for (int n = 2; n <= 6; n++)
        assert_share(n_definitions[n], N, 1.0 / 5);
    assert_share(n_second_rooted, n_second, 0.2);
    assert_share(n_third_before, n_third, 2.0 / 3 + 1.0 / 3 / 2);
    sequence_rows_free(&f.s);
}

static void test_task_chain_knobs_close_depth_and_operators(void **state)
{
    static const char *const operators[] = {"", "+", "+-", "+-*"};
    struct fixture f;
    (void)state;
    begin(&f, "chain");
    for (int depth = 0; depth <= 3; depth++)
        for (int n_operators = 1; n_operators <= 3; n_operators++) {
            int n_of[3] = {0}, n_total = 0, deepest = 0;
            set(&f, "max_depth", depth);
            set(&f, "operators", n_operators);
            assert_int_equal(f.task->n_levels(f.knobs), depth + 1);
            for (uint64_t k = 0; k < 400; k++) {
                draw(&f, k);
                for (int i = 0; i < f.s.n; i++)
                    deepest = f.s.levels[i] > deepest ? f.s.levels[i] : deepest;
                for (const char *c = f.context; *c != '\0'; c++)
                    if (*c == '+' || *c == '-' || *c == '*') {
                        const char *at = strchr(operators[n_operators], *c);
                        assert_non_null(at);
                        n_of[at - operators[n_operators]]++;
                        n_total++;
                    }
            }
            assert_int_equal(deepest, depth);
            assert_int_equal(n_total > 0, depth > 0);
            for (int i = 0; i < n_operators && depth > 0; i++)
                assert_share(n_of[i], n_total, 1.0 / n_operators);
        }
    sequence_rows_free(&f.s);
}

static void test_task_addition_mixes_counts_and_fixes_the_width(void **state)
{
    struct fixture f;
    int n_of[5] = {0}, widths[5] = {4, 4, 4, 5, 5};
    (void)state;
    begin(&f, "addition");
    assert_int_equal(f.task->n_levels(f.knobs), 5);
    for (uint64_t k = 0; k < N; k++) {
        int n_digits = 0, level = -1;
        draw(&f, k);
        assert_int_equal(f.s.n_prefix, f.s.n); /* one problem, all of it prefix */
        for (int i = 0; i < f.s.n; i++)
            if (f.s.levels[i] >= 0) {
                n_digits++;
                level = f.s.levels[i];
            }
        assert_in_range(level, 0, 4);
        assert_int_equal(n_digits, widths[level]);
        assert_int_equal(f.s.n, 1 + 4 * (2 << level) + n_digits);
        n_of[level]++;
    }
    for (int i = 0; i < 5; i++)
        assert_share(n_of[i], N, 0.2);
    set(&f, "operands", 7); /* 2 and 4 */
    assert_int_equal(f.task->n_levels(f.knobs), 2);
    sequence_rows_free(&f.s);
}

/* With the paper's settings a string is drawn freely, so letters are even; where hops hardly fit,
 * it is built around them; neighbours differ in both. */
static void test_task_phop_fits_its_hops_into_any_length(void **state)
{
    static const int settings[][3] = {{256, 4, 32}, {34, 3, 32}, {10, 3, 8}, {12, 26, 4}};
    struct fixture f;
    (void)state;
    begin(&f, "phop");
    for (size_t i = 0; i < 4; i++) {
        int n_of[26] = {0}, n_letters = 0;
        set(&f, "length", settings[i][0]);
        set(&f, "alphabet", settings[i][1]);
        set(&f, "hops", settings[i][2]);
        assert_int_equal(f.task->n_levels(f.knobs), settings[i][2]);
        for (uint64_t k = 0; k < 300; k++) {
            draw(&f, k);
            assert_int_equal(f.s.n_prefix, 2 + settings[i][0]);
            for (int j = 0; j < settings[i][0]; j++, n_letters++) {
                n_of[f.context[j] - 'a']++;
                assert_true(f.context[j] != f.context[j + 1]);
            }
        }
        for (int j = settings[i][1]; j < 26; j++)
            assert_int_equal(n_of[j], 0);
        for (int j = 0; j < settings[i][1] && i == 0; j++)
            assert_share(n_of[j], n_letters, 0.25);
    }
    sequence_rows_free(&f.s);
}

/* Definitions are not in order, and a question leaves some of them unused. */
static void test_task_igsm_hides_the_order_and_has_distractors(void **state)
{
    struct fixture f;
    int n_uses = 0, n_forward = 0, n_by_level[5] = {0}, n_targets = 0;
    (void)state;
    begin(&f, "igsm");
    for (uint64_t k = 0; k < 600; k++) {
        draw(&f, k);
        char *save = NULL, text[TASK_PROMPT_BYTES];
        bool is_defined[26] = {false};
        strcpy(text, f.context);
        for (char *d = strtok_r(text, " ;", &save); d != NULL; d = strtok_r(NULL, " ;", &save)) {
            for (const char *c = d + 2; *c != '\0'; c++)
                if (*c >= 'a' && *c <= 'z') {
                    n_uses++;
                    n_forward += !is_defined[*c - 'a'];
                }
            is_defined[d[0] - 'a'] = true;
        }
        for (int i = 0; i < f.s.n; i++)
            if (f.s.levels[i] >= 0) {
                n_by_level[f.s.levels[i]]++;
                n_targets++;
            }
    }
    assert_true(n_uses > 1000);
    assert_in_range(n_forward * 100 / n_uses, 45, 55);
    for (int i = 0; i < 5; i++)
        assert_in_range(n_by_level[i] * 100 / n_targets, 8, 45);
    sequence_rows_free(&f.s);
}

/* Names come from the first letters, from as many as there are variables at least. */
static void test_task_igsm_letters_close_the_alphabet(void **state)
{
    static const struct {
        int letters, variables, n_names;
    } cases[] = {{5, 4, 5}, {12, 4, 12}, {2, 7, 7}, {26, 4, 26}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct fixture f;
        bool is_used[26] = {false};
        int n_names = 0;
        begin(&f, "igsm");
        set(&f, "letters", cases[i].letters);
        set(&f, "variables", cases[i].variables);
        for (uint64_t k = 0; k < 300; k++) {
            draw(&f, k);
            for (const char *c = f.context; *c != '\0'; c++)
                if (*c >= 'a' && *c <= 'z')
                    is_used[*c - 'a'] = true;
        }
        for (int c = 0; c < 26; c++) {
            assert_true(!is_used[c] || c < cases[i].n_names);
            n_names += is_used[c];
        }
        assert_int_equal(n_names, cases[i].n_names);
        sequence_rows_free(&f.s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_task_hop_draws_pairs_uniformly_and_the_most_hops_half_of_the_time),
        cmocka_unit_test(test_task_hop_knobs_close_letters_pairs_and_hops),
        cmocka_unit_test(test_task_chain_grows_from_the_variable_before),
        cmocka_unit_test(test_task_chain_knobs_close_depth_and_operators),
        cmocka_unit_test(test_task_addition_mixes_counts_and_fixes_the_width),
        cmocka_unit_test(test_task_phop_fits_its_hops_into_any_length),
        cmocka_unit_test(test_task_igsm_hides_the_order_and_has_distractors),
        cmocka_unit_test(test_task_igsm_letters_close_the_alphabet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
