/* Synthetic tasks: endless problems by seed, with a difficulty, in one shared alphabet of 49
 * symbols.
 *
 * A task makes two things from the same rules: training sequences (one context, several queries as
 * branches) and single problems (prompt, answer, level) for evaluation. Whether a context may be
 * trained on is decided by its hash: splits never overlap, whatever the seed. */
#ifndef TRAIN_TASK_H
#define TRAIN_TASK_H

#include "proto/status.h"
#include "train/random.h"
#include "train/sequence_rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* <s> 0, newline 1, space 2, a..z 3..28, 0..9 29..38, then = > ; + - * ? , . :  39..48 */
enum { TASK_VOCABULARY = 49, TASK_BOS = 0, TASK_EOS = 1 };
/* -1 for a character outside the alphabet. */
int task_symbol_id(char c);
char task_symbol(int id); /* '\0' for <s> */

enum task_split { TASK_TRAIN, TASK_VALIDATION, TASK_TEST }; /* 62/64, 1/64, 1/64 of all contexts */

enum { TASK_MAX_KNOBS = 8, TASK_MAX_LEVELS = 40, TASK_PROMPT_BYTES = 4096, TASK_ANSWER_BYTES = 32 };

/* What a recipe and its curriculum may set: letters, max_hops, ... */
struct task_knob {
    const char *name, *help;
    int min, max, initial; /* initial is the full task, without a curriculum */
};

struct task_problem {
    char prompt[TASK_PROMPT_BYTES]; /* without <s> */
    char answer[TASK_ANSWER_BYTES]; /* without the newline */
    int level;
};

struct task {
    const char *name, *help;
    int n_knobs;
    struct task_knob knobs[TASK_MAX_KNOBS];
    /* Levels (difficulties) are 0 .. n_levels - 1 under these knobs; level_name writes "hop 3". */
    int (*n_levels)(const int *knobs);
    void (*level_name)(int level, char *name, size_t cap_bytes);
    /* The loops a level needs when each loop takes one step of the problem: hop p needs p, depth k
     * needs k + 1. NULL: problems of this task have no such steps. */
    int (*first_loop)(int level);
    /* Rows a training sequence may take at most under these knobs. */
    int (*max_rows)(const int *knobs);
    /* One training sequence from TASK_TRAIN; levels of its rows are first_level + level. */
    enum status (*train)(const int *knobs, struct random *r, int first_level,
                         struct sequence_rows *out, struct err *err);
    /* One problem of a split; level -1: the task's own mixture. */
    enum status (*problem)(const int *knobs, enum task_split split, int level, struct random *r,
                           struct task_problem *out, struct err *err);
};

/* hop, chain, addition, phop, igsm; NULL when there is no such task. */
const struct task *task_find(const char *name);
const struct task *task_at(size_t i); /* NULL past the last */
/* Index of the knob, -1: none of that name. */
int task_knob_find(const struct task *t, const char *name);
void task_knobs_init(const struct task *t, int *knobs);
/* Where a context (the part of a prompt that its queries share) belongs. */
enum task_split task_split_of(const char *context, size_t len_bytes);

/* Writes tokenizer.json and tokenizer_config.json of the 49 symbols into dir, as Hugging Face
 * libraries read them. STATUS_IO. */
enum status task_write_tokenizer(const char *dir, struct err *err);

#endif
