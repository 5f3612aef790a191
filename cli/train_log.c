/* Writes a training run's JSONL log, and takes one up again at a resume. */
#include "cli/train_log.h"

#include "cli/train_report.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_BYTES = 96 };

static void log_fail(struct train_log *log, int why)
{
    if (log->status == STATUS_OK)
        log->status =
            err_set(&log->err, STATUS_IO, "cannot write the log %s: %s", log->path, strerror(why));
}

/* Takes the object. 9 digits give back every fp32 value exactly. */
static void log_write(struct train_log *log, json_t *object)
{
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    if (log->file != NULL && log->status == STATUS_OK) {
        if (text == NULL)
            log->status = err_set(&log->err, STATUS_NO_MEMORY, "no memory for a line of the log");
        else if (fprintf(log->file, "%s\n", text) < 0 || fflush(log->file) != 0)
            log_fail(log, errno);
    }
    free(text);
}

/* ---- taking up a log --------------------------------------------------------------------------
 */

/* Copies the lines up to `step`; a last line without newline is what a kill left. */
static enum status keep_lines(struct train_log *log, FILE *from, FILE *to, uint64_t step)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    while ((n = getline(&line, &cap, from)) > 0 && line[n - 1] == '\n') {
        json_t *object = json_loadb(line, (size_t)n, 0, NULL);
        json_t *at = json_object_get(object, "step");
        bool is_kept = json_is_integer(at) && (uint64_t)json_integer_value(at) <= step;
        json_t *seconds = json_object_get(object, "seconds");
        json_t *cpu_seconds = json_object_get(object, "cpu_seconds");
        if (is_kept && json_is_number(seconds) && json_is_number(cpu_seconds)) {
            log->base_seconds = json_number_value(seconds);
            log->base_cpu_seconds = json_number_value(cpu_seconds);
        }
        json_decref(object);
        if (is_kept && fwrite(line, 1, (size_t)n, to) != (size_t)n)
            break;
    }
    bool has_failed = ferror(from) || ferror(to);
    free(line);
    return has_failed ? STATUS_IO : STATUS_OK;
}

/* log->file stands behind the lines kept; false: there is no log to take up. A device or a pipe has
 * none, and the rename would put a file in its place: in that of /dev/null, for root. */
static bool log_take_up(struct train_log *log, uint64_t step)
{
    char path[PATH_MAX];
    struct stat info;
    if (stat(log->path, &info) != 0 || !S_ISREG(info.st_mode))
        return false;
    FILE *from = fopen(log->path, "r");
    if (from == NULL)
        return false;
    int n = snprintf(path, sizeof path, "%s.tmp", log->path);
    FILE *to = n > 0 && (size_t)n < sizeof path ? fopen(path, "w") : NULL;
    if (to == NULL || keep_lines(log, from, to, step) != STATUS_OK || fflush(to) != 0 ||
        rename(path, log->path) != 0) {
        log_fail(log, errno);
        if (to != NULL) {
            fclose(to);
            unlink(path);
        }
        to = NULL;
    }
    fclose(from);
    log->file = to;
    return true;
}

/* A pipe that nobody reads is an error at once: plain opening would wait for a reader. */
static FILE *log_create(struct train_log *log, const char *path)
{
    struct stat info;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_CLOEXEC, 0666);
    if (fd < 0 && errno == ENXIO && stat(path, &info) == 0 && S_ISFIFO(info.st_mode)) {
        log->status = err_set(&log->err, STATUS_IO,
                              "cannot write the log %s: it is a pipe that nobody reads", path);
        return NULL;
    }
    int flags = fd >= 0 ? fcntl(fd, F_GETFL) : -1;
    FILE *file =
        flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL) {
        log_fail(log, errno);
        if (fd >= 0)
            close(fd);
    }
    return file;
}

/* ---- lines ------------------------------------------------------------------------------------
 */

static json_t *levels_json(const struct recipe *r)
{
    json_t *levels = json_array();
    char name[NAME_BYTES];
    for (int i = 0; i < recipe_n_levels(r); i++) {
        train_level_name(r, i, name, sizeof name);
        json_array_append_new(levels, json_string(name));
    }
    return levels;
}

/* JSON integers end at 2^63 - 1 here. */
static json_t *seed_json(uint64_t seed)
{
    return seed <= INT64_MAX ? json_integer((json_int_t)seed)
                             : json_sprintf("%llu", (unsigned long long)seed);
}

void train_log_open(struct train_log *log, const char *path, const struct recipe *recipe,
                    uint64_t seed, const struct trainer_start *start)
{
    char fingerprint[24];
    *log = (struct train_log){.recipe = recipe, .path = path};
    bool is_taken_up = start->resumed_from != NULL && log_take_up(log, start->step);
    if (!is_taken_up)
        log->file = log_create(log, path);
    if (log->file == NULL)
        return;
    snprintf(fingerprint, sizeof fingerprint, "%016llx",
             (unsigned long long)recipe_fingerprint(recipe));
    json_t *o =
        json_pack("{s:s, s:I, s:s, s:s, s:o, s:I, s:i, s:i, s:s, s:I, s:s}", "type",
                  is_taken_up ? "resume" : "header", "step", (json_int_t)start->step, "recipe",
                  recipe->name, "fingerprint", fingerprint, "seed", seed_json(seed), "steps",
                  (json_int_t)recipe_total_steps(recipe), "ranks", start->n_ranks, "threads",
                  start->n_threads, "isa", start->isa, "parameters",
                  (json_int_t)start->n_parameters, "version", CAROUSEL_VERSION);
    if (start->resumed_from != NULL)
        json_object_set_new(o, "resumed_from", json_string(start->resumed_from));
    json_object_set_new(o, "levels", levels_json(recipe));
    json_object_set_new(o, "loops", json_integer(recipe->config.n_loops));
    log_write(log, o);
}

