/* `carousel train`: trains a recipe, alone or as the ranks of a job, and says how it goes. */
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/train_check.h"
#include "cli/train_log.h"
#include "cli/train_report.h"
#include "cluster/host.h"
#include "cluster/launch.h"
#include "cluster/transport.h"
#include "train/trainer.h"

#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { EXIT_CODE_SIGNAL = 130, SLOW_DISK_BYTES_PER_S = 100 * 1000 * 1000 };

static const char usage[] =

    "usage: carousel train RECIPE --out DIR [options]\n"
    "Trains the model of RECIPE (JSON, docs/training.md) and writes it to DIR/model.\n"
    "The result depends on the recipe and the seed, not on ranks and threads.";

struct train {
    struct recipe *recipe;
    struct trainer_options options;
    const char *log_path;
    char default_log_path[PATH_MAX];
    int n_ranks; /* 0: --ranks was not given */
    bool wants_check, as_json, is_quiet;

    struct train_screen screen;
    struct train_log log;
    int signal; /* that asked to stop; 0: none */
    uint64_t step;
    struct metrics last; /* of the last window */
    int last_loops;
    double seconds, cpu_seconds;
    char state_path[PATH_MAX]; /* "": none was saved */
};

/* ---- what the trainer tells -------------------------------------------------------------------
 */

static enum status train_on_start(void *user, const struct trainer_start *start, struct err *err)
{
    struct train *t = user;
    t->step = start->step;
    train_log_open(&t->log, t->log_path, t->recipe, t->options.seed, start);
    if (t->log.status != STATUS_OK)
        return err_set(err, t->log.status, "%s", t->log.err.message);
    if (t->is_quiet)
        return STATUS_OK;
    fprintf(stderr, "train: %s, %zu parameters, seed %llu, %d rank%s of %d thread%s, %s\n",
            t->recipe->name, start->n_parameters, (unsigned long long)t->options.seed,
            start->n_ranks, start->n_ranks == 1 ? "" : "s", start->n_threads,
            start->n_threads == 1 ? "" : "s", start->isa);
    if (start->resumed_from != NULL)
        fprintf(stderr, "train: goes on at step %llu from %s\n", (unsigned long long)start->step,
                start->resumed_from);
    else if (t->options.resume_if_any)
        fprintf(stderr, "train: %s has no state yet: starts at step 0\n", t->options.out_dir);
    return STATUS_OK;
}

static void train_on_step(void *user, const struct trainer_report *report)
{
    struct train *t = user;
    t->step = report->state->step;
    t->seconds = report->seconds;
    t->cpu_seconds = report->cpu_seconds;
    train_screen_step(&t->screen, report);
}

static void train_on_report(void *user, const struct trainer_report *report)
{
    struct train *t = user;
    t->step = report->state->step;
    train_log_report(&t->log, report);
    train_screen_report(&t->screen, report);
    if (report->ends_window) {
        t->last = *report->sum;
        t->last_loops = report->state->loops;
    }
}

static void train_on_saved(void *user, const char *path)
{
    struct train *t = user;
    snprintf(t->state_path, sizeof t->state_path, "%s", path);
    train_log_saved(&t->log, t->step, path);
}

/* Also stops a run whose log cannot be written: better now than without a record. */
static bool train_should_stop(void *user)
{
    struct train *t = user;
    const struct timespec now = {0};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    int number = t->signal == 0 ? sigtimedwait(&set, NULL, &now) : 0;
    if (number > 0) {
        t->signal = number;
        /* A second one ends the process at once. What is being saved then is whole or not there. */
        signal(SIGINT, SIG_DFL);
        signal(SIGTERM, SIG_DFL);
        sigprocmask(SIG_UNBLOCK, &set, NULL);
    }
    return t->signal != 0 || t->log.status != STATUS_OK;
}

static void set_signals(int how)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(how, &set, NULL);
}

/* Both stay pending until train_should_stop looks; threads inherit this. */
static void train_on_opened(void *user)
{
    (void)user;
    set_signals(SIG_BLOCK);
}

