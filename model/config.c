/* Parses config.json into dimensions that are in range and fit each other. */
#include "model/config.h"

#include "model/json_input.h"

#include <errno.h>
#include <float.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Limits far above any model in sight and low enough that no product of two dimensions leaves
 * int64 and heads * head_dim stays an int. */
enum {
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_WIDTH = 1 << 20,
    MAX_FFN = 1 << 22,
    MAX_VOCAB = 1 << 24,
    MAX_HEADS = 1 << 14,
    MAX_HEAD_DIM = 1 << 12,
    MAX_POSITIONS = 1 << 28
};

/* One JSON object and what messages need to name it. */
struct reader {
    const json_t *object;
    const char *origin;
    struct err *err;
};

/* NULL when the key is absent or null: config.json writes both for "not set". */
static const json_t *get(const struct reader *r, const char *key)
{
    const json_t *value = json_object_get(r->object, key);
    return json_is_null(value) ? NULL : value;
}

static enum status fail_missing(const struct reader *r, const char *key)
{
    return err_set(r->err, STATUS_CORRUPT, "field %s is missing from %s", key, r->origin);
}

static enum status fail_value(const struct reader *r, const char *key, const json_t *value,
                              enum status code, const char *expected)
{
    char shown[JSON_INPUT_SHOWN_BYTES];
    return err_set(r->err, code, "field %s in %s: expected %s, found %s", key, r->origin, expected,
                   json_input_show(value, shown));
}

static enum status convert_int(const struct reader *r, const char *key, const json_t *value,
                               int min, int max, int *out)
{
    json_int_t v = json_integer_value(value);
    if (!json_is_integer(value) || v < min || v > max) {
        char expected[64];
        snprintf(expected, sizeof expected, "an integer from %d to %d", min, max);
        return fail_value(r, key, value, STATUS_CORRUPT, expected);
    }
    *out = (int)v;
    return STATUS_OK;
}

static enum status read_int(const struct reader *r, const char *key, int min, int max, int *out)
{
    const json_t *value = get(r, key);
    return value == NULL ? fail_missing(r, key) : convert_int(r, key, value, min, max, out);
}

/* Leaves *out alone when the key is absent. */
static enum status read_optional_int(const struct reader *r, const char *key, int min, int max,
                                     int *out)
{
    const json_t *value = get(r, key);
    return value == NULL ? STATUS_OK : convert_int(r, key, value, min, max, out);
}

static enum status read_number(const struct reader *r, const char *key, double min, double max,
                               double *out)
{
    const json_t *value = get(r, key);
    if (value == NULL)
        return fail_missing(r, key);
    double v = json_number_value(value);
    if (!json_is_number(value) || !(v >= min && v <= max)) {
        char expected[64];
        snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
        return fail_value(r, key, value, STATUS_CORRUPT, expected);
    }
    *out = v;
    return STATUS_OK;
}

static enum status read_optional_bool(const struct reader *r, const char *key, bool *out)
{
    const json_t *value = get(r, key);
    if (value == NULL)
        return STATUS_OK;
    if (!json_is_boolean(value))
        return fail_value(r, key, value, STATUS_CORRUPT, "true or false");
    *out = json_is_true(value);
    return STATUS_OK;
}

static enum status read_architecture(const struct reader *r, struct model_config *c)
{
    const json_t *value = get(r, "architectures");
    if (value == NULL)
        return fail_missing(r, "architectures");
    if (!json_is_array(value) || json_array_size(value) != 1 ||
        !json_is_string(json_array_get(value, 0)))
        return fail_value(r, "architectures", value, STATUS_CORRUPT, "a list of one name");
    const char *name = json_string_value(json_array_get(value, 0));
    bool is_ouro = strcmp(name, "OuroForCausalLM") == 0;
    if (!is_ouro && strcmp(name, "LlamaForCausalLM") != 0)
        return fail_value(r, "architectures", value, STATUS_UNSUPPORTED,
                          "OuroForCausalLM or LlamaForCausalLM");
    snprintf(c->architecture, sizeof c->architecture, "%s", name);
    c->has_sandwich_norms = is_ouro;
    c->has_gate = is_ouro;
    return STATUS_OK;
}

