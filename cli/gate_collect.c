/* Runs texts through the engine and keeps what every loop said of their rows in a file. */
#include "cli/gate.h"

#include "cli/gate_source.h"
#include "cli/progress.h"
#include "cli/teacher.h"
#include "cluster/host.h"
#include "train/random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

struct collect {
    struct gate_run *run;
    struct gate_source source;
    bool is_validation; /* all texts of this file are held out */
    struct progress progress;
    struct progress_facts facts;
    uint64_t began_ns;
};

/* Text and side of a row, in what teacher carries along: the number of the text's first row on its
 * side, and which side it is. */
static void *pack_place(uint64_t first_row, bool is_held_out)
{
    return (void *)(uintptr_t)(first_row << 1 | (is_held_out ? 1 : 0));
}

/* A line is always on the same side for a seed, whatever is around it. */
static bool is_held_out(const struct collect *c, uint64_t line)
{
    const struct gate_options *o = c->run->options;
    struct random r = random_of(o->fit.seed, line, 0x686f6c64);
    return c->is_validation || (o->validation == NULL && random_uniform(&r) < o->holdout);
}

static enum status next(void *user, struct teacher_text *text, bool *has_text, struct err *err)
{
    struct collect *c = user;
    const struct gate_source_text *from;
    enum status st = gate_source_next(&c->source, &from, err);
    *has_text = st == STATUS_OK && from != NULL;
    if (!*has_text)
        return st;
    bool is_held = is_held_out(c, from->line);
    struct gate_side *side = is_held ? &c->run->held_out : &c->run->train;
    *text = (struct teacher_text){
        .ids = from->ids,
        .n_ids = (uint32_t)from->n_ids,
        .first_target = from->first_target,
        .user = pack_place(side->n_given, is_held),
    };
    side->n_given += from->n_ids - from->first_target;
    side->n_texts++;
    return STATUS_OK;
}

static enum status on_row(void *user, const struct teacher_row *row, struct err *err)
{
    struct collect *c = user;
    uintptr_t place = (uintptr_t)row->user;
    struct gate_side *side = place & 1 ? &c->run->held_out : &c->run->train;
    struct gate_row out = {.index = row->index, .hidden = row->hidden};
    for (uint32_t t = 0; t < row->n_loops; t++) {
        if (!isfinite(row->logprobs[t]))
            return err_set(err, STATUS_CORRUPT,
                           "text %" PRIu64 ": token %" PRId32
                           " has probability 0 after loop %" PRIu32 ": its loss is not finite",
                           row->text, row->target, t + 1);
        out.ce[t] = -row->logprobs[t];
        out.lambda[t] = row->lambdas[t];
        out.hits |= (uint32_t)row->hits[t] << t;
    }
    c->facts.n_tokens++;
    return gate_rows_put(&side->rows, (uint64_t)(place >> 1) + row->index, &out, err);
}

static enum status on_text(void *user, uint64_t text, void *text_user, struct err *err)
{
    struct collect *c = user;
    (void)text;
    (void)text_user;
    (void)err;
    uint64_t now_ns = host_now_ns();
    c->facts.n_done++;
    c->facts.elapsed_s = (double)(now_ns - c->began_ns) / 1e9;
    c->facts.sum_exit_loops = c->facts.n_tokens * (uint64_t)c->run->train.rows.n_loops;
    progress_update(&c->progress, &c->facts, now_ns);
    return STATUS_OK;
}

static enum status read_file(struct gate_run *run, const char *path, bool is_validation,
                             struct err *err)
{
    const struct gate_options *o = run->options;
    struct collect c = {.run = run, .is_validation = is_validation};
    enum status st =
        gate_source_open(&c.source, run->session, path, o->chat, (uint32_t)o->max_tokens, err);
    if (st != STATUS_OK)
        return st;
    progress_init(&c.progress, "gate: texts", o->is_quiet);
    batch_input_count(path, &c.facts.n_total);
    c.began_ns = host_now_ns();
    const struct teacher_options options = {.wants_hidden = true};
    const struct teacher_listener listener = {next, on_row, on_text, &c};
    st = teacher_run(run->session, &options, &listener, err);
    run->n_generated += c.source.n_generated;
    gate_source_close(&c.source);
    progress_clear(&c.progress);
    return st;
}

static enum status make_file(struct gate_run *run, const char *name, struct gate_rows *rows,
                             struct err *err)
{
    const struct model_config *config = &run->session->checkpoint->config;
    char path[GATE_PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/%s", run->options->out, name);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(err, STATUS_INVALID, "the path of --out is too long");
    return gate_rows_create(path, run->options->keeps_states, config->n_loops, config->d_model,
                            rows, err);
}

enum status gate_collect(struct gate_run *run, struct err *err)
{
    const struct gate_options *o = run->options;
    enum status st;
    if ((st = make_file(run, "states-train.bin", &run->train.rows, err)) ||
        (st = make_file(run, "states-held-out.bin", &run->held_out.rows, err)) ||
        (st = read_file(run, o->data, false, err)))
        return st;
    if (o->validation != NULL && (st = read_file(run, o->validation, true, err)) != STATUS_OK)
        return st;
    if (run->train.n_texts == 0)
        return err_set(err, STATUS_INVALID,
                       "%s has no text to fit on (%" PRIu64 " held out); give more texts, or a "
                       "smaller --holdout",
                       o->data, run->held_out.n_texts);
    if (run->held_out.n_texts == 0)
        return err_set(err, STATUS_INVALID,
                       "no text of the %" PRIu64 " in %s is held out; give more texts, a larger "
                       "--holdout than %g, or a --validation file",
                       run->train.n_texts, o->validation != NULL ? o->validation : o->data,
                       o->holdout);
    return STATUS_OK;
}
