/* `carousel batch`: a file of requests in, a file of answers out, resumable. */
#include "cli/batch_hash.h"
#include "cli/batch_resume.h"
#include "cli/batch_run.h"
#include "cli/batch_summary.h"
#include "cli/cli.h"
#include "cluster/host.h"
#include "cluster/launch.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOCK_WAIT_MS = 5000, EXIT_CODE_SIGNAL = 130 };

struct batch_options {
    const char *input, *output;
    bool as_json, with_stats, is_quiet;
};

static const char usage[] =

    "usage: carousel batch [MODEL] -i IN.jsonl -o OUT.jsonl [options]\n"
    "Answers each line of IN (OpenAI batch lines, or {\"prompt\": ...}) with one line\n"
    "of OUT, in order of completion. A second run with the same OUT does what is\n"
    "missing. - is standard input or output.";

static void get_inode(const char *path, struct stat *out)
{
    if (strcmp(path, "-") == 0 || stat(path, out) != 0)
        *out = (struct stat){0};
}

static enum status check_options(const struct batch_options *o, const struct options_result *args,
                                 struct err *err)
{
    if (args->n_positionals > 1)
        return err_set(err, STATUS_INVALID, "unexpected argument '%s'; files are given with -i, -o",
                       args->positionals[1]);
    if (o->input == NULL || o->output == NULL)
        return err_set(err, STATUS_INVALID, "no %s file; give %s",
                       o->input == NULL ? "input" : "output",
                       o->input == NULL ? "-i IN.jsonl (or -i -)" : "-o OUT.jsonl (or -o -)");
    struct stat in, out;
    get_inode(o->input, &in);
    get_inode(o->output, &out);
    if (S_ISREG(in.st_mode) && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return err_set(err, STATUS_INVALID, "%s is input and output", o->input);
    return STATUS_OK;
}

/* Before anything is started: a second look follows where the file is opened. */
static enum status check_input(const char *path, struct err *err)
{
    if (strcmp(path, "-") == 0 || launch_is_rank() || access(path, R_OK) == 0)
        return STATUS_OK;
    return err_set(err, STATUS_NOT_FOUND, "cannot read %s: %s", path, strerror(errno));
}

/* SIGINT, SIGTERM and SIGUSR1 stay pending until batch_run looks; threads inherit this, and workers
 * never look. A process that is about to become mpirun must not pass it on: mpirun handles them
 * itself, and its ranks come here again. */
static void hold_signals(const struct session_options *so)
{
    bool becomes_mpirun =
        !launch_is_rank() && (so->transport == 2 || (so->transport == 0 && so->has_workers));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGUSR1);
    if (!becomes_mpirun)
        sigprocmask(SIG_BLOCK, &set, NULL);
    /* A reader of -o - that has left is an error of write first: the ranks end in order. */
    signal(SIGPIPE, SIG_IGN);
}

static void name_model(const char *dir, char *out, size_t cap_bytes)
{
    char path[PATH_MAX];
    const char *real = realpath(dir, path) != NULL ? path : dir;
    const char *slash = strrchr(real, '/');
    snprintf(out, cap_bytes, "%.*s", (int)cap_bytes - 1,
             slash != NULL && slash[1] != '\0' ? slash + 1 : real);
}

static enum status open_files(struct batch *b, const struct batch_options *o, struct err *err)
{
    struct batch_resume resume = {0};
    enum status status = batch_input_open(&b->input, o->input, 0, err);
    if (status != STATUS_OK)
        return status;
    b->output_name = o->output;
    if (strcmp(o->output, "-") == 0) {
        b->output_name = "standard output";
        b->output_fd = dup(STDOUT_FILENO);
    } else {
        status = batch_resume_open(o->output, LOCK_WAIT_MS, &b->ids, &resume, &b->output_fd, err);
    }
    if (status != STATUS_OK)
        return status;
    if (b->output_fd < 0)
        return err_set(err, STATUS_IO, "cannot write %s: %s", b->output_name, strerror(errno));
    if (strcmp(o->input, "-") != 0)
        batch_input_count(o->input, &b->totals.n_total);
    if (!o->is_quiet && resume.n_answers > 0)
        fprintf(stderr, "batch: %s has %llu lines already; going on from there%s\n", o->output,
                (unsigned long long)resume.n_answers,
                resume.cut_bytes > 0 ? " (cut an unfinished last line)" : "");
    return STATUS_OK;
}

static enum status report(const struct batch *b, const struct batch_options *o, struct err *err)
{
    struct coordinator *c = b->session->coordinator;
    uint32_t n_workers = coordinator_n_workers(c);
    struct control_stats *stats = NULL;
    enum status status = STATUS_OK;
    if (o->with_stats) {
        stats = calloc(n_workers, sizeof *stats);
        if (stats == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the figures of %u workers",
                           n_workers);
        status = coordinator_collect_stats(c, false, stats, err);
    }
    FILE *out = strcmp(o->output, "-") == 0 ? stderr : stdout;
    if (status == STATUS_OK && o->as_json)
        batch_summary_print_json(b, stats, n_workers, out);
    else if (status == STATUS_OK && !o->is_quiet)
        batch_summary_print(b, stats, n_workers, out);
    fflush(out);
    free(stats);
    return status;
}

