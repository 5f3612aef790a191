/* A task's training sequence read back as the prompts it stands for, for tests. */
#ifndef TESTS_TASK_ROWS_H
#define TESTS_TASK_ROWS_H

#include "tests/unit.h"

#include "train/task.h"

/* What the prompt that ends with row i is: the prefix and the row's branch up to it. */
static inline void task_rows_prompt(const struct sequence_rows *s, int i, char *prompt)
{
    int n = 0;
    for (int j = 1; j <= i; j++)
        if (j < s->n_prefix || (j >= s->branch_start[i] && s->branch_start[i] >= s->n_prefix))
            prompt[n++] = task_symbol(s->ids[j]);
    prompt[n] = '\0';
}

/* The sequence is well formed: <s> in front, positions and branches as a prompt of its own would
 * have them, an answer's symbols follow the rows that predict them, newlines weigh a tenth. */
static inline void task_rows_check(const struct sequence_rows *s, int max_rows, int first_level,
                                   int n_levels)
{
    int n_targets = 0;
    assert_in_range(s->n, 1, max_rows);
    assert_int_equal(s->ids[0], TASK_BOS);
    for (int i = 0; i < s->n; i++) {
        int start = s->branch_start[i];
        bool is_last = i + 1 == s->n || s->branch_start[i + 1] != start;
        assert_in_range(s->ids[i], 0, TASK_VOCABULARY - 1);
        assert_int_equal(s->positions[i], start == 0 ? i : s->n_prefix + i - start);
        if (s->targets[i] == TASK_EOS) {
            assert_true(is_last);
            assert_true(s->weights[i] == 0.1f);
            assert_int_equal(s->levels[i], -1);
        } else if (s->targets[i] >= 0) {
            n_targets++;
            assert_true(s->weights[i] == 1.0f);
            assert_in_range(s->levels[i], first_level, first_level + n_levels - 1);
        }
        /* Every branch ends in an answer that predicts its end. */
        if (is_last && (start > 0 || s->n == s->n_prefix)) {
            assert_int_equal(s->targets[i], TASK_EOS);
            assert_int_equal(s->targets[i - 1], s->ids[i]);
        }
    }
    assert_true(n_targets > 0);
}

#endif