/* What would change the arithmetic and is not computed here must be absent, null or false. */
static enum status reject_unsupported(const struct reader *r)
{
    static const char *const unset[] = {"attention_bias", "mlp_bias", "use_sliding_window",
                                        "rope_scaling", "quantization_config"};
    for (size_t i = 0; i < sizeof unset / sizeof unset[0]; i++) {
        const json_t *value = get(r, unset[i]);
        if (value != NULL && !json_is_false(value))
            return fail_value(r, unset[i], value, STATUS_UNSUPPORTED,
                              "null or false (this engine does not compute it)");
    }
    /* use_sliding_window: false overrides a window width; without the switch the width is one. */
    const json_t *window = get(r, "sliding_window");
    if (window != NULL && get(r, "use_sliding_window") == NULL)
        return fail_value(r, "sliding_window", window, STATUS_UNSUPPORTED,
                          "null (this engine computes full attention only)");
    const json_t *act = get(r, "hidden_act");
    if (act != NULL && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return fail_value(r, "hidden_act", act,
                          json_is_string(act) ? STATUS_UNSUPPORTED : STATUS_CORRUPT, "\"silu\"");
    const json_t *partial = get(r, "partial_rotary_factor");
    if (partial != NULL && json_number_value(partial) != 1.0)
        return fail_value(r, "partial_rotary_factor", partial, STATUS_UNSUPPORTED, "1");
    return STATUS_OK;
}

static enum status check_layer_types(const struct reader *r, int n_layers)
{
    const json_t *types = get(r, "layer_types");
    if (types == NULL)
        return STATUS_OK;
    if (!json_is_array(types) || json_array_size(types) != (size_t)n_layers) {
        char expected[64];
        snprintf(expected, sizeof expected, "a list of num_hidden_layers = %d names", n_layers);
        return fail_value(r, "layer_types", types, STATUS_CORRUPT, expected);
    }
    for (int i = 0; i < n_layers; i++) {
        const json_t *type = json_array_get(types, (size_t)i);
        if (json_is_string(type) && strcmp(json_string_value(type), "full_attention") == 0)
            continue;
        char key[32];
        snprintf(key, sizeof key, "layer_types[%d]", i);
        return fail_value(r, key, type, json_is_string(type) ? STATUS_UNSUPPORTED : STATUS_CORRUPT,
                          "\"full_attention\"");
    }
    return STATUS_OK;
}

static enum status read_dimensions(const struct reader *r, struct model_config *c)
{
    const struct {
        const char *key;
        int max;
        int *out;
    } dims[] = {
        {"num_hidden_layers", MODEL_MAX_LAYERS, &c->n_layers},
        {"hidden_size", MAX_WIDTH, &c->d_model},
        {"intermediate_size", MAX_FFN, &c->d_ffn},
        {"num_attention_heads", MAX_HEADS, &c->n_heads},
        {"vocab_size", MAX_VOCAB, &c->vocab_size},
        {"max_position_embeddings", MAX_POSITIONS, &c->max_positions},
    };
    enum status status = STATUS_OK;
    for (size_t i = 0; i < sizeof dims / sizeof dims[0] && status == STATUS_OK; i++)
        status = read_int(r, dims[i].key, 1, dims[i].max, dims[i].out);
    if (status != STATUS_OK)
        return status;

    c->n_kv_heads = c->n_heads;
    status = read_optional_int(r, "num_key_value_heads", 1, MAX_HEADS, &c->n_kv_heads);
    if (status != STATUS_OK)
        return status;
    if (c->n_heads % c->n_kv_heads != 0)
        return err_set(r->err, STATUS_CORRUPT,
                       "%s: num_key_value_heads %d does not divide num_attention_heads %d",
                       r->origin, c->n_kv_heads, c->n_heads);

