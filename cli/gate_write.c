/* Writes a fitted gate: as a patch, as a model, and what it does as numbers. */
#include "cli/gate.h"

#include "model/atomic_file.h"
#include "model/checkpoint_patch.h"
#include "model/safetensors_write.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *fit_json(const struct gate_run *run)
{
    static const char *const labels[] = {"past", "next", "future"};
    const struct gate_fit_options *f = &run->options->fit;
    int n_loops = run->table.n_loops;
    json_t *curve = json_array(), *means = json_array();
    for (int i = 0; i < run->n_curve; i++)
        json_array_append_new(
            curve, json_pack("[I, f]", (json_int_t)run->curve_steps[i], run->curve_losses[i]));
    for (int i = 0; i < n_loops; i++)
        json_array_append_new(means, json_real(run->report.label_mean[i]));
    return json_pack("{s:s, s:f, s:f, s:f, s:I, s:i, s:I, s:b, s:f, s:f, s:o, s:o}", "label",
                     labels[f->objective.label], "gamma", f->objective.gamma, "sharpness",
                     f->objective.sharpness, "lr", f->lr, "steps", (json_int_t)run->report.n_steps,
                     "batch", f->batch, "seed", (json_int_t)f->seed, "from_zero",
                     run->options->from_zero, "first_loss", run->report.first_loss, "last_loss",
                     run->report.last_loss, "loss", curve, "label_mean", means);
}

char *gate_format(const struct gate_run *run)
{
    const struct checkpoint *c = run->session->checkpoint;
    json_t *root =
        json_pack("{s:s, s:i, s:i, s:{s:I, s:I, s:I}, s:o, s:o}", "model", c->dir, "n_loops",
                  c->config.n_loops, "d_model", c->config.d_model, "train", "texts",
                  (json_int_t)run->train.n_texts, "rows", (json_int_t)run->train.rows.n_rows,
                  "generated", (json_int_t)run->n_generated, "fit", fit_json(run), "held_out",
                  gate_table_json(&run->table));
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    return text;
}

static enum status out_path(char path[PATH_MAX], const struct gate_run *run, const char *name,
                            struct err *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", run->options->out, name);
    if (n < 0 || n >= PATH_MAX)
        return err_set(err, STATUS_INVALID, "the path of --out is too long");
    return STATUS_OK;
}

static enum status write_json(const struct gate_run *run, struct err *err)
{
    char path[PATH_MAX];
    enum status st = out_path(path, run, "gate.json", err);
    if (st != STATUS_OK)
        return st;
    char *text = gate_format(run);
    if (text == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory for %s", path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in place of the terminator */
    st = atomic_file_write(path, text, n + 1, err);
    free(text);
    return st;
}

enum status gate_write(const struct gate_run *run, struct err *err)
{
    static const struct safetensors_pair format = {"format", "pt"};
    const struct safetensors_tensor tensors[2] = {
        {.name = "model.early_exit_gate.weight",
         .dtype = DTYPE_F32,
         .rank = 2,
         .shape = {1, run->gate.d},
         .data = run->gate.weight,
         .len_bytes = (size_t)run->gate.d * sizeof *run->gate.weight},
        {.name = "model.early_exit_gate.bias",
         .dtype = DTYPE_F32,
         .rank = 1,
         .shape = {1},
         .data = &run->gate.bias,
         .len_bytes = sizeof run->gate.bias},
    };
    char path[PATH_MAX];
    enum status st = out_path(path, run, "gate.safetensors", err);
    if (st == STATUS_OK)
        st = safetensors_write(path, tensors, 2, &format, 1, err);
    if (st == STATUS_OK)
        st = write_json(run, err);
    if (st == STATUS_OK)
        st = out_path(path, run, "model", err);
    int merge = run->options->merge;
    uint64_t limit = merge == GATE_MERGE_COPY   ? UINT64_MAX
                     : merge == GATE_MERGE_LINK ? 0
                                                : CHECKPOINT_PATCH_FILE_BYTES;
    if (st == STATUS_OK && merge != GATE_MERGE_NONE)
        st = checkpoint_patch(run->session->checkpoint, path, tensors, 2, limit, err);
    return st;
}
