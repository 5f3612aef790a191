/* chain: definitions in order, each a digit or from one variable before it, `g=0 v=g+8;v?`. */
#include "train/task_variables.h"

#include <stdio.h>

enum { MAX_DEFINITIONS, MAX_DEPTH, OPERATORS, LETTERS };
enum { MIN_DEFINITIONS = 2, ALPHABET = TASK_MAX_VARIABLES, MODULUS = 10 };

static int most_definitions(const int *knobs)
{
    return knobs[MAX_DEFINITIONS] < knobs[LETTERS] ? knobs[MAX_DEFINITIONS] : knobs[LETTERS];
}

static int n_levels(const int *knobs)
{
    int longest = most_definitions(knobs) - 1;
    return 1 + (knobs[MAX_DEPTH] < longest ? knobs[MAX_DEPTH] : longest);
}

static void level_name(int level, char *name, size_t cap_bytes)
{
    snprintf(name, cap_bytes, "dep %d", level);
}

static int max_rows(const int *knobs)
{
    return 1 + 6 * most_definitions(knobs) + 3 * most_definitions(knobs);
}

/* x=y+k, x=y-k, x=y*k; mod 10. */
static void define_from(struct task_variables *p, int i, int parent, int n_operators,
                        struct random *r)
{
    char op = "+-*"[random_below(r, n_operators)];
    int k = op == '*' ? 2 + random_below(r, 8) : 1 + random_below(r, 9);
    int y = p->value[parent];
    int value = op == '+' ? y + k : op == '-' ? y - k + MODULUS : y * k;
    p->value[i] = value % MODULUS;
    p->depth[i] = p->depth[parent] + 1;
    task_text_add(&p->text, task_letter(p->name[parent]));
    task_text_add(&p->text, op);
    task_text_add(&p->text, (char)('0' + k));
}

/* Four of five definitions want a parent, two thirds of those the variable just before: chains grow
 * deep while most programs stay short. A parent at the depth limit is none. */
static void draw(const int *knobs, struct random *r, struct task_variables *p)
{
    int pool[ALPHABET];
    p->n = MIN_DEFINITIONS + random_below(r, most_definitions(knobs) - MIN_DEFINITIONS + 1);
    for (int i = 0; i < knobs[LETTERS]; i++)
        pool[i] = i;
    random_shuffle(r, pool, knobs[LETTERS]);
    p->text.len = 0;
    for (int i = 0; i < p->n; i++) {
        int parent = -1;
        p->name[i] = pool[i];
        if (i > 0 && random_below(r, 5) < 4)
            parent = random_below(r, 3) < 2 ? i - 1 : random_below(r, i);
        task_text_add(&p->text, task_letter(p->name[i]));
        task_text_add(&p->text, '=');
        if (parent >= 0 && p->depth[parent] < knobs[MAX_DEPTH]) {
            define_from(p, i, parent, knobs[OPERATORS], r);
        } else {
            p->value[i] = random_below(r, MODULUS);
            p->depth[i] = 0;
            task_text_add(&p->text, (char)('0' + p->value[i]));
        }
        task_text_add(&p->text, i + 1 < p->n ? ' ' : ';');
    }
}

static const struct task_variables_source source = {
    .task = &task_chain, .advice = "max_definitions or letters", .draw = draw};

/* One branch a variable. */
static enum status train(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err)
{
    struct task_variables p;
    enum status status = task_variables_context(&source, knobs, r, &p, out, err);
    for (int i = 0; status == STATUS_OK && i < p.n; i++)
        status = task_variables_branch(&p, i, first_level, out, err);
    return status;
}

static enum status problem(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err)
{
    return task_variables_problem(&source, knobs, split, level, r, out, err);
}

const struct task task_chain = {
    .name = "chain",
    .help = "the value of a variable, mod 10, through definitions in order",
    .n_knobs = 4,
    .knobs = {[MAX_DEFINITIONS] = {"max_definitions", "definitions: 2 to this many",
                                   MIN_DEFINITIONS, ALPHABET, 6},
              [MAX_DEPTH] = {"max_depth", "variables on the way to a digit, at most", 0, 8, 3},
              [OPERATORS] = {"operators", "1: +, 2: + and -, 3: + - and *", 1, 3, 3},
              [LETTERS] = {"letters", "letters in use, from a on", MIN_DEFINITIONS, ALPHABET,
                           ALPHABET}},
    .n_levels = n_levels,
    .level_name = level_name,
    .first_loop = task_steps_of_level,
    .max_rows = max_rows,
    .train = train,
    .problem = problem,
};