    if (get(r, "head_dim") != NULL) {
        status = read_int(r, "head_dim", 2, MAX_HEAD_DIM, &c->head_dim);
        if (status != STATUS_OK)
            return status;
    } else {
        if (c->d_model % c->n_heads != 0 || c->d_model / c->n_heads > MAX_HEAD_DIM)
            return err_set(r->err, STATUS_CORRUPT,
                           "%s: hidden_size %d / num_attention_heads %d is not a head size from 2 "
                           "to %d, and there is no head_dim",
                           r->origin, c->d_model, c->n_heads, MAX_HEAD_DIM);
        c->head_dim = c->d_model / c->n_heads;
    }
    if (c->head_dim % 2 != 0)
        return err_set(r->err, STATUS_CORRUPT,
                       "%s: head_dim %d is odd, rotary positions need pairs", r->origin,
                       c->head_dim);
    return check_layer_types(r, c->n_layers);
}

static enum status read_rope(const struct reader *r, struct model_config *c)
{
    /* Newer files move rope_theta into an object that also says which scaling there is. */
    const json_t *parameters = get(r, "rope_parameters");
    if (parameters != NULL) {
        const char *type = json_string_value(json_object_get(parameters, "rope_type"));
        if (type == NULL || strcmp(type, "default") != 0)
            return fail_value(r, "rope_parameters", parameters, STATUS_UNSUPPORTED,
                              "an object with rope_type \"default\"");
        struct reader inner = {parameters, r->origin, r->err};
        const json_t *partial = get(&inner, "partial_rotary_factor");
        if (partial != NULL && json_number_value(partial) != 1.0)
            return fail_value(r, "rope_parameters.partial_rotary_factor", partial,
                              STATUS_UNSUPPORTED, "1");
        if (get(&inner, "rope_theta") != NULL)
            return read_number(&inner, "rope_theta", 1, 1e15, &c->rope_theta);
    }
    if (get(r, "rope_theta") == NULL && !c->has_gate) {
        c->rope_theta = 10000; /* Llama files older than the field mean this */
        return STATUS_OK;
    }
    return read_number(r, "rope_theta", 1, 1e15, &c->rope_theta);
}

static enum status read_loops(const struct reader *r, struct model_config *c)
{
    c->n_loops = 1;
    c->exit_threshold = 1;
    if (!c->has_gate) {
        /* The published Llama code runs its layers once whatever the file says. */
        const json_t *steps = get(r, "total_ut_steps");
        if (steps != NULL && json_integer_value(steps) != 1)
            return fail_value(
                r, "total_ut_steps", steps, STATUS_UNSUPPORTED,
                "none in a LlamaForCausalLM (remove it and choose loops with --loops)");
        return STATUS_OK;
    }
    enum status status = read_int(r, "total_ut_steps", 1, MODEL_MAX_LOOPS, &c->n_loops);
    if (status != STATUS_OK || get(r, "early_exit_threshold") == NULL)
        return status;
    double threshold;
    status = read_number(r, "early_exit_threshold", 0, 1, &threshold);
    if (status == STATUS_OK)
        c->exit_threshold = (float)threshold;
    return status;
}

static enum status read_token_ids(const struct reader *r, struct model_config *c)
{
    c->bos_id = -1;
    const int last = c->vocab_size - 1;
    enum status status = read_optional_int(r, "bos_token_id", 0, last, &c->bos_id);
    if (status != STATUS_OK)
        return status;
    const json_t *eos = get(r, "eos_token_id");
    if (eos == NULL)
        return STATUS_OK;
    if (!json_is_array(eos)) {
        c->n_eos = 1;
        return convert_int(r, "eos_token_id", eos, 0, last, &c->eos_ids[0]);
    }
    if (json_array_size(eos) > MODEL_MAX_EOS)
        return fail_value(r, "eos_token_id", eos, STATUS_UNSUPPORTED, "at most 8 ids");
    c->n_eos = (int)json_array_size(eos);
    for (int i = 0; i < c->n_eos && status == STATUS_OK; i++)
        status =
            convert_int(r, "eos_token_id", json_array_get(eos, (size_t)i), 0, last, &c->eos_ids[i]);
    return status;
}

enum status config_parse(const char *json, size_t len_bytes, const char *origin,
                         struct model_config *out, struct err *err)
{
    json_t *root;
    enum status status = json_input_parse(json, len_bytes, origin, &root, err);
    if (status != STATUS_OK)
        return status;
    const struct reader r = {root, origin, err};
    struct model_config c = {0};
    double eps = 0;
    status = read_architecture(&r, &c);
    if (status == STATUS_OK)
        status = reject_unsupported(&r);
    if (status == STATUS_OK)
        status = read_dimensions(&r, &c);
    if (status == STATUS_OK)
        status = read_optional_bool(&r, "tie_word_embeddings", &c.is_tied);
    if (status == STATUS_OK)
        status = read_number(&r, "rms_norm_eps", FLT_MIN, 1, &eps);
    if (status == STATUS_OK)
        status = read_rope(&r, &c);
    if (status == STATUS_OK)
        status = read_loops(&r, &c);
    if (status == STATUS_OK)
        status = read_token_ids(&r, &c);
    c.rms_norm_eps = (float)eps;
    if (status == STATUS_OK)
        *out = c;
    json_decref(root);
    return status;
}

enum status config_load(const char *dir, struct model_config *out, struct err *err)
{
    struct stat info;
    if (stat(dir, &info) != 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return err_set(err, STATUS_NOT_FOUND, "model directory %s does not exist", dir);
        return err_set(err, STATUS_IO, "cannot read model directory %s: %s", dir, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode))
        return err_set(err, STATUS_NOT_FOUND,
                       "%s is not a directory; give the directory that holds config.json", dir);
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/config.json", dir) >= sizeof path)
        return err_set(err, STATUS_INVALID, "the path of model directory %.100s... is too long",
                       dir);
    char *text;
    size_t len_bytes;
    enum status status = json_input_read(path, MAX_CONFIG_BYTES, &text, &len_bytes, err);
    if (status != STATUS_OK)
        return status;
    status = config_parse(text, len_bytes, path, out, err);
    free(text);
    return status;
}

enum status config_set_loops(struct model_config *config, int n_loops, struct err *err)
{
    if (n_loops < 0 || n_loops > MODEL_MAX_LOOPS)
        return err_set(err, STATUS_INVALID,
                       "loops must be from 1 to %d (0 keeps the model's own %d), found %d",
                       MODEL_MAX_LOOPS, config->n_loops, n_loops);
    if (n_loops != 0)
        config->n_loops = n_loops;
    return STATUS_OK;
}

uint64_t config_count_parameters(const struct model_config *c)
{
    const uint64_t d = (uint64_t)c->d_model;
    const uint64_t q = (uint64_t)c->n_heads * (uint64_t)c->head_dim;
    const uint64_t kv = (uint64_t)c->n_kv_heads * (uint64_t)c->head_dim;
    const uint64_t norms = c->has_sandwich_norms ? 4 : 2;
    uint64_t layer = 2 * d * q + 2 * d * kv + 3 * d * (uint64_t)c->d_ffn + norms * d;
    uint64_t embed = (uint64_t)c->vocab_size * d;
    return (uint64_t)c->n_layers * layer + embed * (c->is_tied ? 1 : 2) + d +
           (c->has_gate ? d + 1 : 0);
}

size_t config_kv_bytes_per_position(const struct model_config *config, enum dtype kv_dtype)
{
    return 2 * (size_t)config->n_layers * (size_t)config->n_kv_heads * (size_t)config->head_dim *
           dtype_bytes(kv_dtype);
}
