/* The training screen: what it says of a step, and that it fits the terminal. */
#include "tests/unit.h"

#include "cli/train_report.h"

#include <utf8proc.h>

static const char recipe_json[] =
    "{'name': 'unit', 'model': {'architecture': 'OuroForCausalLM', 'hidden_size': 16,"
    " 'num_hidden_layers': 1, 'num_attention_heads': 2, 'head_dim': 8, 'intermediate_size': 24,"
    " 'max_position_embeddings': 128, 'rms_norm_eps': 1e-6, 'rope_theta': 10000,"
    " 'total_ut_steps': 2, 'tie_word_embeddings': false},"
    " 'init': {'embed_std': 1, 'head_std': 0.02, 'matrix_std': 0, 'gain': 1, 'branch_gain': 0.5},"
    " 'optimizer': {'betas': [0.9, 0.98], 'eps': 1e-8, 'weight_decay': 0.05, 'clip': 1},"
    " 'shards': 4, 'data': {%s},"
    " 'stages': [{'name': 'climb', 'steps': 200, 'batch': 8, 'mix': {'a': 1, 'b': 1},"
    "             'lr': 3e-3, 'warmup': 0, 'objective': 'uniform'},"
    "            {'name': 'exits', 'steps': 100, 'batch': 8, 'mix': {'a': 1},"
    "             'lr': 3e-3, 'warmup': 0, 'objective': 'uniform'}],"
    " 'curriculum': {'rate': 0.002, 'threshold': 0.9, 'tracks': [{'data': 'a', 'steps': ["
    "   {'max_hops': 1, 'letters': 5, 'loops': 1}, {'max_hops': 2, 'loops': 2}]}]}}";

static const char hop_and_chain[] = "'a': {'task': 'hop', 'max_pairs': 4},"
                                    "'b': {'task': 'chain', 'max_definitions': 3}";
static const char two_hops[] = "'a': {'task': 'hop', 'max_pairs': 4},"
                               "'b': {'task': 'hop', 'max_pairs': 3}";

