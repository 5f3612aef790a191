/* addition: the sum of n numbers of a few digits, answered directly, `123+045=` -> `0168`. */
#include "train/task_parts.h"

#include <stdio.h>

enum { OPERANDS, DIGITS };
enum { MAX_OPERANDS = 32, MAX_DIGITS = 6 };

struct sum {
    struct task_text text;
    char answer[TASK_ANSWER_BYTES];
};

/* 2, 4, 8 ... operands, up to the knob. */
static int n_levels(const int *knobs)
{
    int n = 0;
    while (2 << n <= knobs[OPERANDS])
        n++;
    return n;
}

static void level_name(int level, char *name, size_t cap_bytes)
{
    snprintf(name, cap_bytes, "add %d", 2 << level);
}

/* As wide as the largest sum: the width says nothing about the sum itself. */
static int answer_digits(int n_operands, int n_digits)
{
    int largest = 1, width = 0;
    for (int i = 0; i < n_digits; i++)
        largest *= 10;
    for (largest = n_operands * (largest - 1); largest > 0; largest /= 10)
        width++;
    return width;
}

static int max_rows(const int *knobs)
{
    int most = 1 << n_levels(knobs), digits = knobs[DIGITS];
    return 1 + most * (digits + 1) + answer_digits(most, digits);
}

static void draw(const int *knobs, int n_operands, struct random *r, struct sum *s)
{
    int total = 0, n_digits = knobs[DIGITS], end = 1;
    for (int i = 0; i < n_digits; i++)
        end *= 10;
    s->text.len = 0;
    for (int i = 0; i < n_operands; i++) {
        int x = random_below(r, end);
        total += x;
        task_text_number(&s->text, x, n_digits);
        task_text_add(&s->text, i + 1 < n_operands ? '+' : '=');
    }
    snprintf(s->answer, sizeof s->answer, "%0*d", answer_digits(n_operands, n_digits), total);
}

static enum status draw_of_split(const int *knobs, int level, enum task_split split,
                                 struct random *r, struct sum *s, struct err *err)
{
    for (int i = 0; i < TASK_MAX_DRAWS; i++) {
        draw(knobs, 2 << level, r, s);
        if (task_text_is_of(&s->text, split))
            return STATUS_OK;
    }
    return task_no_context(&task_addition, split, "digits", err);
}

/* A problem has one question: the sequence is all prefix. */
static enum status train(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err)
{
    struct sum s;
    int level = random_below(r, n_levels(knobs));
    enum status status = draw_of_split(knobs, level, TASK_TRAIN, r, &s, err);
    if (status == STATUS_OK)
        status = task_rows_prefix(out, &s.text, err);
    if (status == STATUS_OK)
        status = task_rows_answer(out, s.answer, first_level + level, err);
    return status;
}

static enum status problem(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err)
{
    struct sum s;
    enum status status = task_choose_level(&task_addition, knobs, level, r, &level, err);
    if (status == STATUS_OK)
        status = draw_of_split(knobs, level, split, r, &s, err);
    if (status == STATUS_OK)
        task_problem_set(out, &s.text, "", s.answer, level);
    return status;
}

const struct task task_addition = {
    .name = "addition",
    .help = "the sum of 2, 4, 8, 16 or 32 numbers, without steps in between",
    .n_knobs = 2,
    .knobs = {[OPERANDS] = {"operands", "2, 4, 8 ... numbers, up to this", 2, MAX_OPERANDS,
                            MAX_OPERANDS},
              [DIGITS] = {"digits", "digits of a number", 1, MAX_DIGITS, 3}},
    .n_levels = n_levels,
    .level_name = level_name,
    .max_rows = max_rows,
    .train = train,
    .problem = problem,
};
