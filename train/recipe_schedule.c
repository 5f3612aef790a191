/* Learning rate, beta and length of a recipe's stages, step by step. */
#include "train/recipe.h"

#include <math.h>

float recipe_lr(const struct recipe_stage *stage, uint64_t step)
{
    const double pi = 3.14159265358979323846;
    const double begin = stage->lr_begin, end = stage->lr_end;
    /* The first step already moves: rate 0 would only spend it. */
    if (step < stage->warmup)
        return (float)(begin * (double)(step + 1) / (double)stage->warmup);
    if (stage->decay == RECIPE_CONSTANT || step >= stage->steps)
        return stage->decay == RECIPE_CONSTANT ? stage->lr_begin : stage->lr_end;
    /* Never quite 1: a decay to 0 has a last step that counts. */
    double done = (double)(step - stage->warmup) / (double)(stage->steps - stage->warmup);
    if (stage->decay == RECIPE_COSINE)
        done = 0.5 * (1 - cos(pi * done));
    return (float)(begin + (end - begin) * done);
}

float recipe_beta(const struct recipe_stage *stage, uint64_t step)
{
    double done = step < stage->steps ? (double)step / (double)stage->steps : 1;
    return (float)(stage->beta_begin + ((double)stage->beta_end - stage->beta_begin) * done);
}

uint64_t recipe_total_steps(const struct recipe *r)
{
    const struct recipe_curriculum *c = &r->curriculum;
    uint64_t sum = 0, latest = c->open_by;
    for (int i = 0; i < r->n_stages; i++)
        sum += r->stages[i].steps;
    for (int t = 0; t < c->n_tracks; t++)
        for (int i = 0; i < c->tracks[t].n_steps; i++) {
            const struct recipe_step *step = &c->tracks[t].steps[i];
            latest = step->by > latest ? step->by : latest;
            latest = step->within > 0 ? sum : latest; /* counts from wherever the step begins */
        }
    /* An attempt that misses a limit has not taken more steps than the stages have. */
    return sum + (uint64_t)c->max_restarts * (latest < sum ? latest : sum);
}
