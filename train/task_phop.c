/* phop: p steps of an induction head back through a string of letters, `abcb...;>>>`. */
#include "train/task_parts.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { LENGTH, ALPHABET, HOPS, BRANCHES };
enum { MAX_LENGTH = 512, MAX_HOPS = 32 };
/* Free draws that lack hops, before a string is built around its hops. */
enum { FREE_DRAWS = 32 };

/* hop_p(v) = v[find_p(v, n)], find_1(v, i) = max({0} u {j <= i : v[j-1] = v[i]}), find_p(v, i) =
 * find_1(v, find_{p-1}(v, i)) (arXiv 2502.17416, after arXiv 2402.09268). With two equal neighbours
 * find_1 stands still, so that all further hops are one: strings here have none, and always
 * hops[p] > 0. Indices below are from 0: -1 stands for the paper's 0. */
struct string {
    int n, n_hops;
    int letters[MAX_LENGTH];
    int hops[MAX_HOPS]; /* letter that hop k + 1 leads to */
    struct task_text text;
};

static int most_hops(const int *knobs)
{
    return knobs[HOPS] < knobs[LENGTH] - 2 ? knobs[HOPS] : knobs[LENGTH] - 2;
}

static int n_levels(const int *knobs)
{
    return most_hops(knobs);
}

static void level_name(int level, char *name, size_t cap_bytes)
{
    snprintf(name, cap_bytes, "phop %d", level + 1);
}

static int max_rows(const int *knobs)
{
    return 2 + knobs[LENGTH] + knobs[BRANCHES] * (1 + most_hops(knobs));
}

/* A letter that is neither a nor b; they may be one, or -1. */
static int other_letter(int n_letters, int a, int b, struct random *r)
{
    int c;
    do
        c = random_below(r, n_letters);
    while (c == a || c == b);
    return c;
}

static int find(const struct string *s, int i)
{
    int j = i;
    while (j > 0 && s->letters[j - 1] != s->letters[i])
        j--;
    return j > 0 ? j : -1;
}

/* Fills hops; false when the string ends before the last. */
static bool follow(struct string *s)
{
    int at = s->n - 1;
    for (int k = 0; k < s->n_hops; k++) {
        at = find(s, at);
        if (at < 0)
            return false;
        s->hops[k] = s->letters[at];
    }
    return true;
}

static void draw_freely(int n_letters, struct random *r, struct string *s)
{
    for (int i = s->n - 1, next = -1; i >= 0; i--)
        next = s->letters[i] = other_letter(n_letters, next, -1, r);
}

/* From the end on: each hop gets a distance, at most its even share of what is left, and between
 * its ends no letter like the one that is looked for. */
static void draw_around_hops(int n_letters, struct random *r, struct string *s)
{
    int at = s->n - 1, written = at; /* letters [written, n) are decided */
    s->letters[at] = random_below(r, n_letters);
    for (int left = s->n_hops; left > 0; left--) {
        int letter = s->letters[at];
        int to = at - 1 - random_below(r, (at - 1) / left);
        while (written > to) {
            written--;
            s->letters[written] = other_letter(n_letters, letter, s->letters[written + 1], r);
        }
        written = to - 1;
        s->letters[written] = letter;
        at = to;
    }
    while (written-- > 0)
        s->letters[written] = other_letter(n_letters, s->letters[written + 1], -1, r);
}

static void draw(const int *knobs, struct random *r, struct string *s)
{
    bool is_done = false;
    s->n = knobs[LENGTH];
    s->n_hops = most_hops(knobs);
    for (int i = 0; i < FREE_DRAWS && !is_done; i++) {
        draw_freely(knobs[ALPHABET], r, s);
        is_done = follow(s);
    }
    if (!is_done) {
        draw_around_hops(knobs[ALPHABET], r, s);
        is_done = follow(s);
        assert(is_done);
    }
    s->text.len = 0;
    for (int i = 0; i < s->n; i++)
        task_text_add(&s->text, task_letter(s->letters[i]));
    task_text_add(&s->text, ';');
}

static enum status draw_of_split(const int *knobs, enum task_split split, struct random *r,
                                 struct string *s, struct err *err)
{
    for (int i = 0; i < TASK_MAX_DRAWS; i++) {
        draw(knobs, r, s);
        if (task_text_is_of(&s->text, split))
            return STATUS_OK;
    }
    return task_no_context(&task_phop, split, "length or alphabet", err);
}

/* Every `>` predicts where the hops so far lead, at its own level. */
static enum status add_query(const struct string *s, int first_level, int hops,
                             struct sequence_rows *out, struct err *err)
{
    enum status status = STATUS_OK;
    sequence_rows_branch(out);
    for (int k = 0; k < hops && status == STATUS_OK; k++) {
        char here[2] = {task_letter(s->hops[k]), '\0'};
        status = task_rows_symbol(out, '>', err);
        if (status != STATUS_OK)
            break;
        if (k + 1 == hops)
            status = task_rows_answer(out, here, first_level + k, err);
        else
            sequence_rows_target(out, task_symbol_id(here[0]), 1, first_level + k);
    }
    return status;
}

/* The first branch goes all the way; others end sooner, so that ends are seen everywhere. */
static enum status train(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err)
{
    struct string s;
    enum status status = draw_of_split(knobs, TASK_TRAIN, r, &s, err);
    if (status == STATUS_OK)
        status = task_rows_prefix(out, &s.text, err);
    for (int i = 0; i < knobs[BRANCHES] && status == STATUS_OK; i++)
        status =
            add_query(&s, first_level, i == 0 ? s.n_hops : 1 + random_below(r, s.n_hops), out, err);
    return status;
}

static enum status problem(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err)
{
    struct string s;
    enum status status = task_choose_level(&task_phop, knobs, level, r, &level, err);
    if (status == STATUS_OK)
        status = draw_of_split(knobs, split, r, &s, err);
    if (status != STATUS_OK)
        return status;
    char query[MAX_HOPS + 1], answer[2] = {task_letter(s.hops[level]), '\0'};
    memset(query, '>', (size_t)level + 1);
    query[level + 1] = '\0';
    task_problem_set(out, &s.text, query, answer, level);
    return STATUS_OK;
}

const struct task task_phop = {
    .name = "phop",
    .help = "p-hop induction: what followed the last letter when it came before, p times",
    .n_knobs = 4,
    .knobs = {[LENGTH] = {"length", "letters of the string", 8, MAX_LENGTH, 256},
              [ALPHABET] = {"alphabet", "letters in use, from a on", 3, 26, 4},
              [HOPS] = {"hops", "hops: 1 to this many", 1, MAX_HOPS, 16},
              [BRANCHES] = {"branches", "queries of a training sequence", 1, 16, 2}},
    .n_levels = n_levels,
    .level_name = level_name,
    .first_loop = task_steps_of_level,
    .max_rows = max_rows,
    .train = train,
    .problem = problem,
};
