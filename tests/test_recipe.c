/* recipe: what the file says is what the run gets; a wrong field is named by its path, with what
 * was found and what is accepted. */
#include "tests/model_files.h"

#include "train/recipe.h"

#include <math.h>

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 1 << 16);
    assert_non_null(text);
    size_t n = fread(text, 1, (1 << 16) - 1, f);
    assert_true(n > 0 && feof(f));
    fclose(f);
    return text;
}

static void load(const char *path, struct recipe *r)
{
    struct err err = {0};
    if (recipe_load(path, r, &err) != STATUS_OK)
        fail_msg("%s", err.message);
}

static void test_recipe_reads_a_curriculum_of_tasks(void **state)
{
    (void)state;
    struct recipe r;
    load("tests/data/recipe_small.json", &r);
    assert_string_equal(r.name, "small");
    assert_string_equal(r.directory, "tests/data");
    assert_string_equal(r.config.architecture, "OuroForCausalLM");
    assert_int_equal(r.config.vocab_size, 49);
    assert_int_equal(r.config.n_loops, 3);
    assert_int_equal(r.config.eos_ids[0], 1);
    assert_true(r.beta2 == 0.98f && r.weight_decay == 0.05f && r.clip == 1);
    assert_true(r.init.embed_std == 1 && r.init.branch_gain == 0.5f);
    assert_int_equal(r.shards, 8);
    assert_int_equal(r.n_data, 2);
    assert_string_equal(r.data[0].name, "hop");
    assert_int_equal(r.data[0].knobs[task_knob_find(r.data[0].task, "letters")], 8);
    assert_int_equal(r.data[1].knobs[task_knob_find(r.data[1].task, "operators")], 3);

    assert_int_equal(r.n_stages, 2);
    assert_true(r.stages[0].ends_when_open && r.stages[0].min_steps == 10);
    assert_true(r.stages[0].data_weights[0] == 0.5f && r.stages[1].data_weights[0] == 0.75f);
    assert_int_equal(r.stages[1].objective, RECIPE_ENTROPY);
    assert_int_equal(r.stages[1].decay, RECIPE_LINEAR);
    assert_int_equal(r.stages[1].loops, 3);
    assert_true(r.stages[1].weight_decay == 0.05f && r.stages[1].rope_theta == 10000);

    const struct recipe_curriculum *c = &r.curriculum;
    assert_int_equal(c->n_tracks, 2);
    assert_int_equal(c->staircase_data, 0);
    assert_int_equal(c->tracks[0].n_steps, 4);
    const struct recipe_step *second = &c->tracks[0].steps[2];
    assert_int_equal(second->watch_level, 1); /* hop 2: the hardest of the step */
    assert_true(second->by == 30 && second->loops == 2 && !second->holds);
    assert_true(second->after[0] == -1 && second->after[1] == 0);
    int letters = task_knob_find(r.data[0].task, "letters");
    assert_true(!second->sets[letters] && second->values[letters] == 8);
    assert_true(c->tracks[0].steps[3].holds && c->tracks[1].steps[1].needs_loops == 2);
    assert_int_equal(c->tracks[1].steps[1].watch_level, 1);

    /* hop 1..3, dep 0..3 */
    uint8_t first[7];
    recipe_first_loops(&r, first);
    assert_memory_equal(first, ((const uint8_t[]){1, 2, 3, 1, 2, 3, 4}), sizeof first);
    assert_int_equal(recipe_first_level(&r, 1), 3);
    assert_int_equal(recipe_n_levels(&r), 7);
    assert_int_equal(recipe_total_steps(&r), 40 + 20 + 30);
}

