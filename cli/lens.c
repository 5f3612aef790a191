/* `carousel lens`: how the model changes its mind from loop to loop. */
#include "cli/lens.h"

#include "cli/cli.h"
#include "cli/session.h"
#include "cli/stdin_prompt.h"

#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =

    "usage: carousel lens [MODEL] [PROMPT | --ids 1,2,3 | -] [options]\n"
    "Shows for every position of the prompt and every loop which token the model\n"
    "would say, and how sure the gate is that this token needs no more loops (cdf).\n"
    "- reads the prompt from standard input.";

struct lens_run {
    struct lens *lens;
    enum status status;
    struct err err;
};

static void on_observation(void *user, const struct control_observation *row)
{
    struct lens_run *run = user;
    struct lens *l = run->lens;
    if (row->position >= l->n_positions || row->loop < 1 || row->loop > l->n_loops)
        return;
    struct lens_cell *cell = &l->cells[(size_t)row->position * l->n_loops + row->loop - 1];
    if (cell->is_seen)
        return;
    size_t n = row->n_top > 0 ? row->n_top : 1;
    cell->top_ids = malloc(n * sizeof *cell->top_ids);
    cell->top_logits = malloc(n * sizeof *cell->top_logits);
    if (cell->top_ids == NULL || cell->top_logits == NULL) {
        run->status =
            err_set(&run->err, STATUS_NO_MEMORY,
                    "no memory for %u top tokens of every position; lower --top", row->n_top);
        return;
    }
    memcpy(cell->top_ids, row->top_ids, row->n_top * sizeof *cell->top_ids);
    memcpy(cell->top_logits, row->top_logits, row->n_top * sizeof *cell->top_logits);
    cell->n_top = row->n_top;
    cell->lambda = row->lambda;
    cell->is_seen = true;
}

static void on_end(void *user, const struct completion_end *end)
{
    struct lens_run *run = user;
    if (end->reason == FINISH_ERROR && run->status == STATUS_OK)
        run->status = err_set(&run->err, end->failure, "%s", end->message);
}

static enum status observe(struct lens *l, struct session *s, uint32_t top, struct err *err)
{
    struct lens_run run = {.lens = l};
    struct completion_request request = {
        .prompt_ids = l->ids,
        .n_prompt = l->n_positions,
        .user = &run,
        .on_observation = on_observation,
        .on_end = on_end,
    };
    sequence_params_init(&request.params);
    request.params.prompt_tokens = l->n_positions;
    /* A sequence makes a token or it is none; this one is not shown. */
    request.params.max_tokens = 1;
    request.params.max_loops = l->n_loops;
    request.params.exit_mode = EXIT_MODE_FULL;
    request.params.prefill = (enum prefill_policy)s->options.prefill;
    request.params.observe_top = top;
    uint64_t id;
    enum status status = coordinator_submit(s->coordinator, &request, &id, err);
    if (status == STATUS_OK)
        status = session_run(s, NULL, err);
    if (status == STATUS_OK && run.status != STATUS_OK) {
        *err = run.err;
        status = run.status;
    }
    for (size_t i = 0; status == STATUS_OK && i < (size_t)l->n_positions * l->n_loops; i++)
        if (!l->cells[i].is_seen)
            status = err_set(err, STATUS_INTERNAL, "loop %zu of position %zu was not observed",
                             i % l->n_loops + 1, i / l->n_loops);
    return status;
}

static void choose_threshold(struct lens *l, const struct session *s, bool has_threshold,
                             double threshold)
{
    float own = s->checkpoint->config.exit_threshold;
    l->exit_threshold = has_threshold ? (float)threshold : own;
    l->is_threshold_assumed = !has_threshold && own >= 1.0f;
    if (l->is_threshold_assumed)
        l->exit_threshold = 0.5f;
}

struct lens_options {
    const char *ids;
    bool chat, as_json, all, has_threshold;
    int top, last;
    double threshold;
};

