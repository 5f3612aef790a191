/* The trainer: the same bits for any ranks, threads and interruptions; what ends one rank ends all;
 * windows, restarts and stops. */
#include "tests/model_files.h"
#include "tests/unit.h"

#include "train/trainer.h"

#include <pthread.h>
#include <sys/stat.h>

enum { MAX_RANKS = 4, MAX_REPORTS = 64 };

static const char recipe_json[] =
    "{'name': 'unit', 'model': {'architecture': 'OuroForCausalLM', 'hidden_size': 16,"
    " 'num_hidden_layers': 1, 'num_attention_heads': 2, 'head_dim': 8, 'intermediate_size': 24,"
    " 'max_position_embeddings': 128, 'rms_norm_eps': 1e-6, 'rope_theta': 10000,"
    " 'total_ut_steps': 2, 'tie_word_embeddings': false},"
    " 'init': {'embed_std': 1, 'head_std': 0.02, 'matrix_std': 0, 'gain': 1, 'branch_gain': 0.5},"
    " 'optimizer': {'betas': [0.9, 0.98], 'eps': 1e-8, 'weight_decay': 0.05, 'clip': 1},"
    " 'shards': 4,"
    " 'data': {'hop': {'task': 'hop', 'max_pairs': 4, 'max_hops': 1, 'branches': 4},"
    "          'chain': {'task': 'chain', 'max_definitions': 3}},"
    " 'stages': [{'name': 'one', 'steps': 20, 'batch': 8, 'mix': {'hop': 1, 'chain': 1},"
    "             'lr': %s, 'warmup': 0, 'objective': 'uniform'},"
    "            {'name': 'two', 'steps': 10, 'batch': 4, 'mix': {'hop': 1},"
    "             'lr': [3e-3, 0], 'decay': 'linear', 'objective': 'entropy', 'beta': 0.1}]%s}";

/* The curriculum misses its deadline at step 8, whatever happens. */
static const char hopeless[] =
    ", 'curriculum': {'rate': 0.002, 'threshold': 0.99, 'restarts': 1, 'tracks': [{'data': 'hop',"
    " 'steps': [{'max_hops': 1, 'loops': 1}, {'max_hops': 2, 'loops': 2, 'by': 8}]}]}";

struct world {
    struct recipe recipe;
    char *dir;
};

static void parse_recipe(struct recipe *r, const char *lr, const char *more)
{
    char json[4096];
    struct err err = {0};
    int n = snprintf(json, sizeof json, recipe_json, lr, more);
    for (int i = 0; i < n; i++)
        json[i] = json[i] == '\'' ? '"' : json[i];
    if (recipe_parse(json, (size_t)n, "unit.json", r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static int setup(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    parse_recipe(&w->recipe, "3e-3", "");
    w->dir = model_files_dir();
    *state = w;
    return 0;
}

static int teardown(void **state)
{
    struct world *w = *state;
    char *model = NULL;
    struct stat st;
    assert_true(asprintf(&model, "%s/model", w->dir) > 0);
    if (stat(model, &st) == 0)
        model_files_remove(model); /* frees it */
    else
        free(model);
    model_files_remove(w->dir);
    free(w);
    return 0;
}

/* ---- runs -------------------------------------------------------------------------------------
 */

struct run {
    struct trainer_options options;
    struct trainer_listener listener;
    enum status status;
    struct err err;
    bool is_finished;
    struct recipe *other_recipe; /* rank 1's; NULL: as the others */
    /* what rank 0 heard */
    uint64_t start_step, last_step;
    int n_reports, n_saved;
    struct {
        uint64_t step, n_steps;
        unsigned events;
        bool ends_window;
        float loss, n_sequences, lr;
        int attempt;
    } reports[MAX_REPORTS];
    uint64_t stop_at; /* should_stop says yes once so often asked; 0: never */
    uint64_t n_asked;
};

static enum status on_start(void *user, const struct trainer_start *start, struct err *err)
{
    (void)err;
    ((struct run *)user)->start_step = start->step;
    return STATUS_OK;
}

static void on_report(void *user, const struct trainer_report *report)
{
    struct run *run = user;
    assert_true(run->n_reports < MAX_REPORTS);
    int i = run->n_reports++;
    run->reports[i].step = report->state->step;
    run->reports[i].n_steps = report->n_steps;
    run->reports[i].events = report->events;
    run->reports[i].ends_window = report->ends_window;
    run->reports[i].n_sequences = report->sum->n_sequences;
    run->reports[i].loss = report->sum->loss / report->sum->n_sequences;
    run->reports[i].lr = report->lr;
    run->reports[i].attempt = report->state->attempt;
}

static void on_step(void *user, const struct trainer_report *report)
{
    ((struct run *)user)->last_step = report->state->step;
}

static void on_saved(void *user, const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    ((struct run *)user)->n_saved++;
}

static bool should_stop(void *user)
{
    struct run *run = user;
    return run->stop_at > 0 && ++run->n_asked >= run->stop_at;
}

static struct run make_run(struct world *w)
{
    return (struct run){.options = {.recipe = &w->recipe,
                                    .out_dir = w->dir,
                                    .seed = 7,
                                    .n_threads = 1,
                                    .keep = 3,
                                    .report_every = 10}};
}

static void *run_main(void *arg)
{
    struct run *run = arg;
    run->listener =
        (struct trainer_listener){NULL, on_start, on_step, on_report, on_saved, should_stop, run};
    run->status = trainer_run(&run->options, &run->listener, &run->is_finished, &run->err);
    return NULL;
}

static void run_alone(struct run *run)
{
    run_main(run);
    if (run->status != STATUS_OK)
        fail_msg("%s", run->err.message);
}

static void *decline_main(void *arg)
{
    struct run *run = arg;
    struct err why = {0};
    err_set(&why, STATUS_NOT_FOUND, "there is no recipe here");
    trainer_decline(run->options.transport, &why);
    return NULL;
}

/* All ranks as threads; runs[i] differs from runs[0] as the caller has made it. */
static void run_ranks(struct run *runs, int n, void *(*last_main)(void *))
{
    struct transport *transports[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    assert_int_equal(transport_inproc_create(n, transports, NULL), STATUS_OK);
    for (int i = 0; i < n; i++) {
        runs[i].options.transport = transports[i];
        assert_int_equal(
            pthread_create(&threads[i], NULL, i == n - 1 ? last_main : run_main, &runs[i]), 0);
    }
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < n; i++)
        transport_destroy(transports[i]);
}

/* The state's bytes; the caller frees. */
static unsigned char *read_state(const char *dir, uint64_t step, size_t *len)
{
    char path[512];
    struct stat st;
    snprintf(path, sizeof path, "%s/state-%09llu.safetensors", dir, (unsigned long long)step);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &st), 0);
    *len = (size_t)st.st_size;
    unsigned char *bytes = malloc(*len);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *len, f), *len);
    fclose(f);
    return bytes;
}