/* An error of write is told; it does not end the process. */
static void ignore_signals(void)
{
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file limit is an error of write, as a full disk is */
}

/* ---- the end ----------------------------------------------------------------------------------
 */

static enum status print_json(const struct train *t, bool is_finished, struct err *err)
{
    char model[PATH_MAX];
    snprintf(model, sizeof model, "%s/model", t->options.out_dir);
    float n = t->last.n_sequences;
    json_t *accuracy = json_object();
    for (int i = 0; i < recipe_n_levels(t->recipe); i++) {
        char name[96];
        if (t->last.n[i] <= 0)
            continue;
        train_level_name(t->recipe, i, name, sizeof name);
        json_t *loops = json_array();
        for (int k = 0; k < t->last_loops; k++)
            json_array_append_new(loops, json_real((double)(t->last.correct[i][k] / t->last.n[i])));
        json_object_set_new(accuracy, name, loops);
    }
    json_t *o = json_pack("{s:b, s:I, s:f, s:f, s:f, s:o}", "finished", is_finished, "step",
                          (json_int_t)t->step, "seconds", t->seconds, "cpu_seconds", t->cpu_seconds,
                          "loss", n > 0 ? (double)(t->last.loss / n) : 0.0, "accuracy", accuracy);
    json_object_set_new(o, "state",
                        t->state_path[0] != '\0' ? json_string(t->state_path) : json_null());
    json_object_set_new(o, "model", is_finished ? json_string(model) : json_null());
    json_object_set_new(o, "log", json_string(t->log_path));
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the summary");
    printf("%s\n", text);
    free(text);
    return STATUS_OK;
}

static void print_summary(const struct train *t, bool is_finished)
{
    char took[32];
    progress_format_time(t->seconds, took, sizeof took);
    if (is_finished)
        printf("trained %llu steps in %s (%.1f CPU-seconds on this rank); the model is in "
               "%s/model\n",
               (unsigned long long)t->step, took, t->cpu_seconds, t->options.out_dir);
    else if (t->signal == 0)
        printf("stopped after step %llu, %s (%.1f CPU-seconds on this rank); the state is %s: go "
               "on with --resume\n",
               (unsigned long long)t->step, took, t->cpu_seconds, t->state_path);
}

static int end(struct train *t, enum status status, bool is_finished, int rank, struct err *err)
{
    train_screen_clear(&t->screen);
    if (rank > 0) {
        /* Rank 0 tells everybody's failures, but for those it cannot have heard of. A code other
         * than 0 would make mpirun end it before it has. */
        bool is_unheard = status == STATUS_TIMEOUT || status == STATUS_IO;
        return is_unheard ? cli_fail("train", err) : CLI_OK;
    }
    const char *reason = status != STATUS_OK ? err->message : is_finished ? "finished" : "stopped";
    train_log_end(&t->log, t->step, reason);
    train_log_close(&t->log);
    if (status == STATUS_OK && t->log.status != STATUS_OK)
        status = err_set(err, t->log.status, "%s; stopped at step %llu, the state is %s",
                         t->log.err.message, (unsigned long long)t->step, t->state_path);
    if (status == STATUS_OK && t->as_json)
        status = print_json(t, is_finished, err);
    else if (status == STATUS_OK && !t->is_quiet)
        print_summary(t, is_finished);
    if (status != STATUS_OK)
        return cli_fail("train", err);
    if (t->signal == 0 || is_finished)
        return CLI_OK;
    fprintf(stderr,
            "carousel train: %s: stopped at step %llu, the state is %s: go on with --resume\n",
            t->signal == SIGINT ? "interrupted" : "told to end", (unsigned long long)t->step,
            t->state_path);
    return EXIT_CODE_SIGNAL;
}

/* ---- the beginning ----------------------------------------------------------------------------
 */

