/* igsm: a variable's value, mod 7, through a graph of definitions in any order, `x=y+z y=3 z=2;x?`.
 */
#include "train/task_variables.h"

#include <stdio.h>

enum { VARIABLES, MAX_DEPTH, OPERATORS, BRANCHES, LETTERS };
enum { ALPHABET = TASK_MAX_VARIABLES, MIN_VARIABLES = 2, MODULUS = 7 };

/* Variables are defined by earlier ones; the text has the definitions in another order. A
 * definition is what stands to the right of =. */
enum { DEFINITION_BYTES = 8 };

static int n_levels(const int *knobs)
{
    return 1 + (knobs[MAX_DEPTH] < knobs[VARIABLES] - 1 ? knobs[MAX_DEPTH] : knobs[VARIABLES] - 1);
}

static void level_name(int level, char *name, size_t cap_bytes)
{
    snprintf(name, cap_bytes, "igsm %d", level);
}

static int n_branches(const int *knobs, int n_variables)
{
    return knobs[BRANCHES] < n_variables ? knobs[BRANCHES] : n_variables;
}

static int max_rows(const int *knobs)
{
    return 1 + 6 * knobs[VARIABLES] + 3 * n_branches(knobs, knobs[VARIABLES]);
}

static int apply(char op, int a, int b)
{
    return (op == '+' ? a + b : op == '-' ? a - b + MODULUS : a * b) % MODULUS;
}

/* Variable i = parent op other, or other op parent; other is a second variable half of the time,
 * where the depth allows one, else a digit. */
static void define_from(struct task_variables *g, int i, int parent, const int *knobs,
                        struct random *r, char *definition)
{
    char op = "+-*"[random_below(r, knobs[OPERATORS])];
    int second = i > 1 && random_below(r, 2) == 0 ? random_below(r, i - 1) : -1;
    if (second >= parent)
        second++; /* any of the others */
    if (second >= 0 && g->depth[second] >= knobs[MAX_DEPTH])
        second = -1;
    int a = g->value[parent], depth = g->depth[parent], b;
    char left = task_letter(g->name[parent]), right;
    if (second >= 0) {
        b = g->value[second];
        right = task_letter(g->name[second]);
        depth = g->depth[second] > depth ? g->depth[second] : depth;
    } else {
        /* Not 0, and not 1 for a product: those say nothing or give the parent away. */
        b = op == '*' ? 2 + random_below(r, MODULUS - 2) : 1 + random_below(r, MODULUS - 1);
        right = (char)('0' + b);
    }
    bool is_swapped = random_below(r, 2) == 0;
    g->value[i] = is_swapped ? apply(op, b, a) : apply(op, a, b);
    g->depth[i] = depth + 1;
    snprintf(definition, DEFINITION_BYTES, "%c%c%c", is_swapped ? right : left, op,
             is_swapped ? left : right);
}

/* Half of the most variables to all of them. As in chain, four of five want a parent, two thirds
 * of those the variable just before. Most of the graph is no ancestor of a given variable. */
static void draw(const int *knobs, struct random *r, struct task_variables *g)
{
    int pool[ALPHABET], order[ALPHABET];
    char definitions[ALPHABET][DEFINITION_BYTES];
    int fewest = (knobs[VARIABLES] + 1) / 2;
    fewest = fewest < MIN_VARIABLES ? MIN_VARIABLES : fewest;
    g->n = fewest + random_below(r, knobs[VARIABLES] - fewest + 1);
    int n_letters = knobs[LETTERS] > knobs[VARIABLES] ? knobs[LETTERS] : knobs[VARIABLES];
    for (int i = 0; i < n_letters; i++)
        pool[i] = i;
    random_shuffle(r, pool, n_letters);
    for (int i = 0; i < g->n; i++) {
        int parent = -1;
        g->name[i] = pool[i];
        order[i] = i;
        if (i > 0 && random_below(r, 5) < 4)
            parent = random_below(r, 3) < 2 ? i - 1 : random_below(r, i);
        if (parent >= 0 && g->depth[parent] < knobs[MAX_DEPTH]) {
            define_from(g, i, parent, knobs, r, definitions[i]);
            continue;
        }
        g->value[i] = random_below(r, MODULUS);
        g->depth[i] = 0;
        snprintf(definitions[i], DEFINITION_BYTES, "%d", g->value[i]);
    }
    random_shuffle(r, order, g->n);
    g->text.len = 0;
    for (int i = 0; i < g->n; i++) {
        task_text_add(&g->text, task_letter(g->name[order[i]]));
        task_text_add(&g->text, '=');
        for (const char *c = definitions[order[i]]; *c != '\0'; c++)
            task_text_add(&g->text, *c);
        task_text_add(&g->text, i + 1 < g->n ? ' ' : ';');
    }
}

static const struct task_variables_source source = {
    .task = &task_igsm, .advice = "variables", .draw = draw};

static enum status train(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err)
{
    struct task_variables g;
    int order[ALPHABET];
    enum status status = task_variables_context(&source, knobs, r, &g, out, err);
    if (status != STATUS_OK)
        return status;
    for (int i = 0; i < g.n; i++)
        order[i] = i;
    random_shuffle(r, order, g.n);
    for (int i = 0; i < n_branches(knobs, g.n) && status == STATUS_OK; i++)
        status = task_variables_branch(&g, order[i], first_level, out, err);
    return status;
}

static enum status problem(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err)
{
    return task_variables_problem(&source, knobs, split, level, r, out, err);
}

const struct task task_igsm = {
    .name = "igsm",
    .help = "the value of a variable, mod 7, through a graph of definitions in any order",
    .n_knobs = 5,
    .knobs = {[VARIABLES] = {"variables", "definitions: half of this to this many", MIN_VARIABLES,
                             ALPHABET, 12},
              [MAX_DEPTH] = {"max_depth", "variables on the way to a digit, at most", 0, 8, 4},
              [OPERATORS] = {"operators", "1: +, 2: + and -, 3: + - and *", 1, 3, 3},
              [BRANCHES] = {"branches", "queries of a training sequence", 1, ALPHABET, ALPHABET},
              [LETTERS] = {"letters", "letters in use, from a on; as many as variables at least",
                           MIN_VARIABLES, ALPHABET, ALPHABET}},
    .n_levels = n_levels,
    .level_name = level_name,
    .first_loop = task_steps_of_level,
    .max_rows = max_rows,
    .train = train,
    .problem = problem,
};