static void assert_same_state(const char *a, const char *b, uint64_t step)
{
    size_t n_a, n_b;
    unsigned char *x = read_state(a, step, &n_a), *y = read_state(b, step, &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(x, y, n_a);
    free(x);
    free(y);
}

/* ---- tests ------------------------------------------------------------------------------------
 */

static void test_trainer_gives_the_same_bits_on_any_ranks_and_threads(void **state)
{
    struct world *w = *state;
    static const int grid[][2] = {{1, 3}, {2, 1}, {3, 2}, {4, 1}};
    struct run one = make_run(w);
    one.options.stop_after = 24;
    run_alone(&one);
    for (size_t k = 0; k < sizeof grid / sizeof grid[0]; k++) {
        char *dir = model_files_dir();
        struct run runs[MAX_RANKS];
        for (int i = 0; i < grid[k][0]; i++) {
            runs[i] = one;
            runs[i].n_reports = runs[i].n_saved = 0;
            runs[i].options.out_dir = i == 0 ? dir : "/nowhere/that/is";
            runs[i].options.n_threads = grid[k][1];
            /* Rank 0's are what counts. */
            runs[i].options.seed = i == 0 ? 7 : 8;
            runs[i].options.stop_after = i == 0 ? 24 : 0;
        }
        run_ranks(runs, grid[k][0], run_main);
        for (int i = 0; i < grid[k][0]; i++) {
            if (runs[i].status != STATUS_OK)
                fail_msg("rank %d of %d: %s", i, grid[k][0], runs[i].err.message);
            assert_int_equal(runs[i].n_reports > 0, i == 0);
        }
        assert_same_state(w->dir, dir, 24);
        model_files_remove(dir);
    }
}

static void test_trainer_goes_on_where_it_stopped(void **state)
{
    struct world *w = *state;
    char *dir = model_files_dir();
    struct run whole = make_run(w), part = make_run(w);
    whole.options.stop_after = 26;
    run_alone(&whole);
    part.options.out_dir = dir;
    part.options.resume_if_any = true;
    part.options.stop_after = 13;
    run_alone(&part);
    assert_int_equal(part.start_step, 0);
    run_alone(&part);
    assert_int_equal(part.start_step, 13);
    assert_int_equal(part.last_step, 26);
    assert_same_state(w->dir, dir, 26);
    model_files_remove(dir);
}

static void test_trainer_finishes_once(void **state)
{
    struct world *w = *state;
    struct run run = make_run(w);
    run_alone(&run);
    assert_true(run.is_finished);
    assert_int_equal(run.last_step, 30);
    assert_int_equal(run.n_saved, 1);
    assert_true(run.reports[run.n_reports - 1].events & CURRICULUM_FINISHED);
    struct run again = make_run(w);
    again.options.resume_if_any = true;
    run_alone(&again);
    assert_true(again.is_finished);
    assert_int_equal(again.n_reports, 0);
    assert_int_equal(again.n_saved, 0);
}

static void test_trainer_windows_end_at_reports_saves_and_stages_keep_theirs(void **state)
{
    struct world *w = *state;
    struct run run = make_run(w);
    run.options.save_every = 15;
    run.options.report_every = 10;
    run.options.stop_after = 28;
    run_alone(&run);
    /* 10, 15 (saved), 20 (with the stage's event), 28 (stopped) */
    static const uint64_t steps[] = {10, 15, 20, 28};
    static const uint64_t lengths[] = {10, 5, 5, 8};
    assert_int_equal(run.n_reports, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(run.reports[i].step, steps[i]);
        assert_int_equal(run.reports[i].n_steps, lengths[i]);
        assert_true(run.reports[i].ends_window);
        assert_true(run.reports[i].n_sequences == (float)(lengths[i] * (i < 3 ? 8 : 4)));
    }
    assert_true(run.reports[2].events & CURRICULUM_STAGE);
    assert_true(run.reports[2].lr == 3e-3f); /* of the step that was taken, not of the next stage */
    assert_int_equal(run.n_saved, 2);
}

static void test_trainer_restarts_from_other_values(void **state)
{
    struct world *w = *state;
    parse_recipe(&w->recipe, "1e-2", hopeless);
    struct run run = make_run(w);
    run.options.report_every = 1;
    run.options.stop_after = 12;
    run_alone(&run);
    assert_int_equal(run.n_reports, 12);
    assert_true(run.reports[7].events & CURRICULUM_RESTART);
    assert_int_equal(run.reports[7].attempt, 1);
    /* ln 49 at first; the ninth step is a first one again, but not the same. */
    assert_true(run.reports[7].loss < run.reports[0].loss - 0.2f);
    assert_true(run.reports[8].loss > run.reports[7].loss + 0.2f);
    assert_true(run.reports[8].loss != run.reports[0].loss);
    assert_true(run.reports[11].loss < run.reports[8].loss);
}

static void test_trainer_stops_when_any_rank_wants_to(void **state)
{
    struct world *w = *state;
    struct run runs[2] = {make_run(w), make_run(w)};
    runs[1].stop_at = 4;
    run_ranks(runs, 2, run_main);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(runs[i].status, STATUS_OK);
        assert_false(runs[i].is_finished);
    }
    /* Asked after its fourth step; the fifth carries the word. */
    assert_int_equal(runs[0].last_step, 5);
    assert_int_equal(runs[0].n_saved, 1);
}

