/* Random parameters and training sequences of every shape, for tests of train/pass.h. */
#ifndef TESTS_PASS_WORLD_H
#define TESTS_PASS_WORLD_H

#include "tests/unit.h"

#include "train/params.h"
#include "train/pass.h"
#include "train/random.h"

#include <math.h>

struct pass_shape {
    const char *name;
    bool is_llama, is_tied;
    int n_layers, d, ffn, n_heads, n_kv_heads, head_dim, vocab;
};

static inline struct params *pass_world_params(const struct pass_shape *s, uint64_t seed)
{
    struct model_config c = {.has_sandwich_norms = !s->is_llama,
                             .has_gate = !s->is_llama,
                             .is_tied = s->is_tied,
                             .n_layers = s->n_layers,
                             .d_model = s->d,
                             .d_ffn = s->ffn,
                             .n_heads = s->n_heads,
                             .n_kv_heads = s->n_kv_heads,
                             .head_dim = s->head_dim,
                             .vocab_size = s->vocab,
                             .max_positions = 128,
                             .n_loops = 4,
                             .rms_norm_eps = 1e-6f,
                             .rope_theta = 10000};
    strcpy(c.architecture, s->is_llama ? "LlamaForCausalLM" : "OuroForCausalLM");
    struct params *p;
    struct err err;
    if (params_create(&c, &p, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    /* Wide enough that no part of the model is close to linear, and no gain like another. */
    params_draw(p, &(struct params_init){.embed_std = 1, .gain = 1, .branch_gain = 0.5f}, seed);
    struct random r = random_of(seed, 1, 1);
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct params_tensor *t = &p->tensors[i];
        for (int j = 0; j < t->cols && !t->decays; j++)
            p->values[t->offset + (size_t)j] += (float)(0.3 * random_normal(&r));
    }
    return p;
}

static inline void pass_world_rows(struct sequence_rows *s, struct random *r, int n, int vocab,
                                   int every)
{
    for (int i = 0; i < n; i++) {
        if (sequence_rows_append(s, random_below(r, vocab), NULL) != STATUS_OK)
            fail_msg("%d rows do not fit", n);
        if (i % every == every - 1)
            sequence_rows_target(s, random_below(r, vocab), i % 3 ? 1 : 0.1f, i % 4 - 1);
    }
}

enum { PASS_WORLD_SEQUENCES = 5 };
struct pass_world_sequences {
    struct sequence_rows rows[PASS_WORLD_SEQUENCES];
    const struct sequence_rows *list[PASS_WORLD_SEQUENCES];
};

/* A prefix with three branches, a plain text, one without targets, a single row, an empty one. */
static inline void pass_world_open(struct pass_world_sequences *w, int vocab, int n, uint64_t seed)
{
    struct random r = random_of(seed, 2, 2);
    for (int i = 0; i < PASS_WORLD_SEQUENCES; i++) {
        if (sequence_rows_create(3 * n + 8, &w->rows[i], NULL) != STATUS_OK)
            fail_msg("no memory");
        w->list[i] = &w->rows[i];
    }
    pass_world_rows(&w->rows[0], &r, n, vocab, 3);
    sequence_rows_branch(&w->rows[0]);
    pass_world_rows(&w->rows[0], &r, 3, vocab, 1);
    sequence_rows_branch(&w->rows[0]);
    pass_world_rows(&w->rows[0], &r, 1, vocab, 1);
    sequence_rows_branch(&w->rows[0]);
    pass_world_rows(&w->rows[0], &r, 4, vocab, 2);
    pass_world_rows(&w->rows[1], &r, n + 1, vocab, 1);
    pass_world_rows(&w->rows[2], &r, n, vocab, 1000);
    pass_world_rows(&w->rows[3], &r, 1, vocab, 1);
}

static inline void pass_world_close(struct pass_world_sequences *w)
{
    for (int i = 0; i < PASS_WORLD_SEQUENCES; i++)
        sequence_rows_free(&w->rows[i]);
}

/* The levels this CPU runs. */
static inline int pass_world_levels(const struct grad_ops *levels[3])
{
    static const char *const names[] = {"portable", "avx2", "avx512"};
    int n = 0;
    for (int i = 0; i < 3; i++)
        n += grad_find(names[i], &levels[n], NULL) == STATUS_OK;
    assert_true(n >= 1);
    return n;
}

/* One call on a new pass; fails the test on an error. grads may be NULL. */
static inline struct metrics pass_world_run(const struct params *params, const struct grad_ops *ops,
                                            const struct sequence_rows *const *sequences, int n,
                                            const struct pass_options *o, float *grads)
{
    struct pass *pass;
    struct metrics m = {0};
    struct err err;
    if (pass_create(params, ops, &pass, &err) != STATUS_OK ||
        pass_run(pass, sequences, n, o, grads, &m, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    pass_destroy(pass);
    return m;
}

static inline double pass_world_norm(const float *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sqrt(sum);
}

#endif