static void test_recipe_reads_supervision_by_level(void **state)
{
    (void)state;
    struct recipe r;
    struct err err = {0};
    char *json = read_text("tests/data/recipe_small.json");
    char *text =
        model_files_replace(json, "\"uniform\"", "\"uniform\", \"supervise\": \"from_level\"");
    assert_int_equal(recipe_parse(text, strlen(text), "x.json", &r, &err), STATUS_OK);
    assert_int_equal(r.stages[0].objective, RECIPE_UNIFORM);
    assert_true(r.stages[0].from_level && !r.stages[1].from_level);
    free(text);
    free(json);
}

static void test_recipe_reads_stages_of_texts(void **state)
{
    (void)state;
    struct recipe r;
    struct err err = {0};
    char path[64];
    load("tests/data/recipe_text.json", &r);
    assert_false(r.config.has_gate);
    assert_int_equal(r.config.n_loops, 2);
    assert_int_equal(r.config.n_kv_heads, 2);
    assert_int_equal(r.config.eos_ids[1], 3);
    assert_int_equal(r.stages[0].steps, 8); /* 1000 tokens in 4 x 32 a step, rounded up */
    assert_int_equal(r.stages[0].loops, 4);
    assert_true(r.stages[0].rope_theta == 10000 && r.stages[1].rope_theta == 40000);
    assert_true(r.stages[0].weight_decay == 0 && r.stages[1].weight_decay == 0.1f);
    assert_true(r.stages[0].looping_weight == 10 && r.stages[0].looping_block == 1);
    assert_true(r.stages[0].data_weights[0] == 1 && r.stages[0].data_weights[1] == 0);
    assert_string_equal(r.stages[1].name, "stage 2");
    assert_int_equal(recipe_n_levels(&r), 0);

    assert_int_equal(recipe_file(&r, r.data[0].text, path, sizeof path, &err), STATUS_OK);
    assert_string_equal(path, "tests/data/web.jsonl");
    assert_int_equal(recipe_file(&r, r.data[1].text, path, sizeof path, &err), STATUS_OK);
    assert_string_equal(path, "/data/notes.jsonl");
    assert_int_equal(recipe_file(&r, r.data[1].text, path, 10, &err), STATUS_INVALID);
}

/* Table 1 of arXiv 2510.25741 v4. */
static void test_recipe_of_ouro_is_the_published_table(void **state)
{
    (void)state;
    static const struct {
        double tokens, lr_end, rope;
        int seq_length, loops;
        float beta;
    } table[] = {{1e12, 3e-4, 1e4, 4096, 8, 0.1f},   {2e12, 3e-4, 1e4, 4096, 8, 0.1f},
                 {3e12, 3e-4, 1e4, 4096, 4, 0.05f},  {1.4e12, 3e-5, 4e4, 16384, 4, 0.05f},
                 {20e9, 3e-5, 1e6, 65536, 4, 0.05f}, {300e9, 1e-5, 1e6, 32768, 4, 0.05f}};
    struct recipe r;
    load("train/recipes/ouro-1.4b.json", &r);
    assert_int_equal(config_count_parameters(&r.config), 1434652673);
    assert_true(r.beta1 == 0.9f && r.beta2 == 0.95f && r.weight_decay == 0.1f && r.clip == 1);
    assert_int_equal(r.n_stages, 6);
    for (int i = 0; i < 6; i++) {
        const struct recipe_stage *s = &r.stages[i];
        double step_tokens = (double)s->batch * s->seq_length;
        assert_true(step_tokens == (i == 0 ? 4194304 : 8388608));
        assert_true(fabs((double)s->steps * step_tokens - table[i].tokens) < step_tokens);
        assert_true(s->lr_end == (float)table[i].lr_end && s->rope_theta == table[i].rope);
        assert_int_equal(s->seq_length, table[i].seq_length);
        assert_int_equal(s->loops, table[i].loops);
        assert_true(s->beta_begin == table[i].beta && s->beta_end == table[i].beta);
        assert_int_equal(s->decay, i == 3 || i == 5 ? RECIPE_COSINE : RECIPE_CONSTANT);
        assert_int_equal(s->objective, RECIPE_ENTROPY);
    }
}

