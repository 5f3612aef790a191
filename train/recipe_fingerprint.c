/* Hashes the values of a recipe that decide what a run computes. */
#include "train/recipe.h"

#include "proto/fnv.h"

#include <string.h>

/* Values one by one: structs have padding, and a value's place in one may change. */
struct hash {
    uint64_t state;
};

static void add(struct hash *h, uint64_t v)
{
    h->state = fnv_u64(h->state, v);
}

static void add_number(struct hash *h, double v)
{
    h->state = fnv_double(h->state, v + 0.0); /* -0 and 0 compute the same */
}

static void add_text(struct hash *h, const char *text)
{
    h->state = fnv_bytes(h->state, text, strlen(text) + 1);
}

static void add_model(struct hash *h, const struct model_config *c)
{
    const int dims[] = {c->n_layers,   c->d_model,       c->d_ffn,   c->n_heads,
                        c->n_kv_heads, c->head_dim,      c->n_loops, c->vocab_size,
                        c->is_tied,    c->max_positions, c->bos_id,  c->n_eos};
    add_text(h, c->architecture);
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        add(h, (uint64_t)dims[i]);
    for (int i = 0; i < c->n_eos; i++)
        add(h, (uint64_t)c->eos_ids[i]);
    add_number(h, c->rms_norm_eps);
    add_number(h, c->rope_theta);
}

static void add_data(struct hash *h, const struct recipe_data *d)
{
    add_text(h, d->task == NULL ? "" : d->task->name);
    add_text(h, d->text);
    for (int i = 0; d->task != NULL && i < d->task->n_knobs; i++)
        add(h, (uint64_t)d->knobs[i]);
}

static void add_stage(struct hash *h, const struct recipe_stage *s, int n_data)
{
    const uint64_t counts[] = {
        s->steps,     s->ends_when_open,  (uint64_t)s->until_track, (uint64_t)s->until_step,
        s->min_steps, (uint64_t)s->batch, (uint64_t)s->seq_length,  s->decay,
        s->warmup,    s->objective,       (uint64_t)s->loops,       (uint64_t)s->looping_block,
        s->from_level};
    const double numbers[] = {s->lr_begin,   s->lr_end,       s->beta_begin,    s->beta_end,
                              s->rope_theta, s->weight_decay, s->looping_weight};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        add(h, counts[i]);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        add_number(h, numbers[i]);
    for (int i = 0; i < n_data; i++)
        add_number(h, s->data_weights[i]);
}

static void add_track(struct hash *h, const struct recipe_track *t, const struct task *task)
{
    add(h, (uint64_t)t->data);
    add(h, (uint64_t)t->n_steps);
    for (int i = 0; i < t->n_steps; i++) {
        const struct recipe_step *s = &t->steps[i];
        for (int k = 0; k < task->n_knobs; k++) {
            add(h, s->sets[k]);
            add(h, (uint64_t)s->values[k]);
        }
        add(h, (uint64_t)s->loops);
        add(h, (uint64_t)s->needs_loops);
        add(h, s->holds);
        add(h, (uint64_t)s->watch_level);
        add_number(h, s->threshold);
        add(h, s->min_steps);
        add(h, s->by);
        add(h, s->within);
        for (int k = 0; k < RECIPE_MAX_TRACKS; k++)
            add(h, (uint64_t)s->after[k]);
    }
}

uint64_t recipe_fingerprint(const struct recipe *r)
{
    struct hash h = {FNV_START};
    const struct recipe_curriculum *c = &r->curriculum;
    const double numbers[] = {r->init.embed_std,
                              r->init.head_std,
                              r->init.matrix_std,
                              r->init.gain,
                              r->init.branch_gain,
                              r->beta1,
                              r->beta2,
                              r->eps,
                              r->weight_decay,
                              r->clip,
                              c->rate,
                              c->hold};
    add_model(&h, &r->config);
    add_text(&h, r->tokenizer);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        add_number(&h, numbers[i]);
    add(&h, (uint64_t)r->shards);
    add(&h, (uint64_t)r->n_data);
    for (int i = 0; i < r->n_data; i++)
        add_data(&h, &r->data[i]);
    add(&h, (uint64_t)r->n_stages);
    for (int i = 0; i < r->n_stages; i++)
        add_stage(&h, &r->stages[i], r->n_data);
    add(&h, (uint64_t)c->staircase_data);
    add(&h, (uint64_t)c->max_restarts);
    add(&h, c->open_by);
    add(&h, c->is_ladder);
    add(&h, (uint64_t)c->n_tracks);
    for (int i = 0; i < c->n_tracks; i++)
        add_track(&h, &c->tracks[i], r->data[c->tracks[i].data].task);
    return h.state;
}
