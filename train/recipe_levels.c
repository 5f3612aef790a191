/* Numbers the levels of all of a recipe's sources, one source after another. */
#include "train/recipe.h"

static int n_levels(const struct recipe *r, int data)
{
    const struct task *task = r->data[data].task;
    if (task == NULL)
        return 0;
    int most = task->n_levels(r->data[data].knobs);
    for (int t = 0; t < r->curriculum.n_tracks; t++) {
        const struct recipe_track *track = &r->curriculum.tracks[t];
        for (int i = 0; i < track->n_steps && track->data == data; i++) {
            int n = task->n_levels(track->steps[i].values);
            most = n > most ? n : most;
        }
    }
    return most;
}

int recipe_first_level(const struct recipe *r, int data)
{
    int first = 0;
    for (int i = 0; i < data; i++)
        first += n_levels(r, i);
    return first;
}

int recipe_n_levels(const struct recipe *r)
{
    return recipe_first_level(r, r->n_data);
}

int recipe_first_loop(const struct recipe *r, int data, int level)
{
    const struct task *task = r->data[data].task;
    return task != NULL && task->first_loop != NULL ? task->first_loop(level) : 1;
}

void recipe_first_loops(const struct recipe *r, uint8_t *first_loops)
{
    for (int i = 0; i < r->n_data; i++)
        for (int level = 0; level < n_levels(r, i); level++)
            *first_loops++ = (uint8_t)recipe_first_loop(r, i, level);
}
