/* recipe: any bytes give an error of one line, or values a run can use without a further check. */
#include "train/curriculum.h"
#include "train/recipe.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void require(int is_so)
{
    if (!is_so)
        abort();
}

static void check_stage(const struct recipe *r, const struct recipe_stage *s)
{
    float sum = 0;
    for (int i = 0; i < RECIPE_MAX_DATA; i++) {
        require(s->data_weights[i] >= 0 && (i < r->n_data || s->data_weights[i] == 0));
        require(s->data_weights[i] == 0 || r->data[i].task != NULL || s->seq_length >= 2);
        sum += s->data_weights[i];
    }
    require(sum > 0.999f && sum < 1.001f);
    require(s->steps >= 1 && s->min_steps <= s->steps && s->warmup <= s->steps);
    require(s->batch >= 1 && s->batch % r->shards == 0 && s->seq_length <= r->config.max_positions);
    require(s->loops >= 1 && s->loops <= MODEL_MAX_LOOPS && s->rope_theta >= 1);
    require(s->looping_block == 0 || r->config.n_layers % s->looping_block == 0);
    const uint64_t steps[] = {0, s->warmup, s->steps / 2, s->steps - 1};
    for (int i = 0; i < 4; i++)
        require(recipe_lr(s, steps[i]) >= 0 && recipe_lr(s, steps[i]) <= 10 &&
                recipe_beta(s, steps[i]) >= 0 && recipe_beta(s, steps[i]) <= 100);
}

/* A few steps in which everything is right: all indices stay in range, the run moves on. */
static void check_curriculum(const struct recipe *r)
{
    static struct curriculum_state s;
    static struct metrics m;
    curriculum_init(r, &s);
    for (int i = 0; i < 40 && !s.is_finished; i++) {
        for (int level = 0; level < recipe_n_levels(r); level++) {
            m.n[level] = 5000;
            for (int t = 0; t < METRICS_MAX_LOOPS; t++)
                m.correct[level][t] = i < 20 ? 5000 : 0;
        }
        unsigned events = curriculum_step(r, &s, &m);
        require(events < 16 && s.stage >= 0 && s.stage < r->n_stages);
        require(s.loops >= 1 && s.loops <= r->stages[s.stage].loops);
        for (int t = 0; t < r->curriculum.n_tracks; t++)
            require(s.track_steps[t] < r->curriculum.tracks[t].n_steps);
        for (int d = 0; d < r->n_data; d++)
            for (int k = 0; r->data[d].task != NULL && k < r->data[d].task->n_knobs; k++)
                require(s.knobs[d][k] >= r->data[d].task->knobs[k].min &&
                        s.knobs[d][k] <= r->data[d].task->knobs[k].max);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    static struct recipe r;
    struct err err = {0};
    if (recipe_parse((const char *)bytes, len, "input", &r, &err) != STATUS_OK) {
        require(err.code != STATUS_OK && err.message[0] != '\0');
        for (const char *p = err.message; *p != '\0'; p++)
            require((unsigned char)*p >= 0x20);
        return 0;
    }
    require(r.n_data >= 1 && r.n_data <= RECIPE_MAX_DATA);
    require(r.n_stages >= 1 && r.n_stages <= RECIPE_MAX_STAGES);
    require(r.shards >= 1 && (r.shards & (r.shards - 1)) == 0);
    require(recipe_n_levels(&r) <= METRICS_MAX_LEVELS);
    for (int i = 0; i < r.n_stages; i++)
        check_stage(&r, &r.stages[i]);
    check_curriculum(&r);
    recipe_fingerprint(&r);
    return 0;
}