static enum status run(struct session *s, const struct lens_options *o, const char *prompt,
                       struct err *err)
{
    struct lens l = {.tokenizer = s->tokenizer};
    int32_t *ids = NULL;
    size_t n_ids = 0;
    char path[PATH_MAX];
    const char *real = realpath(s->model_dir, path) != NULL ? path : s->model_dir;
    const char *slash = strrchr(real, '/');
    l.model_name = slash != NULL && slash[1] != '\0' ? slash + 1 : real;
    enum status status = session_prompt_ids(s, o->ids, prompt, o->chat, false, &ids, &n_ids, err);
    if (status != STATUS_OK)
        return status;
    const struct model_config *config = &s->checkpoint->config;
    l.ids = ids;
    l.n_positions = (uint32_t)n_ids;
    l.n_loops = (uint32_t)config->n_loops;
    choose_threshold(&l, s, o->has_threshold, o->threshold);
    l.cells = calloc(n_ids * l.n_loops, sizeof *l.cells);
    l.exit_loops = calloc(n_ids, sizeof *l.exit_loops);
    if (l.cells == NULL || l.exit_loops == NULL) {
        status = err_set(err, STATUS_NO_MEMORY, "no memory for %zu positions", n_ids);
        goto out;
    }
    int top = o->top < config->vocab_size ? o->top : config->vocab_size;
    status = observe(&l, s, (uint32_t)top, err);
    if (status != STATUS_OK)
        goto out;
    lens_decide_exits(&l);
    if (o->as_json) {
        lens_print_json(&l, stdout);
    } else {
        struct terminal terminal;
        terminal_look(STDOUT_FILENO, &terminal);
        uint32_t first = 0;
        if (!o->all && l.n_positions > (uint32_t)o->last)
            first = l.n_positions - (uint32_t)o->last;
        lens_print_table(&l, first, &terminal, stdout);
    }
    fflush(stdout);
out:
    for (size_t i = 0; l.cells != NULL && i < n_ids * l.n_loops; i++) {
        free(l.cells[i].top_ids);
        free(l.cells[i].top_logits);
    }
    free(l.cells);
    free(l.exit_loops);
    free(ids);
    return status;
}

int cli_lens(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct lens_options o = {.top = 5, .last = 20, .threshold = 1.0};
    session_options_init(&so);
    const struct option_spec own[] = {
        {"ids", 0, OPTION_STRING, &o.ids, "IDS", NULL, 0, 0, "the prompt as token ids: 1,2,3",
         NULL},
        {"chat", 0, OPTION_FLAG, &o.chat, NULL, NULL, 0, 0, "the prompt is a user's chat turn",
         NULL},
        {"top", 0, OPTION_INT, &o.top, "N", NULL, 1, INT32_MAX,
         "tokens per position and loop in --json (5)", NULL},
        {"exit-threshold", 'q', OPTION_FLOAT, &o.threshold, "Q", NULL, 1e-9, 1,
         "mark where the cdf reaches Q", &o.has_threshold},
        {"last", 0, OPTION_INT, &o.last, "N", NULL, 1, INT32_MAX,
         "last positions in the table (default 20)", NULL},
        {"all", 0, OPTION_FLAG, &o.all, NULL, NULL, 0, 0, "all positions in the table", NULL},
        {"json", 0, OPTION_FLAG, &o.as_json, NULL, NULL, 0, 0,
         "print one JSON object, full precision", NULL},
    };
    struct option_spec session_specs[SESSION_N_SPECS];
    struct option_group groups[] = {
        {own, sizeof own / sizeof own[0]},
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct err err = {0};
    if (options_parse(groups, 2, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("lens", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 2, &args);
        return CLI_OK;
    }
    const char *prompt = NULL;
    if (session_split_arguments(&args, o.ids, &so.model, &prompt, &err) != STATUS_OK)
        return cli_fail_usage("lens", &err);
    so.needs_tokenizer = o.ids == NULL;
    struct session *session;
    int exit_code;
    if (session_open(&so, program_argv, &session, &exit_code, &err) != STATUS_OK)
        return cli_fail("lens", &err);
    if (session == NULL)
        return exit_code;
    char *owned = NULL;
    enum status status = stdin_prompt_take(&prompt, &owned, &err);
    if (status == STATUS_OK)
        status = run(session, &o, prompt, &err);
    status = session_save_trace(session, status, &err);
    exit_code = status == STATUS_OK ? CLI_OK : cli_fail("lens", &err);
    free(owned);
    session_close(session);
    return exit_code;
}