static void test_recipe_examples_parse(void **state)
{
    (void)state;
    struct recipe r;
    load("train/recipes/demo.json", &r);
    load("train/recipes/tiny-text.json", &r);
    assert_int_equal(r.n_stages, 5);
}

static void test_recipe_rates_follow_the_stage(void **state)
{
    (void)state;
    struct recipe_stage s = {.steps = 1000, .warmup = 100, .lr_begin = 1, .lr_end = 0.2f};
    s.decay = RECIPE_CONSTANT;
    s.beta_begin = 0.1f;
    s.beta_end = 0.05f;
    assert_true(recipe_lr(&s, 0) == 0.01f && recipe_lr(&s, 49) == 0.5f && recipe_lr(&s, 99) == 1);
    assert_true(recipe_lr(&s, 100) == 1 && recipe_lr(&s, 999) == 1);
    s.decay = RECIPE_LINEAR;
    assert_true(recipe_lr(&s, 49) == 0.5f && recipe_lr(&s, 100) == 1);
    assert_float_equal(recipe_lr(&s, 550), 0.6, 1e-6);
    assert_float_equal(recipe_lr(&s, 999), 0.2 + 0.8 / 900, 1e-6);
    s.decay = RECIPE_COSINE;
    assert_float_equal(recipe_lr(&s, 325), 0.2 + 0.8 * (0.5 + 0.5 * 0.70710678), 1e-6);
    assert_float_equal(recipe_lr(&s, 550), 0.6, 1e-6);
    assert_true(recipe_lr(&s, 999) > 0.2f && recipe_lr(&s, 999) < 0.2001f);
    assert_true(recipe_beta(&s, 0) == 0.1f);
    assert_float_equal(recipe_beta(&s, 500), 0.075, 1e-6);
    s.warmup = 0;
    s.lr_end = 0;
    assert_true(recipe_lr(&s, 0) == 1 && recipe_lr(&s, 999) > 0);
}

/* One change to a good file, and what the answer must say. */
struct bend {
    const char *from, *to;
    const char *says[2];
};

static void check_bends(const char *path, const struct bend *bends, size_t n)
{
    char *json = read_text(path);
    for (size_t i = 0; i < n; i++) {
        struct recipe r;
        memset(&r, 0x5a, sizeof r);
        const struct recipe before = r;
        struct err err = {0};
        char *text = model_files_replace(json, bends[i].from, bends[i].to);
        enum status status = recipe_parse(text, strlen(text), "dir/x.json", &r, &err);
        if (status != STATUS_INVALID)
            fail_msg("%s: status %s, message %s", bends[i].to, status_name(status), err.message);
        if (strstr(err.message, "dir/x.json") == NULL)
            fail_msg("no file in: %s", err.message);
        for (int k = 0; k < 2; k++)
            if (bends[i].says[k] != NULL && strstr(err.message, bends[i].says[k]) == NULL)
                fail_msg("%s: expected %s in: %s", bends[i].to, bends[i].says[k], err.message);
        assert_memory_equal(&r, &before, sizeof r); /* written on success only */
        free(text);
    }
    free(json);
}

