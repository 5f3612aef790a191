/* `carousel gate`: fits the exit gate of a model to texts (Stage II), the model stays as it is. */
#include "cli/gate.h"

#include "cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char usage[] =
    "usage: carousel gate [MODEL] --data TEXTS.jsonl --out DIR [options]\n"
    "Fits the exit gate to texts; the rest of the model stays as it is. Lines are\n"
    "{\"prompt\", \"answer\"}, {\"prompt\"} (continued by the model), {\"text\"} or {\"ids\"}.\n"
    "DIR gets gate.safetensors, gate.json and model, a directory with the new gate.";

static const char default_thresholds[] = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,0.95,0.99,1";

/* ---- the run -------------------------------------------------------------------------------- */

static void on_report(void *user, uint64_t step, uint64_t n_steps, double loss)
{
    struct gate_run *run = user;
    (void)n_steps;
    if (run->n_curve == GATE_CURVE_POINTS)
        return;
    run->curve_steps[run->n_curve] = (double)step;
    run->curve_losses[run->n_curve++] = loss;
}

static float stored_value(const struct weight *w, size_t i)
{
    const unsigned char *at = (const unsigned char *)w->data + i * dtype_bytes(w->dtype);
    float value;
    uint16_t half;
    if (w->dtype == DTYPE_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    return w->dtype == DTYPE_BF16 ? dtype_from_bf16(half) : dtype_from_f16(half);
}

static enum status fit(struct gate_run *run, struct err *err)
{
    const struct model_weights *weights = &run->session->checkpoint->weights;
    const struct gate_options *o = run->options;
    struct gate_fit_options options = o->fit;
    run->gate.d = run->session->checkpoint->config.d_model;
    run->gate.weight = calloc((size_t)run->gate.d, sizeof *run->gate.weight);
    if (run->gate.weight == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for a gate of %d numbers", run->gate.d);
    for (int i = 0; i < run->gate.d && !o->from_zero; i++)
        run->gate.weight[i] = stored_value(&weights->gate, (size_t)i);
    run->gate.bias = o->from_zero ? 0 : stored_value(&weights->gate_bias, 0);
    options.on_report = on_report;
    options.user = run;
    /* At most as many points as the curve has room for. */
    uint64_t n = run->train.rows.n_rows;
    double n_steps = o->fit.steps > 0 ? (double)o->fit.steps
                                      : o->fit.epochs * (double)n / (double)o->fit.batch + 1;
    options.report_every = (uint64_t)(n_steps / (GATE_CURVE_POINTS - 1)) + 1;
    return gate_fit(&run->train.rows, &options, &run->gate, &run->report, err);
}

static enum status check_model(const struct session *s, struct err *err)
{
    const struct model_config *config = &s->checkpoint->config;
    if (!config->has_gate)
        return err_set(err, STATUS_UNSUPPORTED,
                       "%s is a %s, an architecture without an exit gate; a gate can be fitted to "
                       "an OuroForCausalLM",
                       s->model_dir, config->architecture);
    if (config->n_loops < 2)
        return err_set(err, STATUS_INVALID,
                       "%s runs %d loop: there is nothing for a gate to decide; give --loops 2 or "
                       "more",
                       s->model_dir, config->n_loops);
    return STATUS_OK;
}

static enum status take_thresholds(const char *text, struct gate_table *table, struct err *err)
{
    size_t n = 0;
    enum status st =
        options_parse_floats(text, table->thresholds, GATE_TABLE_MAX_THRESHOLDS, &n, err);
    for (size_t i = 0; st == STATUS_OK && i < n; i++)
        if (!(table->thresholds[i] > 0 && table->thresholds[i] <= 1))
            st = err_set(err, STATUS_INVALID, "--thresholds: %g is outside (0, 1]",
                         (double)table->thresholds[i]);
    table->n_thresholds = (int)n;
    return st;
}

/* Before anything is computed or written: a place for the results that is not the model's. */
static enum status make_out(const struct gate_run *run, struct err *err)
{
    const struct gate_options *o = run->options;
    char path[GATE_PATH_BYTES];
    struct stat own, model;
    if (mkdir(o->out, 0777) != 0 && errno != EEXIST)
        return err_set(err, STATUS_IO, "cannot make %s: %s", o->out, strerror(errno));
    int n = snprintf(path, sizeof path, "%s/model", o->out);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(err, STATUS_INVALID, "the path of --out is too long");
    if (o->merge != GATE_MERGE_NONE && stat(path, &own) == 0 &&
        stat(run->session->checkpoint->dir, &model) == 0 && own.st_dev == model.st_dev &&
        own.st_ino == model.st_ino)
        return err_set(err, STATUS_INVALID,
                       "%s is the model itself; give another --out than %s, or --merge none", path,
                       o->out);
    return STATUS_OK;
}

static enum status run_all(struct gate_run *run, struct err *err)
{
    const struct gate_options *o = run->options;
    enum status st = check_model(run->session, err);
    if (st == STATUS_OK)
        st = make_out(run, err);
    if (st == STATUS_OK)
        st = gate_collect(run, err);
    if (st == STATUS_OK)
        st = fit(run, err);
    if (st == STATUS_OK)
        st = gate_table_fill(&run->table, &run->held_out.rows, &run->gate, err);
    if (st == STATUS_OK)
        st = gate_write(run, err);
    if (st != STATUS_OK)
        return st;
    if (o->as_json) {
        char *text = gate_format(run);
        if (text == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for the result");
        puts(text);
        free(text);
        return STATUS_OK;
    }
    printf("%llu rows of %llu texts, %llu of them continued by the model; loss %.4f -> %.4f in "
           "%llu steps\n",
           (unsigned long long)run->train.rows.n_rows, (unsigned long long)run->train.n_texts,
           (unsigned long long)run->n_generated, run->report.first_loss, run->report.last_loss,
           (unsigned long long)run->report.n_steps);
    gate_table_print(&run->table, stdout);
    printf("\nwrote %s/gate.safetensors, gate.json%s\n", o->out,
           o->merge == GATE_MERGE_NONE ? "" : ", model");
    return STATUS_OK;
}

/* ---- options -------------------------------------------------------------------------------- */

enum { OWN_SPECS = 24 };

static struct option_group own_options(struct gate_options *o, int *label, int *steps,
                                       bool *has_steps, bool *has_epochs,
                                       struct option_spec specs[OWN_SPECS])
{
    const struct option_spec table[] = {
        {"data", 'i', OPTION_STRING, &o->data, "FILE", NULL, 0, 0,
         "texts, one JSON line each (-: "
         "standard input)",
         NULL},
        {"out", 'o', OPTION_STRING, &o->out, "DIR", NULL, 0, 0, "where the results go", NULL},
        {"label", 0, OPTION_CHOICE, label, NULL, "past|next|future", 0, 0,
         "what a loop must still gain (default future)", NULL},
        {"gamma", 0, OPTION_FLOAT, &o->fit.objective.gamma, "G", NULL, -1e6, 1e6,
         "gain of loss worth another loop (default 0.1)", NULL},
        {"sharpness", 0, OPTION_FLOAT, &o->fit.objective.sharpness, "K", NULL, 1e-6, 1e6,
         "of the label around gamma (default 50)", NULL},
        {"steps", 0, OPTION_INT, steps, "N", NULL, 1, INT32_MAX, "Adam steps (default 400)",
         has_steps},
        {"epochs", 0, OPTION_FLOAT, &o->fit.epochs, "N", NULL, 1e-3, 1e6,
         "passes over the rows, in place of --steps", has_epochs},
        {"lr", 0, OPTION_FLOAT, &o->fit.lr, "LR", NULL, 1e-9, 1e3, "learning rate (default 0.01)",
         NULL},
        {"batch", 0, OPTION_INT, &o->fit.batch, "N", NULL, 1, INT32_MAX,
         "rows a step (default 512)", NULL},
        {"from-zero", 0, OPTION_FLAG, &o->from_zero, NULL, NULL, 0, 0,
         "start from a gate of zeros, not the model's", NULL},
        {"validation", 0, OPTION_STRING, &o->validation, "FILE", NULL, 0, 0,
         "texts for the table (default: some of --data)", NULL},
        {"holdout", 0, OPTION_FLOAT, &o->holdout, "SHARE", NULL, 0, 1,
         "of --data for the table (default 0.1)", NULL},
        {"thresholds", 'q', OPTION_STRING, &o->thresholds, "Q,Q,..", NULL, 0, 0,
         "of the table (default 0.1 .. 1)", NULL},
        {"max-tokens", 'n', OPTION_INT, &o->max_tokens, "N", NULL, 1, INT32_MAX,
         "of a continuation (default 128)", NULL},
        {"chat", 0, OPTION_FLAG, &o->chat, NULL, NULL, 0, 0, "prompts are a user's chat turns",
         NULL},
        {"seed", 0, OPTION_U64, &o->fit.seed, "S", NULL, 0, 0,
         "of the split and the order of rows (default 0)", NULL},
        {"merge", 0, OPTION_CHOICE, &o->merge, NULL, "auto|copy|link|none", 0, 0,
         "weights of DIR/model: auto links above 256 MiB", NULL},
        {"keep-states", 0, OPTION_FLAG, &o->keeps_states, NULL, NULL, 0, 0,
         "leave DIR/states-*.bin", NULL},
        {"quiet", 0, OPTION_FLAG, &o->is_quiet, NULL, NULL, 0, 0, "no progress", NULL},
        {"json", 0, OPTION_FLAG, &o->as_json, NULL, NULL, 0, 0, "print gate.json, no table", NULL},
    };
    _Static_assert(sizeof table / sizeof table[0] <= OWN_SPECS, "specs has room for all");
    memcpy(specs, table, sizeof table);
    return (struct option_group){specs, sizeof table / sizeof table[0]};
}

static enum status check_options(const struct gate_options *o, bool has_both, struct err *err)
{
    if (o->data == NULL)
        return err_set(err, STATUS_INVALID, "no texts; give --data FILE (- for standard input)");
    if (o->out == NULL)
        return err_set(err, STATUS_INVALID, "no place for the results; give --out DIR");
    /* Noticed now and not after a run over all texts. */
    if (o->validation == NULL && !(o->holdout > 0 && o->holdout < 1))
        return err_set(err, STATUS_INVALID,
                       "--holdout %g leaves no texts to fit on or none to judge by; give a share "
                       "between 0 and 1, or a --validation file",
                       o->holdout);
    if (has_both)
        return err_set(err, STATUS_INVALID, "--steps and --epochs: give one of them");
    return STATUS_OK;
}

int cli_gate(int argc, char **argv, char **program_argv)
{
    struct session_options so;
    struct gate_options o = {.holdout = 0.1, .thresholds = default_thresholds};
    bool has_steps = false, has_epochs = false;
    session_options_init(&so);
    gate_fit_options_init(&o.fit);
    int label = (int)o.fit.objective.label, steps = (int)o.fit.steps;
    struct option_spec own[OWN_SPECS], session_specs[SESSION_N_SPECS];
    struct option_group groups[] = {
        own_options(&o, &label, &steps, &has_steps, &has_epochs, own),
        session_options_group(&so, session_specs),
    };
    struct options_result args;
    struct gate_run run = {.options = &o};
    struct err err = {0};
    if (options_parse(groups, 2, argc, argv, &args, &err) != STATUS_OK)
        return cli_fail_usage("gate", &err);
    if (args.wants_help) {
        options_print_help(usage, groups, 2, &args);
        return CLI_OK;
    }
    o.fit.objective.label = (enum gate_label)label;
    o.fit.steps = has_epochs ? 0 : (uint64_t)steps;
    if (session_take_model(&args, &so.model, &err) != STATUS_OK ||
        check_options(&o, has_steps && has_epochs, &err) != STATUS_OK ||
        take_thresholds(o.thresholds, &run.table, &err) != STATUS_OK)
        return cli_fail_usage("gate", &err);
    int exit_code;
    if (session_open(&so, program_argv, &run.session, &exit_code, &err) != STATUS_OK)
        return cli_fail("gate", &err);
    if (run.session == NULL)
        return exit_code;
    enum status status = run_all(&run, &err);
    status = session_save_trace(run.session, status, &err);
    exit_code = status == STATUS_OK ? CLI_OK : cli_fail("gate", &err);
    free(run.gate.weight);
    gate_rows_close(&run.train.rows);
    gate_rows_close(&run.held_out.rows);
    session_close(run.session);
    return exit_code;
}
