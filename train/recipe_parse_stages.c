/* Reads "stages" and "shards": what is trained on how long, and how the rates move. */
#include "train/recipe_parse.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const STAGE_FIELDS[] = {
    "name",         "steps",  "tokens",    "batch", "seq_length", "lr",
    "decay",        "warmup", "objective", "beta",  "loops",      "rope_theta",
    "weight_decay", "mix",    "looping",   "until", "min_steps",  "supervise"};
static const uint64_t MAX_STEPS = 1000000000000;

static enum status read_mix(const struct recipe_reader *r, const struct recipe *recipe,
                            struct recipe_stage *s)
{
    const char *items[RECIPE_MAX_DATA];
    double sum = 0;
    for (int i = 0; i < recipe->n_data; i++)
        items[i] = recipe->data[i].name;
    if (recipe_reader_has(r, "mix")) {
        const struct recipe_names names = {items, (size_t)recipe->n_data};
        struct recipe_reader mix;
        enum status status = recipe_reader_child(r, "mix", &mix);
        if (status == STATUS_OK)
            status = recipe_reader_known(&mix, &names, 1);
        for (int i = 0; i < recipe->n_data && status == STATUS_OK; i++)
            status = recipe_reader_float(&mix, items[i], 0, 1e6, &s->data_weights[i]);
        if (status != STATUS_OK)
            return status;
    } else {
        for (int i = 0; i < recipe->n_data; i++)
            s->data_weights[i] = 1;
    }
    for (int i = 0; i < recipe->n_data; i++)
        sum += s->data_weights[i];
    if (!(sum >= 1e-6))
        return recipe_reader_fail(r, "mix", NULL, "a weight above 0 for one source at least");
    for (int i = 0; i < recipe->n_data; i++)
        s->data_weights[i] = (float)(s->data_weights[i] / sum);
    return STATUS_OK;
}

/* Which kinds of sources the stage draws from. */
static void find_kinds(const struct recipe *recipe, const struct recipe_stage *s, bool *has_text,
                       bool *has_task)
{
    *has_text = *has_task = false;
    for (int i = 0; i < recipe->n_data; i++)
        if (s->data_weights[i] > 0)
            *(recipe->data[i].task == NULL ? has_text : has_task) = true;
}

static enum status read_length(const struct recipe_reader *r, const struct recipe *recipe,
                               struct recipe_stage *s)
{
    bool has_text, has_task;
    double tokens = 0;
    find_kinds(recipe, s, &has_text, &has_task);
    enum status status = recipe_reader_require(r, "batch");
    if (status == STATUS_OK)
        status = recipe_reader_int(r, "batch", 1, 1 << 20, &s->batch);
    if (status == STATUS_OK && has_text)
        status = recipe_reader_require(r, "seq_length");
    if (status == STATUS_OK)
        status =
            recipe_reader_int(r, "seq_length", 2, recipe->config.max_positions, &s->seq_length);
    if (status != STATUS_OK)
        return status;
    if (!has_text && recipe_reader_has(r, "seq_length"))
        return recipe_reader_fail(r, "seq_length", NULL,
                                  "none in a stage without texts: tasks bring their own length");
    if (!recipe_reader_has(r, "tokens")) {
        status = recipe_reader_require(r, "steps");
        return status == STATUS_OK ? recipe_reader_count(r, "steps", MAX_STEPS, &s->steps) : status;
    }
    if (recipe_reader_has(r, "steps"))
        return recipe_reader_fail(r, "tokens", NULL, "either steps or tokens, not both");
    if (has_task)
        return recipe_reader_fail(r, "tokens", NULL,
                                  "steps in a stage with tasks: their sequences vary in length");
    status = recipe_reader_double(r, "tokens", 1, 1e18, &tokens);
    double steps = ceil(tokens / ((double)s->batch * s->seq_length));
    if (status == STATUS_OK && steps > (double)MAX_STEPS)
        return recipe_reader_fail(r, "tokens", NULL, "at most %g steps of batch * seq_length",
                                  (double)MAX_STEPS);
    s->steps = (uint64_t)steps;
    return status;
}