static void test_recipe_names_the_field_nearest_to_an_unknown_one(void **state)
{
    (void)state;
    static const struct bend bends[] = {
        {"\"warmup\"",
         "\"warm_up\"",
         {"stages[0]", "no field \"warm_up\"; the nearest known is warmup"}},
        {"\"optimizer\"", "\"optimiser\"", {"x.json: there", "the nearest known is optimizer"}},
        {"\"hidden_size\"", "\"hidden_dim\"", {"model: there", "the nearest known is hidden_size"}},
        {"\"max_pairs\"", "\"max_pair\"", {"data.hop: there", "the nearest known is max_pairs"}},
        {"\"needs_loops\"", "\"need_loops\"", {"curriculum.tracks[1].steps[1]", "needs_loops"}},
        {"\"loops\": 1",
         "\"xyzzy\": 1",
         {"curriculum.tracks[0].steps[0]", "known are name, loops"}},
        {"\"objective\": \"uniform\"",
         "\"objective\": \"unifrom\"",
         {"stages[0].objective", "no choice \"unifrom\"; the nearest known is uniform"}},
        {"\"mix\": {\"hop\"", "\"mix\": {\"hops\"", {"stages[1].mix", "the nearest known is hop"}},
        {"\"task\": \"hop\"", "\"task\": \"hopp\"", {"data.hop.task", "the nearest known is hop"}},
        {"\"watch\": \"dep 1\"",
         "\"watch\": \"dep 2\"",
         {"steps[1].watch", "nearest known is dep"}},
        {"\"after\": \"first sums\"", "\"after\": \"first sum\"", {"steps[2].after", "first sums"}},
        {"\"data\": \"chain\"",
         "\"data\": \"chian\"",
         {"tracks[1].data", "nearest known is chain"}},
        {"\"small\"", "\"sm\\u0007all\"", {"name: expected 1 to 47 printable bytes", "found"}},
    };
    check_bends("tests/data/recipe_small.json", bends, sizeof bends / sizeof bends[0]);
}

