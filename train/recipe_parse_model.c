/* Reads "model", "init" and "optimizer": what is trained, from which values, by which rule. */
#include "train/recipe_parse.h"

#include "model/json_input.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const MODEL_FIELDS[] = {
    "architecture",         "hidden_size",         "num_hidden_layers",
    "num_attention_heads",  "num_key_value_heads", "head_dim",
    "intermediate_size",    "vocab_size",          "max_position_embeddings",
    "rms_norm_eps",         "rope_theta",          "total_ut_steps",
    "early_exit_threshold", "tie_word_embeddings", "bos_token_id",
    "eos_token_id"};
static const char *const ARCHITECTURES[] = {"OuroForCausalLM", "LlamaForCausalLM"};

/* Sets what the recipe leaves out. json_object_set_new takes the value also when it fails. */
static bool complete(json_t *config, const char *key, json_t *value)
{
    if (value == NULL)
        return false;
    if (json_object_get(config, key) == NULL)
        return json_object_set_new(config, key, value) == 0;
    json_decref(value);
    return true;
}

/* The object as config.json would have it, for the one parser that knows what fits together. */
static json_t *make_config(const struct recipe_reader *model, const char *architecture,
                           bool is_of_symbols)
{
    json_t *config = json_copy(model->object);
    if (config == NULL)
        return NULL;
    json_object_del(config, "architecture");
    /* config.json of a Llama cannot say it; recipe_parse_model reads it itself. */
    if (strcmp(architecture, "LlamaForCausalLM") == 0)
        json_object_del(config, "total_ut_steps");
    bool ok = complete(config, "architectures", json_pack("[s]", architecture)) &&
              complete(config, "rms_norm_eps", json_real(1e-6)) &&
              complete(config, "rope_theta", json_real(10000)) &&
              complete(config, "max_position_embeddings", json_integer(2048));
    if (ok && is_of_symbols)
        ok = complete(config, "vocab_size", json_integer(TASK_VOCABULARY)) &&
             complete(config, "bos_token_id", json_integer(TASK_BOS)) &&
             complete(config, "eos_token_id", json_integer(TASK_EOS));
    if (ok)
        return config;
    json_decref(config);
    return NULL;
}

static enum status parse_config(const struct recipe_reader *model, const char *architecture,
                                bool is_of_symbols, struct model_config *out)
{
    enum status status = STATUS_OK;
    struct err problem = {0};
    char *text = NULL, origin[RECIPE_PATH_BYTES + 16];
    json_t *config = make_config(model, architecture, is_of_symbols);
    if (config != NULL)
        text = json_dumps(config, JSON_COMPACT);
    json_decref(config);
    if (text == NULL)
        return err_set(model->err, STATUS_NO_MEMORY, "no memory for the model of %s",
                       model->origin);
    snprintf(origin, sizeof origin, "%.1000s: model", model->origin);
    status = config_parse(text, strlen(text), origin, out, &problem);
    free(text);
    /* What breaks a file's format there is a user's value here. */
    return status == STATUS_OK
               ? STATUS_OK
               : err_set(model->err, status == STATUS_CORRUPT ? STATUS_INVALID : status, "%s",
                         problem.message);
}

enum status recipe_parse_model(const struct recipe_reader *top, struct recipe *out)
{
    const struct recipe_names names = RECIPE_NAMES(MODEL_FIELDS);
    const bool is_of_symbols = out->tokenizer[0] == '\0';
    struct recipe_reader model;
    int architecture = 0, loops = 1;
    enum status status = recipe_reader_child(top, "model", &model);
    if (status == STATUS_OK)
        status = recipe_reader_known(&model, &names, 1);
    if (status == STATUS_OK)
        status = recipe_reader_choice(&model, "architecture", RECIPE_NAMES(ARCHITECTURES),
                                      &architecture);
    if (status == STATUS_OK)
        status = recipe_reader_int(&model, "total_ut_steps", 1, MODEL_MAX_LOOPS, &loops);
    if (status == STATUS_OK && !is_of_symbols)
        status = recipe_reader_require(&model, "vocab_size");
    if (status == STATUS_OK)
        status = parse_config(&model, ARCHITECTURES[architecture], is_of_symbols, &out->config);
    if (status != STATUS_OK)
        return status;
    if (!out->config.has_gate)
        out->config.n_loops = loops;
    if (is_of_symbols && out->config.vocab_size != TASK_VOCABULARY)
        return recipe_reader_fail(&model, "vocab_size", NULL,
                                  "%d, the symbols of the tasks (or give a tokenizer)",
                                  TASK_VOCABULARY);
    if (is_of_symbols && (out->config.bos_id != TASK_BOS || out->config.n_eos != 1 ||
                          out->config.eos_ids[0] != TASK_EOS))
        return recipe_reader_fail(
            &model, recipe_reader_has(&model, "bos_token_id") ? "bos_token_id" : "eos_token_id",
            NULL, "bos %d and eos %d, the symbols of the tasks: leave both out", TASK_BOS,
            TASK_EOS);
    return STATUS_OK;
}

enum status recipe_parse_init(const struct recipe_reader *top, struct recipe *out)
{
    static const char *const names[] = {"embed_std", "head_std", "matrix_std", "gain",
                                        "branch_gain"};
    const struct recipe_names known = RECIPE_NAMES(names);
    struct recipe_reader init;
    params_init_defaults(&out->init);
    if (!recipe_reader_has(top, "init"))
        return STATUS_OK;
    float *const values[] = {&out->init.embed_std, &out->init.head_std, &out->init.matrix_std,
                             &out->init.gain, &out->init.branch_gain};
    enum status status = recipe_reader_child(top, "init", &init);
    if (status == STATUS_OK)
        status = recipe_reader_known(&init, &known, 1);
    for (size_t i = 0; i < known.n && status == STATUS_OK; i++)
        status = recipe_reader_float(&init, names[i], 0, 100, values[i]);
    return status;
}

enum status recipe_parse_optimizer(const struct recipe_reader *top, struct recipe *out)
{
    static const char *const names[] = {"betas", "eps", "weight_decay", "clip"};
    const struct recipe_names known = RECIPE_NAMES(names);
    struct recipe_reader r;
    bool is_pair = true;
    out->beta1 = 0.9f;
    out->beta2 = 0.95f;
    out->eps = 1e-8f;
    out->weight_decay = 0.1f;
    out->clip = 1;
    if (!recipe_reader_has(top, "optimizer"))
        return STATUS_OK;
    enum status status = recipe_reader_child(top, "optimizer", &r);
    if (status == STATUS_OK)
        status = recipe_reader_known(&r, &known, 1);
    /* Below 1 also as floats: 1 - beta divides. */
    if (status == STATUS_OK)
        status = recipe_reader_range(&r, "betas", 0, 0.999999, &out->beta1, &out->beta2, &is_pair);
    if (status == STATUS_OK && !is_pair)
        return recipe_reader_fail(&r, "betas", NULL, "a list [beta1, beta2]");
    if (status == STATUS_OK)
        status = recipe_reader_float(&r, "eps", 1e-15, 1, &out->eps);
    if (status == STATUS_OK)
        status = recipe_reader_float(&r, "weight_decay", 0, 10, &out->weight_decay);
    return status == STATUS_OK ? recipe_reader_float(&r, "clip", 1e-6, 1e9, &out->clip) : status;
}