static enum status read_rates(const struct recipe_reader *r, struct recipe_stage *s)
{
    static const char *const decays[] = {"constant", "linear", "cosine"};
    bool is_pair = false;
    int decay = -1;
    enum status status = recipe_reader_require(r, "lr");
    if (status == STATUS_OK)
        status = recipe_reader_range(r, "lr", 0, 10, &s->lr_begin, &s->lr_end, &is_pair);
    if (status == STATUS_OK)
        status = recipe_reader_choice(r, "decay", RECIPE_NAMES(decays), &decay);
    if (status == STATUS_OK)
        status = recipe_reader_count(r, "warmup", s->steps, &s->warmup);
    if (status != STATUS_OK)
        return status;
    if (decay < 0)
        decay = is_pair ? RECIPE_LINEAR : RECIPE_CONSTANT;
    s->decay = (enum recipe_decay)decay;
    if (decay == RECIPE_CONSTANT && is_pair)
        return recipe_reader_fail(r, "lr", NULL, "one number with decay constant");
    if (decay != RECIPE_CONSTANT && !is_pair)
        return recipe_reader_fail(r, "lr", NULL, "[begin, end] with decay %s", decays[decay]);
    return STATUS_OK;
}

static enum status read_objective(const struct recipe_reader *r, const struct recipe *recipe,
                                  struct recipe_stage *s)
{
    static const char *const objectives[] = {"uniform", "entropy", "last"};
    int objective = 0;
    bool is_pair;
    enum status status = recipe_reader_require(r, "objective");
    if (status == STATUS_OK)
        status = recipe_reader_choice(r, "objective", RECIPE_NAMES(objectives), &objective);
    if (status != STATUS_OK)
        return status;
    s->objective = (enum recipe_objective)objective;
    static const char *const supervise[] = {"all", "from_level"};
    int from_level = 0;
    if (recipe_reader_has(r, "supervise") && s->objective != RECIPE_UNIFORM)
        return recipe_reader_fail(r, "supervise", NULL, "none with objective %s (uniform has one)",
                                  objectives[objective]);
    status = recipe_reader_choice(r, "supervise", RECIPE_NAMES(supervise), &from_level);
    if (status != STATUS_OK)
        return status;
    s->from_level = from_level == 1;
    if (s->objective != RECIPE_ENTROPY) {
        if (recipe_reader_has(r, "beta"))
            return recipe_reader_fail(r, "beta", NULL, "none with objective %s (entropy has one)",
                                      objectives[objective]);
        return STATUS_OK;
    }
    if (!recipe->config.has_gate)
        return recipe_reader_fail(r, "objective", NULL,
                                  "uniform or last for a %s, which has no gate",
                                  recipe->config.architecture);
    status = recipe_reader_require(r, "beta");
    return status == STATUS_OK
               ? recipe_reader_range(r, "beta", 0, 100, &s->beta_begin, &s->beta_end, &is_pair)
               : status;
}

static enum status read_looping(const struct recipe_reader *r, const struct recipe *recipe,
                                struct recipe_stage *s)
{
    static const char *const names[] = {"weight", "block"};
    const struct recipe_names known = RECIPE_NAMES(names);
    struct recipe_reader looping;
    if (!recipe_reader_has(r, "looping"))
        return STATUS_OK;
    const int n_layers = recipe->config.n_layers;
    enum status status = recipe_reader_child(r, "looping", &looping);
    if (status == STATUS_OK)
        status = recipe_reader_known(&looping, &known, 1);
    for (size_t i = 0; i < known.n && status == STATUS_OK; i++)
        status = recipe_reader_require(&looping, names[i]);
    if (status == STATUS_OK)
        status = recipe_reader_float(&looping, "weight", 0, 1e6, &s->looping_weight);
    if (status == STATUS_OK)
        status = recipe_reader_int(&looping, "block", 1, MODEL_MAX_LAYERS, &s->looping_block);
    if (status == STATUS_OK && (s->looping_block >= n_layers || n_layers % s->looping_block != 0))
        return recipe_reader_fail(&looping, "block", NULL,
                                  "a divisor of num_hidden_layers %d smaller than it", n_layers);
    return status;
}