static void test_recipe_refuses_what_a_run_could_not_do(void **state)
{
    (void)state;
    static const struct bend tasks[] = {
        {"\"hidden_size\": 32,", "", {"model", "hidden_size is missing"}},
        {"\"num_attention_heads\": 2",
         "\"num_attention_heads\": 3",
         {"model", "num_attention_heads"}},
        {"\"total_ut_steps\": 3",
         "\"total_ut_steps\": 9",
         {"model.total_ut_steps", "from 1 to 8, found 9"}},
        {"\"total_ut_steps\": 3",
         "\"vocab_size\": 50, \"total_ut_steps\": 3",
         {"model.vocab_size", "49"}},
        {"\"total_ut_steps\": 3",
         "\"eos_token_id\": 2, \"total_ut_steps\": 3",
         {"eos_token_id", "leave both out"}},
        {"[0.9, 0.98]", "0.9", {"optimizer.betas", "[beta1, beta2]"}},
        {"[0.9, 0.98]", "[0.9, 1]", {"optimizer.betas", ",1]"}},
        {"\"data\": {",
         "\"shards\": 3, \"data\": {",
         {"shards: expected a power of two, found 3", NULL}},
        {"\"data\": {", "\"shards\": 16, \"data\": {", {"shards", "stages[0].batch 8, found 16"}},
        {"\"data\": {",
         "\"tokenizer\": \"t.json\", \"data\": {",
         {"tokenizer", "data.hop is a task"}},
        {"\"task\": \"hop\", ", "", {"data.hop", "task"}},
        {"\"task\": \"hop\", ", "\"text\": \"a\", ", {"data.hop", "max_pairs"}},
        {"\"letters\": 8", "\"letters\": 27", {"data.hop.letters", "found 27"}},
        {"\"steps\": 40", "\"steps\": 0", {"stages[0].steps", "one step at least"}},
        {"\"steps\": 40", "\"steps\": 4.5", {"stages[0].steps", "found 4.5"}},
        {"\"steps\": 40", "\"tokens\": 4", {"stages[0].tokens", "tasks"}},
        {"\"batch\": 8, \"lr\"", "\"lr\"", {"stages[0].batch is missing", NULL}},
        {"\"batch\": 8, \"lr\"",
         "\"seq_length\": 8, \"batch\": 8, \"lr\"",
         {"stages[0].seq_length", "without texts"}},
        {"\"lr\": 2e-3", "\"lr\": [2e-3]", {"stages[0].lr", "[begin, end]"}},
        {"\"lr\": 2e-3", "\"lr\": [1e-3, null]", {"stages[0].lr", "null]"}},
        {"\"lr\": 2e-3",
         "\"lr\": 2e-3, \"decay\": \"linear\"",
         {"stages[0].lr", "with decay linear"}},
        {"\"decay\": \"linear\"", "\"decay\": \"constant\"", {"stages[1].lr", "one number"}},
        {"\"warmup\": 10", "\"warmup\": 41", {"stages[0].warmup", "from 0 to 40, found 41"}},
        {"\"uniform\"",
         "\"uniform\", \"beta\": 0.1",
         {"stages[0].beta", "none with objective uniform"}},
        {"\"entropy\"",
         "\"entropy\", \"supervise\": \"all\"",
         {"stages[1].supervise", "objective entropy"}},
        {", \"beta\": [0.1, 0.05]", "", {"stages[1].beta is missing", NULL}},
        {"{\"hop\": 3, \"chain\": 1}", "{\"hop\": 0}", {"stages[1].mix", "above 0"}},
        {"{\"hop\": 3, \"chain\": 1}", "{\"hop\": -1}", {"stages[1].mix.hop", "found -1"}},
        {"\"until\": \"open\", ", "", {"stages[0].min_steps", "none without until"}},
        {"\"min_steps\": 10", "\"min_steps\": 41", {"stages[0].min_steps", "found 41"}},
        {"\"objective\": \"entropy\"",
         "\"rope_theta\": 2, \"objective\": \"entropy\"",
         {"stages[1].rope_theta", "found 2"}},
        {"\"uniform\"",
         "\"uniform\", \"looping\": {\"weight\": 1, \"block\": 1}",
         {"stages[0].looping.block", "num_hidden_layers 1"}},
        {"\"staircase\": \"hop\", \"hold\": 0.6",
         "\"hold\": 0.6",
         {"curriculum.hold", "staircase"}},
        {"\"staircase\": \"hop\", \"hold\": 0.6, ", "", {"tracks[0].steps[3].holds", "staircase"}},
        {"\"restarts\": 1", "\"restarts\": 0", {"tracks[0].steps[2].by", "restarts"}},
        {"\"rate\": 0.01", "\"rate\": 0", {"curriculum.rate", "found 0"}},
        {"\"loops\": 1}", "\"loops\": 1, \"by\": 5}", {"tracks[0].steps[0].by", "first step"}},
        {"\"needs_loops\": 2", "\"needs_loops\": 4", {"tracks[1].steps[1] can never begin", NULL}},
        /* each waits for the other */
        {"\"after\": \"first sums\"",
         "\"after\": \"second sums\"",
         {"tracks[0].steps[2] can never begin", NULL}},
        {"\"name\": \"letters\"",
         "\"after\": \"late\", \"name\": \"letters\"",
         {"steps[1].after", "first sums"}},
        {"\"second sums\"", "\"letters\"", {"tracks[1].steps[1].name", "again"}},
        {"\"after\": \"first sums\"",
         "\"after\": \"letters\"",
         {"steps[2].after", "of other tracks"}},
        {"\"after\": \"first sums\"", "\"after\": [7]", {"steps[2].after", "found [7]"}},
    };
    check_bends("tests/data/recipe_small.json", tasks, sizeof tasks / sizeof tasks[0]);
}