static json_t *knobs_json(const struct recipe *r, const struct curriculum_state *s)
{
    json_t *all = json_object();
    for (int i = 0; i < r->n_data; i++) {
        const struct task *task = r->data[i].task;
        json_t *knobs = json_object();
        for (int k = 0; task != NULL && k < task->n_knobs; k++)
            json_object_set_new(knobs, task->knobs[k].name, json_integer(s->knobs[i][k]));
        if (task != NULL)
            json_object_set_new(all, r->data[i].name, knobs);
        else
            json_decref(knobs);
    }
    return all;
}

static json_t *means_json(const float *sums, int n, float count)
{
    json_t *means = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(means, json_real(count > 0 ? (double)(sums[i] / count) : 0.0));
    return means;
}

static json_t *accuracy_json(const struct recipe *r, const struct trainer_report *report)
{
    json_t *all = json_object();
    char name[NAME_BYTES];
    for (int i = 0; i < recipe_n_levels(r); i++) {
        if (report->sum->n[i] <= 0)
            continue;
        train_level_name(r, i, name, sizeof name);
        json_object_set_new(
            all, name,
            means_json(report->sum->correct[i], report->state->loops, report->sum->n[i]));
    }
    return all;
}

static void add_place(json_t *o, const struct recipe *r, const struct curriculum_state *s)
{
    json_object_set_new(o, "step", json_integer((json_int_t)s->step));
    json_object_set_new(o, "attempt", json_integer(s->attempt));
    json_object_set_new(o, "stage", json_string(r->stages[s->stage].name));
    json_object_set_new(o, "loops", json_integer(s->loops));
    json_object_set_new(o, "knobs", knobs_json(r, s));
}

static void write_event(struct train_log *log, const struct trainer_report *report)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {{CURRICULUM_ADVANCED, "advanced"},
                 {CURRICULUM_STAGE, "stage"},
                 {CURRICULUM_RESTART, "restart"},
                 {CURRICULUM_FINISHED, "finished"}};
    json_t *o = json_pack("{s:s}", "type", "event"), *events = json_array();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (report->events & names[i].bit)
            json_array_append_new(events, json_string(names[i].name));
    json_object_set_new(o, "events", events);
    add_place(o, log->recipe, report->state);
    log_write(log, o);
}

static void write_window(struct train_log *log, const struct trainer_report *report)
{
    const struct metrics *m = report->sum;
    float n = m->n_sequences;
    int n_loops = report->state->loops;
    double seconds = report->seconds - log->last_seconds;
    log->last_seconds = report->seconds;
    json_t *o = json_pack("{s:s}", "type", "report");
    add_place(o, log->recipe, report->state);
    json_object_set_new(o, "steps", json_integer((json_int_t)report->n_steps));
    json_object_set_new(o, "loss", json_real(n > 0 ? (double)(m->loss / n) : 0.0));
    json_object_set_new(o, "ce", means_json(m->ce, n_loops, n));
    json_object_set_new(o, "exit_mass", means_json(m->exit_mass, n_loops, n));
    json_object_set_new(o, "entropy", json_real(n > 0 ? (double)(m->entropy / n) : 0.0));
    json_object_set_new(o, "accuracy", accuracy_json(log->recipe, report));
    json_object_set_new(o, "rows", json_real((double)m->n_rows));
    json_object_set_new(o, "targets", json_real((double)m->n_targets));
    json_object_set_new(o, "lr", json_real((double)report->lr));
    json_object_set_new(o, "beta", json_real((double)report->beta));
    json_object_set_new(o, "grad_norm", json_real((double)report->grad_norm));
    if (report->cosines != NULL) {
        json_t *cosines = json_object();
        for (int i = 0; i < OPTIMIZER_LOOPING_GROUPS; i++)
            json_object_set_new(cosines, optimizer_looping_group(i),
                                json_real((double)report->cosines[i]));
        json_object_set_new(o, "looping", cosines);
    }
    json_object_set_new(o, "steps_per_s",
                        json_real(seconds > 0 ? (double)report->n_steps / seconds : 0.0));
    json_object_set_new(o, "seconds", json_real(log->base_seconds + report->seconds));
    json_object_set_new(o, "cpu_seconds", json_real(log->base_cpu_seconds + report->cpu_seconds));
    log_write(log, o);
}

void train_log_report(struct train_log *log, const struct trainer_report *report)
{
    if (report->ends_window)
        write_window(log, report);
    if (report->events != CURRICULUM_NONE)
        write_event(log, report);
}

void train_log_saved(struct train_log *log, uint64_t step, const char *path)
{
    log_write(
        log, json_pack("{s:s, s:I, s:s}", "type", "saved", "step", (json_int_t)step, "file", path));
}

void train_log_end(struct train_log *log, uint64_t step, const char *reason)
{
    log_write(log, json_pack("{s:s, s:I, s:s}", "type", "end", "step", (json_int_t)step, "reason",
                             reason));
}

void train_log_close(struct train_log *log)
{
    if (log->file != NULL && fclose(log->file) != 0)
        log_fail(log, errno);
    log->file = NULL;
}