static enum status take_arguments(struct train *t, const struct options_result *args,
                                  struct err *err)
{
    struct trainer_options *o = &t->options;
    if (args->n_positionals == 0)
        return err_set(err, STATUS_INVALID, "no recipe; give RECIPE, as train/recipes/demo.json");
    if (args->n_positionals > 1)
        return err_set(err, STATUS_INVALID,
                       "unexpected argument '%s'; there is one RECIPE (--resume takes no value: "
                       "--resume-from does)",
                       args->positionals[1]);
    if (o->out_dir == NULL && !t->wants_check)
        return err_set(err, STATUS_INVALID, "no --out DIR to write states and the model to");
    if (o->out_dir != NULL && t->log_path == NULL) {
        int n =
            snprintf(t->default_log_path, sizeof t->default_log_path, "%s/log.jsonl", o->out_dir);
        if (n < 0 || (size_t)n >= sizeof t->default_log_path)
            return err_set(err, STATUS_INVALID, "--out: the path is too long");
        t->log_path = t->default_log_path;
    }
    return STATUS_OK;
}

/* Comes back on failure only. mpirun gives its ranks a second between TERM and KILL: too little to
 * save a large state. It waits that long at every failure, too, so no longer than it may take. */
static int become_mpirun(struct train *t, char **program_argv)
{
    struct err err = {0};
    char seconds[24];
    uint64_t state_bytes = 3 * sizeof(float) * config_count_parameters(&t->recipe->config);
    snprintf(seconds, sizeof seconds, "%llu",
             (unsigned long long)(1 + state_bytes / SLOW_DISK_BYTES_PER_S));
    setenv("OMPI_MCA_odls_base_sigkill_timeout", seconds, 0);
    if (launch_mpirun(t->n_ranks, program_argv, &err) == STATUS_NOT_FOUND)
        err_set(&err, STATUS_NOT_FOUND,
                "mpirun is not on PATH: install Open MPI (Debian: openmpi-bin), or train in one "
                "process with --threads");
    return cli_fail("train", &err);
}

static int run(struct train *t, const char *recipe_path, char **program_argv)
{
    struct err err = {0};
    bool is_rank = launch_is_rank(), is_finished = false;
    enum status status = recipe_load(recipe_path, t->recipe, &err);
    if (status != STATUS_OK && launch_rank() == 0)
        return cli_fail("train", &err);
    if (t->wants_check) {
        if (launch_rank() > 0)
            return CLI_OK;
        status = train_check(t->recipe, t->as_json, &err);
        return status == STATUS_OK ? CLI_OK : cli_fail("train", &err);
    }
    if (!is_rank && t->n_ranks > 1)
        return become_mpirun(t, program_argv);
    ignore_signals();
    set_signals(SIG_BLOCK); /* the transport's threads inherit it */
    struct transport *transport = NULL;
    if (is_rank) {
        struct err why = {0};
        if (transport_mpi_create(&transport, &why) != STATUS_OK)
            return cli_fail("train", &why);
        if (status != STATUS_OK) { /* a recipe that this host alone does not have */
            trainer_decline(transport, &err);
            transport_destroy(transport);
            return CLI_OK;
        }
    }
    int rank = transport != NULL ? transport->rank : 0;
    int n_local = transport != NULL ? transport->n_local_ranks : 1;
    t->options.transport = transport;
    if (t->options.n_threads == 0)
        t->options.n_threads = host_n_cores() / n_local > 0 ? host_n_cores() / n_local : 1;
    train_screen_init(&t->screen, t->recipe, t->is_quiet || rank > 0);
    struct trainer_listener listener = {
        .on_opened = train_on_opened, .should_stop = train_should_stop, .user = t};
    if (rank == 0) {
        listener.on_start = train_on_start;
        listener.on_step = train_on_step;
        listener.on_report = train_on_report;
        listener.on_saved = train_on_saved;
    }
    set_signals(SIG_UNBLOCK); /* a run that is not yet open has nothing to save: it just ends */
    status = trainer_run(&t->options, &listener, &is_finished, &err);
    int code = end(t, status, is_finished, rank, &err);
    transport_destroy(transport);
    return code;
}