static void test_recipe_refuses_stages_that_contradict_the_model(void **state)
{
    (void)state;
    static const struct bend bends[] = {
        {"\"vocab_size\": 1000,", "", {"model.vocab_size is missing", NULL}},
        {"\"eos_token_id\": [2, 3]", "\"eos_token_id\": 1000", {"model", "eos_token_id"}},
        {"\"seq_length\": 32",
         "\"seq_length\": 65",
         {"stages[0].seq_length", "from 2 to 64, found 65"}},
        {", \"seq_length\": 32", "", {"stages[0].seq_length is missing", NULL}},
        {"\"tokens\": 1000", "\"tokens\": 1000, \"steps\": 3", {"stages[0].tokens", "not both"}},
        {"\"tokens\": 1000", "\"tokens\": 1e18", {"stages[0].tokens", "1e+12 steps"}},
        {"\"objective\": \"last\"",
         "\"objective\": \"entropy\", \"beta\": 1",
         {"stages[0].objective", "no gate"}},
        {"\"objective\": \"last\"",
         "\"until\": \"open\", \"objective\": \"last\"",
         {"stages[0].until", "curriculum"}},
        {"\"loops\": 4", "\"loops\": 9", {"stages[0].loops", "found 9"}},
        {"\"rope_theta\": 40000", "\"rope_theta\": 40000.0, \"total\": 1", {"model", "no field"}},
        {"\"decay\": \"cosine\"",
         "\"decay\": \"cosine\", \"rope_theta\": 10000",
         {"stages[1].rope_theta", "40000"}},
        {"\"text\": \"web.jsonl\"", "\"text\": \"\"", {"data.web.text", "printable"}},
        {"\"text\": \"web.jsonl\"",
         "\"task\": \"hop\", \"text\": \"a\"",
         {"data.web.text", "not both"}},
        {"\"web\": {", "\"w.b\": {", {"data", "without spaces and points"}},
    };
    check_bends("tests/data/recipe_text.json", bends, sizeof bends / sizeof bends[0]);
}

static void test_recipe_refuses_ladders_nobody_can_climb(void **state)
{
    (void)state;
    static const struct bend bends[] = {
        {"\"letters\": 10}",
         "\"letter\": 10}",
         {"curriculum.rungs[0].hop", "nearest known is letters"}},
        {"\"letters\": 10}", "\"letters\": 1}", {"curriculum.rungs[0].hop.letters", "found 1"}},
        {"\"chain\": {\"max_depth\": 0",
         "\"chains\": {\"max_depth\": 0",
         {"curriculum.rungs[0]", "nearest known is chain"}},
        {"\"loops\": 1",
         "\"by\": 3, \"loops\": 1",
         {"curriculum.rungs[0].by", "begins with the run"}},
        {"\"restarts\": 1", "\"restarts\": 0", {"curriculum.rungs[2].by", "restarts, found 20"}},
        {"\"by\": 20, \"within\": 30",
         "\"name\": \"one loop\"",
         {"curriculum.rungs[2].name", "again"}},
        {"\"name\": \"one loop\"",
         "\"name\": \"open\"",
         {"curriculum.rungs[1].name", "another name"}},
        {"\"rungs\": [",
         "\"tracks\": [], \"rungs\": [",
         {"curriculum.tracks", "either tracks or rungs"}},
        {"\"until\": \"open\"",
         "\"until\": \"one lop\"",
         {"stages[0].until", "nearest known is one loop"}},
        {"\"threshold\": 0.9",
         "\"threshold\": 1.5",
         {"curriculum.rungs[3].threshold", "found 1.5"}},
    };
    check_bends("tests/data/recipe_ladder.json", bends, sizeof bends / sizeof bends[0]);
    struct recipe r;
    load("tests/data/recipe_ladder.json", &r);
    assert_true(r.curriculum.is_ladder && r.curriculum.n_tracks == 2);
    const struct recipe_step *last = &r.curriculum.tracks[1].steps[3];
    assert_true(last->threshold == 0.9f && last->min_steps == 4 && last->values[0] != 0);
    assert_int_equal(recipe_n_levels(&r), 4);
    assert_int_equal(recipe_total_steps(&r), 70 + 70);
}

