/* `carousel eval`: exact answers by difficulty, by loop and by exit threshold. */
#include "cli/cli.h"
#include "cli/eval_report.h"
#include "cli/eval_score.h"
#include "cli/eval_tasks.h"
#include "cli/progress.h"
#include "cli/session.h"
#include "cli/teacher.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "usage: carousel eval [MODEL] --task hop,chain [options]\n"
    "Asks fresh problems of the tasks at all loops of the engine: exact answers per\n"
    "difficulty and loop, and accuracy against mean loops over the exit thresholds.";

struct eval_options {
    const char *tasks, *knobs, *thresholds, *save;
    int n, split;
    uint64_t seed;
    bool as_json, only_saves;
};

static const char *const split_names[] = {"test", "validation", "train"};
static const enum task_split splits[] = {TASK_TEST, TASK_VALIDATION, TASK_TRAIN};

/* Problems under way at once; each holds a slot until its rows are through, and so does the one
 * that waits for room. */
enum { EVAL_MAX_OPEN = 128, EVAL_SLOTS = EVAL_MAX_OPEN + 1 };

struct eval_run {
    struct session *session;
    struct eval_tasks tasks;
    struct eval_score score;
    uint64_t n, n_asked;
    FILE *save; /* NULL: problems are not kept */
    int32_t *ids;
    int n_free;
    struct eval_answer *free_answers[EVAL_SLOTS];
    struct eval_answer answers[EVAL_SLOTS];
};

