/* Writes a model's dimensions so that config_load gets the same ones back. */
#include "model/config_write.h"

#include "model/atomic_file.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUMBER_BYTES = 40 };

/* As few digits as read back to `value`; a decimal point or an exponent marks it as a real. */
static const char *show_real(double value, bool is_float, char text[NUMBER_BYTES])
{
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, NUMBER_BYTES - 2, "%.*g", digits, value);
        double back = strtod(text, NULL);
        if (is_float ? (float)back == (float)value : back == value)
            break;
    }
    /* 1e+04 is what one digit of 10000 looks like; write what people expect to read. */
    if (strchr(text, 'e') != NULL && value >= 1 && value < 1e15)
        snprintf(text, NUMBER_BYTES - 2, "%.0f", value);
    if (strpbrk(text, ".en") == NULL)
        strcat(text, ".0");
    return text;
}

static void print_ids(FILE *out, const struct model_config *c)
{
    if (c->bos_id >= 0)
        fprintf(out, " \"bos_token_id\": %d,\n", c->bos_id);
    else
        fprintf(out, " \"bos_token_id\": null,\n");
    fprintf(out, " \"eos_token_id\": ");
    if (c->n_eos == 0)
        fprintf(out, "null");
    for (int i = 0; i < c->n_eos; i++)
        fprintf(out, "%s%d", i > 0 ? ", " : c->n_eos > 1 ? "[" : "", c->eos_ids[i]);
    fprintf(out, "%s,\n \"pad_token_id\": null,\n", c->n_eos > 1 ? "]" : "");
}

static void print_config(FILE *out, const struct model_config *c)
{
    char number[NUMBER_BYTES];
    fprintf(out, "{\n \"architectures\": [\n  \"%s\"\n ],\n \"model_type\": \"%s\",\n",
            c->architecture, c->has_gate ? "ouro" : "llama");
    fprintf(out, " \"hidden_size\": %d,\n \"num_hidden_layers\": %d,\n", c->d_model, c->n_layers);
    fprintf(out, " \"num_attention_heads\": %d,\n \"num_key_value_heads\": %d,\n", c->n_heads,
            c->n_kv_heads);
    fprintf(out, " \"head_dim\": %d,\n \"intermediate_size\": %d,\n \"vocab_size\": %d,\n",
            c->head_dim, c->d_ffn, c->vocab_size);
    fprintf(out, " \"rms_norm_eps\": %s,\n", show_real(c->rms_norm_eps, true, number));
    fprintf(out, " \"rope_theta\": %s,\n \"rope_scaling\": null,\n",
            show_real(c->rope_theta, false, number));
    if (c->has_gate)
        fprintf(out, " \"total_ut_steps\": %d,\n \"early_exit_threshold\": %s,\n", c->n_loops,
                show_real(c->exit_threshold, true, number));
    fprintf(out, " \"max_position_embeddings\": %d,\n \"torch_dtype\": \"float32\",\n",
            c->max_positions);
    print_ids(out, c);
    fprintf(out, " \"tie_word_embeddings\": %s,\n \"hidden_act\": \"silu\",\n",
            c->is_tied ? "true" : "false");
    fprintf(out, " \"attention_dropout\": 0.0,\n \"attention_bias\": false,\n \"use_cache\": true");
    if (c->has_gate) {
        fprintf(out, ",\n \"use_sliding_window\": false,\n \"sliding_window\": null,\n");
        fprintf(out, " \"max_window_layers\": %d,\n \"layer_types\": [\n", c->n_layers);
        for (int i = 0; i < c->n_layers; i++)
            fprintf(out, "  \"full_attention\"%s\n", i + 1 < c->n_layers ? "," : "");
        fprintf(out, " ]");
    } else {
        fprintf(out, ",\n \"mlp_bias\": false");
    }
    fprintf(out, ",\n \"initializer_range\": 0.02\n}\n");
}

enum status config_format(const struct model_config *config, char **out, struct err *err)
{
    char *text = NULL;
    size_t len_bytes = 0;
    FILE *stream = open_memstream(&text, &len_bytes);
    if (stream != NULL) {
        print_config(stream, config);
        bool is_whole = ferror(stream) == 0;
        if (fclose(stream) == 0 && is_whole) {
            *out = text;
            return STATUS_OK;
        }
        free(text);
    }
    return err_set(err, STATUS_NO_MEMORY, "no memory for the text of config.json");
}

enum status config_write(const char *dir, const struct model_config *config, struct err *err)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/config.json", dir) >= sizeof path)
        return err_set(err, STATUS_INVALID, "the path of model directory %.100s... is too long",
                       dir);
    char *text = NULL;
    enum status status = config_format(config, &text, err);
    if (status == STATUS_OK)
        status = atomic_file_write(path, text, strlen(text), err);
    free(text);
    return status;
}
