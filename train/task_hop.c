/* hop: follow a letter through a map that is one cycle, `f>w c>x x>d ...;c>>>`. */
#include "train/task_parts.h"

#include <stdio.h>

enum { MAX_PAIRS, LETTERS, MAX_HOPS, BRANCHES };
enum { MIN_PAIRS = 3, ALPHABET = 26, HOPS_CAP = 16 };

struct map {
    int n;
    int cycle[ALPHABET]; /* [n] letters; each leads to the next one, the last to the first */
    struct task_text text;
};

static int min_of(int a, int b)
{
    return a < b ? a : b;
}

static int most_pairs(const int *knobs)
{
    return min_of(knobs[MAX_PAIRS], knobs[LETTERS]);
}

/* After n hops the cycle is back where it began: n - 1 is the most that says something. */
static int most_hops(const int *knobs, int n_pairs)
{
    return min_of(knobs[MAX_HOPS], n_pairs - 1);
}

static int n_levels(const int *knobs)
{
    return most_hops(knobs, most_pairs(knobs));
}

static void level_name(int level, char *name, size_t cap_bytes)
{
    snprintf(name, cap_bytes, "hop %d", level + 1);
}

static int max_rows(const int *knobs)
{
    int pairs = most_pairs(knobs);
    return 1 + 4 * pairs + knobs[BRANCHES] * (2 + most_hops(knobs, pairs));
}

/* min_pairs .. most_pairs of them, uniform. */
static void draw(const int *knobs, int min_pairs, struct random *r, struct map *m)
{
    int pool[ALPHABET], order[ALPHABET];
    m->n = min_pairs + random_below(r, most_pairs(knobs) - min_pairs + 1);
    for (int i = 0; i < knobs[LETTERS]; i++)
        pool[i] = i;
    random_shuffle(r, pool, knobs[LETTERS]);
    for (int i = 0; i < m->n; i++) {
        m->cycle[i] = pool[i];
        order[i] = i;
    }
    random_shuffle(r, order, m->n);
    m->text.len = 0;
    for (int i = 0; i < m->n; i++) {
        task_text_add(&m->text, task_letter(m->cycle[order[i]]));
        task_text_add(&m->text, '>');
        task_text_add(&m->text, task_letter(m->cycle[(order[i] + 1) % m->n]));
        task_text_add(&m->text, i + 1 < m->n ? ' ' : ';');
    }
}

static enum status draw_of_split(const int *knobs, int min_pairs, enum task_split split,
                                 struct random *r, struct map *m, struct err *err)
{
    for (int i = 0; i < TASK_MAX_DRAWS; i++) {
        draw(knobs, min_pairs, r, m);
        if (task_text_is_of(&m->text, split))
            return STATUS_OK;
    }
    return task_no_context(&task_hop, split, "max_pairs or letters", err);
}

/* Every `>` predicts where the hops so far lead, at its own level. */
static enum status add_query(const struct map *m, int first_level, int start, int hops,
                             struct sequence_rows *out, struct err *err)
{
    sequence_rows_branch(out);
    enum status status = task_rows_symbol(out, task_letter(m->cycle[start]), err);
    for (int k = 1; k <= hops && status == STATUS_OK; k++) {
        char here[2] = {task_letter(m->cycle[(start + k) % m->n]), '\0'};
        status = task_rows_symbol(out, '>', err);
        if (status != STATUS_OK)
            break;
        if (k == hops)
            status = task_rows_answer(out, here, first_level + k - 1, err);
        else
            sequence_rows_target(out, task_symbol_id(here[0]), 1, first_level + k - 1);
    }
    return status;
}

static enum status train(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err)
{
    struct map m;
    enum status status = draw_of_split(knobs, MIN_PAIRS, TASK_TRAIN, r, &m, err);
    if (status == STATUS_OK)
        status = task_rows_prefix(out, &m.text, err);
    int most = most_hops(knobs, m.n);
    for (int i = 0; i < knobs[BRANCHES] && status == STATUS_OK; i++) {
        int start = random_below(r, m.n);
        int hops = random_below(r, 2) == 0 ? most : 1 + random_below(r, most);
        status = add_query(&m, first_level, start, hops, out, err);
    }
    return status;
}

static enum status problem(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err)
{
    struct map m;
    enum status status = task_choose_level(&task_hop, knobs, level, r, &level, err);
    if (status != STATUS_OK)
        return status;
    int hops = level + 1, min_pairs = hops + 1 > MIN_PAIRS ? hops + 1 : MIN_PAIRS;
    status = draw_of_split(knobs, min_pairs, split, r, &m, err);
    if (status != STATUS_OK)
        return status;
    int start = random_below(r, m.n), n = 0;
    char query[2 + HOPS_CAP], answer[2] = {task_letter(m.cycle[(start + hops) % m.n]), '\0'};
    query[n++] = task_letter(m.cycle[start]);
    while (n <= hops)
        query[n++] = '>';
    query[n] = '\0';
    task_problem_set(out, &m.text, query, answer, level);
    return STATUS_OK;
}

const struct task task_hop = {
    .name = "hop",
    .help = "follow a letter p times through a map of pairs that form one cycle",
    .n_knobs = 4,
    .knobs = {[MAX_PAIRS] = {"max_pairs", "pairs: 3 to this many", MIN_PAIRS, ALPHABET, 8},
              [LETTERS] = {"letters", "letters in use, from a on", MIN_PAIRS, ALPHABET, ALPHABET},
              [MAX_HOPS] = {"max_hops", "hops: 1 to this many, below the pairs", 1, HOPS_CAP, 4},
              [BRANCHES] = {"branches", "queries of a training sequence", 1, 64, 12}},
    .n_levels = n_levels,
    .level_name = level_name,
    .first_loop = task_steps_of_level,
    .max_rows = max_rows,
    .train = train,
    .problem = problem,
};