/* The window: enough that a worker never waits for the next line, small in memory. */
static uint32_t choose_window(const struct session *s)
{
    uint32_t ring = coordinator_ring_size(s->coordinator);
    uint32_t n_rings = ring > 0 ? (uint32_t)s->n_workers / ring : 1;
    uint64_t window = UINT64_C(2) * (uint64_t)s->options.max_sequences * n_rings;
    return window < 4096 ? (uint32_t)window : 4096;
}

/* The same command would do the rest: not where nothing holds what was written. */
static bool can_go_on(const struct batch_options *o, enum status status)
{
    return status != STATUS_INVALID && strcmp(o->output, "-") != 0;
}

/* What --kv-dtype auto comes to. */
static bool has_bf16_kv(const struct session *s)
{
    return session_kv_dtype(s) == DTYPE_BF16;
}

/* As a program ends that writes into a pipe nobody reads any more: no word, by SIGPIPE. A rank
 * leaves that to the program that started the job: mpirun talks about ranks that signals end. */
static int end_without_reader(void)
{
    if (!launch_is_rank()) {
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
    }
    return CLI_FAILURE;
}

static enum status run(struct batch *b, const struct batch_options *o, struct err *err)
{
    enum status status = open_files(b, o, err);
    if (status != STATUS_OK)
        return status;
    struct control_stats *ignored =
        o->with_stats ? calloc(coordinator_n_workers(b->session->coordinator), sizeof *ignored)
                      : NULL;
    /* Start the workers' counters now: the model's loading is not the batch's time. */
    if (ignored != NULL)
        status = coordinator_collect_stats(b->session->coordinator, true, ignored, err);
    free(ignored);
    snprintf(b->run_id, sizeof b->run_id, "%llx%05x", (unsigned long long)time(NULL),
             (unsigned)getpid() & 0xfffff);
    snprintf(b->fingerprint, sizeof b->fingerprint, "fp_%016llx",
             (unsigned long long)b->session->checkpoint->fingerprint);
    name_model(b->session->model_dir, b->model_name, sizeof b->model_name);
    b->window = choose_window(b->session);
    b->run_hash = batch_hash_run(b->defaults, &b->session->checkpoint->config,
                                 b->session->checkpoint->fingerprint, has_bf16_kv(b->session));
    progress_init(&b->progress, "batch", o->is_quiet);
    if (status == STATUS_OK)
        status = batch_run(b, err);
    if (status == STATUS_OK)
        status = report(b, o, err);
    else if (b->totals.n_done > b->totals.n_skipped && !o->is_quiet && can_go_on(o, status))
        fprintf(stderr, "batch: %llu lines are done; the same command does the rest\n",
                (unsigned long long)(b->totals.n_done - b->totals.n_skipped));
    return status;
}

static void destroy_jobs(struct batch_job *job)
{
    while (job != NULL) {
        struct batch_job *next = job->next;
        batch_job_destroy(job);
        job = next;
    }
}

int cli_batch(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct request_options ro;
    struct batch_options o = {0};
    session_options_init(&so);
    request_options_init(&ro);
    const struct option_spec own[] = {
        {"input", 'i', OPTION_STRING, &o.input, "FILE", NULL, 0, 0, "requests, one a line", NULL},
        {"output", 'o', OPTION_STRING, &o.output, "FILE", NULL, 0, 0,
         "answers, appended one a line", NULL},
        {"stats", 0, OPTION_FLAG, &o.with_stats, NULL, NULL, 0, 0,
         "say where the time of each worker went", NULL},
        {"json", 0, OPTION_FLAG, &o.as_json, NULL, NULL, 0, 0, "the summary as one JSON object",
         NULL},
        {"quiet", 0, OPTION_FLAG, &o.is_quiet, NULL, NULL, 0, 0, "no progress, no summary", NULL},
    };
    struct option_spec request_specs[REQUEST_N_SPECS], session_specs[SESSION_N_SPECS];
    struct option_group groups[] = {
        {own, sizeof own / sizeof own[0]},
        request_options_group(&ro, request_specs),
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct err err = {0};
    if (options_parse(groups, 3, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("batch", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 3, &args);
        return CLI_OK;
    }
    if (check_options(&o, &args, &err) != STATUS_OK)
        return cli_fail_usage("batch", &err);
    if (check_input(o.input, &err) != STATUS_OK)
        return cli_fail("batch", &err);
    so.model = args.n_positionals > 0 ? args.positionals[0] : NULL;

    struct batch b = {.defaults = &ro, .input = {.fd = -1}, .output_fd = -1};
    int exit_code;
    hold_signals(&so);
    if (session_open(&so, program_argv, &b.session, &exit_code, &err) != STATUS_OK)
        return cli_fail("batch", &err);
    if (b.session == NULL)
        return exit_code;
    batch_ids_init(&b.ids);
    enum status status = run(&b, &o, &err);
    status = session_save_trace(b.session, status, &err);
    exit_code = CLI_OK;
    bool is_unread = b.is_reader_gone && strcmp(o.output, "-") == 0;
    if (status != STATUS_OK && !is_unread)
        exit_code = cli_fail("batch", &err);
    if (status == STATUS_CANCELLED)
        exit_code = EXIT_CODE_SIGNAL;
    /* The coordinator may still call back for what was under way. */
    session_close(b.session);
    destroy_jobs(b.running);
    destroy_jobs(b.finished_first);
    batch_job_destroy(b.pending);
    batch_ids_clear(&b.ids);
    text_free(&b.line);
    batch_input_close(&b.input);
    if (b.output_fd >= 0)
        close(b.output_fd);
    return is_unread ? end_without_reader() : exit_code;
}
