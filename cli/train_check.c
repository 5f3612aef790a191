/* Prints what a recipe asks for, after a look whether its files are there. */
#include "cli/train_check.h"

#include "cli/train_report.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NAME_BYTES = 96 };

static enum status check_file(const struct recipe *r, const char *what, const char *name,
                              struct err *err)
{
    char path[PATH_MAX];
    if (name[0] == '\0')
        return STATUS_OK;
    enum status status = recipe_file(r, name, path, sizeof path, err);
    if (status == STATUS_OK && access(path, R_OK) != 0)
        status = err_set(err, STATUS_NOT_FOUND, "the recipe's %s %s cannot be read: %s", what, path,
                         strerror(errno));
    return status;
}

static const char *objective_name(enum recipe_objective objective)
{
    return objective == RECIPE_UNIFORM   ? "uniform"
           : objective == RECIPE_ENTROPY ? "entropy"
                                         : "last";
}

static const char *decay_name(enum recipe_decay decay)
{
    return decay == RECIPE_LINEAR ? "linear" : decay == RECIPE_COSINE ? "cosine" : "constant";
}

static void print_text(const struct recipe *r)
{
    const struct model_config *c = &r->config;
    char name[NAME_BYTES];
    printf("%s: %d layers x %d loops, d %d, ffn %d, %d heads of %d, vocabulary %d: %llu "
           "parameters\n",
           r->name, c->n_layers, c->n_loops, c->d_model, c->d_ffn, c->n_heads, c->head_dim,
           c->vocab_size, (unsigned long long)config_count_parameters(c));
    for (int i = 0; i < r->n_data; i++)
        printf("data %s: %s %s\n", r->data[i].name, r->data[i].task != NULL ? "task" : "texts of",
               r->data[i].task != NULL ? r->data[i].task->name : r->data[i].text);
    printf("levels:");
    for (int i = 0; i < recipe_n_levels(r); i++) {
        train_level_name(r, i, name, sizeof name);
        printf("%s %s", i > 0 ? "," : "", name);
    }
    printf("\n%-12s %9s %6s %6s %21s %-9s %-8s %15s\n", "stage", "steps", "batch", "loops",
           "learning rate", "decay", "loss", "beta");
    for (int i = 0; i < r->n_stages; i++) {
        const struct recipe_stage *s = &r->stages[i];
        printf("%-12s %9llu %6d %6d %9.2e .. %8.2e %-9s %-8s %6.3f .. %5.3f\n", s->name,
               (unsigned long long)s->steps, s->batch, s->loops, (double)s->lr_begin,
               (double)s->lr_end, decay_name(s->decay), objective_name(s->objective),
               (double)s->beta_begin, (double)s->beta_end);
    }
    printf("%llu steps at most, restarts included; ranks * threads up to %d\n",
           (unsigned long long)recipe_total_steps(r), r->shards);
}

static enum status print_json(const struct recipe *r, struct err *err)
{
    char fingerprint[24], name[NAME_BYTES];
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)recipe_fingerprint(r));
    json_t *o =
        json_pack("{s:s, s:s, s:I, s:I, s:i}", "recipe", r->name, "fingerprint", fingerprint,
                  "parameters", (json_int_t)config_count_parameters(&r->config), "steps",
                  (json_int_t)recipe_total_steps(r), "shards", r->shards);
    json_t *levels = json_array(), *stages = json_array();
    for (int i = 0; i < recipe_n_levels(r); i++) {
        train_level_name(r, i, name, sizeof name);
        json_array_append_new(levels, json_string(name));
    }
    for (int i = 0; i < r->n_stages; i++) {
        const struct recipe_stage *s = &r->stages[i];
        json_array_append_new(
            stages, json_pack("{s:s, s:I, s:i, s:i, s:s, s:s, s:[f,f], s:[f,f]}", "name", s->name,
                              "steps", (json_int_t)s->steps, "batch", s->batch, "loops", s->loops,
                              "objective", objective_name(s->objective), "decay",
                              decay_name(s->decay), "lr", (double)s->lr_begin, (double)s->lr_end,
                              "beta", (double)s->beta_begin, (double)s->beta_end));
    }
    json_object_set_new(o, "levels", levels);
    json_object_set_new(o, "stages", stages);
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the recipe as JSON");
    printf("%s\n", text);
    free(text);
    return STATUS_OK;
}

enum status train_check(const struct recipe *r, bool as_json, struct err *err)
{
    enum status status = check_file(r, "tokenizer", r->tokenizer, err);
    for (int i = 0; i < r->n_data && status == STATUS_OK; i++)
        if (r->data[i].task == NULL)
            status = check_file(r, "text", r->data[i].text, err);
    if (status != STATUS_OK)
        return status;
    if (as_json)
        return print_json(r, err);
    print_text(r);
    return STATUS_OK;
}