static void test_recipe_fingerprint_is_of_the_values(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to;
        bool is_same;
    } bends[] = {
        {"2e-3", "0.002", true},
        {"\"name\": \"small\"", "\"name\": \"other\"", true},
        {"\"name\": \"exits\", ", "", true},
        {"\"rate\": 0.01", "\"rate\": 1e-2", true},
        {"{\"hop\": 3, \"chain\": 1}", "{\"chain\": 2, \"hop\": 6}", true},
        {"\"batch\": 8, \"lr\"", "\"batch\": 16, \"lr\"", false},
        {"\"hidden_size\": 32", "\"hidden_size\": 64", false},
        {"\"letters\": 6", "\"letters\": 5", false},
        {"\"uniform\"", "\"uniform\", \"supervise\": \"from_level\"", false},
        {"\"uniform\"", "\"uniform\", \"supervise\": \"all\"", true},
        {"\"until\": \"open\"", "\"until\": \"letters\"", false},
        {"\"letters\": 8, \"max_hops\"", "\"letters\": 9, \"max_hops\"", false},
        {"[0.1, 0.05]", "[0.1, 0.04]", false},
        {"\"by\": 30", "\"by\": 31", false},
        {"\"holds\": true", "\"holds\": false", false},
        {"\"after\": \"first sums\", ", "", false},
        {"\"hold\": 0.6", "\"hold\": 0.7", false},
        {"\"data\": {", "\"shards\": 4, \"data\": {", false},
        {"\"data\": {", "\"init\": {\"gain\": 2}, \"data\": {", false},
    };
    char *json = read_text("tests/data/recipe_small.json");
    struct recipe r;
    load("tests/data/recipe_small.json", &r);
    const uint64_t print = recipe_fingerprint(&r);
    for (size_t i = 0; i < sizeof bends / sizeof bends[0]; i++) {
        struct err err = {0};
        char *text = model_files_replace(json, bends[i].from, bends[i].to);
        if (recipe_parse(text, strlen(text), "x.json", &r, &err) != STATUS_OK)
            fail_msg("%s: %s", bends[i].to, err.message);
        if ((recipe_fingerprint(&r) == print) != bends[i].is_same)
            fail_msg("%s: fingerprint is %s", bends[i].to, bends[i].is_same ? "new" : "the same");
        free(text);
    }
    free(json);
}

static void test_recipe_says_which_file_is_wrong(void **state)
{
    (void)state;
    struct recipe r;
    struct err err = {0};
    assert_int_equal(recipe_load("tests/data/none.json", &r, &err), STATUS_NOT_FOUND);
    assert_non_null(strstr(err.message, "tests/data/none.json"));
    assert_int_equal(recipe_parse("{\"a\": }", 7, "x.json", &r, &err), STATUS_CORRUPT);
    assert_non_null(strstr(err.message, "x.json is not valid JSON: line 1"));
    assert_int_equal(recipe_parse("{}", 2, "x.json", &r, NULL), STATUS_INVALID);
    /* No part of the answer is from the stack: the same file gives the same bytes. */
    struct recipe again;
    load("tests/data/recipe_small.json", &r);
    load("tests/data/recipe_small.json", &again);
    assert_memory_equal(&r, &again, sizeof r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recipe_reads_a_curriculum_of_tasks),
        cmocka_unit_test(test_recipe_reads_supervision_by_level),
        cmocka_unit_test(test_recipe_reads_stages_of_texts),
        cmocka_unit_test(test_recipe_of_ouro_is_the_published_table),
        cmocka_unit_test(test_recipe_examples_parse),
        cmocka_unit_test(test_recipe_rates_follow_the_stage),
        cmocka_unit_test(test_recipe_names_the_field_nearest_to_an_unknown_one),
        cmocka_unit_test(test_recipe_refuses_what_a_run_could_not_do),
        cmocka_unit_test(test_recipe_refuses_stages_that_contradict_the_model),
        cmocka_unit_test(test_recipe_refuses_ladders_nobody_can_climb),
        cmocka_unit_test(test_recipe_fingerprint_is_of_the_values),
        cmocka_unit_test(test_recipe_says_which_file_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