static void parse(struct recipe *r, const char *data)
{
    char json[4096];
    struct err err = {0};
    int n = snprintf(json, sizeof json, recipe_json, data);
    for (int i = 0; i < n; i++)
        json[i] = json[i] == '\'' ? '"' : json[i];
    if (recipe_parse(json, (size_t)n, "unit.json", r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

struct world {
    struct recipe recipe;
    struct curriculum_state state;
    struct metrics sum;
    struct trainer_report report;
};

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    parse(&w->recipe, hop_and_chain);
    curriculum_init(&w->recipe, &w->state);
    w->state.step = w->state.attempt_step = w->state.stage_step = 60;
    w->state.loops = 2;
    w->sum.n_sequences = 80;
    w->sum.loss = 40;
    w->sum.n[0] = 50;
    w->sum.correct[0][0] = 25;
    w->sum.correct[0][1] = 50;
    w->report = (struct trainer_report){
        .state = &w->state, .sum = &w->sum, .n_steps = 10, .lr = 3e-3f, .grad_norm = 0.5f};
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    free(*state);
    return 0;
}

static void assert_has(const char *text, const char *part)
{
    if (strstr(text, part) == NULL)
        fail_msg("no '%s' in '%s'", part, text);
}

static void test_train_report_names_levels_by_their_source_where_tasks_repeat(void **state)
{
    struct world *w = *state;
    char name[96];
    train_level_name(&w->recipe, 0, name, sizeof name);
    assert_string_equal(name, "hop 1");
    train_level_name(&w->recipe, recipe_first_level(&w->recipe, 1), name, sizeof name);
    assert_string_equal(name, "dep 0");
    parse(&w->recipe, two_hops);
    train_level_name(&w->recipe, recipe_first_level(&w->recipe, 1), name, sizeof name);
    assert_string_equal(name, "b: hop 1");
}

static void test_train_report_line_says_where_the_run_is(void **state)
{
    struct world *w = *state;
    char line[512];
    train_format_line(&w->recipe, &w->report, 12, line, sizeof line);
    assert_has(line, "step 60/300  climb");
    assert_has(line, "loss 0.5000");
    assert_has(line, "12 steps/s  ETA 0:20"); /* 140 of this stage and 100 */
    assert_has(line, "hop 1 100.0%");         /* at the deepest open loop */
    assert_null(strstr(line, "dep"));         /* nothing was asked */
    w->state.attempt = 1;
    train_format_line(&w->recipe, &w->report, 0, line, sizeof line);
    assert_has(line, "(restart 1)");
    assert_null(strstr(line, "ETA"));
}

static void test_train_report_counts_the_steps_that_are_left(void **state)
{
    struct world *w = *state;
    assert_int_equal(train_steps_left(&w->recipe, &w->state), 240);
    w->state.stage = 1;
    w->state.stage_step = 100;
    assert_int_equal(train_steps_left(&w->recipe, &w->state), 0);
    w->state.is_finished = 1;
    w->state.stage_step = 0;
    assert_int_equal(train_steps_left(&w->recipe, &w->state), 0);
}

static void test_train_report_tells_what_is_open(void **state)
{
    struct world *w = *state;
    char text[512];
    train_format_knobs(&w->recipe, &w->state, text, sizeof text);
    assert_string_equal(text, "a: letters 5, max_hops 1");
    w->report.events = CURRICULUM_RESTART;
    w->state.attempt = 2;
    train_format_events(&w->recipe, &w->report, text, sizeof text);
    assert_string_equal(text, "step 60: starts anew from other random values (restart 2); open: "
                              "loops 2; a: letters 5, max_hops 1");
    /* Cut, but never past the end. */
    train_format_knobs(&w->recipe, &w->state, text, 10);
    assert_string_equal(text, "a: letter");
}

static int widest(const char *text, int *n_lines)
{
    int most = 0, columns = 0;
    *n_lines = 0;
    for (size_t i = 0; text[i] != '\0';) {
        utf8proc_int32_t c;
        if (text[i] == '\033') {
            i += strcspn(text + i, "m") + 1;
            continue;
        }
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text + i, -1, &c);
        assert_true(n > 0); /* no character is cut in two */
        columns = c == '\n' ? 0 : columns + utf8proc_charwidth(c);
        *n_lines += c == '\n';
        most = columns > most ? columns : most;
        i += (size_t)n;
    }
    return most;
}

static void test_train_report_screen_fits_any_terminal(void **state)
{
    struct world *w = *state;
    char text[16384];
    int n_lines;
    for (int i = 0; i < recipe_n_levels(&w->recipe); i++)
        w->sum.n[i] = 50;
    for (int columns = 40; columns <= 120; columns += 20)
        for (int looks = 0; looks < 4; looks++)
            for (int most = 4; most < 12; most++) {
                struct terminal t = {.is_terminal = true,
                                     .has_colour = (looks & 1) != 0,
                                     .has_utf8 = (looks & 2) != 0,
                                     .columns = columns};
                int n =
                    train_format_screen(&w->recipe, &w->report, 3.5, &t, most, text, sizeof text);
                assert_true(widest(text, &n_lines) < columns);
                assert_int_equal(n_lines, n);
                assert_true(n <= most);
            }
    struct terminal t = {.is_terminal = true, .columns = 100};
    train_format_screen(&w->recipe, &w->report, 3.5, &t, 20, text, sizeof text);
    assert_has(text, "% right        loop 1 loop 2\n");
    assert_has(text, "hop 1            50.0  100.0\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_train_report_names_levels_by_their_source_where_tasks_repeat, setup, teardown),
        cmocka_unit_test_setup_teardown(test_train_report_line_says_where_the_run_is, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_train_report_counts_the_steps_that_are_left, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_train_report_tells_what_is_open, setup, teardown),
        cmocka_unit_test_setup_teardown(test_train_report_screen_fits_any_terminal, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