static enum status save_problem(struct eval_run *run, const struct task_problem *p, int level,
                                struct err *err)
{
    char name[EVAL_NAME_BYTES];
    eval_tasks_level_name(&run->tasks, level, name, sizeof name);
    /* "hop 3": the difficulty is the number. */
    json_t *line = json_pack("{s:s, s:s, s:s, s:i}", "prompt", p->prompt, "answer", p->answer,
                             "task", eval_tasks_of_level(&run->tasks, level)->task->name, "level",
                             atoi(strrchr(name, ' ') + 1));
    if (line == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a problem");
    int failed = json_dumpf(line, run->save, 0) != 0 || fputc('\n', run->save) == EOF;
    json_decref(line);
    return failed ? err_set(err, STATUS_IO, "cannot write the problems: %s", strerror(errno))
                  : STATUS_OK;
}

/* ids of the prompt with its beginning-of-text token, then those of the answer. */
static enum status encode(struct eval_run *run, const struct task_problem *p,
                          struct teacher_text *text, struct err *err)
{
    const struct tokenizer *tokenizer = run->session->tokenizer;
    int32_t *prompt = NULL, *answer = NULL;
    size_t n_prompt, n_answer;
    enum status status =
        tokenizer_encode(tokenizer, p->prompt, strlen(p->prompt),
                         TOKENIZER_ADD_BOS | TOKENIZER_STRICT, &prompt, &n_prompt, NULL, err);
    if (status == STATUS_OK)
        status = tokenizer_encode(tokenizer, p->answer, strlen(p->answer), TOKENIZER_STRICT,
                                  &answer, &n_answer, NULL, err);
    int32_t *ids = NULL;
    if (status == STATUS_OK) {
        ids = realloc(run->ids, (n_prompt + n_answer) * sizeof *ids);
        if (ids == NULL)
            status = err_set(err, STATUS_NO_MEMORY, "no memory for %zu ids", n_prompt + n_answer);
    } else {
        err_wrap(err, "the model's tokenizer cannot write '%.40s'", p->prompt);
    }
    if (status == STATUS_OK) {
        run->ids = ids;
        memcpy(ids, prompt, n_prompt * sizeof *ids);
        memcpy(ids + n_prompt, answer, n_answer * sizeof *ids);
        text->ids = ids;
        text->n_ids = (uint32_t)(n_prompt + n_answer);
        text->first_target = (uint32_t)n_prompt;
    }
    free(prompt);
    free(answer);
    return status;
}

static enum status next(void *user, struct teacher_text *text, bool *has_text, struct err *err)
{
    struct eval_run *run = user;
    struct task_problem problem;
    int level;
    *has_text = run->n_asked < run->n;
    if (!*has_text)
        return STATUS_OK;
    enum status status = eval_tasks_problem(&run->tasks, run->n_asked, &problem, &level, err);
    if (status == STATUS_OK && run->save != NULL)
        status = save_problem(run, &problem, level, err);
    if (status == STATUS_OK)
        status = encode(run, &problem, text, err);
    if (status != STATUS_OK)
        return status;
    struct eval_answer *answer = run->free_answers[--run->n_free];
    eval_answer_begin(answer, level);
    text->user = answer;
    run->n_asked++;
    return STATUS_OK;
}

static enum status on_row(void *user, const struct teacher_row *row, struct err *err)
{
    struct eval_run *run = user;
    (void)err;
    eval_answer_add(row->user, &run->score, row->lambdas, row->logprobs, row->hits);
    return STATUS_OK;
}

static enum status on_text(void *user, uint64_t text, void *text_user, struct err *err)
{
    struct eval_run *run = user;
    (void)text;
    (void)err;
    eval_score_add(&run->score, text_user);
    run->free_answers[run->n_free++] = text_user;
    return STATUS_OK;
}

static enum status ask(struct eval_run *run, const struct eval_options *o, struct err *err)
{
    static const float all_loops = 1.0f;
    float thresholds[EVAL_MAX_THRESHOLDS];
    size_t n_thresholds = 0;
    const struct model_config *config = &run->session->checkpoint->config;
    enum status status =
        options_parse_floats(o->thresholds, thresholds, EVAL_MAX_THRESHOLDS, &n_thresholds, err);
    for (size_t i = 0; status == STATUS_OK && i < n_thresholds; i++)
        if (!(thresholds[i] > 0 && thresholds[i] <= 1))
            status = err_set(err, STATUS_INVALID, "--thresholds: %g is not in (0, 1]",
                             (double)thresholds[i]);
    if (status != STATUS_OK)
        return status;
    if (!config->has_gate)
        n_thresholds = 1;
    status = eval_score_create(&run->score, (uint32_t)config->n_loops,
                               config->has_gate ? thresholds : &all_loops, n_thresholds,
                               run->tasks.n_levels, err);
    if (status != STATUS_OK)
        return status;
    for (int i = 0; i < run->tasks.n_levels; i++)
        eval_tasks_level_name(&run->tasks, i, run->score.levels[i].name, EVAL_NAME_BYTES);
    const struct teacher_listener listener = {
        .next = next, .on_row = on_row, .on_text = on_text, .user = run};
    const struct teacher_options how = {.max_texts = EVAL_MAX_OPEN};
    return teacher_run(run->session, &how, &listener, err);
}

static enum status open_save(struct eval_run *run, const char *path, struct err *err)
{
    run->save = path != NULL ? fopen(path, "w") : NULL;
    return path != NULL && run->save == NULL
               ? err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno))
               : STATUS_OK;
}

static enum status close_save(struct eval_run *run, const char *path, struct err *err)
{
    if (run->save != NULL && fclose(run->save) != 0)
        return err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}

/* --only-save: the problems without a model. */
static enum status save_all(struct eval_run *run, struct err *err)
{
    enum status status = STATUS_OK;
    for (uint64_t i = 0; i < run->n && status == STATUS_OK; i++) {
        struct task_problem problem;
        int level;
        status = eval_tasks_problem(&run->tasks, i, &problem, &level, err);
        if (status == STATUS_OK)
            status = save_problem(run, &problem, level, err);
    }
    return status;
}