static enum status read_end(const struct recipe_reader *r, struct recipe_stage *s)
{
    /* "until" names a step of the curriculum, which is read later. */
    enum status status = recipe_reader_count(r, "min_steps", s->steps, &s->min_steps);
    s->until_track = s->until_step = -1;
    if (status == STATUS_OK && recipe_reader_has(r, "min_steps") && !recipe_reader_has(r, "until"))
        return recipe_reader_fail(r, "min_steps", NULL, "none without until");
    return status;
}

static enum status read_stage(const struct recipe_reader *r, const struct recipe *recipe,
                              struct recipe_stage *s)
{
    const struct recipe_names known = RECIPE_NAMES(STAGE_FIELDS);
    s->loops = recipe->config.n_loops;
    s->rope_theta = recipe->config.rope_theta;
    s->weight_decay = recipe->weight_decay;
    enum status status = recipe_reader_known(r, &known, 1);
    if (status == STATUS_OK)
        status = recipe_reader_text(r, "name", sizeof s->name, s->name);
    if (status == STATUS_OK)
        status = read_mix(r, recipe, s);
    if (status == STATUS_OK)
        status = read_length(r, recipe, s);
    if (status == STATUS_OK && s->steps == 0)
        return recipe_reader_fail(r, "steps", NULL, "one step at least");
    if (status == STATUS_OK)
        status = read_rates(r, s);
    if (status == STATUS_OK)
        status = read_objective(r, recipe, s);
    if (status == STATUS_OK)
        status = recipe_reader_int(r, "loops", 1, MODEL_MAX_LOOPS, &s->loops);
    if (status == STATUS_OK)
        status = recipe_reader_double(r, "rope_theta", 1, 1e15, &s->rope_theta);
    if (status == STATUS_OK)
        status = recipe_reader_float(r, "weight_decay", 0, 10, &s->weight_decay);
    if (status == STATUS_OK)
        status = read_looping(r, recipe, s);
    return status == STATUS_OK ? read_end(r, s) : status;
}

/* Given, or the largest power of two up to 8 that divides every batch. */
static enum status read_shards(const struct recipe_reader *top, struct recipe *out)
{
    out->shards = 8;
    if (!recipe_reader_has(top, "shards")) {
        for (int i = 0; i < out->n_stages; i++)
            while (out->stages[i].batch % out->shards != 0)
                out->shards /= 2;
        return STATUS_OK;
    }
    enum status status = recipe_reader_int(top, "shards", 1, RECIPE_MAX_SHARDS, &out->shards);
    if (status != STATUS_OK)
        return status;
    if ((out->shards & (out->shards - 1)) != 0)
        return recipe_reader_fail(top, "shards", NULL, "a power of two");
    for (int i = 0; i < out->n_stages; i++)
        if (out->stages[i].batch % out->shards != 0)
            return recipe_reader_fail(top, "shards", NULL, "a divisor of stages[%d].batch %d", i,
                                      out->stages[i].batch);
    return STATUS_OK;
}

enum status recipe_parse_stages(const struct recipe_reader *top, struct recipe *out)
{
    size_t n = 0;
    enum status status = recipe_reader_list(top, "stages", RECIPE_MAX_STAGES, &n);
    for (size_t i = 0; i < n && status == STATUS_OK; i++) {
        struct recipe_stage *s = &out->stages[i];
        struct recipe_reader stage;
        snprintf(s->name, sizeof s->name, "stage %zu", i + 1);
        status = recipe_reader_item(top, "stages", i, &stage);
        if (status == STATUS_OK)
            status = read_stage(&stage, out, s);
        /* The file that comes out says one base: that of the last step. */
        if (status == STATUS_OK && i + 1 == n && s->rope_theta != out->config.rope_theta)
            return recipe_reader_fail(&stage, "rope_theta", NULL,
                                      "the model's own %g in the last stage (config.json of the "
                                      "trained model says that)",
                                      out->config.rope_theta);
    }
    if (status != STATUS_OK)
        return status;
    out->n_stages = (int)n;
    return read_shards(top, out);
}