int cli_train(int argc, char **argv, char **program_argv)
{
    struct train *t = calloc(1, sizeof *t);
    struct err err = {0};
    if (t == NULL || (t->recipe = calloc(1, sizeof *t->recipe)) == NULL) {
        free(t);
        err_set(&err, STATUS_NO_MEMORY, "no memory for the recipe");
        return cli_fail("train", &err);
    }
    struct trainer_options *o = &t->options;
    *o = (struct trainer_options){.recipe = t->recipe,
                                  .seed = 1,
                                  .keep = 2,
                                  .save_every = 1000,
                                  .report_every = 100,
                                  .silence_limit_s = 600};
    const struct option_spec specs[] = {
        {"out", 'o', OPTION_STRING, &o->out_dir, "DIR", NULL, 0, 0,
         "states, log.jsonl and at the end the model", NULL},
        {"seed", 0, OPTION_U64, &o->seed, "N", NULL, 0, 0, "of values and data (default 1)", NULL},
        {"threads", 0, OPTION_INT, &o->n_threads, "N", NULL, 1, 1024,
         "of each rank (default: its share of the cores)", NULL},
        {"ranks", 'r', OPTION_INT, &t->n_ranks, "R", NULL, 1, 4096,
         "starts mpirun here (default: this process alone)", NULL},
        {"resume", 0, OPTION_FLAG, &o->resume_if_any, NULL, NULL, 0, 0,
         "go on from DIR's newest state, if it has one", NULL},
        {"resume-from", 0, OPTION_STRING, &o->resume, "PATH", NULL, 0, 0,
         "go on from this state file, or directory", NULL},
        {"init-from", 0, OPTION_STRING, &o->init_from, "PATH", NULL, 0, 0,
         "start from the weights of a model or state file", NULL},
        {"save-every", 0, OPTION_U64, &o->save_every, "N", NULL, 0, 0,
         "steps between states (1000; 0: at the end)", NULL},
        {"keep", 0, OPTION_INT, &o->keep, "N", NULL, 1, 1000000, "states that stay (default 2)",
         NULL},
        {"stop-after", 0, OPTION_U64, &o->stop_after, "N", NULL, 0, 0,
         "save and stop after so many steps", NULL},
        {"report-every", 0, OPTION_U64, &o->report_every, "N", NULL, 0, 0,
         "steps of a line of the log (default 100)", NULL},
        {"log", 0, OPTION_STRING, &t->log_path, "FILE", NULL, 0, 0,
         "JSON lines (default DIR/log.jsonl)", NULL},
        {"isa", 0, OPTION_STRING, &o->isa, "LEVEL", NULL, 0, 0,
         "portable, avx2, avx512 (default: rank 0's best)", NULL},
        {"silence-limit", 0, OPTION_INT, &o->silence_limit_s, "S", NULL, 1, 1000000,
         "seconds a rank may be silent (default 600)", NULL},
        {"check", 0, OPTION_FLAG, &t->wants_check, NULL, NULL, 0, 0,
         "print what the recipe asks for, and end", NULL},
        {"json", 0, OPTION_FLAG, &t->as_json, NULL, NULL, 0, 0, "the summary as one JSON object",
         NULL},
        {"quiet", 0, OPTION_FLAG, &t->is_quiet, NULL, NULL, 0, 0, "no progress, no summary", NULL},
    };
    struct option_group group = {specs, sizeof specs / sizeof specs[0]};
    struct options_result args;
    int code;
    if (options_parse(&group, 1, argc, argv, &args, &err) != STATUS_OK) {
        code = cli_fail_usage("train", &err);
    } else if (args.wants_help) {
        options_print_help(usage, &group, 1, &args);
        code = CLI_OK;
    } else if (take_arguments(t, &args, &err) != STATUS_OK) {
        code = cli_fail_usage("train", &err);
    } else {
        code = run(t, args.positionals[0], program_argv);
    }
    free(t->recipe);
    free(t);
    return code;
}
