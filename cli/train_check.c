/* Prints what a recipe asks for, and which of its files are not here. */
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

/* Calls visit for every file that the recipe names and that cannot be read here. A recipe may be
 * looked at where its data is not; training then is an error. */
static enum status visit_missing(const struct recipe *r,
                                 void (*visit)(void *user, const char *what, const char *path,
                                               const char *why),
                                 void *user, struct err *err)
{
    char path[PATH_MAX];
    for (int i = -1; i < r->n_data; i++) {
        const char *name = i < 0 ? r->tokenizer : r->data[i].text;
        if (name[0] == '\0' || (i >= 0 && r->data[i].task != NULL))
            continue;
        enum status status = recipe_file(r, name, path, sizeof path, err);
        if (status != STATUS_OK)
            return status;
        if (access(path, R_OK) != 0)
            visit(user, i < 0 ? "tokenizer" : "text", path, strerror(errno));
    }
    return STATUS_OK;
}

static void print_missing(void *user, const char *what, const char *path, const char *why)
{
    (void)user;
    printf("not here yet: the %s %s: %s\n", what, path, why);
}

static void add_missing(void *user, const char *what, const char *path, const char *why)
{
    (void)what;
    (void)why;
    json_array_append_new(user, json_string(path));
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
    json_t *levels = json_array(), *stages = json_array(), *missing = json_array();
    enum status status = visit_missing(r, add_missing, missing, err);
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
    json_object_set_new(o, "missing_files", missing);
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    json_decref(o);
    if (status != STATUS_OK) {
        free(text);
        return status;
    }
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for the recipe as JSON");
    printf("%s\n", text);
    free(text);
    return STATUS_OK;
}

enum status train_check(const struct recipe *r, bool as_json, struct err *err)
{
    if (as_json)
        return print_json(r, err);
    print_text(r);
    return visit_missing(r, print_missing, NULL, err);
}