static void test_trainer_ends_all_ranks_when_recipes_differ(void **state)
{
    struct world *w = *state;
    struct recipe *other = malloc(sizeof *other);
    assert_non_null(other);
    parse_recipe(other, "4e-3", "");
    struct run runs[2] = {make_run(w), make_run(w)};
    runs[1].options.recipe = other;
    run_ranks(runs, 2, run_main);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(runs[i].status, STATUS_MISMATCH);
        assert_non_null(strstr(runs[i].err.message, "another recipe"));
    }
    assert_non_null(strstr(runs[0].err.message, "rank 1"));
    free(other);
}

static void test_trainer_hears_of_a_rank_that_cannot_begin(void **state)
{
    struct world *w = *state;
    struct run runs[2] = {make_run(w), make_run(w)};
    run_ranks(runs, 2, decline_main);
    assert_int_equal(runs[0].status, STATUS_MISMATCH);
    assert_non_null(strstr(runs[0].err.message, "there is no recipe here"));
}

static void test_trainer_leaves_another_run_alone(void **state)
{
    struct world *w = *state;
    struct run run = make_run(w);
    run.options.stop_after = 3;
    run_alone(&run);
    run_main(&run);
    assert_int_equal(run.status, STATUS_INVALID);
    assert_non_null(strstr(run.err.message, "holds a run already"));
    run.options.resume_if_any = true;
    run.options.seed = 8;
    run_main(&run);
    assert_int_equal(run.status, STATUS_MISMATCH);
    assert_non_null(strstr(run.err.message, "seed"));
}

static void test_trainer_names_the_last_good_state(void **state)
{
    struct world *w = *state;
    struct run run = make_run(w);
    run.options.stop_after = 4;
    run_alone(&run);
    /* A file stands where the model's directory should be: the export fails, the state stays. */
    model_files_write(w->dir, "model", "x", 1);
    run.options.resume_if_any = true;
    run.options.stop_after = 0;
    run_main(&run);
    assert_int_equal(run.status, STATUS_INVALID);
    assert_non_null(strstr(run.err.message, "state-000000030.safetensors: go on with --resume"));
    char path[512];
    snprintf(path, sizeof path, "%s/model", w->dir);
    unlink(path);
    run_alone(&run);
    assert_true(run.is_finished);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_trainer_gives_the_same_bits_on_any_ranks_and_threads,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_goes_on_where_it_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_finishes_once, setup, teardown),
        cmocka_unit_test_setup_teardown(
            test_trainer_windows_end_at_reports_saves_and_stages_keep_theirs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_restarts_from_other_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_stops_when_any_rank_wants_to, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_ends_all_ranks_when_recipes_differ, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_trainer_hears_of_a_rank_that_cannot_begin, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_trainer_leaves_another_run_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_trainer_names_the_last_good_state, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