/* session NULL: --only-save. */
static enum status run_eval(struct session *session, const struct eval_options *o,
                            const struct eval_tasks *tasks, struct err *err)
{
    struct eval_run *run = calloc(1, sizeof *run);
    if (run == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %d problems at once", EVAL_MAX_OPEN);
    run->session = session;
    run->tasks = *tasks;
    run->n = (uint64_t)o->n;
    for (int i = 0; i < EVAL_SLOTS; i++)
        run->free_answers[run->n_free++] = &run->answers[i];
    enum status status = open_save(run, o->save, err);
    if (status == STATUS_OK)
        status = session != NULL ? ask(run, o, err) : save_all(run, err);
    enum status closed = close_save(run, o->save, status == STATUS_OK ? err : NULL);
    if (status == STATUS_OK)
        status = closed;
    if (status == STATUS_OK && session != NULL && o->as_json)
        status = eval_report_json(&run->score, session->model_dir, split_names[o->split], o->seed,
                                  stdout, err);
    else if (status == STATUS_OK && session != NULL)
        eval_report_tables(&run->score, stdout);
    fflush(stdout);
    free(run->ids);
    eval_score_free(&run->score);
    free(run);
    return status;
}

int cli_eval(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct eval_options o = {
        .n = 1000, .seed = 1, .thresholds = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"};
    session_options_init(&so);
    const struct option_spec own[] = {
        {"task", 0, OPTION_STRING, &o.tasks, "NAMES", NULL, 0, 0,
         "of hop, chain, addition, phop, igsm: hop,chain", NULL},
        {"set", 0, OPTION_STRING, &o.knobs, "KNOBS", NULL, 0, 0,
         "of the tasks: letters=14,hop.max_hops=3", NULL},
        {"n", 'n', OPTION_INT, &o.n, "N", NULL, 1, INT32_MAX,
         "problems, every difficulty equally often (1000)", NULL},
        {"seed", 0, OPTION_U64, &o.seed, "N", NULL, 0, 0, "of the problems (1)", NULL},
        {"split", 0, OPTION_CHOICE, &o.split, NULL, "test|validation|train", 0, 0,
         "contexts: test and validation never train", NULL},
        {"thresholds", 'q', OPTION_STRING, &o.thresholds, "Q,Q,..", NULL, 0, 0,
         "exit thresholds (default 0.1 .. 1)", NULL},
        {"save", 0, OPTION_STRING, &o.save, "FILE", NULL, 0, 0,
         "write the problems, a JSON line each", NULL},
        {"only-save", 0, OPTION_FLAG, &o.only_saves, NULL, NULL, 0, 0,
         "write the problems and ask no model", NULL},
        {"json", 0, OPTION_FLAG, &o.as_json, NULL, NULL, 0, 0, "print one JSON object", NULL},
    };
    struct option_spec session_specs[SESSION_N_SPECS];
    struct option_group groups[] = {
        {own, sizeof own / sizeof own[0]},
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct eval_tasks tasks;
    struct err err = {0};
    if (options_parse(groups, 2, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("eval", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 2, &args);
        return CLI_OK;
    }
    if (o.tasks == NULL) {
        err_set(&err, STATUS_INVALID, "no task given; --task hop,chain asks both");
        return cli_fail_usage("eval", &err);
    }
    if (o.only_saves && o.save == NULL) {
        err_set(&err, STATUS_INVALID, "--only-save needs --save FILE: where the problems go");
        return cli_fail_usage("eval", &err);
    }
    if (session_take_model(&args, &so.model, &err) != STATUS_OK ||
        eval_tasks_parse(o.tasks, o.knobs, splits[o.split], o.seed, &tasks, &err) != STATUS_OK)
        return cli_fail_usage("eval", &err);
    if (o.only_saves)
        return run_eval(NULL, &o, &tasks, &err) == STATUS_OK ? CLI_OK : cli_fail("eval", &err);
    so.needs_tokenizer = true;
    struct session *session;
    int exit_code;
    if (session_open(&so, program_argv, &session, &exit_code, &err) != STATUS_OK)
        return cli_fail("eval", &err);
    if (session == NULL)
        return exit_code;
    enum status status = run_eval(session, &o, &tasks, &err);
    status = session_save_trace(session, status, &err);
    exit_code = status == STATUS_OK ? CLI_OK : cli_fail("eval", &err);
    session_close(session);
    return exit_code;
}
