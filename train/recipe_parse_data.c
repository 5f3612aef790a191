/* Reads "data": where sequences come from, by name. */
#include "train/recipe_parse.h"

#include <string.h>

static size_t knob_names(const struct task *task, const char *names[TASK_MAX_KNOBS])
{
    for (int i = 0; i < task->n_knobs; i++)
        names[i] = task->knobs[i].name;
    return (size_t)task->n_knobs;
}

enum status recipe_parse_known(const struct recipe_reader *r, struct recipe_names names,
                               const struct task *task)
{
    const char *knobs[TASK_MAX_KNOBS];
    const struct recipe_names lists[] = {names, {knobs, knob_names(task, knobs)}};
    return recipe_reader_known(r, lists, 2);
}

enum status recipe_parse_knobs(const struct recipe_reader *r, const struct task *task, int *knobs,
                               bool *sets)
{
    for (int i = 0; i < task->n_knobs; i++) {
        const struct task_knob *knob = &task->knobs[i];
        enum status status = recipe_reader_int(r, knob->name, knob->min, knob->max, &knobs[i]);
        if (status != STATUS_OK)
            return status;
        if (sets != NULL)
            sets[i] = recipe_reader_has(r, knob->name);
    }
    return STATUS_OK;
}

enum status recipe_parse_source(const struct recipe_reader *r, const char *key,
                                const struct recipe *recipe, bool needs_task, int *out)
{
    const char *names[RECIPE_MAX_DATA];
    for (int i = 0; i < recipe->n_data; i++)
        names[i] = recipe->data[i].name;
    int found = 0;
    enum status status = recipe_reader_require(r, key);
    if (status == STATUS_OK)
        status = recipe_reader_choice(r, key, (struct recipe_names){names, (size_t)recipe->n_data},
                                      &found);
    if (status != STATUS_OK)
        return status;
    if (needs_task && recipe->data[found].task == NULL)
        return recipe_reader_fail(r, key, NULL, "a source with a task: texts have no levels");
    *out = found;
    return STATUS_OK;
}

static enum status read_task(const struct recipe_reader *r, struct recipe_data *d)
{
    static const char *const own[] = {"task"};
    const char *names[64];
    size_t n = 0;
    for (const struct task *t; n < 64 && (t = task_at(n)) != NULL; n++)
        names[n] = t->name;
    int i = 0;
    enum status status = recipe_reader_choice(r, "task", (struct recipe_names){names, n}, &i);
    if (status != STATUS_OK)
        return status;
    d->task = task_at((size_t)i);
    task_knobs_init(d->task, d->knobs);
    status = recipe_parse_known(r, RECIPE_NAMES(own), d->task);
    return status == STATUS_OK ? recipe_parse_knobs(r, d->task, d->knobs, NULL) : status;
}

static enum status read_source(const struct recipe_reader *r, struct recipe_data *d)
{
    static const char *const text[] = {"text"};
    const struct recipe_names names = RECIPE_NAMES(text);
    bool is_task = recipe_reader_has(r, "task"), is_text = recipe_reader_has(r, "text");
    if (is_task && is_text)
        return recipe_reader_fail(r, "text", NULL, "either task or text, not both");
    if (is_task)
        return read_task(r, d);
    if (!is_text)
        return recipe_reader_fail(r, "task", NULL,
                                  "task with a task's name, or text with the path of a JSONL file");
    enum status status = recipe_reader_known(r, &names, 1);
    return status == STATUS_OK ? recipe_reader_text(r, "text", sizeof d->text, d->text) : status;
}

/* Tasks write the 49 symbols' ids; a tokenizer's ids mean something else. */
static enum status check_tokenizer(const struct recipe_reader *top, const struct recipe *out)
{
    if (out->tokenizer[0] == '\0')
        return STATUS_OK;
    for (int i = 0; i < out->n_data; i++)
        if (out->data[i].task != NULL)
            return recipe_reader_fail(top, "tokenizer", NULL,
                                      "none, because data.%s is a task and tasks have their own "
                                      "49 symbols (train tasks and texts in separate runs)",
                                      out->data[i].name);
    return STATUS_OK;
}

enum status recipe_parse_data(const struct recipe_reader *top, struct recipe *out)
{
    struct recipe_reader data;
    enum status status =
        recipe_reader_text(top, "tokenizer", sizeof out->tokenizer, out->tokenizer);
    if (status == STATUS_OK)
        status = recipe_reader_child(top, "data", &data);
    if (status != STATUS_OK)
        return status;
    size_t n = json_object_size(data.object);
    if (n < 1 || n > RECIPE_MAX_DATA)
        return recipe_reader_fail(top, "data", NULL, "1 to %d sources by name", RECIPE_MAX_DATA);
    for (void *at = json_object_iter(data.object); at != NULL && status == STATUS_OK;
         at = json_object_iter_next(data.object, at)) {
        const char *name = json_object_iter_key(at);
        struct recipe_data *d = &out->data[out->n_data];
        struct recipe_reader source;
        size_t len = strlen(name);
        bool is_name = len > 0 && len < sizeof d->name;
        for (size_t i = 0; i < len && is_name; i++)
            is_name = name[i] > 0x20 && name[i] < 0x7f && name[i] != '.';
        if (!is_name)
            return recipe_reader_fail(top, "data", NULL,
                                      "names of 1 to %zu ASCII letters, without spaces and points",
                                      sizeof d->name - 1);
        memcpy(d->name, name, len + 1);
        status = recipe_reader_child(&data, name, &source);
        if (status == STATUS_OK)
            status = read_source(&source, d);
        out->n_data++;
    }
    return status == STATUS_OK ? check_tokenizer(top, out) : status;
}
