/* Turns "--task hop,chain --set letters=14" into an endless row of problems. */
#include "cli/eval_tasks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_BYTES = 64 };

/* The next of the words split by commas; false at the end. *text moves on. */
static bool next_word(const char **text, char *word, bool *is_long)
{
    if (*text == NULL)
        return false;
    size_t n = strcspn(*text, ",");
    *is_long = n >= WORD_BYTES;
    if (*is_long)
        n = WORD_BYTES - 1;
    memcpy(word, *text, n);
    word[n] = '\0';
    const char *comma = strchr(*text, ',');
    *text = comma != NULL ? comma + 1 : NULL;
    return true;
}

static enum status find_task(const char *name, const struct task **out, struct err *err)
{
    *out = task_find(name);
    if (*out != NULL)
        return STATUS_OK;
    char known[256] = "";
    for (size_t i = 0; task_at(i) != NULL; i++) {
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i > 0 ? ", " : "", task_at(i)->name);
    }
    return err_set(err, STATUS_INVALID, "--task: there is no task '%s'; there are %s", name, known);
}

/* "letters=14" or "hop.letters=14" for every task it fits. */
static enum status set_knob(struct eval_tasks *t, char *word, struct err *err)
{
    char *value_text = strchr(word, '=');
    if (value_text == NULL)
        return err_set(err, STATUS_INVALID, "--set: '%s' is not KNOB=NUMBER", word);
    *value_text++ = '\0';
    char *end;
    errno = 0;
    long value = strtol(value_text, &end, 10);
    if (errno != 0 || end == value_text || *end != '\0')
        return err_set(err, STATUS_INVALID, "--set %s: '%s' is not a whole number", word,
                       value_text);
    const char *dot = strchr(word, '.');
    const char *name = dot != NULL ? dot + 1 : word;
    bool is_found = false;
    for (int i = 0; i < t->n_tasks; i++) {
        const struct task *task = t->tasks[i].task;
        size_t n_name = dot != NULL ? (size_t)(dot - word) : 0;
        if (dot != NULL && (strlen(task->name) != n_name || strncmp(word, task->name, n_name) != 0))
            continue;
        int k = task_knob_find(task, name);
        if (k < 0)
            continue;
        if (value < task->knobs[k].min || value > task->knobs[k].max)
            return err_set(err, STATUS_INVALID, "--set %s=%ld: %s of %s is %d to %d", word, value,
                           name, task->name, task->knobs[k].min, task->knobs[k].max);
        t->tasks[i].knobs[k] = (int)value;
        is_found = true;
    }
    if (is_found)
        return STATUS_OK;
    char known[512] = "";
    for (int i = 0; i < t->n_tasks; i++)
        for (int k = 0; k < t->tasks[i].task->n_knobs; k++) {
            size_t n = strlen(known);
            snprintf(known + n, sizeof known - n, "%s%s.%s", n > 0 ? ", " : "",
                     t->tasks[i].task->name, t->tasks[i].task->knobs[k].name);
        }
    return err_set(err, STATUS_INVALID, "--set: no task here has a knob '%s'; there are %s", word,
                   known);
}

enum status eval_tasks_parse(const char *names, const char *knobs, enum task_split split,
                             uint64_t seed, struct eval_tasks *out, struct err *err)
{
    struct eval_tasks t = {.split = split, .seed = seed};
    char word[WORD_BYTES];
    bool is_long;
    while (next_word(&names, word, &is_long)) {
        if (t.n_tasks == EVAL_MAX_TASKS)
            return err_set(err, STATUS_INVALID, "--task: more than %d tasks", EVAL_MAX_TASKS);
        struct eval_task *task = &t.tasks[t.n_tasks];
        if (find_task(word, &task->task, err) != STATUS_OK)
            return err->code;
        for (int i = 0; i < t.n_tasks; i++)
            if (t.tasks[i].task == task->task)
                return err_set(err, STATUS_INVALID, "--task: '%s' is named twice", word);
        task_knobs_init(task->task, task->knobs);
        t.n_tasks++;
    }
    while (next_word(&knobs, word, &is_long)) {
        if (is_long)
            return err_set(err, STATUS_INVALID, "--set: '%s...' is too long", word);
        if (set_knob(&t, word, err) != STATUS_OK)
            return err->code;
    }
    for (int i = 0; i < t.n_tasks; i++) {
        t.tasks[i].first_level = t.n_levels;
        t.tasks[i].n_levels = t.tasks[i].task->n_levels(t.tasks[i].knobs);
        t.n_levels += t.tasks[i].n_levels;
    }
    *out = t;
    return STATUS_OK;
}

const struct eval_task *eval_tasks_of_level(const struct eval_tasks *t, int level)
{
    int i = 0;
    while (i + 1 < t->n_tasks && level >= t->tasks[i + 1].first_level)
        i++;
    return &t->tasks[i];
}

enum status eval_tasks_problem(const struct eval_tasks *t, uint64_t i, struct task_problem *problem,
                               int *level, struct err *err)
{
    int all = (int)(i % (uint64_t)t->n_levels);
    const struct eval_task *e = eval_tasks_of_level(t, all);
    struct random r = random_of(t->seed, (uint64_t)t->split, i);
    enum status status =
        e->task->problem(e->knobs, t->split, all - e->first_level, &r, problem, err);
    if (status == STATUS_OK)
        *level = all;
    return status;
}

void eval_tasks_level_name(const struct eval_tasks *t, int level, char *name, size_t cap_bytes)
{
    const struct eval_task *e = eval_tasks_of_level(t, level);
    e->task->level_name(level - e->first_level, name, cap_bytes);
}
